"""Partial mixtures: which columns of a clip are mixed, and with what.

Two windows of every clip stay clean; elsewhere it is heard together with its
partner, the clip before it in its mix group: as published, the spectrogram is
the maximum of both.
Source: SSLAM paper section 3.2; forward() of SSLAM_Stage2
models/EAT_pretraining.py.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from sslam_jax import audio

Record = dict[str, Any]  # as in views.py

# The published clip has 64 columns; its windows start at most at these.
_COLUMNS = 64
_LAST_FIRST = 31
_LAST_SECOND = 48
_SILENCE = 1e-12  # power of a clip without a level: -120 dB of full scale


@dataclasses.dataclass(kw_only=True)
class PartialMix:
  """Draws what is random of mixtures, and makes them.

  Attributes:
    group: Clips per mix group; divides the clips of a device.
    shared_columns: All clips of a group get the same windows (published), else
      each its own.
    clean_share: Length of each of the two windows, as a share of the clip: 15
      of 64 columns published; 0 mixes everything.
    sources: Clips in a mixture: one and those before it in its group.
    how: What is heard of them together: 'max' (published), the largest of the
      normalised log-mels; 'log_mean', their mean; 'power', the log of the sum
      of their mel powers; 'wave', the log-mel of the sum of their waveforms.
    snr_db: Of 'wave': every partner is scaled so that the clip's mean power
      over the partner's is uniform between these. None: as loud as it is.
  """

  group: int = 12
  shared_columns: bool = True
  clean_share: float = 15 / 64
  sources: int = 2
  how: Literal['max', 'log_mean', 'power', 'wave'] = 'max'
  snr_db: tuple[float, float] | None = None

  def __post_init__(self) -> None:
    if self.group < 2:
      raise ValueError(f'group: want at least 2 clips, got {self.group}')
    if not 0 <= self.clean_share < 0.5:
      raise ValueError(f'clean_share: want a share from 0 to below 0.5, '
                       f'got {self.clean_share}')
    if not 2 <= self.sources <= self.group:
      raise ValueError(f'sources: want 2 to {self.group} (group), '
                       f'got {self.sources}')
    if self.snr_db is None:
      return
    if self.how != 'wave':
      raise ValueError(f"snr_db: want None, or how='wave'; "
                       f'got how={self.how!r}')
    low, high = self.snr_db
    if not -math.inf < low <= high < math.inf:
      raise ValueError(f'snr_db: want (low, high), got {self.snr_db}')

  def clean(self, columns: int) -> int:
    """Columns in one clean window of a clip of `columns` columns."""
    clean = int(columns * self.clean_share)
    if self.clean_share and not clean:
      raise ValueError(f'clean_share: want at least one of {columns} columns, '
                       f'got {self.clean_share}')
    return clean

  def draw(self, rng: np.random.Generator, columns: int) -> Record:
    """All that is random of a clip's mixture."""
    drawn = {'column': self.plan(rng, columns)}
    if self.snr_db is not None:
      snr_db = rng.uniform(*self.snr_db, self.sources - 1)
      drawn['snr_db'] = snr_db.astype(np.float32)
    return drawn

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

  def partners(self, x_Bx: Array) -> tuple[Array, ...]:
    """What belongs to each clip's partners, the nearest first."""
    return tuple(partner(x_Bx, self.group, back)
                 for back in range(1, self.sources))

  def together(
      self,
      mel_BxTxF: Array,
      partners_BxTxF: tuple[Array, ...],
      record: Record,
      front_end: audio.LogMel,
  ) -> Array:
    """Normalised log-mels of all clips with all their partners: [B, T, F].

    Args:
      mel_BxTxF: Those of the clips.
      partners_BxTxF: Those of their partners.
      record: For 'wave', the clips' `wave` [B, S] and `samples` [B], and
        `snr_db` [B, partners] where it is drawn.
      front_end: What made them.
    """
    mels = mel_BxTxF, *partners_BxTxF
    if self.how == 'wave':
      return front_end(*self.add(record))
    if self.how == 'power':
      nats = map(front_end.nats, mels)
      return front_end.normalise(functools.reduce(jnp.logaddexp, nats))
    if self.how == 'log_mean':
      return functools.reduce(jnp.add, mels) / len(mels)
    return functools.reduce(jnp.maximum, mels)

  def add(self, record: Record) -> tuple[Array, Array]:
    """Clips plus their partners: waveforms [B, S], samples of the longest [B].

    Clips have their mean removed before, as by the front end. Beside a silent
    clip no level has a meaning: its partners stay as they are.
    """
    samples_B = record['samples']
    wave_BxS = _centred(record['wave'], samples_B)
    power_B = jnp.sum(wave_BxS**2, axis=-1) / jnp.maximum(samples_B, 1)
    total_BxS = wave_BxS
    for index, (other_BxS, other_power_B) in enumerate(
        zip(self.partners(wave_BxS), self.partners(power_B))
    ):
      if self.snr_db is not None:
        gain_B = _gain(power_B, other_power_B, record['snr_db'][:, index])
        other_BxS = gain_B[:, None] * other_BxS
      total_BxS = total_BxS + other_BxS
    longest_B = functools.reduce(
        jnp.maximum, (samples_B, *self.partners(samples_B))
    )
    return total_BxS, longest_B


def mixed_columns(
    start_2: np.ndarray, clean: int, columns: int
) -> np.ndarray:
  """Columns outside windows of `clean` columns at `start_2`: int32 [C]."""
  column = np.arange(columns)
  within = (column >= start_2[:, None]) & (column < start_2[:, None] + clean)
  return column[~within.any(0)].astype(np.int32)


def partner(x_Bx: Array, group: int, back: int = 1) -> Array:
  """Each clip's partner: `back` places before it, cyclic within its group."""
  groups = x_Bx.reshape(-1, group, *x_Bx.shape[1:])
  return jnp.roll(groups, back, axis=1).reshape(x_Bx.shape)


def splice(
    mel_BxTxF: Array, together_BxTxF: Array, column_BxC: Array, width: int
) -> Array:
  """All together where mixed, the clip itself elsewhere.

  Args:
    mel_BxTxF: Normalised log-mels.
    together_BxTxF: Those of the clips with their partners.
    column_BxC: Mixed columns of each clip.
    width: Frames in a column; frames beyond the last column are not mixed.
  """
  rows, frames, _ = mel_BxTxF.shape
  columns = frames // width
  is_mixed = jnp.zeros((rows, columns), bool)
  is_mixed = is_mixed.at[jnp.arange(rows)[:, None], column_BxC].set(True)
  is_mixed = jnp.repeat(is_mixed, width, axis=1)
  is_mixed = jnp.pad(is_mixed, ((0, 0), (0, frames - columns * width)))
  return jnp.where(is_mixed[..., None], together_BxTxF, mel_BxTxF)


def tokens(column_BxC: Array, mel_patches: int) -> Array:
  """Patch indices of whole columns, ascending: int32 [B, C * mel_patches]."""
  patch = jnp.arange(mel_patches, dtype=jnp.int32)
  token = column_BxC[..., None] * mel_patches + patch[None, None]
  return token.reshape(len(column_BxC), -1)


def _centred(wave_BxS: Array, samples_B: Array) -> Array:
  """Without their mean; 0 beyond their length."""
  place_S = jnp.arange(wave_BxS.shape[1])
  is_valid_BxS = place_S[None] < samples_B[:, None]
  total_B = jnp.sum(wave_BxS, axis=1, where=is_valid_BxS)
  mean_B = total_B / jnp.maximum(samples_B, 1)
  return jnp.where(is_valid_BxS, wave_BxS - mean_B[:, None], 0.0)


def _gain(power_B: Array, other_power_B: Array, snr_db_B: Array) -> Array:
  """Factor of the other waveform by which the powers have this ratio."""
  is_heard_B = jnp.minimum(power_B, other_power_B) > _SILENCE
  ratio_B = power_B / jnp.where(is_heard_B, other_power_B, 1.0)
  return jnp.where(is_heard_B, jnp.sqrt(ratio_B) * 10 ** (-snr_db_B / 20), 1.0)
