"""The teacher's decay schedule and its update."""

import jax
import numpy as np
import pytest

from sslam_jax import state

STEP_SIZE_TOLERANCE = 1e-6  # relative; 1 - float32(decay) is off by 1e-3
TEACHER_TOLERANCE = 2e-7  # relative, two roundings


def decay(step):
  """The published ramp, in float64."""
  if step >= 100_000:
    return 0.99999
  return 0.99999 - (0.99999 - 0.9998) * (1 - step / 100_000)


@pytest.mark.parametrize(
    'step', [0, 1, 2, 1_000, 50_000, 99_999, 100_000, 100_001, 200_000]
)
def test_step_size_is_one_minus_the_published_decay(step):
  size = jax.jit(state.Ema().step_size)(np.int32(step))
  assert size.dtype == np.float32
  np.testing.assert_allclose(size, 1 - decay(step), rtol=STEP_SIZE_TOLERANCE)


def test_the_ramp_s_ends():
  sizes = [float(state.Ema().step_size(u)) for u in (0, 50_000, 100_000)]
  np.testing.assert_allclose(sizes, [2e-4, 1.05e-4, 1e-5],
                             rtol=STEP_SIZE_TOLERANCE)


def test_a_ramp_of_ten_steps():
  ema = state.Ema(start=0.5, end=0.75, anneal_steps=10)
  sizes = [float(ema.step_size(u)) for u in (0, 4, 10, 11)]
  np.testing.assert_allclose(sizes, [0.5, 0.4, 0.25, 0.25], rtol=1e-6)


@pytest.mark.parametrize('step', [1, 50_000, 100_000])
def test_follow_is_the_weighted_mean(step):
  rng = np.random.default_rng(0)
  teacher, params = (
      {'a': {'kernel': rng.standard_normal((8, 5)).astype(np.float32)},
       'b': rng.standard_normal(16).astype(np.float32)} for _ in range(2)
  )
  followed = jax.jit(state.Ema().follow)(teacher, params, np.int32(step))
  d = decay(step)
  expected = jax.tree.map(
      lambda t, p: d * t.astype(np.float64) + (1 - d) * p, teacher, params
  )
  assert jax.tree.structure(followed) == jax.tree.structure(teacher)
  for ours, wanted in zip(jax.tree.leaves(followed),
                          jax.tree.leaves(expected)):
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, wanted, rtol=TEACHER_TOLERANCE,
                               atol=TEACHER_TOLERANCE)


def test_follow_moves_by_1e_5_of_the_difference():
  """From 0, where nothing is lost to rounding."""
  moved = state.Ema().follow(np.zeros(3, np.float32),
                             np.float32([1.0, -2.0, 1e-3]), 100_000)
  np.testing.assert_allclose(moved, [1e-5, -2e-5, 1e-8],
                             rtol=STEP_SIZE_TOLERANCE)


@pytest.mark.parametrize(('start', 'expected'), [(1.0, 0.0), (0.0, 1.0)])
def test_decay_1_keeps_the_teacher_and_0_copies_the_student(start, expected):
  ema = state.Ema(start=start, end=start)
  followed = ema.follow({'a': np.float32([0.0])}, {'a': np.float32([1.0])}, 5)
  np.testing.assert_array_equal(followed['a'], [expected])


@pytest.mark.parametrize('fields', [
    {'start': -0.1}, {'end': 1.1}, {'anneal_steps': 0},
])
def test_impossible_settings_are_refused_by_name(fields):
  with pytest.raises(ValueError, match=f'^{next(iter(fields))}: want'):
    state.Ema(**fields)
