"""Recordings of a source as the records of a pack's shard."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import dataclasses
import io
import json
import math
import os
import shlex
from typing import Any

from array_record.python import array_record_module
import numpy as np
import soundfile

from sslam_jax import clips as clips_lib
from sslam_jax import packs
from sslam_jax import resampling

# One record per chunk: so reading one decodes no other. FLAC is compressed.
_WRITER = 'group_size:1,uncompressed'
_MAX_FLAC_HZ = 655_350  # Of libFLAC 1.3; later ones take more.
_MIN_PIECE_S = 0.1
# Longer recordings are read in blocks of this many samples: 24 s at 44.1 kHz.
_BLOCK_SAMPLES = 2**20
# On each side, at the lower of the two rates: more than the resampler uses.
_MARGIN_SAMPLES = 64


@dataclasses.dataclass(kw_only=True)
class Settings:
  """How a pack is made.

  Attributes:
    source: The recordings, as `catalogue.source` takes them.
    shards: How many files the pack has.
    rate_hz: Sampling rate; None: each recording keeps its own.
    resampler: As `resampling.resample`.
    max_s: Longer recordings are cut into pieces of this length; None: none.
    min_s: Recordings and last pieces shorter than this are left out.
    bits: Of a sample, 16 or 24.
  """

  source: str
  shards: int
  rate_hz: int | None = 16_000
  resampler: resampling.Resampler = 'sinc_hann'
  max_s: float | None = 60.0
  min_s: float = 0.0
  bits: int = 16

  def __post_init__(self) -> None:
    _check(self.shards >= 1, 'shards', 'at least 1', self.shards)
    if self.rate_hz is not None:
      wanted = f'1 to {_MAX_FLAC_HZ}, or none'
      _check(1 <= self.rate_hz <= _MAX_FLAC_HZ, 'rate_hz', wanted, self.rate_hz)
    choices = resampling.RESAMPLERS
    known = self.resampler in choices
    _check(known, 'resampler', ' or '.join(choices), self.resampler)
    if self.max_s is not None:
      long = _MIN_PIECE_S <= self.max_s < math.inf
      _check(long, 'max_s', f'at least {_MIN_PIECE_S}, or none', self.max_s)
    longest = math.inf if self.max_s is None else self.max_s
    _check(0 <= self.min_s <= longest, 'min_s', '0 to max_s', self.min_s)
    _check(self.bits in (16, 24), 'bits', '16 or 24', self.bits)

  def file(self, number: int) -> str:
    """Name of a shard."""
    return file(number, self.shards)

  def indices(self, number: int, recordings: int) -> range:
    """Which recordings of a source go into a shard."""
    first = recordings * number // self.shards
    return range(first, recordings * (number + 1) // self.shards)

  def command(self) -> str:
    """What makes a pack with these settings, but for its folder."""
    words = ['python', 'tools/pack_audio.py', self.source]
    values = dataclasses.asdict(self)
    for field in dataclasses.fields(self):
      value = values[field.name]
      if field.name != 'source' and value != field.default:
        words.append(f'--{field.name}={"none" if value is None else value}')
    return shlex.join(words)

  def piece_samples(self, rate_hz: int) -> int | None:
    """Length of a piece at some rate; None: recordings are not cut."""
    return None if self.max_s is None else max(1, round(self.max_s * rate_hz))


@dataclasses.dataclass(frozen=True)
class Report:
  """What went into a shard, and what did not.

  Attributes:
    shard: The file.
    labels: Of each clip, indices of classes.
    unreadable: (id, reason) of recordings.
    short: (id, reason) of recordings and last pieces.
  """

  shard: packs.Shard
  labels: list[list[int]]
  unreadable: list[tuple[str, str]]
  short: list[tuple[str, str]]

  def to_json(self) -> str:
    """The text of the file beside the shard."""
    return json.dumps(dataclasses.asdict(self)) + '\n'

  @classmethod
  def from_json(cls, text: str) -> 'Report':
    """The opposite; ValueError, TypeError or LookupError for another text."""
    tree = json.loads(text)
    return cls(packs.Shard(**tree.pop('shard')), **tree)


def file(number: int, shards: int) -> str:
  """Name of a shard, of so many."""
  return f'{number:05d}-of-{shards:05d}{packs.SUFFIX}'


def write(
  path: str,
  source: clips_lib.Source,
  indices: Iterable[int],
  settings: Settings,
  progress: Callable[[int], None],
) -> Report:
  """Writes recordings of a source into an ArrayRecord file.

  Args:
    path: The file.
    source: Where the recordings come from.
    indices: Which ones.
    settings: How they are stored.
    progress: Called with 1 after each recording, and with 0 within a long one;
      what it raises stops the writing.

  Raises:
    OSError: The file could not be written.
    ValueError: A label that is not one of the source's classes.
  """
  classes = {label: number for number, label in enumerate(source.classes)}
  pieces: list[_Piece] = []  # Without their audio.
  short: list[tuple[str, str]] = []
  unreadable: list[tuple[str, str]] = []
  with _opened(path) as writer:
    for index in indices:
      try:
        for piece in _pieces(source[index], settings, progress):
          if piece.flac is None:
            short.append((piece.id, f'only {piece.length_s:.9g} s'))
            continue
          _check_labels(piece, classes)
          writer.write(packs.record(piece.id, piece.labels, piece.flac))
          pieces.append(dataclasses.replace(piece, flac=None))
      except clips_lib.BadClip as error:
        unreadable.append((error.clip_id, error.reason))
      progress(1)
  shard = packs.Shard(
    file=os.path.basename(path),
    bytes=os.path.getsize(path),
    sha256=packs.sha256(path),
    clips=len(pieces),
    length_s=round(sum((piece.length_s for piece in pieces), 0.0), 6),
    clipped=sum(piece.clipped for piece in pieces),
    unreadable=len(unreadable),
    short=len(short),
  )
  labels = [[classes[label] for label in piece.labels] for piece in pieces]
  return Report(shard, labels, unreadable, short)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Piece:
  """What becomes one record; `flac` is None where it is too short for that."""

  id: str
  labels: tuple[str, ...]
  length_s: float
  flac: bytes | None = None
  clipped: bool = False


def _pieces(
  clip: clips_lib.Clip, settings: Settings, progress: Callable[[int], None]
) -> Iterator[_Piece]:
  """Yields a recording as the records that it becomes."""
  rate_hz = settings.rate_hz or clip.rate_hz
  samples = -(-clip.samples * rate_hz // clip.rate_hz)
  size = settings.piece_samples(rate_hz) or samples
  waves = _resampled(clip, rate_hz, settings.resampler)
  rest_S = np.zeros(0, np.float32)
  for start in range(0, samples, size):
    count = min(size, samples - start)
    start_s = round(start / rate_hz, 6)
    piece = _Piece(
      id=clip.id if samples <= size else f'{clip.id}@{start_s:.12g}',
      labels=clip.labels,
      length_s=count / rate_hz,
    )
    if piece.length_s < settings.min_s:
      yield piece
      return
    encoder = _Encoder(rate_hz, settings.bits, clip.id)
    while count:
      if not len(rest_S):
        progress(0)
        rest_S = next(waves)
      encoder.add(rest_S[:count])
      rest_S, count = rest_S[count:], count - len(rest_S[:count])
    flac = encoder.close()
    yield dataclasses.replace(piece, flac=flac, clipped=encoder.clipped)


def _resampled(
  clip: clips_lib.Clip, rate_hz: int, resampler: resampling.Resampler
) -> Iterator[np.ndarray]:
  """Yields parts of `resampling.resample` of a whole clip, bit for bit."""
  if clip.samples <= _BLOCK_SAMPLES:
    wave_S = clip.read(0, clip.samples)
    yield resampling.resample(wave_S, clip.rate_hz, rate_hz, resampler)
  elif resampler == 'soxr' and clip.rate_hz != rate_hz:
    yield from _streamed(clip, rate_hz)
  else:
    yield from _overlapped(clip, rate_hz, resampler)


def _overlapped(
  clip: clips_lib.Clip, rate_hz: int, resampler: resampling.Resampler
) -> Iterator[np.ndarray]:
  """Resamples blocks with a margin, at whose edges outputs and inputs meet."""
  divisor = math.gcd(rate_hz, clip.rate_hz)
  up, down = rate_hz // divisor, clip.rate_hz // divisor
  block = -(-_BLOCK_SAMPLES // down) * down
  margin = -(-_MARGIN_SAMPLES * max(1, -(-down // up)) // down) * down
  for start in range(0, clip.samples, block):
    first = max(0, start - margin)
    last = min(clip.samples, start + block + margin)
    wave_S = clip.read(first, last - first)
    wave_S = resampling.resample(wave_S, clip.rate_hz, rate_hz, resampler)
    skip = (start - first) // down * up
    count = -(-min(block, clip.samples - start) * up // down)
    yield wave_S[skip : skip + count]


def _streamed(clip: clips_lib.Clip, rate_hz: int) -> Iterator[np.ndarray]:
  """Resamples with soxr, whose blocks do not fit any that we could choose."""
  import soxr  # What librosa's soxr_hq is; comes with librosa.

  stream = soxr.ResampleStream(
    clip.rate_hz, rate_hz, 1, dtype='float32', quality='soxr_hq'
  )
  for start in range(0, clip.samples, _BLOCK_SAMPLES):
    count = min(_BLOCK_SAMPLES, clip.samples - start)
    last = start + count == clip.samples
    yield stream.resample_chunk(clip.read(start, count), last=last)
  yield np.zeros(1, np.float32)  # Where soxr rounds the length down.


class _Encoder:
  """Makes a FLAC file in memory from parts of a wave."""

  def __init__(self, rate_hz: int, bits: int, clip_id: str) -> None:
    self.clipped = False
    self._bits, self._clip_id = bits, clip_id
    self._bytes = io.BytesIO()
    try:
      self._file = soundfile.SoundFile(
        self._bytes, 'w', rate_hz, 1, f'PCM_{bits}', format='FLAC',
        compression_level=1.0,  # Level 8: written once, read often.
      )  # fmt: skip
    except soundfile.LibsndfileError as error:
      got = f'a rate of {rate_hz} Hz: {error.error_string}'
      raise clips_lib.BadClip(clip_id, got) from None

  def add(self, wave_S: np.ndarray) -> None:
    """Adds samples; those beyond [-1, 1] are clipped."""
    peak = np.abs(wave_S).max(initial=0)
    if not np.isfinite(peak):
      raise clips_lib.BadClip(self._clip_id, 'samples that are too large')
    self.clipped |= bool(peak > 1)
    # Not libsndfile's scale, 2**15 - 1: 16-bit audio is to come out unchanged.
    scale = 2.0 ** (self._bits - 1)
    values_S = np.clip(np.rint(wave_S * scale), -scale, scale - 1)
    if self._bits == 16:
      self._file.write(values_S.astype(np.int16))
    else:
      self._file.write(values_S.astype(np.int32) << 8)

  def close(self) -> bytes:
    """Returns the file's bytes."""
    self._file.close()
    return self._bytes.getvalue()


def _check(valid: bool, what: str, wanted: str, got: object) -> None:
  if not valid:
    raise ValueError(f'{what}: want {wanted}, got {got!r}')


def _check_labels(piece: _Piece, classes: Mapping[str, int]) -> None:
  for label in piece.labels:
    _check(label in classes, piece.id, 'labels among the classes', label)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
  try:
    writer = array_record_module.ArrayRecordWriter(path, _WRITER)
    try:
      yield writer
    finally:
      writer.close()  # Most is written here: so here a full disk shows.
  except RuntimeError as error:  # All that array_record raises.
    raise OSError(f'{path}: want room to write, got {error}') from None
