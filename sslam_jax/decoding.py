"""Encoded recordings, in files or in memory, as clips.

The header is read when a clip is opened, the samples when they are asked for.
What libsndfile decodes is supported: WAV, FLAC, Ogg, MP3, AIFF and others.
"""

from collections.abc import Iterator
import contextlib
import errno
import functools
import io
import os
import stat
import typing

import numpy as np
import soundfile

from sslam_jax import clips as clips_lib
from sslam_jax import containers
from sslam_jax import reading

_MAX_RATE_HZ = 1_000_000  # More is a damaged header, and a huge filter.
_MAX_CHANNELS = 256
# Beyond 32-bit integers stored as floats: damage, and its square overflows.
_MAX_SAMPLE = 2.0**31
# What the system lacks; not damage, for which another clip could stand in.
_NOT_THE_FILE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_UNKNOWN_SAMPLES = 2**63 - 1  # libsndfile's SF_COUNT_MAX.
_BLOCK_VALUES = 2**22  # Samples times channels that are decoded at once.
# How much earlier decoding must start to be exact. libsndfile 1.2.2 is off by
# part of a block after a seek into the last Vorbis page (255 packets of 1024
# samples at most); an MP3 frame may use bits of 85 frames of 576 before it.
_RUN_UP_SAMPLES = {'VORBIS': 2**18, 'MPEG_LAYER_III': 2**16}
# How much less than its header says may come out of a whole file. Without a
# Xing tag the length of an MP3 is an estimate, 1 or 2 frames of 1152 too long.
_MISSING_SAMPLES = {'MPEG_LAYER_III': 3 * 1152}


def open_file(
  path: str, clip_id: str, labels: tuple[str, ...]
) -> clips_lib.Clip:
  """Describes an audio file by its header; no samples are decoded.

  Raises:
    BadClip: No readable header, or an impossible length or rate in it, or the
      file is shorter than it says (for FLAC, only reading tells).
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
  exceed that, are left as they are. The last frames of an MP3, where its
  header counts more than there are, are silence.

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
    wave_S = _averaged(file, run_up + count)[run_up:]
    missing = count - len(wave_S)
    spare = _MISSING_SAMPLES.get(file.subtype, 0)
    if 0 < missing <= spare and start + count <= file.frames:
      wave_S = np.pad(wave_S, (0, missing))
  if len(wave_S) < count:
    got = f'{len(wave_S)} of {count} samples from {start} on'
    raise clips_lib.BadClip(name, got)
  # NaN passes through both; faster than isfinite, which needs an array.
  peak = max(wave_S.max(initial=0), -wave_S.min(initial=0))
  if not np.isfinite(peak):
    raise clips_lib.BadClip(name, 'samples that are not finite')
  if peak > _MAX_SAMPLE:
    raise clips_lib.BadClip(name, 'samples too large for audio')
  return wave_S


def _described(
  audio: str | bytes, name: str, clip_id: str, labels: tuple[str, ...]
) -> clips_lib.Clip:
  reading.note(name)
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
  """Opened audio; what is found damaged inside is raised as BadClip."""
  with contextlib.ExitStack() as stack:
    try:
      raw = stack.enter_context(_raw(audio, name))
      size = raw.seek(0, os.SEEK_END)
      whole = containers.checked(raw, size, stack)
      # By its descriptor: reading through Python objects is slower.
      direct = whole is raw and not isinstance(audio, bytes)
      source = raw.fileno() if direct else whole
      file = stack.enter_context(soundfile.SoundFile(source, closefd=False))
      if file.channels > _MAX_CHANNELS:
        raise clips_lib.BadClip(name, f'{file.channels} channels')
      yield file
    except containers.CutShort as error:
      raise clips_lib.BadClip(name, str(error)) from None
    except soundfile.SoundFileError as error:
      text = getattr(error, 'error_string', str(error))
      if text.startswith('File does not exist'):  # As it says of some MP3s.
        text = 'no audio found.'
      raise clips_lib.BadClip(name, f'{size} bytes: {text}') from None
    except OSError as error:
      if error.errno in _NOT_THE_FILE:
        raise
      text = (error.strerror or str(error)).lower()
      raise clips_lib.BadClip(name, text) from None


def _raw(audio: str | bytes, name: str) -> typing.BinaryIO:
  if isinstance(audio, bytes):
    return io.BytesIO(audio)
  if '\0' in audio:
    raise clips_lib.BadClip(name, 'a name that no file can have')
  # Before opening, since opening a pipe would wait for its other end.
  if not stat.S_ISREG(os.stat(audio).st_mode):
    raise clips_lib.BadClip(name, 'a folder or device, not a file')
  return typing.cast(typing.BinaryIO, open(audio, 'rb', buffering=0))


def _averaged(file: soundfile.SoundFile, count: int) -> np.ndarray:
  """The mean over channels of the next samples, `count` if there are as many.

  Memory grows with what is decoded, not with what a damaged header promises.
  """
  waves = [np.zeros(0, np.float32)]
  while count > 0:
    samples = min(count, _BLOCK_VALUES // file.channels)
    wave_SxC = file.read(samples, dtype='float32', always_2d=True)
    # For stereo 6 times faster than mean(axis=1).
    waves.append(sum(wave_SxC.T) / np.float32(file.channels))
    count = count - samples if len(wave_SxC) == samples else 0
  return waves[1] if len(waves) == 2 else np.concatenate(waves)
