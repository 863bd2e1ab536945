"""Scores of a model whose logits are known."""

import dataclasses
import json
import pathlib
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
from sslam_jax import features
from sslam_jax import model
from sslam_jax import objectives
from sslam_jax import probes
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


def known_tokens(vit, mel, kinds, params, mel_BxTxF):
  """As features, the mean of each mel band and, of 'std', twice that."""
  mean_BxF = params['scale'] * mel_BxTxF.mean(1)
  return {kind: mean_BxF * (2 if kind == 'std' else 1) for kind in kinds}


def pretraining():
  vit = model.Vit(width=16, depth=1, heads=2)
  return objectives.MaskedLatent(vit=vit, decoder=model.Decoder(groups=2))


def probe_values(params, teacher=None, devices=1, **fields):
  """What a probe finds in known features, on some devices."""
  fields = {'train': Source(), 'test': Source(), 'features': 'mean',
            'batch': 4, **fields}
  with mock.patch.object(features, 'tokens', known_tokens):
    run = evaluate.Probe(**fields).start(pretraining(), DATA, mesh(devices))
    return run({'encoder': {'scale': np.float32(params)}},
               {'scale': np.float32(teacher or 0)})


def passed(*sources, devices=1):
  """The features that a pass over each source finds on some devices."""
  network = features.Network(vit=pretraining().vit, params={}, mel=MEL)
  with mock.patch.object(features, 'tokens', known_tokens):
    run = features.Pass(network, ['mean', 'std'], batch=4, threads=2,
                        mesh=mesh(devices))
    return [run({'scale': np.float32(1)}, source) for source in sources]


def found(devices):
  """What a scorer and a probe find on some devices, fit for JSON."""
  scorer = evaluate.Scorer(objective(), DATA, batch=4, mesh=mesh(devices))
  scored, bad = scorer(PARAMS, Source())
  # Of one clip a second process has none.
  some = passed(Source(), Source(LABELS[:1], bad=()), devices=devices)
  return {'probe': probe_values(1, devices=devices),
          'features': [x.arrays['std'].tolist() for x in some],
          'clips': [[x.ids, x.labels, x.damaged] for x in some],
          'ids': list(scored.ids), 'scores': scored.score_NxC.tolist(),
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
  ours = json.loads(json.dumps(found(devices=2)))
  for process in range(2):
    theirs = json.loads((tmp_path / f'{process}.json').read_text())
    for name in ('scores', 'features'):
      jax.tree.map(
          lambda x, y: np.testing.assert_allclose(x, y, rtol=TOLERANCE),
          theirs.pop(name), ours[name])
    assert theirs == {name: x for name, x in ours.items() if name in theirs}


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


def test_a_test_is_scored_by_number_of_labels_too():
  test = evaluate.Test(source=Source(), batch=4, by_sources=True)
  values = test.start(objective(), DATA, mesh())(PARAMS, {})
  # Clips 1, 3 and 6 have two labels, though one of clip 3 is not learned.
  label, score = truth(), logits()
  heard = np.array([len(x) for i, x in enumerate(LABELS) if i != BAD])
  for count in (1, 2):
    rows = heard == count
    found = label[rows].any(0)  # classes that some of these clips have
    np.testing.assert_allclose(
        values[f'test_map_{count}'],
        sklearn_metrics.average_precision_score(
            label[rows][:, found], score[rows][:, found], average='macro'),
        rtol=TOLERANCE)
  assert {*values} == {'test_map', 'test_auc', 'test_top1', 'test_map_1',
                       'test_map_2'}


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


def tones(clips_of_each, seed=0):
  """Clips of one of three tones, labelled so."""

  @dataclasses.dataclass
  class Tones(Source):

    def wave(self, index):
      rng = np.random.default_rng([seed, index])
      hz = 300 * 4 ** CLASSES.index(LABELS_OF_TONES[index % 3])
      time_S = np.arange(MEL.samples) / MEL.rate_hz
      return (np.sin(2 * np.pi * hz * time_S + rng.uniform(0, 6))
              + 0.3 * rng.standard_normal(MEL.samples)).astype(np.float32)

  names = [(name,) for name in LABELS_OF_TONES] * clips_of_each
  return Tones(tuple(names), bad=())


LABELS_OF_TONES = 'cat', 'bell', 'dog'


def test_a_probe_finds_classes_that_are_there_and_no_others():
  parts = {'train': tones(8), 'test': tones(20, seed=1)}
  assert probe_values(1, **parts) == {'probe_accuracy': 1.0}
  rng = np.random.default_rng(0)
  for part in parts.values():
    part.label_sets = tuple(map(tuple, rng.permutation(part.label_sets)))
  chance = probe_values(1, name='mixed_up', **parts)['mixed_up_accuracy']
  assert 0.2 < chance < 0.47  # a third, and twice its deviation of 60 clips


def test_a_probe_is_of_the_encoder_asked_for():
  parts = {'train': tones(8), 'test': tones(20, seed=1)}
  values = [probe_values(student, teacher, weights=weights, **parts)
            for student, teacher, weights in (
                (0, 1, 'student'), (0, 1, 'teacher'), (1, 0, 'teacher'))]
  assert [round(x['probe_accuracy'], 3) for x in values] == [0.333, 1, 0.333]


def test_a_probe_of_multi_label_clips_is_scored_by_number_of_labels():
  rng = np.random.default_rng(3)
  sets = tuple(tuple(rng.choice(CLASSES, rng.integers(1, 4), replace=False))
               for _ in range(30))
  source = Source(sets, bad=(4,))
  test = dataclasses.replace(source, label_sets=(*sets[20:], *sets[:20]))
  values = probe_values(1, train=source, test=test, features='mean+std',
                        seed=2)
  part, tested = passed(source, test)
  x_NxD, x_MxD = (np.concatenate([x.arrays['mean'], x.arrays['std']], 1)
                  for x in (part, tested))
  label_NxC, label_MxC = (
      np.array([[name in row for name in CLASSES] for row in x.labels])
      for x in (part, tested))
  score_MxC = probes.linear(probes.Labelled(x_NxD, label_NxC), x_MxD,
                            is_single=False, seed=2).score_MxC
  heard_M = label_MxC.sum(1)
  expected = {'probe_map': np.ones(29, bool)} | {
      f'probe_map_{count}': heard_M == count for count in (1, 2, 3)}
  assert values == pytest.approx({
      name: sklearn_metrics.average_precision_score(
          label_MxC[rows], score_MxC[rows], average='macro')
      for name, rows in expected.items()}, abs=TOLERANCE)
  single = probe_values(1, train=tones(4), test=tones(4), multi_label=True)
  assert single == {'probe_map': 1.0, 'probe_map_1': 1.0}


def test_several_features_are_probed_in_one_pass():
  rng = np.random.default_rng(5)
  source = Source(tuple(
      tuple(rng.choice(CLASSES, rng.integers(1, 3), replace=False))
      for _ in range(20)))
  specs = 'mean', 'std+mean'
  alone = {spec: probe_values(1, train=source, test=source, features=spec)
           for spec in specs}
  both = probe_values(1, train=source, test=source, features=','.join(specs))
  assert both == {
      name.replace('probe_', f'probe_{spec.replace("+", "_")}_', 1): value
      for spec in specs for name, value in alone[spec].items()}
  assert alone['mean'] != alone['std+mean']
  for wrong, message in (('mean,', "features: want class, .*; got ''"),
                         ('std,std', 'features: want each once, got std,std'),
                         ('rows+std,rows_std', 'features: want each once')):
    with pytest.raises(ValueError, match=message):
      evaluate.Probe(train=source, test=source, features=wrong)


def test_a_probe_of_a_classifier_is_of_what_is_evaluated():
  """The moving average, which has a head too."""
  average = mock.Mock(spec=classify.Classify, vit=pretraining().vit)
  average.evaluated = lambda params, teacher: teacher
  test = evaluate.Probe(train=tones(8), test=tones(8), features='mean', batch=4)
  with mock.patch.object(features, 'tokens', known_tokens):
    values = test.start(average, DATA, mesh())(
        {'encoder': {'scale': 0.0}}, {'encoder': {'scale': np.float32(1)}})
  assert values == {'probe_accuracy': 1.0}
  with pytest.raises(ValueError, match="probe: want weights='student' of a cl"):
    evaluate.Probe(train=Source(), test=Source(), weights='teacher').check(
        objective())


class Declared(Source):
  """A source whose classes are more than its labels."""

  classes = CLASSES


@pytest.mark.parametrize(('fields', 'message'), [
    ({'test': Declared(((), ('emu',)), bad=())},
     r'test: want clips with some of the labels of training \(bell.*got none'),
    ({'train': Source(((), ()), bad=())},
     'want labelled training clips, got no label'),
    ({'test': Source((('emu',), ('ape',)), bad=())},
     r'want test clips with labels of training \(bell.*got ape, emu'),
    ({'train': Source(LABELS[:1], bad=())}, 'folds: want at least 2 .*, got 1'),
    ({'groups': 'groups.csv'}, 'groups: want FILE.csv:COLUMN, got .groups.csv'),
    ({'groups': '/no/groups.csv:x'}, 'groups: want a table, got .*/no/groups'),
])
def test_data_that_no_probe_can_learn_is_refused_at_the_start(fields, message):
  with pytest.raises(ValueError, match=f'evals: probe: .*{message}'):
    probe_values(1, **fields)


def test_groups_hold_every_training_clip_that_can_be_read(tmp_path):
  table = tmp_path / 'groups.csv'
  here = pathlib.Path.cwd()
  rows = [f'{here}/clip {i},{"ab"[i % 2]}' for i in range(len(LABELS))
          if i != BAD]
  table.write_text('\n'.join(['path,speaker', *rows[:2]]))
  with pytest.raises(ValueError, match='got no row for 4 of 6, the first'):
    probe_values(1, groups=f'{table}:speaker')
  text = '\n'.join(['path,speaker', *rows])
  table.write_text(text)
  with mock.patch.object(probes, 'linear', wraps=probes.linear) as linear:
    probe_values(1, groups=f'{table}:speaker')
  assert ''.join(linear.call_args.args[0].group_N) == 'abbaba'
  table.write_text(text.replace(',b', ',a'))
  with pytest.raises(ValueError, match='folds: want at least 2 .*, got 1'):
    probe_values(1, groups=f'{table}:speaker')


@pytest.mark.parametrize(('fields', 'message'), [
    ({'every': 0}, 'every: want at least 1, got 0'),
    ({'batch': 0}, 'batch: want at least 1, got 0'),
    ({'seed': -1}, 'seed: want at least 0, got -1'),
    ({'name': 'a b'}, "name: want letters, digits, _ and -, got 'a b'"),
    ({'length_s': 0.0}, 'length_s: want a length above 0, or None, got 0.0'),
    ({'features': 'mean+rowz'}, "features: want class, .*; got 'rowz'"),
    ({'features': 'patch'}, "features: want class, .*; got 'patch'"),
])
def test_impossible_settings_of_a_probe_are_refused(fields, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    evaluate.Probe(train=Source(), test=Source(), **fields)


def test_two_evaluations_have_two_names():
  evals = tuple(evaluate.Probe(train=Source(), test=Source()) for _ in '12')
  with pytest.raises(ValueError, match='evals: want a name of its own for '
                     'each, got probe, probe'):
    tiny.stage1('unused', evals=evals)


def test_what_was_measured_is_told_by_the_longest_name():
  evals = [evaluate.Probe(name=name, train=Source(), test=Source())
           for name in ('tones', 'tones_teacher', 'other')]
  assert evaluate.measured([{'step': 1, 'tones_teacher_map': 1}], evals) == {
      'tones_teacher'}
  assert evaluate.measured([{'step': 1, 'tones_map': 1}, {'other_map': 1}],
                           evals) == {'tones', 'other'}
