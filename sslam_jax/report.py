"""What a run tells: metrics as JSON lines and TensorBoard events, log, bar."""

import contextlib
import json
import logging
import pathlib
import sys
import time

import numpy as np
import tqdm
from tqdm.contrib import logging as tqdm_logging

METRICS = 'metrics.jsonl'
_LOG = 'log.txt'
_PLAIN_LINE_S = 10.0  # between lines of the log
_BAR = ('{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} '
        '[{elapsed}<{remaining}, {rate_fmt}]{postfix}')

logger = logging.getLogger('sslam_jax')
_file_only = logging.getLogger('sslam_jax.file')  # while a bar is shown


class Report:
  """Writes a run's metrics; continues those of an interrupted run."""

  def __init__(
      self, workdir: str, *, start: int, steps: int, batch: int
  ) -> None:
    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    _drop_lines_after(folder / METRICS, start)
    self._lines = (folder / METRICS).open('a', encoding='utf-8')
    import tensorboardX  # Imports PyTorch where it is: over a second.

    self._events = tensorboardX.SummaryWriter(
        str(folder), purge_step=start + 1  # of what a killed run left
    )
    self._handler = logging.FileHandler(
        folder / _LOG, encoding='utf-8', errors='backslashreplace'
    )
    self._handler.setFormatter(
        logging.Formatter('%(asctime)s %(levelname)s %(message)s')
    )
    for log in (logger, _file_only):
      log.addHandler(self._handler)
      log.setLevel(logging.INFO)
    _file_only.propagate = False
    self._bar = tqdm.tqdm(
        total=steps, initial=start, disable=not sys.stderr.isatty(),
        unit='step', dynamic_ncols=True, bar_format=_BAR,
    )
    # Lines of the log go above the bar, not into it.
    self._redirection = tqdm_logging.logging_redirect_tqdm([logger])
    if not self._bar.disable:
      self._redirection.__enter__()
    self._start, self._steps, self._batch = start, steps, batch
    self._began = self._spoke = self._wrote = time.monotonic()
    self._took_s = np.zeros((1, 2))

  def progress(self, step: int, metrics: dict[str, float]) -> None:
    """Shows that `step` is done, on the terminal."""
    if step == self._start + 1:
      self._began = time.monotonic()  # the first step compiles
    self._bar.update(1)
    terms = ' '.join(f'{name} {value:.4g}' for name, value in metrics.items())
    rate, speed, bar_speed = self._clips_per_s(step), '', ''
    if rate is not None:
      left_s = (self._steps - step) * self._batch / rate
      bar_speed = f'{rate:.1f} clips/s '
      speed = f', {bar_speed[:-1]}, {left_s:.0f} s left'
    self._bar.set_postfix_str(bar_speed + terms, refresh=False)
    quiet_s = time.monotonic() - self._spoke
    is_edge = step in (self._start + 1, self._steps)
    if is_edge or quiet_s > _PLAIN_LINE_S:
      self._spoke = time.monotonic()
      log = logger if self._bar.disable else _file_only
      log.info('step %d/%d%s: %s', step, self._steps, speed, terms)

  def took(self, seconds_Px2: np.ndarray) -> None:
    """Notes how long each process waited for data, and worked on its host."""
    self._took_s = self._took_s + seconds_Px2

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Writes the metrics of `step` to the run folder."""
    rate, now = self._clips_per_s(step), time.monotonic()
    # Since the last line; in the first one is the time to compile.
    # (Other processes' steps may begin a little earlier than this one's.)
    shares = np.minimum(self._took_s / max(now - self._wrote, 1e-9), 1)
    speed = {} if rate is None else {'clips_per_s': rate, **_shares(shares)}
    self._took_s, self._wrote = np.zeros((1, 2)), now
    self._write({'step': step, **metrics, **speed})

  def measured(
      self, step: int, values: dict[str, float], seconds: float
  ) -> None:
    """Writes what an evaluation found; its time does not count as training."""
    self._began += seconds
    self._wrote += seconds
    terms = ' '.join(f'{name} {value:.4g}' for name, value in values.items())
    logger.info('step %d/%d: %s', step, self._steps, terms)
    self._write({'step': step, **values})

  def _write(self, line: dict[str, float]) -> None:
    self._lines.write(json.dumps(line) + '\n')
    self._lines.flush()
    for name, value in line.items():
      if name != 'step':
        self._events.add_scalar(name, value, line['step'])

  def close(self) -> None:
    """Closes all files; a full disk, of which `write` told, is no new error."""
    if not self._bar.disable:
      self._redirection.__exit__(None, None, None)
    self._bar.close()
    for file in (self._lines, self._events):
      with contextlib.suppress(OSError):
        file.close()
    for log in (logger, _file_only):
      log.removeHandler(self._handler)
    self._handler.close()

  def _clips_per_s(self, step: int) -> float | None:
    """Mean rate since the first step of this process; it has none itself."""
    steps = step - self._start - 1
    if not steps:
      return None
    return steps * self._batch / max(time.monotonic() - self._began, 1e-9)


class Silence(Report):
  """The report of a process that is not the first: none."""

  def __init__(self) -> None:
    # Errors still go to the terminal.
    logger.setLevel(logging.ERROR)

  def progress(self, step: int, metrics: dict[str, float]) -> None:
    """See `Report`."""

  def took(self, seconds_Px2: np.ndarray) -> None:
    """See `Report`."""

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """See `Report`."""

  def measured(
      self, step: int, values: dict[str, float], seconds: float
  ) -> None:
    """See `Report`."""

  def close(self) -> None:
    """See `Report`."""


def write_text(path: pathlib.Path, text: str) -> None:
  """Replaces a file at once: a kill leaves the old or the new one."""
  path.parent.mkdir(parents=True, exist_ok=True)
  new = path.with_suffix('.new')
  new.write_text(text, encoding='utf-8')
  new.replace(path)


def read_metrics(workdir: str) -> list[dict[str, float]]:
  """The lines that `Report.write` wrote, in the order of their steps.

  While it writes the last one, or was killed by then, that is left out.
  """
  text = (pathlib.Path(workdir) / METRICS).read_text(encoding='utf-8')
  whole, _, _ = text.rpartition('\n')
  return [json.loads(line) for line in whole.splitlines()]


def _shares(shares_Px2: np.ndarray) -> dict[str, float]:
  """Of the time of all processes; of several, the largest, and whose it is."""
  data, host = shares_Px2.T
  shares = {'data_wait': float(data.mean()), 'host_work': float(host.mean())}
  if len(data) > 1:
    shares |= {'data_wait_max': float(data.max()),
               'host_work_max': float(host.max()),
               'slowest': int((data + host).argmax())}
  return shares


def _drop_lines_after(path: pathlib.Path, step: int) -> None:
  """Removes what was written after the checkpoint a run resumes from."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text(encoding='utf-8').splitlines():
    try:
      if json.loads(line)['step'] <= step:
        kept.append(line + '\n')
    except json.JSONDecodeError:
      continue  # cut off in the middle of a write
  write_text(path, ''.join(kept))
