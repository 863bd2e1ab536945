"""Partial mixtures: which columns of a clip are mixed, and with what.

Two windows of every clip stay clean; elsewhere its spectrogram is the maximum
of its own and its partner's, the clip before it in its mix group.
Source: SSLAM paper section 3.2; forward() of SSLAM_Stage2
models/EAT_pretraining.py.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array

# The published clip has 64 columns; its windows start at most at these.
_COLUMNS = 64
_LAST_FIRST = 31
_LAST_SECOND = 48


@dataclasses.dataclass(kw_only=True)
class PartialMix:
  """Draws the clean windows of mixtures.

  Attributes:
    group: Clips per mix group; divides the clips of a device.
    shared_columns: All clips of a group get the same windows (published), else
      each its own.
    clean_share: Length of each of the two windows, as a share of the clip: 15
      of 64 columns published; 0 mixes everything.
  """

  group: int = 12
  shared_columns: bool = True
  clean_share: float = 15 / 64

  def __post_init__(self) -> None:
    if self.group < 2:
      raise ValueError(f'group: want at least 2 clips, got {self.group}')
    if not 0 <= self.clean_share < 0.5:
      raise ValueError(f'clean_share: want a share from 0 to below 0.5, '
                       f'got {self.clean_share}')

  def clean(self, columns: int) -> int:
    """Columns in one clean window of a clip of `columns` columns."""
    clean = int(columns * self.clean_share)
    if self.clean_share and not clean:
      raise ValueError(f'clean_share: want at least one of {columns} columns, '
                       f'got {self.clean_share}')
    return clean

  def plan(self, rng: np.random.Generator, columns: int) -> np.ndarray:
    """Draws the mixed columns of a clip: int32 [C], ascending.

    The first window's start is uniform over those that leave room for a
    second, then the second's over what the first leaves; with 64 columns
    exactly the published choices, else in proportion.
    """
    clean = self.clean(columns)
    last = min(columns * _LAST_SECOND // _COLUMNS, columns - clean)
    last_first = min(columns * _LAST_FIRST // _COLUMNS, last - clean)
    first = rng.integers(last_first + 1)
    second = rng.integers(first + clean, last + 1)
    return mixed_columns(np.array([first, second]), clean, columns)

  def share(self, column_BxC: Array) -> Array:
    """The columns of each clip after sharing within groups: [B, C]."""
    if not self.shared_columns:
      return column_BxC
    return jnp.repeat(column_BxC[:: self.group], self.group, axis=0)


def mixed_columns(
    start_2: np.ndarray, clean: int, columns: int
) -> np.ndarray:
  """Columns outside windows of `clean` columns at `start_2`: int32 [C]."""
  column = np.arange(columns)
  within = (column >= start_2[:, None]) & (column < start_2[:, None] + clean)
  return column[~within.any(0)].astype(np.int32)


def partner(x_Bx: Array, group: int) -> Array:
  """Each clip's partner: the one before it, cyclic within its group."""
  groups = x_Bx.reshape(-1, group, *x_Bx.shape[1:])
  return jnp.roll(groups, 1, axis=1).reshape(x_Bx.shape)


def mix(
    mel_BxTxF: Array, partner_BxTxF: Array, column_BxC: Array, width: int
) -> Array:
  """Maximum of both where mixed, the clip itself elsewhere.

  Args:
    mel_BxTxF: Normalised log-mels.
    partner_BxTxF: Those of the partners.
    column_BxC: Mixed columns of each clip.
    width: Frames in a column; frames beyond the last column are not mixed.
  """
  rows, frames, _ = mel_BxTxF.shape
  columns = frames // width
  is_mixed = jnp.zeros((rows, columns), bool)
  is_mixed = is_mixed.at[jnp.arange(rows)[:, None], column_BxC].set(True)
  is_mixed = jnp.repeat(is_mixed, width, axis=1)
  is_mixed = jnp.pad(is_mixed, ((0, 0), (0, frames - columns * width)))
  louder_BxTxF = jnp.maximum(mel_BxTxF, partner_BxTxF)
  return jnp.where(is_mixed[..., None], louder_BxTxF, mel_BxTxF)


def tokens(column_BxC: Array, mel_patches: int) -> Array:
  """Patch indices of whole columns, ascending: int32 [B, C * mel_patches]."""
  patch = jnp.arange(mel_patches, dtype=jnp.int32)
  token = column_BxC[..., None] * mel_patches + patch[None, None]
  return token.reshape(len(column_BxC), -1)
