"""Log-mel spectrograms and resampling against the official ones."""

from collections.abc import Callable
import functools
import hashlib

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from sslam_jax import audio
from tools.golden import folder
from tools.golden import measures
from tools.golden import weights

# The official log-mels differ from their own float64 by up to 3.1e-3.
_MEL_MAX = measures.Tolerance(5e-3, 'abs')  # nats
_MEL_MEAN = measures.Tolerance(1e-4, 'mean abs')
_FILTERS = measures.Tolerance(1e-4, 'abs')  # and window: reach 1
_RESAMPLE = measures.Tolerance(2e-5, 'abs')  # waveforms of order 1

_NORMALISATION = {
    'norm': 'audioset',
    'norm_esc50': 'esc50',
    'norm_spcv2': 'speech_commands',
}
# The clip whose waveform is not stored, and of whose frames every 8th is.
_LONG = 'long12'
_LONG_STRIDE = 8


def check_fbank(golden: folder.Golden) -> None:
  """Filters, window, and the log-mels of all clips."""
  section, mel = golden.section('fbank'), audio.LogMel()
  # The Nyquist bin, always 0, is not stored; the window is NumPy's here too.
  section.compare('mel_banks', audio._mel_filters(mel)[:-1].T, _FILTERS)
  section.compare(f'window_hanning{mel.window}', np.hanning(mel.window),
                  _FILTERS)
  clips = sorted({key.split('/')[0] for key in section.names() if '/' in key})
  waves = {clip: _wave(section.under(f'{clip}/'), clip) for clip in clips}
  longest = max((len(x) for x in waves.values() if x is not None), default=0)
  for clip, wave_S in waves.items():
    if wave_S is not None:
      # All padded to one length: compiled once, and the padding is checked.
      padded_S = np.pad(wave_S, (0, longest - len(wave_S)))
      stride = _LONG_STRIDE if clip == _LONG else 1
      _check_clip(section.under(f'{clip}/'), padded_S, len(wave_S), stride)


def check_resample(golden: folder.Golden) -> None:
  """Noise of several rates at 16 kHz."""
  # Here alone: it pulls in the audio libraries.
  from sslam_jax import resampling

  section = golden.section('resample')
  for rate_hz in filter(str.isdigit, section.names('in_')):
    section.expect(f'out_{rate_hz}')
    ours_S = resampling.resample(section.need(f'in_{rate_hz}'), int(rate_hz),
                              16_000, resampler='sinc_hann')
    section.compare(f'out_{rate_hz}', ours_S, _RESAMPLE)


def _wave(part: folder.Section, clip: str) -> np.ndarray | None:
  """A clip's waveform, stored or, for one, by its documented rule."""
  for key in ('wave', 'wave16k'):
    if (wave_S := part.find(key)) is not None:
      return wave_S
  if clip != _LONG:
    part.skip('*', 'no waveform')
    return None
  wave_S = (0.1 * weights.normal(12, [192_000])).astype(np.float32)
  md5 = np.frombuffer(hashlib.md5(wave_S.tobytes()).digest(), np.uint8)
  part.compare('wave_md5', md5, measures.EQUAL)
  return wave_S


def _check_clip(
    part: folder.Section, wave_S: np.ndarray, samples: int, stride: int
) -> None:
  """The log-mels of a clip, and all their normalised forms."""
  part.expect('raw')
  mel, batch = audio.LogMel(), (jnp.asarray(wave_S[None]), jnp.array([samples]))
  frames = max(0, 1 + (samples - mel.window) // mel.hop)
  raw_TxF = _jitted_raw()(*batch)[0, :frames:stride]
  part.compare('raw', raw_TxF, _MEL_MAX)
  part.compare('raw', raw_TxF, _MEL_MEAN)
  for key, constants in _NORMALISATION.items():
    if (official := part.find(key)) is not None:
      frames = len(official) * stride
      mel_TxF = _jitted(frames, constants)(*batch)[0, ::stride]
      # Errors in nats as well.
      nat = 1 / (audio._PUBLISHED_SCALE * audio.NORMALISATION[constants][1])
      part.compare(key, mel_TxF, _MEL_MAX.by(nat))
      part.compare(key, mel_TxF, _MEL_MEAN.by(nat))


@functools.cache
def _jitted_raw() -> Callable[[Array, Array], Array]:
  return jax.jit(audio.LogMel().log_mel)


@functools.cache
def _jitted(frames: int, constants: str) -> Callable[[Array, Array], Array]:
  mean, std = audio.NORMALISATION[constants]
  return jax.jit(audio.LogMel(frames=frames, mean=mean, std=std).__call__)
