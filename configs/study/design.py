"""What all runs of the study share: its clips, its tasks and its sizes.

Every file takes these words, joined by commas:
  data=DIR     the recordings (default: ../shared/data)
  soundscapes  procedural sounds instead; no data needed
  seeds=N      seeds 1 to N (default: 5; of quick: 2)
  quick        a hundredth of the updates, a tenth of the tasks' clips
"""

import dataclasses

from configs import labelled
from configs import stage2
from sslam_jax import audio
from sslam_jax import catalogue
from sslam_jax import clips
from sslam_jax import config as config_lib
from sslam_jax import evaluate
from sslam_jax import sampling
from sslam_jax import soundscapes
from sslam_jax import sweeping
from sslam_jax import train

FOLDER = 'runs/study'  # of the whole study
STAGE1, RANDOM = 'stage1', 'random'
ARMS = (*stage2.ARMS, 'sslam')
TITLES = {RANDOM: 'random weights', STAGE1: 'stage 1 alone', 'mb_ua': 'MB-UA',
          'mb_pma': 'MB-PMA', 'mb_ua_pma': 'MB-UA-PMA', 'sslam': 'SSLAM'}
ARMS_PART = 'arms'  # those that are fine-tuned
# The arms once more, otherwise trained: words of arms.py.
VARIANTS = {'arms-short': 'steps=1000'}
FEATURES = ('rows', 'rows+rows_std')
RECORDINGS = '../shared/data'
_SEEDS = 5
_FRAMES = 256  # 2.56 s, 16 columns of patches
_SCENES = ('soundscapes', '')
_QUICK = ('quick', '')
_FASTER, _FEWER = 100, 10
PRETRAINING_SETS = ('animals', 'digits', 'oneshots')  # no mixtures among them

Pairs = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
  """How a network is fine-tuned, as in docs/results.md.

  Attributes:
    frames: Length of the spectrograms.
    steps: Updates.
  """

  frames: int
  steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """Labelled clips that the networks are tested on.

  Attributes:
    words: Of configs/finetune.py, for its training and test clips.
    length_s: What a probe hears of a clip.
    tuning: None: networks are probed on it alone.
    groups: As of `evaluate.Probe`.
    is_mixed: There are clips of several sources.
  """

  words: str
  length_s: float
  tuning: Tuning | None = None
  groups: str | None = None
  is_mixed: bool = False


def title(label: str) -> str:
  """Of an arm, as the paper names it; of others their label."""
  return TITLES.get(label, label)


def parse(arg: str, *more: str) -> Pairs:
  """The words of an argument; `more`: those that a file has of its own."""
  pairs = config_lib.options(arg, flags=('soundscapes', 'quick'),
                             keys=('data', 'seeds', *more))
  if _SCENES in pairs and 'data' in dict(pairs):
    raise ValueError('configuration argument: want data=DIR or soundscapes, '
                     'got both')
  return pairs


def seeds(pairs: Pairs) -> list[sweeping.Point]:
  """A point for each."""
  count = labelled.number(dict(pairs), 'seeds',
                          2 if _QUICK in pairs else _SEEDS)
  if count < 1:
    raise ValueError(f'seeds: want at least 1, got {count}')
  return sweeping.seeds(*range(1, count + 1))


def tasks(pairs: Pairs) -> dict[str, Task]:
  """By name."""
  if _SCENES in pairs:
    return {'polyphonic': Task(
        words='soundscapes=1000,length=5.12,seed=1,test_soundscapes=1000,'
              'test_length=5.12,test_seed=1',
        length_s=5.12, tuning=Tuning(frames=512, steps=900), is_mixed=True,
    )}
  where = dict(pairs).get('data', RECORDINGS)

  def parts(name: str) -> str:
    return f'folder={where}/{name}/train,test_folder={where}/{name}/test'

  return {
      'polyphonic': Task(
          words=f'csv={where}/polyphonic/labels.csv,label=classes,multi_label',
          length_s=5.12, tuning=Tuning(frames=512, steps=900), is_mixed=True,
      ),
      # More of them, made of the same recordings: smaller differences show.
      'mixtures': Task(
          words=f'{_folders(where, "train")},mixtures=2000,seed=1,'
                f'{_folders(where, "test", "test_")},test_mixtures=2000,'
                'test_seed=1',
          length_s=5.12, is_mixed=True,
      ),
      'animals': Task(
          words=parts('animals'), length_s=5.12,
          tuning=Tuning(frames=256, steps=800),
          groups=f'{where}/animals/groups.csv:session_group',
      ),
      'digits': Task(
          words=parts('digits'), length_s=1.28,
          tuning=Tuning(frames=64, steps=1500),
          groups=f'{where}/digits/labels.csv:speaker',
      ),
  }


def tunings(pairs: Pairs) -> dict[str, Tuning]:
  """Of the tasks that networks are fine-tuned on, by name."""
  return {name: task.tuning for name, task in tasks(pairs).items()
          if task.tuning is not None}


def task_clips(task: Task, pairs: Pairs) -> tuple[clips.Source, clips.Source]:
  """For training and for the test."""
  words = [(word, value) for word, _, value in (
      part.partition('=') for part in task.words.split(',')
  )]
  train_clips, test_clips = labelled.sources(words)
  if _QUICK in pairs:
    return _few(train_clips), _few(test_clips)
  return train_clips, test_clips


def pretraining(config: train.Config, pairs: Pairs) -> None:
  """Makes a run of either stage one of the study."""
  config.data.source = _single_sounds(pairs)
  config.data.mel = mel(pairs, _FRAMES)
  config.data.short = 'repeat'  # padding would hide the other clip
  config.evals = tuple(
      evaluate.Probe(name=name, train=train_clips, test=test_clips,
                     features=','.join(FEATURES), length_s=task.length_s,
                     groups=task.groups)
      for name, task in tasks(pairs).items()
      for train_clips, test_clips in [task_clips(task, pairs)]
  )


def mel(pairs: Pairs, frames: int) -> audio.LogMel:
  """The front end, normalised by what tools/audio_stats.py finds."""
  mean, std = (-7.6189, 3.3588) if _SCENES in pairs else (-9.4845, 4.5491)
  return audio.LogMel(frames=frames, mean=mean, std=std)


def lengthen(
    config: train.Config, pairs: Pairs, steps: int, warmup_steps: int
) -> None:
  """Sets the length of a run; a picture and a score come at its end."""
  faster = _FASTER if _QUICK in pairs else 1
  config.steps = steps // faster
  config.optim.warmup_steps = warmup_steps // faster
  config.keep.every = max(steps // faster // 20, 1)
  config.pictures_every = config.steps


def _single_sounds(pairs: Pairs) -> clips.Source:
  if _SCENES in pairs:
    return soundscapes.Soundscapes(length_s=4.0, max_events=1)
  where = dict(pairs).get('data', RECORDINGS)
  return catalogue.build([('folder', f'{where}/{name}/train')
                          for name in PRETRAINING_SETS])


def _folders(where: str, part: str, before: str = '') -> str:
  return ','.join(f'{before}folder={where}/{name}/{part}'
                  for name in PRETRAINING_SETS)


def _few(source: clips.Source) -> clips.Source:
  return sampling.Fold(source=source, folds=_FEWER, fold=1, held_out=True)
