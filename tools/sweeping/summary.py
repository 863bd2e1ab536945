"""summary.md and summary.csv of a sweep: whatever is there so far."""

import csv
import dataclasses
import io
import math
import pathlib
import statistics
from collections.abc import Iterator, Sequence

from sslam_jax import report
from sslam_jax import sweeping
from tools.sweeping import points as points_lib
from tools.sweeping import scores as scores_lib
from tools.sweeping import standing

MARKDOWN, CSV = 'summary.md', 'summary.csv'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
  """What a sweep has come to.

  Attributes:
    points: All.
    standings: Of each, in the same order.
    values: The scores of those that are done, by the names of point and score.
    names: The scores that are told.
  """

  points: Sequence[points_lib.Point]
  standings: Sequence[standing.Standing]
  values: dict[str, dict[str, float]]
  names: list[str]

  @property
  def done(self) -> list[points_lib.Point]:
    return [point for point in self.points if point.name in self.values]

  def settings(self) -> dict[str, list[points_lib.Point]]:
    """What is done, by label: points that differ in their seeds alone."""
    grouped: dict[str, list[points_lib.Point]] = {}
    for point in self.done:
      grouped.setdefault(point.label, []).append(point)
    return grouped

  def of(self, points: Sequence[points_lib.Point], score: str) -> list[float]:
    """A score of those points that have it."""
    return [self.values[point.name][score] for point in points
            if score in self.values[point.name]]


def summarise(
    points: Sequence[points_lib.Point],
    standings: Sequence[standing.Standing],
    names: Sequence[str] | None = None,
) -> Summary:
  """The scores of all points that are done.

  Args:
    points: All.
    standings: Of each.
    names: The scores that are told, of evaluations or metrics of training;
      None: all of the evaluations, or the losses where there are none.

  Raises:
    ValueError: No point has a score of these names.
  """
  values, evaluated, losses = {}, dict[str, None](), dict[str, None]()
  for point, each in zip(points, standings):
    if each.state == standing.DONE:
      found = scores_lib.evaluated(each.rows)
      trained = scores_lib.trained(each.rows)
      values[point.name] = trained | found
      evaluated |= dict.fromkeys(found)
      losses |= dict.fromkeys(scores_lib.losses(trained))
  known = {name for found in values.values() for name in found}
  for name in names or ():
    if values and name not in known:
      raise ValueError(f'--score={name}: want some of '
                       f'{", ".join(sorted(known))}')
  return Summary(points=points, standings=standings, values=values,
                 names=list(names or evaluated or losses))


def write(
    workdir: pathlib.Path, spec: str, summary: Summary, sort: str | None
) -> None:
  """Writes both files."""
  text = '\n'.join(markdown(workdir, spec, summary, sort)) + '\n'
  report.write_text(workdir / MARKDOWN, text)
  report.write_text(workdir / CSV, table(summary))


def markdown(
    workdir: pathlib.Path, spec: str, summary: Summary, sort: str | None = None
) -> Iterator[str]:
  """A row of each setting, best first by the score `sort`; then the rest.

  Raises:
    ValueError: There is no such score.
  """
  names, settings = summary.names, summary.settings()
  states = [each.state for each in summary.standings]
  counts = ', '.join(f'{states.count(state)} {state}'
                     for state in dict.fromkeys(sorted(states)))
  yield f'# {workdir}'
  yield ''
  yield f'`{spec}`: {len(states)} points, {counts}.'
  if settings:
    yield 'Mean ± standard deviation over n seeds.'
    if not any(name in scores_lib.evaluated(each.rows)
               for each in summary.standings for name in names):
      yield (f'Losses of training: each run\'s mean over its last '
             f'{scores_lib.LAST_ROWS} logged steps.')
    yield ''
    yield f'| {" | ".join(["setting", "n", *names])} |'
    yield '|' + '---|' * (2 + len(names))
    for label in _sorted(summary, settings, sort):
      points = settings[label]
      cells = [scores_lib.cell(summary.of(points, name), len(points))
               for name in names]
      yield f'| {" | ".join([label, str(len(points)), *cells])} |'
  rest = [(point, each) for point, each in zip(
      summary.points, summary.standings) if each.state != standing.DONE]
  if rest:
    yield ''
    yield '| not done | state | status | step | reason |'
    yield '|---|---|---|---|---|'
  for point, each in rest:
    status = '' if each.status is None else str(each.status)
    reason = each.reason.replace('|', '\\|')
    yield (f'| {point.name} | {each.state} | {status} | '
           f'{each.step}/{each.steps} | {reason} |')


def table(summary: Summary) -> str:
  """CSV: a row of each point, with all swept fields and all scores."""
  swept = list(points_lib.fields(summary.points))
  names = list(dict.fromkeys(
      name for point, each in zip(summary.points, summary.standings)
      if point.name in summary.values
      for name in (*scores_lib.evaluated(each.rows), *summary.names,
                   *scores_lib.losses(summary.values[point.name]))
  ))
  file = io.StringIO()
  writer = csv.writer(file, lineterminator='\n')
  writer.writerow(['point', 'setting', 'seed', 'state', 'status', 'reason',
                   'step', *swept, *names])
  for point, each in zip(summary.points, summary.standings):
    values = summary.values.get(point.name, {})
    writer.writerow([
        point.name, point.label, point.seed, each.state, each.status,
        each.reason, each.step,
        *(sweeping.text(points_lib.value(point, field)) for field in swept),
        *(values.get(name) for name in names),
    ])
  return file.getvalue()


def _sorted(
    summary: Summary, settings: dict[str, list[points_lib.Point]],
    score: str | None,
) -> list[str]:
  if score is None:
    return list(settings)
  if not any(score in values for values in summary.values.values()):
    raise ValueError(f'--sort={score}: want one of {", ".join(summary.names)}')
  sign = 1 if scores_lib.is_better_small(score) else -1

  def key(label: str) -> float:
    values = summary.of(settings[label], score)
    return sign * statistics.fmean(values) if values else math.inf

  return sorted(settings, key=key)
