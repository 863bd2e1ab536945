"""Command line: `python -m sslam_jax.main --config=FILE.py[:ARGUMENT]`.

Fields are set by `--config.FIELD=VALUE`, such as --config.optim.peak_lr=1e-4.
A job of several processes starts this command once in each:
docs/scaling.md.
"""

if __name__ == '__main__':
  from sslam_jax import huge_pages

  huge_pages.restart()  # before the imports, which take seconds

import argparse
import contextlib
import logging
import re
import sys
from collections.abc import Callable, Iterator

from sslam_jax import config as config_lib
from sslam_jax import processes
from sslam_jax import train
from sslam_jax import watch

_PREFIX = '--config.'


def parse(args: list[str]) -> train.Config:
  """The checked configuration that a command line asks for."""
  return _config(*_arguments(args))


def main(args: list[str]) -> int:
  """Returns the exit status, see `status_of`."""
  with listening():
    return _main(args)


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """Lets the run's log be seen on the terminal."""
  # A handler of our own: libraries put theirs on the root logger.
  handler = logging.StreamHandler()
  train.logger.addHandler(handler)
  train.logger.propagate = False
  # Errors of Orbax's threads come again, as one line.
  logging.getLogger('absl').addFilter(_without_traceback)
  try:
    yield
  finally:
    train.logger.removeHandler(handler)


def status_of(work: Callable[[], object]) -> int:
  """Does it; the exit status: 0 done, 1 stopped, 2 cannot start.

  By Ctrl-C or SIGTERM it is 3: the state is saved, the same command goes on.
  So it does after 4: data, a save or another process of the job hung or was
  lost; then threads may hang, and `processes.leave` has to end this process.
  """
  try:
    work()
  except train.Hung:
    return watch.LOST
  except train.TrainingStopped:
    return 1
  except train.Interrupted:
    return 3
  except KeyboardInterrupt:
    train.logger.error('stopped at once; what was saved stays')
    return 130
  except (ValueError, OSError) as error:
    train.logger.error('error: %s', error)
    return 2
  return 0


def _main(args: list[str]) -> int:
  known_job = False

  def work() -> None:
    nonlocal known_job
    known, others = _arguments(args)
    known_job = known.distributed or known.coordinator is not None
    if known_job:
      processes.join(known.coordinator, known.processes, known.process)
    train.run(_config(known, others))

  try:
    status = status_of(work)
  except Exception:
    if not known_job:
      raise
    train.logger.exception('stopped by an error')
    status = 1
  if status == watch.LOST:
    processes.leave(status)
  if status in (1, 2) and known_job:
    processes.leave(status, at_once=status == 2)
  return status


def _arguments(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
  parser = argparse.ArgumentParser(
      prog='python -m sslam_jax.main', allow_abbrev=False,
      description='Pre-trains as a configuration file says; the same command '
      'resumes a run. Any of its fields is set by --config.FIELD=VALUE.',
  )
  parser.add_argument('--config', required=True, metavar='FILE.py[:ARGUMENT]')
  parser.add_argument('--workdir', help='run folder')
  job = parser.add_argument_group(
      'a job of several processes',
      'Either --distributed, where JAX finds the others (Slurm, Open MPI, GKE, '
      'TPU pods), or the other three.',
  )
  job.add_argument('--distributed', action='store_true')
  job.add_argument('--coordinator', metavar='HOST:PORT', help='of process 0')
  job.add_argument('--processes', type=int, metavar='COUNT')
  job.add_argument('--process', type=int, metavar='INDEX')
  known, others = parser.parse_known_args(args)
  for other in others:
    if not other.startswith(_PREFIX):
      parser.error(f'{other}: want an option of --help or {_PREFIX}FIELD=VALUE')
  three = (known.coordinator, known.processes, known.process)
  given = sum(value is not None for value in three)
  if given not in (0, 3) or (known.distributed and given):
    parser.error('want --distributed, or all of --coordinator, --processes '
                 'and --process')
  if given and not re.fullmatch(r'.+:\d+', known.coordinator):
    parser.error(f'--coordinator: want HOST:PORT, got {known.coordinator!r}')
  return known, others


def _without_traceback(record: logging.LogRecord) -> bool:
  record.exc_info = None
  return True


def _config(known: argparse.Namespace, others: list[str]) -> train.Config:
  assignments = [other.removeprefix(_PREFIX) for other in others]
  if known.workdir is not None:
    assignments.append(f'workdir={known.workdir}')
  config = config_lib.override(config_lib.load(known.config), assignments)
  if not isinstance(config, train.Config):
    raise ValueError(f'--config={known.config}: want a train.Config, '
                     f'got {type(config).__name__}')
  return config


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
