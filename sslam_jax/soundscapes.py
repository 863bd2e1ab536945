"""Procedural soundscapes: a labelled audio data set that needs no download.

A scene is one to a few sound events of different families (siren, rain,
speech, ...) at random times and levels over a quiet noise floor. What is heard
in it is drawn first, as a cheap plan; its samples are made when first read.
All of it is a function of the seed and the index, in any process.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
import operator

import numpy as np

from sslam_jax import clips as clips_lib

_MIN_LENGTH_S = 0.1
_MIN_RATE_HZ = 8_000
_MIN_EVENT_S = 2.0
_EVENT_GAIN_DB = (-12.0, 0.0)
_FLOOR_DB = (-65.0, -45.0)  # RMS of the background; full scale is 0 dB.
_LOUD_S = 0.05  # An event is as loud as its loudest stretch of this length.
_LOUD_RMS = 0.1
_PEAK = 0.99
_FADE_IN_S, _FADE_OUT_S = 0.003, 0.15
_FIRST_ONSET_S = 0.005  # After the fade-in, which would dull an attack.
_TABLE = 16_384  # Steps of a wavetable: its rounding noise is inaudible.
_FRAME_S = 0.032
_BELL_RATIOS = np.array([0.5, 1.0, 1.19, 1.5, 2.0, 2.52, 3.01, 4.17])
_SCALE = (0, 2, 4, 7, 9, 12, 14, 16)  # Semitones: major pentatonic.
_VOWELS_HZ = np.array(
  [[730, 1090, 2440], [530, 1840, 2480], [270, 2290, 3010], [570, 840, 2410],
   [300, 870, 2240], [660, 1720, 2410], [490, 1350, 1690]]
)  # fmt: skip
_FORMANT_WIDTHS_HZ = (70.0, 100.0, 160.0)
_FORMANT_GAINS = (1.0, 0.6, 0.35)

_Rng = np.random.Generator
_Wave = np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
  """One sound in a scene; `gain_db` is relative to the full event level."""

  family: str
  onset_s: float
  length_s: float
  gain_db: float
  seed: int


@dataclasses.dataclass(kw_only=True)
class Soundscapes:
  """A source of procedural scenes.

  Attributes:
    clips: How many scenes the source holds.
    length_s: Length of every scene.
    rate_hz: Sampling rate of every scene.
    max_events: A scene has 1 to this many events, each of another family.
    seed: Another seed gives another data set.
  """

  clips: int = 4096
  length_s: float = 10.0
  rate_hz: int = 16_000
  max_events: int = 4
  seed: int = 0

  def __post_init__(self) -> None:
    _check('clips', self.clips, 1)
    _check('length_s', self.length_s, _MIN_LENGTH_S)
    _check('rate_hz', self.rate_hz, _MIN_RATE_HZ)
    _check('max_events', self.max_events, 1, len(_FAMILIES))
    _check('seed', self.seed, 0)

  @property
  def classes(self) -> tuple[str, ...]:
    """The names of all families, sorted."""
    return tuple(sorted(_FAMILIES))

  def __len__(self) -> int:
    return self.clips

  def __getitem__(self, index: int) -> clips_lib.Clip:
    events = self.plan(index)
    samples = round(self.length_s * self.rate_hz)
    rng_seed, rate_hz = [self.seed, index, 1], self.rate_hz

    @functools.cache
    def wave() -> _Wave:
      return scene(events, samples, rate_hz, np.random.default_rng(rng_seed))

    return clips_lib.Clip(
      id=f'soundscape-{self.seed}-{index:06d}',
      labels=_labels(events),
      rate_hz=rate_hz,
      samples=samples,
      read=lambda start, count: wave()[start : start + count].copy(),
    )

  def labels(self, index: int) -> tuple[str, ...]:
    """See `clips.Source`."""
    return _labels(self.plan(index))

  def plan(self, index: int) -> tuple[Event, ...]:
    """Draws what happens in a scene, without any audio."""
    if not 0 <= operator.index(index) < self.clips:
      raise IndexError(f'index: want 0 to {self.clips - 1}, got {index}')
    rng = np.random.default_rng([self.seed, index])
    count = rng.integers(1, self.max_events + 1)
    families = rng.choice(self.classes, count, replace=False)
    return tuple(_event(str(name), self.length_s, rng) for name in families)


def _labels(events: Sequence[Event]) -> tuple[str, ...]:
  return tuple(sorted({event.family for event in events}))


def scene(
  events: Sequence[Event], samples: int, rate_hz: int, rng: _Rng
) -> _Wave:
  """Mixes events over a noise floor into float32 [samples] in [-1, 1]."""
  mix = _background(samples, rng)
  for event in events:
    event_rng = np.random.default_rng(event.seed)
    wave = synthesise(event.family, event.length_s, rate_hz, event_rng)
    _add(mix, wave * _amplitude(event.gain_db), round(event.onset_s * rate_hz))
  return (mix * min(1.0, _PEAK / np.abs(mix).max())).astype(np.float32)


def synthesise(family: str, length_s: float, rate_hz: int, rng: _Rng) -> _Wave:
  """Makes one event that fills `length_s`, as float32 [length_s * rate_hz].

  Its loudest 50 ms have an RMS of 0.1, or less where single clicks would then
  leave [-1, 1]. The family is one of `Soundscapes.classes`.
  """
  if family not in _FAMILIES:
    raise ValueError(f'family: want one of {sorted(_FAMILIES)}, got {family!r}')
  _check('length_s', length_s, _MIN_LENGTH_S)
  _check('rate_hz', rate_hz, _MIN_RATE_HZ)
  span = _Span(round(length_s * rate_hz), rate_hz)
  wave = _FAMILIES[family](span, rng)
  # A single zero tilts the spectrum: every family comes dull and bright.
  wave = _filter([1.0, rng.uniform(-0.5, 0.5)], [1.0], wave)
  wave *= _fade(span, _FADE_IN_S, _FADE_OUT_S)
  width = round(_LOUD_S * rate_hz)
  energy = np.cumsum(wave**2)
  loudest = math.sqrt((energy[width:] - energy[:-width]).max() / width)
  gain = min(_LOUD_RMS / loudest, _PEAK / np.abs(wave).max())
  return (wave * gain).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Span:
  """How long a sound is, and at which rate."""

  count: int
  rate_hz: int

  @property
  def length_s(self) -> float:
    return self.count / self.rate_hz

  def part(self, length_s: float) -> '_Span':
    return _Span(max(8, round(length_s * self.rate_hz)), self.rate_hz)

  def seconds(self) -> _Wave:
    return np.arange(self.count) / self.rate_hz

  def unit(self) -> _Wave:
    return np.linspace(0, 1, self.count)


def _check(
  field: str, value: float, low: float, high: float = math.inf
) -> None:
  if not (math.isfinite(value) and low <= value <= high):
    raise ValueError(f'{field}: want {low} to {high}, got {value}')


def _event(family: str, scene_s: float, rng: _Rng) -> Event:
  length_s = min(scene_s, _pick(min(_MIN_EVENT_S, scene_s), scene_s, rng))
  return Event(
    family=family,
    onset_s=rng.uniform(0, scene_s - length_s),
    length_s=length_s,
    gain_db=rng.uniform(*_EVENT_GAIN_DB),
    seed=int(rng.integers(2**32)),
  )


def _background(count: int, rng: _Rng) -> _Wave:
  """Faint noise, from white to nearly brown."""
  pole = rng.uniform(0, 0.98)
  noise = _filter([1.0], [1.0, -pole], _noise(count, rng))
  return noise / noise.std() * _amplitude(rng.uniform(*_FLOOR_DB))


def _amplitude(gain_db: float) -> float:
  return 10 ** (gain_db / 20)


def _pick(low: float, high: float, rng: _Rng) -> float:
  """Draws log-uniformly: so are pitch, tempo and level heard."""
  return math.exp(rng.uniform(math.log(low), math.log(high)))


def _add(mix: _Wave, grain: _Wave, start: int) -> None:
  """Adds a grain in place, cut where it leaves the mix."""
  part = mix[start : start + len(grain)]
  part += grain[: len(part)]


def _fade(span: _Span, in_s: float, out_s: float) -> _Wave:
  """A level of 1 that starts and ends at 0; long fades shrink to fit."""
  steps = np.arange(span.count)
  rise = min(in_s * span.rate_hz, span.count / 3)
  fall = min(out_s * span.rate_hz, span.count / 3)
  return np.minimum(1, np.minimum(steps / rise, steps[::-1] / fall))


def _swell(span: _Span, rng: _Rng) -> _Wave:
  """How a lasting sound comes and goes."""
  return _fade(span, _pick(0.03, 1.5, rng), _pick(0.03, 1.5, rng))


def _wander(times_s: np.ndarray, speed_hz: float, rng: _Rng) -> np.ndarray:
  """A random curve in [-1, 1] with `speed_hz` new values a second."""
  where = times_s * speed_hz + rng.random()
  knots = rng.uniform(-1, 1, int(where.max()) + 2)
  return np.interp(where, np.arange(len(knots)), knots)


def _noise(count: int, rng: _Rng) -> _Wave:
  return rng.standard_normal(count, dtype=np.float32)


def _band(span: _Span, centre_hz: float, width_hz: float, rng: _Rng) -> _Wave:
  """Noise around one frequency, of unit RMS."""
  decay_s = 1 / (np.pi * width_hz)
  wave = _resonate(_noise(span.count, rng), centre_hz, decay_s, span.rate_hz)
  return wave / wave.std()


def _resonate(
  wave: _Wave, centre_hz: float, decay_s: float, rate_hz: int
) -> _Wave:
  """Turns each unit click into a damped sine of amplitude 1."""
  radius = math.exp(-1 / (decay_s * rate_hz))
  angle = 2 * np.pi * min(centre_hz / rate_hz, 0.45)
  poles = [1.0, -2 * radius * math.cos(angle), radius**2]
  return _filter([math.sin(angle)], poles, wave)


def _filter(zeros: list[float], poles: list[float], wave: _Wave) -> _Wave:
  from scipy import signal  # Takes a second, that other data do without.

  return signal.lfilter(zeros, poles, wave)


def _partials(pitch_hz: float, slope: float, rate_hz: int) -> np.ndarray:
  """Amplitudes k**-slope of the harmonics that stay below Nyquist."""
  count = np.clip(0.45 * rate_hz / pitch_hz, 1, 64)
  return np.arange(1.0, int(count) + 1) ** -slope


def _tone(pitch_hz: np.ndarray, partials: np.ndarray, rate_hz: int) -> _Wave:
  """A harmonic sound of moving pitch, read from a wavetable."""
  table = np.fft.irfft(np.append(0, partials), _TABLE) * (_TABLE / 2)
  steps = np.cumsum(pitch_hz) * (_TABLE / rate_hz)
  return table[steps.astype(np.int64) % _TABLE]


def _onsets(
  span: _Span, gap_s: float, rng: _Rng, jitter: float = 0.0,
  group: int | np.int64 = 1, pause_s: float = 0.0,
) -> np.ndarray:  # fmt: skip
  """Times one gap apart, with a further pause after each group."""
  gaps_s = np.full(int(span.length_s / gap_s / (1 - jitter)) + 1, gap_s)
  gaps_s *= rng.uniform(1 - jitter, 1 + jitter, len(gaps_s))
  gaps_s[group::group] += pause_s
  onsets_s = _FIRST_ONSET_S + np.cumsum(gaps_s) - gaps_s[0]
  return onsets_s[onsets_s < span.length_s]


def _shower(span: _Span, per_s: float, spread: float, rng: _Rng) -> _Wave:
  """Clicks at random times, of log-normal strength."""
  total = 1 + rng.poisson(per_s * span.length_s)
  where = rng.integers(0, span.count, total)
  return np.bincount(where, rng.lognormal(0, spread, total), span.count)


def _strew(
  span: _Span, onsets_s: np.ndarray, grains: Sequence[_Wave], rng: _Rng
) -> _Wave:
  """Lays the grains down in turn, each a little louder or softer."""
  wave = np.zeros(span.count)
  for i, onset_s in enumerate(onsets_s):
    grain = grains[i % len(grains)] * rng.uniform(0.7, 1)
    _add(wave, grain, round(onset_s * span.rate_hz))
  return wave


def _grid(span: _Span) -> tuple[np.ndarray, np.ndarray]:
  """Times [frames] and frequencies [bins] of the gains for `_morph`."""
  hop = round(_FRAME_S * span.rate_hz / 2)
  hop_s = hop / span.rate_hz
  times_s = np.arange(math.ceil(span.count / hop) + 1) * hop_s
  return times_s, np.fft.rfftfreq(2 * hop, hop_s / hop)


def _morph(wave: _Wave, gains: np.ndarray) -> _Wave:
  """Filters a wave by gains [frames, bins] that change over time."""
  hop = gains.shape[1] - 1
  padded = np.zeros((len(gains) + 1) * hop, np.float32)
  padded[hop : hop + len(wave)] = wave
  steps = np.arange(2 * hop, dtype=np.float32) + 0.5
  window = np.sin(np.pi / (2 * hop) * steps)  # Squared, overlaps sum to 1.
  views = np.lib.stride_tricks.sliding_window_view(padded, 2 * hop)[::hop]
  spectra = np.fft.rfft(views * window) * gains.astype(np.float32)
  frames = np.fft.irfft(spectra) * window
  return (frames[:-1, hop:] + frames[1:, :hop]).ravel()[: len(wave)]


def _peaked(
  hz: np.ndarray, centre_hz: np.ndarray, width_hz: float
) -> np.ndarray:
  """Gains [frames, bins] of a resonance that moves over the frames."""
  return 1 / (1 + ((hz - centre_hz[:, None]) / width_hz) ** 2)


def _alarm(span: _Span, rng: _Rng) -> _Wave:
  """Beeps of one or two steady pitches, in groups."""
  gap_s = _pick(0.08, 0.6, rng)
  part = span.part(gap_s * rng.uniform(0.4, 0.8))
  beeps = []
  for pitch_hz in _pick(700, 2800, rng) * rng.choice([1.0, 1.0, 1.2, 1.5], 2):
    partials = _partials(pitch_hz, rng.uniform(0.8, 3), span.rate_hz)
    partials[1::2] *= rng.uniform(0, 1)
    tone = _tone(np.full(part.count, pitch_hz), partials, span.rate_hz)
    beeps.append(tone * _fade(part, 0.004, 0.004))
  pause_s = rng.choice([0, gap_s, 0.7])
  onsets_s = _onsets(span, gap_s, rng, 0, rng.integers(2, 9), pause_s)
  return _strew(span, onsets_s, beeps, rng)


def _bell(span: _Span, rng: _Rng) -> _Wave:
  """Strikes that ring long in inharmonic partials."""
  pitches_hz = _BELL_RATIOS * _pick(250, 1400, rng)
  pitches_hz *= rng.uniform(0.98, 1.02, len(pitches_hz))
  decays_s = _pick(0.3, 2, rng) / _BELL_RATIOS**0.7
  onsets_s = _onsets(span, _pick(0.35, 3, rng), rng, 0.1)
  strikes = _strew(span, onsets_s, [np.ones(1)], rng)
  wave = np.zeros(span.count)
  for pitch_hz, decay_s in zip(pitches_hz, decays_s, strict=True):
    ring = _resonate(strikes, pitch_hz, decay_s, span.rate_hz)
    wave += ring * rng.uniform(0.2, 1)
  return wave


def _bird_chirp(span: _Span, rng: _Rng) -> _Wave:
  """A motif of short whistled sweeps and trills, again and again."""
  longest_s = _pick(0.06, 0.25, rng)
  notes = []
  for _ in range(rng.integers(1, 5)):
    unit = span.part(longest_s * rng.uniform(0.5, 1)).unit()
    arch = np.sin(np.pi * unit)
    trill = np.sin(np.pi * rng.uniform(4, 24) * unit)
    octaves = rng.uniform(-0.6, 0.6, 2) @ [unit, arch] + 0.1 * trill
    pitch_hz = np.minimum(_pick(2200, 5000, rng) * 2**octaves, 7000)
    whistle = _tone(pitch_hz, np.array([1, rng.uniform(0, 0.2)]), span.rate_hz)
    notes.append(whistle * arch ** rng.uniform(0.5, 2))
  gap_s, pause_s = longest_s * rng.uniform(1, 1.6), _pick(0.1, 1.2, rng)
  group = len(notes) * rng.integers(1, 4)
  onsets_s = _onsets(span, gap_s, rng, 0.1, group, pause_s)
  return _strew(span, onsets_s, notes, rng)


def _crackle(span: _Span, rng: _Rng) -> _Wave:
  """Fire: pops of very different strength over a soft low roar."""
  flicker = 1 + _wander(span.seconds(), 6, rng)
  roar = _band(span, _pick(80, 300, rng), 250, rng) * flicker
  wave = roar * _pick(0.02, 0.1, rng)
  for _ in range(3):
    pops = _shower(span, _pick(2, 12, rng), 1.2, rng)
    pop_hz, decay_s = _pick(900, 6000, rng), _pick(4e-4, 4e-3, rng)
    wave += _resonate(pops, pop_hz, decay_s, span.rate_hz)
  return wave


def _cricket(span: _Span, rng: _Rng) -> _Wave:
  """A high pure carrier in fast pulses, in chirps or without end."""
  gap_s = 1 / _pick(18, 60, rng)
  unit = span.part(gap_s * rng.uniform(0.5, 0.9)).unit()
  pitch_hz = _pick(3000, 6500, rng) * (1 - 0.03 * unit)
  pulse = _tone(pitch_hz, np.ones(1), span.rate_hz) * np.sin(np.pi * unit) ** 2
  group, pause_s = rng.integers(3, 12), rng.choice([0, 0.1, 0.25, 0.5])
  onsets_s = _onsets(span, gap_s, rng, 0.05, group, pause_s)
  return _strew(span, onsets_s, [pulse], rng)


def _dog_bark(span: _Span, rng: _Rng) -> _Wave:
  """Short harsh barks, the pitch up and down, in groups."""
  top_hz, bark_s = _pick(230, 900, rng), _pick(0.12, 0.3, rng)
  throat_hz, harsh = _pick(500, 1100, rng), rng.uniform(0.3, 1.2)
  barks = []
  for _ in range(3):
    unit = span.part(bark_s * rng.uniform(0.8, 1.2)).unit()
    arch_hz = top_hz * (0.5 + 0.5 * np.sin(np.pi * unit**0.6))
    voice = _tone(arch_hz, _partials(top_hz, 0.4, span.rate_hz), span.rate_hz)
    voice += harsh * _noise(len(unit), rng)
    bark = _resonate(voice, throat_hz, 0.002, span.rate_hz)
    bark += _resonate(voice, 2.3 * throat_hz, 0.002, span.rate_hz)
    barks.append(bark * np.sin(np.pi * unit**0.4) ** 1.5)
  gap_s, pause_s = bark_s * rng.uniform(1.3, 2.2), _pick(0.2, 1.5, rng)
  onsets_s = _onsets(span, gap_s, rng, 0.15, rng.integers(1, 5), pause_s)
  return _strew(span, onsets_s, barks, rng)


def _drum(span: _Span, rng: _Rng) -> _Wave:
  """A kit in a steady beat: kick, snare and hi-hat on a 16-step bar."""
  seconds = span.part(0.3).seconds()
  sweep_hz = _pick(40, 70, rng) * (1 + 4 * np.exp(-seconds / 0.025))
  kick = _tone(sweep_hz, np.ones(1), span.rate_hz) * np.exp(-seconds / 0.07)
  hiss = np.diff(_noise(len(seconds), rng), prepend=0)
  body = np.sin(2 * np.pi * _pick(160, 260, rng) * seconds)
  snare = (0.3 * hiss + 0.5 * body) * np.exp(-seconds / _pick(0.03, 0.1, rng))
  hat = np.diff(hiss, prepend=0) * np.exp(-seconds / _pick(0.01, 0.06, rng))
  step_s = 60 / rng.uniform(85, 180) / 4
  bars_s = np.arange(_FIRST_ONSET_S, span.length_s, 16 * step_s)
  wave = _strew(span, bars_s, [kick], rng)
  for grain, hits in ((kick, 3), (snare, 3), (0.08 * hat, 9)):
    steps = rng.choice(16, hits, replace=False)
    onsets_s = (bars_s[:, None] + steps * step_s).ravel()
    wave += _strew(span, onsets_s, [grain], rng)
  return wave


def _engine(span: _Span, rng: _Rng) -> _Wave:
  """Firing strokes of unequal cylinders, their rate following the throttle."""
  throttle = _wander(span.seconds(), _pick(0.2, 1.5, rng), rng)
  turns_hz = _pick(9, 35, rng) * 2 ** (rng.uniform(0.1, 0.7) * throttle)
  cylinders = rng.integers(2, 7)
  partials = _partials(60, rng.uniform(0.2, 0.9), span.rate_hz)
  partials *= rng.uniform(0, 0.5, len(partials))
  partials[cylinders - 1 :: cylinders] *= 5
  strokes = _tone(turns_hz, partials, span.rate_hz)
  exhaust = _resonate(strokes, _pick(90, 350, rng), 0.004, span.rate_hz)
  air = _band(span, _pick(300, 1500, rng), 1500, rng) * (1.2 + throttle)
  air *= exhaust.std() * _pick(0.1, 0.5, rng)
  return (strokes + exhaust + air) * _swell(span, rng)


def _footsteps(span: _Span, rng: _Rng) -> _Wave:
  """A thud of the heel, then the scuff of the sole on some ground."""
  part = span.part(0.25)
  seconds = part.seconds()
  ground_hz, crunch_s = _pick(700, 4500, rng), _pick(0.01, 0.05, rng)
  roll_s, scuff_level = rng.uniform(0.04, 0.12), _pick(0.2, 1, rng)
  heel = np.sin(2 * np.pi * _pick(60, 160, rng) * seconds)
  heel *= np.exp(-seconds / 0.02)
  steps = []
  for _ in range(4):
    grit = _band(part, ground_hz, ground_hz, rng)
    grit *= scuff_level * (1 + _wander(seconds, 120, rng))
    steps.append(heel + grit * np.exp(-np.abs(seconds - roll_s) / crunch_s))
  onsets_s = _onsets(span, 1 / _pick(1.3, 3.2, rng), rng, 0.06)
  return _strew(span, onsets_s, steps, rng)


def _pluck(span: _Span, rng: _Rng) -> _Wave:
  """A melody on a string: the overtones of each note die first."""
  part = span.part(_pick(0.4, 1.5, rng))
  root_hz, place = _pick(90, 400, rng), rng.uniform(0.1, 0.5)
  damping = _pick(0.05, 0.8, rng)
  notes = []
  for semitones in rng.choice(_SCALE, 5):
    pitch_hz = root_hz * 2 ** (semitones / 12)
    partials = _partials(pitch_hz, 0.8, span.rate_hz)
    order = np.arange(1, len(partials) + 1)
    partials *= np.sin(np.pi * place * order)
    # One row of the table is one period, its overtones weaker than before.
    rows = np.arange(int(pitch_hz * part.length_s) + 1)[:, None] / pitch_hz
    loss_hz = 2 / part.length_s + damping * order**1.5
    spectra = np.pad(partials * np.exp(-rows * loss_hz), ((0, 0), (1, 0)))
    steps = (part.seconds() * (pitch_hz * 512)).astype(np.int64)
    notes.append(np.fft.irfft(spectra, 512).ravel()[steps])
    notes[-1] *= _fade(part, 0.002, 0.02)
  onsets_s = _onsets(span, 1 / _pick(1.5, 6, rng), rng, 0.03)
  return _strew(span, onsets_s, notes, rng)


def _rain(span: _Span, rng: _Rng) -> _Wave:
  """A wide hiss of far drops, and near drops one by one."""
  hiss = _band(span, _pick(2000, 5500, rng), 4000, rng)
  hiss *= 1 + 0.4 * _wander(span.seconds(), 0.7, rng)
  drops = _shower(span, _pick(40, 900, rng), 0.7, rng)
  drop_hz, decay_s = _pick(1200, 4500, rng), _pick(3e-4, 2e-3, rng)
  near = _resonate(drops, drop_hz, decay_s, span.rate_hz)
  near *= rng.uniform(0.2, 1.5) / near.std()
  return (hiss + near) * _swell(span, rng)


def _siren(span: _Span, rng: _Rng) -> _Wave:
  """A loud tone that wails, whoops or alternates between two pitches."""
  turn = (rng.random() + span.seconds() * _pick(0.15, 4, rng)) % 1
  shape = (
    lambda: np.sin(2 * np.pi * turn),
    lambda: np.abs(4 * turn - 2) - 1,
    lambda: 2 * turn - 1,
    lambda: np.where(turn < 0.5, 1.0, -1.0),
  )[rng.integers(4)]()
  pitch_hz = _pick(500, 1100, rng) * rng.uniform(1.15, 1.8) ** shape
  partials = _partials(pitch_hz.max(), rng.uniform(0.7, 2.5), span.rate_hz)
  partials *= rng.uniform(0.3, 1, len(partials))
  return _tone(pitch_hz, partials, span.rate_hz) * _swell(span, rng)


def _speech(span: _Span, rng: _Rng) -> _Wave:
  """Syllables: a consonant of noise, then a vowel whose formants move."""
  times_s, hz = _grid(span)
  gap_s, pause_s = _pick(0.15, 0.3, rng), _pick(0.15, 0.7, rng)
  onsets_s = _onsets(span, gap_s, rng, 0.3, rng.integers(3, 9), pause_s)
  which = np.maximum(np.searchsorted(onsets_s, times_s) - 1, 0)
  since = (times_s - onsets_s[which]) / gap_s  # In syllables.
  lift = 0.3 * _wander(times_s, 3, rng) - 0.1 * since
  pitch_hz = _pick(85, 280, rng) * np.interp(span.seconds(), times_s, 2**lift)
  partials = _partials(pitch_hz.max(), 0.9, span.rate_hz)
  voice = _tone(pitch_hz, partials, span.rate_hz)
  vowels = _vowels(times_s, hz, onsets_s + 0.4 * gap_s, rng)
  vowels *= (np.clip(4 * since - 0.6, 0, 1) * np.exp(-(since**4)))[:, None]
  hiss_hz = rng.uniform(1800, 7000, len(onsets_s))[which]
  level = rng.choice([0, 0.05, 0.15], len(onsets_s))[which]
  level *= np.exp(-((4 * since) ** 2))
  consonants = _peaked(hz, hiss_hz, 1200) * level[:, None]
  return _morph(voice, vowels) + _morph(_noise(span.count, rng), consonants)


def _vowels(
  times_s: np.ndarray, hz: np.ndarray, centres_s: np.ndarray, rng: _Rng
) -> np.ndarray:
  """Formant gains [frames, bins] that glide from vowel to vowel."""
  targets_hz = rng.uniform(0.9, 1.25) * rng.choice(_VOWELS_HZ, len(centres_s))
  gains = np.zeros((len(times_s), len(hz)))
  formants = zip(targets_hz.T, _FORMANT_WIDTHS_HZ, _FORMANT_GAINS, strict=True)
  for target_hz, width_hz, gain in formants:
    path_hz = np.interp(times_s, centres_s, target_hz)
    gains += gain * _peaked(hz, path_hz, width_hz)
  return gains


def _thunder(span: _Span, rng: _Rng) -> _Wave:
  """A bright crack that rolls off into a long low rumble."""
  times_s, hz = _grid(span)
  since_s = times_s % _pick(2.5, 8, rng)
  crack_hz = _pick(600, 3500, rng) * np.exp(-since_s / _pick(0.1, 0.6, rng))
  cutoff_hz = _pick(60, 160, rng) + crack_hz
  level = (1 + _wander(times_s, 7, rng)) * np.exp(-since_s / _pick(0.6, 2, rng))
  level /= np.sqrt(cutoff_hz)
  gains = level[:, None] / (1 + (hz / cutoff_hz[:, None]) ** 3)
  return _morph(_noise(span.count, rng), gains)


def _water_drip(span: _Span, rng: _Rng) -> _Wave:
  """Sparse plinks: bubbles whose pitch rises as they close."""
  unit = span.part(0.12).unit()
  drips = []
  for _ in range(4):
    rise_hz = _pick(500, 2000, rng) * (1 + rng.uniform(0.3, 1.5) * unit)
    bubble = _tone(rise_hz, np.ones(1), span.rate_hz)
    fall = np.exp(-unit / _pick(0.06, 0.3, rng))
    drips.append(bubble * np.minimum(40 * unit, 1) * fall)
  onsets_s = _onsets(span, 1 / _pick(0.8, 6, rng), rng, 0.5)
  return _strew(span, onsets_s, drips, rng)


def _wind(span: _Span, rng: _Rng) -> _Wave:
  """Noise whose colour and level follow the gusts."""
  times_s, hz = _grid(span)
  gust = _wander(times_s, _pick(0.5, 2, rng), rng)
  howl_hz = _pick(200, 700, rng) * 2 ** (rng.uniform(0.3, 1) * gust)
  gains = _peaked(hz, howl_hz, _pick(40, 250, rng))
  gains += rng.uniform(0.2, 1) / (1 + (hz / _pick(80, 200, rng)) ** 2)
  gains *= np.exp(rng.uniform(0.5, 1.5) * gust)[:, None]
  return _morph(_noise(span.count, rng), gains) * _swell(span, rng)


_FAMILIES: dict[str, Callable[[_Span, _Rng], _Wave]] = {
  'alarm': _alarm,
  'bell': _bell,
  'bird_chirp': _bird_chirp,
  'crackle': _crackle,
  'cricket': _cricket,
  'dog_bark': _dog_bark,
  'drum': _drum,
  'engine': _engine,
  'footsteps': _footsteps,
  'pluck': _pluck,
  'rain': _rain,
  'siren': _siren,
  'speech': _speech,
  'thunder': _thunder,
  'water_drip': _water_drip,
  'wind': _wind,
}
