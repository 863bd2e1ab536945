"""How much should source retention weigh?

  python tools/sweep.py --config=configs/sweeps/retention_weight.py \
      --workdir=runs/retention_weight

From 0 (MB-UA-PMA of Table 2: no pass over partners, so less arithmetic) to 10;
1 is published. Held equal: stage 1, clips, updates, masks, mixtures, and
arithmetic but for 0.

Arguments: those of configs/stage2.py, but for its arms.
"""

from collections.abc import Iterator
from typing import Any

from configs import stage2

_WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)

get_config = stage2.get_config


def sweep(arg: str = '') -> Iterator[dict[str, Any]]:
  del arg
  for weight in _WEIGHTS:
    yield {'name': f'weight_{weight:g}', 'objective.retention_weight': weight}
