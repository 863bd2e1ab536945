"""What a run tells: metrics as JSON lines and TensorBoard events, log, bar."""

import json
import logging
import pathlib
import sys
import time

import tensorboardX
import tqdm

METRICS = 'metrics.jsonl'
_LOG = 'log.txt'
_PLAIN_LINE_S = 10.0  # between lines where the output is no terminal

logger = logging.getLogger('sslam_jax')


class Report:
  """Writes a run's metrics; continues those of an interrupted run."""

  def __init__(
      self, workdir: str, *, start: int, steps: int, batch: int
  ) -> None:
    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    _drop_lines_after(folder / METRICS, start)
    self._lines = (folder / METRICS).open('a', encoding='utf-8')
    self._events = tensorboardX.SummaryWriter(
        str(folder), purge_step=start + 1 if start else None
    )
    self._handler = logging.FileHandler(folder / _LOG, encoding='utf-8')
    self._handler.setFormatter(
        logging.Formatter('%(asctime)s %(levelname)s %(message)s')
    )
    logger.addHandler(self._handler)
    logger.setLevel(logging.INFO)
    self._bar = tqdm.tqdm(
        total=steps, initial=start, disable=not sys.stderr.isatty(),
        unit='step', dynamic_ncols=True,
    )
    self._start, self._steps, self._batch = start, steps, batch
    self._began = self._spoke = time.monotonic()

  def progress(self, step: int, metrics: dict[str, float]) -> None:
    """Shows that `step` is done, on the terminal."""
    if step == self._start + 1:
      self._began = time.monotonic()  # the first step compiles
    self._bar.update(1)
    rate = self._clips_per_s(step)
    terms = ' '.join(f'{name} {value:.4g}' for name, value in metrics.items())
    self._bar.set_postfix_str(f'{rate:.1f} clips/s {terms}', refresh=False)
    quiet_s = time.monotonic() - self._spoke
    is_edge = step in (self._start + 1, self._steps)
    if self._bar.disable and (is_edge or quiet_s > _PLAIN_LINE_S):
      self._spoke = time.monotonic()
      left_s = (self._steps - step) * self._batch / rate if rate else 0.0
      logger.info('step %d/%d, %.1f clips/s, %.0f s left: %s', step,
                  self._steps, rate, left_s, terms)

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Writes the metrics of `step` to the run folder."""
    line = {'step': step, **metrics, 'clips_per_s': self._clips_per_s(step)}
    self._lines.write(json.dumps(line) + '\n')
    self._lines.flush()
    for name, value in line.items():
      if name != 'step':
        self._events.add_scalar(name, value, step)

  def close(self) -> None:
    """Closes all files."""
    self._bar.close()
    self._lines.close()
    self._events.close()
    logger.removeHandler(self._handler)
    self._handler.close()

  def _clips_per_s(self, step: int) -> float:
    """Mean rate since the first step of this process."""
    steps = step - self._start - 1
    return steps * self._batch / max(time.monotonic() - self._began, 1e-9)


def read_metrics(workdir: str) -> list[dict[str, float]]:
  """The lines that `Report.write` wrote, in the order of their steps."""
  text = (pathlib.Path(workdir) / METRICS).read_text(encoding='utf-8')
  return [json.loads(line) for line in text.splitlines()]


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
  path.write_text(''.join(kept), encoding='utf-8')
