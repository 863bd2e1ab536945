"""Reading a folder of golden numbers, and noting what was compared."""

import dataclasses
import json
import math
import pathlib
from typing import Any
import zipfile
import zlib

import numpy as np

from tools.golden import measures

Tensors = dict[str, np.ndarray]


class BadFolderError(Exception):
  """The folder, or a file in it, cannot be used."""


@dataclasses.dataclass(frozen=True)
class Row:
  """One comparison.

  Attributes:
    quantity: File and key.
    part: Name of a tensor, where a quantity consists of many.
    ours: A number of ours, where the error is largest.
    official: The official one.
    error: In the tolerance's unit.
    tolerance: What passes.
  """

  quantity: str
  part: str
  ours: str
  official: str
  error: float
  tolerance: measures.Tolerance

  @property
  def ok(self) -> bool:
    return self.error <= self.tolerance.limit  # False for NaN


@dataclasses.dataclass
class Report:
  """All comparisons, and why others were not made."""

  rows: list[Row] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class File:
  """The official arrays of one file, and which of them were used."""

  path: pathlib.Path
  arrays: Tensors
  used: set[str] = dataclasses.field(default_factory=set)

  @property
  def unused(self) -> list[str]:
    return [key for key in self.arrays if key not in self.used]


@dataclasses.dataclass(frozen=True)
class Section:
  """The part of a file below a prefix, to compare with.

  Attributes:
    file: The official arrays.
    report: Where the comparisons go.
    prefix: Put before every key.
  """

  file: File
  report: Report
  prefix: str = ''

  def under(self, prefix: str) -> 'Section':
    return dataclasses.replace(self, prefix=self.prefix + prefix)

  def find(self, key: str) -> np.ndarray | None:
    """The array, or None."""
    self.file.used.add(self.prefix + key)
    return self.file.arrays.get(self.prefix + key)

  def need(self, key: str) -> np.ndarray:
    """The array; raises BadFolderError without it."""
    array = self.find(key)
    if array is None:
      raise BadFolderError(
          f'{self.file.path}: key {self.prefix}{key} is missing')
    return array

  def names(self, start: str = '') -> list[str]:
    """What follows `start` in the keys that begin with it."""
    start, keys = self.prefix + start, self.file.arrays
    return [key.removeprefix(start) for key in keys if key.startswith(start)]

  def skip(self, key: str, why: str) -> None:
    """Notes that a quantity was not compared."""
    self.report.notes.append(f'{self._quantity(key)}: {why}')

  def expect(self, *keys: str) -> None:
    """Notes it where the file has none of these."""
    if not set(keys) & set(self.names()):
      self.skip(' or '.join(keys), 'not in the file')

  def compare(self, key: str, ours: Any, tolerance: measures.Tolerance) -> None:
    """Adds a row, unless the file lacks the key."""
    official = self.find(key)
    if official is not None:
      self.add(key, ours, official, tolerance)

  def add(
      self, key: str, ours: Any, official: Any, tolerance: measures.Tolerance,
      part: str = '',
  ) -> None:
    """Adds a row; different shapes are an infinite error."""
    ours, official = (np.asarray(x, np.float64) for x in (ours, official))
    a, b, error = str(list(ours.shape)), str(list(official.shape)), math.inf
    if ours.shape == official.shape and ours.size:
      x, y, error = tolerance.measure(ours, official)
      a, b = f'{x:.8g}', f'{y:.8g}'
    self.report.rows.append(
        Row(self._quantity(key), part, a, b, float(error), tolerance))

  def _quantity(self, key: str) -> str:
    return f'{self.file.path.stem} {self.prefix}{key}'


class Golden:
  """A folder of golden numbers, and the report on it."""

  def __init__(self, path: pathlib.Path, runs: tuple[Any, ...] = ()) -> None:
    """`runs` (of `weights.load`) have the weights; none: they are drawn."""
    if not path.is_dir():
      raise BadFolderError(f'{path}: no such folder')
    self.path, self.runs = path, runs
    self.report = Report()
    self._cases = self.json('cases.json')
    self._files: dict[str, File] = {}

  def has(self, name: str) -> bool:
    return (self.path / f'{name}.npz').exists()

  def section(self, name: str) -> Section:
    """All of an npz, which is read once."""
    if name not in self._files:
      self._files[name] = _read_npz(self.path / f'{name}.npz')
    return Section(self._files[name], self.report)

  def case(self, *fields: str) -> Any:
    """An entry of cases.json; raises BadFolderError if it is not there."""
    entry = self._cases
    for field in fields:
      if not isinstance(entry, dict) or field not in entry:
        raise self.bad_case(fields, 'is missing')
      entry = entry[field]
    return entry

  def bad_case(self, fields: tuple[str, ...], what: str) -> BadFolderError:
    """The error to raise for an entry of cases.json."""
    path = self.path / 'cases.json'
    return BadFolderError(f'{path}: {"/".join(fields)} {what}')

  def json(self, name: str) -> Any:
    """Content of a file; raises BadFolderError if it has none."""
    try:
      return json.loads((self.path / name).read_text())
    except FileNotFoundError as error:
      raise BadFolderError(f'{self.path / name}: no such file') from error
    except ValueError as error:
      raise BadFolderError(f'{self.path / name}: {error}') from error


def _read_npz(path: pathlib.Path) -> File:
  arrays, key = {}, ''
  try:
    with np.load(path) as file:
      for key in file.files:
        arrays[key] = file[key]
  except (ValueError, OSError, EOFError, zipfile.BadZipFile,
          zlib.error) as error:
    place = f'{path}: key {key}' if key else str(path)
    raise BadFolderError(f'{place}: not a readable npz ({error})') from error
  return File(path, arrays)
