"""How long should the clean windows of a mixture be?

  python tools/sweep.py --config=configs/sweeps/clean_share.py \
      --workdir=runs/clean_share

Each of the two windows has 0, 5, 10, 15 (published), 20 or 25 of 64 columns;
64, 54, 44, 34, 24 or 14 are mixed. (Of a demo's 16 columns 0 to 6, rounded
down.) Held equal: stage 1, clips, updates, masks. Not equal: how many patches
source retention counts, and the teacher's pass over partners has the mixed
columns alone.

Arguments: those of configs/stage2.py (`mb_pma`, `mb_ua_pma`: without source
retention).
"""

from collections.abc import Iterator
from typing import Any

from configs import stage2

_COLUMNS = 64  # of the published clip
_CLEAN = (0, 5, 10, 15, 20, 25)

get_config = stage2.get_config


def sweep(arg: str = '') -> Iterator[dict[str, Any]]:
  del arg
  for clean in _CLEAN:
    share = clean / _COLUMNS
    yield {'name': f'clean_{clean}', 'data.views.mix.clean_share': share}
