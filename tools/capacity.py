"""Cost of an epoch against clones, batch, model and devices, with fitted lines.

  python tools/capacity.py REPORT.json... --out=docs/capacity

Reports are what `tools/benchmark.py --json` writes, on one machine, of
configurations that differ. For each of the four, the line goes through the
largest set of measurements that agree in all else. Prints points, lines and
residuals; --out also writes OUT.json and the picture OUT.png, where matplotlib
is installed.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import json
import pathlib
import sys
from typing import Any

import numpy as np

# For a checkout that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from sslam_jax import pictures
from tools.benchmarks import fitting

_EPOCH = 40_262 * 48  # AudioSet-2M, as published: updates x clips
_SECONDS_PER_HOUR = 3600
_CURVE_POINTS = 100


@dataclasses.dataclass(kw_only=True)
class Point:
  """A measured step.

  Attributes:
    file: Of the report.
    clones: Masks per clip.
    batch: Clips per device.
    devices: How many.
    gflop: Of a clip.
    clip_s: Seconds of a device per clip.
    rest: All else that its time depends on.
    shape: The part of `rest` that changes the work of a clip.
    matmul_share: Of the matrix rate, if known.
    waiting_share: Of the time of a run, in waiting for data, if measured.
    program_bytes: That the step plans, if known.
  """

  file: str
  clones: int
  batch: float
  devices: int
  gflop: float
  clip_s: float
  rest: str
  shape: str
  matmul_share: float | None
  waiting_share: float | None
  program_bytes: int | None


@dataclasses.dataclass(kw_only=True)
class Axis:
  """What cost is drawn against.

  Attributes:
    name: In words.
    formula: Of the cost, with the letters of the line.
    place: Of a point on it.
    term: What the line is linear in, of that.
    same: What the points of a line agree in.
  """

  name: str
  formula: str
  place: Callable[[Point], float]
  term: Callable[[float], float] = float
  same: Callable[[Point], Any]


AXES = (
    Axis(name='clones', formula='a + b * clones', place=lambda p: p.clones,
         same=lambda p: (p.rest, p.shape, p.batch, p.devices)),
    # A step has a fixed cost, which its clips share.
    Axis(name='clips per device', formula='a + b / clips',
         place=lambda p: p.batch, term=lambda x: 1 / x,
         same=lambda p: (p.rest, p.shape, p.clones, p.devices)),
    Axis(name='GFLOP per clip', formula='a + b * GFLOP',
         place=lambda p: p.gflop,
         same=lambda p: (p.rest, p.batch, p.devices)),
    Axis(name='devices', formula='a + b * devices', place=lambda p: p.devices,
         same=lambda p: (p.rest, p.shape, p.clones, p.batch)),
)


@dataclasses.dataclass(kw_only=True)
class Fit:
  """The line along an axis: device-hours per epoch."""

  axis: Axis
  points: list[Point]
  hours: list[float]
  line: fitting.Line

  def at(self, x: float) -> float:
    return self.line(self.axis.term(x))

  @property
  def places(self) -> list[float]:
    return [self.axis.place(point) for point in self.points]

  @property
  def residuals(self) -> list[float]:
    """Measured less line, of each point, as a share of what was measured."""
    return [1 - self.at(x) / y for x, y in zip(self.places, self.hours)]


def main(args: list[str]) -> int:
  """Exit status 2 for a report that cannot be used."""
  options = _parse(args)
  try:
    points = load(options.reports)
    fits = fit(points, options.clips)
    print('\n'.join(lines(points, fits, options.clips)))
    if options.out is not None:
      _write(options.out, fits, options.clips)
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


def load(files: Sequence[pathlib.Path]) -> list[Point]:
  """The timed steps of all reports.

  Raises:
    ValueError: A file is no such report, holds no step, or is of another
      machine than the first.
  """
  points: list[Point] = []
  machines: dict[Any, pathlib.Path] = {}
  for file in files:
    try:
      report = json.loads(file.read_text(encoding='utf-8'))
      machine = report['machine']
      found = list(_points(str(file), report))
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(f'{file}: want a report of tools/benchmark.py, got '
                       f'{type(error).__name__}: {error}') from None
    if not found:
      raise ValueError(f'{file}: want a report of pre-training with the part '
                       f'step, and FLOPs that are known; got none')
    if not machine['is_quiet']:
      print(f'note: {file}: the machine was not quiet', file=sys.stderr)
    kind = machine['devices'].partition(' x ')[2]
    machines.setdefault((kind, machine['cpu']), file)
    points += found
  if len(machines) > 1:
    (one, first), (two, second) = list(machines.items())[:2]
    raise ValueError(f'reports: want one kind of machine, got {one} in '
                     f'{first} and {two} in {second}')
  return points


def fit(points: Sequence[Point], clips: int) -> list[Fit]:
  """A line for each axis along which there are points, for `clips` an epoch."""
  fits = []
  for axis in AXES:
    groups: dict[Any, list[Point]] = {}
    for point in points:
      groups.setdefault(axis.same(point), []).append(point)
    most = max(groups.values(), key=lambda g: len(set(map(axis.place, g))))
    most = sorted(most, key=axis.place)
    hours = [p.clip_s * clips / _SECONDS_PER_HOUR for p in most]
    line = fitting.line([axis.term(axis.place(p)) for p in most], hours)
    if line is not None:
      fits.append(Fit(axis=axis, points=most, hours=hours, line=line))
  return fits


def lines(
    points: Sequence[Point], fits: Sequence[Fit], clips: int
) -> Iterator[str]:
  """Tables in Markdown: all points, then the line of each axis."""
  yield f'Device-hours for an epoch of {clips} clips.'
  yield from _table(
      ('report', 'clones', 'clips per device', 'devices', 'GFLOP per clip',
       's per clip', 'hours', 'of matrix rate', 'waiting', 'MiB'),
      [(p.file, p.clones, f'{p.batch:g}', p.devices, f'{p.gflop:.4g}',
        f'{p.clip_s:.4g}', f'{p.clip_s * clips / _SECONDS_PER_HOUR:.4g}',
        _share(p.matmul_share), _share(p.waiting_share),
        '' if p.program_bytes is None else f'{p.program_bytes / 2**20:.0f}')
       for p in points],
  )
  for found in fits:
    axis, line = found.axis, found.line
    yield ''
    yield (f'{axis.name}: hours = {axis.formula}, a = {line.intercept:.4g}, '
           f'b = {line.slope:.4g}')
    yield from _table(
        (axis.name, 'hours', 'line', 'residual'),
        [(f'{x:.4g}', f'{hours:.4g}', f'{found.at(x):.4g}',
          f'{round(100 * share, 1) + 0.0:+.1f} %')  # and no -0.0
         for x, hours, share in zip(found.places, found.hours,
                                    found.residuals)],
    )
  for axis in AXES:
    if axis not in [found.axis for found in fits]:
      yield ''
      yield f'{axis.name}: no line, as no two reports differ in it alone'


def _points(file: str, report: dict[str, Any]) -> Iterator[Point]:
  config = report['config']
  views, objective = dict(config['data']['views']), dict(config['objective'])
  clones = views.pop('clones', None)
  if clones is None:
    return
  views['mix'] = (views['mix'] or {}) | {'group': None}  # changes no work
  rest = json.dumps([objective['vit']['dtype'], config['accumulate'],
                     config.get('shard_optimizer', False)])
  shape = json.dumps([objective, views, config['data']['mel']])
  loop, step = report.get('loop', {}), report.get('step')
  timed = [row for row in report.get('scaling', ()) if row['step_s'] and (
      step is None or row['devices'] != step['devices']
  )]
  for row in [*([step] if step else []), *timed]:
    batch = row['batch'] / row['devices']
    gflop = row.get('gflop_per_clip') or (row.get('device_gflop') or 0) / batch
    if not gflop:
      continue
    yield Point(
        file=file, clones=clones, batch=batch, devices=row['devices'],
        gflop=gflop, clip_s=row['step_s'] / batch, rest=rest, shape=shape,
        matmul_share=row.get('matmul_share'),
        waiting_share=loop.get('waiting_share') if row is step else None,
        program_bytes=row['program_bytes'],
    )


def _share(value: float | None) -> str:
  return '' if value is None else f'{100 * value:.1f} %'


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
  return ['| ' + ' | '.join(map(str, row)) + ' |'
          for row in (titles, ['---'] * len(titles), *rows)]


def _write(out: str, fits: Sequence[Fit], clips: int) -> None:
  if not fits:
    raise ValueError('--out: want two reports that differ in one of the above, '
                     'got none')
  measured = {
      'clips': clips,
      'lines': [{
          'axis': found.axis.name,
          'formula': found.axis.formula,
          'a': found.line.intercept,
          'b': found.line.slope,
          'x': found.places,
          'device_hours': found.hours,
          'residuals': found.residuals,
          'reports': [p.file for p in found.points],
      } for found in fits],
  }
  text = json.dumps(measured, indent=2) + '\n'
  pathlib.Path(f'{out}.json').write_text(text, encoding='utf-8')
  if pictures.available():
    _draw(pathlib.Path(f'{out}.png'), fits, clips)
  else:
    print('note: no picture, which needs matplotlib: '
          'pip install -r requirements-plot.txt', file=sys.stderr)


def _draw(path: pathlib.Path, fits: Sequence[Fit], clips: int) -> None:
  # Figures without pyplot: no display, no global state.
  from matplotlib import figure as figure_lib

  figure = figure_lib.Figure(figsize=(3.6 * len(fits), 3.4),
                             layout='constrained')
  for axis, found in zip(figure.subplots(1, len(fits), squeeze=False)[0], fits):
    x = found.places
    curve = np.linspace(min(x), max(x), _CURVE_POINTS)
    axis.plot(curve, [found.at(place) for place in curve], color='tab:blue',
              alpha=0.6, label=found.axis.formula)
    axis.plot(x, found.hours, 'o', color='tab:red', label='measured')
    axis.set(xlabel=found.axis.name, ylim=(0, 1.1 * max(found.hours)))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
  figure.supylabel(f'device-hours per {clips} clips', fontsize=9)
  figure.savefig(path, dpi=100)


def _parse(args: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
      description=__doc__.splitlines()[0], allow_abbrev=False
  )
  add = parser.add_argument
  add('reports', nargs='+', type=pathlib.Path, metavar='REPORT.json')
  add('--clips', type=_count, default=_EPOCH, metavar='N',
      help='clips of an epoch (default: AudioSet-2M as published, '
      f'{_EPOCH})')
  add('--out', metavar='OUT', help='write OUT.json and OUT.png')
  return parser.parse_args(args)


def _count(text: str) -> int:
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f'want at least 1, got {text!r}')
  return int(text)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
