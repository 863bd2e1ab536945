"""Pictures of a run: what the model sees, and how its losses fall.

Needs matplotlib (requirements-plot.txt), imported where used.
"""

import importlib.util
import math
import pathlib
from typing import Any

import jax
import numpy as np

from sslam_jax import views as views_lib

_CLIPS = 3
_CLONES = 2
_LABELS = 3  # in a title
_FEW = 20  # points of a curve
_COLUMN_INCHES, _ROW_INCHES = 4.5, 1.9
_FRAMES_PER_S = 100

_Panel = tuple[str, np.ndarray, np.ndarray | None]  # title, mel, mixed frames


def available() -> bool:
  """Whether matplotlib is installed."""
  return importlib.util.find_spec('matplotlib') is not None


def draw_views(
    path: pathlib.Path,
    ids: list[str],
    views: views_lib.Views | views_lib.Examples,
    patch: int,
    names: tuple[str, ...],
) -> None:
  """Draws the first clips of a batch, one column each.

  From top to bottom: log-mel; its partners and the mixture with mixed columns
  marked, where there are any; what is left of the clip in two clones. Of
  labelled clips: the augmented log-mel with its labels, of the classes `names`.
  """
  # Three clips are cut off on the device: the batch may be large.
  views = jax.device_get(jax.tree.map(lambda x: x[:_CLIPS], views))
  if isinstance(views, views_lib.Examples):
    panels = [_labelled(views, clip, names) for clip in range(len(views.row_B))]
  else:
    panels = [_panels(views, clip, patch) for clip in range(len(views.row_B))]
  figure, axes = _subplots(len(panels[0]), len(panels))
  for column, (clip_id, clip_panels) in enumerate(zip(ids, panels)):
    for row, (title, mel_TxF, is_mixed_T) in enumerate(clip_panels):
      axis = axes[row, column]
      name = pathlib.PurePath(clip_id).name
      shown = f'{name}: {title}' if row == 0 else title
      _draw_mel(axis, shown, mel_TxF, is_mixed_T)
  axes[-1, 0].set_xlabel('time (s)')
  axes[-1, 0].set_ylabel('mel bin')
  _save(figure, path)


def draw_losses(path: pathlib.Path, metrics: list[dict[str, float]]) -> None:
  """Draws every metric of a run against its step."""
  names = list(dict.fromkeys(name for m in metrics for name in m))
  names.remove('step')
  columns = 3
  figure, axes = _subplots(math.ceil(len(names) / columns), columns)
  for axis, name in zip(axes.flat, names):
    points = [(m['step'], m[name]) for m in metrics if name in m]
    marker = '.' if len(points) < _FEW else None  # one makes no line
    axis.plot(*zip(*points), linewidth=1, marker=marker)
    axis.set_title(name, fontsize=9)
    axis.grid(alpha=0.3)
  for axis in axes.flat[len(names) :]:
    axis.set_axis_off()
  axes.flat[0].set_xlabel('step')
  _save(figure, path)


def _labelled(
    views: views_lib.Examples, clip: int, names: tuple[str, ...]
) -> list[_Panel]:
  label_C = np.asarray(views.label_BxC[clip])
  heard = [f'{names[c]} {label_C[c]:.2g}' for c in np.argsort(-label_C)
           if label_C[c] > 0]
  title = ', '.join(heard[:_LABELS]) + ', ...' * (len(heard) > _LABELS)
  return [(title or 'no label', np.asarray(views.mel_BxTxF[clip]), None)]


def _panels(
    views: views_lib.Views, clip: int, patch: int
) -> list[_Panel]:
  """(title, log-mel, mixed frames) of one clip's pictures."""
  mel_TxF = np.asarray(views.mel_BxTxF[clip])
  panels: list[_Panel] = [('log-mel', mel_TxF, None)]
  if views.mixture is not None:
    is_mixed_T = np.zeros(len(mel_TxF), bool)
    for column in np.asarray(views.mixture.column_BxC[clip]):
      is_mixed_T[column * patch : (column + 1) * patch] = True
    partners = views.mixture.partners_BxTxF
    for number, partner_BxTxF in enumerate(partners, 1):
      title = f'partner {number}' if len(partners) > 1 else 'partner'
      panels.append((title, np.asarray(partner_BxTxF[clip]), None))
    mixed_TxF = np.asarray(views.mixture.mel_BxTxF[clip])
    panels.append(('mixture (bar: mixed)', mixed_TxF, is_mixed_T))
  keep_MxK = np.asarray(views.keep_BxMxK[clip][:_CLONES])
  for clone, keep_K in enumerate(keep_MxK):
    title = f'clone {clone + 1}: {len(keep_K)} patches kept'
    panels.append((title, _only(mel_TxF, keep_K, patch), None))
  return panels


def _only(mel_TxF: np.ndarray, keep_K: np.ndarray, patch: int) -> np.ndarray:
  """The log-mel with every patch but `keep_K` blank."""
  row, column = np.divmod(keep_K, mel_TxF.shape[1] // patch)
  shown = np.full_like(mel_TxF, np.nan)
  for r, c in zip(row * patch, column * patch):
    shown[r : r + patch, c : c + patch] = mel_TxF[r : r + patch, c : c + patch]
  return shown


def _draw_mel(
    axis: Any, title: str, mel_TxF: np.ndarray, is_mixed_T: np.ndarray | None
) -> None:
  frames, bins = mel_TxF.shape
  axis.imshow(
      mel_TxF.T, origin='lower', aspect='auto', cmap='magma', vmin=-1.3,
      vmax=1.3, extent=(0, frames / _FRAMES_PER_S, 0, bins),
      interpolation='nearest',
  )
  axis.set_facecolor('0.85')
  axis.set_title(title, fontsize=8)
  axis.tick_params(labelsize=7)
  if is_mixed_T is not None:
    seconds = np.arange(frames) / _FRAMES_PER_S
    axis.fill_between(
        seconds, bins, bins * 1.06, where=is_mixed_T, step='post',
        color='tab:cyan', linewidth=0,
    )
    axis.set_ylim(0, bins * 1.06)


def _subplots(rows: int, columns: int) -> tuple[Any, np.ndarray]:
  # Figures without pyplot: no display, no global state.
  from matplotlib import figure as figure_lib

  figure = figure_lib.Figure(
      figsize=(_COLUMN_INCHES * columns, _ROW_INCHES * rows),
      layout='constrained',
  )
  return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure: Any, path: pathlib.Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=90)
