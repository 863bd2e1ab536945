"""Weights and spectrograms, drawn again from the seeds in `cases.json`.

Or weights from run folders, of the cases that have tensors of their shapes.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import functools
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from sslam_jax import checkpoint
from sslam_jax import pretrained
from sslam_jax import run_folder
from sslam_jax import state
from sslam_jax import torch_io
from tools.golden import folder
from tools.golden import measures

_CHECKSUM = measures.Tolerance(1e-12, 'rel')  # float64
_CHECKSUMS = 'weights_checksums.json'
_POSITIONS = 'fixed_positional_encoder.positions'


class NoWeightsError(Exception):
  """None of the run folders has the weights of a case."""


@dataclasses.dataclass(frozen=True)
class Run:
  """The weights in a run folder.

  Attributes:
    path: The folder.
    tensors: By official name: the student's, the teacher's.
    cases: Whose weights were taken from it.
  """

  path: pathlib.Path
  tensors: tuple[folder.Tensors, ...] = dataclasses.field(repr=False)
  cases: set[str] = dataclasses.field(default_factory=set)


def load(path: pathlib.Path) -> Run:
  """Raises BadFolderError where it is no run folder."""
  try:
    found = tuple(map(torch_io.to_torch, _trees(path)))
  except (ValueError, OSError) as error:
    raise folder.BadFolderError(str(error)) from error
  return Run(path, found)


def params(golden: folder.Golden, case: str, role: str) -> state.Params:
  """Parameters of the [seed, list of names] of an entry of cases.json.

  Raises:
    NoWeightsError: They should come from run folders, and none has them.
  """
  seed, names = golden.case(case, role)
  if golden.runs:
    return _found(golden, seed, names)
  return _drawn(golden, seed, names)


def source(golden: folder.Golden, case: str) -> np.ndarray:
  """The spectrograms [B, T, F] of an entry's seed, shape and rule."""
  seed, shape, rule = (
      golden.case(case, 'source', x) for x in ('seed', 'shape', 'rule'))
  normal_BxTxF = normal(seed, shape)[:, 0]
  number = r'([\d.eE+-]+)'
  if match := re.fullmatch(rf'float32\(normal \* {number}\)', rule):
    return (normal_BxTxF * float(match[1])).astype(np.float32)
  if match := re.fullmatch(rf'float32\(normal\) \* float32\({number}\)', rule):
    return normal_BxTxF.astype(np.float32) * np.float32(match[1])
  raise golden.bad_case(
      (case, 'source', 'rule'), 'want float32(normal * x) or float32(normal) '
      f'* float32(x), got {rule}')


def normal(seed: int, shape: Iterable[int]) -> np.ndarray:
  rng = np.random.Generator(np.random.PCG64(seed))
  return rng.standard_normal(tuple(shape))


def _trees(path: pathlib.Path) -> Iterator[state.Params]:
  """Parameters of the student, and of the teacher if there is one."""
  config = run_folder.read_config(path)
  like = jax.eval_shape(lambda: pretrained.initial(config))
  parts = checkpoint.contents(str(path))
  student = {name: like[name] for name in parts if name in like}
  yield jax.device_get(checkpoint.load_params(str(path), like=student))
  if 'teacher' in parts and 'head' not in like:
    teacher = checkpoint.load_teacher(str(path), like=like['encoder'])
    yield {'encoder': jax.device_get(teacher)}


def _found(golden: folder.Golden, seed: int, names: str) -> state.Params:
  """Weights of a run folder that are of a list's names and shapes."""
  wanted = {name: tuple(shape) for name, shape in golden.json(names)
            if not name.endswith(_POSITIONS)}
  for run in golden.runs:
    for tensors in run.tensors:
      if {name: x.shape for name, x in tensors.items()} == wanted:
        _check_weights(golden, f'{seed}:{names}', tensors)
        run.cases.add(names)
        return jax.tree.map(jnp.asarray, torch_io.from_torch(tensors))
  raise NoWeightsError(f'no --checkpoint has the tensors of {names}')


@functools.lru_cache(maxsize=2)  # student and teacher of a case
def _drawn(golden: folder.Golden, seed: int, names: str) -> state.Params:
  """Weights by the documented rules: one stream over the sorted names."""
  rng = np.random.Generator(np.random.PCG64(seed))
  tensors = {}
  for name, shape in sorted(golden.json(names)):
    # The table of positions is a constant: nothing is drawn for it.
    if not name.endswith(_POSITIONS):
      tensors[name] = _scaled(name, rng.standard_normal(shape))
  _check_weights(golden, f'{seed}:{names}', tensors)
  return jax.tree.map(jnp.asarray, torch_io.from_torch(tensors))


def _scaled(name: str, tensor: np.ndarray) -> np.ndarray:
  if name.endswith('extra_tokens'):
    tensor = 0.5 * tensor
  elif name.endswith('.bias'):
    tensor = 0.02 * tensor
  elif tensor.ndim == 1:
    tensor = 1 + 0.1 * tensor
  else:
    tensor = tensor / np.sqrt(math.prod(tensor.shape[1:]))
  return tensor.astype(np.float32)


def _check_weights(
    golden: folder.Golden, key: str, tensors: folder.Tensors
) -> None:
  """That the rules give here what they gave there."""
  path = golden.path / _CHECKSUMS
  if not path.exists() or key not in (checksums := golden.json(_CHECKSUMS)):
    return
  official = {f'{key} {k}': np.asarray(v) for k, v in checksums[key].items()}
  file = folder.File(path, official)
  section = folder.Section(file, golden.report, f'{key} ')
  section.compare('n', len(tensors), measures.EQUAL)
  section.compare(
      'first_values', tensors[min(tensors)].flat[:3], measures.EQUAL)
  norm = math.hypot(*(measures.l2(x, 0) for x in tensors.values()))
  section.compare('l2_all', norm, _CHECKSUM)
