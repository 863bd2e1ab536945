"""Points of sweeps: how they are combined, and what they are called."""

import pytest

from sslam_jax import sweeping
from sslam_jax.sweeping import grid, join, seeds, together


def test_grid_has_all_values_with_all_others():
  assert grid({'a.x': [1, 2], 'b': (None, 'c')}) == [
      {'a.x': 1, 'b': None}, {'a.x': 1, 'b': 'c'},
      {'a.x': 2, 'b': None}, {'a.x': 2, 'b': 'c'},
  ]


def test_together_takes_values_side_by_side():
  assert together({'a': [1, 2], 'b': iter([3, 4])}) == [
      {'a': 1, 'b': 3}, {'a': 2, 'b': 4}]
  with pytest.raises(ValueError, match=r'as many values .* got \[1, 2\]'):
    together({'a': [1, 2], 'b': [3]})


def test_join_puts_points_with_all_points_of_others():
  assert list(join(grid({'a': [1, 2]}), seeds(3, 4))) == [
      {'a': 1, 'seed': 3}, {'a': 1, 'seed': 4},
      {'a': 2, 'seed': 3}, {'a': 2, 'seed': 4},
  ]
  with pytest.raises(ValueError, match='each field in one part'):
    list(join(grid({'a': [1]}), grid({'a': [2]})))


def test_join_names_what_has_no_name():
  arms = [{'name': 'both'}, {'name': 'clean', 'objective.mixed': False}]
  joined = join(arms, grid({'optim.peak_lr': [1e-4, 1]}), seeds(5))
  assert [point['name'] for point in joined] == [
      'both,peak_lr=0.0001', 'both,peak_lr=1',
      'clean,peak_lr=0.0001', 'clean,peak_lr=1',
  ]


@pytest.mark.parametrize(('point', 'label', 'name'), [
    ({'optim.peak_lr': 1e-4, 'seed': 2}, 'peak_lr=0.0001',
     'peak_lr=0.0001,seed=2'),
    ({'seed': 2}, 'base', 'seed=2'),
    ({}, 'base', 'base'),
    ({'name': 'mb_ua', 'optim.peak_lr': 1, 'seed': 2}, 'mb_ua', 'mb_ua,seed=2'),
    ({'name': 'base', 'seed': 2}, 'base', 'base,seed=2'),
    ({'a.mix.share': None, 'b.share': True}, 'mix.share=None,b.share=True',
     'mix.share=None,b.share=True'),
    ({'init_from': '../runs/a b,c=d'}, 'init_from=.._runs_a_b_c_d',
     'init_from=.._runs_a_b_c_d'),
    ({'data.source.seed': 3}, 'source.seed=3', 'source.seed=3'),
    ({'pair': (1, 2.5)}, 'pair=1-2.5', 'pair=1-2.5'),
])
def test_names_are_the_last_parts_of_fields_that_tell_them_apart(
    point, label, name
):
  short = sweeping.short_names(sweeping.settings(point))
  assert sweeping.label(point, short) == label
  assert sweeping.name(point, short) == name
