"""Measures how fast a configuration reads and trains on this machine.

  python tools/benchmark.py --config=configs/stage2.py:demo --json out.json

Parts: source, pipeline, frontend, step (from log-mels to the next state) and
loop (a run as it is, with its waiting for data). --against-torch also measures
the step in plain PyTorch, in turns with ours. Any field of the configuration is
set by --config.FIELD=VALUE; nothing is written to its run folder.
"""

import argparse
from collections.abc import Callable
import json
import math
import pathlib
import shlex
import sys
from typing import Any

# For a checkout that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from sslam_jax import config as config_lib
from sslam_jax import main as main_lib
from sslam_jax import torch_files
from sslam_jax import train
from tools.benchmarks import machine
from tools.benchmarks import reading
from tools.benchmarks import table
from tools.benchmarks import training

PARTS = ('source', 'pipeline', 'frontend', 'step', 'loop')
_PREFIX = '--config.'


def main(args: list[str]) -> int:
  """Prints the table; exit status 2 for a wrong argument or unreadable data."""
  options, config_args = _parse(args)
  try:
    config = main_lib.parse(config_args)
    parts = options.parts
    if options.against_torch:
      _torch_step().check(config, train.make_mesh(config))
      parts = (*parts, 'torch')
    report = measure(config, parts, options.workers, options.seconds)
    report['command'] = shlex.join(['tools/benchmark.py', *args])
    print('\n'.join(table.lines(report)))
    if options.json is not None:
      text = json.dumps(report, indent=2) + '\n'
      options.json.write_text(text, encoding='utf-8')
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


def measure(
    config: train.Config,
    parts: tuple[str, ...] = PARTS,
    workers: tuple[int, ...] | None = None,
    seconds: float = 5.0,
) -> dict[str, Any]:
  """Measures some parts.

  Args:
    config: Of the run.
    parts: Some of `PARTS`, and 'torch'.
    workers: Numbers of worker processes that the pipeline is measured with;
      None: 0 and the powers of two up to the number of cores.
    seconds: How long each measurement takes at least.

  Returns:
    Sections and keys of `table.TITLES`, and 'config'.
  """
  facts = machine.facts()
  if not facts['is_quiet']:
    _say(f'the machine is not quiet (load {facts["load_1min"]}): the figures '
         f'are too low')
  report = {'machine': facts, 'config': json.loads(config_lib.to_json(config))}
  for part, measured in _measures(config, workers, seconds).items():
    if part in parts:
      _say(part)
      report[part] = measured()
  return report


def default_workers() -> tuple[int, ...]:
  """0 and the powers of two up to the number of cores."""
  return 0, *(2**n for n in range(machine.cores().bit_length()))


def _measures(
    config: train.Config, workers: tuple[int, ...] | None, seconds: float
) -> dict[str, Callable[[], Any]]:
  mesh = train.make_mesh(config)
  compiled: list[training.Program] = []

  def program() -> training.Program:
    """The step, compiled where a part first needs it."""
    if not compiled:
      compiled.append(training.compile_step(config, mesh))
    return compiled[0]

  counts = default_workers() if workers is None else workers
  return {
      'source': lambda: reading.measure_sources(config.data, seconds),
      'pipeline': lambda: [
          reading.measure_pipeline(config, count, seconds) for count in counts
      ],
      'frontend': lambda: training.measure_front_end(config, mesh, seconds),
      'step': lambda: training.measure_step(config, mesh, program(), seconds),
      'loop': lambda: training.measure_loop(config, mesh, program(), seconds),
      'torch': lambda: _torch_step().measure(config, mesh, program(), seconds),
  }


def _torch_step() -> Any:
  """The part that needs torch, which is optional."""
  torch_files.library('torch')
  return torch_files.library('tools.benchmarks.torch_step')


def _say(text: str) -> None:
  print(f'benchmark: {text}', file=sys.stderr, flush=True)


def _parse(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
  """The options of this tool, and what says which configuration."""
  parser = argparse.ArgumentParser(
      description=__doc__.splitlines()[0], allow_abbrev=False,
      epilog='Any field of the configuration is set by --config.FIELD=VALUE.',
  )
  parser.add_argument('--config', required=True, metavar='FILE.py[:ARGUMENT]')
  parser.add_argument('--workdir', help='not used, as nothing is written')
  parser.add_argument('--parts', type=_parts, default=PARTS, metavar='A,B',
                      help=f'some of {",".join(PARTS)} (default: all)')
  parser.add_argument('--against-torch', action='store_true',
                      help='measure the step in plain PyTorch too (one device)')
  parser.add_argument('--workers', type=_workers, metavar='N,N',
                      help='worker processes to try in the pipeline '
                      '(default: 0,1,2,4,... up to the cores)')
  parser.add_argument('--seconds', type=_seconds, default=5.0,
                      help='length of each measurement (default: 5)')
  parser.add_argument('--json', type=_file, metavar='FILE',
                      help='write the report there too')
  options, others = parser.parse_known_args(args)
  for other in others:
    if not other.startswith(_PREFIX):
      parser.error(f'{other}: want {_PREFIX}FIELD=VALUE or one of the above')
  return options, [f'--config={options.config}', *others]


def _parts(text: str) -> tuple[str, ...]:
  parts = tuple(text.split(','))
  if unknown := [part for part in parts if part not in PARTS]:
    raise argparse.ArgumentTypeError(
        f'want some of {",".join(PARTS)}, got {unknown[0]!r}'
    )
  return parts


def _workers(text: str) -> tuple[int, ...]:
  counts = text.split(',')
  if not all(count.isdecimal() for count in counts):
    raise argparse.ArgumentTypeError(
        f'want numbers of processes such as 0,1,2, got {text!r}'
    )
  return tuple(map(int, counts))


def _seconds(text: str) -> float:
  try:
    seconds = float(text)
  except ValueError:
    seconds = math.nan
  if not 0 < seconds < math.inf:
    raise argparse.ArgumentTypeError(f'want a positive number, got {text!r}')
  return seconds


def _file(text: str) -> pathlib.Path:
  """A file that can be written: hours may pass before it is."""
  path = pathlib.Path(text)
  if not path.parent.is_dir() or path.is_dir():
    raise argparse.ArgumentTypeError(
        f'want a file in a folder that exists, got {text!r}'
    )
  return path


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
