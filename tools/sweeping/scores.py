"""What a run has come to: its scores, and how they vary over seeds."""

import statistics
from collections.abc import Iterable, Sequence

from sslam_jax import train

Rows = Sequence[dict[str, float]]

# Losses of single batches vary more than those of settings differ.
LAST_ROWS = 10


def evaluated(rows: Rows) -> dict[str, float]:
  """What the evaluations found, when they ran last; lines of `metrics.jsonl`.

  A line of an evaluation has no loss.
  """
  lines = [row for row in rows if 'loss' not in row]
  last = [row for row in lines if row['step'] == lines[-1]['step']]
  return {name: value for row in last for name, value in row.items()
          if name != 'step'}


def trained(rows: Rows) -> dict[str, float]:
  """Every metric of training: mean over the last 10 lines that have it."""
  lines = [row for row in rows if 'loss' in row][-LAST_ROWS:]
  names = dict.fromkeys(name for row in lines for name in row)
  return {name: statistics.fmean(row[name] for row in lines if name in row)
          for name in names if name != 'step'}


def losses(names: Iterable[str]) -> list[str]:
  """Those that are a loss or a part of one."""
  return [name for name in names
          if name == 'loss' or name.startswith(train.TERMS)]


def is_better_small(name: str) -> bool:
  """Whether it is a loss, of training or of an evaluation."""
  return bool(losses([name])) or name.endswith('loss')


def deviation(values: Sequence[float]) -> float | None:
  """Standard deviation of a sample; None of a single value."""
  return statistics.stdev(values) if len(values) > 1 else None


def cell(
    values: Sequence[float],
    count: int,
    *,
    mean: str = '.4g',
    spread: str = '.2g',
) -> str:
  """Mean ± deviation, for a table; its own n where not all of `count` have it.

  `mean` and `spread` say how the two are written.
  """
  if not values:
    return ''
  sd = deviation(values)
  deviates = '' if sd is None else f' ± {sd:{spread}}'
  own = '' if len(values) == count else f' (n = {len(values)})'
  return f'{statistics.fmean(values):{mean}}{deviates}{own}'
