"""Sampling-rate conversion of whole clips."""

import functools
import math
import typing

import numpy as np

Resampler = typing.Literal['sinc_hann', 'soxr']
RESAMPLERS: tuple[str, ...] = typing.get_args(Resampler)

_ZERO_CROSSINGS = 6  # On each side; torchaudio's lowpass_filter_width.
_ROLLOFF = 0.99  # Cut-off relative to Nyquist, as torchaudio.


def resample(
  wave_S: np.ndarray,
  rate_hz: int,
  target_hz: int,
  resampler: Resampler = 'sinc_hann',
) -> np.ndarray:
  """Returns the wave at another rate: float32 [ceil(S * target / rate)].

  Around the wave is silence. At equal rates the result is `wave_S` itself.
  Raises ValueError for a rate below 1 or an unknown resampler.
  Source: 'sinc_hann' is torchaudio.functional.resample with its defaults, on
  which the published weights were trained; 'soxr' is soxr HQ.
  """
  choices = f'one of {RESAMPLERS}'
  _check(resampler in RESAMPLERS, 'resampler', choices, resampler)
  _check(min(rate_hz, target_hz) > 0, 'rates', '> 0 Hz', (rate_hz, target_hz))
  if rate_hz == target_hz:
    return wave_S
  samples = -(-len(wave_S) * target_hz // rate_hz)
  wave_S = wave_S.astype(np.float32, copy=False)
  if resampler == 'soxr':
    import librosa  # Takes a second, and the default does without.

    wave_S = librosa.resample(
      wave_S, orig_sr=rate_hz, target_sr=target_hz, res_type='soxr_hq'
    )
    return librosa.util.fix_length(wave_S, size=samples)
  divisor = math.gcd(rate_hz, target_hz)
  up, down = target_hz // divisor, rate_hz // divisor
  taps, lead = _low_pass(up, down)
  from scipy import signal  # Takes a second, as above.

  return signal.upfirdn(taps, wave_S, up, down)[lead : lead + samples]


def _check(valid: bool, what: str, wanted: str, got: object) -> None:
  if not valid:
    raise ValueError(f'{what}: want {wanted}, got {got!r}')


@functools.lru_cache(maxsize=16)
def _low_pass(up: int, down: int) -> tuple[np.ndarray, int]:
  """A Hann-windowed sinc at `up` times the rate, and its delay in outputs."""
  cutoff = _ROLLOFF * min(up, down)
  reach = math.ceil(_ZERO_CROSSINGS * up * down / cutoff)
  lead = -(-reach // down)  # The centre has to fall on an output.
  crossings = np.arange(-lead * down, reach + 1) * (cutoff / (up * down))
  inside = np.clip(crossings / _ZERO_CROSSINGS, -1, 1)
  taps = np.sinc(crossings) * np.cos(inside * np.pi / 2) ** 2 * (cutoff / down)
  return taps.astype(np.float32), lead
