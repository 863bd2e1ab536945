"""What a compiled step sends from device to device, read from its HLO text.

Only the compiled program holds what the partitioner put in. Loops count by
their trip count, which XLA writes beside them; of a condition's branches the
one that sends most counts.
"""

import collections
from collections.abc import Iterator
import dataclasses
import re

from tools.benchmarks import flops

# Kind -> bytes that each of n devices sends in a ring, by those of its operand.
_SENT = {
    'all-reduce': lambda n: 2 * (n - 1) / n,
    'all-gather': lambda n: n - 1,
    'reduce-scatter': lambda n: (n - 1) / n,
    'all-to-all': lambda n: (n - 1) / n,
    'ragged-all-to-all': lambda n: (n - 1) / n,
    'collective-permute': lambda n: 1,
    'collective-broadcast': lambda n: 1,
}
KINDS = tuple(_SENT)

_HEAD = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
# Name, type (a tuple's has no word before a bracket), operation and the rest.
_LINE = re.compile(
    r'\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$'
)
_ARRAY = re.compile(r'([a-z]+)(\d*)\w*\[([\d,]*)\]')
_CALLED = re.compile(
    r'(?:body|condition|calls|to_apply|true_computation|false_computation)'
    r'=%?([\w.\-]+)'
)
_BRANCHES = re.compile(r'(?:true_computation|false_computation)=%?([\w.\-]+)')
_BRANCH_LIST = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_GROUP = re.compile(r'replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\])')


# (kind, 'calls'), (kind, 'bytes') of the whole arrays, as if on one device, and
# (kind, 'sent_bytes') that each device sends where they pass around a ring.
Found = collections.Counter[tuple[str, str]]


@dataclasses.dataclass(kw_only=True)
class _Instruction:
  kind: str
  operands: list[str]
  bytes: int  # of its result
  text: str


_Program = dict[str, dict[str, _Instruction]]  # by computation, then by name


def count(hlo: str, devices: int) -> Found:
  """Collectives of one step.

  Args:
    hlo: `jax.stages.Compiled.as_text()`.
    devices: How many the program is for.

  Raises:
    UncountableError: They are in a loop of unknown length.
  """
  program: _Program = {}
  entry = computation = ''
  for line in hlo.splitlines():
    if head := _HEAD.match(line):
      computation = head[2]
      program[computation] = {}
      entry = computation if head[1] else entry
    elif computation and (found := _LINE.match(line)):
      name, result, kind, rest = found.groups()
      program[computation][name] = _instruction(result, kind, rest)
  return _in_computation(program, entry, devices)


def sent_bytes(found: Found) -> int:
  """Of each device, by all kinds."""
  return sum(n for (_, what), n in found.items() if what == 'sent_bytes')


def _instruction(result: str, kind: str, rest: str) -> _Instruction:
  operands = re.findall(r'%([\w.\-]+)', rest.partition(')')[0])
  return _Instruction(
      kind=kind, operands=operands, bytes=_bytes(result), text=rest
  )


def _bytes(shape: str) -> int:
  """Of an array or a tuple of such, as HLO writes their types."""
  bits = 0
  for kind, width, sizes in _ARRAY.findall(shape):
    size = 1
    for edge in filter(None, sizes.split(',')):
      size *= int(edge)
    bits += size * (8 if kind == 'pred' else int(width or 0))
  return bits // 8


def _in_computation(program: _Program, name: str, devices: int) -> Found:
  total: Found = collections.Counter()
  for instruction in program[name].values():
    kind, text = instruction.kind.removesuffix('-start'), instruction.text
    if kind in _SENT:
      total += _one(program[name], instruction, kind, devices)
    elif instruction.kind == 'conditional':
      branches = [_in_computation(program, branch, devices)
                  for branch in _branches(text)]
      costliest: Found = max(branches, key=sent_bytes)
      total += costliest
    else:
      found: Found = collections.Counter()
      for called in _CALLED.findall(text):
        found += _in_computation(program, called, devices)
      trips = _trips(text) if found and instruction.kind == 'while' else 1
      total += collections.Counter({key: n * trips for key, n in found.items()})
  return total


def _one(
    computation: dict[str, _Instruction], instruction: _Instruction, kind: str,
    devices: int,
) -> Found:  # fmt: skip
  if group := _GROUP.search(instruction.text):
    devices = int(group[2]) if group[2] else len(group[1].split(','))
  if devices == 1:
    return collections.Counter()
  operands = sum(computation[name].bytes for name in instruction.operands)
  return collections.Counter({
      (kind, 'calls'): 1,
      (kind, 'bytes'): operands * (devices if kind == 'all-gather' else 1),
      (kind, 'sent_bytes'): round(operands * _SENT[kind](devices)),
  })


def _branches(text: str) -> Iterator[str]:
  yield from _BRANCHES.findall(text)
  for names in _BRANCH_LIST.findall(text):
    yield from re.findall(r'[\w.\-]+', names)


def _trips(text: str) -> int:
  trips = _TRIPS.search(text)
  if trips is None:
    raise flops.UncountableError('program: want loops of known length, got '
                                 'collectives in a while')
  return int(trips[1])
