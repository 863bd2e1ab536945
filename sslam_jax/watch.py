"""Where the loop is, and whether all processes of a job go on.

Every process tells the others, through the service of JAX that joins them,
every two seconds where its loop is. So one that is gone, stopped or hangs is
named by the others, which otherwise wait for it in a collective operation, and
all end. With one process the loop's own times remain.
"""

import collections
import contextlib
import json
import logging
import sys
import threading
import time
import traceback
import types
from typing import Any, NamedTuple, NoReturn, Self

import jax

from sslam_jax import errors
from sslam_jax import processes

_PULSE_S = 2.0
_LOOK_S = 0.5
# A process that tells nothing for so long hangs as a whole, or is gone.
_SILENT_S = 20.0
# The same once a collective operation has failed; and until those that see a
# process end for a reason of its own have had time to end for the same.
_SURE_S = 3 * _PULSE_S
LOST = 4  # exit status: what hung or was lost may work when started again

_logger = logging.getLogger('sslam_jax')


class Pulse(NamedTuple):
  """What a process tells.

  Attributes:
    number: Grows with every pulse.
    host: Where it runs.
    passed: Places that its loop has passed since its first step, which takes
      any time to compile: the same ones in all processes.
    step: Of the loop.
    place: In the loop.
    since_s: How long it has been there.
    is_done: Whether its loop has ended.
    reason: Why, where that was too early.
    status: Exit status that goes with the reason.
  """

  number: int
  host: str
  passed: int
  step: int
  place: str
  since_s: float
  is_done: bool
  reason: str | None
  status: int


class Seen(NamedTuple):
  """The last pulse of a process, and how long ago it was new."""

  pulse: Pulse
  age_s: float


class Verdict(NamedTuple):
  """Why this process ends with which status, and which process is at fault."""

  process: int
  reason: str
  status: int


def judge(
    seen: dict[int, Seen],
    *,
    unanswered_s: float,
    patience_s: float | None,
    is_sure: bool = False,
) -> Verdict | None:
  """Which process keeps the others waiting in vain, if any.

  Args:
    seen: All processes, by their index, but those not heard of yet.
    unanswered_s: How long the service, which is in process 0, has been silent.
    patience_s: How long one process may be at a place that others have passed;
      None: for ever.
    is_sure: Whether one is known to be gone.
  """
  for index, (pulse, age_s) in seen.items():
    if pulse.reason and (is_sure or age_s > _SURE_S):
      return Verdict(index, pulse.reason, pulse.status)
  limit_s = _SURE_S if is_sure else _SILENT_S
  silent = {0: unanswered_s} if unanswered_s > _SURE_S else {
      index: age_s for index, (pulse, age_s) in seen.items()
      if not pulse.is_done
  }
  for index, age_s in silent.items():
    if age_s > limit_s:
      return Verdict(index, f'has been silent for {age_s:.0f} s: it hangs, was '
                     f'stopped or is gone', LOST)
  running = {index: pulse for index, (pulse, _) in seen.items()
             if not pulse.is_done and pulse.passed}
  furthest = max((pulse.passed for pulse in running.values()), default=0)
  for index, pulse in running.items():
    # (One that waits for a batch ends by itself before, and knows more.)
    if pulse.passed < furthest and patience_s is not None and (
        pulse.since_s > patience_s + _SURE_S
    ):
      return Verdict(index, f'has been {pulse.place} at step {pulse.step} for '
                     f'{pulse.since_s:.0f} s (patience_s: {patience_s:g}), and '
                     f'others wait for it', LOST)
  return None


class Watch:
  """Follows the loop of this process, and those of the others."""

  def __init__(self, patience_s: float | None) -> None:
    self._patience_s = patience_s
    self._at = 0, 0, 'starting', time.monotonic()
    self._first: int | None = None  # step
    self._spent: dict[str, float] = collections.defaultdict(float)
    self._is_done, self._is_sure = False, False
    self._reason: str | None = None
    self._status = 0
    self._seen: dict[int, tuple[Pulse, float]] = {}  # and when it came
    self._answered = time.monotonic()
    self._wake, self._told = threading.Event(), threading.Event()
    self._ending = threading.Lock()  # never released: there is one end
    self._is_alone = jax.process_count() == 1

  def __enter__(self) -> Self:
    if not self._is_alone:
      for target in (self._pulse, self._look):
        threading.Thread(target=target, daemon=True).start()
    return self

  def __exit__(
      self,
      kind: type[BaseException] | None,
      error: BaseException | None,
      trace: types.TracebackType | None,
  ) -> None:
    if error is not None:
      self.close(str(error) or type(error).__name__)
    self.close()

  def at(self, step: int, place: str) -> None:
    """The loop comes to a place; all processes pass the same ones."""
    passed, _, before, since = self._at
    now = time.monotonic()
    self._spent[before] += now - since
    if self._first is None:
      self._first = step
    self._at = passed + (step > self._first), step, place, now

  def take_spent(self, place: str) -> float:
    """Seconds at a place since this was last asked."""
    return self._spent.pop(place, 0.0)

  def close(self, reason: str | None = None, status: int = 1) -> None:
    """Ends the watch; the others are told why, if that was too early."""
    if self._is_done:
      return
    self._reason, self._status, self._is_done = reason, status, True
    if not self._is_alone:
      self._wake.set()
      self._told.wait(_PULSE_S)  # or the service hangs

  def end(self, reason: str) -> NoReturn:
    """Ends this process for a reason that the others are told."""
    self.close(reason, LOST)
    _end(reason, LOST)

  def end_without_others(self, error: Exception) -> NoReturn:
    """Ends this process after a collective operation failed; says why."""
    self._is_sure = True
    time.sleep(_SURE_S + 2 * _PULSE_S)  # in which `_look` finds the reason
    self._ending.acquire()
    self.end(f'another process of this job ended or cannot be reached '
             f'({errors.first_line(error)})')

  def _pulse(self) -> None:
    board, number, is_last = processes.Board(), 0, False
    while not is_last:
      passed, step, place, since = self._at
      is_last, number = self._is_done, number + 1
      pulse = Pulse(number, processes.host(), passed, step, place,
                    time.monotonic() - since, is_last, self._reason,
                    self._status)
      # Where it fails, `_look` finds that there is no answer.
      with contextlib.suppress(RuntimeError):
        board.post(json.dumps(pulse))
        self._note(board.read())
      if not is_last:
        self._wake.wait(_PULSE_S)
    self._told.set()

  def _note(self, texts: dict[int, str]) -> None:
    self._answered = now = time.monotonic()
    for index, text in texts.items():
      pulse, before = Pulse(*json.loads(text)), self._seen.get(index)
      if before is None or before[0].number != pulse.number:
        self._seen[index] = pulse, now

  def _look(self) -> None:
    looked = awake = time.monotonic()
    while not self._is_done:
      time.sleep(_LOOK_S)
      now = time.monotonic()
      if now - looked > _PULSE_S:
        awake = now  # this process was stopped, not the others
      looked = now
      seen = {index: Seen(pulse, now - max(came, awake))
              for index, (pulse, came) in self._seen.copy().items()}
      verdict = judge(
          seen, unanswered_s=now - max(self._answered, awake),
          patience_s=self._patience_s, is_sure=self._is_sure,
      )
      if verdict is not None and not self._is_done:
        found = seen.get(verdict.process)
        self._end_by(verdict, found.pulse.host if found else 'an unknown host')

  def _end_by(self, verdict: Verdict, host: str) -> NoReturn:
    self._ending.acquire()
    if verdict.process == jax.process_index():
      _logger.error('this process hangs at:\n%s', _stack())
    _end(f'process {verdict.process} on {host}: {verdict.reason}',
         verdict.status)


def _stack() -> str:
  """Where the loop's thread is, as a traceback."""
  ident: Any = threading.main_thread().ident
  return ''.join(traceback.format_stack(sys._current_frames()[ident]))


def _end(reason: str, status: int) -> NoReturn:
  again = ('; start the job again, it goes on from its last checkpoint'
           if status == LOST else '')
  _logger.error('stopped: %s%s', reason, again)
  processes.leave(status)
