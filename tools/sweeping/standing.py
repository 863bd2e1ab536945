"""How far each point is, read from its run folder and from how it ended.

A run tells of itself in its folder; how its process ended is in
DIR/logs/NAME.json, and all that it printed in DIR/logs/NAME.log.
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
import signal

from sslam_jax import checkpoint
from sslam_jax import errors
from sslam_jax import evaluate
from sslam_jax import report
from tools.sweeping import points as points_lib
from tools.sweeping import scores

WAITING, RUNNING, DONE, FAILED, INTERRUPTED, UNFINISHED = (
    'waiting', 'running', 'done', 'failed', 'interrupted', 'unfinished'
)
# Exit statuses and signals after which the same command goes on.
_GOES_ON = (3, 4, 130, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
  """How far a point is.

  Attributes:
    state: One of the words above; `unfinished`: running elsewhere, or killed.
    step: Of the last line of metrics; 0 before it.
    steps: Of the whole run.
    clips_per_s: None while it is not known.
    left_s: At this rate.
    rows: Its metrics so far.
    status: Exit status of a process that failed or was interrupted.
    reason: Its last error.
  """

  state: str
  step: int
  steps: int
  clips_per_s: float | None
  left_s: float | None
  rows: list[dict[str, float]]
  status: int | None
  reason: str


def look(
    workdir: pathlib.Path, point: points_lib.Point, *, is_running: bool = False
) -> Standing:
  """How far a point is; only who started it can know that it is running."""
  config, rows = point.config, _rows(point)
  steps = [row for row in rows if 'loss' in row]
  step = int(steps[-1]['step']) if steps else 0
  rate = steps[-1].get('clips_per_s') if steps else None
  status, reason = None, ''
  if is_running:
    state = RUNNING
  elif is_finished(point, rows):
    state = DONE
  elif end := ended(workdir, point.name):
    status, reason = end
    state = INTERRUPTED if status in _GOES_ON else FAILED
  else:
    exists = pathlib.Path(config.workdir).is_dir()
    state = UNFINISHED if exists else WAITING
    reason = 'running elsewhere, or killed' if exists else 'never begun'
  left_s = (config.steps - step) * config.batch / rate if rate else None
  return Standing(
      state=state, step=step, steps=config.steps, clips_per_s=rate,
      left_s=left_s, rows=rows, status=status, reason=reason,
  )


def is_finished(
    point: points_lib.Point, rows: list[dict[str, float]]
) -> bool:
  """Whether its last step is saved and all was evaluated after it."""
  config = point.config
  last = [row for row in rows if row['step'] == config.steps]
  names = {evaluation.name for evaluation in config.evals}
  is_evaluated = evaluate.measured(
      (row for row in last if 'loss' not in row), config.evals
  ) == names
  return bool(last) and is_evaluated and (
      checkpoint.latest_step(config.workdir) == config.steps
  )


def ended(workdir: pathlib.Path, name: str) -> tuple[int, str] | None:
  """Status and reason of a point's last attempt, if it did not end well."""
  path = _end_path(workdir, name)
  if not path.exists():
    return None
  end = json.loads(path.read_text(encoding='utf-8'))
  return end['status'], end['reason']


def log_path(workdir: pathlib.Path, point: points_lib.Point) -> pathlib.Path:
  """Where a point's process prints to."""
  return workdir / 'logs' / f'{point.name}.log'


def forget_end(workdir: pathlib.Path, point: points_lib.Point) -> None:
  """A new attempt begins."""
  _end_path(workdir, point.name).unlink(missing_ok=True)


def note_end(
    workdir: pathlib.Path, point: points_lib.Point, status: int, reason: str
) -> None:
  """Keeps how an attempt ended."""
  end = {'status': status, 'reason': reason}
  report.write_text(_end_path(workdir, point.name), json.dumps(end) + '\n')


def note_lost(
    workdir: pathlib.Path, point: points_lib.Point, status: int
) -> None:
  """Keeps how a process ended that could not tell."""
  if _end_path(workdir, point.name).exists() or status == 0:
    return
  text = log_path(workdir, point).read_text('utf-8', errors='replace')
  lines = text.strip().splitlines() or ['it said nothing']
  reason = lines[-1]
  if status < 0:
    name = signal.Signals(-status).name
    memory = ' (want of memory?)' if status == -signal.SIGKILL else ''
    reason = f'ended by {name}{memory}; its last line: {reason}'
  note_end(workdir, point, status, reason)


def newest_scores(rows: list[dict[str, float]]) -> dict[str, float]:
  """What the last evaluation found, or the losses where there is none."""
  found = scores.evaluated(rows)
  means = scores.trained(rows)
  return found or {name: means[name] for name in scores.losses(means)
                   if name != 'loss'}


def last_loss(rows: list[dict[str, float]]) -> float | None:
  """Of the last logged step."""
  return next((row['loss'] for row in reversed(rows) if 'loss' in row), None)


class LastError(logging.Handler):
  """Remembers the last error that was logged, on one line as tables want."""

  def __init__(self) -> None:
    super().__init__(logging.ERROR)
    self.message = ''

  def emit(self, record: logging.LogRecord) -> None:
    message = record.getMessage()
    if record.exc_info and record.exc_info[1]:
      message += f': {errors.first_line(record.exc_info[1])}'
    self.message = ' '.join(message.split())


def _rows(point: points_lib.Point) -> list[dict[str, float]]:
  with contextlib.suppress(FileNotFoundError):
    return report.read_metrics(point.config.workdir)
  return []


def _end_path(workdir: pathlib.Path, name: str) -> pathlib.Path:
  return workdir / 'logs' / f'{name}.json'
