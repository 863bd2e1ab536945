"""Points of a sweep: what `sweep(arg='')` of a configuration file yields.

A point is a dict of dotted fields and their values. Its key `name` is no field:
it is what the point is called, where its fields would make no readable name.
Points that differ in the field `seed` alone are one setting.

  def sweep(arg=''):
    arms = [{'name': 'both'}, {'name': 'clean', 'objective.mixed': False}]
    yield from join(arms, grid({'optim.peak_lr': [1e-4, 5e-5]}), seeds(1, 2, 3))
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

NAME = 'name'
SEED = 'seed'
BASE = 'base'  # the setting that changes nothing
_UNSAFE = re.compile(r'[^\w.+-]+', re.ASCII)  # in a folder's name

Point = dict[str, Any]


def grid(values: Mapping[str, Iterable[Any]]) -> list[Point]:
  """Each value of each field with all values of the others; the last first."""
  return [dict(zip(values, chosen))
          for chosen in itertools.product(*values.values())]


def together(values: Mapping[str, Iterable[Any]]) -> list[Point]:
  """The first values of all fields, then the second ones, and so on.

  Raises:
    ValueError: They are not equally many.
  """
  columns = {field: list(column) for field, column in values.items()}
  if len(lengths := {len(column) for column in columns.values()}) > 1:
    raise ValueError(f'together: want as many values of each field, got '
                     f'{sorted(lengths)}')
  return [dict(zip(columns, row)) for row in zip(*columns.values())]


def seeds(*numbers: int) -> list[Point]:
  """A point for each."""
  return [{SEED: number} for number in numbers]


def join(*parts: Iterable[Mapping[str, Any]]) -> Iterator[Point]:
  """Each point of each part with all points of the others.

  Names are joined; where some have one, the fields of the others make one.

  Raises:
    ValueError: Two parts set the same field.
  """
  for points in itertools.product(*map(list, parts)):
    joined: Point = {}
    for point in points:
      if twice := joined.keys() & point.keys() - {NAME}:
        raise ValueError(f'join: want each field in one part, got {twice}')
      joined |= point
    if any(NAME in point for point in points):
      joined[NAME] = ','.join(filter(None, map(_own_name, points)))
    yield joined


def settings(point: Mapping[str, Any]) -> Point:
  """The fields of a point, without its name."""
  return {field: value for field, value in point.items() if field != NAME}


def short_names(fields: Iterable[str]) -> dict[str, str]:
  """Each dotted name's last parts: as few as tell it from the others.

  The run's `seed` is one of those.
  """
  paths = {field: field.split('.') for field in (SEED, *fields)}
  short = {}
  for field, path in paths.items():
    for count in range(1, len(path) + 1):
      end = path[-count:]
      if sum(other[-count:] == end for other in paths.values()) == 1:
        break
    short[field] = '.'.join(end)
  return short


def label(point: Mapping[str, Any], short: Mapping[str, str]) -> str:
  """What the setting of a point is called: all of it but its seed."""
  if NAME in point:
    return str(point[NAME])
  parts = [part(short[field], value) for field, value in point.items()
           if field != SEED]
  return ','.join(parts) or BASE


def name(point: Mapping[str, Any], short: Mapping[str, str]) -> str:
  """What a point is called, as a folder may be."""
  setting = label(point, short)
  if SEED not in point:
    return setting
  seed = part(SEED, point[SEED])
  return seed if setting == BASE and NAME not in point else f'{setting},{seed}'


def part(field: str, value: Any) -> str:
  """`field=value`, as it is in names."""
  return f'{field}={_UNSAFE.sub("_", text(value)).strip("_")}'


def text(value: Any) -> str:
  """A value as readers want it: of an object, the name of its class."""
  if isinstance(value, (list, tuple)):
    return '-'.join(map(text, value))
  if isinstance(value, float):
    return repr(float(value))  # NumPy's say more
  is_plain = value is None or isinstance(value, (bool, int, str))
  return str(value) if is_plain else type(value).__name__


def _own_name(point: Mapping[str, Any]) -> str | None:
  fields = settings(point).keys() - {SEED}
  if NAME in point or fields:
    return label(point, short_names(fields))
  return None
