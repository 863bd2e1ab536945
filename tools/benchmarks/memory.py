"""Memory of a step against its batch, and the largest batch that fits."""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh

from sslam_jax import train
from sslam_jax import views as views_lib
from tools.benchmarks import fitting
from tools.benchmarks import machine
from tools.benchmarks import training

_FACTORS = (1, 2, 4, 8)


def default_batches(config: train.Config, mesh: Mesh) -> tuple[int, ...]:
  """The smallest that the configuration allows, and multiples of it."""
  return tuple(n * _unit(config, mesh) for n in _FACTORS)


def measure_memory(
    config: train.Config, batches: Sequence[int]
) -> dict[str, Any]:
  """'memory', a row per batch, and 'memory_line' through them.

  Each batch is compiled; on devices that tell their memory two steps are taken
  as well, and the line goes through what they used instead of through plans.

  Raises:
    ValueError: A batch cannot be spread over the devices.
  """
  # All are checked before the first is compiled.
  checked = [_checked(config, batch) for batch in sorted(set(batches))]
  rows = [_row(each, mesh) for each, mesh in checked]
  measured: dict[str, Any] = {'memory': rows}
  line = _line(config, checked[0][1], rows)
  return measured if line is None else measured | {'memory_line': line}


def _checked(config: train.Config, batch: int) -> tuple[train.Config, Mesh]:
  try:
    config = _with_batch(config, batch)
    return config, train.make_mesh(config)
  except ValueError as error:
    raise ValueError(f'memory of batch {batch}: {error}') from None


def _with_batch(config: train.Config, batch: int) -> train.Config:
  """The same with another batch, and a mix group that divides it.

  A group changes no shape: it says among which clips partners are found.
  """
  views = config.data.views
  devices = config.devices or jax.device_count()
  if (isinstance(views, views_lib.Masked) and views.mix is not None
      and batch // devices % views.mix.group):
    mix = dataclasses.replace(views.mix, group=batch // devices)
    views = dataclasses.replace(views, mix=mix)
  data = dataclasses.replace(config.data, views=views)
  return dataclasses.replace(config, batch=batch, data=data)


def _row(config: train.Config, mesh: Mesh) -> dict[str, Any]:
  program = training.compile_step(config, mesh)
  ran, used = _use(config, mesh, program)
  plan = training.planned_memory(program.step)
  return {'batch': config.batch, **plan, 'ran': ran, 'device_peak_bytes': used}


def _use(
    config: train.Config, mesh: Mesh, program: training.Program
) -> tuple[bool | None, int | None]:
  """(whether two steps ran, the device's peak), where the device tells it.

  The peak is that since the start of the process: None unless these steps
  raised it.
  """
  device = mesh.devices.flat[0]
  before = machine.device_peak_bytes(device)
  if before is None:
    return None, None
  try:
    update = training.updates(config, mesh, program)
    for _ in range(2):
      jax.block_until_ready(update())
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return False, None
  after = machine.device_peak_bytes(device)
  return True, after if after is not None and after > before else None


def _line(
    config: train.Config, mesh: Mesh, rows: list[dict[str, Any]]
) -> dict[str, Any] | None:
  for key in ('device_peak_bytes', 'program_bytes'):
    points = [(row['batch'], row[key]) for row in rows if row[key] is not None]
    if line := fitting.line(*zip(*points)) if points else None:
      break
  else:
    return None
  limit = machine.device_limit_bytes(mesh.devices.flat[0])
  largest = None
  if limit is not None and line.slope > 0:
    unit = _unit(config, mesh)
    fits = (limit - line.intercept) / line.slope
    largest = max(0, math.floor(fits / unit) * unit)
  return {
      'line_of': key,
      'fixed_bytes': line.intercept,
      'clip_bytes': line.slope * mesh.size,
      'residual_share': max(abs(y / line(x) - 1) for x, y in points),
      'limit_bytes': limit,
      'largest_batch': largest,
  }


def _unit(config: train.Config, mesh: Mesh) -> int:
  """The batch that every possible batch is a multiple of."""
  group = config.data.views.group
  return mesh.size * math.lcm(config.accumulate, group)
