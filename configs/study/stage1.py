"""Stage 1 of the study, and the same network with random weights.

  python tools/sweep.py --config=configs/study/stage1.py --workdir=DIR

One run on single sounds, whose seed is 1; and for each seed a network as it is
initialised. All are probed at the end.

Arguments: those of configs/study/design.py.
"""

from collections.abc import Iterator

from configs import stage1
from configs.study import design
from sslam_jax import objectives
from sslam_jax import sweeping
from sslam_jax import train

_STEPS, _WARMUP_STEPS = 8000, 800


def get_config(arg: str = '') -> train.Config:
  pairs = design.parse(arg)
  config = stage1.get_config('demo')
  config.workdir = f'{design.FOLDER}/{design.STAGE1}'
  design.pretraining(config, pairs)
  design.lengthen(config, pairs, _STEPS, _WARMUP_STEPS)
  objective = config.objective
  assert isinstance(objective, objectives.MaskedLatent)
  # In the published run too the teacher's decay rises for a quarter of it.
  objective.ema.anneal_steps = config.steps // 4
  return config


def sweep(arg: str = '') -> Iterator[sweeping.Point]:
  yield {'name': design.STAGE1}
  # One update that float32 cannot hold.
  yield from sweeping.join(
      [{'name': design.RANDOM, 'steps': 1, 'optim.warmup_steps': 0,
        'optim.peak_lr': 1e-30}], design.seeds(design.parse(arg)),
  )
