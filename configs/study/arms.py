"""The arms of Table 2, each continued from the study's stage 1.

  python tools/sweep.py --config=configs/study/arms.py --workdir=DIR

Arguments: those of configs/study/design.py, and
  from=RUN  the run of stage 1 (default: runs/study/stage1/points/stage1)
  steps=N   updates of an arm (default: 2000, a quarter of stage 1)
"""

from collections.abc import Iterator

from configs import labelled
from configs import stage2
from configs.study import design
from configs.sweeps import table2
from sslam_jax import objectives
from sslam_jax import sweeping
from sslam_jax import train

_FROM, _STEPS = 'from', 'steps'


def get_config(arg: str = '') -> train.Config:
  pairs = design.parse(arg, _FROM, _STEPS)
  steps = labelled.number(dict(pairs), _STEPS, 2000)
  config = stage2.get_config('demo')
  config.workdir = f'{design.FOLDER}/{design.ARMS_PART}'
  config.init_from = dict(pairs).get(
      _FROM, f'{design.FOLDER}/{design.STAGE1}/points/{design.STAGE1}'
  )
  design.pretraining(config, pairs)
  design.lengthen(config, pairs, steps, steps // 10)
  objective = config.objective
  assert isinstance(objective, objectives.SourceRetention)
  # In the published run too the teacher's decay rises for a half of it.
  objective.ema.anneal_steps = config.steps // 2
  return config


def sweep(arg: str = '') -> Iterator[sweeping.Point]:
  # Seed by seed: a study that is stopped has some seeds of all arms.
  for seed in design.seeds(design.parse(arg, _FROM, _STEPS)):
    yield from sweeping.join(table2.sweep(), [seed])
