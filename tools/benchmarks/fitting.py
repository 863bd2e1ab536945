"""Straight lines through measured points."""

from collections.abc import Sequence
import dataclasses

import numpy as np


@dataclasses.dataclass(kw_only=True)
class Line:
  """y = intercept + slope * x, by least squares."""

  slope: float
  intercept: float

  def __call__(self, x: float) -> float:
    return self.intercept + self.slope * x


def line(x: Sequence[float], y: Sequence[float]) -> Line | None:
  """None where the points do not lie at two places."""
  if len(set(x)) < 2:
    return None
  slope, intercept = np.polyfit(x, y, 1)
  return Line(slope=float(slope), intercept=float(intercept))
