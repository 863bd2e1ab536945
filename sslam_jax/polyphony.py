"""Labelled mixtures of a source's clips: polyphonic audio with known sources.

A mixture is clips of different labels at random levels, all of which sound
together with its longest one; its labels are theirs. Which clips, where and how
loud is drawn first, as a cheap plan; the recordings are read when the mixture
is, and a damaged one raises BadClip under its own id. All of it is a function
of the seed and the index, in any process.
"""

import collections
import dataclasses
import functools
import math
import operator

import numpy as np

from sslam_jax import clips as clips_lib
from sslam_jax import resampling

_LOUD_S = 0.05  # A source is as loud as its loudest stretch of this length.
_LOUD_RMS = 10 ** (-30 / 20)  # of full scale, at a gain of 0 dB
_SILENT_RMS = 10 ** (-80 / 20)  # What is quieter is not made as loud as that.
_PEAK = 0.99


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """One clip of a mixture.

  Attributes:
    index: Of the clip, in the source that is mixed.
    place: In 0 to 1: where its middle is, within the longest part; for that
      one itself, how far into the mixture it starts.
    gain_db: Below the common level.
  """

  index: int
  place: float
  gain_db: float


@dataclasses.dataclass(kw_only=True)
class Mixtures:
  """A source of mixtures.

  Attributes:
    source: Clips with one label each; those without a label are left out.
    clips: How many mixtures. Mixture i has 1 + i % `max_sources` clips, so
      that each number of them is as frequent.
    max_sources: See there. Labels are drawn first, each as likely as any other,
      then a clip of each.
    length_s: Length of every mixture. A clip that is longer is cut at its end.
    gain_db: Levels are drawn between these, relative to a loudest 50 ms of
      -30 dB of full scale. What would clip is turned down as a whole.
    rate_hz: Sampling rate of every mixture; clips are resampled to it.
    seed: Another seed gives other mixtures.
  """

  source: clips_lib.Source
  clips: int = 1000
  max_sources: int = 4
  length_s: float = 5.0
  gain_db: tuple[float, float] = (-10.0, 0.0)
  rate_hz: int = 16_000
  seed: int = 0

  def __post_init__(self) -> None:
    for name in ('clips', 'max_sources', 'rate_hz'):
      _check(getattr(self, name) >= 1, name, 'at least 1', getattr(self, name))
    _check(self.seed >= 0, 'seed', 'at least 0', self.seed)
    _check(1 <= self.length_s * self.rate_hz < math.inf, 'length_s',
           'a sample at least', self.length_s)
    low, high = self.gain_db
    _check(-math.inf < low <= high < math.inf, 'gain_db', '(lowest, highest)',
           self.gain_db)

  @property
  def classes(self) -> tuple[str, ...]:
    """Those of the source."""
    return self.source.classes

  def __len__(self) -> int:
    return self.clips

  def __getitem__(self, index: int) -> clips_lib.Clip:
    parts = self.plan(index)
    samples = round(self.length_s * self.rate_hz)

    @functools.cache
    def wave() -> np.ndarray:
      return self._mixed(parts, samples)

    return clips_lib.Clip(
        id=f'mixture-{self.seed}-{index:06d}', labels=self._labels(parts),
        rate_hz=self.rate_hz, samples=samples,
        read=lambda start, count: wave()[start : start + count].copy(),
    )

  def labels(self, index: int) -> tuple[str, ...]:
    """See `clips.Source`."""
    return self._labels(self.plan(index))

  def plan(self, index: int) -> tuple[Part, ...]:
    """Draws what a mixture is made of, without any audio.

    Raises:
      ValueError: The source has fewer labels than `max_sources`, or a clip with
        several.
    """
    if not 0 <= operator.index(index) < self.clips:
      raise IndexError(f'index: want 0 to {self.clips - 1}, got {index}')
    _check(len(self._by_label) >= self.max_sources, 'max_sources',
           f'at most the {len(self._by_label)} labels of the clips',
           self.max_sources)
    rng = np.random.default_rng([self.seed, index])
    count = 1 + index % self.max_sources
    labels = rng.choice(len(self._by_label), count, replace=False)
    return tuple(
        Part(index=int(rng.choice(self._by_label[label])),
             place=float(rng.uniform()),
             gain_db=float(rng.uniform(*self.gain_db)))
        for label in labels
    )

  @functools.cached_property
  def _by_label(self) -> list[np.ndarray]:
    """The clips of each label that has some."""
    found = collections.defaultdict(list)
    for index in range(len(self.source)):
      labels = self.source.labels(index)
      _check(len(labels) < 2, f'mixtures of clips: clip {index}',
             'at most one label', labels)
      for label in labels:
        found[label].append(index)
    return [np.array(found[label]) for label in self.classes if label in found]

  def _labels(self, parts: tuple[Part, ...]) -> tuple[str, ...]:
    return tuple(sorted({label for part in parts
                         for label in self.source.labels(part.index)}))

  def _mixed(self, parts: tuple[Part, ...], samples: int) -> np.ndarray:
    """float32 [samples] in [-1, 1]."""
    heard = [(part, self._heard(part, samples)) for part in parts]
    heard.sort(key=lambda pair: -len(pair[1]))
    mix_S, longest = np.zeros(samples, np.float32), len(heard[0][1])
    begin = round(heard[0][0].place * (samples - longest))
    for number, (part, wave_S) in enumerate(heard):
      start = begin
      if number:
        start += round(part.place * longest) - len(wave_S) // 2
        start = min(max(start, 0), samples - len(wave_S))
      mix_S[start : start + len(wave_S)] += wave_S
    return mix_S * np.float32(_PEAK / max(np.abs(mix_S).max(), _PEAK))

  def _heard(self, part: Part, samples: int) -> np.ndarray:
    """A clip at its level: float32, at most [samples]."""
    clip = self.source[part.index]
    needed = -(-samples * clip.rate_hz // self.rate_hz)
    wave_S = clip.read(0, min(clip.samples, needed))
    wave_S = resampling.resample(wave_S, clip.rate_hz, self.rate_hz)[:samples]
    loudest = _loudest_rms(wave_S, round(_LOUD_S * self.rate_hz))
    level = _LOUD_RMS * 10 ** (part.gain_db / 20)
    return wave_S * np.float32(level / max(loudest, _SILENT_RMS))


def _loudest_rms(wave_S: np.ndarray, width: int) -> float:
  """RMS of the loudest `width` samples; of all, where there are fewer."""
  width = max(1, min(width, len(wave_S)))
  energy = np.cumsum(np.square(wave_S, dtype=np.float64))
  energy = np.concatenate([[0.0], energy])
  return math.sqrt(max((energy[width:] - energy[:-width]).max(initial=0.0), 0)
                   / width)


def _check(valid: bool, what: str, wanted: str, got: object) -> None:
  if not valid:
    raise ValueError(f'{what}: want {wanted}, got {got!r}')
