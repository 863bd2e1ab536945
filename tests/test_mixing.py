"""Which columns are mixed, with which clip, and the mixture itself."""

import collections

import jax
import numpy as np
import pytest

from sslam_jax import mixing

SIGMAS = 5
DRAWS = 8_000


def starts(mixed, columns, clean):
  """First columns of the two clean windows, from the mixed columns."""
  free = [c for c in range(columns) if c not in set(mixed.tolist())]
  assert len(free) == 2 * clean
  for window in (free[:clean], free[clean:]):
    assert window == [*range(window[0], window[0] + clean)]
  return free[0], free[clean]


@pytest.fixture(scope='module')
def published():
  """Both starts of many draws with 64 columns."""
  mix, rng = mixing.PartialMix(), np.random.default_rng(0)
  return [starts(mix.plan(rng, 64), 64, 15) for _ in range(DRAWS)]


def test_published_draws_mix_34_of_64_columns():
  mix, rng = mixing.PartialMix(), np.random.default_rng(1)
  for _ in range(200):
    mixed = mix.plan(rng, 64)
    assert len(mixed) == 34
    assert mixed.dtype == np.int32
    assert (np.diff(mixed) > 0).all()
    starts(mixed, 64, 15)  # two whole windows: they never overlap


def test_published_first_window_is_uniform_over_32_starts(published):
  count = collections.Counter(first for first, _ in published)
  assert sorted(count) == [*range(32)]
  p = 1 / 32
  noise = np.sqrt(DRAWS * p * (1 - p))
  assert all(abs(n - DRAWS * p) < SIGMAS * noise for n in count.values())


def test_published_second_window_is_uniform_over_what_the_first_leaves(
    published
):
  """Frames 240 after the first to 768, in steps of 16."""
  chance = collections.Counter()
  for first in range(32):
    choices = [s // 16 for s in range(first * 16 + 240, 768 + 1, 16)]
    for second in choices:
      chance[first, second] += 1 / 32 / len(choices)
  assert {*published} <= {*chance}
  second_chance = collections.Counter()
  for (_, second), p in chance.items():
    second_chance[second] += p
  count = collections.Counter(second for _, second in published)
  assert sorted(count) == sorted(second_chance)
  for second, p in second_chance.items():
    noise = np.sqrt(DRAWS * p * (1 - p))
    assert abs(count[second] - DRAWS * p) < SIGMAS * noise


def test_published_second_window_depends_on_the_first(published):
  """After 31 it starts at 46 to 48 only, a third each."""
  late = [second for first, second in published if first == 31]
  count = collections.Counter(late)
  assert sorted(count) == [46, 47, 48]
  noise = np.sqrt(len(late) * 2 / 9)
  assert all(abs(n - len(late) / 3) < SIGMAS * noise for n in count.values())


@pytest.mark.parametrize('columns', [5, 8, 11, 16, 31, 63, 65, 128, 200])
@pytest.mark.parametrize('share', [15 / 64, 0.4, 0.49])
def test_any_number_of_columns_has_two_whole_clean_windows(columns, share):
  mix, rng = mixing.PartialMix(clean_share=share), np.random.default_rng(2)
  clean = int(columns * share)
  assert mix.clean(columns) == clean >= 1
  seen = {starts(mix.plan(rng, columns), columns, clean) for _ in range(100)}
  for first, second in seen:
    assert 0 <= first <= second - clean <= columns - 2 * clean
  assert len(seen) > 1 or columns <= 5


def test_128_columns_are_in_proportion_to_the_published_64():
  mix, rng = mixing.PartialMix(), np.random.default_rng(3)
  seen = [starts(mix.plan(rng, 128), 128, 30) for _ in range(2_000)]
  assert {first for first, _ in seen} == {*range(63)}
  assert max(second for _, second in seen) == 96


def test_without_clean_share_everything_is_mixed():
  mix = mixing.PartialMix(clean_share=0.0)
  for columns in (1, 7, 64):
    mixed = mix.plan(np.random.default_rng(4), columns)
    np.testing.assert_array_equal(mixed, np.arange(columns))


def test_plans_depend_on_the_generator_alone():
  mix = mixing.PartialMix()
  first, again, other = (
      mix.plan(np.random.default_rng(seed), 64) for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


@pytest.mark.parametrize('fields', [
    {'group': 1}, {'clean_share': -0.1}, {'clean_share': 0.5},
])
def test_impossible_settings_are_refused_by_name(fields):
  with pytest.raises(ValueError, match=f'^{next(iter(fields))}: want'):
    mixing.PartialMix(**fields)


def test_a_window_of_no_column_is_refused():
  with pytest.raises(ValueError, match='clean_share: .* 4 columns'):
    mixing.PartialMix().plan(np.random.default_rng(0), 4)


@pytest.mark.parametrize(('start', 'clean', 'expected'), [
    ((1, 4), 2, [0, 3, 6, 7]),
    ((0, 6), 2, [2, 3, 4, 5]),
    ((2, 4), 2, [0, 1, 6, 7]),
    ((0, 3), 0, [0, 1, 2, 3, 4, 5, 6, 7]),
])
def test_mixed_columns_are_those_outside_both_windows(start, clean, expected):
  mixed = mixing.mixed_columns(np.array(start), clean, 8)
  np.testing.assert_array_equal(mixed, expected)


def test_shared_columns_are_the_first_clip_s_of_each_group():
  column = np.array([[0, 1], [1, 2], [2, 3], [0, 3], [1, 3], [0, 2]])
  shared = mixing.PartialMix(group=3).share(column)
  np.testing.assert_array_equal(
      shared, [[0, 1], [0, 1], [0, 1], [0, 3], [0, 3], [0, 3]]
  )


def test_columns_that_are_not_shared_stay_as_drawn():
  column = np.array([[0, 1], [1, 2], [2, 3], [0, 3]])
  own = mixing.PartialMix(group=2, shared_columns=False).share(column)
  np.testing.assert_array_equal(own, column)


@pytest.mark.parametrize(('group', 'expected'), [
    (2, [1, 0, 3, 2, 5, 4]),
    (3, [2, 0, 1, 5, 3, 4]),
    (6, [5, 0, 1, 2, 3, 4]),
])
def test_partner_is_the_clip_before_cyclic_within_the_group(group, expected):
  clips = np.arange(6)
  np.testing.assert_array_equal(mixing.partner(clips, group), expected)
  maps = np.broadcast_to(clips[:, None, None], (6, 2, 3))
  partners = mixing.partner(maps, group)
  assert partners.shape == (6, 2, 3)
  np.testing.assert_array_equal(partners[:, 1, 2], expected)


def test_mix_is_the_maximum_in_mixed_columns_alone():
  rng = np.random.default_rng(5)
  own, other = rng.standard_normal((2, 3, 11, 4)).astype(np.float32)
  column = np.array([[0, 2], [1, 3], [2, 4]])
  expected = own.copy()
  for b in range(3):
    for t in range(10):  # frame 10 is beyond the last column of 2 frames
      for f in range(4):
        if t // 2 in column[b]:
          expected[b, t, f] = max(own[b, t, f], other[b, t, f])
  mixed = jax.jit(mixing.mix, static_argnums=3)(own, other, column, 2)
  np.testing.assert_array_equal(mixed, expected)
  assert (expected != own).any()
  assert (mixed[:, 10] == own[:, 10]).all()


def test_tokens_are_all_patches_of_the_columns():
  tokens = mixing.tokens(np.array([[0, 2], [1, 3]], np.int32), 3)
  np.testing.assert_array_equal(
      tokens, [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]
  )
  assert tokens.dtype == np.int32
