"""Configurations as trees of dataclasses: load, override, check, save, compare.

A configuration file defines `get_config(arg='')` and returns a dataclass whose
fields may be dataclasses. Everything that can be wrong with a value (its name,
its type, its contradiction with another) is found here, before any work.
"""

import ast
import dataclasses
import difflib
import importlib.util
import json
import pathlib
import pkgutil
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_CLASS_KEY = 'class'  # in JSON: which dataclass an object is


class UnknownWord(ValueError):
  """A configuration argument holds a word that there is not."""


def load(spec: str, function: str = 'get_config') -> Any:
  """The configuration of `FILE.py` or `FILE.py:ARGUMENT`.

  Args:
    spec: The file, and what its function is given.
    function: Another one of that file, such as `sweep`.

  Raises:
    ValueError: The file is missing or defines no such function, or that does
      not take the argument.
  """
  path, _, arg = spec.partition(':')
  if not pathlib.Path(path).is_file():
    raise ValueError(f'--config={spec}: want a configuration file, '
                     f'got {path!r}, which does not exist')
  module_spec = importlib.util.spec_from_file_location('config_file', path)
  if module_spec is None or module_spec.loader is None:
    raise ValueError(f'--config={spec}: want a Python file, got {path!r}')
  module = importlib.util.module_from_spec(module_spec)
  module_spec.loader.exec_module(module)
  if not hasattr(module, function):
    raise ValueError(f'--config={spec}: {path} defines no {function}()')
  try:
    return getattr(module, function)(arg)
  except UnknownWord as error:
    raise ValueError(f'{error}; the docstring of {path} has all '
                     f'words') from None


def options(
    arg: str, *, flags: Sequence[str], keys: Sequence[str]
) -> list[tuple[str, str]]:
  """Splits a configuration argument such as `demo,folder=a,folder=b`.

  Args:
    arg: Comma-separated flags and key=value pairs; any may be repeated.
    flags: Allowed words without a value.
    keys: Allowed words with a value.

  Returns:
    (word, value) in the order given; the value of a flag is ''.

  Raises:
    UnknownWord: Another word, or no value; those most like it are named.
  """
  pairs: list[tuple[str, str]] = []
  choices = {flag: flag for flag in flags} | {
      key: f'{key}[=...]' if key in flags else f'{key}=...' for key in keys
  }
  for part in filter(None, arg.split(',')):
    word, equals, value = part.partition('=')
    is_pair = equals and value and word in keys
    if not is_pair and part not in flags:
      like = difflib.get_close_matches(word, choices)
      names = ', '.join(choices[name] for name in like or choices)
      raise UnknownWord(f'configuration argument {part!r}: want '
                        f'{"perhaps" if like else "some of"} {names}')
    pairs.append((word, value))
  return pairs


def override(config: Any, assignments: Iterable[str]) -> Any:
  """A checked copy of `config` with fields set from `'a.b=value'` texts.

  A value is a Python literal, or plain text where the field is a string.

  Raises:
    ValueError: Unknown field (the choices are named), or a wrong value.
  """
  tree = checked(config)
  for assignment in assignments:
    path, equals, text = assignment.partition('=')
    if not equals:
      raise ValueError(f'{assignment!r}: want field=value')
    owner, name, hint = _place(tree, path)
    setattr(owner, name, _parse(text, hint, path))
  return checked(tree)


def replaced(config: Any, values: Mapping[str, Any]) -> Any:
  """A checked copy of `config` with fields set to values, in their order.

  Args:
    config: The tree.
    values: Dotted name -> Python value; subtrees may be set as a whole.

  Raises:
    ValueError: As of `override`.
  """
  tree = checked(config)
  for path, value in values.items():
    owner, name, hint = _place(tree, path)
    setattr(owner, name, _typed(value, hint, path))
  return checked(tree)


def value_of(config: Any, path: str) -> Any:
  """The field of a dotted name, or ValueError."""
  owner, name, _ = _place(config, path)
  return getattr(owner, name)


def checked(config: Any, path: str = '') -> Any:
  """A deep copy in which every field was type-checked and `__post_init__` ran.

  Raises:
    ValueError: A field's value is not of its annotated type, or a dataclass
      refused its values; the message starts with the dotted name.
  """
  hints = typing.get_type_hints(type(config))
  values = {}
  for field in dataclasses.fields(config):
    name = f'{path}.{field.name}' if path else field.name
    values[field.name] = _typed(
        getattr(config, field.name), hints[field.name], name
    )
  try:
    return type(config)(**values)
  except ValueError as error:
    raise ValueError(f'{path}.{error}' if path else str(error)) from None


def to_json(config: Any) -> str:
  """The whole tree as JSON; each object names its class."""
  return json.dumps(plain(config), indent=2) + '\n'


def plain(value: Any) -> Any:
  """What JSON holds of a field's value or a tree."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    name = f'{type(value).__module__}:{type(value).__qualname__}'
    return {_CLASS_KEY: name} | {
        field.name: plain(getattr(value, field.name))
        for field in dataclasses.fields(value)
    }
  return list(map(plain, value)) if isinstance(value, tuple) else value


def from_json(text: str) -> Any:
  """The inverse of `to_json`.

  A field that an older version did not write takes its default: a new field's
  default has to be what was done without it.

  Raises:
    ValueError: Unknown fields, or missing ones without a default.
  """
  config = _build(json.loads(text))
  if not dataclasses.is_dataclass(config):
    raise ValueError(f'configuration: want an object, got {config!r}')
  return checked(config)


def fields(config: Any, path: str = '') -> Iterator[tuple[str, Any]]:
  """All leaves of the tree as (dotted name, value)."""
  for field in dataclasses.fields(config):
    name = f'{path}.{field.name}' if path else field.name
    yield from _leaves(getattr(config, field.name), name)


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
  if dataclasses.is_dataclass(value):
    yield name, type(value).__name__
    yield from fields(value, name)
  elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
    for index, part in enumerate(value):
      yield from _leaves(part, f'{name}.{index}')
  else:
    yield name, value


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
  """Dotted names of the leaves that differ, with (old, new) values."""
  left, right = dict(fields(old)), dict(fields(new))
  return {
      name: (left.get(name), right.get(name))
      for name in {**left, **right}
      if left.get(name) != right.get(name)
  }


def _place(tree: Any, path: str) -> tuple[Any, str, Any]:
  """(owner, name, type) of the field of a dotted name."""
  *parents, name = path.split('.')
  owner = tree
  for depth, parent in enumerate(parents):
    owner = _child(owner, parent, '.'.join(parents[:depth]))
  _child(owner, name, '.'.join(parents))
  if isinstance(owner, tuple):
    raise ValueError(f'{path}: want a field of it, or all of '
                     f'{".".join(parents)}, got one part of it')
  return owner, name, typing.get_type_hints(type(owner))[name]


def _child(owner: Any, name: str, path: str) -> Any:
  where = f'{path!r} ({type(owner).__name__})' if path else 'the configuration'
  if isinstance(owner, tuple) and name.isdecimal() and int(name) < len(owner):
    return owner[int(name)]
  if not dataclasses.is_dataclass(owner):
    raise ValueError(f'{path}.{name}: {path!r} is {owner!r}, it has no fields')
  names = [field.name for field in dataclasses.fields(owner)]
  if name not in names:
    raise ValueError(
        f'{path + "." if path else ""}{name}: {where} has no field {name!r}; '
        f'choices: {", ".join(names)}'
    )
  return getattr(owner, name)


def _parse(text: str, hint: Any, path: str) -> Any:
  if hint is str:
    return text
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError):
    value = text
  if _accepts(hint, str) and not _accepts(hint, type(value)):
    value = text
  if _accepts(hint, tuple) and not isinstance(value, (tuple, list)):
    value = value if _accepts(hint, type(value)) else (value,)
  return _typed(value, hint, path)


def _accepts(hint: Any, kind: type) -> bool:
  return kind in (hint, typing.get_origin(hint)) or any(
      _accepts(part, kind) for part in typing.get_args(hint)
      if typing.get_origin(hint) in (typing.Union, types.UnionType)
  )


def _typed(value: Any, hint: Any, path: str) -> Any:
  """`value` as the type that `hint` asks for (1 may be 1.0), or ValueError."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    if dataclasses.is_dataclass(value) and type(value) in args:
      return checked(value, path)  # what it refuses, it says itself
    # The exact type first: 1 is an int before it may be a float.
    for arg in sorted(args, key=lambda arg: type(value) is not arg):
      try:
        return _typed(value, arg, path)
      except ValueError:
        continue
  elif origin is typing.Literal:
    if value in args:
      return value
  elif origin is tuple and isinstance(value, (tuple, list)):
    kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
    if len(kinds) == len(value):
      return tuple(_typed(v, kind, path) for v, kind in zip(value, kinds))
  elif hint is float and type(value) is int:
    return float(value)
  elif hint is int and isinstance(value, bool):
    pass
  elif getattr(hint, '_is_protocol', False):
    if dataclasses.is_dataclass(value):
      return checked(value, path)
  elif isinstance(hint, type) and isinstance(value, hint):
    return checked(value, path) if dataclasses.is_dataclass(value) else value
  raise ValueError(f'{path}: want {_describe(hint)}, got {value!r}')


def _describe(hint: Any) -> str:
  if typing.get_origin(hint) is typing.Literal:
    return 'one of ' + ', '.join(map(repr, typing.get_args(hint)))
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return ' or '.join(map(_describe, typing.get_args(hint)))
  if hint is types.NoneType:
    return 'None'
  is_plain = isinstance(hint, type) and not typing.get_args(hint)
  return hint.__name__ if is_plain else str(hint)


def _build(value: Any) -> Any:
  if isinstance(value, list):
    return tuple(_build(v) for v in value)
  if not isinstance(value, dict):
    return value
  values = {k: _build(v) for k, v in value.items() if k != _CLASS_KEY}
  name = value.get(_CLASS_KEY, 'an object without a class')
  try:
    cls = pkgutil.resolve_name(name)
  except (ImportError, AttributeError, ValueError):
    cls = None
  if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
    raise ValueError(f'{name}: want a configuration dataclass')
  known = {field.name for field in dataclasses.fields(cls)}
  missing = {
      field.name for field in dataclasses.fields(cls)
      if field.default is field.default_factory is dataclasses.MISSING
  } - values.keys()
  if missing or values.keys() - known:
    raise ValueError(f'{name}: fields {sorted(missing)} are missing, '
                     f'{sorted(values.keys() - known)} are unknown')
  return cls(**values)
