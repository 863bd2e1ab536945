"""The front end against Kaldi's filterbank in plain float64 NumPy."""

import functools

import jax
import numpy as np
import pytest

from sslam_jax import audio

# Nats, float32 against float64; 1 is 4.3 dB.
TOLERANCE = 1e-3  # also where two bins cancel, or 80 dB below a sine
STEP_TOLERANCE = 1e-2  # with a step in the wave, 20 times as large
LOG_FLOOR = np.log(1.1920929e-07)
ONE_SECOND = audio.LogMel(frames=98, mean=-4.0, std=2.5)  # 1 s


def hertz(mel):
  return 700.0 * (np.exp(mel / 1127.0) - 1.0)


def mels(hz):
  return 1127.0 * np.log(1.0 + hz / 700.0)


@functools.cache
def triangles(rate_hz, bins, length):
  """Filters one by one, bin by bin: [length // 2, bins]."""
  low, high = mels(20.0), mels(rate_hz / 2)
  step = (high - low) / (bins + 1)
  weight = np.zeros((length // 2, bins))
  for m in range(bins):
    left, centre, right = (low + (m + i) * step for i in range(3))
    for k in range(length // 2):
      x = mels(k * rate_hz / length)
      if left < x <= centre:
        weight[k, m] = (x - left) / (centre - left)
      elif centre < x < right:
        weight[k, m] = (right - x) / (right - centre)
  return weight


def kaldi(wave, rate_hz=16_000, bins=128):
  """Log-mels [frames, bins] in float64, with a written-out transform."""
  wave = np.asarray(wave, np.float64)
  window, hop = int(rate_hz * 0.025), int(rate_hz * 0.010)
  length = 1
  while length < window:
    length *= 2
  n = np.arange(window)
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / (window - 1))
  turn = np.outer(np.arange(length // 2), n)
  transform = np.exp(-2j * np.pi / length * turn)
  rows = []
  for start in range(0, len(wave) - window + 1, hop):
    frame = wave[start : start + window] - wave.mean()
    frame = frame - frame.mean()
    emphasised = [frame[i] - 0.97 * frame[max(i - 1, 0)] for i in n]
    power = abs(transform @ (emphasised * hann)) ** 2
    energy = power @ triangles(rate_hz, bins, length)
    rows.append(np.log(np.maximum(energy, 1.1920929e-07)))
  return np.array(rows).reshape(-1, bins)


def noise(samples, seed=0, level=0.1):
  rng = np.random.default_rng(seed)
  return (level * rng.standard_normal(samples)).astype(np.float32)


def sine(samples, hz=440.0):
  time_s = np.arange(samples) / 16_000
  return (0.5 * np.sin(2 * np.pi * hz * time_s)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _log_mel(config, wave, samples):
  return audio.LogMel(**dict(config)).log_mel(wave, samples)


def log_mel(waves, samples=None, config=ONE_SECOND):
  """Log-mels as NumPy; a single compilation per shape and configuration."""
  waves = np.atleast_2d(np.asarray(waves, np.float32))
  if samples is None:
    samples = [waves.shape[1]] * len(waves)
  fields = tuple(vars(config).items())
  return np.asarray(_log_mel(fields, waves, np.array(samples, np.int32)))


def test_noise_matches_kaldi():
  wave = noise(16_000)
  np.testing.assert_allclose(log_mel(wave)[0], kaldi(wave), rtol=0,
                             atol=TOLERANCE)


def test_sine_matches_kaldi_80_db_below_it():
  wave = sine(16_000)
  expected = kaldi(wave)
  assert np.ptp(expected) > 8 * np.log(10)
  np.testing.assert_allclose(log_mel(wave)[0], expected, rtol=0,
                             atol=TOLERANCE)


def test_every_frame_loses_its_own_mean():
  wave = noise(16_000)
  wave[8_000:] += 0.75
  wave[:8_000] -= 0.25
  np.testing.assert_allclose(log_mel(wave)[0], kaldi(wave), rtol=0,
                             atol=STEP_TOLERANCE)


def test_a_constant_does_not_change_anything():
  wave = noise(16_000)
  np.testing.assert_allclose(log_mel(wave + np.float32(0.5)), log_mel(wave),
                             rtol=0, atol=TOLERANCE)


def test_filter_3_has_no_bin_and_stays_at_the_floor():
  mel = log_mel(noise(16_000, level=1.0))[0]
  np.testing.assert_allclose(mel[:, 3], -15.9424, atol=5e-5)
  assert (np.delete(mel, 3, axis=1) > LOG_FLOOR + 1).all()


def test_silence_is_the_floor():
  np.testing.assert_allclose(log_mel(np.zeros(16_000)), LOG_FLOOR, rtol=1e-6)


@pytest.mark.parametrize(('samples', 'frames'), [
    (0, 0), (1, 0), (239, 0), (399, 0), (400, 1), (559, 1), (560, 2),
    (719, 2), (720, 3),
])
def test_only_whole_frames_count(samples, frames):
  wave = noise(1_000)
  mel = log_mel(wave, [samples])[0]
  assert mel.shape == (4, 128)
  np.testing.assert_allclose(mel[:frames], kaldi(wave[:samples])[:frames],
                             rtol=0, atol=TOLERANCE)
  assert len(kaldi(wave[:samples])) == frames
  assert (mel[frames:] == 0).all()


@pytest.mark.parametrize('samples', [1, 399])
def test_an_array_shorter_than_a_frame_has_no_frames(samples):
  assert log_mel(noise(samples)).shape == (1, 0, 128)


@pytest.mark.parametrize('junk', [1e3, np.nan, np.inf])
def test_junk_beyond_the_valid_length_does_not_matter(junk):
  samples = [16_000, 7_000, 400, 0]
  waves = np.stack([noise(16_000, seed) for seed in range(4)])
  for wave, valid in zip(waves, samples):
    wave[valid:] = junk
  mels = log_mel(waves, samples)
  for mel, wave, valid in zip(mels, waves, samples):
    expected = np.zeros((98, 128))
    alone = kaldi(wave[:valid])
    expected[: len(alone)] = alone
    np.testing.assert_allclose(mel, expected, rtol=0, atol=TOLERANCE)


def test_a_batch_gives_what_each_clip_gives_alone():
  waves = np.stack([noise(16_000, 1), sine(16_000), noise(16_000, 2)])
  samples = [16_000, 9_999, 5_000]
  together = log_mel(waves, samples)
  alone = [log_mel(w, [s])[0] for w, s in zip(waves, samples)]
  np.testing.assert_array_equal(together, np.stack(alone))


def test_what_a_gpu_would_run_gives_the_same(monkeypatch):
  waves, samples = np.stack([noise(2_000, 1), sine(2_000)]), [2_000, 1_200]
  expected = log_mel(waves, samples)
  monkeypatch.setattr(jax.lax, 'platform_dependent',
                      lambda *args, cpu, default: default(*args))
  batched = jax.jit(lambda *args: ONE_SECOND.log_mel(*args))(
      waves, np.array(samples)
  )
  np.testing.assert_allclose(batched, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize('frames', [90, 98, 110])
def test_fit_cuts_at_the_end_or_fills_with_zero_before_normalisation(frames):
  config = audio.LogMel(frames=frames, mean=-4.0, std=2.5)
  wave = noise(16_000)
  fitted = np.zeros((frames, 128))
  whole = kaldi(wave)
  fitted[: min(frames, 98)] = whole[:frames]
  mel = np.asarray(config(wave[None], np.array([16_000])))[0]
  np.testing.assert_allclose(mel, (fitted + 4.0) / 5.0, rtol=0,
                             atol=TOLERANCE)
  assert mel.dtype == np.float32
  if frames > 98:
    np.testing.assert_allclose(mel[98:], 4.0 / 5.0, rtol=1e-6)


def test_audioset_silence_to_fill_is_0_467():
  mel = audio.LogMel(frames=3)(noise(400)[None], np.array([0]))
  assert mel.shape == (1, 3, 128)
  np.testing.assert_allclose(mel, 0.467, atol=1e-3)


@pytest.mark.parametrize(('rate_hz', 'window', 'hop'), [
    (8_000, 200, 80), (32_000, 800, 320), (44_100, 1102, 441),
])
def test_other_rates_match_kaldi(rate_hz, window, hop):
  config = audio.LogMel(rate_hz=rate_hz, mel_bins=40, frames=10)
  assert (config.window, config.hop) == (window, hop)
  assert config.samples == 9 * hop + window
  wave = noise(config.samples)
  expected = kaldi(wave, rate_hz, 40)
  assert expected.shape == (10, 40)
  np.testing.assert_allclose(log_mel(wave, config=config)[0], expected,
                             rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize('rate_hz', [8_000, 16_000, 44_100])
def test_a_tone_is_loudest_in_the_filter_around_it(rate_hz):
  config = audio.LogMel(rate_hz=rate_hz, mel_bins=32, frames=1)
  step = (mels(rate_hz / 2) - mels(20.0)) / 33
  for filter_index in (12, 20, 31):
    hz = hertz(mels(20.0) + (filter_index + 1) * step)
    wave = np.sin(2 * np.pi * hz * np.arange(config.samples) / rate_hz)
    assert log_mel(wave, config=config)[0, 0].argmax() == filter_index


def test_samples_fill_the_frames_exactly():
  config = audio.LogMel(frames=1024)
  assert config.samples == 1023 * 160 + 400
  assert 1 + (config.samples - 400) // 160 == 1024
  assert 1 + (config.samples - 1 - 400) // 160 == 1023


@pytest.mark.parametrize('fields', [
    {'rate_hz': 999}, {'mel_bins': 0}, {'frames': 0}, {'std': 0.0},
    {'std': np.inf}, {'mean': np.nan},
])
def test_impossible_settings_are_refused_by_name(fields):
  with pytest.raises(ValueError, match=f'^{next(iter(fields))}: want'):
    audio.LogMel(**fields)


def test_published_constants():
  assert audio.NORMALISATION == {
      'audioset': (-4.268, 4.569),
      'esc50': (-6.627, 5.359),
      'speech_commands': (-6.846, 5.565),
  }
