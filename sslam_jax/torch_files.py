"""Reading PyTorch and Hugging Face checkpoints, without running their code.

`.pt` files are pickles. Theirs hold, besides tensors, objects of fairseq,
omegaconf and argparse: here each becomes an inert record of what it was made
of, whether or not its library is installed, and nothing of it is ever called.
Names that reach into Python's own modules or torch are refused.
Needs torch for `.pt`, safetensors for `.safetensors` (requirements-torch.txt).
"""

import _compat_pickle
import contextlib
import dataclasses
import importlib
import json
import pathlib
import pickle
import pickletools
import re
import struct
import sys
import warnings
import zipfile
from collections.abc import Iterator
from typing import IO, Any, Literal

import numpy as np

from sslam_jax import errors
from sslam_jax import torch_io

Tensors = dict[str, np.ndarray]
Layout = Literal['fairseq', 'state_dict', 'huggingface']

_SAFETENSORS = '.safetensors'
# In a folder, and settings beside them.
_WEIGHTS = ('model.safetensors', 'pytorch_model.bin')
_CONFIG, _PREPROCESSOR = 'config.json', 'preprocessor_config.json'
_OURS = 'sslam_jax'  # in a .pt of tools/export_torch.py: its config.json
_SETTINGS = 'cfg', 'args', _OURS, 'optimizer_history'
_TEACHER = '_ema'
_DEFAULTS = 'collections.defaultdict'
# Of Python's own modules: what settings are made of (`getitem`: List[str]).
_HARMLESS = frozenset({
    'argparse.Namespace', _DEFAULTS, '_operator.getitem', 'operator.getitem',
    *(f'typing.{name}' for name in (
        'Any', 'Dict', 'List', 'Optional', 'Tuple', 'Union')),
    *(f'pathlib.{name}' for name in ('Path', 'PosixPath', 'WindowsPath')),
    *(f'builtins.{name}' for name in (
        'bool', 'bytes', 'dict', 'float', 'frozenset', 'int', 'list', 'object',
        'str', 'tuple')),
})
# Those that torch itself makes; beside its own, of which it allows some.
_TORCH_MAKES = frozenset({
    'collections.OrderedDict', 'collections.Counter', '_codecs.encode',
    'builtins.bytearray', 'builtins.complex', 'builtins.set',
})
_TORCH = 'torch'
# In what torch says.
_REFUSED = re.compile(r'GLOBAL (\S+)')
_UNKNOWN = re.compile(r'WeightsUnpickler error:\s*(.+)')
_FLOATS = 'float32', 'float16', 'bfloat16'
_ZIP, _PICKLE = b'PK\x03\x04', b'\x80'  # how files begin
_LEGACY_PICKLES = 4  # magic number, protocol, system, object
_DAMAGED = (RuntimeError, ValueError, KeyError, IndexError, EOFError, TypeError,
            AttributeError, AssertionError, struct.error, zipfile.BadZipFile,
            pickle.UnpicklingError, MemoryError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
  """What a file or folder holds.

  Attributes:
    path: It.
    layout: A training checkpoint of fairseq, a plain dict of its names, or a
      Hugging Face model.
    student: Tensors by official name, float32.
    teacher: The same of the moving average; None without one.
    fairseq: Settings as fairseq has them: `model`, `task` and so on.
    huggingface: Settings as a config.json has them, ours and theirs.
    updates: How many were done; None where unknown.
  """

  path: pathlib.Path
  layout: Layout
  student: Tensors = dataclasses.field(repr=False)
  teacher: Tensors | None = dataclasses.field(default=None, repr=False)
  fairseq: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)
  huggingface: dict[str, Any] = dataclasses.field(
      default_factory=dict, repr=False
  )
  updates: int | None = None


def read(path: pathlib.Path) -> Checkpoint:
  """Reads a `.pt`, `.safetensors` or the folder of a Hugging Face model.

  float16 and bfloat16 tensors become float32, which loses nothing.

  Raises:
    ValueError: It is missing, damaged, of another kind or model, or holds code;
      or the library that reads it is not installed.
  """
  if path.is_dir():
    return _read_folder(path)
  if not path.is_file():
    raise ValueError(f'{path}: want a checkpoint, got nothing: it does not '
                     f'exist')
  if path.suffix == _SAFETENSORS:
    tensors, settings = _read_safetensors(path)
  else:
    tree = _read_pickle(path)
    if isinstance(tree.get('model'), dict):
      return _training(path, tree)
    tensors, settings = _arrays(path, tree), {}
  beside = path.with_name(_CONFIG)
  if not settings and path.name in _WEIGHTS and beside.is_file():
    settings = _read_json(beside)
  return _plain_model(path, tensors, settings)


def library(name: str) -> Any:
  """The module `name`, of one that only weights in and out need.

  Raises:
    ValueError: Its library is missing; how to install it is said.
  """
  try:
    return importlib.import_module(name)
  except ImportError:
    raise ValueError(
        f'{name.partition(".")[0]}: want it installed: pip install -r '
        f'requirements-torch.txt; got no such library') from None


@contextlib.contextmanager
def about(what: object) -> Iterator[None]:
  """Errors begin with what they are about."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f'{what}: {error}') from None


def _read_folder(path: pathlib.Path) -> Checkpoint:
  found = [path / name for name in _WEIGHTS if (path / name).is_file()]
  if not found:
    parts = sorted(x.name for x in path.glob('*.index.json'))
    got = f'{parts[0]} of one in parts' if parts else 'neither'
    raise ValueError(f'{path}: want a Hugging Face folder with '
                     f'{" or ".join(_WEIGHTS)}, got {got}')
  settings = _read_json(path / _CONFIG)
  if (path / _PREPROCESSOR).is_file():
    settings = _read_json(path / _PREPROCESSOR) | settings
  if found[0].suffix == _SAFETENSORS:
    tensors, _ = _read_safetensors(found[0])
  else:
    tensors = _arrays(found[0], _read_pickle(found[0]))
  return _plain_model(path, tensors, settings)


def _plain_model(
    path: pathlib.Path, tensors: Tensors, settings: dict[str, Any]
) -> Checkpoint:
  """Of tensors by either kind of names."""
  layout: Layout = 'state_dict'
  with about(path):
    torch_io.check_known(tensors)
    if torch_io.is_huggingface(tensors):
      layout, tensors = 'huggingface', torch_io.from_huggingface(tensors)
  return Checkpoint(path=path, layout=layout, student=tensors,
                    huggingface=settings)


def _training(path: pathlib.Path, tree: dict[str, Any]) -> Checkpoint:
  """Of what fairseq saves."""
  student = dict(tree['model'])
  ema = student.pop(_TEACHER, None)
  if ema is not None and not isinstance(ema, dict):
    raise ValueError(f'{path}: {_TEACHER}: want a dict of tensors, '
                     f'got {type(ema).__name__}')
  arrays = _arrays(path, student)
  with about(path):
    torch_io.check_known(arrays)
  try:
    settings = {name: _plain(tree.get(name), {}) for name in _SETTINGS}
  except RecursionError:
    raise ValueError(f'{path}: want settings, got ones nested too '
                     f'deeply') from None
  return Checkpoint(
      path=path,
      layout='fairseq',
      student=arrays,
      teacher=None if ema is None else _arrays(path, ema),
      fairseq=_dict(settings['cfg']) or _dict(settings['args']),
      huggingface=_dict(settings[_OURS]),
      updates=_updates(settings['optimizer_history']),
  )


def _dict(value: Any) -> dict[str, Any]:
  return value if isinstance(value, dict) else {}


def _updates(history: Any) -> int | None:
  """Those of the last optimiser that fairseq lists."""
  last = history[-1] if isinstance(history, list) and history else None
  count = last.get('num_updates') if isinstance(last, dict) else None
  return count if isinstance(count, int) and count >= 0 else None


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    tree = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise ValueError(f'{path}: want it in a Hugging Face folder, got no such '
                     f'file') from None
  except ValueError as error:
    raise ValueError(f'{path}: want JSON, got {error}') from None
  if not isinstance(tree, dict):
    raise ValueError(f'{path}: want an object, got {type(tree).__name__}')
  return tree


def _read_safetensors(path: pathlib.Path) -> tuple[Tensors, dict[str, Any]]:
  """Tensors, and settings as tools/export_torch.py puts them beside."""
  safetensors = library('safetensors')
  # Of this library's types NumPy alone has no bfloat16, which ml_dtypes adds.
  importlib.import_module('ml_dtypes')
  try:
    with safetensors.safe_open(path, framework='np') as file:
      metadata, names = file.metadata() or {}, file.keys()
      found = {name: file.get_tensor(name) for name in names}
  except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
    raise ValueError(f'{path}: want a whole safetensors file, got '
                     f'{errors.first_line(error)}') from None
  for name, x in found.items():
    _check_type(path, name, str(x.dtype))
  tensors = {name: np.asarray(x, np.float32) for name, x in found.items()}
  if 'config' not in metadata:
    return tensors, {}
  try:
    settings = json.loads(metadata['config'])
  except ValueError as error:
    raise ValueError(f'{path}: metadata: config: want JSON, '
                     f'got {error}') from None
  return tensors, _dict(settings)


def _arrays(path: pathlib.Path, tree: dict[str, Any]) -> Tensors:
  """PyTorch's tensors as NumPy's; anything else is an error."""
  torch = library(_TORCH)
  arrays = {}
  for name, tensor in tree.items():
    if not (isinstance(name, str) and torch.is_tensor(tensor)):
      raise ValueError(f'{path}: want a checkpoint with tensors by name, got '
                       f'{name!r}: {type(tensor).__name__}')
    is_dense = tensor.layout == torch.strided
    kind = str(tensor.dtype if is_dense else tensor.layout)
    _check_type(path, name, kind.removeprefix('torch.'))
    arrays[name] = tensor.detach().float().numpy()
  return arrays


def _check_type(path: pathlib.Path, name: str, kind: str) -> None:
  if kind not in _FLOATS:
    raise ValueError(f'{path}: {name}: want {", ".join(_FLOATS)}, got {kind}')


def _read_pickle(path: pathlib.Path) -> dict[str, Any]:
  """What torch.save was given: a dict, with records for all objects."""
  torch = library(_TORCH)
  is_zip = zipfile.is_zipfile(path)
  if not is_zip:
    _check_start(path)
  try:
    stubs = [_stub(name) for name in sorted(_globals(path, is_zip))]
    with torch.serialization.safe_globals(stubs), warnings.catch_warnings():
      warnings.simplefilter('ignore')  # of old storages and protocols
      tree = torch.load(path, map_location='cpu', weights_only=True,
                        mmap=is_zip)
  except _PickledCode as error:
    raise _code_error(path, str(error)) from None
  except _DAMAGED as error:
    if refused := _REFUSED.search(str(error)):
      raise _code_error(path, refused[1]) from None
    # The rest of what torch says is advice to run what is in the file.
    unknown = _UNKNOWN.search(str(error))
    reason = unknown[1] if unknown else errors.first_line(error)
    raise ValueError(f'{path}: want a whole checkpoint of PyTorch, got one '
                     f'that cannot be read: {reason}') from None
  if not isinstance(tree, dict):
    raise ValueError(f'{path}: want a checkpoint with tensors by name, got '
                     f'{type(tree).__name__}')
  return tree


def _check_start(path: pathlib.Path) -> None:
  """Raises ValueError where a file that is no zip cannot be a pickle either."""
  with path.open('rb') as file:
    start = file.read(len(_ZIP))
  if start[:1] != _PICKLE:
    got = 'one that is cut short' if start == _ZIP else 'another kind of file'
    raise ValueError(f'{path}: want a whole checkpoint of PyTorch, got {got}')


def _code_error(path: pathlib.Path, name: str) -> ValueError:
  return ValueError(f'{path}: want tensors and settings, got pickled code: it '
                    f'calls for {name}, which was not run')


class _PickledCode(Exception):
  """A pickle names something that could be run."""


class _Record:
  """What an object of a pickle was made of; base of a class for each name."""

  def __new__(cls, *args: Any) -> '_Record':
    record = super().__new__(cls)
    record.__dict__['args'] = args
    return record

  def __init__(self, *args: Any) -> None:
    """Takes what `__new__` has kept."""

  def __setstate__(self, state: Any) -> None:
    self.__dict__['state'] = state


def _stub(name: str) -> tuple[Any, str]:
  """What stands for a global, and its name."""
  if name == _DEFAULTS:
    return lambda *_: {}, name  # items may be put into a plain dict alone
  return type(name.rpartition('.')[2], (_Record,), {}), name


def _globals(path: pathlib.Path, is_zip: bool) -> set[str]:
  """All that a file names and torch does not know: to become records.

  Raises:
    _PickledCode: One of them is of Python's own modules.
  """
  names = set()
  with _pickles(path, is_zip) as file:
    for _ in range(1 if is_zip else _LEGACY_PICKLES):
      for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == 'GLOBAL':
          names.add(_current(*str(argument).split(' ', 1)))
  unknown = {name for name in names - _TORCH_MAKES
             if name.partition('.')[0] != _TORCH}
  for name in sorted(unknown - _HARMLESS):
    if name.partition('.')[0] in sys.stdlib_module_names:
      raise _PickledCode(name)
  return unknown


@contextlib.contextmanager
def _pickles(path: pathlib.Path, is_zip: bool) -> Iterator[IO[bytes]]:
  """The pickles of a file; a zip is checked for damage before."""
  if not is_zip:
    with path.open('rb') as file:
      yield file
    return
  with zipfile.ZipFile(path) as archive:
    if (damaged := archive.testzip()) is not None:
      raise ValueError(f'damaged {damaged}')
    inner = [x for x in archive.namelist() if x.endswith('/data.pkl')]
    if len(inner) != 1:
      raise ValueError('a zip file without data.pkl')
    with archive.open(inner[0]) as file:
      yield file


def _current(module: str, name: str) -> str:
  """A global's name in Python 3; torch writes that of Python 2."""
  names = _compat_pickle.NAME_MAPPING
  module, name = names.get((module, name), (
      _compat_pickle.IMPORT_MAPPING.get(module, module), name))
  return f'{module}.{name}'


def _plain(value: Any, done: dict[int, Any]) -> Any:
  """Settings without objects: dicts, lists, numbers and text.

  Args:
    value: Of a pickle, with records for objects.
    done: What became of values already seen, by id: parents of their parents,
      or shared ones.
  """
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  if id(value) in done:
    return done[id(value)]
  done[id(value)] = None
  if isinstance(value, dict):
    result: Any = {str(k): _plain(v, done) for k, v in value.items()}
  elif isinstance(value, (list, tuple)):
    result = [_plain(v, done) for v in value]
  elif isinstance(value, _Record):
    result = _plain(_content(value), done)
  else:
    result = None  # a class, a tensor
  done[id(value)] = result
  return result


def _content(record: _Record) -> Any:
  """The settings in an object."""
  state = record.__dict__.get('state')
  if isinstance(state, dict):
    for wrapped in ('_content', '_val'):  # omegaconf's containers and values
      if wrapped in state:
        return state[wrapped]
    return state
  args = record.__dict__['args']
  return args[0] if len(args) == 1 else args  # of an enum its value
