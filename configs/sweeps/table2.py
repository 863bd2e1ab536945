"""Do mixtures help, and does source retention? Table 2 of the paper.

  python tools/sweep.py --config=configs/sweeps/table2.py --workdir=runs/table2

Arms: MB-UA (clean clips), MB-PMA (partial mixtures), MB-UA-PMA (both), SSLAM
(both, and every source retained). Held equal: stage 1, clips, updates, masks.
Not equal: arithmetic. Two arms see clean and mixed clips, twice the rows of
the others, and SSLAM has one more pass of the teacher.

The paper's linear evaluation, mAP in percent (of SPASS: Square, Park,
Waterfront, Street, Market):

             SPASS                     IDMT-DESED  URBAN-SED  AS-20K
  MB-UA      60.1 59.7 55.2 63.7 62.8        75.8       71.3    13.9
  MB-PMA     63.1 63.5 58.5 66.5 67.4        78.4       70.9    16.1
  MB-UA-PMA  62.7 63.5 58.2 66.6 66.6        77.7       70.9    15.2
  SSLAM      64.2 64.2 59.5 67.4 68.5        77.8       71.4    16.9

Arguments: those of configs/stage2.py, but for its arms.
"""

from collections.abc import Iterator
from typing import Any

from configs import stage2

get_config = stage2.get_config


def sweep(arg: str = '') -> Iterator[dict[str, Any]]:
  del arg
  for name, sides in stage2.ARMS.items():
    yield {'name': name, **_fields(**sides, retention_weight=0.0)}
  yield {'name': 'sslam',
         **_fields(clean=True, mixed=True, retention_weight=1.0)}


def _fields(*, mixed: bool, **others: Any) -> dict[str, Any]:
  fields = {'mixed': mixed, **others}
  settings = {f'objective.{name}': value for name, value in fields.items()}
  return settings if mixed else {**settings, 'data.views.mix': None}
