"""Configuration trees: overrides, checks, JSON and differences."""

import dataclasses
import json
from typing import Literal, Protocol

import pytest

from sslam_jax import config as config_lib


class Source(Protocol):
  def __len__(self) -> int: ...


@dataclasses.dataclass(kw_only=True)
class Tones:
  count: int = 3

  def __len__(self):
    return self.count


@dataclasses.dataclass(kw_only=True)
class Leaf:
  rate: float = 1.5
  count: int = 2
  kind: Literal['sine', 'noise'] = 'sine'
  cap: int | None = 7
  name: str | None = 'leaf'
  tags: tuple[str, ...] = ()
  pair: tuple[int, float] = (1, 2.0)
  loud: bool = False

  def __post_init__(self):
    if self.count < 0:
      raise ValueError(f'count: want at least 0, got {self.count}')


@dataclasses.dataclass(kw_only=True)
class Root:
  leaf: Leaf = dataclasses.field(default_factory=Leaf)
  source: Source = dataclasses.field(default_factory=Tones)
  title: str = 'plain'
  steps: int = 10

  def __post_init__(self):
    if self.leaf.count > self.steps:
      raise ValueError(f'leaf.count: want at most steps, got {self.leaf.count}')


@dataclasses.dataclass(kw_only=True)
class Top:
  root: Root = dataclasses.field(default_factory=Root)


@dataclasses.dataclass(kw_only=True)
class Needy:
  needed: int
  other: int


NOT_A_CONFIG = 0


def test_options_splits_flags_and_repeated_keys_in_order():
  pairs = config_lib.options(
      'demo,folder=b,small,folder=a=c', flags=('small', 'demo'),
      keys=('folder', 'size'),
  )
  assert pairs == [('demo', ''), ('folder', 'b'), ('small', ''),
                   ('folder', 'a=c')]


def test_options_of_nothing_are_empty():
  assert config_lib.options('', flags=('demo',), keys=()) == []


@pytest.mark.parametrize(
    ('arg', 'message'), [
        ('damo', 'perhaps demo$'),
        ('folder', r'perhaps folder=\.\.\.$'),
        ('folder=', r'perhaps folder=\.\.\.$'),
        ('demo=1', 'perhaps demo$'),
        ('demo,size=1', r'some of demo, folder=\.\.\.$'),
    ]
)
def test_options_names_the_choices_of_a_wrong_word(arg, message):
  with pytest.raises(ValueError, match=f'want {message}'):
    config_lib.options(arg, flags=('demo',), keys=('folder',))


@pytest.mark.parametrize(('assignment', 'expected'), [
    ('leaf.rate=1', 1.0),
    ('leaf.rate=-2.5e-3', -2.5e-3),
    ('leaf.count=5', 5),
    ('leaf.kind=noise', 'noise'),
    ('leaf.cap=None', None),
    ('leaf.cap=4', 4),
    ('leaf.name=None', None),
    ('leaf.name=12', '12'),
    ('leaf.tags=one', ('one',)),
    ("leaf.tags=('one', 'two')", ('one', 'two')),
    ('leaf.pair=(3, 4)', (3, 4.0)),
    ('leaf.loud=True', True),
    ('source.count=9', 9),
    ('title=a=b', 'a=b'),
    ('title=12', '12'),
    ('title=', ''),
])
def test_override_parses_the_field_s_type(assignment, expected):
  tree = config_lib.override(Root(), [assignment])
  path = assignment.split('=')[0]
  value = dict(config_lib.fields(tree))[path]
  assert value == expected
  assert type(value) is type(expected)
  assert [*config_lib.differences(Root(), tree)] == [path]


def test_override_makes_floats_inside_tuples():
  pair = config_lib.override(Root(), ['leaf.pair=(3, 4)']).leaf.pair
  assert [type(value) for value in pair] == [int, float]


def test_override_does_not_touch_the_original():
  original = Root()
  changed = config_lib.override(original, ['leaf.count=5', 'title=new'])
  assert original == Root()
  assert (changed.leaf.count, changed.title) == (5, 'new')


def test_override_checks_only_the_last_of_several_assignments():
  changed = config_lib.override(Root(), ['leaf.count=20', 'steps=20'])
  assert (changed.leaf.count, changed.steps) == (20, 20)


@pytest.mark.parametrize(('assignment', 'message'), [
    ('stepz=1', r"stepz: .* no field 'stepz'; "
                r'choices: leaf, source, title, steps'),
    ('leaf.rat=1', r"leaf\.rat: .*Leaf.* no field 'rat'; choices: rate, "),
    ('leef.rate=1', r"leef: .* no field 'leef'; choices: leaf, "),
    ('steps.more=1', r"steps\.more: 'steps' is 10, it has no fields"),
    ('steps', r"'steps': want field=value"),
    ('steps=1.5', r'steps: want int, got 1\.5'),
    ('steps=True', r'steps: want int, got True'),
    ('steps=None', r'steps: want int, got None'),
    ('leaf.rate=fast', r"leaf\.rate: want float, got 'fast'"),
    ('leaf.rate=True', r'leaf\.rate: want float, got True'),
    ('leaf.kind=saw', r"leaf\.kind: want one of 'sine', 'noise', got 'saw'"),
    ('leaf.cap=many', r"leaf\.cap: want int or None, got 'many'"),
    ('leaf.cap=False', r'leaf\.cap: want int or None, got False'),
    ('leaf.loud=1', r'leaf\.loud: want bool, got 1'),
    ('leaf.pair=(1,)', r'leaf\.pair: want tuple\[int, float\], got \(1,\)'),
    ('leaf.pair=(1.5, 2)', r'leaf\.pair: want int, got 1\.5'),
    ('leaf=1', r'leaf: want Leaf, got 1'),
    ('source=1', r'source: want Source, got 1'),
    ('leaf.count=-1', r'leaf\.count: want at least 0, got -1'),
    ('leaf.count=11', r'leaf\.count: want at most steps, got 11'),
])
def test_override_names_field_and_wanted_type(assignment, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    config_lib.override(Root(), [assignment])


def test_replaced_sets_values_in_their_order():
  changed = config_lib.replaced(
      Root(), {'leaf': Leaf(count=3), 'leaf.rate': 2, 'steps': 20})
  assert (changed.leaf.count, changed.leaf.rate, changed.steps) == (3, 2.0, 20)
  assert type(changed.leaf.rate) is float
  assert config_lib.value_of(changed, 'leaf.rate') == 2
  assert Root().leaf.count != 3


@pytest.mark.parametrize(('values', 'message'), [
    ({'leaf.rat': 1}, r'leaf\.rat: .*Leaf.* no field .rat.; choices: rate, '),
    ({'leaf.rate': '1'}, r"leaf\.rate: want float, got '1'"),
    ({'leaf.count': 11}, r'leaf\.count: want at most steps, got 11'),
    ({'leaf.pair.0': 1}, r'leaf\.pair\.0: want a field of it, or all of '
                         r'leaf\.pair'),
])
def test_replaced_names_field_and_wanted_type(values, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    config_lib.replaced(Root(), values)


@pytest.mark.parametrize(('count', 'message'), [
    (-1, 'root.leaf.count: want at least 0, got -1'),
    (11, 'root.leaf.count: want at most steps, got 11'),
])
def test_refused_values_carry_the_dotted_path(count, message):
  top = Top()
  top.root.leaf.count = count
  with pytest.raises(ValueError) as error:
    config_lib.checked(top)
  assert str(error.value) == message


def test_checked_finds_a_wrong_type_set_by_hand():
  root = Root()
  root.leaf.count = '3'
  with pytest.raises(ValueError, match="^leaf.count: want int, got '3'"):
    config_lib.checked(root)


def test_checked_is_a_deep_copy():
  root = Root()
  copy = config_lib.checked(root)
  assert copy == root
  copy.leaf.rate = 3.0
  copy.source.count = 1
  assert root == Root()


def test_json_round_trip_is_the_identity():
  root = Root(
      leaf=Leaf(cap=None, name='x', tags=('a', 'b'), pair=(3, 0.1), loud=True),
      source=Tones(count=4),
  )
  again = config_lib.from_json(config_lib.to_json(root))
  assert again == root
  assert type(again.source) is Tones
  assert type(again.leaf.tags) is tuple


def test_json_names_each_class():
  tree = json.loads(config_lib.to_json(Root()))
  assert tree['class'].endswith('test_config:Root')
  assert tree['leaf']['class'].endswith('test_config:Leaf')


@pytest.mark.parametrize('name', ['NOT_A_CONFIG', 'test_json_names_each_class',
                                  'Source', 'pytest'])
def test_from_json_refuses_what_is_no_dataclass(name):
  text = json.dumps({'class': f'{__name__}:{name}'})
  with pytest.raises(ValueError, match='want a configuration dataclass'):
    config_lib.from_json(text)


def test_from_json_refuses_an_unknown_field():
  tree = json.loads(config_lib.to_json(Root()))
  tree['leaf']['old'] = 1
  with pytest.raises(ValueError, match='Leaf.*old'):
    config_lib.from_json(json.dumps(tree))


def test_from_json_gives_what_an_older_version_lacked_its_default():
  root = Root(leaf=Leaf(rate=0.25))
  tree = json.loads(config_lib.to_json(root))
  del tree['leaf']['rate']
  assert config_lib.from_json(json.dumps(tree)) == Root()


def test_from_json_refuses_a_missing_field_without_default():
  tree = {'class': f'{__name__}:Needy', 'other': 1}
  with pytest.raises(ValueError, match=r"Needy: fields \['needed'\] are miss"):
    config_lib.from_json(json.dumps(tree))


def test_from_json_checks_values():
  tree = json.loads(config_lib.to_json(Root()))
  tree['leaf']['count'] = -1
  with pytest.raises(ValueError, match='count: want at least 0'):
    config_lib.from_json(json.dumps(tree))


def test_fields_lists_every_leaf_by_its_dotted_name():
  leaves = dict(config_lib.fields(Top()))
  assert leaves['root.leaf.rate'] == 1.5
  assert leaves['root.source'] == 'Tones'
  assert len(leaves) == 1 + 4 + 8 + 1


def test_differences_gives_old_and_new():
  @dataclasses.dataclass(kw_only=True)
  class Chords(Tones):
    voices: int = 4

  new = Root(leaf=Leaf(rate=2.0), source=Chords())
  assert config_lib.differences(Root(), new) == {
      'leaf.rate': (1.5, 2.0),
      'source': ('Tones', 'Chords'),
      'source.voices': (None, 4),
  }


def test_equal_trees_do_not_differ():
  assert config_lib.differences(Top(), Top()) == {}


def test_load_hands_the_argument_to_get_config(tmp_path):
  path = tmp_path / 'settings.py'
  path.write_text("def get_config(arg=''):\n  return arg.upper()\n")
  assert config_lib.load(f'{path}:demo,a=b:c') == 'DEMO,A=B:C'
  assert config_lib.load(str(path)) == ''


def test_load_names_what_is_wrong_with_a_file(tmp_path):
  empty = tmp_path / 'empty.py'
  empty.write_text('')
  with pytest.raises(ValueError, match='defines no get_config'):
    config_lib.load(f'{empty}:demo')
  with pytest.raises(ValueError, match=r'defines no sweep\(\)'):
    config_lib.load(f'{empty}:demo', 'sweep')
  with pytest.raises(ValueError, match='missing.py.*does not exist'):
    config_lib.load(str(tmp_path / 'missing.py'))
