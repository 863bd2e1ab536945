"""Metrics of a labelled test set: mAP, AUC, d-prime, accuracy, intervals.

The values and their bootstrap resamples come from one computation on weighted
clips, which sorts each class once and equals scikit-learn's. A mean over
classes leaves out those that have no value, and `Summary` names them.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse
import scipy.special

_CONFIDENCE = 0.95
_MOST_SOURCES = 4  # clips with more count as 4+
_TOP = 5
_BLOCK = 200  # resamples at a time: bounds the memory


@dataclasses.dataclass(frozen=True)
class Scored:
  """What a model said of clips, and what is true.

  Attributes:
    ids: Clips; for files, their paths.
    classes: Names of the columns.
    score_NxC: float32, higher is more likely; probabilities.
    label_NxC: bool, the classes heard in each clip.
    sources_N: int, how many sources are heard in each clip, of other classes
      too; None: as many as `label_NxC` says.
  """

  ids: tuple[str, ...]
  classes: tuple[str, ...]
  score_NxC: np.ndarray
  label_NxC: np.ndarray
  sources_N: np.ndarray | None = None

  def __post_init__(self) -> None:
    shape = len(self.ids), len(self.classes)
    if self.sources_N is not None:
      got = self.sources_N.shape
      _check(got == shape[:1], 'sources_N', f'one per clip: {shape[:1]}', got)
    for name in ('score_NxC', 'label_NxC'):
      got = getattr(self, name).shape
      _check(got == shape, name, f'the shape {shape}, clips x classes', got)
    kind = self.label_NxC.dtype
    _check(kind == np.bool_, 'label_NxC', 'bool', str(kind))
    repeated = len(self.classes) - len(set(self.classes))
    _check(not repeated, 'classes', 'each once', f'{repeated} repeated')
    for row in np.flatnonzero(~np.isfinite(self.score_NxC).all(axis=1)):
      column = np.flatnonzero(~np.isfinite(self.score_NxC[row]))[0]
      where = f'{self.ids[row]}: score of {self.classes[column]!r}'
      _check(False, where, 'a number', float(self.score_NxC[row, column]))

  @property
  def heard_N(self) -> np.ndarray:
    """How many sources are heard in each clip."""
    if self.sources_N is None:
      return self.label_NxC.sum(axis=1)
    return self.sources_N

  def rows(self, is_kept_N: np.ndarray) -> 'Scored':
    """The clips for which `is_kept_N` is True."""
    ids = tuple(np.array(self.ids, object)[is_kept_N])
    sources_N = None if self.sources_N is None else self.sources_N[is_kept_N]
    return Scored(ids, self.classes, self.score_NxC[is_kept_N],
                  self.label_NxC[is_kept_N], sources_N)


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A metric and its 95 % interval; None: no such number (see `summary`)."""

  value: float | None
  low: float | None
  high: float | None


@dataclasses.dataclass(frozen=True)
class Figures:
  """Metrics of a group of clips.

  Attributes:
    clips: How many.
    classes: How many of the model's classes are among their labels.
    map: Mean over these classes of the average precision.
    chance_map: What random scores reach. It grows with the share of positives:
      never compare `map` between groups without it.
    auc: Mean area under the ROC curve; chance is 0.5.
    d_prime: sqrt(2) times the normal quantile of `auc`, as in PSLA and AST.
    top1: Share of clips whose highest score is for one of their labels. Clips
      without labels do not count; of equal scores, the first class comes first.
    top5: Share with one of their labels in the highest five.
  """

  clips: int
  classes: int
  map: Estimate
  chance_map: float
  auc: Estimate
  d_prime: Estimate
  top1: Estimate
  top5: Estimate


@dataclasses.dataclass(frozen=True)
class ClassFigures:
  """Metrics of one class; `chance_ap` is what random scores reach."""

  name: str
  positives: int
  ap: Estimate
  chance_ap: float
  auc: Estimate


@dataclasses.dataclass(frozen=True)
class Summary:
  """All metrics; `dataclasses.asdict` makes it fit for JSON.

  Attributes:
    single_label: Whether exactly one class of each clip is scored.
    resamples: How many the intervals are from.
    seed: Of the resamples.
    unlabelled: Clips without any of the classes. Single-label data goes
      without them; in multi-label data they are negatives of every class.
    overall: Of all clips.
    by_sources: Of the clips with 1, 2, 3 and 4+ sources.
    per_class: In the order of the classes, but for `without_positives`.
    without_positives: Classes that no mean covers: no clip has them.
    without_negatives: Classes that no AUC covers: every clip has them.
  """

  single_label: bool
  resamples: int
  seed: int
  unlabelled: int
  overall: Figures
  by_sources: dict[str, Figures]
  per_class: tuple[ClassFigures, ...]
  without_positives: tuple[str, ...]
  without_negatives: tuple[str, ...]


def summary(
    scored: Scored, *, single_label: bool, resamples: int = 1000, seed: int = 0
) -> Summary:
  """All metrics of scored clips with bootstrap intervals over clips.

  A number is None where it does not exist: an interval without resamples, the
  AUC of a class that every clip has, d-prime at an AUC of 0 or 1, top-5 of
  five classes or fewer.

  Raises:
    ValueError: No clip has a label, or `resamples` is negative.
  """
  _check(resamples >= 0, 'resamples', '>= 0', resamples)
  known_N = scored.label_NxC.sum(axis=1)
  _check(known_N.any(), 'labels', 'at least one clip of the classes', 'none')
  sources_N = scored.heard_N
  counted = _counted(scored, single_label)
  values = _values(counted, resamples, seed)
  groups = {'1': sources_N == 1, '2': sources_N == 2, '3': sources_N == 3,
            f'{_MOST_SOURCES}+': sources_N >= _MOST_SOURCES}
  parts = {name: scored.rows(is_in_N) for name, is_in_N in groups.items()
           if known_N[is_in_N].any()}
  positives_C = counted.label_NxC.sum(axis=0)
  return Summary(
      single_label=single_label,
      resamples=resamples,
      seed=seed,
      unlabelled=int((known_N == 0).sum()),
      overall=_figures(counted, values),
      by_sources={name: _figures(part, _values(part, resamples, seed))
                  for name, part in parts.items()},
      per_class=_per_class(counted, values),
      without_positives=_named(scored, positives_C == 0),
      without_negatives=_named(scored, positives_C == len(counted.ids)),
  )


def averaged(
    runs: Sequence[Sequence[Scored]],
    *,
    single_label: bool,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
  """Mean over runs and their test parts of top-1 accuracy or, else, of mAP.

  Scores of different models are never ranked together. A resample draws clips
  within each part, the same ones in all runs: the interval is of the mean over
  these runs, and says nothing of how runs differ.
  """
  rows = []
  for run in runs:
    for number, part in enumerate(run):
      values = _values(_counted(part, single_label), resamples, seed + number)
      rows.append(values.top1_R if single_label else _mean(values.ap_RxC))
  return _estimate(np.mean(rows, axis=0))


def ranked(
    score_NxC: np.ndarray, label_NxC: np.ndarray, weight_NxR: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Average precision and ROC AUC of each class, float64 [R, C] each.

  Clip n counts `weight_NxR[n, r]` times in result r. NaN: no positive weighs
  anything, or for the AUC no negative. Equals scikit-learn's
  average_precision_score and roc_auc_score with sample_weight, also for equal
  scores.
  """
  shape = weight_NxR.shape[1], score_NxC.shape[1]
  ap_RxC, auc_RxC = np.full(shape, np.nan), np.full(shape, np.nan)
  for column in np.flatnonzero(label_NxC.any(axis=0)):
    ap_RxC[:, column], auc_RxC[:, column] = _ranked(
        score_NxC[:, column], label_NxC[:, column], weight_NxR
    )
  return ap_RxC, auc_RxC


def chance_ap(positives: int, clips: int) -> float:
  """Expected average precision of random scores without equal ones.

  For many clips this is `positives / clips`; for few it is more. The clip at
  rank i is positive with probability P / N, and then each of the i - 1 before
  it is with (P - 1) / (N - 1).
  """
  rank_N = np.arange(1, clips + 1)
  before = (positives - 1) / max(clips - 1, 1)
  return float(((1 + (rank_N - 1) * before) / rank_N).mean())


def d_prime(auc: float) -> float:
  """Distance of two unit normals that the AUC tells apart as well."""
  return math.sqrt(2.0) * float(scipy.special.ndtri(auc))


def hits(
    score_NxC: np.ndarray, label_NxC: np.ndarray, top: int
) -> np.ndarray:
  """Whether one of the `top` highest scores is for a label: bool [N]."""
  best_NxK = np.argsort(-score_NxC, axis=1, kind='stable')[:, :top]
  return np.any(np.take_along_axis(label_NxC, best_NxK, axis=1), axis=1)


@dataclasses.dataclass(frozen=True)
class _Values:
  """Row 0: of the clips themselves; the others: of resamples. NaN: none."""

  ap_RxC: np.ndarray
  auc_RxC: np.ndarray
  top1_R: np.ndarray
  top5_R: np.ndarray


def _counted(scored: Scored, single_label: bool) -> Scored:
  """The clips that single-label metrics are of: those with a label."""
  if not single_label:
    return scored
  return scored.rows(np.any(scored.label_NxC, axis=1))


def _values(scored: Scored, resamples: int, seed: int) -> _Values:
  score_NxC, label_NxC = scored.score_NxC, scored.label_NxC
  is_labelled_N = label_NxC.any(axis=1)
  hit_Nx3 = np.stack([
      hits(score_NxC, label_NxC, 1), hits(score_NxC, label_NxC, _TOP),
      is_labelled_N,
  ], axis=1)
  parts = []
  for weight_NxR in _weights(len(scored.ids), resamples, seed):
    top1_R, top5_R, labelled_R = hit_Nx3.T.astype(np.float64) @ weight_NxR
    with np.errstate(invalid='ignore'):  # no labelled clip in a resample
      shares = top1_R / labelled_R, top5_R / labelled_R
    parts.append((*ranked(score_NxC, label_NxC, weight_NxR), *shares))
  return _Values(*(np.concatenate(part) for part in zip(*parts)))


def _weights(clips: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
  """How often each resample has each clip, float32 [N, block]; first: once."""
  rng = np.random.default_rng(seed)
  yield np.ones((clips, 1), np.float32)
  for start in range(0, resamples, _BLOCK):
    counts = [
        np.bincount(rng.integers(clips, size=clips), minlength=clips)
        for _ in range(min(_BLOCK, resamples - start))
    ]
    yield np.stack(counts, axis=1).astype(np.float32)


def _ranked(
    score_N: np.ndarray, label_N: np.ndarray, weight_NxR: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """(average precision, AUC) of one class that has positives, [R] each.

  Both are sums over groups of equal scores that hold a positive, so only the
  total weights before and after these groups G are computed.
  """
  order_N = np.argsort(-score_N, kind='stable')
  place_P = np.flatnonzero(label_N[order_N])
  falling_N = -score_N[order_N]
  group_G = np.unique(falling_N[place_P])
  start_G = np.searchsorted(falling_N, group_G, side='left')
  end_G = np.searchsorted(falling_N, group_G, side='right')
  edge_E = np.unique(np.concatenate([[0], start_G, end_G, [len(order_N)]]))
  all_ExR = _weight_before(edge_E, order_N, weight_NxR)
  positive_ExR = _weight_before(
      np.searchsorted(place_P, edge_E), order_N[place_P], weight_NxR
  )
  start_G, end_G = (np.searchsorted(edge_E, x) for x in (start_G, end_G))
  found_GxR = positive_ExR[end_G] - positive_ExR[start_G]
  negative_ExR = all_ExR - positive_ExR
  # A negative with the score of a positive is half below it.
  above_GxR = (negative_ExR[start_G] + negative_ExR[end_G]) / 2
  with np.errstate(invalid='ignore'):  # 0 / 0
    precision_GxR = np.nan_to_num(positive_ExR[end_G] / all_ExR[end_G])
    ap_R = (found_GxR * precision_GxR).sum(axis=0) / positive_ExR[-1]
    below_GxR = 1 - above_GxR / negative_ExR[-1]
    auc_R = (found_GxR * below_GxR).sum(axis=0) / positive_ExR[-1]
  return ap_R, auc_R


def _weight_before(
    edge_E: np.ndarray, order_M: np.ndarray, weight_NxR: np.ndarray
) -> np.ndarray:
  """Total weight of the clips `order_M[:edge]`: float64 [E, R]."""
  shape = len(edge_E) - 1, len(weight_NxR)
  ones_M = np.ones(len(order_M), weight_NxR.dtype)
  # This product adds rows without copying them: 6 times faster than to add
  # up sorted weights.
  between = scipy.sparse.csr_array((ones_M, order_M, edge_E), shape=shape)
  sum_ExR = (between @ weight_NxR).cumsum(axis=0, dtype=np.float64)
  return np.concatenate([np.zeros_like(sum_ExR[:1]), sum_ExR])


def _figures(scored: Scored, values: _Values) -> Figures:
  positives_C = scored.label_NxC.sum(axis=0)
  clips = len(scored.ids)
  chances = [chance_ap(int(p), clips) for p in positives_C if p]
  auc = _estimate(_mean(values.auc_RxC))
  none = Estimate(None, None, None)
  return Figures(
      clips=clips,
      classes=len(chances),
      map=_estimate(_mean(values.ap_RxC)),
      chance_map=sum(chances) / len(chances),
      auc=auc,
      d_prime=Estimate(*(
          None if x is None else _finite(d_prime(x))
          for x in dataclasses.astuple(auc)
      )),
      top1=_estimate(values.top1_R),
      top5=none if len(scored.classes) <= _TOP else _estimate(values.top5_R),
  )


def _per_class(scored: Scored, values: _Values) -> tuple[ClassFigures, ...]:
  return tuple(
      ClassFigures(
          name=name,
          positives=int(positives),
          ap=_estimate(values.ap_RxC[:, column]),
          chance_ap=chance_ap(int(positives), len(scored.ids)),
          auc=_estimate(values.auc_RxC[:, column]),
      )
      for column, (name, positives) in enumerate(
          zip(scored.classes, scored.label_NxC.sum(axis=0))
      )
      if positives
  )


def _mean(value_RxC: np.ndarray) -> np.ndarray:
  """Means over the classes that have a value, in each resample."""
  is_there_RxC = ~np.isnan(value_RxC)
  with np.errstate(invalid='ignore'):  # a resample without any
    return np.nansum(value_RxC, axis=1) / is_there_RxC.sum(axis=1)


def _estimate(value_R: np.ndarray) -> Estimate:
  """The value, and the middle 95 % of its resamples about the value.

  A clip drawn twice ranks beside its copy, so the precision of resamples is
  too high: by 0.02 to 0.05 for 4 to 15 positives per class, where the plain
  quantiles hold the expected mAP 3 times of 4. So they are moved by the
  difference of the means, and then hold it more than 9 times of 10.
  """
  value = _finite(value_R[0])
  again = value_R[1:][~np.isnan(value_R[1:])]
  if value is None or not len(again):
    return Estimate(value, None, None)
  tail = (1 - _CONFIDENCE) / 2
  moved = np.quantile(again, [tail, 1 - tail]) - (again.mean() - value)
  low, high = np.clip(moved, 0.0, 1.0)
  return Estimate(value, float(low), float(high))


def _finite(value: float) -> float | None:
  return float(value) if math.isfinite(value) else None


def _named(scored: Scored, is_one_C: np.ndarray) -> tuple[str, ...]:
  return tuple(np.array(scored.classes, object)[is_one_C])


def _check(valid: bool, what: str, wanted: str, got: object) -> None:
  if not valid:
    raise ValueError(f'{what}: want {wanted}, got {got!r}')
