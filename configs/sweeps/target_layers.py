"""Of how many of the teacher's last layers should targets be made?

  python tools/sweep.py --config=configs/sweeps/target_layers.py \
      --workdir=runs/target_layers

The patches' targets (and with them source retention's) from all layers
(published), a half, a quarter or the last; then the class token's, published
from the last layer, from all. One is changed at a time. Held equal: stage 1
(whose targets stay those of all layers), clips, updates, masks, mixtures,
arithmetic.

Arguments: those of configs/stage2.py.
"""

from collections.abc import Iterator
from typing import Any

from configs import stage2

get_config = stage2.get_config


def sweep(arg: str = '') -> Iterator[dict[str, Any]]:
  depth = stage2.get_config(arg).objective.vit.depth
  for local in dict.fromkeys((None, depth // 2, depth // 4, 1)):
    yield _point(local, 1)
  yield _point(None, None)


def _point(local: int | None, clip: int | None) -> dict[str, Any]:
  return {
      'name': f'local_{local or "all"}-global_{clip or "all"}',
      'objective.local_layers': local,
      'objective.global_layers': clip,
  }
