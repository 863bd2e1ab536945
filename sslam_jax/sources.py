"""Clips from audio files: folders, fairseq manifests and CSV tables.

A source lists its files once, on first use. A pickled copy brings that list
along, so worker processes do not scan the disk again. The header of a file is
read when its clip is asked for, the samples when the clip is read.
"""

import abc
from collections.abc import Iterable, Iterator
import csv
import dataclasses
import functools
import itertools
import operator
import os
import sys

from sslam_jax import clips as clips_lib
from sslam_jax import decoding

_DESCRIPTORS = 'label_descriptors.csv'

_Labels = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Index:
  """What a source holds: file `prefix + names[i]` is labelled `labels[i]`.

  That path starts at `root`, unless it is absolute.
  """

  root: str
  prefix: str
  names: list[str]
  labels: list[_Labels]
  classes: tuple[str, ...]


class _Files(abc.ABC):
  """A source whose files `_list` finds."""

  @abc.abstractmethod
  def _list(self) -> _Index: ...

  @functools.cached_property
  def _index(self) -> _Index:
    return self._list()

  @property
  def classes(self) -> tuple[str, ...]:
    """All labels, sorted or in the order that the data set defines."""
    return self._index.classes

  def __len__(self) -> int:
    return len(self._index.names)

  def __getitem__(self, index: int) -> clips_lib.Clip:
    labels = self.labels(index)
    name = self._index.prefix + self._index.names[index]
    path = os.path.join(self._index.root, name)
    return decoding.open_file(path, path, labels)

  def labels(self, index: int) -> tuple[str, ...]:
    """See `clips.Source`."""
    if not 0 <= operator.index(index) < len(self):
      raise IndexError(f'index: want 0 to {len(self) - 1}, got {index}')
    return self._index.labels[index]


@dataclasses.dataclass(kw_only=True)
class Folder(_Files):
  """All audio files below some folders, in the order of their paths.

  Links are followed, but no folder is read twice; names that start with a dot
  are skipped. Raises ValueError on first use if a folder holds no audio.

  Attributes:
    paths: Folders. A file directly in one has no label, any other is labelled
      with the name of the folder it is in.
    extensions: Endings of audio files, in upper or lower case.
  """

  paths: tuple[str, ...]
  extensions: tuple[str, ...] = ('.wav', '.flac', '.ogg', '.mp3')

  def __post_init__(self) -> None:
    _check(all(self.paths or ['']), 'paths', 'folders', self.paths)
    dots = [extension[:1] == '.' for extension in self.extensions or ['']]
    _check(all(dots), 'extensions', "'.wav' or others", self.extensions)

  def files(self) -> list[str]:
    """Paths of all files, none of which is opened."""
    return [self._index.prefix + name for name in self._index.names]

  def _list(self) -> _Index:
    tops = {os.path.realpath(path): path for path in self.paths}
    seen = set(tops)
    rows = [row for top in tops.values() for row in self._below(top, seen)]
    paths, labels = [path for path, _ in rows], [labels for _, labels in rows]
    return _indexed('', paths, labels)

  def _below(self, top: str, seen: set[str]) -> list[tuple[str, _Labels]]:
    _check_folder(top)
    endings = tuple(extension.lower() for extension in self.extensions)
    rows, files = [], 0
    shared: dict[_Labels, _Labels] = {}
    for folder, names in _walk(top, seen):
      files += len(names)
      label = [] if folder == top else [os.path.basename(folder)]
      labels = _labels(label, shared)
      for name in names:
        if name.lower().endswith(endings):
          rows.append((os.path.join(folder, name), labels))
    wanted = f'{", ".join(self.extensions)} files'
    got = f'only {files} other files' if files else 'an empty folder'
    _check(rows != [], top, wanted, got)
    return sorted(rows)


@dataclasses.dataclass(kw_only=True)
class Manifest(_Files):
  """The rows of a fairseq manifest. Raises ValueError on first use.

  `train.tsv` holds the root folder, then rows `path<TAB>samples`. `train.lbl`,
  if there, holds the labels of row i in line i: `id label[,label...]`.
  `label_descriptors.csv`, if there, holds rows `index,label[,...]` with all
  classes, whose order is that of the indices. Blank lines are skipped.
  Source: EAT, data/raw_audio_dataset.py and tasks/finetuning.py; only ours
  allows blanks in a path, and a root that is relative to the manifest.

  Attributes:
    path: The .tsv file, or the folder it is in.
    split: Name of the .tsv file, where `path` is a folder.
    min_samples: Rows listed with fewer samples are left out.
  """

  path: str
  split: str = 'train'
  min_samples: int = 0

  def __post_init__(self) -> None:
    _check(self.path != '', 'path', 'a manifest', self.path)
    _check(self.split != '', 'split', 'a name', self.split)
    _check(self.min_samples >= 0, 'min_samples', '>= 0', self.min_samples)

  def _list(self) -> _Index:
    tsv = self.path
    if os.path.isdir(tsv):
      tsv = os.path.join(tsv, f'{self.split}.tsv')
    if not os.path.exists(tsv):
      raise ValueError(
          f'{tsv}: want a manifest, got nothing: it does not exist; those of '
          f'published data sets are made by tools/prepare.py, see '
          f'docs/downstream_data.md'
      )
    root, names, kept = _manifest_rows(tsv, self.min_samples)
    classes = _descriptors(os.path.join(os.path.dirname(tsv), _DESCRIPTORS))
    lbl = f'{os.path.splitext(tsv)[0]}.lbl'
    labels = itertools.compress(_lbl_rows(lbl, len(kept), classes), kept)
    return _indexed(root, names, list(labels), classes)


@dataclasses.dataclass(kw_only=True)
class Csv(_Files):
  """The rows of a CSV file with a header. Raises ValueError on first use.

  Attributes:
    path: The CSV file.
    path_column: Column with the path of the audio file.
    label_column: Column with the labels; None: there are none.
    label_separator: What separates the labels of one file.
    root: Where relative paths start; None: at the folder of the CSV file.
    split: Only rows with this value in `split_column`; None: all.
    split_column: Column with the split of each row, such as train or test.
  """

  path: str
  path_column: str = 'path'
  label_column: str | None = 'label'
  label_separator: str = ';'
  root: str | None = None
  split: str | None = None
  split_column: str = 'split'

  def __post_init__(self) -> None:
    _check(self.path != '', 'path', 'a CSV file', self.path)
    separator = self.label_separator
    _check(separator != '', 'label_separator', 'a character', separator)

  def _list(self) -> _Index:
    root = os.path.dirname(self.path)
    if self.root is not None:
      root = self.root
      _check_folder(root, 'root: ')
    rows = _rows(self.path, csv.excel)
    where, header = next(rows, (self.path, []))
    columns = [self.path_column]
    columns += [] if self.label_column is None else [self.label_column]
    columns += [] if self.split is None else [self.split_column]
    for column in columns:
      _check(column in header, where, f'a column {column!r}', header)
    names, labels = [], []
    shared: dict[_Labels, _Labels] = {}
    splits: dict[str, None] = {}
    for where, row in rows:
      _check(len(row) == len(header), where, f'{len(header)} cells', row)
      name, *text = (row[header.index(column)].strip() for column in columns)
      if self.split is not None:
        splits[split := text.pop()] = None
        if split != self.split:
          continue
      _check(name != '', where, f'a path as {self.path_column!r}', name)
      names.append(name)
      parts = ''.join(text).split(self.label_separator)
      labels.append(_labels(filter(None, map(str.strip, parts)), shared))
    if splits:
      wanted = f'rows with {self.split!r} as {self.split_column!r}'
      _check(names != [], self.path, wanted, list(splits))
    _check(names != [], self.path, 'rows below the header', 'none')
    return _indexed(root, names, labels)


def _check(valid: bool, what: str, wanted: str, got: object) -> None:
  if not valid:
    raise ValueError(f'{what}: want {wanted}, got {got!r}')


def _check_folder(path: str, where: str = '') -> None:
  if not os.path.isdir(path):
    got = 'a file' if os.path.exists(path) else 'nothing: it does not exist'
    raise ValueError(f'{where}{path}: want a folder, got {got}')


def _indexed(
  root: str,
  names: list[str],
  labels: list[_Labels],
  classes: _Labels | None = None,
) -> _Index:
  """Takes over lists that may be of millions: shortens `names` in place."""
  prefix = os.path.commonprefix(names)
  for index, name in enumerate(names):
    names[index] = name[len(prefix) :]
  if classes is None:
    classes = tuple(sorted(set(itertools.chain.from_iterable(set(labels)))))
  return _Index(root, prefix, names, labels, classes)


def _labels(names: Iterable[str], shared: dict[_Labels, _Labels]) -> _Labels:
  """The labels of a row; equal ones, kept in `shared`, are one object."""
  labels = tuple(dict.fromkeys(map(sys.intern, names)))
  return shared.setdefault(labels, labels)


def _walk(top: str, seen: set[str]) -> Iterator[tuple[str, list[str]]]:
  """Yields `top` and each folder below that is not in `seen`, with its files.

  Adds these folders to `seen`.
  """
  for folder, below, names in os.walk(top, onerror=_fail, followlinks=True):
    real = os.path.realpath(folder)
    if folder != top and real in seen:
      below.clear()
      continue
    seen.add(real)
    below[:] = sorted(name for name in below if name[0] != '.')
    yield folder, [name for name in names if name[0] != '.']


def _fail(error: OSError) -> None:
  raise error  # os.walk would leave out a folder that it may not read.


def _manifest_rows(
  tsv: str, min_samples: int
) -> tuple[str, list[str], list[bool]]:
  """The root, the paths of the rows kept, and of each row whether it is."""
  rows = _rows(tsv, _Tabs)
  where, first = next(rows, (f'{tsv} line 1', []))
  _check(len(first) == 1, where, 'a root folder', first)
  root = os.path.join(os.path.dirname(tsv), first[0].strip())
  _check_folder(root, f'{where}: ')
  names, kept, most = [], [], 0
  for where, row in rows:
    valid = len(row) == 2 and row[0] != '' and row[1].isdecimal()
    _check(valid, where, 'path<TAB>samples', row)
    samples = int(row[1])
    kept.append(samples >= min_samples)
    names += [row[0]] * kept[-1]
    most = max(most, samples)
  _check(kept != [], f'{tsv} line 2', 'path<TAB>samples', 'no rows')
  wanted = f'rows of at least {min_samples} samples'
  _check(any(kept), tsv, wanted, f'at most {most}')
  return root, names, kept


def _lbl_rows(lbl: str, count: int, classes: _Labels | None) -> list[_Labels]:
  """The labels of all `count` rows of a manifest; none if there is no file."""
  if not os.path.exists(lbl):
    return [()] * count
  labels, known = [], frozenset(classes or ())
  shared: dict[_Labels, _Labels] = {}
  for where, row in _rows(lbl, _Tabs):
    cells = '\t'.join(row).split()
    names = cells[1].split(',') if len(cells) == 2 else ['']
    _check(all(names), where, 'id label[,label...]', row)
    for name in names if classes is not None else ():
      _check(name in known, where, f'a label of {_DESCRIPTORS}', name)
    labels.append(_labels(names, shared))
  _check(len(labels) == count, lbl, f'{count} lines, one per row', len(labels))
  return labels


def _descriptors(path: str) -> _Labels | None:
  """Classes in the order of their indices; None if there is no file."""
  if not os.path.exists(path):
    return None
  indices: dict[str, int] = {}
  for where, row in _rows(path, csv.excel):
    index, label = (cell.strip() for cell in (*row, '')[:2])
    valid = index.isdecimal() and label not in ('', *indices)
    _check(valid, where, 'index,label[,...] with a new label', row)
    indices[label] = int(index)
  order = sorted(indices, key=indices.__getitem__)
  got = [indices[label] for label in order]
  _check(got == list(range(len(got))), path, 'indices 0, 1, 2, ...', got)
  return tuple(order)


class _Tabs(csv.excel_tab):
  quoting = csv.QUOTE_NONE


def _rows(
  path: str, dialect: type[csv.Dialect]
) -> Iterator[tuple[str, list[str]]]:
  """Yields (file and line, cells) of all rows of a table but blank ones."""
  where = path
  try:
    # Text that is not UTF-8 is read as file names are, to fit any of them.
    with open(
      path, encoding='utf-8-sig', errors='surrogateescape', newline=''
    ) as file:
      reader = csv.reader(file, dialect)
      for row in reader:
        where = f'{path} line {reader.line_num}'
        if row:
          yield where, row
  except (OSError, csv.Error) as error:
    raise ValueError(f'{where}: want a table, got {error}') from None
