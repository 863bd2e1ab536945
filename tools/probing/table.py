"""The table of probes, and what its reader must know."""

import dataclasses
import os
import statistics
from collections.abc import Iterable, Iterator

from sslam_jax import features
from sslam_jax import probing
from tools.sweeping import scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One line of the table.

  Attributes:
    network: Run folder, `random` or `logmel`.
    probe: Which head.
    features: Which it was given.
    values: mAP or accuracy of each fold, for each seed.
    mean: Of them.
    deviation: Of the seeds' means; of one seed's folds; None of a single one.
    interval: 95 % bootstrap of the mean, see `metrics.averaged`.
    by_sources: mAP of multi-label clips by number of labels, mean likewise.
    strengths: Of L2, of each seed and fold; none but for `linear`.
  """

  network: str
  probe: str
  features: str
  values: list[list[float]]
  mean: float
  deviation: float | None
  interval: tuple[float, float] | None
  by_sources: dict[str, float]
  strengths: list[float]


def deviation(values: list[list[float]]) -> float | None:
  """See `Row`."""
  means = values[0] if len(values) == 1 else list(
      map(statistics.fmean, values))
  return scores.deviation(means)


def lines(rows: list[Row], is_single: bool) -> Iterator[str]:
  """The table."""
  metric = 'accuracy' if is_single else 'mAP'
  groups = list(rows[0].by_sources)
  over = 'seeds' if len(rows[0].values) > 1 else 'folds'
  titles = ['network', 'probe', 'features', metric, f'sd over {over}',
            '95 % interval']
  titles += [f'{name} source{"" if name == "1" else "s"}' for name in groups]
  yield f'| {" | ".join(titles)} |'
  yield '|' + '---|' * len(titles)
  yield from map(line, rows)


def line(row: Row) -> str:
  """Its line of a row."""
  sd = '' if row.deviation is None else f'{row.deviation:.3f}'
  ends = '' if row.interval is None else '{:.3f}-{:.3f}'.format(*row.interval)
  cells = [row.network, row.probe, row.features, f'{row.mean:.3f}', sd, ends]
  cells += [f'{value:.3f}' for value in row.by_sources.values()]
  return f'| {" | ".join(cells)} |'


def notes(
    parts: list[features.Features], task: probing.Task
) -> Iterator[str]:
  """What a reader of the table must know."""
  missing: dict[str, None] = {}
  shared: dict[str, None] = {}
  for training, test in task.splits:
    heard = {name for row in parts[test].labels for name in row}
    missing |= dict.fromkeys(x for x in task.classes if x not in heard)
    known = {path for number in training
             for path in map(os.path.realpath, parts[number].ids)}
    shared |= dict.fromkeys(clip for clip in parts[test].ids
                            if os.path.realpath(clip) in known)
  if missing and not task.is_single:
    where = 'a fold' if len(task.splits) > 1 else 'the test part'
    yield (f'classes without a clip in {where}, in no mAP there: '
           f'{len(missing)} ({_listed(missing)})')
  if shared:
    yield (f'clips both in training and test: {len(shared)} '
           f'({_listed(shared)})')


def _listed(names: Iterable[str]) -> str:
  first, *rest = names
  return f'{first}, and {len(rest)} more' if rest else first
