"""Each score against each swept field; wants matplotlib."""

import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sslam_jax import sweeping
from tools.sweeping import points as points_lib
from tools.sweeping import scores as scores_lib
from tools.sweeping import summary as summary_lib

SETTING = 'setting'  # in place of a field: the labels
_MOST_LINES = 8
_DECADE = 10.0
_INCHES = 5.0, 3.5

# Line -> (value of the field, score) of its points.
Lines = dict[str, list[tuple[Any, float]]]


def draw_all(
    workdir: pathlib.Path, summary: summary_lib.Summary
) -> list[pathlib.Path]:
  """The pictures that were drawn: none of a field with a single value."""
  drawn = []
  for score in summary.names:
    short = points_lib.fields(summary.points)
    if len(short) > 1:
      short[SETTING] = SETTING
    for field, title in short.items():
      lines = lines_of(summary, score, field, title)
      if len({sweeping.text(x) for line in lines.values() for x, _ in line}
             ) > 1:
        path = workdir / 'plots' / f'{score}_by_{title}.png'
        path.parent.mkdir(exist_ok=True)
        _draw(path, lines, title, score)
        drawn.append(path)
  return drawn


def lines_of(
    summary: summary_lib.Summary, score: str, field: str, title: str
) -> Lines:
  """The points of a picture: one line for each setting of the other fields.

  A point that sets other fields but not this one has no place in it; the one
  that sets none is in the pictures of all fields.
  """
  short = points_lib.fields(summary.points)
  placed = [
      (point, points_lib.value(point, field), _others(point, field, short))
      for point in summary.done if field in point.fields or not point.fields
  ]
  if field == SETTING:
    placed = [(point, point.label, '') for point in summary.done]
  # Objects of a class have the same text: their names tell them apart.
  labels: dict[tuple[str, str], set[str]] = {}
  for point, x, line in placed:
    labels.setdefault((line, sweeping.text(x)), set()).add(point.label)
  alike = {line for (line, _), found in labels.items() if len(found) > 1}
  lines: Lines = {}
  for point, x, line in placed:
    name = _named(point.label, field) if line in alike else line
    lines.setdefault(name, []).extend(
        (x, value) for value in summary.of([point], score))
  if len(lines) > _MOST_LINES:
    return {'': [pair for line in lines.values() for pair in line]}
  return lines


def means_of(
    line: Sequence[tuple[Any, float]],
) -> list[tuple[Any, float, float]]:
  """(value, mean, deviation or 0) of each value of a field, in order."""
  grouped: dict[str, list[tuple[Any, float]]] = {}
  for x, value in line:
    grouped.setdefault(sweeping.text(x), []).append((x, value))
  means = [(pairs[0][0], statistics.fmean(y for _, y in pairs),
            scores_lib.deviation([y for _, y in pairs]) or 0.0)
           for pairs in grouped.values()]
  if is_numeric([x for x, _ in line]):
    means.sort(key=lambda mean: mean[0])
  return means


def is_numeric(values: Sequence[Any]) -> bool:
  """Whether all are numbers: True and None are none."""
  return all(isinstance(x, (int, float)) and not isinstance(x, bool)
             for x in values)


def is_logarithmic(values: Sequence[float]) -> bool:
  """Whether they span decades."""
  return min(values) > 0 and max(values) / min(values) >= _DECADE


def _others(
    point: points_lib.Point, field: str, short: Mapping[str, str]
) -> str:
  """The settings of a point's other fields."""
  return ','.join(sweeping.part(name, point.fields[other])
                  for other, name in short.items()
                  if other in point.fields and other != field)


def _named(label: str, field: str) -> str:
  """A label without what it says of the field."""
  return ','.join(part for part in label.split(',') if not (
      '=' in part and f'.{field}'.endswith(f'.{part.partition("=")[0]}')))


def _draw(path: pathlib.Path, lines: Lines, title: str, score: str) -> None:
  from matplotlib import figure as figure_lib

  figure = figure_lib.Figure(figsize=_INCHES, layout='constrained')
  axis = figure.subplots()
  values = [x for line in lines.values() for x, _ in line]
  numeric = is_numeric(values)
  places = {text: place for place, text in enumerate(
      dict.fromkeys(map(sweeping.text, values)))}

  def across(x: Any) -> float:
    return x if numeric else places[sweeping.text(x)]

  for number, (name, line) in enumerate(lines.items()):
    color, means = f'C{number}', means_of(line)
    axis.plot([across(x) for x, _ in line], [y for _, y in line], '.',
              color=color, alpha=0.4)
    axis.errorbar(
        [across(x) for x, _, _ in means], [y for _, y, _ in means],
        [spread for _, _, spread in means], fmt='o-' if numeric else '_',
        markersize=4 if numeric else 18, capsize=3, color=color,
        label=name or None,
    )
  if numeric and is_logarithmic(values):
    axis.set_xscale('log')
  if not numeric:
    tilt = 25 if math.fsum(map(len, places)) > 40 else 0
    axis.set_xticks(range(len(places)), list(places), rotation=tilt,
                    ha='right' if tilt else 'center')
    axis.margins(x=0.2)
  if any(lines):
    axis.legend(fontsize=8)
  axis.set_xlabel(title)
  axis.set_ylabel(score)
  axis.grid(alpha=0.3)
  figure.savefig(path, dpi=100)
