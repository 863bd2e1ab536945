"""Should all clips of a mix group be mixed in the same columns?

  python tools/sweep.py --config=configs/sweeps/columns.py \
      --workdir=runs/columns

Shared (published): one pair of clean windows for a group; per clip: each clip
its own. Held equal: stage 1, clips, updates, masks, arithmetic.

Arguments: those of configs/stage2.py (`mb_pma`, `mb_ua_pma`: without source
retention).
"""

from collections.abc import Iterator
from typing import Any

from configs import stage2

get_config = stage2.get_config


def sweep(arg: str = '') -> Iterator[dict[str, Any]]:
  del arg
  for name, shared in (('shared', True), ('per_clip', False)):
    yield {'name': name, 'data.views.mix.shared_columns': shared}
