"""Which clip each reading thread is on, for when one of them hangs.

A worker process that hangs answers nothing. So every thread, in whatever
process of this host, keeps a small file that says where it is: its age tells
for how long. (13 microseconds per clip; decoding one takes milliseconds.)
"""

import contextlib
import io
import multiprocessing
import os
import pathlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator

_SHOWN = 4
_BYTES = 1000  # of a text


class _Thread(threading.local):
  """The file of this thread, which stays open; and whether it is on a clip."""

  path: pathlib.Path | None = None
  file: io.FileIO
  is_reading = False


_thread = _Thread()


class Slate:
  """A folder of such files; copies in worker processes write to the same."""

  def __init__(self) -> None:
    self._folder = pathlib.Path(tempfile.mkdtemp(prefix='sslam_jax_reading_'))

  @contextlib.contextmanager
  def reading(self, index: int) -> Iterator[None]:
    """This thread reads clip `index` of the source meanwhile."""
    path = self._folder / f'{os.getpid()}-{threading.get_native_id()}'
    if _thread.path != path:
      try:
        _thread.file, _thread.path = io.FileIO(path, 'w'), path
      except OSError:  # a full disk, or `remove`: no reason to stop reading
        _thread.path = None
    _thread.is_reading = _thread.path is not None
    note(f'clip {index} of the source')
    try:
      yield
    finally:
      if _thread.is_reading:
        _write(b'\0')
      _thread.is_reading = False

  def describe(self, least_s: float) -> str:
    """Who is on which clip for at least so long, the longest first."""
    found, now = [], time.time()
    for path in self._folder.iterdir():
      seconds, record = now - path.stat().st_mtime, path.read_bytes()
      text = record.partition(b'\0')[0].decode(errors='replace')
      if text and seconds >= least_s:
        found.append((seconds, text))
    found.sort(reverse=True)
    texts = [f'{text} for {seconds:.0f} s' for seconds, text in found[:_SHOWN]]
    if more := len(found) - len(texts):
      texts.append(f'and {more} more')
    return '; '.join(texts) or 'no thread was on a clip all the while'

  def remove(self) -> None:
    """Removes the folder; what threads still write is lost."""
    shutil.rmtree(self._folder, ignore_errors=True)


def note(name: str) -> None:
  """Names the clip that this thread is on more exactly, such as by its path."""
  if not _thread.is_reading:
    return
  is_worker = multiprocessing.parent_process() is not None
  who = multiprocessing.current_process().name if is_worker else 'the run'
  text = f'{who} (pid {os.getpid()}) on {name}'
  _write(text.encode(errors='backslashreplace')[:_BYTES] + b'\0')


def _write(record: bytes) -> None:
  with contextlib.suppress(OSError):
    os.pwrite(_thread.file.fileno(), record, 0)
