"""The model of a run folder: its configuration and parameters, ready to use."""

import dataclasses
import pathlib
from typing import Any, Literal, get_args

import jax

from sslam_jax import checkpoint
from sslam_jax import classify
from sslam_jax import model
from sslam_jax import run_folder
from sslam_jax import state
from sslam_jax import train

Weights = Literal['student', 'teacher']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """What a run has learned.

  Attributes:
    path: Its folder.
    step: Updates done.
    config: Its configuration.
    params: Its parameters; `encoder` always, `head` of a classifier.
  """

  path: str
  step: int
  config: train.Config
  params: state.Params = dataclasses.field(repr=False)

  @property
  def vit(self) -> model.Vit:
    return self.config.objective.vit

  @property
  def classes(self) -> tuple[str, ...]:
    """Of the classifier, in the order of its scores; none without one."""
    return self.config.data.views.names

  @property
  def classifier(self) -> classify.Classify:
    """The objective of a fine-tuned run.

    Raises:
      ValueError: The run has not learned any classes.
    """
    objective = self.config.objective
    if not isinstance(objective, classify.Classify):
      raise ValueError(
          f'{self.path}: want a run that has learned classes '
          f'(configs/finetune.py or linear.py), got one of '
          f'{type(objective).__name__}'
      )
    return objective


def load(path: str, *, weights: Weights = 'student') -> Model:
  """The model in a run folder, from its latest checkpoint.

  Args:
    path: The folder.
    weights: Of a pre-training run, the student's encoder or the teacher's. A
      classifier with a moving average is that average.

  Raises:
    ValueError: No such folder, or no complete checkpoint in it.
  """
  if weights not in get_args(Weights):
    raise ValueError(f'weights: want one of {", ".join(get_args(Weights))}, '
                     f'got {weights!r}')
  config = run_folder.read_config(pathlib.Path(path))
  step = checkpoint.latest_step(path)
  like = jax.eval_shape(lambda: initial(config))
  objective = config.objective
  parts: tuple[str, ...] = ('encoder',)
  if isinstance(objective, classify.Classify):
    if weights == 'teacher':
      raise ValueError(f'weights: want student, as the run {path} has no '
                       f'teacher; got teacher')
    parts = ('encoder', 'head')
    weights = 'student' if objective.ema is None else 'teacher'
  if weights == 'student':
    like = {name: like[name] for name in parts}
    params = checkpoint.load_params(path, like=like, parts=parts)
  elif isinstance(objective, classify.Classify):
    params = checkpoint.load_teacher(path, like=like)
  else:
    params = {'encoder': checkpoint.load_teacher(path, like=like['encoder'])}
  assert step is not None  # or loading would have failed
  return Model(path=path, step=step, config=config, params=params)


def initial(config: train.Config) -> Any:
  """Random parameters of a run, for their shapes."""
  mel = config.data.mel
  return config.objective.init(
      jax.random.key(0), (mel.frames, mel.mel_bins),
      len(config.data.views.names),
  )
