"""Times the training step of a configuration on this machine.

  python tools/benchmark.py --config=configs/stage2.py:soundscapes \\
      --config.objective.vit.dtype=float32 --config.batch=2 \\
      --config.data.clones=2 --config.data.mix.group=2

A whole update is timed: forward and backward pass, optimiser and teacher, from
spectrograms on. The rate of a matrix product measured in the same call tells
how fast the machine is.
"""

import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# For a checkout that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from sslam_jax import data
from sslam_jax import main as main_lib
from sslam_jax import train

_STEPS = 7
_MATRIX = 4096


def main(args: list[str]) -> int:
  """Prints one JSON object; exit status 2 for a wrong configuration."""
  try:
    config = main_lib.parse(args)
    print(json.dumps(measure(config), indent=2))
  except ValueError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


def measure(config: train.Config) -> dict[str, Any]:
  """Seconds to compile, seconds per step, clips/s, and the machine's rate."""
  mesh = train.make_mesh(config)
  feed = data.Feed(
      config.data, batch=config.batch, seed=config.seed,
      patch=config.objective.vit.patch, mesh=mesh,
  )
  _, views = next(feed)
  feed.close()
  state = train.create_state(config, mesh)
  began = time.perf_counter()
  step_fn = train.compile_step(config, mesh).lower(state, views).compile()
  compile_s = time.perf_counter() - began
  step_s = []
  for _ in range(_STEPS):
    began = time.perf_counter()
    state, metrics = jax.block_until_ready(step_fn(state, views))
    step_s.append(time.perf_counter() - began)
  median_s = statistics.median(step_s[1:])  # the first touches new memory
  dtype = config.objective.vit.dtype
  return {
      'device': f'{mesh.size} x {mesh.devices.flat[0].device_kind}',
      'dtype': dtype,
      'batch': config.batch,
      'clones': config.data.clones,
      'compile_s': round(compile_s, 2),
      'step_s': round(median_s, 3),
      'step_s_all': [round(s, 3) for s in step_s],
      'clips_per_s': round(config.batch / median_s, 3),
      'matmul_gflop_per_s': round(matmul_rate(dtype) / 1e9, 1),
      'loss': float(metrics['loss']),
  }


def matmul_rate(dtype: str) -> float:
  """Best FLOP/s of a square matrix product on one device."""
  shape = (_MATRIX, _MATRIX)
  a, b = (jax.random.normal(jax.random.key(i), shape).astype(dtype)
          for i in range(2))
  product: Callable[..., Any] = jax.jit(jnp.matmul)
  jax.block_until_ready(product(a, b))
  seconds = []
  for _ in range(_STEPS):
    began = time.perf_counter()
    jax.block_until_ready(product(a, b))
    seconds.append(time.perf_counter() - began)
  return 2 * _MATRIX**3 / min(seconds)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
