"""Measures how fast a configuration reads and trains on this machine.

  python tools/benchmark.py --config=configs/stage2.py:demo --json out.json

Parts: source, pipeline, frontend, step (from log-mels to the next state) and
loop (a run as it is, with its waiting for data); and, where named, formats (the
pipeline from FLAC, WAV and ArrayRecord), memory (of the step, by batch),
scaling (work and traffic of the step, by devices) and torch (the step in plain
PyTorch, by turns with ours).
With --against or --against-commit the step is compared instead, by turns, with
that of another configuration or commit. Any field of a configuration is set by
--config.FIELD=VALUE, and of the other by --against.FIELD=VALUE. Nothing is
written to a run folder.
"""

import argparse
from collections.abc import Callable
import dataclasses
import json
import math
import pathlib
import shlex
import sys
from typing import Any

# For a checkout that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

if __name__ == '__main__':
  from sslam_jax import huge_pages

  huge_pages.restart()  # before the imports, which take seconds

from sslam_jax import config as config_lib
from sslam_jax import main as main_lib
from sslam_jax import torch_files
from sslam_jax import train
from tools.benchmarks import comparison
from tools.benchmarks import flops
from tools.benchmarks import formats
from tools.benchmarks import machine
from tools.benchmarks import memory
from tools.benchmarks import projection
from tools.benchmarks import reading
from tools.benchmarks import scaling
from tools.benchmarks import table
from tools.benchmarks import training

DEFAULT_PARTS = ('source', 'pipeline', 'frontend', 'step', 'loop')
PARTS = (*DEFAULT_PARTS, 'formats', 'memory', 'scaling', 'torch')
_PREFIX, _OTHER = '--config.', '--against.'


@dataclasses.dataclass(kw_only=True)
class Settings:
  """What is measured, and for how long.

  Attributes:
    parts: Some of `PARTS`.
    workers: Numbers of worker processes that the pipeline is measured with;
      None: 0 and the powers of two up to the number of cores.
    batches: That memory is measured with; None: see `memory.default_batches`.
    devices: Numbers of devices of the scaling.
    seconds: How long each measurement takes at least.
  """

  parts: tuple[str, ...] = DEFAULT_PARTS
  workers: tuple[int, ...] | None = None
  batches: tuple[int, ...] | None = None
  devices: tuple[int, ...] = (1, 2, 4)
  seconds: float = 5.0


def main(args: list[str]) -> int:
  """Prints the table; exit status 2 for a wrong argument or unreadable data."""
  options, this, other = _parse(args)
  try:
    report = _report(options, this, other)
    report['command'] = shlex.join(['tools/benchmark.py', *args])
    print('\n'.join(table.lines(report)))
    if options.json is not None:
      text = json.dumps(report, indent=2) + '\n'
      options.json.write_text(text, encoding='utf-8')
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


def _report(
    options: argparse.Namespace, this: list[str], other: list[str]
) -> dict[str, Any]:
  if options.against_commit is not None:
    return _compare_commits(options, this, other)
  config = train.resolved(main_lib.parse(this))
  if other != this:
    return compare(config, train.resolved(main_lib.parse(other)),
                   options.seconds)
  return measure(config, Settings(
      parts=options.parts, workers=options.workers, batches=options.batches,
      devices=options.devices, seconds=options.seconds,
  ))


def measure(config: train.Config, settings: Settings) -> dict[str, Any]:
  """Sections and keys of `table.TITLES`, and 'config'."""
  if 'torch' in settings.parts:  # what it cannot compare is told at once
    _torch_step().check(config, train.make_mesh(config))
  report = _start(config)
  for part, measured in _measures(config, settings).items():
    if part in settings.parts:
      _say(part)
      report |= measured()
  if projected := _projected(config, report):
    report['projection'] = projected
  return report


def compare(
    config: train.Config, other: train.Config, seconds: float
) -> dict[str, Any]:
  """The section 'comparison' of two configurations, and both."""
  report = _start(config) | {'against': _plain(other)}
  _say('comparison')
  return report | {
      'comparison': comparison.compare_configs(config, other, seconds)
  }


def _compare_commits(
    options: argparse.Namespace, this: list[str], other: list[str]
) -> dict[str, Any]:
  """The same of the checkout and a commit.

  This process leaves the devices to those that it starts.
  """
  _say('comparison')
  reports, compared = comparison.compare_commits(
      options.against_commit, this, other, rounds=options.rounds,
      seconds=options.seconds,
  )
  return {'machine': reports[0]['machine'], 'config': reports[0]['config'],
          'against': reports[1]['config'],
          'against_commit': reports[1]['machine']['commit'],
          'comparison': compared}


def default_workers() -> tuple[int, ...]:
  """0 and the powers of two up to the number of cores."""
  return 0, *(2**n for n in range(machine.cores().bit_length()))


def _start(config: train.Config) -> dict[str, Any]:
  facts = machine.facts()
  if not facts['is_quiet']:
    _say(f'the machine is not quiet (load {facts["load_1min"]}): the figures '
         f'are too low')
  return {'machine': facts, 'config': _plain(config)}


def _plain(config: train.Config) -> Any:
  return json.loads(config_lib.to_json(config))


def _measures(
    config: train.Config, settings: Settings
) -> dict[str, Callable[[], dict[str, Any]]]:
  """Part -> what measures it, in this order, as sections of the report."""
  mesh, seconds = train.make_mesh(config), settings.seconds
  compiled: list[training.Program] = []

  def program() -> training.Program:
    """The step, compiled where a part first needs it."""
    if not compiled:
      compiled.append(training.compile_step(config, mesh))
    return compiled[0]

  counts = settings.workers or default_workers()
  batches = settings.batches or memory.default_batches(config, mesh)
  return {
      # Before other parts use the devices' memory.
      'memory': lambda: memory.measure_memory(config, batches),
      'source': lambda: {
          'source': reading.measure_sources(config.data, seconds)},
      'pipeline': lambda: {'pipeline': [
          reading.measure_pipeline(config, count, seconds) for count in counts
      ]},
      'formats': lambda: {
          'formats': formats.measure_formats(config, counts, seconds)},
      'frontend': lambda: {
          'frontend': training.measure_front_end(config, mesh, seconds)},
      'step': lambda: {
          'step': training.measure_step(config, mesh, program(), seconds)},
      'loop': lambda: {
          'loop': training.measure_loop(config, mesh, program(), seconds)},
      'scaling': lambda: {'scaling': scaling.measure_scaling(
          config, settings.devices, seconds)},
      'torch': lambda: {'torch': _torch_step().measure(
          config, mesh, program(), seconds)},
  }


def _torch_step() -> Any:
  """The part that needs torch, which is optional."""
  torch_files.library('torch')
  return torch_files.library('tools.benchmarks.torch_step')


def _projected(
    config: train.Config, report: dict[str, Any]
) -> list[dict[str, Any]]:
  """The published run at the measured rates; [] where that is not known."""
  rows = [row for row in report.get('scaling', ()) if row['step_s']]
  rows += [report['step']] if 'step' in report else []
  try:
    return projection.project(config, rows) if rows else []
  except flops.UncountableError as error:
    _say(f'not projected: {error}')
    return []


def _say(text: str) -> None:
  print(f'benchmark: {text}', file=sys.stderr, flush=True)


def _parse(
    args: list[str]
) -> tuple[argparse.Namespace, list[str], list[str]]:
  """The options of this tool, and what says which configurations.

  The second is that to compare with: the same where none is named.
  """
  parser = argparse.ArgumentParser(
      description=__doc__.splitlines()[0], allow_abbrev=False,
      epilog='Any field of the configuration is set by --config.FIELD=VALUE.',
  )
  add = parser.add_argument
  add('--config', required=True, metavar='FILE.py[:ARGUMENT]')
  add('--workdir', help='not used, as nothing is written')
  add('--parts', type=_parts, metavar='A,B',
      help=f'some of {",".join(PARTS)} '
      f'(default: {",".join(DEFAULT_PARTS)})')
  add('--workers', type=_numbers(0), metavar='N,N',
      help='worker processes to try in the pipeline '
      '(default: 0,1,2,4,... up to the cores)')
  add('--batches', type=_numbers(1), metavar='N,N',
      help='clips per step that memory is measured with (default: 1, 2, 4 and '
      '8 times the least possible); alone it asks for the part memory')
  add('--devices', type=_numbers(1), default=(1, 2, 4), metavar='N,N',
      help='numbers of devices of the part scaling (default: 1,2,4)')
  add('--seconds', type=_seconds, default=5.0,
      help='length of each measurement (default: 5)')
  add('--json', type=_file, metavar='FILE', help='write the report there too')
  add('--against', metavar='FILE.py[:ARGUMENT]',
      help='configuration to compare with; without it, --against.FIELD=VALUE '
      'changes fields of the same one')
  add('--against-commit', metavar='REVISION',
      help='commit of this repository to compare the checkout with')
  add('--rounds', type=_count, default=3,
      help='how often both are run for --against-commit (default: 3)')
  options, others = parser.parse_known_args(args)
  for text in others:
    if not text.startswith((_PREFIX, _OTHER)):
      parser.error(f'{text}: want {_PREFIX}FIELD=VALUE, {_OTHER}FIELD=VALUE or '
                   f'one of the above')
  fields = [text for text in others if text.startswith(_PREFIX)]
  changes = [text.replace(_OTHER, _PREFIX, 1) for text in others
             if text.startswith(_OTHER)]
  this = [f'--config={options.config}', *fields]
  other = [*this, *changes]
  if options.against is not None:
    other = [f'--config={options.against}', *changes]
  if this != other or options.against_commit is not None:
    if options.parts is not None or options.batches is not None:
      parser.error('want --parts and --batches, or what to compare with, '
                   'not both')
  elif options.against is not None:
    parser.error('--against: want another configuration, got the same')
  if options.batches is not None:
    options.parts = (*(options.parts or ()), 'memory')
  options.parts = options.parts or DEFAULT_PARTS
  return options, this, other


def _parts(text: str) -> tuple[str, ...]:
  parts = tuple(text.split(','))
  if unknown := [part for part in parts if part not in PARTS]:
    raise argparse.ArgumentTypeError(
        f'want some of {",".join(PARTS)}, got {unknown[0]!r}'
    )
  return parts


def _numbers(least: int) -> Callable[[str], tuple[int, ...]]:
  def parse(text: str) -> tuple[int, ...]:
    counts = text.split(',')
    if not all(n.isdecimal() and int(n) >= least for n in counts):
      raise argparse.ArgumentTypeError(
          f'want numbers from {least} on such as {least},2,4, got {text!r}'
      )
    return tuple(map(int, counts))

  return parse


def _count(text: str) -> int:
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f'want at least 1, got {text!r}')
  return int(text)


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
