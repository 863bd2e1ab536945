"""The losses of both stages, by property; tests/test_parity.py has numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sslam_jax import audio
from sslam_jax import losses
from sslam_jax import masking
from sslam_jax import mixing
from sslam_jax import objectives
from sslam_jax import targets
from sslam_jax import views as views_lib
from tests import tiny

RELATIVE = 2e-5  # float32 sums in another order
COLUMNS, MEL_PATCHES = tiny.FRAMES // 16, tiny.MEL_BINS // 16


def objective_of(**changes):
  return dataclasses.replace(tiny.stage2('unused').objective, **changes)


@functools.cache
def example():
  """Views of 4 clips with per-clip columns, a student and another teacher."""
  rng = np.random.default_rng(0)
  mel = rng.normal(size=(4, tiny.FRAMES, tiny.MEL_BINS)).astype(np.float32)
  mask = masking.InverseBlock(hide=0.75, block=2)
  plan = mixing.PartialMix(group=2, shared_columns=False)
  keep = np.stack([
      masking.kept_indices(mask.sample(rng, tiny.CLONES,
                                       (COLUMNS, MEL_PATCHES)))
      for _ in mel
  ])
  column = np.stack([plan.plan(rng, COLUMNS) for _ in mel])
  mel = jnp.asarray(mel)
  views = views_lib.Views(
      mel, jnp.asarray(keep), jnp.arange(4),
      views_lib.mixture_of(mel, {'column': column}, plan, audio.LogMel(), 16),
  )
  objective = objective_of()
  init = jax.jit(lambda key: objective.init(key, mel.shape[1:]))
  params, other = init(jax.random.key(1)), init(jax.random.key(2))
  return views, params, other['encoder']


@functools.cache
def compiled(has_gradients, names, values):
  objective = objective_of(**dict(zip(names, values)))

  def evaluate(params, teacher, views, counts):
    return objective.loss(params, teacher, views, jax.random.key(0), counts)

  if has_gradients:
    evaluate = jax.value_and_grad(evaluate, has_aux=True)
  return objective, jax.jit(evaluate)


def evaluate(views=None, **changes):
  """(loss, metrics) of an objective on the example."""
  example_views, params, teacher = example()
  views = example_views if views is None else views
  objective, function = compiled(False, tuple(changes),
                                 tuple(changes.values()))
  counts = objective.counts(views)
  loss, sums = function(params, teacher, views, counts)
  return float(loss), objective.metrics(sums, counts)


@functools.cache
def gradients(first=0, last=4):
  """(loss, gradients) of a part of the example, a share of all of it."""
  views, params, teacher = example()
  objective, function = compiled(True, (), ())
  (loss, _), grads = function(params, teacher, part(views, slice(first, last)),
                              objective.counts(views))
  return float(loss), grads


def part(views, rows):
  return jax.tree.map(lambda x: x[rows], views)


def test_shares_of_parts_add_up_to_the_whole():
  """Though the parts differ in how many tokens the retention counts."""
  whole, grads = gradients()
  halves = [gradients(0, 2), gradients(2, 4)]
  np.testing.assert_allclose(sum(h[0] for h in halves), whole, rtol=RELATIVE)
  summed = jax.tree.map(lambda a, b: a + b, halves[0][1], halves[1][1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=RELATIVE * float(jnp.abs(b).max())), summed, grads)


def test_loss_does_not_change_when_the_batch_is_repeated():
  """Weights are explicit: twice the same clips have the same mean."""
  views, _, _ = example()
  twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), views)
  # Equal rows get equal noise.
  np.testing.assert_allclose(evaluate(twice)[0], evaluate()[0], rtol=RELATIVE)


def test_loss_is_the_weighted_sum_of_its_terms():
  loss, m = evaluate(global_weight=7.0, retention_weight=3.0)
  expected = ((m['local_clean'] + m['local_mixed']) / 2
              + 7 * (m['global_clean'] + m['global_mixed']) / 2
              + 3 * m['retention'])
  np.testing.assert_allclose(loss, expected, rtol=RELATIVE)
  np.testing.assert_allclose(m['loss'], loss, rtol=RELATIVE)


@pytest.mark.parametrize(('arm', 'terms'), [
    ({'clean': True, 'mixed': False}, {'local_clean', 'global_clean'}),
    ({'clean': False, 'mixed': True}, {'local_mixed', 'global_mixed'}),
    ({'clean': True, 'mixed': True},
     {'local_clean', 'global_clean', 'local_mixed', 'global_mixed'}),
])  # fmt: skip
def test_arms_of_table_2_have_their_terms_with_the_same_values(arm, terms):
  _, everything = evaluate()
  _, metrics = evaluate(retention_weight=0.0, **arm)
  found = {name for name in metrics if name.startswith(('local', 'global'))}
  assert found == terms
  assert 'retention' not in metrics
  if 'local_clean' in terms:  # mixed alone draws the noise of the first side
    np.testing.assert_allclose(metrics['local_clean'],
                               everything['local_clean'], rtol=RELATIVE)
  for name in terms & {'global_clean', 'global_mixed'}:
    np.testing.assert_allclose(metrics[name], everything[name], rtol=RELATIVE)


def test_stage1_is_the_clean_arm_but_for_the_global_target():
  stage1 = tiny.stage1('unused').objective
  views, params, teacher = example()
  counts = stage1.counts(views)
  _, sums = jax.jit(stage1.loss)(params, teacher, views, jax.random.key(0),
                                 counts)
  _, metrics = evaluate(clean=True, mixed=False, retention_weight=0.0)
  np.testing.assert_allclose(sums['local_clean'], metrics['local_clean'],
                             rtol=RELATIVE)
  assert abs(float(sums['global_clean'] - metrics['global_clean'])) > 1e-4


@functools.cache
def views_of(sources):
  """Two clips in each mixture, in groups of two; or three of all four."""
  views, *_ = example()
  if sources == 2:
    return views
  mix = mixing.PartialMix(group=4, sources=sources, shared_columns=False)
  record = {'column': views.mixture.column_BxC}
  return dataclasses.replace(views, mixture=views_lib.mixture_of(
      views.mel_BxTxF, record, mix, audio.LogMel(), 16))


@functools.cache
def pieces(sources):
  """Predictions of the mixed side, and the encoder."""
  (_, params, teacher), views = example(), views_of(sources)
  objective = objective_of()
  encoder = objective._encoder
  counts = objective.counts(views)
  _, sides = jax.jit(objective._bootstrap)(params, teacher, views,
                                           jax.random.key(0), counts)
  return (np.asarray(sides['mixed'].prediction_BxMxNxD),
          jax.jit(functools.partial(encoder.apply, with_layers=True)))


PARTNERS = {2: [[1], [0], [3], [2]], 3: [[3, 2], [0, 3], [1, 0], [2, 1]]}


def retention_by_hand(srl_patches, sources):
  """Equation 4 from public pieces, in plain loops over clips and tokens."""
  (_, _, teacher), views = example(), views_of(sources)
  prediction, apply = pieces(sources)
  errors = []
  for clip in range(4):
    columns = np.asarray(views.mixture.column_BxC[clip])
    tokens = [c * MEL_PATCHES + m for c in columns for m in range(MEL_PATCHES)]

    def heard(mel, keep):
      encoded = apply({'params': teacher}, mel, keep)
      return np.asarray(targets.average_layers(encoded.layers_LxRxKxD,
                                               last=None))[0]

    target = heard(views.mel_BxTxF[clip][None], None).copy()
    others = [heard(views.mel_BxTxF[before][None], jnp.asarray([tokens]))
              for before in PARTNERS[sources][clip]]
    for place, token in enumerate(tokens):
      heard_there = [target[token], *(other[place] for other in others)]
      target[token] = sum(heard_there) / sources
    for clone in range(tiny.CLONES):
      kept = set(np.asarray(views.keep_BxMxK[clip, clone]).tolist())
      for token in range(COLUMNS * MEL_PATCHES):
        counted = srl_patches == 'all' or token in tokens
        if token not in kept and counted:
          errors.append(losses.regression(
              jnp.asarray(prediction[clip, clone, token]),
              jnp.asarray(target[token])))
  return np.mean(errors)


@pytest.mark.parametrize(('srl_patches', 'sources'), [
    ('mixed', 2), ('all', 2), ('mixed', 3),
])
def test_retention_is_equation_4(srl_patches, sources):
  _, metrics = evaluate(views_of(sources), srl_patches=srl_patches)
  np.testing.assert_allclose(
      metrics['retention'], retention_by_hand(srl_patches, sources),
      rtol=RELATIVE)


def test_every_student_parameter_has_a_gradient():
  _, grads = gradients()
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    assert float(jnp.abs(grad).max()) > 0, jax.tree_util.keystr(path)


def test_hidden_patches_cannot_reach_the_student():
  """Changing them changes no prediction, only targets."""
  views, params, _ = example()
  objective = tiny.stage1('unused').objective
  keep = views.keep_BxMxK[:, :1]
  only_one = dataclasses.replace(views, keep_BxMxK=keep)
  seen = np.zeros((4, COLUMNS * MEL_PATCHES), bool)
  np.put_along_axis(seen, np.asarray(keep[:, 0]), True, axis=1)
  seen = seen.reshape(4, COLUMNS, MEL_PATCHES)
  seen = seen.repeat(16, axis=1).repeat(16, axis=2)
  changed = jnp.where(seen, views.mel_BxTxF, views.mel_BxTxF + 5.0)
  study = jax.jit(objective._study)
  before, after = (
      study(params, mel, only_one, jax.random.key(0))
      for mel in (views.mel_BxTxF, changed)
  )
  np.testing.assert_array_equal(before[0], after[0])
  np.testing.assert_array_equal(before[1], after[1])


def test_noise_is_a_function_of_the_clip_and_side_alone():
  noise = functools.partial(objectives._noise, jax.random.key(3),
                            shape=(2, 4, 8), std=0.01)
  both = noise(row_B=jnp.arange(6), copies=2)
  second = noise(row_B=jnp.arange(3, 6), copies=2)
  np.testing.assert_array_equal(both.reshape(2, 6, 2, 4, 8)[:, 3:],
                                second.reshape(2, 3, 2, 4, 8))
  assert len(np.unique(np.asarray(both))) > 0.99 * both.size
  np.testing.assert_allclose(noise(row_B=jnp.arange(200), copies=1).std(),
                             0.01, rtol=0.05)


@pytest.mark.parametrize(('changes', 'message'), [
    ({'clean': False, 'mixed': False}, 'clean: want clean or mixed'),
    ({'clean': False}, 'retention_weight: source retention wants clean and'),
    ({'global_layers': 3}, 'global_layers: want None or 1 to 2'),
    ({'retention_weight': -1.0}, 'retention_weight: want at least 0'),
    ({'global_weight': -1.0}, 'global_weight: want at least 0'),
])
def test_contradictions_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    objective_of(**changes)
