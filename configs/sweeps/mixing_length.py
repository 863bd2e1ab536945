"""Is it better to mix a part of a clip than all of it?

  python tools/sweep.py --config=configs/sweeps/mixing_length.py \
      --workdir=runs/mixing_length

Partial (published): two windows of 15 of 64 columns stay clean. Full: no
column does, so that source retention counts every hidden patch. Held equal:
stage 1, clips, updates, masks. Not equal: the teacher's pass over partners has
all columns instead of 34 of 64. clean_share.py has the lengths between.

Arguments: those of configs/stage2.py (`mb_pma`, `mb_ua_pma`: without source
retention).
"""

from collections.abc import Iterator
from typing import Any

from configs import stage2
from sslam_jax import mixing

get_config = stage2.get_config


def sweep(arg: str = '') -> Iterator[dict[str, Any]]:
  del arg
  published = mixing.PartialMix().clean_share
  for name, share in (('full', 0.0), ('partial', published)):
    yield {'name': name, 'data.views.mix.clean_share': share}
