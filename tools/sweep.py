"""Runs the points that a configuration's sweep() yields, and compares them.

  python tools/sweep.py --config=FILE.py[:ARGUMENT] --workdir=DIR
      [--seeds=1,2,3] [--jobs=N] [--config.FIELD=VALUE]

Each point is a run of its own in DIR/points/NAME, in a process of its own, N at
a time. The same command skips what is finished, continues what was interrupted
and tries again what failed. Writes DIR/summary.md, DIR/summary.csv and
DIR/plots. Exit status: 0 all is done, 1 some points failed, 2 nothing can
start, 3 stopped, 4 a point hung: after both the same command goes on.
docs/sweeps.md has all of it.

  --dry-run           says what the points are, and does nothing
  --summary           summarises what there is so far, and runs nothing
  --point=NAME        trains this one, here; exit status as of sslam_jax.main
  --write=slurm       writes job files that do so on a cluster
"""

import argparse
import os
import pathlib
import sys

# For a checkout that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

if __name__ == '__main__':
  from sslam_jax import huge_pages

  huge_pages.restart()  # before the imports, which take seconds

import jax

from sslam_jax import main as main_lib
from sslam_jax import pictures
from sslam_jax import run_folder
from tools.sweeping import board
from tools.sweeping import devices
from tools.sweeping import jobs
from tools.sweeping import plots
from tools.sweeping import points as points_lib
from tools.sweeping import running
from tools.sweeping import standing
from tools.sweeping import summary as summary_lib

_PREFIX = '--config.'

Points = list[points_lib.Point]


def main(argv: list[str] | None = None) -> int:
  args, assignments = _parse(sys.argv[1:] if argv is None else argv)
  status = 0

  def work() -> None:
    nonlocal status
    status = _do(args, assignments)

  with main_lib.listening():
    return main_lib.status_of(work) or status


def _do(args: argparse.Namespace, assignments: list[str]) -> int:
  workdir = pathlib.Path(args.workdir)
  if args.only and (args.summary or args.point is not None):
    raise ValueError('--only: want neither --summary, which tells of all '
                     'points, nor --point, which is one')
  if args.point is None:
    # The points' processes need all of the accelerators' memory.
    jax.config.update('jax_platforms', 'cpu')
  points = points_lib.load(args.config, workdir, assignments, args.seeds)
  if args.point is not None:
    point = points_lib.find(points, args.point)
    points_lib.check(workdir, [point])
    return running.run_point(workdir, point, args.parent)
  points_lib.check(workdir, points)
  chosen = points_lib.chosen(points, args.only)
  if args.dry_run:
    _list(workdir, points, chosen)
    return 0
  if args.summary:
    standings = [standing.look(workdir, point) for point in points]
    _summarise(args, points, standings)
    return 0
  if args.write is not None:
    _write_jobs(args, assignments, points, chosen)
    return 0
  return _run(args, assignments, points, chosen)


def _run(
    args: argparse.Namespace, assignments: list[str], points: Points,
    chosen: Points,
) -> int:
  workdir = pathlib.Path(args.workdir)
  environment = dict(os.environ)
  places = devices.places(args.devices, args.jobs or 1, environment)

  def command(point: points_lib.Point) -> list[str]:
    return [sys.executable, os.path.abspath(__file__),
            *_arguments(args, assignments), f'--point={point.name}',
            f'--parent={os.getpid()}']

  with run_folder.locked(workdir):
    points_lib.check(workdir, points)  # another job may have been here
    points_lib.record(workdir, args.config, points)
    standings, is_told = running.run_all(
        workdir, chosen, command=command, places=places,
        board=board.Board(sys.stdout),
    )
    _summarise(args, points, [
        standings.get(point.name) or standing.look(workdir, point)
        for point in points
    ])
  return running.exit_status(standings, is_told)


def _summarise(
    args: argparse.Namespace,
    points: Points,
    standings: list[standing.Standing],
) -> None:
  workdir = pathlib.Path(args.workdir)
  try:
    summary = summary_lib.summarise(points, standings, args.score)
    summary_lib.write(workdir, args.config, summary, args.sort)
  except ValueError as error:
    if args.summary:
      raise
    # Scores are not known before a run, and it was not for nothing.
    print(f'warning: {error}; told without --score and --sort, --summary '
          f'takes others', file=sys.stderr)
    summary = summary_lib.summarise(points, standings)
    summary_lib.write(workdir, args.config, summary, None)
  print((workdir / summary_lib.MARKDOWN).read_text(encoding='utf-8'), end='')
  drawn = []
  if pictures.available() and not args.no_plots:
    drawn = plots.draw_all(workdir, summary)
  elif not args.no_plots:
    print('no plots: want matplotlib, which is not installed '
          '(pip install -r requirements-plot.txt)', file=sys.stderr)
  made = [summary_lib.MARKDOWN, summary_lib.CSV]
  if drawn:
    made.append(f'plots ({len(drawn)})')
  print(f'{workdir}: {", ".join(made)}')


def _list(workdir: pathlib.Path, points: Points, chosen: Points) -> None:
  for number, point in enumerate(points):
    if point not in chosen:
      continue
    state = standing.look(workdir, point).state
    settings = ' '.join(f'{field}={value!r}'
                        for field, value in point.settings.items())
    print(f'{number} {point.name} ({state}): {settings}')


def _write_jobs(
    args: argparse.Namespace, assignments: list[str], points: Points,
    chosen: Points,
) -> None:
  workdir = pathlib.Path(args.workdir)
  job = jobs.Job(
      workdir=workdir, points=[point.name for point in chosen],
      arguments=_arguments(args, assignments), at_once=args.jobs,
      gpus=args.gpus, time=args.time, partition=args.partition,
      image=args.image,
  )
  path, start = jobs.write(args.write, job)
  (workdir / 'logs').mkdir(exist_ok=True)  # Slurm makes none
  points_lib.record(workdir, args.config, points)
  print(f'wrote {path}: {len(chosen)} points; start it by\n  {start}')


def _arguments(args: argparse.Namespace, assignments: list[str]) -> list[str]:
  """Those that tell what the points are."""
  seeds = [] if args.seeds is None else [
      f'--seeds={",".join(map(str, args.seeds))}'
  ]
  return [f'--config={args.config}', f'--workdir={args.workdir}', *seeds,
          *(f'{_PREFIX}{assignment}' for assignment in assignments)]


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  parser = argparse.ArgumentParser(
      description=__doc__, allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--config', required=True, metavar='FILE.py[:ARGUMENT]')
  parser.add_argument('--workdir', required=True, metavar='DIR')
  parser.add_argument('--seeds', type=_numbers, metavar='1,2,...',
                      help='each point is run with each of them')
  parser.add_argument('--jobs', type=_count, metavar='N',
                      help='points at a time (default: 1)')
  parser.add_argument('--devices', metavar='0,1,...',
                      help='one for each of the N (default: those found)')
  parser.add_argument('--only', action='append', metavar='NAME|PATTERN',
                      help='these points alone; may be repeated')
  does = parser.add_mutually_exclusive_group()
  does.add_argument('--dry-run', action='store_true')
  does.add_argument('--summary', action='store_true')
  does.add_argument('--point', metavar='NAME|NUMBER')
  does.add_argument('--write', choices=jobs.KINDS)
  parser.add_argument('--parent', type=int, help=argparse.SUPPRESS)
  told = parser.add_argument_group('what the summary tells')
  told.add_argument('--score', type=lambda text: text.split(','),
                    metavar='NAME,...', help='default: all of the evaluations, '
                    'or the losses where there are none')
  told.add_argument('--sort', metavar='SCORE', help='the best first')
  told.add_argument('--no-plots', action='store_true', help='tables alone')
  job = parser.add_argument_group('job files')
  job.add_argument('--gpus', type=int, default=1, help='of each task')
  job.add_argument('--time', help="a task's, for Slurm: HH:MM:SS")
  job.add_argument('--partition', help='of Slurm')
  job.add_argument('--image', help='of Kubernetes and XPK')
  args, others = parser.parse_known_args(argv)
  for other in others:
    if not other.startswith(_PREFIX):
      parser.error(f'{other}: want an option of --help or {_PREFIX}FIELD=VALUE')
  return args, [other.removeprefix(_PREFIX) for other in others]


def _numbers(text: str) -> list[int]:
  return [int(part) for part in text.split(',')]


def _count(text: str) -> int:
  if (count := int(text)) < 1:
    raise argparse.ArgumentTypeError(f'want at least 1, got {count}')
  return count


if __name__ == '__main__':
  sys.exit(main())
