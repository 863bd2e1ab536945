"""What a run has learned, whole: of pre-training both networks and decoder."""

import dataclasses

import jax
import numpy as np

from sslam_jax import checkpoint
from sslam_jax import model as model_lib
from sslam_jax import pretrained
from sslam_jax import state
from sslam_jax import torch_io
from sslam_jax import train

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
  """A run's weights, as NumPy.

  Attributes:
    run: Its configuration, with encoder (and head) of the weights asked for.
    weights: Which these are.
    params: All parameters of a pre-training run's student, or those of `run`.
    teacher: Its teacher's encoder; None of a classifier, or if there is none.
    is_imported: The weights are of another program's run: no configuration
      tells how they were made.
  """

  run: pretrained.Model
  weights: pretrained.Weights
  params: state.Params = dataclasses.field(repr=False)
  teacher: state.Params | None = dataclasses.field(repr=False)
  is_imported: bool

  @property
  def is_classifier(self) -> bool:
    return 'head' in self.params

  @property
  def config(self) -> train.Config:
    return self.run.config

  def student(self) -> Tensors:
    """Official tensors of `params`, with positions."""
    return official(self.params, self.config.data.mel.mel_bins)

  def encoder(self) -> Tensors:
    """The same without a decoder."""
    return official(self.run.params, self.config.data.mel.mel_bins)


def load(path: str, weights: pretrained.Weights) -> Trained:
  """The weights in a run folder.

  Args:
    path: The folder.
    weights: See `pretrained.load`.

  Raises:
    ValueError: As `pretrained.load`.
  """
  run = pretrained.load(path, weights=weights)
  host = jax.device_get(run.params)
  run = dataclasses.replace(run, params=host)
  params, teacher = host, None
  if 'head' not in host:
    like = jax.eval_shape(lambda: pretrained.initial(run.config))
    parts = checkpoint.contents(path)
    if 'teacher' in parts:
      teacher = {'encoder': jax.device_get(
          checkpoint.load_teacher(path, like=like['encoder']))}
    if weights == 'student' and 'decoder' in parts:
      params = jax.device_get(checkpoint.load_params(path, like=like))
  return Trained(run=run, weights=weights, params=params, teacher=teacher,
                 is_imported=_is_imported(path))


def official(params: state.Params, mel_bins: int) -> Tensors:
  """Tensors by official name, with the table of positions."""
  tensors = torch_io.to_torch(params)
  kernel = params['encoder']['patch']['kernel']
  area, width = kernel.shape
  columns = mel_bins // round(area**0.5)
  prefix = torch_io.CLASSIFIER * ('head' in params)
  table = model_lib.positions((torch_io.COLUMNS, columns), width)[None]
  return {**tensors, prefix + torch_io.POSITIONS: table}


def _is_imported(path: str) -> bool:
  try:
    checkpoint.check_resumable(path)
  except ValueError:
    return True
  return False
