"""From the teacher's layers to what the student must predict; all float32."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

_EPSILON = 1e-5


def average_layers(layers_LxBxNxD: Array, *, last: int | None) -> Array:
  """Targets [B, N, D] from the results of the `last` layers (None: all).

  Each layer is normalised over the tokens per channel and clip, the layers
  are averaged, the average is normalised over the channels.
  Source: make_targets of EAT models/EAT_pretraining.py.
  """
  depth = len(layers_LxBxNxD)
  used = layers_LxBxNxD[depth - (last or depth) :].astype(jnp.float32)
  return _standardize(_standardize(used, axis=-2).mean(0), axis=-1)


def join(
    own_BxNxD: Array, partners_BxCxD: Sequence[Array], token_BxC: Array
) -> Array:
  """Source retention targets: the mean of all sources where they are mixed.

  Args:
    own_BxNxD: Targets of the clean clips.
    partners_BxCxD: Those of their partners, for the mixed tokens alone.
    token_BxC: Which tokens these are.

  Source: SSLAM paper, equation 4, which has one partner.
  """
  row_Bx1 = jnp.arange(len(own_BxNxD))[:, None]
  sum_BxCxD = sum(partners_BxCxD, own_BxNxD[row_Bx1, token_BxC])
  mean_BxCxD = sum_BxCxD / (1 + len(partners_BxCxD))
  return own_BxNxD.at[row_Bx1, token_BxC].set(mean_BxCxD)


def _standardize(x: Array, axis: int) -> Array:
  # The library's own variance, E[x^2] - E[x]^2, loses digits.
  variance = jnp.var(x, axis, keepdims=True)
  return jax.nn.standardize(x, axis, variance=variance, epsilon=_EPSILON)
