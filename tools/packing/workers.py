"""Runs a job on numbers in processes, with a progress bar."""

from collections.abc import Callable, Generator, Iterator, Sequence
import concurrent.futures
import contextlib
import multiprocessing
from multiprocessing import resource_tracker
import os
import signal
import threading
from typing import Any

import tqdm

_LOOK_S = 0.2  # Between two looks at the progress of the workers.

Job = Callable[[int, Callable[[int], None]], Any]


class StoppedError(Exception):
  """A job was told to stop."""


class _Worker:
  """What each process is given once, in `_start`: a source may be large."""

  job: Job
  counts: Any
  stop: Any


def run(
  job: Job, todo: Sequence[int], workers: int, title: str, total: int,
  done: int = 0,
) -> Generator[tuple[int, Any], None, None]:  # fmt: skip
  """Yields (number, result) of `job(number, progress)`, as they come.

  Jobs that run stop when this iterator is closed, at their next call of
  `progress`, which counts what they did. They end with this process, however
  it ends. One worker is a thread of this process.

  Args:
    job: A function that can be pickled.
    todo: The numbers.
    workers: How many jobs run at once.
    title: Of the bar.
    total: Length of the bar.
    done: How much of it is done already.
  """
  if not todo:
    return
  context = multiprocessing.get_context('spawn')
  counts = context.RawArray('q', max(todo) + 1)
  stop = context.RawValue('b', 0)
  executor = _executor(context, min(workers, len(todo)), (job, counts, stop))
  # disable=None: no bar where the output is no terminal.
  with tqdm.tqdm(desc=title, total=total, initial=done, disable=None) as bar:
    try:
      with no_interrupt():
        numbers = {executor.submit(_work, number): number for number in todo}
      waiting = set(numbers)
      while waiting:
        ready, waiting = concurrent.futures.wait(
          waiting, _LOOK_S, concurrent.futures.FIRST_COMPLETED
        )
        bar.update(done + sum(counts) - bar.n)
        for future in ready:
          yield numbers[future], future.result()
    finally:
      stop.value = 1
      executor.shutdown(cancel_futures=True)


@contextlib.contextmanager
def no_interrupt() -> Iterator[None]:
  """Processes started inside ignore Ctrl-C, on which this one stops them."""
  # Python starts it with the first process, and then undoes the mask below.
  resource_tracker.ensure_running()
  old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _executor(
  context: Any, workers: int, args: tuple[Any, ...]
) -> concurrent.futures.Executor:
  if workers == 1:
    return concurrent.futures.ThreadPoolExecutor(1, '', _start, args)
  return concurrent.futures.ProcessPoolExecutor(workers, context, _start, args)


def _start(job: Job, counts: Any, stop: Any) -> None:
  _Worker.job, _Worker.counts, _Worker.stop = staticmethod(job), counts, stop
  if multiprocessing.parent_process() is not None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """Otherwise a process whose parent was killed would wait for ever."""
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)


def _work(number: int) -> Any:
  counts, stop = _Worker.counts, _Worker.stop

  def progress(count: int) -> None:
    counts[number] += count
    if stop.value:
      raise StoppedError

  return _Worker.job(number, progress)
