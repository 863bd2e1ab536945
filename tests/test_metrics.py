"""Metrics against scikit-learn and hand-sized cases; intervals by coverage."""

import dataclasses
import json
import time

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from sslam_jax import metrics


def scored(score_NxC, label_NxC):
  clips, classes = np.shape(score_NxC)
  return metrics.Scored(
      ids=tuple(f'{i}.wav' for i in range(clips)),
      classes=tuple(f'c{i}' for i in range(classes)),
      score_NxC=np.asarray(score_NxC, np.float32),
      label_NxC=np.asarray(label_NxC, bool),
  )


def drawn(seed, clips=75, classes=20, prevalence=0.05):
  rng = np.random.default_rng(seed)
  label_NxC = rng.random((clips, classes)) < prevalence
  separation_C = np.linspace(0.3, 2.2, classes)
  score_NxC = rng.normal(size=label_NxC.shape) + separation_C * label_NxC
  return scored(score_NxC, label_NxC)


def summary(case, single_label=False, resamples=0, seed=0):
  return metrics.summary(
      case, single_label=single_label, resamples=resamples, seed=seed
  )


@pytest.mark.parametrize('levels', [2, 5, 1000])  # many, some, few ties
@pytest.mark.parametrize('weights', ['ones', 'counts', 'reals'])
def test_ranked_equals_scikit_learn(levels, weights):
  rng = np.random.default_rng(levels)
  for clips in (2, 3, 20, 200):
    score_NxC = rng.integers(levels, size=(clips, 6)).astype(np.float32)
    label_NxC = rng.random((clips, 6)) < [0.02, 0.1, 0.5, 0.9, 1.0, 0.0]
    weight_NxR = {
        'ones': np.ones((clips, 1)),
        'counts': rng.integers(3, size=(clips, 4)).astype(np.float32),
        'reals': rng.random((clips, 4)),
    }[weights]
    ap_RxC, auc_RxC = metrics.ranked(score_NxC, label_NxC, weight_NxR)
    for r, c in np.ndindex(ap_RxC.shape):
      label, score = label_NxC[:, c], score_NxC[:, c]
      weight = weight_NxR[:, r]
      if not weight[label].sum():
        assert np.isnan([ap_RxC[r, c], auc_RxC[r, c]]).all()
        continue
      want = sklearn_metrics.average_precision_score(
          label, score, sample_weight=weight)
      assert ap_RxC[r, c] == pytest.approx(want, abs=1e-12)
      if not weight[~label].sum():
        assert np.isnan(auc_RxC[r, c])
        continue
      want = sklearn_metrics.roc_auc_score(label, score, sample_weight=weight)
      assert auc_RxC[r, c] == pytest.approx(want, abs=1e-12)


def test_ranked_of_hand_sized_cases():
  label = np.array([[True], [False], [True], [False]])
  ones = np.ones((4, 1))
  for score, ap, auc in (
      ([4, 3, 2, 1], (1 + 2 / 3) / 2, 3 / 4),
      ([2, 2, 2, 2], 1 / 2, 1 / 2),  # all equal: prevalence, chance
      ([1, 2, 0, 3], (1 / 3 + 2 / 4) / 2, 0),
  ):
    got = metrics.ranked(np.array(score, np.float32)[:, None], label, ones)
    assert [x.item() for x in got] == pytest.approx([ap, auc])


def test_macro_means_leave_classes_out_and_name_them():
  case = drawn(0, clips=40, classes=6, prevalence=0.3)
  case.label_NxC[:, 1] = False
  case.label_NxC[:, 4] = True
  found = summary(case)
  ap = [0, 2, 3, 4, 5]
  auc = [0, 2, 3, 5]
  assert found.without_positives == ('c1',)
  assert found.without_negatives == ('c4',)
  assert found.overall.classes == 5
  assert found.overall.map.value == pytest.approx(
      sklearn_metrics.average_precision_score(
          case.label_NxC[:, ap], case.score_NxC[:, ap]))
  area = sklearn_metrics.roc_auc_score(
      case.label_NxC[:, auc], case.score_NxC[:, auc])
  assert found.overall.auc.value == pytest.approx(area)
  assert [c.name for c in found.per_class] == ['c0', 'c2', 'c3', 'c4', 'c5']
  assert found.per_class[3].auc.value is None
  assert found.per_class[1].positives == case.label_NxC[:, 2].sum()
  assert found.per_class[1].ap.value == pytest.approx(
      sklearn_metrics.average_precision_score(
          case.label_NxC[:, 2], case.score_NxC[:, 2]))


def test_d_prime_is_the_distance_of_two_normals():
  # Unit normals 1.5 apart: AUC = Phi(1.5 / sqrt(2)).
  assert metrics.d_prime(0.8555778) == pytest.approx(1.5, abs=1e-5)
  case = drawn(0)
  found = summary(case).overall
  assert found.d_prime.value == metrics.d_prime(found.auc.value)
  perfect = summary(scored([[0.9, 0.1], [0.1, 0.9]], np.eye(2))).overall
  assert (perfect.auc.value, perfect.d_prime.value) == (1.0, None)


def test_top_accuracy():
  # The labelled class is 1st, 2nd, 5th and 6th of seven; equal scores: first.
  score = np.array([[7, 6, 5, 4, 3, 2, 1]] * 4, np.float32)
  label = np.eye(7, dtype=bool)[[0, 1, 4, 5]]
  found = summary(scored(score, label), single_label=True).overall
  assert (found.top1.value, found.top5.value) == (0.25, 0.75)
  label[3, 0] = True  # one of its two labels is on top
  assert summary(scored(score, label)).overall.top1.value == 0.5
  flat = summary(scored(np.zeros((4, 7)), np.eye(7)[:4])).overall
  assert (flat.top1.value, flat.top5.value) == (0.25, 1.0)
  five = summary(scored(score[:, :5], label[:, :5])).overall
  assert (five.top1.value, five.top5.value) == (0.5, None)


def test_unlabelled_clips_are_negatives_only_of_multi_label_data():
  case = drawn(0, clips=60, classes=6, prevalence=0.2)
  case.label_NxC[:20] = False
  rest = case.rows(case.label_NxC.any(axis=1))
  unlabelled = 60 - len(rest.ids)
  alone, many, single = (
      summary(rest), summary(case), summary(case, single_label=True))
  assert single.unlabelled == many.unlabelled == unlabelled
  assert (many.overall.clips, single.overall.clips) == (60, len(rest.ids))
  assert single.overall == alone.overall
  assert many.overall.map.value < alone.overall.map.value
  assert many.overall.top1 == alone.overall.top1
  assert many.by_sources == alone.by_sources
  case.label_NxC[:, 3] = case.label_NxC.any(axis=1)
  assert summary(case).without_negatives == ()
  assert summary(case, single_label=True).without_negatives == ('c3',)


def test_groups_by_sources_are_those_of_their_clips():
  case = drawn(3, clips=200, classes=12, prevalence=0.2)
  sources = case.label_NxC.sum(axis=1)
  found = summary(case)
  assert list(found.by_sources) == ['1', '2', '3', '4+']
  for name, is_in in (('2', sources == 2), ('4+', sources >= 4)):
    part, figures = case.rows(is_in), found.by_sources[name]
    present = part.label_NxC.any(axis=0)
    assert figures.clips == is_in.sum() == len(part.ids)
    assert figures.classes == present.sum()
    assert figures.map.value == pytest.approx(
        sklearn_metrics.average_precision_score(
            part.label_NxC[:, present], part.score_NxC[:, present]))
  assert list(summary(case.rows(sources == 3)).by_sources) == ['3']


def test_chance_is_what_random_scores_reach():
  assert metrics.chance_ap(1, 2) == pytest.approx((1 + 1 / 2) / 2)
  assert metrics.chance_ap(7, 7) == pytest.approx(1)
  assert metrics.chance_ap(1, 1) == 1
  rng = np.random.default_rng(0)
  label = np.arange(30)[:, None] < 4
  got = [
      metrics.ranked(rng.random((30, 1)), label, np.ones((30, 1)))[0].item()
      for _ in range(2000)
  ]
  assert np.mean(got) == pytest.approx(metrics.chance_ap(4, 30), abs=0.008)
  assert metrics.chance_ap(4, 30) > 4 / 30 + 0.05
  assert metrics.chance_ap(40, 100_000) == pytest.approx(40e-5, abs=2e-4)


def test_chance_of_the_mean_is_that_of_its_classes():
  case = drawn(0, clips=30, classes=4)
  case.label_NxC[:] = np.arange(30)[:, None] < [4, 0, 1, 30]
  chances = [metrics.chance_ap(count, 30) for count in (4, 1, 30)]
  found = summary(case)
  assert found.overall.chance_map == pytest.approx(np.mean(chances))
  assert [c.chance_ap for c in found.per_class] == chances


def test_intervals_hold_the_expected_values():
  cases = [drawn(seed) for seed in range(100)]
  truth = np.mean([_macros(summary(case)) for case in cases], axis=0)
  inside = []
  for case in cases[:30]:
    found = summary(case, resamples=60).overall
    estimates = found.map, found.auc
    inside.append([e.low <= t <= e.high for e, t in zip(estimates, truth)])
  share_map, share_auc = np.mean(inside, axis=0)
  assert share_map >= 0.86 and share_auc >= 0.86
  # Too wide ones would hold them always; these are as wide as 4 deviations.
  widths = [e.high - e.low for e in estimates]
  deviations = np.std([_macros(summary(case)) for case in cases], axis=0)
  assert widths == pytest.approx(4 * deviations, rel=0.4)


def _macros(found):
  return found.overall.map.value, found.overall.auc.value


def test_intervals_end_where_the_metric_does():
  # Four of five clips are right; some resamples have no wrong one.
  case = scored(np.eye(2)[[0, 0, 0, 0, 1]], np.eye(2)[[0] * 5])
  found = [summary(case, single_label=True, resamples=100, seed=seed)
           for seed in range(8)]
  highs = [f.overall.top1.high for f in found]
  assert max(highs) == 1 and 0.9 < min(highs) < 1


def test_accuracy_interval_is_the_binomial_one():
  label = np.eye(2, dtype=bool)[np.zeros(400, int)]
  score = np.eye(2, dtype=np.float32)[np.arange(400) % 4 // 3]
  found = summary(scored(score, label), single_label=True, resamples=1000)
  top1 = found.overall.top1
  deviation = (0.75 * 0.25 / 400) ** 0.5
  assert top1.value == 0.75
  assert top1.low == pytest.approx(0.75 - 1.96 * deviation, abs=0.008)
  assert top1.high == pytest.approx(0.75 + 1.96 * deviation, abs=0.008)


def test_resamples_repeat_with_their_seed_and_may_be_none():
  case = drawn(0)
  first, same, other = (summary(case, resamples=250, seed=s) for s in (1, 1, 2))
  assert first == same
  assert first.overall.map != other.overall.map
  assert first.overall.map.value == other.overall.map.value
  for count in (0, 1, 200, 201, 450):
    shapes = [w.shape for w in metrics._weights(75, count, 0)]
    assert sum(columns for _, columns in shapes) == 1 + count
  none = summary(case)
  assert none.overall.map == dataclasses.replace(
      first.overall.map, low=None, high=None)


def test_a_class_whose_one_positive_drops_out_of_a_resample():
  # Its AP is 1 wherever it is drawn; the class does not count elsewhere.
  score = np.linspace(1, 0, 30)[:, None]
  label = np.arange(30)[:, None] == 0
  found = summary(scored(score, label), resamples=200)
  assert found.overall.map == metrics.Estimate(1.0, 1.0, 1.0)


def test_summary_is_json():
  found = summary(drawn(0), resamples=10)
  text = json.dumps(dataclasses.asdict(found), allow_nan=False)
  assert json.loads(text)['overall']['map']['value'] == found.overall.map.value


def test_wrong_arrays_are_named():
  score, label = np.zeros((2, 3)), np.eye(3)[:2]
  fine = scored(score, label)
  for change, match in (
      ({'ids': ('a',)}, r'score_NxC: want the shape \(1, 3\), clips x'),
      ({'label_NxC': label[:, :2] > 0}, r'label_NxC: want the shape \(2, 3\)'),
      ({'label_NxC': label}, 'label_NxC: want bool, got .float64'),
      ({'classes': ('a', 'b', 'a')}, 'classes: want each once, got .1 repea'),
      ({'score_NxC': np.array([[0, 0, 0], [0, np.nan, 0]])},
       "^1.wav: score of 'c1': want a number, got nan"),
  ):
    with pytest.raises(ValueError, match=match):
      dataclasses.replace(fine, **change)
  with pytest.raises(ValueError, match='labels: want at least one clip'):
    summary(scored(score, np.zeros((2, 3))))
  with pytest.raises(ValueError, match='resamples: want >= 0, got -1'):
    summary(fine, resamples=-1)


def test_a_large_set_takes_seconds():
  case = drawn(0, clips=4000, classes=100, prevalence=0.01)
  began = time.process_time()
  summary(case, resamples=100)
  assert time.process_time() - began < 5  # 0.4; scikit-learn: 60


def test_sources_of_other_classes_count_too():
  label_NxC = np.array([[1, 0], [0, 1], [1, 1]], bool)
  score_NxC = np.float32([[0.9, 0.1], [0.8, 0.3], [0.7, 0.6]])
  plain = metrics.Scored(('a', 'b', 'c'), ('x', 'y'), score_NxC, label_NxC)
  assert list(plain.heard_N) == [1, 1, 2]
  heard = dataclasses.replace(plain, sources_N=np.array([3, 1, 5]))
  found = metrics.summary(heard, single_label=False, resamples=0).by_sources
  assert {name: part.clips for name, part in found.items()} == {
      '1': 1, '3': 1, '4+': 1}
  assert list(heard.rows(np.array([True, False, True])).heard_N) == [3, 5]
  with pytest.raises(ValueError, match='sources_N: want one per clip'):
    dataclasses.replace(plain, sources_N=np.array([1]))


def test_parts_are_averaged_and_not_pooled():
  """Each part is ranked without error, on a scale of its own."""
  rng = np.random.default_rng(0)
  label = rng.random((60, 3)) < 0.3
  parts = [metrics.Scored(tuple(map(str, range(60))), ('a', 'b', 'c'),
                          label * 0.1 + shift, label) for shift in (0.0, 0.5)]
  found = metrics.averaged([parts], single_label=False, resamples=50)
  assert found == metrics.Estimate(1.0, 1.0, 1.0)


@pytest.mark.parametrize('single', [False, True])
def test_average_over_runs_and_parts_is_of_the_same_resamples(single):
  rng = np.random.default_rng(1)
  label = np.eye(3, dtype=bool)[rng.integers(3, size=(2, 40))]
  label[:, :5] = False  # does not count in single-label data
  runs = [[metrics.Scored(tuple(map(str, range(40))), ('a', 'b', 'c'),
                          rng.random((40, 3)) + label[part] * 0.5, label[part])
           for part in range(2)] for _ in range(2)]
  found = metrics.averaged(runs, single_label=single, resamples=200)
  values = []
  for part in (part for run in runs for part in run):
    whole = metrics.summary(part, single_label=single, resamples=0).overall
    values.append((whole.top1 if single else whole.map).value)
  assert found.value == pytest.approx(np.mean(values))
  assert found.low < found.value < found.high
  # Twice the same run is no new evidence; two parts are more than one.
  twice = metrics.averaged(runs[:1] * 2, single_label=single, resamples=200)
  once = metrics.averaged(runs[:1], single_label=single, resamples=200)
  assert twice.low == pytest.approx(once.low)
  alone = [metrics.averaged([[part]], single_label=single, resamples=200)
           for part in runs[0]]
  widths = [x.high - x.low for x in (*alone, once)]
  assert 1.2 * widths[2] < np.mean(widths[:2]) < 1.7 * widths[2]
  # Their resamples are independent, even of equal parts.
  same = metrics.averaged([runs[0][:1] * 2], single_label=single, resamples=200)
  assert 1.2 * (same.high - same.low) < widths[0]
