"""Inverse-block masks: counts, blocks by hand, and their distribution."""

import random

import numpy as np
import pytest

from sslam_jax import masking

SIGMAS = 5  # of the difference of two means
DRAWS = 1_500
PUBLISHED = (64, 8)


def picture(text):
  """Flat bool array of a drawing, # is True."""
  return np.array([c == '#' for c in ''.join(text.split())])


def neighbours(kept_MxN, grid):
  """Pairs of adjacent kept patches in each mask."""
  kept = kept_MxN.reshape(-1, *grid)
  down = kept[:, 1:] & kept[:, :-1]
  across = kept[:, :, 1:] & kept[:, :, :-1]
  return down.sum((1, 2)) + across.sum((1, 2))


def reference(rng, grid, shapes=((5, 5),), blocks=5, share=0.2):
  """One mask of kept patches, cell by cell from the description."""
  time, mel = grid
  height, width = rng.choice(shapes)
  kept = set()
  for _ in range(blocks):
    centre = rng.randrange(time * mel)
    row, column = centre // mel - 2, centre % mel - 2
    for r in range(row, row + height):
      for c in range(column, column + width):
        if 0 <= r < time and 0 <= c < mel:
          kept.add(r * mel + c)
  wanted = int(time * mel * share)
  while len(kept) > wanted:
    kept.remove(rng.choice(sorted(kept)))
  while len(kept) < wanted:
    kept.add(rng.randrange(time * mel))
  return [n in kept for n in range(time * mel)]


def assert_same_mean(ours, theirs):
  """Means over the first axis agree within the noise of both samples."""
  ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
  error = np.sqrt(ours.var(0) / len(ours) + theirs.var(0) / len(theirs))
  assert (abs(ours.mean(0) - theirs.mean(0)) <= SIGMAS * error).all()


@pytest.mark.parametrize(('grid', 'hide', 'kept'), [
    ((64, 8), 0.8, 102),
    ((16, 8), 0.8, 25),
    ((20, 8), 0.8, 32),  # 31.999999999999993 in floats
    ((8, 2), 0.75, 4),
    ((7, 3), 0.8, 4),
    ((1, 5), 0.8, 1),
    ((64, 8), 0.5, 256),
    ((64, 8), 0.99, 5),
])
@pytest.mark.parametrize('flexible', [False, True])
def test_every_mask_keeps_exactly_the_share(grid, hide, kept, flexible):
  mask = masking.InverseBlock(hide=hide, flexible=flexible)
  assert mask.kept(grid) == kept
  rng = np.random.default_rng(0)
  for _ in range(20):
    hidden = mask.sample(rng, 3, grid)
    assert hidden.shape == (3, grid[0] * grid[1])
    assert hidden.dtype == bool
    assert ((~hidden).sum(1) == kept).all()


def test_a_share_that_keeps_nothing_is_refused():
  with pytest.raises(ValueError, match='hide: .* 2 x 2 grid'):
    masking.InverseBlock(hide=0.8).kept((2, 2))


@pytest.mark.parametrize('fields', [
    {'hide': 0.0}, {'hide': 1.0}, {'block': 0}, {'adjust': -0.1},
])
def test_impossible_settings_are_refused_by_name(fields):
  with pytest.raises(ValueError, match=f'^{next(iter(fields))}: want'):
    masking.InverseBlock(**fields)


@pytest.mark.parametrize(('centre', 'shape', 'offset', 'drawing'), [
    ((2, 2), (3, 3), 1, '..... .###. .###. .###. .....'),
    ((0, 0), (3, 3), 1, '##... ##... ..... ..... .....'),
    ((4, 4), (3, 3), 1, '..... ..... ..... ...## ...##'),
    ((0, 2), (5, 5), 2, '##### ##### ##### ..... .....'),
    ((4, 0), (5, 5), 2, '..... ..... ###.. ###.. ###..'),
    ((2, 2), (2, 2), 1, '..... .##.. .##.. ..... .....'),
    ((2, 3), (1, 1), 0, '..... ..... ...#. ..... .....'),
    # Flexible shapes start two rows and columns before the centre.
    ((1, 2), (6, 4), 2, '####. ####. ####. ####. ####.'),
    ((0, 4), (6, 4), 2, '..### ..### ..### ..### .....'),
    ((4, 0), (6, 4), 2, '..... ..... ##... ##... ##...'),
    ((3, 3), (8, 3), 2, '..... .###. .###. .###. .###.'),
    ((4, 4), (8, 3), 2, '..... ..... ..### ..### ..###'),
    ((2, 0), (8, 3), 2, '#.... #.... #.... #.... #....'),
])
def test_a_block_is_cut_at_the_border(centre, shape, offset, drawing):
  flat = centre[0] * 5 + centre[1]
  covered = masking.cover(np.array([[flat]]), (5, 5), shape, offset)
  np.testing.assert_array_equal(covered[0], picture(drawing))


def test_blocks_overlap_and_masks_are_apart():
  centre = np.array([[0, 5], [5, 5], [11, 1]])
  covered = masking.cover(centre, (4, 3), (3, 3), 1)
  np.testing.assert_array_equal(covered, [
      picture('### ### .## ...'),
      picture('.## .## .## ...'),
      picture('### ### .## .##'),
  ])


def test_clones_of_a_clip_differ():
  rng = np.random.default_rng(1)
  hidden = masking.InverseBlock().sample(rng, 8, PUBLISHED)
  assert len(np.unique(hidden, axis=0)) == 8


def test_masks_depend_on_the_generator_alone():
  mask = masking.InverseBlock()
  first, again, other = (
      mask.sample(np.random.default_rng(seed), 4, PUBLISHED)
      for seed in (3, 3, 4)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


@pytest.mark.parametrize('flexible', [False, True])
def test_masks_are_distributed_as_described(flexible):
  mask = masking.InverseBlock(flexible=flexible)
  shapes = ((6, 4), (5, 5), (8, 3)) if flexible else ((5, 5),)
  generator, rng = np.random.default_rng(5), random.Random(5)
  ours = ~np.concatenate(
      [mask.sample(generator, 1, PUBLISHED) for _ in range(DRAWS)]
  )
  theirs = np.array([reference(rng, PUBLISHED, shapes) for _ in range(DRAWS)])
  assert_same_mean(neighbours(ours, PUBLISHED), neighbours(theirs, PUBLISHED))
  ours, theirs = (x.reshape(-1, *PUBLISHED) for x in (ours, theirs))
  assert_same_mean(ours.mean(1), theirs.mean(1))  # by mel patch
  assert_same_mean(ours.mean(2), theirs.mean(2))  # by time patch


def test_kept_patches_are_more_clustered_than_random_ones():
  rng = np.random.default_rng(6)
  ours = ~masking.InverseBlock().sample(rng, 100, PUBLISHED)
  scattered = rng.permuted(ours, axis=1)
  assert (
      neighbours(ours, PUBLISHED).min()
      > neighbours(scattered, PUBLISHED).max() + 30
  )


def test_what_is_removed_or_added_leaves_the_block_recognisable():
  """One block and 12 kept: either is a part of the other."""
  mask = masking.InverseBlock(hide=0.8, adjust=0.3)
  kept = ~mask.sample(np.random.default_rng(7), 100, (8, 8))
  blocks = masking.cover(np.arange(64)[:, None], (8, 8), (5, 5), 2)
  common = (kept[:, None] & blocks[None]).sum(2)
  smaller = np.minimum(kept.sum(1)[:, None], blocks.sum(1)[None])
  assert (common == smaller).any(1).all()


def test_flexible_masks_of_one_call_share_their_shape():
  """A single block, kept whole where the border does not cut it."""
  mask = masking.InverseBlock(hide=0.9, adjust=0.0, flexible=True)
  grid = (20, 12)  # 24 kept
  shapes = set()
  for seed in range(30):
    kept = ~mask.sample(np.random.default_rng(seed), 60, grid)
    seen = {whole for row in kept.reshape(-1, *grid)
            if (whole := shape_of_block(row))}
    assert len(seen) == 1
    shapes |= seen
  assert shapes == {(6, 4), (5, 5), (8, 3)}


def shape_of_block(kept):
  """Height and width of a mask's only block, if nothing else is kept."""
  rows, columns = np.nonzero(kept)
  shape = (int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1)
  return shape if shape in {(6, 4), (5, 5), (8, 3)} else None


def test_kept_indices_are_ascending_places_of_what_is_not_hidden():
  hidden = np.array([[1, 0, 1, 0, 1], [0, 1, 1, 1, 0]], bool)
  keep = masking.kept_indices(hidden)
  np.testing.assert_array_equal(keep, [[1, 3], [0, 4]])
  assert keep.dtype == np.int32


def test_hidden_is_the_inverse_of_kept_indices():
  mask = masking.InverseBlock()
  masks = np.stack([
      mask.sample(np.random.default_rng(seed), 4, (16, 8)) for seed in range(3)
  ])
  keep = np.stack([masking.kept_indices(hidden) for hidden in masks])
  np.testing.assert_array_equal(masking.hidden(keep, 128), masks)
