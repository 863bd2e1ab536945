"""Encoded recordings, in files or in memory, as clips.

The header is read when a clip is opened, the samples when they are asked for.
What libsndfile decodes is supported: WAV, FLAC, Ogg, MP3, AIFF and others.
"""

from collections.abc import Iterator
import contextlib
import functools
import io
import os

import numpy as np
import soundfile

from sslam_jax import clips as clips_lib

_MAX_RATE_HZ = 1_000_000  # More is a damaged header, and a huge filter.
_UNKNOWN_SAMPLES = 2**63 - 1  # libsndfile's SF_COUNT_MAX.
# How much earlier decoding must start to be exact. libsndfile 1.2.2 is off by
# part of a block after a seek into the last Vorbis page (255 packets of 1024
# samples at most); an MP3 frame may use bits of 85 frames of 576 before it.
_RUN_UP_SAMPLES = {'VORBIS': 2**18, 'MPEG_LAYER_III': 2**16}


def open_file(
  path: str, clip_id: str, labels: tuple[str, ...]
) -> clips_lib.Clip:
  """Describes an audio file by its header; no samples are decoded.

  Raises:
    BadClip: No readable header, or an impossible length or rate in it.
  """
  return _described(path, path, clip_id, labels)


def open_bytes(
  encoded: bytes, clip_id: str, labels: tuple[str, ...]
) -> clips_lib.Clip:
  """The same for the bytes of an audio file, such as a record's."""
  return _described(encoded, clip_id, clip_id, labels)


def read(
  audio: str | bytes, start: int, count: int, *, name: str
) -> np.ndarray:
  """Decodes `count` samples from `start` on: float32 [count].

  Channels are averaged. Integers are scaled to [-1, 1]; float files, which may
  exceed that, are left as they are.

  Args:
    audio: Path of a file, or its bytes.
    start: First sample.
    count: How many samples.
    name: What errors call it.

  Raises:
    BadClip: Not decodable, shorter than asked for, or not finite.
  """
  if min(start, count) < 0:
    raise ValueError(
      f'{name}: want start, count >= 0, got {(start, count)}'
    )
  with _opened(audio, name) as file:
    run_up = min(start, _RUN_UP_SAMPLES.get(file.subtype, 0))
    file.seek(start - run_up)
    wave_SxC = file.read(run_up + count, dtype='float32', always_2d=True)
  # For stereo 6 times faster than mean(axis=1).
  wave_S = sum(wave_SxC[run_up:].T) / np.float32(wave_SxC.shape[1])
  if len(wave_S) < count:
    got = f'{len(wave_S)} of {count} samples from {start} on'
    raise clips_lib.BadClip(name, got)
  if not np.isfinite(wave_S).all():
    raise clips_lib.BadClip(name, 'samples that are not finite')
  return wave_S


def _described(
  audio: str | bytes, name: str, clip_id: str, labels: tuple[str, ...]
) -> clips_lib.Clip:
  with _opened(audio, name) as file:
    rate_hz, samples = file.samplerate, file.frames
  if not 0 < samples < _UNKNOWN_SAMPLES:
    got = 'an unknown length' if samples else 'no samples'
    raise clips_lib.BadClip(name, got)
  if rate_hz > _MAX_RATE_HZ:
    raise clips_lib.BadClip(name, f'a rate of {rate_hz} Hz')
  return clips_lib.Clip(
    id=clip_id,
    labels=labels,
    rate_hz=rate_hz,
    samples=samples,
    read=functools.partial(read, audio, name=name),
  )


@contextlib.contextmanager
def _opened(audio: str | bytes, name: str) -> Iterator[soundfile.SoundFile]:
  """Opened audio; what libsndfile refuses inside is raised as BadClip."""
  # A path as bytes: it may be in another encoding than UTF-8.
  source = os.fsencode(audio) if isinstance(audio, str) else io.BytesIO(audio)
  try:
    with soundfile.SoundFile(source) as file:
      yield file
  except (soundfile.SoundFileError, TypeError) as error:  # TypeError: .raw
    if isinstance(audio, str) and not os.path.isfile(audio):
      raise clips_lib.BadClip(name, 'no such file') from None
    size = len(audio) if isinstance(audio, bytes) else os.path.getsize(audio)
    text = getattr(error, 'error_string', error)
    raise clips_lib.BadClip(name, f'{size} bytes: {text}') from None
