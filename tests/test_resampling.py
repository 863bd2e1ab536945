"""Tests of the sampling-rate conversion."""

import math

import numpy as np
import pytest

from sslam_jax import resampling


def _noise(samples: int, seed: int = 0) -> np.ndarray:
  noise = np.random.default_rng(seed).standard_normal(samples)
  return (0.2 * noise).clip(-1, 1).astype(np.float32)


def _sine(samples: int, rate_hz: int) -> np.ndarray:
  return np.sin(2 * np.pi * 1000 * np.arange(samples) / rate_hz)


def _error(function, *args, **options) -> str:
  with pytest.raises(ValueError) as caught:
    function(*args, **options)
  return str(caught.value)


def _windowed_sinc(wave_S: np.ndarray, rate_hz: int, target_hz: int):
  """torchaudio's definition, one weight per pair of samples, in float64."""
  width_hz = 0.99 * min(rate_hz, target_hz)
  outputs = math.ceil(len(wave_S) * target_hz / rate_hz)
  seconds = np.arange(outputs)[:, None] / target_hz
  seconds = seconds - np.arange(len(wave_S)) / rate_hz
  crossings = (seconds * width_hz).clip(-6, 6)
  window = np.cos(crossings * np.pi / 12) ** 2
  return np.sinc(crossings) * window @ wave_S * (width_hz / rate_hz)


@pytest.mark.parametrize('rate_hz', [8000, 11025, 16001, 22050, 44100, 48000])
def test_resample_equals_the_definition(rate_hz):
  wave = _noise(1500)
  want = _windowed_sinc(wave.astype(np.float64), rate_hz, 16_000)
  got = resampling.resample(wave, rate_hz, 16_000)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_resample_takes_any_pair_of_rates():
  wave = _noise(700)
  want = _windowed_sinc(wave.astype(np.float64), 16_000, 22_051)
  got = resampling.resample(wave, 16_000, 22_051)
  np.testing.assert_allclose(got, want, atol=1e-6)
  assert len(resampling.resample(_noise(192_000), 192_000, 11_027)) == 11_027


@pytest.mark.parametrize('resampler', resampling.RESAMPLERS)
@pytest.mark.parametrize('rate_hz', [8000, 44_100, 96_000])
def test_resample_keeps_a_sine(resampler, rate_hz):
  wave = _sine(rate_hz // 2, rate_hz)
  got = resampling.resample(wave, rate_hz, 16_000, resampler)
  assert got.dtype == np.float32
  want = _sine(8000, 16_000)
  np.testing.assert_allclose(got[500:-500], want[500:-500], atol=2e-3)


@pytest.mark.parametrize('resampler', resampling.RESAMPLERS)
@pytest.mark.parametrize(
  'samples, rate_hz, target_hz, want',
  [
    (441, 44_100, 16_000, 160),
    (442, 44_100, 16_000, 161),
    (1, 48_000, 16_000, 1),
    (4, 48_000, 16_000, 2),
    (7, 8000, 16_000, 14),
    (16_002, 16_001, 16_000, 16_001),
    (108, 37_800, 22_050, 63),  # In float 108 * (22050 / 37800) exceeds 63.
  ],
)
def test_resample_rounds_the_length_up(
  resampler, samples, rate_hz, target_hz, want
):
  got = resampling.resample(_noise(samples), rate_hz, target_hz, resampler)
  assert got.shape == (want,) and got.dtype == np.float32


def test_resample_at_equal_rates_returns_the_wave():
  wave = _noise(10)
  assert resampling.resample(wave, 44_100, 44_100) is wave


def test_resample_refuses_bad_settings():
  assert 'rates' in _error(resampling.resample, _noise(9), 0, 16_000)
  message = _error(resampling.resample, _noise(9), 8000, 16_000, 'linear')
  assert "one of ('sinc_hann', 'soxr')" in message and "got 'linear'" in message
