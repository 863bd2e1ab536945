"""Pictures of a study; they want matplotlib."""

import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from configs.study import design
from sslam_jax import train
from tools.studying import comparing
from tools.studying import runs as runs_lib

_INCHES = 4.5, 3.2  # of a panel
_SOURCES = (1, 2, 3, 4)
_APART = 0.12  # of arms, where they have the same number of sources


def draw_losses(path: pathlib.Path, runs: Sequence[runs_lib.Run]) -> None:
  """Each loss of arms against the step, their mean over seeds."""
  names = list(dict.fromkeys(
      name for run in runs for row in run.standing.rows for name in row
      if name == 'loss' or name.startswith(train.TERMS)
  ))
  labels = list(dict.fromkeys(run.label for run in runs))
  figure, axes = _panels(len(names))
  for axis, name in zip(axes, names):
    for number, label in enumerate(labels):
      steps: dict[float, list[float]] = {}
      for run in (run for run in runs if run.label == label):
        for row in run.standing.rows:
          if name in row:
            steps.setdefault(row['step'], []).append(row[name])
      if steps:
        axis.plot(sorted(steps), [statistics.fmean(steps[step])
                                  for step in sorted(steps)],
                  color=f'C{number}', label=design.title(label), linewidth=1)
    axis.set_title(name, fontsize=9)
    axis.set_xlabel('update')
  axes[0].legend(fontsize=8)
  figure.savefig(path, dpi=90)


def draw_differences(
    path: pathlib.Path,
    panels: Mapping[str, tuple[runs_lib.Scores, str]],
    labels: Sequence[str],
) -> None:
  """Differences from the baseline by number of sources, with intervals.

  Args:
    path: Of the picture.
    panels: Title -> scores, and the task of whose mAP.
    labels: Arms.
  """
  figure, axes = _panels(len(panels))
  for axis, (title, (scores, task)) in zip(axes, panels.items()):
    for number, label in enumerate(labels):
      found = [(count + _APART * (number - (len(labels) - 1) / 2), values)
               for count in _SOURCES if (values := comparing.paired(
                   scores, label, (task, f'{runs_lib.MAP}_{count}')))]
      told = [comparing.difference(values) for _, values in found]
      if told:
        axis.errorbar([x for x, _ in found], [each.mean for each in told],
                      # Of one seed there is no interval.
                      [math.nan if each.spread is None else each.spread
                       for each in told], fmt='o', capsize=3,
                      color=f'C{number + 1}', label=design.title(label))
    axis.axhline(0, color='grey', linewidth=1)
    axis.set_xticks(_SOURCES)
    axis.set_xlabel('sources in a test clip')
    axis.set_ylabel(f'mAP less that of {design.title(comparing.BASELINE)}')
    axis.set_title(title, fontsize=9)
  axes[0].legend(fontsize=8)  # of all
  figure.savefig(path, dpi=90)


def _panels(count: int) -> tuple[Any, list[Any]]:
  from matplotlib import figure as figure_lib

  columns = min(count, 3)
  rows = -(-count // columns)
  figure = figure_lib.Figure(
      figsize=(_INCHES[0] * columns, _INCHES[1] * rows), layout='constrained'
  )
  axes = list(figure.subplots(rows, columns, squeeze=False).flat)
  for axis in axes[count:]:
    axis.set_visible(False)
  for axis in axes:
    axis.grid(alpha=0.3)
  return figure, axes
