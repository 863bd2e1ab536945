"""Which patches should source retention count?

  python tools/sweep.py --config=configs/sweeps/retention_patches.py \
      --workdir=runs/retention_patches

mixed: hidden patches of mixed columns, equation 4 of the paper (default here);
all: all hidden patches of mixtures, as the published code. There the clip's
own target is learned a second time in clean columns. Held equal: stage 1,
clips, updates, masks, mixtures, arithmetic, and the weight of the loss, which
is a mean over what it counts.

Arguments: those of configs/stage2.py, but for its arms.
"""

from collections.abc import Iterator
from typing import Any

from configs import stage2
from sslam_jax import objectives

get_config = stage2.get_config


def sweep(arg: str = '') -> Iterator[dict[str, Any]]:
  objective = stage2.get_config(arg).objective
  assert isinstance(objective, objectives.SourceRetention)
  if not objective.retention_weight:
    raise ValueError(f'configuration argument: want SSLAM, which has source '
                     f'retention, got {arg!r}')
  for patches in ('mixed', 'all'):
    yield {'name': patches, 'objective.srl_patches': patches}
