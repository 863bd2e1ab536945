"""Learning rates, the teacher's average, and AdamW."""

import dataclasses
import math
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np
import optax

from sslam_jax import optim
from sslam_jax import state
from sslam_jax import torch_io
from tools.golden import folder
from tools.golden import measures
from tools.golden import weights

_DECAY = measures.Tolerance(1e-9, 'abs')  # 1 - decay is 1e-5 to 2e-4
_EMA = measures.Tolerance(1e-6, 'abs')
_LR = measures.Tolerance(1e-6, 'of peak')
# fairseq adds eps before it corrects the bias of the squares, Optax after.
_ADAM = measures.Tolerance(1e-3, 'of peak')

# Recipe and number of updates of the published runs.
_RUNS = {
    'stage1': (optim.Optim(peak_lr=5e-4, warmup_steps=53_333), 400_000),
    'stage2': (optim.Optim(peak_lr=5e-5, warmup_steps=25_000), 200_000),
    'finetune_as20k': (
        optim.Optim(peak_lr=5e-5, min_lr=1e-6, warmup_steps=4000), 40_000),
    'finetune_esc50': (
        optim.Optim(peak_lr=5e-5, min_lr=1e-6, warmup_steps=400), 4000),
}
# Fine-tuning on AudioSet-20K as it ran: rates by layer, no clipping.
_FINE_TUNED, LAYERWISE_UPDATES = _RUNS['finetune_as20k']
_LAYER_DECAY = 0.65
LAYERWISE = dataclasses.replace(
    _FINE_TUNED, layer_decay=_LAYER_DECAY, clip_norm=None)
_SCALED = 'lr/finetune_scaled/'
_TOY = optim.Optim(peak_lr=1e-2, warmup_steps=0)  # of adam/*
_TOY_UPDATES = 1000


def check(golden: folder.Golden) -> None:
  """All of `schedules.npz`."""
  section = golden.section('schedules')
  for name in section.names('ema/'):
    if name.endswith('/updates'):
      _check_decay(section.under(f'ema/{name.removesuffix("updates")}'))
  if section.names('ema_step/'):
    _check_ema_step(golden, section.under('ema_step/'))
  for run in _RUNS:
    if section.names(f'lr/{run}/'):
      _check_lr(section.under(f'lr/{run}/'), run)
  if section.names(_SCALED):
    _check_layerwise_lr(section.under(_SCALED))
  if section.names('adam/'):
    _check_adam(section.under('adam/'))


def _check_decay(part: folder.Section) -> None:
  step = state.Ema().step_size(jnp.asarray(part.need('updates')))
  part.expect('decay')
  part.compare('decay', 1 - np.asarray(step, np.float64), _DECAY)


def _check_ema_step(golden: folder.Golden, part: folder.Section) -> None:
  try:
    params = weights.params(golden, 'ema_step', 'student')['encoder']
    teacher = weights.params(golden, 'ema_step', 'teacher')['encoder']
  except weights.NoWeightsError as error:
    part.skip('*', str(error))
    return
  update = jnp.asarray(golden.case('ema_step', 'update'))
  part.compare('decay', 1 - np.float64(state.Ema().step_size(update)), _DECAY)
  after = state.Ema().follow(teacher, params, update)
  for when, tree in (('before', teacher), ('after', after)):
    tensors = torch_io.to_torch({'encoder': tree})
    for name in part.names(f'teacher_{when}/'):
      part.compare(f'teacher_{when}/{name}', tensors.get(name), _EMA)
  if part.find('after_l2') is not None:
    names = part.need('names').tolist()
    norms = [measures.l2(tensors.get(name, np.nan), 0) for name in names]
    part.compare('after_l2', norms, measures.NORM)


def _check_lr(part: folder.Section, run: str) -> None:
  """Learning rates of a published run, as far as it goes."""
  recipe, steps = _RUNS[run]
  updates, official = part.need('updates'), part.need('lr')
  ran = updates < steps  # later ones show a restart that never runs
  schedule = recipe.schedule(steps)
  ours = np.where(ran, [schedule(int(u)) for u in updates], official)
  part.compare('lr', ours, _LR.by(recipe.peak_lr))


def stack(depth: int) -> Any:
  """The least that a classifier's parameters are: stacked blocks, a head."""
  return {'encoder': {'blocks': {'kernel': jnp.ones(depth)}},
          'head': {'kernel': jnp.ones(())}}


def _check_layerwise_lr(part: folder.Section) -> None:
  """Rates of blocks and head under layer decay; keys are their scales."""
  updates, decay, depth = part.need('updates'), _LAYER_DECAY, 12
  rates_at = jax.jit(LAYERWISE.rates, static_argnums=1)
  rates = [rates_at(int(u), LAYERWISE_UPDATES, stack(depth)) for u in updates]
  for scale in (name for name in part.names() if name != 'updates'):
    # A block's scale is the decay to the power of its distance from the head.
    distance = round(math.log(float(scale), decay))
    ours = [x['encoder']['blocks']['kernel'][depth - distance] if distance
            else x['head']['kernel'] for x in rates]
    part.compare(scale, ours, _LR.by(LAYERWISE.peak_lr * float(scale)))


def _check_adam(part: folder.Section) -> None:
  """The toy run, with either choice of what decays."""
  params, names = _toy(part, 'init/'), part.names('init/')
  steps = len(part.need('lr'))
  gradients = [_toy(part, f'grad{step}/') for step in range(steps)]
  schedule = _TOY.schedule(_TOY_UPDATES)
  part.compare('lr', [schedule(step) for step in range(steps)],
               _LR.by(_TOY.peak_lr))
  norms = [optax.tree.norm(x) for x in gradients]
  part.compare('grad_norm', norms, measures.LOSS)
  decay = [_TOY.weight_decay] * len(names)
  part.compare('effective_weight_decay', decay, measures.EQUAL)
  part.expect(*(f'after{steps}/{name}' for name in names))
  _check_updates(part, _TOY, params, gradients, 'after')
  matrices = dataclasses.replace(_TOY, decay_mask='matrices')
  _check_updates(part, matrices, params, gradients, 'intended_wd0_after')


def _check_updates(
    part: folder.Section, recipe: optim.Optim, params: Any,
    gradients: list[Any], key: str,
) -> None:
  """The toy parameters after each update."""
  transform = recipe.build(_TOY_UPDATES)
  opt_state = transform.init(params)
  for step, gradient in enumerate(gradients, start=1):
    updates, opt_state = transform.update(gradient, opt_state, params)
    params = optax.apply_updates(params, updates)
    for name in part.names(f'{key}{step}/'):
      module, leaf = _toy_path(name, part.need(f'init/{name}').ndim)
      part.compare(f'{key}{step}/{name}', params[module][leaf],
                   _ADAM.by(recipe.peak_lr))


def _toy(part: folder.Section, start: str) -> dict[str, dict[str, Array]]:
  """Toy tensors as a tree whose leaves are named as in the package."""
  tree: dict[str, dict[str, Array]] = {}
  for name in part.names(start):
    tensor = part.need(start + name)
    module, leaf = _toy_path(name, tensor.ndim)
    tree.setdefault(module, {})[leaf] = jnp.asarray(tensor)
  return tree


def _toy_path(name: str, rank: int) -> tuple[str, str]:
  """The optimiser knows by the leaf's name what is meant to decay."""
  module, _, leaf = name.rpartition('.')
  weight = 'kernel' if rank > 1 else 'scale'
  return module, {'weight': weight, 'extra_tokens': 'clip'}.get(leaf, leaf)
