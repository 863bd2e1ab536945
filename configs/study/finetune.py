r"""Fine-tuning of all networks of the study, on one of its tasks.

  python tools/sweep.py --config=configs/study/finetune.py:task=animals \
      --workdir=DIR

Of each arm, the run of each seed; as often stage 1 without a second stage, and
a network with random weights. The settings are those of docs/results.md.

Arguments: those of configs/study/design.py, and
  task=NAME  polyphonic, animals or digits; of soundscapes, polyphonic
  from=DIR   the study's folder, with stage1/ and arms/ (default: runs/study)
"""

from collections.abc import Iterator

from configs import finetune
from configs.study import design
from sslam_jax import classify
from sslam_jax import evaluate
from sslam_jax import sweeping
from sslam_jax import train

_TASK, _FROM = 'task', 'from'


def get_config(arg: str = '') -> train.Config:
  pairs = design.parse(arg, _TASK, _FROM)
  name = _task(pairs)
  task, tuning = design.tasks(pairs)[name], design.tunings(pairs)[name]
  config = finetune.get_config(f'demo,run=none,{task.words}')
  config.workdir = f'{design.FOLDER}/finetune-{name}'
  config.data.source, test_clips = design.task_clips(task, pairs)
  config.data.mel = design.mel(pairs, tuning.frames)
  config.evals = (evaluate.Test(source=test_clips, by_sources=task.is_mixed),)
  design.lengthen(config, pairs, tuning.steps, tuning.steps // 10)
  objective = config.objective
  assert isinstance(objective, classify.Classify)
  if task.is_mixed:
    objective.head.pooling = 'linear_softmax'
  return config


def sweep(arg: str = '') -> Iterator[sweeping.Point]:
  pairs = design.parse(arg, _TASK, _FROM)
  folder = dict(pairs).get(_FROM, design.FOLDER)
  stage1 = f'{folder}/{design.STAGE1}/points/{design.STAGE1}'
  starts: list[sweeping.Point] = [
      {'name': design.STAGE1, 'init_from': stage1},
      {'name': design.RANDOM, 'init_from': None},
  ]
  arms_folder = f'{folder}/{design.ARMS_PART}/points'
  for seed in design.seeds(pairs):
    end = f',{sweeping.part(sweeping.SEED, seed[sweeping.SEED])}'
    arms = [{'name': arm, 'init_from': f'{arms_folder}/{arm}{end}'}
            for arm in design.ARMS]
    yield from sweeping.join([*arms, *starts], [seed])


def _task(pairs: design.Pairs) -> str:
  tasks, name = design.tunings(pairs), dict(pairs).get(_TASK)
  if name not in tasks:
    raise ValueError(f'task: want task=NAME, of {", ".join(tasks)}; '
                     f'got {name}')
  return name
