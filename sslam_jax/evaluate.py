"""Scores of a model on labelled clips, during training and after it."""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from sslam_jax import classify
from sslam_jax import clips
from sslam_jax import data as data_lib
from sslam_jax import extract
from sslam_jax import features as features_lib
from sslam_jax import metrics
from sslam_jax import objectives
from sslam_jax import probes
from sslam_jax import probing
from sslam_jax import processes
from sslam_jax import state

_logger = logging.getLogger('sslam_jax')

Run = Callable[[state.Params, state.Params], dict[str, float]]


class Evaluation(Protocol):
  """What a run measures now and then; an instance is its configuration."""

  name: str  # its values are called NAME_...; each of a run has another
  every: int | None  # steps from one to the next; None: at the end alone

  def check(self, objective: objectives.Objective) -> None:
    """Raises ValueError where it cannot measure this objective."""

  def start(
      self, objective: objectives.Objective, data: data_lib.Data, mesh: Mesh
  ) -> Run:
    """Compiles it once: (parameters, teacher) -> values by name."""


@dataclasses.dataclass(kw_only=True)
class Test:
  """Metrics of a classifier on labelled clips.

  Attributes:
    source: The clips; of their labels those count that are trained on.
    every: Steps from one evaluation to the next; None: at the end alone.
    batch: Clips at a time, over all devices.
    name: Prefix of the values.
    by_sources: Also the mAP of the clips with 1, 2, 3, and of those with 4 and
      more labels: NAME_map_1 and so on.
  """

  source: clips.Source
  every: int | None = None
  batch: int = 48
  name: str = 'test'
  by_sources: bool = False

  def __post_init__(self) -> None:
    _check_fields(self)

  def check(self, objective: objectives.Objective) -> None:
    if not isinstance(objective, classify.Classify):
      raise ValueError(f'evals: want an objective that classifies for Test, '
                       f'got {type(objective).__name__}')

  def start(
      self, objective: objectives.Objective, data: data_lib.Data, mesh: Mesh
  ) -> Run:
    assert isinstance(objective, classify.Classify)
    _check_classes(self.source, data.views.names)
    unknown = sorted(set(self.source.classes) - set(data.views.names))
    if unknown:
      _logger.warning('%s: labels that are not learned are left out: %s',
                      self.name, _some(tuple(unknown)))
    scorer = Scorer(objective, data, batch=self.batch, mesh=mesh)

    def run(
        params: state.Params, teacher: state.Params
    ) -> dict[str, float]:
      scored, bad = scorer(objective.evaluated(params, teacher), self.source)
      if bad:
        _logger.warning('%s: %d damaged clips are not scored, the first: %s',
                        self.name, len(bad), bad[0])
      summary = metrics.summary(
          scored, single_label=objective.is_single, resamples=0
      )
      found = summary.overall
      values = {'map': found.map.value, 'auc': found.auc.value,
                'top1': found.top1.value}
      if self.by_sources:
        values |= {_by_sources(count): figures.map.value
                   for count, figures in summary.by_sources.items()}
      return {f'{self.name}_{name}': value for name, value in values.items()
              if value is not None}

    return run


@dataclasses.dataclass(kw_only=True)
class Probe:
  """A linear probe of the encoder's features, as tools/probe.py has it.

  It finds NAME_accuracy where every clip has exactly one label. Else it finds
  NAME_map and, of the test clips with so many of the labels, NAME_map_1,
  NAME_map_2, NAME_map_3 and NAME_map_4 (of 4 and more).

  Attributes:
    name: See above.
    train: Labelled clips, whose labels are learned.
    test: Others, which are scored.
    every: Steps from one evaluation to the next; None: at the end alone.
    weights: Whose encoder: the student's or the teacher's. (Of a classifier
      with a moving average, that.)
    features: Kinds of `features.KINDS`, joined by +. Several such, with commas
      between them, are computed in one pass and probed each for itself; the
      values are then NAME_FEATURES_map and so on, with _ for +.
    length_s: What is heard of a clip, from its start; more than the encoder is
      trained on is cut into windows of that length. None: as in training.
    groups: FILE.csv:COLUMN, by whose column `path` training clips stay together
      where the strength of L2 is chosen; None: every clip is alone.
    multi_label: Clips have any number of labels, though all have one.
    seed: Of the parts of the training clips by which that strength is chosen.
    batch: Clips at a time, over all devices.
  """

  name: str = 'probe'
  train: clips.Source
  test: clips.Source
  every: int | None = None
  weights: Literal['student', 'teacher'] = 'student'
  features: str = 'rows+rows_std'
  length_s: float | None = None
  groups: str | None = None
  multi_label: bool = False
  seed: int = 0
  batch: int = 32

  def __post_init__(self) -> None:
    _check_fields(self)
    self._all_kinds()
    names = [_in_names(spec) for spec in self.features.split(',')]
    if len(set(names)) < len(names):
      raise ValueError(f'features: want each once, got {self.features}')
    if self.length_s is not None and not 0 < self.length_s < 1e5:
      raise ValueError(f'length_s: want a length above 0, or None, '
                       f'got {self.length_s}')
    if self.seed < 0:
      raise ValueError(f'seed: want at least 0, got {self.seed}')

  def check(self, objective: objectives.Objective) -> None:
    if self.weights == 'teacher' and isinstance(objective, classify.Classify):
      raise ValueError(f"evals: {self.name}: want weights='student' of a "
                       f"classifier, got 'teacher'")

  def start(
      self, objective: objectives.Objective, data: data_lib.Data, mesh: Mesh
  ) -> Run:
    try:
      task = self._task()
    except ValueError as error:
      raise ValueError(f'evals: {self.name}: {error}') from None
    network = features_lib.Network(
        vit=objective.vit, params={}, mel=data.mel, resampler=data.resampler
    )
    computed = features_lib.Pass(
        network, self._all_kinds(), length_s=self.length_s,
        batch=self.batch, mesh=mesh, threads=data.threads,
    )

    def run(
        params: state.Params, teacher: state.Params
    ) -> dict[str, float]:
      encoder = _encoder(objective, self.weights, params, teacher)
      train, test = (computed(encoder, source) for source in task.sources)
      if bad := [*train.damaged, *test.damaged]:
        _logger.warning('%s: %d damaged clips are left out, the first: %s: %s',
                        self.name, len(dict(bad)), *bad[0])
      specs = self.features.split(',')
      values: dict[str, float] = {}
      for spec in specs:
        found = probes.linear(
            probing.labelled([train], spec, task), probing.vectors(test, spec),
            is_single=task.is_single, seed=self.seed,
        )
        start = (f'{self.name}_{_in_names(spec)}' if len(specs) > 1
                 else self.name)
        scored = probing.scored(found.score_MxC, test, task)
        values |= {f'{start}_{name}': value
                   for name, value in _probed(scored, task).items()}
      return values

    return run

  def _all_kinds(self) -> tuple[str, ...]:
    return tuple(kind for spec in self.features.split(',')
                 for kind in probing.kinds(spec))

  def _task(self) -> probing.Task:
    """What is learned; ValueError now for all that would end the run later."""
    task = probing.task([self.train, self.test], [([0], 1)],
                        multi_label=self.multi_label, groups=self.groups)
    known = set(task.classes)
    if unknown := sorted(set(self.test.classes) - known):
      _logger.warning('%s: labels that are not learned are left out: %s',
                      self.name, _some(tuple(unknown)))
    if not any(known & set(self.test.labels(index))
               for index in range(len(self.test))):
      raise ValueError(f'test: want clips with some of the labels of training '
                       f'({_some(task.classes)}), got none')
    group_N = None
    if task.group is not None:
      group_N = probing.groups(_ids(self.train), task.group)
    next(probes.split(group_N, len(self.train), 2, self.seed))
    return task


def measured(
    lines: Iterable[Mapping[str, Any]], evaluations: Iterable[Evaluation]
) -> set[str]:
  """Names of the evaluations whose values these lines of metrics hold."""
  names = [evaluation.name for evaluation in evaluations]
  found = set()
  for key in (key for line in lines for key in line):
    owners = [name for name in names if key.startswith(f'{name}_')]
    found |= {max(owners, key=len)} if owners else set()
  return found


class Scorer:
  """Scores clips: compiled once, for batches of one size."""

  def __init__(
      self,
      objective: classify.Classify,
      data: data_lib.Data,
      *,
      batch: int,
      mesh: Mesh,
  ) -> None:

    def function(params: state.Params, mel_BxTxF: Array) -> Array:
      return objective.probabilities(objective.logits(params, mel_BxTxF))

    self._classes = data.views.names
    self._extract = extract.Extractor(
        function, data.mel, batch=batch, mesh=mesh, resampler=data.resampler,
        threads=data.threads,
    )

  def __call__(
      self, params: state.Params, source: clips.Source
  ) -> tuple[metrics.Scored, list[clips.BadClip]]:
    """Scores of all clips that can be read, in order, and those that cannot.

    Labels that the model does not know are left out.

    Raises:
      ValueError: No clip can be read, or none has a label that it knows.
    """
    _check_classes(source, self._classes)
    scores: dict[int, np.ndarray] = {}
    told: list[tuple[int, str, str | None]] = []
    for clip in self._extract(params, source):
      reason = None if clip.error is None else clip.error.reason
      told.append((clip.number, clip.id, reason))
      if clip.error is None:
        scores[clip.number] = clip.output
    if jax.process_count() > 1:
      told = sorted(map(tuple, processes.gather(told)))
      rows = [(number, x.tolist()) for number, x in scores.items()]
      scores = {number: np.array(x, np.float32)
                for number, x in processes.gather(rows)}
    bad = [clips.BadClip(name, reason) for _, name, reason in told
           if reason is not None]
    if not scores:
      raise ValueError('want readable clips, got none'
                       + (f'; the first: {bad[0]}' if bad else ''))
    good = [(number, name) for number, name, reason in told if reason is None]
    numbers, ids = zip(*good)
    labels = [source.labels(number) for number in numbers]
    return metrics.Scored(
        ids=ids,
        classes=self._classes,
        score_NxC=np.stack([scores[number] for number in numbers]),
        label_NxC=np.stack([np.isin(self._classes, list(row))
                            for row in labels]),
        sources_N=np.array([len(row) for row in labels]),
    ), bad


def _encoder(
    objective: objectives.Objective,
    weights: Literal['student', 'teacher'],
    params: state.Params,
    teacher: state.Params,
) -> state.Params:
  if isinstance(objective, classify.Classify):
    return objective.evaluated(params, teacher)['encoder']
  return teacher if weights == 'teacher' else params['encoder']


def _in_names(features: str) -> str:
  """TensorBoard knows + in no name."""
  return features.replace('+', '_')


def _probed(scored: metrics.Scored, task: probing.Task) -> dict[str, float]:
  found = metrics.summary(scored, single_label=task.is_single, resamples=0)
  value = probing.value(found.overall, task)
  if task.is_single:
    return {'accuracy': value}
  return {'map': value} | {
      _by_sources(count): probing.value(figures, task)
      for count, figures in found.by_sources.items()
  }


def _by_sources(count: str) -> str:
  """Without the + of 4+, which TensorBoard knows in no name."""
  return f'map_{count.rstrip("+")}'


def _ids(source: clips.Source) -> list[str]:
  """Of the clips whose headers can be read."""
  found = []
  for index in range(len(source)):
    with contextlib.suppress(clips.BadClip):
      found.append(source[index].id)
  return found


def _check_fields(evaluation: Evaluation) -> None:
  for name in ('every', 'batch'):
    value = getattr(evaluation, name)
    if value is not None and value < 1:
      raise ValueError(f'{name}: want at least 1, got {value}')
  if not re.fullmatch(r'[\w-]+', evaluation.name):
    raise ValueError(f'name: want letters, digits, _ and -, '
                     f'got {evaluation.name!r}')


def _check_classes(source: clips.Source, names: tuple[str, ...]) -> None:
  if not set(source.classes) & set(names):
    raise ValueError(f'labels: want some of the model ({_some(names)}), got '
                     f'{_some(source.classes)}')


def _some(names: tuple[str, ...]) -> str:
  shown = ', '.join(names[:5]) or 'none'
  return shown + (f', and {len(names) - 5} more' if len(names) > 5 else '')
