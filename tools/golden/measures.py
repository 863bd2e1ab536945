"""How far two arrays are apart, and what passes."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tolerance:
  """How far ours may be from the official numbers.

  Attributes:
    limit: Largest error that passes.
    unit: 'rel': relative to each official value; 'of norm': norm of the
      difference relative to the official norm; 'mean abs'; else the largest
      absolute error, in units of `scale`.
    scale: A number, or one for each element.
  """

  limit: float
  unit: str
  scale: float | np.ndarray = 1.0

  def by(self, scale: float | np.ndarray) -> 'Tolerance':
    return dataclasses.replace(self, scale=scale)

  def measure(
      self, ours: np.ndarray, official: np.ndarray
  ) -> tuple[Any, Any, Any]:
    """A number for either array, and the error."""
    difference = np.abs(ours - official)
    if self.unit == 'of norm':
      norm = l2(official, 0)
      return l2(ours, 0), norm, _quotient(l2(difference, 0), norm)
    if self.unit == 'mean abs':
      return ours.mean(), official.mean(), (difference / self.scale).mean()
    scale = np.abs(official) if self.unit == 'rel' else self.scale
    error = _quotient(difference, scale).reshape(-1)
    worst = int(np.argmax(error))  # NaN counts as the largest
    return ours.flat[worst], official.flat[worst], error[worst]


# All tolerances are for float32 on a CPU on both sides.
EQUAL = Tolerance(0.0, 'abs')
VALUES = Tolerance(5e-5, 'abs')  # features, predictions, targets, of order 1
NORM = Tolerance(1e-5, 'rel')  # l2 norms
LOSS = Tolerance(1e-5, 'rel')  # and logged values


def l2(x: Any, kept_axes: int) -> np.ndarray:
  """Norms, in float64, over all but the first axes."""
  x = np.asarray(x, np.float64)
  return np.sqrt(np.sum(x**2, axis=tuple(range(kept_axes, x.ndim))))


def _quotient(error: Any, scale: Any) -> np.ndarray:
  """No error is none on any scale."""
  with np.errstate(divide='ignore', invalid='ignore'):
    return np.where(np.equal(error, 0), 0.0, np.divide(error, scale))
