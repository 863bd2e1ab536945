"""Command line: `python -m sslam_jax.main --config=FILE.py[:ARGUMENT]`.

Fields are set by `--config.FIELD=VALUE`, such as --config.optim.peak_lr=1e-4.
"""

import argparse
import logging
import sys

from sslam_jax import config as config_lib
from sslam_jax import train

_PREFIX = '--config.'


def parse(args: list[str]) -> train.Config:
  """The checked configuration that a command line asks for."""
  parser = argparse.ArgumentParser(
      prog='python -m sslam_jax.main', allow_abbrev=False,
      description='Pre-trains as a configuration file says; the same command '
      'resumes a run. Any of its fields is set by --config.FIELD=VALUE.',
  )
  parser.add_argument('--config', required=True, metavar='FILE.py[:ARGUMENT]')
  parser.add_argument('--workdir', help='run folder')
  known, others = parser.parse_known_args(args)
  for other in others:
    if not other.startswith(_PREFIX):
      parser.error(f'{other}: want --config, --workdir or {_PREFIX}FIELD=VALUE')
  assignments = [other.removeprefix(_PREFIX) for other in others]
  if known.workdir is not None:
    assignments.append(f'workdir={known.workdir}')
  config = config_lib.override(config_lib.load(known.config), assignments)
  if not isinstance(config, train.Config):
    raise ValueError(f'--config={known.config}: want a train.Config, '
                     f'got {type(config).__name__}')
  return config


def main() -> int:
  """Returns the exit status: 0 done, 1 stopped, 2 cannot start.

  By Ctrl-C or SIGTERM it is 3: the state is saved, the same command goes on.
  """
  # A handler of our own: libraries put theirs on the root logger.
  train.logger.addHandler(logging.StreamHandler())
  train.logger.propagate = False
  try:
    train.run(parse(sys.argv[1:]))
  except train.TrainingStopped:
    return 1
  except train.Interrupted:
    return 3
  except (ValueError, OSError) as error:
    train.logger.error('error: %s', error)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
