"""The points of a sweep: their names, settings and checked configurations.

All are built before anything runs, so that no mistake is found after hours.
"""

import dataclasses
import difflib
import fnmatch
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sslam_jax import config as config_lib
from sslam_jax import report
from sslam_jax import run_folder
from sslam_jax import sweeping
from sslam_jax import train

_RECORD = 'sweep.json'
_START = 'init_from'
_LONGEST = 150  # characters; file systems take 255 bytes
# Not a number alone, which is the place of a point in the sweep.
_NAME = re.compile(r'(?!\d+$)\w[\w.,=+-]*', re.ASCII)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
  """One run of a sweep.

  Attributes:
    name: Also its folder's.
    label: Its setting's, which it shares with those of other seeds.
    settings: Dotted field -> value, as its configuration has it.
    config: Of its run.
  """

  name: str
  label: str
  settings: dict[str, Any]
  config: train.Config

  @property
  def seed(self) -> int:
    return self.config.seed

  @property
  def fields(self) -> dict[str, Any]:
    """The settings without the seed: equal in all points of a label.

    A run of another sweep that it starts from may have its seed in the name.
    """
    found = {field: value for field, value in self.settings.items()
             if field != sweeping.SEED}
    if isinstance(start := found.get(_START), str):
      found[_START] = re.sub(rf'(?<=\bseed=){self.seed}\b', '*', start)
    return found


def load(
    spec: str,
    workdir: pathlib.Path,
    assignments: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
) -> list[Point]:
  """What the `sweep()` of a configuration file yields, all of it checked.

  Args:
    spec: `FILE.py[:ARGUMENT]`; both its functions get the argument.
    workdir: The sweep's folder.
    assignments: `field=value` texts for all points.
    seeds: Each point is run with each of them; None: as it says itself.

  Raises:
    ValueError: A field or a value cannot be, of the point that is named; or
      two points are the same or are called the same.
  """
  base = config_lib.override(config_lib.load(spec), assignments)
  if not isinstance(base, train.Config):
    raise ValueError(f'--config={spec}: want a train.Config, '
                     f'got {type(base).__name__}')
  yielded = config_lib.load(spec, 'sweep')
  if not isinstance(yielded, Iterable):
    raise ValueError(f'--config={spec}: want a sweep() that yields dicts, '
                     f'got {yielded!r}')
  given = [_dict(spec, point) for point in yielded]
  if seeds is not None:
    if any(sweeping.SEED in point for point in given):
      raise ValueError('--seeds: want a sweep without the field seed, '
                       'got one that sets it')
    given = list(sweeping.join(given, sweeping.seeds(*seeds)))
  if not given:
    raise ValueError(f'--config={spec}: want a sweep() of some points, '
                     f'got none')
  swept = dict.fromkeys(field for point in given
                        for field in sweeping.settings(point))
  for assignment in assignments:
    if (field := assignment.partition('=')[0]) in swept:
      raise ValueError(f'--config.{field}: want a field that is not swept')
  short = sweeping.short_names(swept)
  points = [_point(base, one, short, workdir) for one in given]
  _check_different(points)
  return points


def fields(points: Iterable[Point]) -> dict[str, str]:
  """All swept fields but the seed -> what they are called in short."""
  return {field: short for field, short in sweeping.short_names(
      field for point in points for field in point.fields
  ).items() if field != sweeping.SEED}


def value(point: Point, field: str) -> Any:
  """Of a field, swept or not; None where the point has no such field."""
  try:
    return config_lib.value_of(point.config, field)
  except ValueError:
    return None


def chosen(
    points: Sequence[Point], patterns: Sequence[str] | None
) -> list[Point]:
  """Those whose names are like some pattern of a shell; None: all.

  Raises:
    ValueError: None is like one of the patterns.
  """
  for pattern in patterns or ():
    if not any(fnmatch.fnmatchcase(point.name, pattern) for point in points):
      raise ValueError(f'--only={pattern}: want a name or a pattern of some, '
                       f'such as {points[0].name}')
  return [point for point in points if patterns is None or any(
      fnmatch.fnmatchcase(point.name, pattern) for pattern in patterns
  )]


def find(points: Sequence[Point], word: str) -> Point:
  """The point of a name, or of its place in the sweep."""
  by_name = {point.name: point for point in points}
  by_name |= {str(number): point for number, point in enumerate(points)}
  if word not in by_name:
    like = difflib.get_close_matches(word, by_name) or [points[0].name]
    raise ValueError(f'--point={word}: want 0 to {len(points) - 1} or a name '
                     f'such as {like[0]}')
  return by_name[word]


def check(workdir: pathlib.Path, points: Sequence[Point]) -> None:
  """Raises ValueError where the folder holds other points of these names."""
  before = recorded(workdir)
  names = {_key(settings): name for name, settings in before.items()}
  for point in points:
    now = _plain(point.settings)
    was = before.get(point.name, now)
    if was != now:
      raise ValueError(f'point {point.name}: {workdir} holds it with the '
                       f'settings {was}, now they are {now}; take another '
                       f'name or --workdir')
    if (name := names.get(_key(now), point.name)) != point.name:
      raise ValueError(f'point {point.name}: {workdir} holds it under the '
                       f'name {name}; keep that, as its key name')
    folder = pathlib.Path(point.config.workdir)
    if not folder.exists():
      continue
    try:
      run_folder.check(folder, train.resolved(point.config))
    except ValueError as error:
      raise ValueError(f'point {point.name}: {error}') from None


def record(workdir: pathlib.Path, spec: str, points: Sequence[Point]) -> None:
  """Keeps names and settings for `check`, beside those of before."""
  all_points = recorded(workdir)
  for point in points:
    all_points[point.name] = _plain(point.settings)
  report.write_text(
      workdir / _RECORD,
      json.dumps({'config': spec, 'points': all_points}, indent=2) + '\n',
  )


def recorded(workdir: pathlib.Path) -> dict[str, Any]:
  """The settings of all points of a folder, by name, as first run."""
  path = workdir / _RECORD
  if not path.exists():
    return {}
  try:
    return dict(json.loads(path.read_text(encoding='utf-8'))['points'])
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f'{path}: want what an earlier sweep wrote, got '
                     f'{type(error).__name__}: {error}') from None


def _dict(spec: str, point: Any) -> sweeping.Point:
  if not isinstance(point, Mapping):
    raise ValueError(f'--config={spec}: want a sweep() that yields dicts, '
                     f'got {point!r}')
  return dict(point)


def _point(
    base: train.Config,
    given: sweeping.Point,
    short: Mapping[str, str],
    workdir: pathlib.Path,
) -> Point:
  name = sweeping.name(given, short)
  if not _NAME.fullmatch(name) or len(name) > _LONGEST:
    raise ValueError(f'point {name}: want a name of at most {_LONGEST} '
                     f'letters, digits and any of ._,=+- (the key '
                     f'{sweeping.NAME!r} gives it one)')
  settings = sweeping.settings(given)
  if 'workdir' in settings:
    raise ValueError(f'point {name}: want no workdir, each has its own')
  try:
    config = config_lib.replaced(base, settings)
    found = {field: config_lib.value_of(config, field) for field in settings}
  except ValueError as error:
    raise ValueError(f'point {name}: {error}') from None
  config.workdir = str(workdir / 'points' / name)
  return Point(name=name, label=sweeping.label(given, short), settings=found,
               config=config)


def _check_different(points: Sequence[Point]) -> None:
  names: dict[str, Point] = {}
  labels: dict[str, Point] = {}
  configs: dict[str, Point] = {}
  for point in points:
    if point.name in names:
      raise ValueError(f'point {point.name}: want one of each name, got '
                       f'{names[point.name].settings} and {point.settings}')
    names[point.name] = point
    like = labels.setdefault(point.label, point)
    if like.fields != point.fields:
      raise ValueError(f'point {point.name}: want the settings of {like.name} '
                       f'but for the seed, {like.fields}, got {point.fields}')
    key = config_lib.to_json(dataclasses.replace(point.config, workdir=''))
    same = configs.setdefault(key, point)
    if same is not point:
      raise ValueError(f'points {same.name} and {point.name}: want different '
                       f'settings, got the same run twice')


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
  return {field: config_lib.plain(value) for field, value in settings.items()}


def _key(settings: Any) -> str:
  return json.dumps(settings, sort_keys=True)
