"""Statistics of inverse block masks, and given block centres exactly."""

import math
import re

import numpy as np
import scipy.ndimage

from sslam_jax import masking
from tools.golden import folder
from tools.golden import measures

_SIGMAS = measures.Tolerance(5.0, 'sigma')  # difference between two samples
_MASKS = 10_000  # our sample of each kind; the official one is given in n_masks
_CALL = 16  # masks of one clip, in both: those of flexible masks share a shape
_COMPONENT_BINS = 50
_GRID = (64, 8)  # (time, mel) patches of 1024 frames
_KINDS = {'rect5': False, 'flexible': True}  # name: InverseBlock.flexible


def check(golden: folder.Golden) -> None:
  """All of `mask_stats.npz` but its examples."""
  section = golden.section('mask_stats')
  for kind, flexible in _KINDS.items():
    part = section.under(f'{kind}/')
    part.expect('keep_prob')
    if part.names():
      config = masking.InverseBlock(flexible=flexible)
      _check_sample(part, config)
      if part.names('raw_kept'):
        _check_raw_kept(part, config)
  if section.names('det/'):
    _check_cover(section.under('det/'))


def _check_sample(part: folder.Section, config: masking.InverseBlock) -> None:
  """Statistics of our masks against those of the official ones."""
  rng = np.random.default_rng(0)
  hidden_RxN = np.concatenate([
      config.sample(rng, _CALL, _GRID) for _ in range(_MASKS // _CALL)])
  counts = np.unique(hidden_RxN.sum(1))
  part.compare('masked_count_values', counts, measures.EQUAL)
  kept_RxTxF = ~hidden_RxN.reshape(-1, *_GRID)
  components_R, largest_R = islands(kept_RxTxF)
  touched_R = kept_RxTxF.any(2).sum(1)
  _check_means(part, 'keep_prob', kept_RxTxF)
  _check_means(part, 'components_hist',
               _one_hot(components_R, _COMPONENT_BINS))
  _check_spread(part, 'components_mean_std', components_R)
  _check_means(part, 'largest_component_mean', largest_R)
  _check_means(part, 'mean_adjacent_kept_pairs_time_freq', np.stack([
      (kept_RxTxF[:, 1:] & kept_RxTxF[:, :-1]).sum((1, 2)),
      (kept_RxTxF[..., 1:] & kept_RxTxF[..., :-1]).sum((1, 2))], axis=1))
  _check_means(part, 'time_columns_touched_hist',
               _one_hot(touched_R, _GRID[0] + 1))


def _check_raw_kept(part: folder.Section, config: masking.InverseBlock) -> None:
  """Patches in the blocks, before surplus ones are removed or others added."""
  patches = math.prod(_GRID)
  # As in InverseBlock.sample, which returns only what comes after.
  share = 1 - config.hide + config.adjust
  blocks = int(patches * share / config.block**2)
  centre = np.random.default_rng(1).integers(patches, size=(_MASKS, blocks))
  shape = (config.block, config.block)
  kept_R = masking.cover(centre, _GRID, shape, config.block // 2).sum(1)
  _check_spread(part, 'raw_kept_mean_std_min_max', kept_R)
  wanted = config.kept(_GRID)
  _check_means(part, f'raw_kept_frac_lt_eq_gt_{wanted}', np.stack(
      [kept_R < wanted, kept_R == wanted, kept_R > wanted], axis=1))


def _check_means(part: folder.Section, key: str, value_Rx: np.ndarray) -> None:
  """Means over masks; a histogram is given as one-hot rows."""
  if (official := part.find(key)) is None:
    return
  if key.endswith('_hist'):
    official = official / official.sum()
  _check_sigmas(part, key, value_Rx, official)


def _check_spread(part: folder.Section, key: str, value_R: np.ndarray) -> None:
  """Mean and standard deviation: the first two of the official values."""
  if (official := part.find(key)) is None:
    return
  mean, std = official[:2]
  spread_R = (value_R - mean) ** 2
  _check_sigmas(part, f'{key} (mean)', value_R, mean)
  _check_sigmas(part, f'{key} (variance)', spread_R, std**2)
  if len(official) > 2:
    part.skip(key, 'extremes, which depend on the sample size')


def _check_sigmas(
    part: folder.Section, key: str, value_Rx: np.ndarray, official: np.ndarray
) -> None:
  """Difference of the means, in standard errors of both samples together.

  The error comes from the spread between calls, as masks of a call may share
  their shape; for rare events it is at least the binomial one.
  """
  theirs, calls = part.need('n_masks'), len(value_Rx) // _CALL
  ours = value_Rx.mean(0)
  mean_Cx = value_Rx.reshape(calls, _CALL, *value_Rx.shape[1:]).mean(1)
  sigma = mean_Cx.std(0, ddof=1) * np.sqrt(1 / calls + _CALL / theirs)
  if value_Rx.dtype == bool:
    total = len(value_Rx) + theirs
    p = (ours * len(value_Rx) + official * theirs) / total
    either = p * (1 - p) * (1 / len(value_Rx) + 1 / theirs)
    sigma = np.maximum(sigma, np.sqrt(np.maximum(either, 0)))
  part.add(key, ours, official, _SIGMAS.by(sigma))


def _one_hot(value_R: np.ndarray, bins: int) -> np.ndarray:
  """Rows of a histogram [R, bins]; the last bin takes all beyond it."""
  return np.minimum(value_R, bins - 1)[:, None] == np.arange(bins)


def islands(kept_RxTxF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Number of 4-connected kept islands, and the size of the largest: [R]."""
  within = np.zeros((3, 3, 3), int)
  within[1] = scipy.ndimage.generate_binary_structure(2, 1)
  label, _ = scipy.ndimage.label(kept_RxTxF, within)
  _, first, size = np.unique(label, return_index=True, return_counts=True)
  mask = first[1:] // kept_RxTxF[0].size  # label 0 is what is hidden
  largest_R = np.zeros(len(kept_RxTxF), int)
  np.maximum.at(largest_R, mask, size[1:])
  return np.bincount(mask, minlength=len(kept_RxTxF)), largest_R


def _check_cover(part: folder.Section) -> None:
  """Given block centres, exactly."""
  block = masking.InverseBlock().block
  centre = part.need('centres')
  for name in part.names('mask'):
    shape = re.fullmatch(r'_flexible_(\d+)x(\d+)', name)
    size = (int(shape[1]), int(shape[2])) if shape else (block, block)
    kept = masking.cover(centre, _GRID, size, block // 2)
    part.compare(f'mask{name}', ~kept, measures.EQUAL)
