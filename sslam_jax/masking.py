"""Inverse-block masks: which patches of a clip the student may see.

A few blocks are kept and the rest is hidden, so that the student must predict
from small islands. Drawn in NumPy by the data pipeline.
Source: compute_block_mask_2d of EAT utils/data_utils.py.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jax import Array

_ROUNDING = 1e-9  # 160 * (1 - 0.8) is 31.999999999999993 in floats, meant 32
# Blocks of about equal area, time x mel; a clip uses one of them.
_FLEXIBLE_SHAPES = ((6, 4), (5, 5), (8, 3))
_FLEXIBLE_OFFSET = 2  # of a block's first row and column before its centre


@dataclasses.dataclass(kw_only=True)
class InverseBlock:
  """Draws masks that keep blocks and hide the rest.

  Attributes:
    hide: Share of the patches that is hidden; exact after equalisation.
    block: Edge of a kept block, in patches.
    adjust: Added to the kept share when the number of blocks is computed, to
      make up for overlaps.
    flexible: One of the shapes 6x4, 5x5, 8x3 (time x mel) for each clip
      instead of a square of `block`.
  """

  hide: float = 0.8
  block: int = 5
  adjust: float = 0.07
  flexible: bool = False

  def __post_init__(self) -> None:
    if not 0 < self.hide < 1:
      raise ValueError(f'hide: want a share between 0 and 1, got {self.hide}')
    if self.block < 1:
      raise ValueError(f'block: want at least 1, got {self.block}')
    if self.adjust < 0:
      raise ValueError(f'adjust: want at least 0, got {self.adjust}')

  def kept(self, grid: tuple[int, int]) -> int:
    """Number of kept patches of a (time, mel) grid; the same in every mask."""
    kept = math.floor(math.prod(grid) * (1 - self.hide) + _ROUNDING)
    if kept < 1:
      raise ValueError(f'hide: want a share that keeps a patch of the '
                       f'{grid[0]} x {grid[1]} grid, got {self.hide}')
    return kept

  def sample(
      self, rng: np.random.Generator, count: int, grid: tuple[int, int]
  ) -> np.ndarray:
    """`count` masks of one clip: bool [count, N], True where hidden."""
    patches, share = math.prod(grid), 1 - self.hide
    blocks = int(patches * (share + self.adjust) / self.block**2)
    shape, offset = (self.block, self.block), self.block // 2
    if self.flexible:
      shape = _FLEXIBLE_SHAPES[rng.integers(len(_FLEXIBLE_SHAPES))]
      offset = _FLEXIBLE_OFFSET
    centre = rng.integers(patches, size=(count, max(1, blocks)))
    kept = cover(centre, grid, shape, offset)
    # Kept patches score above 1: the best K are a random choice of the blocks'
    # patches where those are too many, all of them and random others if few.
    score = kept + rng.random(kept.shape)
    best = np.argpartition(-score, self.kept(grid) - 1, axis=1)
    hidden = np.ones_like(kept)
    np.put_along_axis(hidden, best[:, : self.kept(grid)], False, axis=1)
    return hidden


def cover(
    centre_MxC: np.ndarray,
    grid: tuple[int, int],
    shape: tuple[int, int],
    offset: int,
) -> np.ndarray:
  """Union of the blocks around flat `centre` indices: bool [M, N].

  A block starts `offset` rows and columns before its centre and is cut at the
  border of the (time, mel) grid.
  """
  row, column = np.divmod(centre_MxC, grid[1])
  row = row[..., None] + np.arange(shape[0]) - offset
  column = column[..., None] + np.arange(shape[1]) - offset
  row = np.clip(row, 0, grid[0] - 1)[..., :, None]
  column = np.clip(column, 0, grid[1] - 1)[..., None, :]
  covered = np.zeros((len(centre_MxC), math.prod(grid)), bool)
  flat = (row * grid[1] + column).reshape(len(centre_MxC), -1)
  np.put_along_axis(covered, flat, True, axis=1)
  return covered


def kept_indices(hidden_MxN: np.ndarray) -> np.ndarray:
  """Ascending indices [M, K] of the kept patches; K is equal for all rows."""
  kept = ~hidden_MxN
  return np.nonzero(kept)[1].reshape(len(kept), -1).astype(np.int32)


def hidden(keep_BxMxK: Array, patches: int) -> Array:
  """The masks back from kept indices: bool [B, M, N], True where hidden."""
  rows, clones, _ = keep_BxMxK.shape
  all_hidden = jnp.ones((rows, clones, patches), bool)
  row = jnp.arange(rows)[:, None, None]
  clone = jnp.arange(clones)[None, :, None]
  return all_hidden.at[row, clone, keep_BxMxK].set(False)
