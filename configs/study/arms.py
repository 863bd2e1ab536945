"""The arms of Table 2, each continued from the study's stage 1.

  python tools/sweep.py --config=configs/study/arms.py --workdir=DIR

Arguments: those of configs/study/design.py, and
  from=RUN  the run of stage 1 (default: runs/study/stage1/points/stage1)
"""

from collections.abc import Iterator

from configs import stage2
from configs.study import design
from configs.sweeps import table2
from sslam_jax import objectives
from sslam_jax import sweeping
from sslam_jax import train

_FROM = 'from'
_STEPS, _WARMUP_STEPS = 1000, 100


def get_config(arg: str = '') -> train.Config:
  pairs = design.parse(arg, _FROM)
  config = stage2.get_config('demo')
  config.workdir = f'{design.FOLDER}/arms'
  config.init_from = dict(pairs).get(
      _FROM, f'{design.FOLDER}/{design.STAGE1}/points/{design.STAGE1}'
  )
  design.pretraining(config, pairs)
  design.lengthen(config, pairs, _STEPS, _WARMUP_STEPS)
  objective = config.objective
  assert isinstance(objective, objectives.SourceRetention)
  # In the published run too the teacher's decay rises for a half of it.
  objective.ema.anneal_steps = config.steps // 2
  return config


def sweep(arg: str = '') -> Iterator[sweeping.Point]:
  yield from sweeping.join(table2.sweep(),
                           design.seeds(design.parse(arg, _FROM)))
