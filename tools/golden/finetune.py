"""A classifier: logits, losses and gradient, rates and decay, augmentation."""

import dataclasses
import functools
from typing import Any, Literal

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
import numpy as np

from sslam_jax import augment
from sslam_jax import classify
from sslam_jax import losses
from sslam_jax import metrics
from sslam_jax import model
from sslam_jax import state
from sslam_jax import torch_io
from sslam_jax import views as views_lib
from tools.golden import encoder
from tools.golden import folder
from tools.golden import losses as golden_losses
from tools.golden import measures
from tools.golden import training
from tools.golden import weights

_RATE = measures.Tolerance(1e-5, 'rel')
_DROP = measures.Tolerance(1e-6, 'abs')
_GRADIENT = measures.Tolerance(1e-4, 'of norm')
_SIGMAS = measures.Tolerance(5.0, 'sigma')  # difference between two samples

_Pooling = Literal['class', 'mean', 'linear_softmax']
# Stored logits: by which pooling, and of how many frames (None: all).
_LOGITS: dict[str, tuple[_Pooling, int | None]] = {
    'logits': ('class', None),
    'logits_512': ('class', 512),
    'logits_mean_pooling': ('mean', None),
    'logits_lin_softmax': ('linear_softmax', None),
}
_SMOOTHING = 0.1
_LAST_DROP = 0.1
_DEPTH = 12
_DRAWS = 2000  # of SpecAugment, in the official statistics
_OUR_DRAWS = 20_000  # ours as well leave the mean uncertain, but less
_PARAM_LR = 'finetune_param_lr.json'


def check(golden: folder.Golden) -> None:
  """All of `finetune.npz`, and the list of rates beside it."""
  section = golden.section('finetune')
  mel_BxTxF = weights.source(golden, 'finetune')
  if 'classifier' not in golden.case('finetune'):
    section.skip('logits and gradient', 'cases.json names no classifier')
  else:
    try:
      params = weights.params(golden, 'finetune', 'classifier')
    except weights.NoWeightsError as error:
      section.skip('logits and gradient', str(error))
    else:
      _check_logits(section, params, mel_BxTxF)
      _check_gradient(section, params, mel_BxTxF)
  _check_losses(section)
  _check_layers(section)
  if section.names('mixup/'):
    _check_mixup(section, mel_BxTxF)
  if section.names('specaug/'):
    _check_bands(section.under('specaug/'))
  if (golden.path / _PARAM_LR).exists():
    _check_rates(golden)


def _check_logits(
    section: folder.Section, params: state.Params, mel_BxTxF: np.ndarray
) -> None:
  for name, (pooling, frames) in _LOGITS.items():
    section.expect(name)
    if section.names(name):
      objective = _objective(params, pooling)
      logit_BxC = jax.jit(objective.logits)(params, mel_BxTxF[:, :frames])
      section.compare(name, logit_BxC, measures.VALUES)


def _check_gradient(
    section: folder.Section, params: state.Params, mel_BxTxF: np.ndarray
) -> None:
  """The whole of training's loss, without drop path and SpecAugment."""
  label_BxC = section.need('labels_multi')
  examples = views_lib.Examples(
      jnp.asarray(mel_BxTxF), jnp.asarray(label_BxC),
      jnp.arange(len(label_BxC)), has_mixup=False,
  )
  loss = functools.partial(_loss, _objective(params, 'class'))
  (value, counts), gradient = jax.jit(
      jax.value_and_grad(loss, has_aux=True)
  )(params, examples)
  divisor = counts['positives']
  section.compare('bce/sample_size', divisor, measures.EQUAL)
  section.compare('bce/sum', value * divisor, measures.LOSS)
  tensors = torch_io.to_torch(jax.tree.map(np.asarray, gradient))
  golden_losses.check_norms(section, tensors, 'bce/grad_l2')
  for name in section.names('bce/grad/'):
    # The class token's has lost the modules it belongs to.
    full = next((x for x in tensors if x.endswith(name)), name)
    section.compare(f'bce/grad/{name}', tensors.get(full, np.nan), _GRADIENT)


def _loss(
    objective: classify.Classify, params: state.Params,
    examples: views_lib.Examples,
) -> tuple[Array, dict[str, Array]]:
  counts = objective.counts(examples)
  rng = jax.random.key(0)  # for drop path, which is off
  return objective.loss(params, {}, examples, rng, counts)[0], counts


def _check_losses(section: folder.Section) -> None:
  """The losses of the official logits."""
  official_BxC = section.find('logits')
  if official_BxC is None:
    section.skip('bce/* and ce_*', 'needs logits')
    return
  logit_BxC = jnp.asarray(official_BxC)
  label_BxC = jnp.asarray(section.need('labels_multi'))
  bce_BxC = losses.binary_cross_entropy(logit_BxC, label_BxC)
  section.compare('bce/elementwise', bce_BxC, measures.VALUES)
  probability_BxC = classify.Classify().probabilities(logit_BxC)
  section.compare('bce/predictions', probability_BxC, measures.VALUES)
  label_BxC = jnp.asarray(section.need('labels_single'))
  for key, smoothing in (('ce_eval', 0.0), ('ce_train_ls0.1', _SMOOTHING)):
    error_B = losses.cross_entropy(logit_BxC, label_BxC, smoothing=smoothing)
    section.compare(f'{key}/elementwise', error_B, measures.VALUES)
    section.compare(f'{key}/sum', error_B.sum(), measures.LOSS)
    section.compare(f'{key}/sample_size', len(error_B), measures.EQUAL)
  section.compare('ce_eval/correct', _correct(logit_BxC, label_BxC),
                  measures.EQUAL)


def _correct(logit_BxC: Array, label_BxC: Array) -> int:
  """Clips whose highest logit is that of their class."""
  clips, classes = (tuple(map(str, range(n))) for n in logit_BxC.shape)
  scored = metrics.Scored(
      clips, classes, np.asarray(logit_BxC), np.asarray(label_BxC) > 0)
  summary = metrics.summary(scored, single_label=True, resamples=0)
  return round((summary.overall.top1.value or 0) * len(clips))


def _check_layers(section: folder.Section) -> None:
  """What changes from block to block: learning rates, dropped branches."""
  ours = dataclasses.replace(training.LAYERWISE, min_lr=0.0)
  rates = jax.jit(ours.rates, static_argnums=1)(
      ours.warmup_steps, training.LAYERWISE_UPDATES, training.stack(_DEPTH))
  section.compare('layer_lr_scale_per_block',
                  rates['encoder']['blocks']['kernel'] / ours.peak_lr, _RATE)
  row_R = jnp.arange(_OUR_DRAWS)
  factor_LxRx2 = jax.jit(model.drop_path, static_argnums=(2, 3))(
      jax.random.key(0), row_R, _DEPTH, _LAST_DROP)
  # What is not dropped is divided by the probability of that.
  probability_L = 1 - 1 / factor_LxRx2.max((1, 2))
  if (official := section.find('drop_path_probs')) is not None:
    section.add('drop_path_probs', probability_L, official, _DROP)
    dropped_L = (factor_LxRx2 == 0).mean((1, 2))
    sigma_L = np.sqrt(official * (1 - official) / (2 * len(row_R)))
    section.add('drop_path_probs of draws', dropped_L, official,
                _SIGMAS.by(sigma_L))


def _check_mixup(section: folder.Section, mel_BxTxF: np.ndarray) -> None:
  """A batch mixed with its reverse, as on one device."""
  label_BxC, share = section.need('labels_multi'), section.need('mixup/lam')
  clips = len(label_BxC)
  record = {'mixup': jnp.full(clips, share, jnp.float32),
            'row': jnp.arange(clips)}
  spread = PartitionSpec(views_lib.AXIS)
  mix = functools.partial(augment.Mixup().apply, axis=views_lib.AXIS)
  mesh = jax.make_mesh((1,), (views_lib.AXIS,), (AxisType.Auto,))
  mixed_BxTxF, target_BxC = jax.shard_map(
      mix, mesh=mesh, in_specs=spread, out_specs=spread
  )((mel_BxTxF, label_BxC), record)
  section.compare('mixup/x_slice', mixed_BxTxF[:, ::64, ::16], measures.VALUES)
  section.compare('mixup/targets', target_BxC, measures.VALUES)


def _check_bands(part: folder.Section) -> None:
  """Largest and mean width of the blank bands: of mel bins, of frames."""
  step, rng = augment.SpecAugment(), np.random.default_rng(0)
  draw_Rx2x2 = jnp.asarray(np.stack(
      [step.draw(rng)['spec'] for _ in range(_OUR_DRAWS)]))
  lengths = (128, 1024)
  part.compare('freqm_timem', [step.share * x for x in lengths], measures.NORM)
  widths = [np.asarray(step.band(draw_Rx2x2[:, axis], length).sum(1))
            for axis, length in enumerate(lengths)]
  official = part.need('width_stats_max_mean')
  part.add('width_stats max', [x.max() for x in widths], official[:, 0],
           measures.EQUAL)
  sigma = np.array([x.std() * (1 / _DRAWS + 1 / _OUR_DRAWS) ** 0.5
                    for x in widths])
  part.add('width_stats mean', [x.mean() for x in widths], official[:, 1],
           _SIGMAS.by(sigma))


def _check_rates(golden: folder.Golden) -> None:
  """Learning rate and weight decay of every tensor."""
  entries = golden.json(_PARAM_LR)
  rate = {x['name']: x['lr_at_end_of_warmup'] for x in entries}
  decay = {x['name']: x['weight_decay_used'] * rate[x['name']]
           for x in entries}
  section = folder.Section(
      folder.File(golden.path / _PARAM_LR, {}), golden.report)
  rates, moves = _rates_and_moves()
  section.add('names', sorted(rates) == sorted(rate), True, measures.EQUAL)
  for key, ours, official in (
      ('lr_at_end_of_warmup', rates, rate),
      ('lr of an update', moves['gradient'], rate),
      ('lr * weight_decay_used of an update', moves['decay'], decay),
  ):
    for name, value in official.items():
      section.add(key, ours.get(name, np.nan), value, _RATE, name)


def _rates_and_moves() -> tuple[folder.Tensors, dict[str, folder.Tensors]]:
  """At the peak, of each tensor by its official name: one number.

  The learning rate; and how far an update moves tensors with a gradient of 1,
  and tensors of ones without a gradient, which decay alone moves.
  """
  objective = classify.Classify(
      vit=model.Vit(width=4, depth=_DEPTH, heads=1, dtype='float32'))
  params = jax.tree.map(jnp.ones_like, jax.eval_shape(
      functools.partial(objective.init, shape=(16, 16), classes=1),
      jax.random.key(0)))
  rates, moved, decayed = map(_numbers, jax.jit(_updates)(params))
  return rates, {'gradient': moved, 'decay': decayed}


def _updates(ones: Any) -> tuple[Any, Any, Any]:
  """The learning rates at the peak, and the two updates."""
  recipe, updates = training.LAYERWISE, training.LAYERWISE_UPDATES
  rates = recipe.rates(jnp.int32(recipe.warmup_steps), updates, ones)
  zeros = jax.tree.map(jnp.zeros_like, ones)
  # Without warm-up the first update is at the peak.
  transform = dataclasses.replace(recipe, warmup_steps=0).build(updates)
  moves = (transform.update(gradient, transform.init(params), params)[0]
           for gradient, params in ((ones, zeros), (zeros, ones)))
  rates = jax.tree.map(jnp.multiply, rates, ones)
  return rates, *(jax.tree.map(jnp.negative, move) for move in moves)


def _numbers(tree: Any) -> folder.Tensors:
  """The one number in each tensor, by its official name; or NaN."""
  tensors = torch_io.to_torch(jax.tree.map(np.asarray, tree))
  return {name: x.flat[0] if np.ptp(x) == 0 else np.array(np.nan)
          for name, x in tensors.items()}


def _objective(
    params: state.Params, pooling: _Pooling
) -> classify.Classify:
  return classify.Classify(
      vit=encoder.vit_of(params['encoder']), head=model.Head(pooling=pooling))
