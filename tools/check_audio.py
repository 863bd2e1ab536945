"""Reads every clip of a data source wholly and lists those that are damaged.

  python tools/check_audio.py folder=DIR --workers 8 --out bad.tsv

Clips are read in pieces of a minute, so their length does not matter. A worker
process that the decoder crashes, or that hangs, costs its one clip. Ctrl-C
stops and lists what was found. Exit status: 0 if no clip is bad, 1 if some are,
2 for wrong usage, 130 if stopped.
"""

import argparse
import collections
from collections.abc import Generator
import contextlib
import dataclasses
import multiprocessing
from multiprocessing import connection
import os
import pathlib
import re
import signal
import sys
import time
import typing

import tqdm

# For a checkout that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from sslam_jax import clips
from tools.packing import workers as workers_lib

_PIECE_S = 60
_START_S = 60  # Until a process answers: its imports take seconds.
# Fresh processes: a forked one would inherit threads and their locks.
_PROCESSES = multiprocessing.get_context('spawn')


def main(args: list[str]) -> int:
  """Prints a table of reasons; for the exit status see above."""
  try:
    # Takes seconds, and worker processes, which import this file, do without.
    from sslam_jax import catalogue

    options = _parser(catalogue.HELP).parse_args(args)
    return _checked(catalogue.source(options.source), options)
  except (OSError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('stopped', file=sys.stderr)
    return 130


def check(
  source: clips.Source, workers: int, timeout_s: float
) -> Generator[tuple[int, str, str], None, None]:
  """Yields (index, clip id, reason or '') of all, in the order of their ends.

  Args:
    source: Which clips to read.
    workers: How many processes read.
    timeout_s: How long opening a clip may take, and how long reading it.
  """
  for name, value in (('workers', workers), ('timeout_s', timeout_s)):
    if not value > 0:
      raise ValueError(f'{name}: want > 0, got {value}')
  bad = 0
  # disable=None: no bar where the output is no terminal.
  with (
    contextlib.closing(_results(source, workers, timeout_s)) as results,
    tqdm.tqdm(results, total=len(source), unit='clip', disable=None) as bar,
  ):
    for result in bar:
      yield result  # Before it is shown: Ctrl-C may come in between.
      if result[2]:
        bad += 1
        bar.set_postfix(bad=bad)


def _checked(source: clips.Source, options: argparse.Namespace) -> int:
  """Reads all clips, or those until Ctrl-C, and shows what was found."""
  bad, read, stopped = {}, 0, None
  with contextlib.ExitStack() as stack:
    file = None
    if options.out is not None:  # Opened before hours of work.
      file = stack.enter_context(_opened(options.out))
    results = check(source, options.workers, options.timeout_s)
    try:
      with contextlib.closing(results):
        for index, clip_id, reason in results:
          read += 1
          if reason:
            bad[index] = clip_id, reason
    except KeyboardInterrupt as error:
      stopped = error
    found = [bad[index] for index in sorted(bad)]
    _print(found, read)
    if file is not None:
      file.writelines(f'{clip_id}\t{reason}\n' for clip_id, reason in found)
  if stopped is not None:
    raise stopped
  return 1 if bad else 0


@dataclasses.dataclass
class _Reader:
  """A worker process and the clip that it reads; index None: it is idle."""

  process: multiprocessing.process.BaseProcess
  pipe: connection.Connection
  index: int | None = None
  clip_id: str = ''
  deadline: float = 0.0


def _results(
  source: clips.Source, workers: int, timeout_s: float
) -> Generator[tuple[int, str, str], None, None]:
  """Yields (index, clip id, reason or '') in the order in which they end."""
  waiting = iter(range(len(source)))
  readers = [_started(source) for _ in range(min(workers, len(source)))]
  try:
    while readers:
      for reader in readers:
        if reader.index is None:
          _give(reader, next(waiting, None))
      readers = [reader for reader in readers if reader.index is not None]
      _wait(readers)
      for position, reader in enumerate(readers):
        result = _result(reader, timeout_s)
        if result is not None:
          yield result
          if not reader.process.is_alive():
            readers[position] = _started(source)
  finally:
    for reader in readers:
      reader.process.kill()


def _started(source: clips.Source) -> _Reader:
  here, there = _PROCESSES.Pipe()
  process = _PROCESSES.Process(target=_read, args=(source, there), daemon=True)
  with workers_lib.no_interrupt():
    process.start()
  there.close()  # So that the end of the process is seen here.
  return _Reader(process, here)


def _give(reader: _Reader, index: int | None) -> None:
  """Sends the next clip; for want of one, ends the process."""
  reader.index, reader.clip_id = index, ''
  reader.deadline = time.monotonic() + _START_S
  # One that has ended meanwhile is found out by _result.
  with contextlib.suppress(BrokenPipeError):
    reader.pipe.send(index)


def _wait(readers: list[_Reader]) -> None:
  if readers:
    deadline = min(reader.deadline for reader in readers)
    left_s = max(0.0, deadline - time.monotonic())
    connection.wait([reader.pipe for reader in readers], left_s)


def _result(
  reader: _Reader, timeout_s: float
) -> tuple[int, str, str] | None:
  """What came of the clip that is being read; None: nothing yet."""
  index = typing.cast(int, reader.index)
  reason = None
  try:
    while reason is None and reader.pipe.poll():
      reader.clip_id, reason = reader.pipe.recv()
      reader.deadline = time.monotonic() + timeout_s
  except (EOFError, ConnectionResetError):
    reader.process.join()
    reason = _death(reader.process.exitcode or 0)
  if reason is None and time.monotonic() > reader.deadline:
    reader.process.kill()
    reader.process.join()
    reason = 'reading took too long'
  if reason is None:
    return None
  reader.index = None
  return index, reader.clip_id or f'clip {index}', reason


def _death(exitcode: int) -> str:
  if exitcode < 0:
    return f'a crash of the decoder ({signal.Signals(-exitcode).name})'
  return f'an error of the reading process (exit status {exitcode})'


def _read(source: clips.Source, pipe: connection.Connection) -> None:
  """Reads the clips whose indices come; sends (clip id, reason or '').

  Before it reads one, it sends (clip id, None): what may crash it; and before
  it opens one, ('', None).
  """
  _silence_decoders()
  while (index := pipe.recv()) is not None:
    clip_id = ''
    pipe.send((clip_id, None))
    try:
      clip = source[index]
      clip_id = clip.id
      pipe.send((clip_id, None))
      for start in range(0, clip.samples, _PIECE_S * clip.rate_hz):
        left = clip.samples - start
        clip.read(start, min(_PIECE_S * clip.rate_hz, left))
      pipe.send((clip_id, ''))
    except clips.BadClip as error:
      pipe.send((clip_id or error.clip_id, error.reason))


def _silence_decoders() -> None:
  """Leaves stderr to Python; libmpg123 writes a line per damaged frame."""
  sys.stderr = os.fdopen(os.dup(2), 'w', buffering=1)
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _opened(path: pathlib.Path) -> typing.TextIO:
  # Names that are not UTF-8 are written as they are.
  return path.open('w', encoding='utf-8', errors='surrogateescape')


def _print(bad: list[tuple[str, str]], read: int) -> None:
  counts = collections.Counter(_kind(reason) for _, reason in bad)
  for kind, count in counts.most_common():
    print(f'{count:8d}  {kind}')
  print(f'{len(bad):8d}  bad of {read} clips')


def _kind(reason: str) -> str:
  return re.sub(r'\b\d+\b', 'N', reason)


def _parser(sources: str) -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__.splitlines()[0],
    epilog=sources,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('source', metavar='SOURCE')
  parser.add_argument('--workers', type=int, default=os.cpu_count(),
                      metavar='N', help='processes (default: one per core)')
  parser.add_argument('--timeout_s', type=float, default=60.0, metavar='S',
                      help='what takes longer is bad (default: 60)')
  parser.add_argument('--out', type=pathlib.Path, metavar='FILE.tsv',
                      help='where to write the bad ones: path<TAB>reason')
  return parser


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
