"""Device-hours of the published AudioSet-2M runs at a measured rate."""

from collections.abc import Sequence
import copy
import dataclasses
import functools
import sys
from typing import Any

from configs import stage1
from configs import stage2
from sslam_jax import model
from sslam_jax import objectives
from sslam_jax import train
from tools.benchmarks import flops
from tools.benchmarks import training

# The published runs: what the configurations are without an argument.
_STAGES = {'stage 1': stage1.get_config, 'stage 2': stage2.get_config}
_DEVICES = (1, 2, 4, 8)
# More than that apart, the arithmetic of a clip is another.
_SAME = 0.005
# More than that many times apart, a rate says nothing of the other.
_FARTHEST = 10


def project(
    config: train.Config, steps: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
  """A row per number of devices; [] where nothing can be said.

  The run is the published one of the stage whose objective is measured: its
  updates, clips, clones and model. Where a clip of `config` is another amount
  of work, the time is scaled by the FLOPs, as if the rate stayed.

  Args:
    config: That was measured.
    steps: 'devices', 'batch' and 'step_s' of one or more measurements.

  Raises:
    flops.UncountableError: The step holds an operation of unknown cost.
  """
  stage = _stage(config)
  if stage is None:
    return []
  published = _STAGES[stage]()
  work = _published_flops(stage) / clip_flops(config)
  if not 1 / _FARTHEST <= work <= _FARTHEST:
    print(f'benchmark: not projected: the published clip is {work:.3g} times '
          f'the work of this one', file=sys.stderr)
    return []
  is_same = abs(work - 1) < _SAME
  told = 'published' if is_same else f'scaled, FLOPs x {work:.3g}'
  dtype = config.objective.vit.dtype
  if dtype != published.objective.vit.dtype:
    told += f', in {dtype}'
  clips = published.steps * published.batch
  rows = []
  for devices in _DEVICES:
    step = _nearest(steps, devices)
    device_s = step['step_s'] * step['devices'] / step['batch']
    hours = clips * device_s * (1.0 if is_same else work) / 3600
    rows.append({
        'run': f'{stage}, {published.steps} x {published.batch} clips',
        'devices': devices,
        'device_hours': hours,
        'hours': hours / devices,
        'scaling': 'measured' if step['devices'] == devices else
                   f'perfect from {step["devices"]}',
        'work': told,
    })
  return rows


def clip_flops(config: train.Config) -> float:
  """FLOPs of a step per clip; what `vit.remat` computes again is left out."""
  group = config.data.views.group
  objective = copy.copy(config.objective)
  objective.vit = dataclasses.replace(objective.vit, remat=model.Vit().remat)
  config = dataclasses.replace(
      config, objective=objective, devices=1, accumulate=1, batch=group
  )
  traced = training.trace_step(config, train.make_mesh(config))
  return flops.count(traced.jaxpr) / group


@functools.cache
def _published_flops(stage: str) -> float:
  return clip_flops(_STAGES[stage]())


def _stage(config: train.Config) -> str | None:
  if isinstance(config.objective, objectives.SourceRetention):
    return 'stage 2'
  if isinstance(config.objective, objectives.MaskedLatent):
    return 'stage 1'
  return None


def _nearest(steps: Sequence[dict[str, Any]], devices: int) -> dict[str, Any]:
  """With as many devices, else with the most of fewer, else with the fewest."""
  ordered = sorted(steps, key=lambda step: step['devices'])
  below = [step for step in ordered if step['devices'] <= devices]
  return below[-1] if below else ordered[0]
