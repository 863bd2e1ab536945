"""Pure functions from predictions and targets to scalars, in float32."""

import jax.numpy as jnp
from jax import Array

_STD_EPSILON = 1e-6


def regression(prediction: Array, target: Array) -> Array:
  """Squared error summed over the last axis (D), divided by sqrt(D).

  Source: d2v_loss of EAT models/EAT_pretraining.py with loss_scale 1/sqrt(D).
  """
  difference = prediction.astype(jnp.float32) - target
  return jnp.sum(difference**2, axis=-1) * target.shape[-1] ** -0.5


def moments(x: Array, count: Array) -> Array:
  """Sum, and sum of squares, of each channel: [2, D].

  Args:
    x: [..., D].
    count: [...] how often each row of `x` counts.
  """
  x = x.astype(jnp.float32)
  axes = tuple(range(x.ndim - 1))
  weight = count.astype(jnp.float32)[..., None]
  return jnp.stack([jnp.sum(weight * x, axes), jnp.sum(weight * x**2, axes)])


def mean_std(moments_2xD: Array, count: Array) -> Array:
  """Mean over channels of sqrt(unbiased variance + 1e-6).

  Source: compute_var of EAT models/EAT_pretraining.py.
  """
  total_D, square_D = moments_2xD
  variance_D = (square_D - total_D**2 / count) / (count - 1)
  return jnp.mean(jnp.sqrt(jnp.maximum(variance_D, 0.0) + _STD_EPSILON))
