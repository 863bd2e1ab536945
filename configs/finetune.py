"""Fine-tuning on labelled clips, by the published recipes.

  python -m sslam_jax.main --config=configs/finetune.py:esc50,run=runs/stage2

Arguments, joined by commas:
  NAME         as20k, as2m, esc50, speech_commands_v1, speech_commands_v2,
               spass_market (_park, _square, _street, _waterfront), urbansed,
               idmt_desed_fl; manifests from tools/prepare.py, as they lie in
               DIR/audioset, DIR/esc50, DIR/spass/market and so on of
  data=DIR     (default: data)
  fold=K       of esc50: the fold that is scored (default: 1)
  run=RUN      pre-training run whose student is fine-tuned (default:
               runs/stage2, runs/stage2-demo for demo); none: random weights
  small, large encoder of that size, where there is no run to take it from
  ema          score a moving average of the parameters
  demo         minutes on 2 CPU cores; on soundscapes without other data

Your own data instead of a NAME (docs/data.md has all words):
  folder=DIR,test_folder=DIR   the name of a clip's folder is its label; or
                               folder=DIR alone, with DIR/train and DIR/test
  csv=FILE                     with train and test in its column split, or
                               test_csv=FILE
  manifest=DIR                 with train.tsv and eval.tsv, or test_manifest=
  pack=, tfds=, soundscapes    and test_pack= and so on
  folds=K,fold=I               without test data: cross-validation
  multi_label                  clips have any number of labels
"""

import dataclasses
import pathlib

from configs import labelled
from configs import stage1
from configs import tasks
from sslam_jax import audio
from sslam_jax import augment
from sslam_jax import catalogue
from sslam_jax import checkpoint
from sslam_jax import classify
from sslam_jax import clips
from sslam_jax import config as config_lib
from sslam_jax import data as data_lib
from sslam_jax import evaluate
from sslam_jax import optim
from sslam_jax import run_folder
from sslam_jax import soundscapes
from sslam_jax import state
from sslam_jax import train
from sslam_jax import views

_SIZES = ('small', 'large')
_OWN = ('data', 'run', 'fold', 'folds')
FLAGS = (*tasks.TASKS, 'demo', *_SIZES, 'multi_label', 'ema',
         *catalogue.FLAGS, *(labelled.TEST + x for x in catalogue.FLAGS))
KEYS = (*catalogue.KEYS, *(labelled.TEST + x for x in catalogue.KEYS), *_OWN)
_NO_RUN = 'none'
_EVALUATIONS = 10  # in a run
_DEMO_SCENE_S = 2.5  # all of it fits: what is labelled is heard
# Recipes for data of unknown size: those of ESC-50 and of the SPASS scenes.
_SINGLE = tasks.TASKS['esc50']
_MULTI = tasks.TASKS['spass_market']


def get_config(arg: str = '') -> train.Config:
  pairs = config_lib.options(arg, flags=FLAGS, keys=KEYS)
  flags = {word for word, value in pairs if not value}
  words = {word: value for word, value in pairs if value}
  is_demo, names = 'demo' in flags, [name for name in tasks.TASKS
                                     if name in flags]
  if len(names) > 1:
    raise ValueError(f'configuration argument: want one data set, got {names}')
  _check_words(pairs, names)
  if names:
    task = tasks.TASKS[names[0]]
    fold = labelled.number(words, 'fold', 1) if names == ['esc50'] else None
    where = words.get('data', 'data')
    sources = (tasks.train_source(task, where, fold),
               tasks.test_source(task, where, fold))
  else:
    own = {*catalogue.KEYS, *catalogue.FLAGS} & {word for word, _ in pairs}
    sources = labelled.sources(
        [*pairs, ('soundscapes', '')] if is_demo and not own else pairs,
        scene_s=_DEMO_SCENE_S if is_demo else None,
    )
    is_multi = 'multi_label' in flags or isinstance(
        sources[0], soundscapes.Soundscapes
    )
    task = _MULTI if is_multi else _SINGLE
  config = _config(task, *sources)
  run = pathlib.Path(words['run']).name if 'run' in words else ''
  parts = filter(None, [*sorted(flags), words.get('fold', ''), run])
  config.workdir = '-'.join(['runs/finetune', *parts])
  if is_demo:
    _shrink(config)
  _start(config, words, flags, keeps_mel=bool(names))
  if 'ema' in flags:
    objective = config.objective
    assert isinstance(objective, classify.Classify)
    objective.ema = state.Ema(start=0.99, end=0.9999,
                              anneal_steps=config.steps)
  return config


def _check_words(pairs: labelled.Pairs, names: list[str]) -> None:
  """Raises ValueError for words that would have no effect."""
  given = {word for word, _ in pairs}
  own = {word for word in given if word in (
      *catalogue.KEYS, *catalogue.FLAGS, 'multi_label', 'folds'
  ) or word.startswith(labelled.TEST)}
  if names and own:
    raise ValueError(f'{", ".join(sorted(own))}: want it with data of your '
                     f'own, got {names[0]} too')
  sizes = [size for size in _SIZES if size in given]
  if sizes and ('demo' in given or dict(pairs).get('run', _NO_RUN) != _NO_RUN):
    raise ValueError(f'{sizes[0]}: want it without demo and run=RUN, which say '
                     f'how large the encoder is')
  if not names and 'data' in given:
    raise ValueError('data: want it with the name of a data set')
  if 'fold' in given and names != ['esc50'] and 'folds' not in given:
    raise ValueError('fold: want it with esc50, or with folds=K')


def _config(
    task: tasks.Task, train_source: clips.Source, test_source: clips.Source
) -> train.Config:
  mean, std = audio.NORMALISATION[task.norm]
  return train.Config(
      workdir='',
      objective=classify.Classify(
          loss_kind=task.loss_kind, bce_divisor=task.bce_divisor,
          smoothing=task.smoothing, drop_path=0.1,
      ),
      data=data_lib.Data(
          source=train_source,
          mel=audio.LogMel(frames=task.frames, mean=mean, std=std),
          views=views.Labelled(
              wave=augment.RollGain(),
              noise=augment.Noise() if task.noise else None,
              mixup=augment.Mixup(alpha=task.mixup) if task.mixup else None,
              spec=augment.SpecAugment(share=task.spec),
          ),
          workers=8,
      ),
      optim=optim.Optim(
          peak_lr=task.peak_lr, min_lr=1e-6, warmup_steps=task.warmup_steps,
          clip_norm=None, layer_decay=0.65,
      ),
      steps=task.steps,
      batch=task.batch,
      keep=checkpoint.Keep(every=task.steps // _EVALUATIONS),
      log_every=100,
      pictures_every=task.steps,
      evals=(evaluate.Test(
          source=test_source, every=task.steps // _EVALUATIONS
      ),),
  )


def _shrink(config: train.Config) -> None:
  """Makes a run of a minute or two on 2 CPU cores out of a published one.

  So few updates have no time for strong regularisation, and a class token
  learns late: patch tokens are averaged.
  """
  objective, labelled, (test,) = (
      config.objective, config.data.views, config.evals
  )
  assert isinstance(objective, classify.Classify)
  assert isinstance(labelled, views.Labelled)
  assert isinstance(test, evaluate.Test)
  mel = config.data.mel
  stage1.shrink(config)
  config.data.mel = dataclasses.replace(mel, frames=config.data.mel.frames)
  config.steps = 500
  config.keep.every = test.every = 100
  config.pictures_every = config.steps
  config.optim = dataclasses.replace(
      config.optim, peak_lr=1e-3, warmup_steps=50, layer_decay=None
  )
  objective.drop_path = 0.0
  objective.head.pooling = 'mean'
  labelled.mixup = None
  labelled.spec = augment.SpecAugment(share=0.2)


def _start(
    config: train.Config,
    words: dict[str, str],
    flags: set[str],
    *,
    keeps_mel: bool,
) -> None:
  """The encoder, from a run where there is one.

  Args:
    config: Is changed.
    words: Of the argument.
    flags: The same.
    keeps_mel: Frames and normalisation are the task's; else those of the run.
  """
  size = [flag for flag in ('demo', *_SIZES) if flag in flags]
  run = words.get('run', '-'.join(['runs/stage2', *size[:1]]))
  config.init_from = None if run == _NO_RUN else run
  folder, before = pathlib.Path(run), None
  if 'run' in words and run != _NO_RUN and not folder.is_dir():
    raise ValueError(f'run={run}: want a run folder, or run=none for random '
                     f'weights; got nothing: there is none')
  if run != _NO_RUN and folder.is_dir():
    before = run_folder.read_config(folder)
  else:
    before = stage1.get_config(','.join(size[:1]))
  config.objective.vit = before.objective.vit
  mel = config.data.mel
  if keeps_mel:
    config.data.mel = dataclasses.replace(
        before.data.mel, frames=mel.frames, mean=mel.mean, std=mel.std
    )
  else:
    config.data.mel = before.data.mel
