"""The machine under the figures: what it is, how fast, and whether it idles."""

import datetime
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib

_CPU_INFO = pathlib.Path('/proc/cpuinfo')
_REPEATS = 7
# Large enough to be bound by arithmetic, small enough for seconds in all.
_EDGES = {'cpu': 4096}
_EDGE = 16_384
_QUIET_LOAD = 0.25  # of a core


def facts() -> dict[str, Any]:
  """What a figure depends on; None where the system does not tell."""
  devices = jax.devices()
  return {
      'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
      'commit': _commit(),
      'cpu': _cpu(),
      'cores': cores(),
      'devices': f'{len(devices)} x {devices[0].device_kind}',
      'platform': platform.platform(),
      'python': platform.python_version(),
      'jax': jax.__version__,
      'jaxlib': jaxlib.__version__,
      'glibc_tunables': os.environ.get('GLIBC_TUNABLES'),
      'xla_flags': os.environ.get('XLA_FLAGS'),
      'load_1min': round(os.getloadavg()[0], 2),
      'is_quiet': os.getloadavg()[0] <= _QUIET_LOAD * cores(),
  }


def cores() -> int:
  """How many this process may use."""
  if sys.platform == 'linux':
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def peak_memory_bytes() -> int:
  """The most memory that this process has held since its start."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 1024


def device_peak_bytes(device: jax.Device) -> int | None:
  """The most that was allocated there since the start of this process."""
  return (device.memory_stats() or {}).get('peak_bytes_in_use')


def device_limit_bytes(device: jax.Device) -> int | None:
  """The most that JAX may allocate there; None where it has no limit."""
  return (device.memory_stats() or {}).get('bytes_limit')


def matmul_rate(dtype: str, device: jax.Device) -> float:
  """FLOP/s of a large square matrix product, the best of several."""
  edge = _EDGES.get(device.platform, _EDGE)
  a, b = (
      jax.device_put(
          jax.random.normal(jax.random.key(i), (edge, edge), dtype), device
      )
      for i in range(2)
  )
  product = jax.jit(jnp.matmul)
  jax.block_until_ready(product(a, b))
  seconds = []
  for _ in range(_REPEATS):
    began = time.perf_counter()
    jax.block_until_ready(product(a, b))
    seconds.append(time.perf_counter() - began)
  return 2 * edge**3 / min(seconds)


def _cpu() -> str | None:
  if _CPU_INFO.exists():
    for line in _CPU_INFO.read_text(encoding='utf-8').splitlines():
      name, _, value = line.partition(':')
      if name.strip() == 'model name':
        return value.strip()
  return platform.processor() or None


def _commit() -> str | None:
  """The checked-out commit, with -dirty where files differ from it."""
  command = ['git', 'describe', '--always', '--dirty', '--abbrev=40',
             '--exclude=*']
  folder = pathlib.Path(__file__).parent
  try:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True,
                          check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()
