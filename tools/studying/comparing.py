"""Arms compared seed by seed: differences, and how sure they are."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from scipy import stats

from tools.studying import runs as runs_lib

BASELINE = 'mb_ua'
_LEVEL = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
  """Of an arm and the baseline, over the seeds that both have.

  Attributes:
    count: How many seeds.
    mean: Mean difference.
    spread: Half the length of its interval of Student's t, 95 %; None of a
      single seed.
    ahead: In how many seeds the arm is above the baseline.
  """

  count: int
  mean: float
  spread: float | None
  ahead: int

  @property
  def is_beyond_0(self) -> bool | None:
    """Whether the interval leaves out 0; None where there is none."""
    return None if self.spread is None else abs(self.mean) > self.spread


def paired(
    scores: runs_lib.Scores, label: str, column: runs_lib.Column
) -> list[float]:
  """The differences of an arm and the baseline, of each seed of both."""
  ours, theirs = scores.get(label, {}), scores.get(BASELINE, {})
  return [ours[seed][column] - theirs[seed][column]
          for seed in sorted(ours.keys() & theirs.keys())
          if column in ours[seed] and column in theirs[seed]]


def difference(values: Sequence[float]) -> Difference:
  """Mean and interval of at least one difference."""
  count, spread = len(values), None
  if count > 1:
    quantile = float(stats.t.ppf((1 + _LEVEL) / 2, count - 1))
    spread = quantile * statistics.stdev(values) / math.sqrt(count)
  return Difference(count=count, mean=statistics.fmean(values), spread=spread,
                    ahead=sum(value > 0 for value in values))
