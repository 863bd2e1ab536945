"""Where features and tags are written: files for recordings, or tables.

Every file of features, and every recording in the table of tags, appears whole
or not at all, so what is there need not be computed again. `features.json` and
`tags.json` name what the folder holds; another model or another window is
refused. Parquet needs pyarrow, safetensors the library of that name
(requirements-export.txt).
"""

import contextlib
import csv
import importlib
import io
import itertools
import json
import operator
import os
import pathlib
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import numpy as np

from sslam_jax import windows

Format = Literal['npy', 'npz', 'parquet', 'safetensors']
FORMATS: tuple[Format, ...] = get_args(Format)
FAILED = 'failed.tsv'

_ABOUT = 'features.json'
_TAGS, _ABOUT_TAGS = 'tags.csv', 'tags.json'
_TAGS_HEADER = 'path', 'label', 'score'
_SCORE = re.compile(r'\d\.\d{4}')  # any other was cut off
_FREE = ('run',)  # a run folder may move; `parameters` tells what it holds
_PART_ROWS, _PART_S = 8192, 300.0  # of a table; what a kill loses at most
_LIBRARIES = {'parquet': 'pyarrow', 'safetensors': 'safetensors'}

Arrays = Mapping[str, Any]  # NumPy, by name


class Files:
  """A file for each recording, in folders as the recordings are."""

  def __init__(self, folder: pathlib.Path, kind: Format) -> None:
    self._folder, self._suffix = folder, f'.{kind}'
    self._write = _WRITERS[kind]

  def __contains__(self, name: object) -> bool:
    return self._path(str(name)).exists()

  def write(self, name: str, arrays: Arrays) -> None:
    """Writes the features of recording `name`, a relative path."""
    path = self._path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as unfinished:
      self._write(unfinished, arrays, {})

  def close(self) -> None:
    """Nothing is left to write."""

  def _path(self, name: str) -> pathlib.Path:
    # The recording's own ending stays: a.wav and a.flac are two.
    return self._folder / f'{name}{self._suffix}'


class Tables:
  """One vector for each recording: part-00000, part-00001 and so on."""

  def __init__(self, folder: pathlib.Path, kind: Format) -> None:
    self._folder, self._kind, self._write = folder, kind, _WRITERS[kind]
    parts = sorted(folder.glob(f'part-*.{kind}'))
    self._done = {name for part in parts for name in _READERS[kind](part)}
    self._part = 1 + int(parts[-1].stem[5:]) if parts else 0
    self._rows: dict[str, np.ndarray] = {}
    self._began = time.monotonic()

  def __contains__(self, name: object) -> bool:
    return _text(str(name)) in self._done

  def write(self, name: str, arrays: Arrays) -> None:
    """Adds a row; some thousand rows or five minutes of them are a part."""
    self._rows[_text(name)] = arrays['clip']
    waited_s = time.monotonic() - self._began
    if len(self._rows) >= _PART_ROWS or waited_s > _PART_S:
      self.close()

  def close(self) -> None:
    """Writes the rows that are left."""
    if self._rows:
      path = self._folder / f'part-{self._part:05}.{self._kind}'
      feature_NxD = np.stack(list(self._rows.values()))
      with replaced(path) as unfinished:
        self._write(unfinished, {'feature': feature_NxD},
                    {'path': list(self._rows)})
      self._part += 1
    self._rows, self._began = {}, time.monotonic()


class Tags:
  """Rows (path, label, score) of recordings, all equally many, in one table."""

  def __init__(self, path: pathlib.Path, labels: int) -> None:
    """Continues the table if it is there, without what was cut off."""
    self._done: set[str] = set()
    with replaced(path) as unfinished, unfinished.open('wb') as file:
      file.write(_csv([_TAGS_HEADER]))
      for name, rows in _whole_tags(path, labels):
        self._done.add(name)
        file.write(_csv(rows))
    self._file = path.open('ab')

  def __contains__(self, path: object) -> bool:
    return path in self._done

  def write(self, path: str, tags: Iterable[tuple[str, float]]) -> None:
    """Adds the rows of a recording, all at once: a kill leaves none or all."""
    self._file.write(_csv((path, label, f'{score:.4f}')
                          for label, score in tags))
    self._file.flush()

  def close(self) -> None:
    """Ends it."""
    self._file.close()


def opened(
    folder: pathlib.Path,
    kind: Format,
    about: Mapping[str, Any],
    *,
    overwrite: bool,
) -> Files | Tables:
  """Where features go.

  Args:
    folder: New, empty, or that of an earlier call, which is continued.
    kind: The format.
    about: What the features are of; but for `run`, the folder's name, it has
      to be as in the earlier call.
    overwrite: Delete what is in the folder of an earlier call.

  Raises:
    ValueError: The folder holds something else, or a library is missing.
  """
  _check_library(kind)
  if folder.exists() and not folder.is_dir():
    raise ValueError(f'{folder}: want a folder, got a file')
  about = {**about, 'format': kind}
  saved = folder / _ABOUT
  if saved.exists():
    if overwrite:
      _clear(folder)
    else:
      _check_same(saved, about)
  elif folder.exists() and any(folder.iterdir()):
    raise ValueError(f'{folder}: want a new folder or one with {_ABOUT} of an '
                     f'earlier call, got one with other files')
  _write_about(saved, about)
  is_table = about['granularity'] == 'clip' and kind != 'npy'
  return Tables(folder, kind) if is_table else Files(folder, kind)


def opened_tags(
    folder: pathlib.Path,
    about: Mapping[str, Any],
    *,
    labels: int,
    overwrite: bool,
) -> Tags:
  """The same for tags, `labels` of each recording; other files may be there."""
  table, saved = folder / _TAGS, folder / _ABOUT_TAGS
  if overwrite:
    table.unlink(missing_ok=True)
  elif saved.exists():
    _check_same(saved, about)
  elif table.exists():
    raise ValueError(f'{table}: want it with {_ABOUT_TAGS} of an earlier call; '
                     f'take another --out, or --overwrite deletes it')
  _write_about(saved, about)
  return Tags(table, labels)


def write_failed(folder: pathlib.Path, failed: Mapping[str, str]) -> None:
  """Lists recordings that could not be read, with the reason; or none."""
  path = folder / FAILED
  path.unlink(missing_ok=True)
  if failed:
    with replaced(path) as unfinished:
      unfinished.write_text(
          ''.join(f'{name}\t{reason}\n' for name, reason in failed.items()),
          encoding='utf-8', errors='surrogateescape',
      )


@contextlib.contextmanager
def replaced(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A file beside `path` that becomes it in the end, unless that fails."""
  # The ending stays: NumPy would add another.
  unfinished = path.with_name(f'.unfinished-{path.name}')
  try:
    yield unfinished
    os.replace(unfinished, path)
  finally:
    unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder that becomes `path`, new or empty, in the end, unless that fails.

  Its name is its own: of two that write to one `path`, one fails.
  """
  unfinished = path.with_name(f'.unfinished-{path.name}-{uuid.uuid4().hex}')
  unfinished.mkdir(parents=True)
  try:
    yield unfinished
    os.replace(unfinished, path)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def _check_library(kind: Format) -> None:
  library = _LIBRARIES.get(kind)
  if library is None:
    return
  try:
    importlib.import_module(library)
  except ImportError:
    raise ValueError(f'--format {kind}: needs {library}: pip install -r '
                     f'requirements-export.txt') from None


def _check_same(saved: pathlib.Path, about: Mapping[str, Any]) -> None:
  try:
    before = json.loads(saved.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{saved}: want JSON, got {error}') from None
  changed = [f'{name} was {before.get(name)!r}, now {value!r}'
             for name, value in about.items()
             if name not in _FREE and before.get(name) != value]
  if changed:
    raise ValueError(f'{saved.parent}: holds other {saved.stem}; take another '
                     f'--out, or --overwrite deletes them. '
                     f'{"; ".join(changed)}')


def _write_about(saved: pathlib.Path, about: Mapping[str, Any]) -> None:
  saved.parent.mkdir(parents=True, exist_ok=True)
  with replaced(saved) as unfinished:
    unfinished.write_text(json.dumps(about, indent=2) + '\n', encoding='utf-8')


def _clear(folder: pathlib.Path) -> None:
  """Deletes what an earlier call wrote, and nothing else."""
  saved = folder / _ABOUT
  kind = json.loads(saved.read_text(encoding='utf-8'))['format']
  for path in (*folder.rglob(f'*.{kind}'), folder / FAILED, saved):
    path.unlink(missing_ok=True)


def _csv(rows: Iterable[Iterable[str]]) -> bytes:
  text = io.StringIO(newline='')
  csv.writer(text, lineterminator='\n').writerows(rows)
  return text.getvalue().encode('utf-8', 'surrogateescape')


def _whole_tags(
    path: pathlib.Path, labels: int
) -> Iterator[tuple[str, list[list[str]]]]:
  """Each recording of a table that has as many rows as it should, with them."""
  if not path.exists():
    return
  with path.open(encoding='utf-8', errors='surrogateescape',
                 newline='') as file:
    rows = (row for row in csv.reader(file)
            if len(row) == 3 and _SCORE.fullmatch(row[2]))
    for name, group in itertools.groupby(rows, operator.itemgetter(0)):
      found = list(group)
      if len(found) == labels:
        yield name, found


def _text(name: str) -> str:
  """A file name as text, also where it is not UTF-8."""
  return name.encode('utf-8', 'backslashreplace').decode('utf-8')


_Lists = Mapping[str, list[str]]  # columns of text


def _write_npy(path: pathlib.Path, arrays: Arrays, text: _Lists) -> None:
  del text
  np.save(path, windows.flat(
      {name: x for name, x in arrays.items() if name != 'time_s'}
  ))


def _write_npz(path: pathlib.Path, arrays: Arrays, text: _Lists) -> None:
  columns: dict[str, Any] = {k: np.array(v) for k, v in text.items()}
  np.savez(path, **arrays, **columns)


def _write_safetensors(
    path: pathlib.Path, arrays: Arrays, text: _Lists
) -> None:
  from safetensors import numpy as safetensors

  tensors = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
  # It has no columns of text; the header takes JSON.
  metadata = {name: json.dumps(lines) for name, lines in text.items()}
  safetensors.save_file(tensors, path, metadata=metadata or None)


def _write_parquet(path: pathlib.Path, arrays: Arrays, text: _Lists) -> None:
  import pyarrow as pa
  from pyarrow import parquet

  columns: dict[str, Any] = {k: pa.array(v) for k, v in text.items()}
  if text:
    columns['feature'] = _vectors(arrays['feature'])
  else:
    columns |= _token_columns(arrays)
  parquet.write_table(pa.table(columns), path)


def _token_columns(arrays: Arrays) -> dict[str, Any]:
  """A row for each token; a class token is of no column and mel."""
  import pyarrow as pa

  name = 'patch' if 'patch' in arrays else 'frame'
  x = arrays[name]
  index = np.indices(x.shape[:-1]).reshape(x.ndim - 1, -1)
  columns: dict[str, list[int | None]] = {
      key: list(map(int, row)) for key, row in zip(('column', 'mel'), index)
  }
  tokens = x.reshape(-1, x.shape[-1])
  if 'clip' in arrays:
    columns = {key: [None, *row] for key, row in columns.items()}
    tokens = np.concatenate([arrays['clip'][None], tokens])
  return {
      **{k: pa.array(v, pa.int32()) for k, v in columns.items()},
      **({'time_s': pa.array(arrays['time_s'])} if name == 'frame' else {}),
      'feature': _vectors(tokens),
  }


def _vectors(x_NxD: np.ndarray) -> Any:
  """A column of lists of floats."""
  import pyarrow as pa

  count, width = x_NxD.shape
  ends = np.arange(0, (count + 1) * width, width, dtype=np.int32)
  return pa.ListArray.from_arrays(ends, pa.array(x_NxD.reshape(-1)))


def _npz_names(path: pathlib.Path) -> list[str]:
  with np.load(path) as arrays:
    return list(map(str, arrays['path']))


def _parquet_names(path: pathlib.Path) -> list[str]:
  from pyarrow import parquet

  return list(parquet.read_table(path, columns=['path'])['path'].to_pylist())


def _safetensors_names(path: pathlib.Path) -> list[str]:
  import safetensors

  with safetensors.safe_open(path, framework='numpy') as file:
    return list(json.loads(file.metadata()['path']))


_WRITERS: dict[str, Callable[[pathlib.Path, Arrays, _Lists], None]] = {
    'npy': _write_npy, 'npz': _write_npz, 'parquet': _write_parquet,
    'safetensors': _write_safetensors,
}
_READERS: dict[str, Callable[[pathlib.Path], list[str]]] = {
    'npz': _npz_names, 'parquet': _parquet_names,
    'safetensors': _safetensors_names,
}
