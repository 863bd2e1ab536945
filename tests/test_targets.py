"""Targets against loops over clips, tokens and channels in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sslam_jax import targets

TOLERANCE = 1e-4  # absolute, of values of about 1


def normalise(x):
  """A vector to mean 0 and (biased) variance 1, with epsilon 1e-5."""
  mean = sum(x) / len(x)
  variance = sum((v - mean) ** 2 for v in x) / len(x)
  return [(v - mean) / (variance + 1e-5) ** 0.5 for v in x]


def reference(layers, last):
  """Layers [L, B, N, D] to targets [B, N, D]."""
  layers = np.asarray(layers, np.float64)
  layers = layers[-last:]
  count, clips, tokens, channels = layers.shape
  mean = np.zeros((clips, tokens, channels))
  for layer in layers:
    for b in range(clips):
      for d in range(channels):
        mean[b, :, d] += np.array(normalise(layer[b, :, d])) / count
  for b in range(clips):
    for n in range(tokens):
      mean[b, n] = normalise(mean[b, n])
  return mean


@pytest.fixture(scope='module')
def layers():
  """Scales from below the epsilon upwards, offsets for every channel."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((3, 2, 5, 4)) * [[0.003], [0.1], [1.0], [5.0], [9.0]]
  return (x * [0.002, 1, 1, 1] + [0.01, -2, 0, 0.5]).astype(np.float32)


@pytest.mark.parametrize('last', [None, 1, 2, 3])
def test_targets_match_the_formula(layers, last):
  ours = jax.jit(targets.average_layers, static_argnames='last')(
      layers, last=last
  )
  np.testing.assert_allclose(ours, reference(layers, last or 3), rtol=0,
                             atol=TOLERANCE)
  assert ours.dtype == np.float32


def test_targets_are_float32_from_bfloat16_layers(layers):
  rounded = jnp.asarray(layers, jnp.bfloat16)
  ours = targets.average_layers(rounded, last=None)
  assert ours.dtype == np.float32
  np.testing.assert_allclose(
      ours, reference(rounded.astype(np.float32), 3), rtol=0, atol=TOLERANCE
  )


def test_a_large_offset_costs_no_digits():
  rng = np.random.default_rng(1)
  layers = 1_000 + 4 * rng.standard_normal((2, 1, 9, 4)).astype(np.float32)
  np.testing.assert_allclose(targets.average_layers(layers, last=None),
                             reference(layers, 2), rtol=0, atol=TOLERANCE)


def test_clips_do_not_touch_each_other(layers):
  alone = targets.average_layers(layers[:, :1], last=None)
  together = targets.average_layers(layers, last=None)
  np.testing.assert_allclose(together[:1], alone, rtol=0, atol=TOLERANCE)


def test_join_averages_the_mixed_tokens_and_keeps_the_rest():
  own = np.arange(2 * 4 * 2, dtype=np.float32).reshape(2, 4, 2)
  partner = np.float32([[[100, 200], [300, 400]], [[10, 20], [30, 40]]])
  token = np.array([[1, 3], [0, 2]])
  joined = targets.join(jnp.asarray(own), [partner], token)
  np.testing.assert_array_equal(joined, [
      [[0, 1], [51, 101.5], [4, 5], [153, 203.5]],
      [[9, 14.5], [10, 11], [21, 26.5], [14, 15]],
  ])


def test_join_of_three_sources_is_their_mean():
  own = jnp.float32([[[3, 0], [6, 9]]])
  near, far = np.float32([[[[30, 300]]], [[[60, 600]]]])
  joined = targets.join(own, [near, far], np.array([[1]]))
  np.testing.assert_array_equal(joined, [[[3, 0], [32, 303]]])


def test_join_of_no_token_is_the_own_target():
  own = jnp.ones((2, 4, 3))
  joined = targets.join(own, [np.zeros((2, 0, 3), np.float32)],
                        np.zeros((2, 0), np.int32))
  np.testing.assert_array_equal(joined, own)
