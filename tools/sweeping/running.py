"""Runs points, each in a process of its own, some at a time.

A signal to this process is passed on once to each; they save, and end.
"""

import ctypes
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from sslam_jax import errors
from sslam_jax import main as main_lib
from sslam_jax import processes
from sslam_jax import train
from sslam_jax import watch
from tools.sweeping import points as points_lib
from tools.sweeping import standing

_POLL_S = 0.5
_ON_PARENTS_END = 1  # PR_SET_PDEATHSIG of Linux

Command = Callable[[points_lib.Point], list[str]]


class Board(Protocol):
  """Who is told how far the points are."""

  def show(self, standings: dict[str, standing.Standing]) -> None:
    """Called some times a second, with the standings by name."""


def run_all(
    workdir: pathlib.Path,
    points: Sequence[points_lib.Point],
    *,
    command: Command,
    places: Sequence[dict[str, str]],
    board: Board,
) -> tuple[dict[str, standing.Standing], bool]:
  """Runs what is not finished; how far all are then, and if told to stop.

  Args:
    workdir: The sweep's folder.
    points: All of them, in this order.
    command: Of the process of a point.
    places: Environment variables of each process of those at a time.
    board: Is told.
  """
  standings = {point.name: standing.look(workdir, point) for point in points}
  waiting = [point for point in points
             if standings[point.name].state != standing.DONE]
  for point in waiting:
    standings[point.name] = dataclasses.replace(
        standings[point.name], state=standing.WAITING
    )
  free, jobs = list(places), list[_Job]()
  with processes.stopping() as stop:
    try:
      while jobs or (waiting and not stop.told):
        while free and waiting and not stop.told:
          jobs.append(_Job(workdir, waiting.pop(0), command, free.pop(0)))
        for job in list(jobs):
          if stop.told:
            job.tell()
          if has_ended := job.has_ended():
            jobs.remove(job)
            free.insert(0, job.place)
          standings[job.point.name] = standing.look(
              workdir, job.point, is_running=not has_ended
          )
        board.show(standings)
        if jobs:
          time.sleep(_POLL_S)
    finally:
      for job in jobs:  # by an error here, or a second signal
        job.kill()
  # Those that were not begun are what they were before.
  standings |= {point.name: standing.look(workdir, point) for point in waiting}
  return standings, stop.told


def exit_status(
    standings: dict[str, standing.Standing], is_told: bool
) -> int:
  """0: all are done; 1: some failed; 3, 4: the same command goes on.

  As of sslam_jax.main 3 is for those who were told to stop, 4 for points that
  ended unfinished without that.
  """
  states = {each.state for each in standings.values()}
  if is_told:
    return 3
  if states == {standing.DONE}:
    return 0
  return 1 if states <= {standing.DONE, standing.FAILED} else watch.LOST


def run_point(
    workdir: pathlib.Path, point: points_lib.Point, parent: int | None
) -> int:
  """Trains one point in this process; exit status as of sslam_jax.main.

  Args:
    workdir: The sweep's folder.
    point: Which.
    parent: The process whose end is to stop this one, or None.
  """
  if parent is not None:
    _end_with(parent)
  standing.forget_end(workdir, point)
  last = standing.LastError()
  train.logger.addHandler(last)
  try:
    status = main_lib.status_of(lambda: train.run(point.config))
  except Exception as error:
    standing.note_end(workdir, point, 1, f'{type(error).__name__}: '
                                         f'{errors.first_line(error)}')
    raise
  finally:
    train.logger.removeHandler(last)
  if status:
    standing.note_end(workdir, point, status, last.message)
  if status == watch.LOST:
    processes.leave(status)
  return status


class _Job:
  """The process of a point."""

  def __init__(
      self,
      workdir: pathlib.Path,
      point: points_lib.Point,
      command: Command,
      place: dict[str, str],
  ) -> None:
    self.point, self.place = point, place
    self._workdir, self._told = workdir, False
    standing.forget_end(workdir, point)
    path = standing.log_path(workdir, point)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('ab') as log:
      # In a session of its own, so that Ctrl-C comes through us: once.
      self._process = subprocess.Popen(
          command(point), env={**os.environ, **place}, stdout=log, stderr=log,
          stdin=subprocess.DEVNULL, start_new_session=True,
      )

  def has_ended(self) -> bool:
    """Notes how, where it could not tell."""
    if (status := self._process.poll()) is None:
      return False
    standing.note_lost(self._workdir, self.point, status)
    return True

  def tell(self) -> None:
    """SIGTERM, once: a second one would end it unsaved."""
    if not self._told:
      self._told = True
      self._process.terminate()

  def kill(self) -> None:
    """At once, and its workers."""
    if self._process.poll() is None:
      os.killpg(self._process.pid, signal.SIGKILL)
      self._process.wait()


def _end_with(parent: int) -> None:
  """SIGTERM when the parent is gone, however it ended: where Linux has it."""
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(_ON_PARENTS_END, signal.SIGTERM)
  if os.getppid() != parent:
    sys.exit(3)


