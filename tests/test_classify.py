"""The classification objective: its loss, and runs that learn by it."""

import dataclasses
import functools
import math
import shutil
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sslam_jax import checkpoint
from sslam_jax import classify
from sslam_jax import data
from sslam_jax import evaluate
from sslam_jax import metrics as metrics_lib
from sslam_jax import model
from sslam_jax import pretrained
from sslam_jax import report
from sslam_jax import soundscapes
from sslam_jax import state as state_lib
from sslam_jax import train
from sslam_jax import views as views_lib
from tests import tiny

TOLERANCE = 1e-5  # relative
GRADIENT_TOLERANCE = 1e-5  # of each tensor's norm
LOGITS = np.float32([[2, -1, 0], [0, 1, 3], [-2, 0, 1], [1, 1, -3]])
LABELS = np.float32([[1, 0, 0], [0, 0.3, 0.7], [1, 1, 0], [0, 0, 0]])

pytestmark = pytest.mark.usefixtures('shared_steps')


def examples(label_BxC=LABELS, *, has_mixup=False):
  clips = len(label_BxC)
  mel_BxTxF = np.zeros((clips, 1, 1), np.float32)
  return views_lib.Examples(mel_BxTxF, label_BxC, np.arange(clips), has_mixup)


def loss(objective, views, logit_BxC=LOGITS, counts=None):
  """The loss and the metrics of given logits."""
  counts = counts or objective.counts(views)
  with mock.patch.object(classify.Classify, 'logits',
                         lambda *_: jnp.asarray(logit_BxC)):
    total, sums = objective.loss({}, {}, views, jax.random.key(0), counts)
  return total, objective.metrics(sums, counts)


def cross_entropies(logit, label):
  """Binary [B, C], and softmax [B]."""
  logit, label = np.float64(logit), np.float64(label)
  s = 1 / (1 + np.exp(-logit))
  p = np.exp(logit) / np.exp(logit).sum(1, keepdims=True)
  binary = -(label * np.log(s) + (1 - label) * np.log(1 - s))
  return binary, -(label * np.log(p)).sum(1)


@pytest.mark.parametrize(('divisor', 'count'), [
    ('positives', 4.0), ('clips', 4.0), ('elements', 12.0),
])
def test_bce_is_summed_and_divided_by_what_is_asked_for(divisor, count):
  label = np.concatenate([LABELS, LABELS])[:6] if divisor == 'clips' else LABELS
  logit = np.concatenate([LOGITS, LOGITS])[: len(label)]
  count = len(label) if divisor == 'clips' else count
  objective = classify.Classify(bce_divisor=divisor)
  total, metrics = loss(objective, examples(label), logit)
  binary, _ = cross_entropies(logit, label)
  np.testing.assert_allclose(total, binary.sum() / count, rtol=TOLERANCE)
  np.testing.assert_allclose(metrics['loss'], total)


def test_a_batch_without_a_label_has_a_finite_loss():
  none = np.zeros_like(LABELS)
  total, _ = loss(classify.Classify(), examples(none))
  np.testing.assert_allclose(total, cross_entropies(LOGITS, none)[0].sum(),
                             rtol=TOLERANCE)


@pytest.mark.parametrize(('smooth_mixed', 'has_mixup', 'smooths'), [
    (False, False, True), (False, True, False), (True, True, True),
])
def test_ce_is_a_mean_over_clips_and_mixup_drops_its_smoothing(
    smooth_mixed, has_mixup, smooths
):
  objective = classify.Classify(loss_kind='ce', smoothing=0.3,
                                smooth_mixed=smooth_mixed)
  total, _ = loss(objective, examples(has_mixup=has_mixup))
  label = 0.7 * LABELS + 0.1 if smooths else LABELS
  np.testing.assert_allclose(total, cross_entropies(LOGITS, label)[1].mean(),
                             rtol=TOLERANCE)


@pytest.mark.parametrize('kind', ['bce', 'ce'])
def test_shares_of_parts_add_up_under_the_counts_of_the_batch(kind):
  objective, whole = classify.Classify(loss_kind=kind), examples()
  counts = objective.counts(whole)
  shares = [loss(objective, examples(LABELS[i : i + 2]), LOGITS[i : i + 2],
                 counts)[0] for i in (0, 2)]
  np.testing.assert_allclose(sum(shares), loss(objective, whole)[0],
                             rtol=TOLERANCE)


def test_metrics_are_labels_a_clip_and_how_often_the_highest_is_one():
  _, metrics = loss(classify.Classify(), examples())
  assert metrics['top1'] == 0.5  # of clips 0 and 1
  assert metrics['labels'] == 1.0


def test_probabilities():
  bce = classify.Classify().probabilities(LOGITS)
  np.testing.assert_allclose(bce[0, 0], 1 / (1 + math.exp(-2)), rtol=TOLERANCE)
  ce = classify.Classify(loss_kind='ce').probabilities(LOGITS)
  np.testing.assert_allclose(ce.sum(1), np.ones(4), rtol=TOLERANCE)
  np.testing.assert_allclose(ce[0, 0] / ce[0, 2], math.exp(2), rtol=TOLERANCE)


@pytest.mark.parametrize(('fields', 'message'), [
    ({'smoothing': 1.0, 'loss_kind': 'ce'}, '^smoothing: want 0 to below 1'),
    ({'smoothing': 0.1}, "^smoothing: want it with loss_kind 'ce', got 0.1"),
    ({'drop_path': -0.1}, '^drop_path: want 0 to below 1, got -0.1'),
])
def test_impossible_settings_are_refused_by_name(fields, message):
  with pytest.raises(ValueError, match=message):
    classify.Classify(**fields)


def test_masked_views_are_refused():
  config = tiny.stage1('unused')
  with pytest.raises(ValueError, match='data.views: want Labelled, .* Masked'):
    dataclasses.replace(config, objective=classify.Classify(
        vit=config.objective.vit))


def config_of(per_clip=False, **changes):
  """Mixes every batch."""
  config = tiny.classify('unused', **changes)
  config.data.views.mixup.probability = 1.0
  config.data.views.mixup.per_clip = per_clip
  return config


@functools.cache
def compiled(devices, accumulate):
  """The state at step 0, and the gradients as a function of it and views."""
  config = config_of(devices=devices, accumulate=accumulate)
  mesh = train.make_mesh(config)
  function = functools.partial(train.gradients, objective=config.objective,
                               accumulate=accumulate)
  return train.create_state(config, mesh), jax.jit(jax.shard_map(
      function, mesh=mesh,
      in_specs=(PartitionSpec(), PartitionSpec(views_lib.AXIS)),
      out_specs=PartitionSpec(),
  ))


@functools.cache
def gradients(devices, accumulate, per_clip):
  config = config_of(per_clip, devices=devices, accumulate=accumulate)
  feed = data.Feed(config.data, batch=config.batch, seed=config.seed,
                   patch=config.objective.vit.patch,
                   mesh=train.make_mesh(config))
  views = next(feed).views
  feed.close()
  state, function = compiled(devices, accumulate)
  return *jax.device_get(function(state, views)), np.asarray(views.label_BxC)


@pytest.mark.parametrize('per_clip', [False, True])
def test_gradients_do_not_depend_on_how_the_batch_is_cut(per_clip):
  """Four devices and two parts; with all that is random."""
  ours, metrics, labels = gradients(4, 2, per_clip)
  expected, expected_metrics, expected_labels = gradients(1, 1, per_clip)
  np.testing.assert_allclose(labels, expected_labels, rtol=0, atol=1e-6)
  assert ((labels > 0) & (labels < 1)).any()

  def check(path, a, b):
    error = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert error < GRADIENT_TOLERANCE, (jax.tree_util.keystr(path), error)

  jax.tree_util.tree_map_with_path(check, ours, expected)
  for name, value in expected_metrics.items():
    np.testing.assert_allclose(metrics[name], value, rtol=TOLERANCE,
                               err_msg=name)


def test_drop_path_changes_the_gradient():
  """So that the test above covers it."""
  config = config_of()
  views = examples(np.eye(8, 3, dtype=np.float32)).replace(
      mel_BxTxF=np.ones((8, tiny.FRAMES, tiny.MEL_BINS), np.float32))
  seen = []
  for rate in (0.0, 0.9):
    objective = dataclasses.replace(config.objective, drop_path=rate)
    with mock.patch.object(
        classify.Classify, 'logits',
        lambda self, params, mel, branch=None: (
            seen.append(branch), jnp.zeros((8, 3)))[1]):
      objective.loss({}, {}, views, jax.random.key(0), objective.counts(views))
  assert seen[0] is None
  assert seen[1].shape == (2, 8, 2)
  assert (seen[1][1] == 0).mean() > 0.6


@pytest.fixture(scope='module')
def first(tmp_path_factory):
  """The folder of a pre-training run, and its state."""
  config = tiny.stage1(tmp_path_factory.mktemp('stage1'), seed=2)
  state = train.create_state(config, train.make_mesh(config))
  tiny.save(config, state)
  return config.workdir, state


def fine_tuning(workdir, start):
  """A run with an average, evaluated twice; its average differs from it."""
  config = tiny.classify(workdir, init_from=start)
  config.objective.ema = state_lib.Ema(start=0.8, end=0.9, anneal_steps=4)
  config.evals = (evaluate.Test(
      source=soundscapes.Soundscapes(clips=6, length_s=1.5, seed=5), every=3,
      batch=4, name='held_out'),)
  return config


@pytest.fixture(scope='module')
def tuned(first, tmp_path_factory):
  config = fine_tuning(tmp_path_factory.mktemp('tuned'), first[0])
  return config, train.run(config)


def lines(config):
  """Lines of training, and of evaluation."""
  found = [{k: v for k, v in line.items() if k not in tiny.TIMES}
           for line in report.read_metrics(config.workdir)]
  is_eval = ['held_out_map' in line for line in found]
  return ([x for x, y in zip(found, is_eval) if not y],
          [x for x, y in zip(found, is_eval) if y])


def test_a_run_starts_from_another_s_encoder_with_a_new_head(first):
  config = fine_tuning('unused', first[0])
  new = train.create_state(config, train.make_mesh(config))
  started = train._start_from(first[0], new, config.objective)
  jax.tree.map(np.testing.assert_array_equal, started.params['encoder'],
               first[1].params['encoder'])
  assert (new.params['encoder']['clip'] != started.params['encoder'][
      'clip']).any()
  jax.tree.map(np.testing.assert_array_equal, started.params['head'],
               new.params['head'])
  jax.tree.map(np.testing.assert_array_equal, started.teacher, started.params)
  assert started.step == 0


def test_a_run_of_another_width_is_refused_by_name(first, tmp_path):
  config = fine_tuning(tmp_path / 'run', first[0])
  config.objective.vit = model.Vit(width=16, depth=2, heads=2, dtype='float32')
  with pytest.raises(ValueError,
                     match='stage1.*: want an encoder of width 16, got width '
                     '32$'):
    train.run(config)
  assert not (tmp_path / 'run').exists()


def test_a_run_learns_encoder_and_head(first, tuned):
  config, state = tuned
  steps, _ = lines(config)
  assert [line['step'] for line in steps] == [1, 2, 3, 4, 5, 6]
  assert {'loss', 'top1', 'labels', 'grad_norm', 'ema_decay'} <= {*steps[0]}
  for leaf, was in zip(jax.tree.leaves(state.params['encoder']),
                       jax.tree.leaves(first[1].params['encoder'])):
    assert (leaf != was).any()


def test_the_average_is_evaluated(tuned):
  """By the run, by a scorer, and as what is loaded."""
  config, state = tuned
  assert config.objective.evaluated(state.params, state.teacher) is (
      state.teacher)
  _, evals = lines(config)
  assert [line['step'] for line in evals] == [3, 6]
  loaded = pretrained.load(str(config.workdir))
  jax.tree.map(np.testing.assert_array_equal, loaded.params, state.teacher)
  score = evaluate.Scorer(config.objective, config.data, batch=4,
                          mesh=train.make_mesh(config))
  means = []
  for params in (state.teacher, state.params):
    scored, _ = score(params, config.evals[0].source)
    summary = metrics_lib.summary(scored, single_label=False, resamples=0)
    means.append(summary.overall.map.value)
  assert evals[1]['held_out_map'] == means[0] != means[1]


def test_a_stopped_run_goes_on_with_the_same_numbers(first, tuned, tmp_path):
  config, state = fine_tuning(tmp_path, first[0]), tuned[1]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train.processes.Stop, 'reason',
                  lambda _, step: 'SIGTERM' if step == 4 else None)
    with pytest.raises(train.Interrupted, match='after step 4'):
      train.run(config)
  again = train.run(config)
  assert lines(config) == lines(tuned[0])
  for ours, theirs in ((again.params, state.params),
                       (again.teacher, state.teacher),
                       (again.opt_state, state.opt_state)):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_an_evaluation_that_a_kill_prevented_is_made_up_for(tuned, tmp_path):
  """The last step is saved, but what is measured after it is not written."""
  config = dataclasses.replace(tuned[0], workdir=str(tmp_path / 'run'))
  shutil.copytree(tuned[0].workdir, config.workdir)
  path = tmp_path / 'run' / report.METRICS
  whole = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(whole[:-1]))
  for _ in range(2):  # and only once
    train.run(config)
    assert lines(config) == lines(tuned[0])


def test_a_frozen_encoder_stays_as_it_is(first, tmp_path):
  """Weight decay, too, leaves it alone; the optimiser knows the head alone."""
  config = tiny.classify(tmp_path, init_from=first[0], steps=4,
                         keep=checkpoint.Keep(every=100))
  config.objective = dataclasses.replace(
      config.objective, drop_path=0.0, freeze_encoder=True)
  config.optim.weight_decay = 0.5
  state = train.run(config)
  jax.tree.map(np.testing.assert_array_equal, state.params['encoder'],
               first[1].params['encoder'])
  head = state.params['head']
  moments = [x.shape for x in jax.tree.leaves(state.opt_state) if x.ndim]
  assert sorted(moments) == sorted(
      2 * [leaf.shape for leaf in jax.tree.leaves(head)])
  new = train.create_state(config, train.make_mesh(config)).params['head']
  for leaf, was in zip(jax.tree.leaves(head), jax.tree.leaves(new)):
    assert (leaf != was).any()
  assert state.teacher == {}
  jax.tree.map(np.testing.assert_array_equal,
               pretrained.load(str(tmp_path)).params, state.params)


def test_single_label_data_has_one_label_for_each_clip():
  single = classify.Classify(loss_kind='ce')
  single.check_source(soundscapes.Soundscapes(clips=5, max_events=1))
  many = soundscapes.Soundscapes(clips=20)
  with pytest.raises(ValueError, match=r'data.source: want one label for each '
                     r'clip .* multi_label\), got \w+, \w+.* for clip \d'):
    single.check_source(many)
  classify.Classify().check_source(many)


def test_data_without_a_label_is_refused():
  class Unlabelled(soundscapes.Soundscapes):
    def labels(self, index):
      return ()

  with pytest.raises(ValueError, match='data.source: want labelled clips'):
    classify.Classify().check_source(Unlabelled(clips=3))


@pytest.mark.parametrize('frames', [100, 12_000])
def test_clips_of_a_second_and_of_two_minutes(frames):
  """The parameters fit any length; longer clips are heard to their end."""
  objective = classify.Classify(
      vit=model.Vit(width=16, depth=1, heads=2, dtype='float32')
  )
  params = jax.jit(lambda: objective.init(jax.random.key(0), (64, 16), 3))()
  mel_1xTxF = jnp.zeros((1, frames, 16))
  logits = jax.jit(objective.logits)
  before = logits(params, mel_1xTxF)
  after = logits(params, mel_1xTxF.at[:, -20:].set(1.0))
  assert before.shape == (1, 3)
  assert float(jnp.abs(after - before).max()) > 0
