"""Two or three sources in a mixture?

  python tools/sweep.py --config=configs/sweeps/sources.py \
      --workdir=runs/sources

Two (published): a clip and the one before it in its mix group; three: and the
one before that. In mixed columns the target of source retention is the mean of
all. Held equal: stage 1, clips, updates, masks, mixed columns. Not equal: the
teacher makes one more pass over mixed columns.

Arguments: those of configs/stage2.py (`mb_pma`, `mb_ua_pma`: without source
retention).
"""

from collections.abc import Iterator
from typing import Any

from configs import stage2

get_config = stage2.get_config


def sweep(arg: str = '') -> Iterator[dict[str, Any]]:
  del arg
  for sources in (2, 3):
    yield {'name': f'sources_{sources}', 'data.views.mix.sources': sources}
