"""Scores of a model whose logits are known."""

import dataclasses
import json
from unittest import mock

import jax
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from sslam_jax import audio
from sslam_jax import classify
from sslam_jax import clips
from sslam_jax import data
from sslam_jax import evaluate
from sslam_jax import model
from sslam_jax import train
from sslam_jax import views
from tests import child
from tests import tiny

TOLERANCE = 1e-5
CLASSES = 'bell', 'cat', 'dog'
MEL = audio.LogMel(frames=12, mel_bins=8, mean=0.0, std=1.0)
LABELS = (('bell',), ('cat', 'dog'), ('dog',), ('bell', 'owl'), ('cat',),
          ('dog',), ('bell', 'cat'))
BAD = 2


@dataclasses.dataclass
class Source:
  """Noise; the third clip cannot be read."""

  label_sets: tuple[tuple[str, ...], ...] = LABELS
  bad: tuple[int, ...] = (BAD,)

  @property
  def classes(self):
    return tuple(sorted({name for row in self.label_sets for name in row}))

  def __len__(self):
    return len(self.label_sets)

  def labels(self, index):
    return self.label_sets[index]

  def wave(self, index):
    rng = np.random.default_rng(index)
    return rng.standard_normal(MEL.samples).astype(np.float32)

  def __getitem__(self, index):
    if index in self.bad:
      raise clips.BadClip(f'clip {index}', 'noise')
    return clips.Clip(
        id=f'clip {index}', labels=self.labels(index), rate_hz=MEL.rate_hz,
        samples=MEL.samples,
        read=lambda start, count: self.wave(index)[start : start + count],
    )


DATA = data.Data(source=Source(), mel=MEL, threads=2,
                 views=views.Labelled(classes=CLASSES))
PARAMS = {'weight': np.float32(2.0)}


def objective(**fields):
  return classify.Classify(
      vit=model.Vit(width=32, depth=2, heads=2), **fields)


def known_logits(self, params, mel):
  """Some cells of the log-mel, weighted."""
  return params['weight'] * mel[:, 0, :3]


@pytest.fixture(autouse=True)
def logits_are_known():
  with mock.patch.object(classify.Classify, 'logits', known_logits):
    yield


def mesh(devices=1):
  return train.make_mesh(tiny.stage1('unused', devices=devices))


def found(devices):
  """What a scorer finds on some devices, fit for JSON."""
  scorer = evaluate.Scorer(objective(), DATA, batch=4, mesh=mesh(devices))
  scored, bad = scorer(PARAMS, Source())
  return {'ids': list(scored.ids), 'scores': scored.score_NxC.tolist(),
          'labels': scored.label_NxC.tolist(),
          'sources': scored.sources_N.tolist(), 'bad': list(map(str, bad))}


def logits(weight=2.0):
  wave = np.stack([Source().wave(i) for i in range(len(LABELS)) if i != BAD])
  samples = np.full(len(wave), MEL.samples)
  return weight * np.asarray(MEL(wave, samples))[:, 0, :3]


def truth():
  rows = [row for i, row in enumerate(LABELS) if i != BAD]
  return np.array([[name in row for name in CLASSES] for row in rows])


@pytest.mark.parametrize('kind', ['bce', 'ce'])
def test_scores_are_the_model_s_probabilities_in_order(kind):
  """Two batches of which the last is partial; unknown labels are left out."""
  scorer = evaluate.Scorer(objective(loss_kind=kind), DATA, batch=4,
                           mesh=mesh())
  scored, bad = scorer(PARAMS, Source())
  assert scored.ids == tuple(
      f'clip {i}' for i in range(len(LABELS)) if i != BAD)
  assert scored.classes == CLASSES
  np.testing.assert_array_equal(scored.label_NxC, truth())
  expected = 1 / (1 + np.exp(-logits())) if kind == 'bce' else (
      jax.nn.softmax(logits()))
  np.testing.assert_allclose(scored.score_NxC, expected, rtol=0,
                             atol=TOLERANCE)
  assert [error.clip_id for error in bad] == [f'clip {BAD}']


def test_each_of_two_processes_finds_what_one_does(tmp_path):
  """Though each reads and scores every other half of a batch alone."""
  jobs = child.start_two(tmp_path, module='tests.scoring_child')
  statuses, errors = child.ends_of(jobs, timeout=300)
  assert statuses == [0, 0], errors
  expected = found(devices=2)
  for process in range(2):
    theirs = json.loads((tmp_path / f'{process}.json').read_text())
    scores = theirs.pop('scores')
    np.testing.assert_allclose(scores, expected['scores'], rtol=TOLERANCE)
    assert theirs == {k: v for k, v in expected.items() if k != 'scores'}


def test_values_of_a_test_are_scikit_learn_s():
  test = evaluate.Test(source=Source(), batch=4, name='held_out')
  run = test.start(objective(), DATA, mesh())
  values = run(PARAMS, {})
  label, score = truth(), logits()
  np.testing.assert_allclose(
      [values['held_out_map'], values['held_out_auc']],
      [sklearn_metrics.average_precision_score(label, score, average='macro'),
       sklearn_metrics.roc_auc_score(label, score, average='macro')],
      rtol=TOLERANCE)
  hits = label[np.arange(len(label)), score.argmax(1)]
  np.testing.assert_allclose(values['held_out_top1'], hits.mean())
  assert len(values) == 3
  reversed_values = run({'weight': np.float32(-2.0)}, {})
  np.testing.assert_allclose(reversed_values['held_out_auc'],
                             1 - values['held_out_auc'], rtol=TOLERANCE)


def test_a_value_that_does_not_exist_is_left_out():
  """Every clip has the only class: no AUC."""
  source = Source((('bell',),) * 3, bad=())
  run = evaluate.Test(source=source, batch=4).start(objective(), DATA, mesh())
  values = run(PARAMS, {})
  assert {*values} == {'test_map', 'test_top1'}
  assert values['test_map'] == 1


def test_labels_of_another_data_set_are_refused():
  test = evaluate.Test(source=Source((('owl',), ('ape',)), bad=()), batch=4)
  message = r'labels: want some of the model \(bell, cat, dog\), got ape, owl'
  with pytest.raises(ValueError, match=message):
    test.start(objective(), DATA, mesh())
  scorer = evaluate.Scorer(objective(), DATA, batch=4, mesh=mesh())
  with pytest.raises(ValueError, match=message):
    scorer(PARAMS, test.source)


def test_clips_none_of_which_can_be_read_are_refused():
  scorer = evaluate.Scorer(objective(), DATA, batch=4, mesh=mesh())
  with pytest.raises(ValueError, match='want readable clips, got none; the '
                     'first: clip 0: want readable audio, got noise'):
    scorer(PARAMS, Source(bad=tuple(range(len(LABELS)))))


def test_only_a_classifier_can_be_tested():
  test = evaluate.Test(source=Source())
  test.check(objective())
  with pytest.raises(ValueError, match='evals: want an objective that '
                     'classifies for Test, got MaskedLatent'):
    tiny.stage1('unused', evals=(test,))


@pytest.mark.parametrize('fields', [{'every': 0}, {'batch': 0}])
def test_impossible_settings_are_refused_by_name(fields):
  with pytest.raises(ValueError, match=f'^{next(iter(fields))}: want at least'):
    evaluate.Test(source=Source(), **fields)
