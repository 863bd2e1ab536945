"""Packs recordings into a few large files of FLAC, for fast training.

  python tools/pack_audio.py SOURCE --out=DIR
  python tools/pack_audio.py --verify --out=DIR

Started again, the same command goes on where it was stopped, and writes shards
that were lost. What cannot be read, or is too short, is left out and listed in
DIR/skipped.tsv. That a source has changed in between is noticed by its length
and a sample of its recordings.
Exit status: 0 done, 1 not done or not whole, 2 wrong usage, 130 stopped.
"""

import argparse
from collections.abc import Callable
import concurrent.futures
import contextlib
import functools
import os
import pathlib
import sys
from typing import Any, NoReturn

# For a checkout that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from sslam_jax import packs
from sslam_jax import resampling
from tools.packing import folder as folder_lib
from tools.packing import shards as shards_lib
from tools.packing import workers

_LISTED = 10  # What could not be read, in an error message.


class _UnfinishedError(Exception):
  """Why the pack is not done; what was written so far is kept."""


def main(argv: list[str] | None = None) -> int:
  """Packs, verifies, or both; returns the exit status."""
  options = _parse(sys.argv[1:] if argv is None else argv)
  try:
    if options.source is not None:
      pack(options)
    return verify(options) if options.verify else 0
  except ValueError as error:
    return _failed(str(error), 2)
  except (_UnfinishedError, OSError) as error:
    return _failed(str(error), 1)
  except concurrent.futures.BrokenExecutor:
    return _failed('want all workers alive, got one that was killed, perhaps '
                   'for its memory: the same command goes on', 1)
  except KeyboardInterrupt:
    print('stopped: the same command goes on from here', file=sys.stderr)
    return 130


def pack(options: argparse.Namespace) -> None:
  """Writes the shards that are missing, and then the index."""
  from sslam_jax import catalogue  # Takes a second; workers do without.

  source = catalogue.source(options.source)
  recordings = len(source)
  settings = _settings(options, recordings)
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(folder_lib.opened(options.out))
    index = folder_lib.started(folder, source, settings)
    reports = folder_lib.reports(folder, index)
    todo = [n for n in range(settings.shards) if n not in reports]
    if not todo and folder_lib.is_finished(folder, index, reports):
      print(f'{folder}: already finished')
      return
    temporary = stack.enter_context(folder_lib.unfinished(folder, index))
    job = functools.partial(
      _write, source=source, settings=settings, folder=folder,
      temporary=temporary,
    )  # fmt: skip
    left = sum(len(settings.indices(n, recordings)) for n in todo)
    results = workers.run(
      job, todo, options.workers, 'packing', recordings, recordings - left
    )
    stack.enter_context(contextlib.closing(results))
    limit = int(options.max_bad_fraction * recordings)
    _refuse_bad(folder, reports, limit)
    for number, report in results:
      reports[number] = report
      _refuse_bad(folder, reports, limit)
    if not sum(report.shard.clips for report in reports.values()):
      raise _UnfinishedError(f'{folder}: want clips, got only what is shorter '
                             f'than --min_s, or unreadable')
    index = folder_lib.finish(folder, index, reports)
  print(f'{folder}: finished: {_summary(index)}')


def verify(options: argparse.Namespace) -> int:
  """Reads a pack, and prints what is wrong with it, or that nothing is."""
  index = packs.read_index(options.out)
  problems = packs.differences(options.out, index)
  job = functools.partial(_check, index=index, path=options.out)
  todo = [
    number
    for number, shard in enumerate(index.shards)
    if os.path.exists(os.path.join(options.out, shard.file))
  ]
  clips = sum(shard.clips for shard in index.shards)
  found = dict(workers.run(job, todo, options.workers, 'verifying', clips))
  problems += [line for number in todo for line in found[number]]
  for line in problems:
    print(line)
  if problems:
    return _failed(
      f'{options.out}: want a whole pack, got {len(problems)} problems: remove '
      f'these files and write them again with: '
      f'{index.command_in(options.out)}', 1)
  print(f'{options.out}: whole: {_summary(index)}')
  return 0


def _settings(
  options: argparse.Namespace, recordings: int
) -> shards_lib.Settings:
  settings = shards_lib.Settings(
    source=options.source,
    shards=options.shards or folder_lib.default_shards(recordings),
    rate_hz=options.rate_hz,
    resampler=options.resampler,
    max_s=options.max_s,
    min_s=options.min_s,
    bits=options.bits,
  )
  if settings.shards > recordings:
    raise ValueError(f'--shards: want 1 to {recordings}, one per recording, '
                     f'got {settings.shards}')
  return settings


def _write(
  number: int, progress: Callable[[int], None], *, source: Any,
  settings: shards_lib.Settings, folder: pathlib.Path, temporary: pathlib.Path,
) -> shards_lib.Report:  # fmt: skip
  path = str(temporary / settings.file(number))
  indices = settings.indices(number, len(source))
  report = shards_lib.write(path, source, indices, settings, progress)
  folder_lib.keep(folder, temporary, report)
  return report


def _check(
  number: int, progress: Callable[[int], None], *, index: packs.Index, path: str
) -> list[str]:
  shard = index.shards[number]
  return packs.check_shard(path, shard, index.classes, progress)


def _refuse_bad(
  folder: pathlib.Path, reports: dict[int, shards_lib.Report], limit: int
) -> None:
  rows = [row for n in sorted(reports) for row in reports[n].unreadable]
  if len(rows) <= limit:
    return
  folder_lib.write_skipped(folder, reports)
  lines = [f'  {clip_id}: {reason}' for clip_id, reason in rows[:_LISTED]]
  lines += ['  ...'] * (len(rows) > _LISTED)
  text = '\n'.join(lines)
  raise _UnfinishedError(
    f'{folder}: want at most {limit} unreadable recordings '
    f'(--max_bad_fraction), got {len(rows)}, all in {folder_lib.SKIPPED}:\n'
    f'{text}'
  )


def _summary(index: packs.Index) -> str:
  shards = index.shards
  size, length_s = sum(s.bytes for s in shards), sum(s.length_s for s in shards)
  return (
    f'{sum(s.clips for s in shards)} clips in {len(shards)} shards, '
    f'{length_s:.1f} s, {size / 1e6:.1f} MB; '
    f'{sum(s.unreadable for s in shards)} unreadable and '
    f'{sum(s.short for s in shards)} too short left out, '
    f'{sum(s.clipped for s in shards)} clipped at full scale'
  )


def _failed(message: str, status: int) -> int:
  print(f'error: {message}', file=sys.stderr)
  return status


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    self.exit(2, f'error: {message}\n')


def _parse(argv: list[str]) -> argparse.Namespace:
  from sslam_jax import catalogue

  parser = _Parser(
    description=__doc__, epilog=f'SOURCE:\n{catalogue.HELP}',
    formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
  )  # fmt: skip
  add = parser.add_argument
  add('source', nargs='?', metavar='SOURCE',
      help='what to pack; several words are joined by commas, see below')
  add('--out', required=True, metavar='DIR', help='folder of the pack')
  add('--rate_hz', type=_optional(int), default=16_000,
      help="none keeps each recording's own (default: 16000)")
  add('--resampler', choices=resampling.RESAMPLERS, default='sinc_hann',
      help='default: sinc_hann')
  add('--max_s', type=_optional(float), default=60.0,
      help='longer recordings are cut into pieces ID@start_s of this length; '
           'none: they are not (default: 60)')
  add('--min_s', type=float, default=0.0,
      help='what is shorter is left out (default: 0)')
  add('--bits', type=int, choices=(16, 24), default=16,
      help='of a sample (default: 16)')
  add('--shards', type=_count,
      help='how many files (default: one per 1000 recordings, but 8 or so '
           'for fewer than 8000)')
  add('--workers', type=_count, default=len(os.sched_getaffinity(0)),
      help='processes (default: one per core)')
  add('--max_bad_fraction', type=_fraction, default=0.01,
      help='give up where more recordings are unreadable (default: 0.01)')
  add('--verify', action='store_true',
      help='read all of the pack again and say what is wrong with it')
  options = parser.parse_args(argv)
  if options.source is None and not options.verify:
    parser.error('SOURCE: want what to pack, or --verify; got neither')
  return options


def _optional(kind: type) -> Callable[[str], Any]:
  def parse(text: str) -> Any:
    return None if text.lower() == 'none' else kind(text) or None

  parse.__name__ = f'{kind.__name__} or none'  # What argparse calls it.
  return parse


def _count(text: str) -> int:
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f'want at least 1, got {text!r}')
  return int(text)


def _fraction(text: str) -> float:
  value = float(text)
  if not 0 <= value <= 1:
    raise argparse.ArgumentTypeError(f'want 0 to 1, got {text!r}')
  return value


if __name__ == '__main__':
  sys.exit(main())
