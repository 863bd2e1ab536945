"""What probes learn of which labelled clips, and how their scores are counted.

`probes` has the heads; here features of clips become what they take.
"""

import csv
import dataclasses
import os

import numpy as np

from sslam_jax import clips
from sslam_jax import features
from sslam_jax import metrics
from sslam_jax import probes


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


def task(
    sources: list[clips.Source],
    splits: list[tuple[list[int], int]],
    *,
    multi_label: bool = False,
    groups: str | None = None,
) -> Task:
  """The task that the labels of the clips make.

  Args:
    sources: See `Task`.
    splits: The same.
    multi_label: Clips have any number of labels, though all have one.
    groups: FILE.csv:COLUMN, see `read_groups`; None: none.

  Raises:
    ValueError: There are no labels to learn, or none of them to test, or the
      table of groups cannot be read.
  """
  trained = sorted({number for part, _ in splits for number in part})
  names = [name for number in trained for name in sources[number].classes]
  if not names:
    raise ValueError('data: want labelled training clips, got no label')
  tested = {name for _, number in splits for name in sources[number].classes}
  if not tested & set(names):
    raise ValueError(f'data: want test clips with labels of training '
                     f'({", ".join(sorted(set(names))[:5])}, ...), got '
                     f'{", ".join(sorted(tested)[:5]) or "none"}')
  is_single = not multi_label and all(
      len(source.labels(index)) == 1
      for source in sources for index in range(len(source))
  )
  return Task(sources=sources, splits=splits, is_single=is_single,
              classes=tuple(dict.fromkeys(names)),
              group=None if groups is None else read_groups(groups))


def read_groups(text: str) -> dict[str, str]:
  """The column of a CSV file by the real paths that its column `path` holds."""
  name, _, column = text.rpartition(':')
  if not name:
    raise ValueError(f'groups: want FILE.csv:COLUMN, got {text!r}')
  try:
    with open(name, newline='', encoding='utf-8') as file:
      table = csv.DictReader(file)
      for wanted in ('path', column):
        if wanted not in (table.fieldnames or ()):
          raise ValueError(f'{name}: want a column {wanted!r}, '
                           f'got {table.fieldnames}')
      folder = os.path.dirname(name)
      return {os.path.realpath(os.path.join(folder, row['path'])): row[column]
              for row in table}
  except OSError as error:
    raise ValueError(f'groups: want a table, got {error}') from None


def groups(ids: list[str], group: dict[str, str] | None) -> np.ndarray | None:
  """The group of each training clip; None: every clip is one."""
  if group is None:
    return None
  paths = list(map(os.path.realpath, ids))
  missing = [path for path in paths if path not in group]
  if missing:
    raise ValueError(f'groups: want every training clip, got no row for '
                     f'{len(missing)} of {len(ids)}, the first {missing[0]}')
  return np.array([group[path] for path in paths])


def kinds(spec: str) -> tuple[str, ...]:
  """The kinds of `features.KINDS` that a text such as 'mean+std' joins."""
  known = [kind for kind in features.KINDS if kind != 'patch']
  found = tuple(spec.split('+'))
  for kind in found:
    if kind not in known:
      raise ValueError(f'features: want {", ".join(known)}, or several '
                       f'joined by +; got {kind!r}')
  return found


def labelled(
    train: list[features.Features], spec: str, task: Task
) -> probes.Labelled:
  """The clips that `probes.linear` and `probes.knn` learn from."""
  return probes.Labelled(
      np.concatenate([vectors(part, spec) for part in train]),
      np.concatenate([labels(part, task.classes) for part in train]),
      groups([clip for part in train for clip in part.ids], task.group),
  )


def vectors(part: features.Features, spec: str) -> np.ndarray:
  """The kinds of `spec` side by side: [clips, numbers]."""
  return np.concatenate([part.arrays[kind] for kind in kinds(spec)], axis=1)


def labels(part: features.Features, classes: tuple[str, ...]) -> np.ndarray:
  """Which of the classes each clip has: bool [clips, classes]."""
  column = {name: place for place, name in enumerate(classes)}
  label_NxC = np.zeros((len(part.ids), len(classes)), bool)
  for row, names in enumerate(part.labels):
    label_NxC[row, [column[name] for name in names if name in column]] = True
  return label_NxC


def scored(
    score_MxC: np.ndarray, test: features.Features, task: Task
) -> metrics.Scored:
  """Scores of test clips beside what is true."""
  return metrics.Scored(test.ids, task.classes, score_MxC,
                        labels(test, task.classes))


def value(figures: metrics.Figures, task: Task) -> float:
  """Accuracy, or mAP of clips with any number of labels."""
  return (figures.top1 if task.is_single else figures.map).value or 0.0
