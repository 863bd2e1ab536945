"""What probes are to learn, by the words of a command line."""

import argparse
import csv
import dataclasses
import os

import numpy as np

from sslam_jax import catalogue
from sslam_jax import clips


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """What is learned.

  Attributes:
    sources: Labelled clips.
    splits: (training sources, test source) of each fold, as numbers.
    classes: Those that are learned.
    is_single: Whether every clip has exactly one of them.
    group: Of each clip, by its real path; None: every clip is one.
  """

  sources: list[clips.Source]
  splits: list[tuple[list[int], int]]
  classes: tuple[str, ...]
  is_single: bool
  group: dict[str, str] | None


def read(options: argparse.Namespace) -> Task:
  """The task that --train and --test, or --folds, name.

  Raises:
    ValueError: They contradict, or their labels do.
  """
  given = [x is not None for x in (options.train, options.test, options.folds)]
  is_split = given == [True, True, False]
  if not is_split and given != [False, False, True]:
    raise ValueError('data: want --train and --test, or --folds')
  if is_split:
    words, splits = [options.train, options.test], [([0], 1)]
  else:
    words = options.folds
    count = len(words)
    splits = [([i for i in range(count) if i != k], k) for k in range(count)]
  if len(words) < 2:
    raise ValueError(f'--folds: want at least 2, got {len(words)}')
  sources = [catalogue.source(word) for word in words]
  trained = sorted({number for part, _ in splits for number in part})
  names = [name for number in trained for name in sources[number].classes]
  if not names:
    raise ValueError('data: want labelled training clips, got no label')
  tested = {name for _, number in splits for name in sources[number].classes}
  if not tested & set(names):
    raise ValueError(f'data: want test clips with labels of training '
                     f'({", ".join(sorted(set(names))[:5])}, ...), got '
                     f'{", ".join(sorted(tested)[:5]) or "none"}')
  is_single = not options.multi_label and all(
      len(source.labels(index)) == 1
      for source in sources for index in range(len(source))
  )
  return Task(sources=sources, splits=splits, is_single=is_single,
              classes=tuple(dict.fromkeys(names)),
              group=None if options.groups is None else _group(options.groups))


def groups(
    ids: list[str], group: dict[str, str] | None
) -> np.ndarray | None:
  """The group of each clip; None: every clip is one."""
  if group is None:
    return None
  paths = list(map(os.path.realpath, ids))
  missing = [path for path in paths if path not in group]
  if missing:
    raise ValueError(f'--groups: want every training clip, got no row for '
                     f'{len(missing)} of {len(ids)}, the first {missing[0]}')
  return np.array([group[path] for path in paths])


def _group(text: str) -> dict[str, str]:
  """The column of a CSV file by the real paths that its column `path` holds."""
  name, _, column = text.rpartition(':')
  if not name:
    raise ValueError(f'--groups: want FILE.csv:COLUMN, got {text!r}')
  with open(name, newline='', encoding='utf-8') as file:
    table = csv.DictReader(file)
    for wanted in ('path', column):
      if wanted not in (table.fieldnames or ()):
        raise ValueError(f'{name}: want a column {wanted!r}, '
                         f'got {table.fieldnames}')
    folder = os.path.dirname(name)
    return {os.path.realpath(os.path.join(folder, row['path'])): row[column]
            for row in table}
