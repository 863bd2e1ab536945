"""What every data source yields: a clip that is described now, read later.

A source holds up to millions of clips, and a training example needs only a
part of each: so a clip carries its length and a function that reads a part.
"""

from collections.abc import Callable
import dataclasses
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """One recording.

  Attributes:
    id: Unique within its source; for a file, its path.
    labels: Names of the classes heard in it; empty where unknown.
    rate_hz: Sampling rate of `samples` and `read`.
    samples: Length at `rate_hz`.
    read: `(start, count)` -> float32 [count] in [-1, 1], channels averaged.
  """

  id: str
  labels: tuple[str, ...]
  rate_hz: int
  samples: int
  read: Callable[[int, int], np.ndarray] = dataclasses.field(repr=False)


class BadClip(ValueError):
  """A clip that is no usable audio: `clip_id`, for a file its path."""

  def __init__(self, clip_id: str, reason: str) -> None:
    super().__init__(clip_id, reason)  # What unpickling passes on.
    self.clip_id = clip_id
    self.reason = reason

  def __str__(self) -> str:
    return f'{self.clip_id}: want readable audio, got {self.reason}'


class Source(Protocol):
  """A data set with random access; an instance is also its configuration.

  Asking for a clip, or reading it, raises BadClip where it is damaged.
  """

  @property
  def classes(self) -> tuple[str, ...]:
    """All labels."""

  def __len__(self) -> int:
    ...

  def __getitem__(self, index: int) -> Clip:
    ...

  def labels(self, index: int) -> tuple[str, ...]:
    """Those of clip `index`, which is not opened for them."""
