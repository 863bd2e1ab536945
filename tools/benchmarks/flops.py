"""Floating-point operations of a traced program, loops included.

XLA's cost analysis counts the body of a loop once, and our blocks are a loop;
in a program compiled for a GPU most products are opaque library calls. So the
program that is handed to XLA is counted: its matrix products and convolutions,
a scan's times its length. XLA takes none of them out.
"""

from collections.abc import Iterator
import math
from typing import Any

from jax import core as jax_core
from jax.extend import core
import numpy as np

# Their program runs once, where they stand.
_CALLS = frozenset((
  'jit', 'pjit', 'closed_call', 'core_call', 'checkpoint', 'remat', 'remat2',
  'shard_map', 'custom_jvp_call', 'custom_vjp_call', 'custom_vjp_call_jaxpr',
))  # fmt: skip
# Products of cuDNN's fused attention, each as large as queries times keys;
# backward, the scores are computed again.
_FUSED_ATTENTION = {'dot_product_attention_fwd_wrapper': 2,
                    'dot_product_attention_bwd_wrapper': 5}
_HEADS_FIRST = 1  # value of its layout [B, N, T, H], else [B, T, N, H]
# What they compute, or how often, is not to be seen in the program.
_OPAQUE = ('ffi_call', 'pallas_call', 'ragged_dot', 'scaled_', 'attention')


class UncountableError(ValueError):
  """The program holds an operation whose cost is not known."""


def count(program: core.ClosedJaxpr, *, bodies_once: bool = False) -> int:
  """FLOPs of one device: 2 for each multiplication with its addition.

  Positions of a convolution outside the map are left out, as by XLA. Of the
  branches of a condition the costliest counts.

  Args:
    program: Of a `jax.jit`: `jitted.trace(...).jaxpr`.
    bodies_once: Count the body of a loop once, as XLA's cost analysis does.

  Raises:
    UncountableError: Naming the operation.
  """
  return _count(program.jaxpr, bodies_once)


def _count(jaxpr: core.Jaxpr, bodies_once: bool) -> int:
  return sum(_equation(equation, bodies_once) for equation in jaxpr.eqns)


def _equation(equation: core.JaxprEqn, bodies_once: bool) -> int:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    return _product(equation)
  if name == 'conv_general_dilated':
    return _convolution(equation)
  if name in _FUSED_ATTENTION:
    return _FUSED_ATTENTION[name] * _scores(equation)
  if any(part in name for part in _OPAQUE):
    raise UncountableError(f'program: want operations of known cost, got a '
                           f'{name}')
  inner = [_count(jaxpr, bodies_once) for jaxpr in _programs(params)]
  if name == 'cond':
    return max(inner)
  if name == 'scan':
    return sum(inner) * (1 if bodies_once else params['length'])
  if any(inner) and name not in _CALLS:
    raise UncountableError(f'program: want loops of known length, got '
                           f'products in a {name}')
  return sum(inner)


def _programs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
  """The programs among the parameters of an operation."""
  for value in params.values():
    for part in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(part, core.ClosedJaxpr):
        yield part.jaxpr
      elif isinstance(part, core.Jaxpr):
        yield part


def _product(equation: core.JaxprEqn) -> int:
  (contracted, _), _ = equation.params['dimension_numbers']
  left = _shape(equation.invars[0])
  terms = math.prod(left[axis] for axis in contracted)
  return 2 * math.prod(_shape(equation.outvars[0])) * terms


def _scores(equation: core.JaxprEqn) -> int:
  """Queries times keys of a fused attention, for all clips and heads."""
  queries, keys = (_shape(x) for x in equation.invars[:2])
  axis = 2 if equation.params['layout'] == _HEADS_FIRST else 1
  return 2 * math.prod(queries) * keys[axis]


def _convolution(equation: core.JaxprEqn) -> int:
  params = equation.params
  numbers = params['dimension_numbers']
  image, kernel = (_shape(x) for x in equation.invars)
  out = _shape(equation.outvars[0])
  products = math.prod(
    _taps(
      image[numbers.lhs_spec[2 + i]], kernel[numbers.rhs_spec[2 + i]],
      out[numbers.out_spec[2 + i]], params['window_strides'][i],
      params['padding'][i][0], params['lhs_dilation'][i],
      params['rhs_dilation'][i],
    )
    for i in range(len(image) - 2)
  )  # fmt: skip
  rows, features = (out[axis] for axis in numbers.out_spec[:2])
  # The kernel holds the inputs of one group only.
  return 2 * rows * features * kernel[numbers.rhs_spec[1]] * products


def _taps(
  size: int, kernel: int, out: int, stride: int, padding: int,
  spread: int, dilation: int,
) -> int:  # fmt: skip
  """Pairs of an output and a tap that meet a sample, along one axis."""
  place = np.arange(out)[:, None] * stride - padding
  place = place + np.arange(kernel) * dilation
  inside = (place >= 0) & (place <= (size - 1) * spread)
  return int(np.sum(inside & (place % spread == 0)))


def _shape(variable: Any) -> tuple[int, ...]:
  aval: jax_core.ShapedArray = variable.aval
  return aval.shape
