"""The step on 1, 2, 4 devices, as many clips on each: its work and traffic.

  python -m tools.benchmarks.scaling < configs.json

prints the rows as JSON; the benchmark starts it with virtual devices, where
this machine has too few.
"""

from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
from typing import Any

import jax

from sslam_jax import config as config_lib
from sslam_jax import train
from tools.benchmarks import collectives
from tools.benchmarks import flops
from tools.benchmarks import training

_ROOT = pathlib.Path(__file__).parents[2]
# Would set the number of devices a second time.
_DEVICES_FLAG = re.compile(r'--xla_force_host_platform_device_count=\d+')
_NAMED = ('all-reduce', 'all-gather', 'reduce-scatter')


def measure_scaling(
    config: train.Config, counts: Sequence[int], seconds: float
) -> list[dict[str, Any]]:
  """A row per number of devices, with the clips per device that `config` has.

  Where this machine has so many devices the steps are taken as well; else they
  are compiled for virtual CPU devices, and 'step_s' is None.

  Raises:
    ValueError: The configuration cannot be spread, or not be sent to the
      process with virtual devices.
  """
  clips = config.batch // train.make_mesh(config).size
  configs = [dataclasses.replace(config, devices=n, batch=n * clips)
             for n in counts]
  found = jax.device_count()
  rows = [_row(each, seconds) for n, each in zip(counts, configs) if n <= found]
  more = [each for n, each in zip(counts, configs) if n > found]
  return rows + (_virtual_rows(more) if more else [])


def main() -> int:
  configs = map(config_lib.from_json, json.load(sys.stdin))
  print(json.dumps([_row(config, None) for config in configs]))
  return 0


def _virtual_rows(configs: Sequence[train.Config]) -> list[dict[str, Any]]:
  # (XLA takes flags of blanks for the name of a file.)
  flags = _DEVICES_FLAG.sub('', os.environ.get('XLA_FLAGS', '')).strip()
  most = max(config.devices or 1 for config in configs)
  environment = {
      **os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(most),
      'XLA_FLAGS': flags,
  }  # fmt: skip
  done = subprocess.run(
      [sys.executable, '-m', __name__], cwd=_ROOT, env=environment,
      input=json.dumps([config_lib.to_json(config) for config in configs]),
      capture_output=True, text=True, check=False,
  )
  if done.returncode:
    lines = done.stderr.strip().splitlines() or [f'status {done.returncode}']
    raise ValueError(f'scaling on {most} virtual devices: {lines[-1]}')
  return json.loads(done.stdout.splitlines()[-1])


def _row(config: train.Config, seconds: float | None) -> dict[str, Any]:
  """What one step does; timed unless `seconds` is None."""
  mesh = train.make_mesh(config)
  program = training.compile_step(config, mesh)
  row: dict[str, Any] = {
      'devices': mesh.size,
      'on': 'virtual CPU' if seconds is None else jax.devices()[0].device_kind,
      'batch': config.batch,
      'device_gflop': None if program.flops is None else program.flops / 1e9,
      'loops_once_gflop_xla': training.xla_gflop(program.step),
      **_traffic(program.step, mesh.size),
      'program_bytes': training.planned_memory(program.step)['program_bytes'],
      'step_s': None,
      'clips_per_s': None,
  }
  if seconds is not None:
    update = training.updates(config, mesh, program)
    row['step_s'] = statistics.median(training.times(update, seconds)[0])
    row['clips_per_s'] = config.batch / row['step_s']
  return row


def _traffic(step: jax.stages.Compiled, devices: int) -> dict[str, int | None]:
  """Bytes of the collectives by kind, and what a device sends for all."""
  keys = [f'{kind.replace("-", "_")}_bytes' for kind in (*_NAMED, 'other')]
  try:
    found = collectives.count(step.as_text() or '', devices)
  except flops.UncountableError as error:
    print(f'benchmark: collectives not counted: {error}', file=sys.stderr)
    return dict.fromkeys(('collectives', *keys, 'sent_bytes'))
  sizes = {kind: found[kind, 'bytes'] for kind in collectives.KINDS}
  named = [sizes.pop(kind) for kind in _NAMED]
  return {
      'collectives': sum(found[kind, 'calls'] for kind in collectives.KINDS),
      **dict(zip(keys, [*named, sum(sizes.values())])),
      'sent_bytes': collectives.sent_bytes(found),
  }


if __name__ == '__main__':
  sys.exit(main())
