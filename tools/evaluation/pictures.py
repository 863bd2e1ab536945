"""Pictures of an evaluation: classes, degree of polyphony, worst clips.

Needs matplotlib (requirements-plot.txt), imported where used.
"""

import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from sslam_jax import metrics

_HALF = 25  # classes of which there are more are shown from both ends
_NAME_LETTERS = 32
_TITLE_LETTERS = 84
_RANGE_NATS = 10.0  # of a spectrogram, below its maximum
_FRAMES_PER_S = 100
_BAR, _INTERVAL, _CHANCE = 'tab:blue', '0.15', 'tab:red'


def draw_classes(path: pathlib.Path, summary: metrics.Summary) -> None:
  """One bar of average precision per class, the best on top."""
  found = sorted(summary.per_class, key=lambda x: -(x.ap.value or 0.0))
  hidden = max(0, len(found) - 2 * _HALF)
  shown = [*found[:_HALF], *found[_HALF + hidden :]]
  # A free row where classes are left out.
  place_K = -np.arange(len(shown)) - (np.arange(len(shown)) >= _HALF) * (
      hidden > 0)
  figure = _figure(7.0, 1.4 + 0.19 * (1 - place_K[-1]))
  axis = figure.subplots()
  axis.barh(place_K, [x.ap.value or 0.0 for x in shown], color=_BAR,
            alpha=0.75, label='average precision')
  _intervals(axis.hlines, place_K, [x.ap for x in shown])
  axis.scatter([x.chance_ap for x in shown], place_K, color=_CHANCE,
               marker='|', s=60, zorder=3, label='chance')
  names = [_shortened(x.name, _NAME_LETTERS) for x in shown]
  axis.set_yticks(place_K, [f'{name} ({x.positives})'
                            for name, x in zip(names, shown)], fontsize=7)
  if hidden:
    axis.text(0.01, -_HALF, f'... {hidden} more classes ...', fontsize=7,
              va='center')
  axis.set(xlim=(0, 1), ylim=(place_K[-1] - 0.8, 0.8))
  axis.set_xlabel('average precision (clips of the class in brackets)')
  axis.set_title(f'mAP {summary.overall.map.value:.3f} over '
                 f'{summary.overall.classes} classes', fontsize=10)
  _finish(figure, axis, path)


def draw_by_sources(path: pathlib.Path, summary: metrics.Summary) -> None:
  """mAP and AUC against the number of simultaneous sources, with chance."""
  groups = summary.by_sources
  place_K = np.arange(len(groups))
  figure = _figure(8.5, 3.9)
  left, right = figure.subplots(1, 2)
  for axis, title, estimates, chances in (
      (left, 'mAP', [x.map for x in groups.values()],
       [x.chance_map for x in groups.values()]),
      (right, 'ROC AUC', [x.auc for x in groups.values()], [0.5] * len(groups)),
  ):
    values = [np.nan if x.value is None else x.value for x in estimates]
    axis.plot(place_K, values, 'o-', color=_BAR, label='score')
    _intervals(axis.vlines, place_K, estimates)
    axis.plot(place_K, chances, '--', color=_CHANCE, label='chance')
    axis.set_xticks(place_K, [f'{name}\n{x.clips} clips'
                              for name, x in groups.items()], fontsize=8)
    axis.set(title=title, ylim=(0, 1.02), xlim=(-0.4, len(groups) - 0.6))
    axis.set_xlabel('simultaneous sources')
  _finish(figure, left, path)


def draw_spectrogram(
    path: pathlib.Path, mel_TxF: np.ndarray, lines: Sequence[str]
) -> None:
  """One log-mel in nats, under the lines of its title."""
  frames, bins = mel_TxF.shape
  figure = _figure(7.0, 2.9)
  axis = figure.subplots()
  top = float(mel_TxF.max())
  axis.imshow(
      mel_TxF.T, origin='lower', aspect='auto', cmap='magma', vmax=top,
      vmin=top - _RANGE_NATS, extent=(0, frames / _FRAMES_PER_S, 0, bins),
      interpolation='nearest',
  )
  title = '\n'.join(_shortened(line, _TITLE_LETTERS) for line in lines)
  axis.set_title(title, fontsize=8, loc='left')
  axis.set_xlabel('time (s)', fontsize=8)
  axis.set_ylabel('mel bin', fontsize=8)
  axis.tick_params(labelsize=7)
  _save(figure, path)


def _intervals(
    draw: Any, place_K: np.ndarray, estimates: Sequence[metrics.Estimate]
) -> None:
  """Lines from low to high, where there are such; labelled once."""
  rows = [(place, x.low, x.high) for place, x in zip(place_K, estimates)
          if x.low is not None and x.high is not None]
  if rows:
    draw(*zip(*rows), color=_INTERVAL, linewidth=1, label='95 % interval')


def _figure(width: float, height: float) -> Any:
  # Figures without pyplot: no display, no global state.
  from matplotlib import figure as figure_lib

  return figure_lib.Figure(figsize=(width, height), layout='constrained')


def _shortened(text: str, letters: int) -> str:
  """Text that matplotlib draws as it is, cut off at a number of letters."""
  text = textwrap.shorten(text, letters, placeholder='...')
  # Between two dollars it would see a formula, and it fails where a file name
  # that is not UTF-8 left a surrogate.
  return text.replace('$', '\\$').encode('utf-8', 'replace').decode('utf-8')


def _finish(figure: Any, axis: Any, path: pathlib.Path) -> None:
  """Saves it with the legend of one axis below all, where no data is."""
  for each in figure.axes:
    each.grid(alpha=0.3)
    each.set_axisbelow(True)
  figure.legend(*axis.get_legend_handles_labels(), fontsize=7, ncols=3,
                loc='outside lower center')
  _save(figure, path)


def _save(figure: Any, path: pathlib.Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=100)
