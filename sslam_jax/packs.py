"""Packs: recordings in a few large files, for fast reading in any order.

A shard is an ArrayRecord file; each of its records is one line of JSON,
`{"id": ..., "labels": [...]}`, and then the bytes of a FLAC file. `pack.json`
lists the classes and the shards. Beside each shard a JSON file of its name
has the labels of its clips again, as indices of classes, and what was left
out. tools/pack_audio.py writes packs.
"""

import bisect
from collections.abc import Callable, Iterable
import dataclasses
import functools
import hashlib
import itertools
import json
import operator
import os
import pathlib
import shlex
from typing import Any

from array_record.python import array_record_module

from sslam_jax import clips as clips_lib
from sslam_jax import decoding
from sslam_jax import reading

INDEX = 'pack.json'
PLAN = 'unfinished.json'  # Instead of INDEX, as long as shards are missing.
SUFFIX = '.array_record'

_VERSION = 1
_OPEN_SHARDS = 64  # Per process; opening one takes 0.1 ms.
_READER = 'readahead_buffer_size:0,max_parallelism:0'
_READER_BUFFER = 32_768  # Bytes.
_BLOCK_SAMPLES = 2**20  # Read at once where all is read.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
  """One file of a pack.

  Attributes:
    file: Its name.
    bytes: Its size.
    sha256: Its SHA-256, in hexadecimal digits.
    clips: How many records it holds.
    length_s: Length of all of them.
    clipped: How many of them had samples beyond [-1, 1].
    unreadable: Recordings that could not be read, or not to their end.
    short: Recordings and last pieces left out as they are too short.
  """

  file: str
  bytes: int
  sha256: str
  clips: int
  length_s: float
  clipped: int
  unreadable: int
  short: int

  @property
  def labels_file(self) -> str:
    """Name of the file beside it."""
    return self.file.removesuffix(SUFFIX) + '.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
  """What `pack.json` holds.

  Attributes:
    command: What writes the pack, or what is missing of it; but for `--out`,
      since a pack may be moved.
    plan: All that decides what the shards hold.
    classes: Those of the source, in its order.
    shards: The files, in the order of the source.
  """

  command: str
  plan: dict[str, Any]
  classes: tuple[str, ...]
  shards: tuple[Shard, ...] = ()

  def command_in(self, path: str) -> str:
    """`command` for the folder `path`."""
    return f'{self.command} --out={shlex.quote(path)}'

  def to_json(self) -> str:
    """The text of the file."""
    tree = {'version': _VERSION, **dataclasses.asdict(self)}
    return json.dumps(tree, indent=1) + '\n'


@dataclasses.dataclass(kw_only=True)
class Pack:
  """The clips of a pack. Raises ValueError on first use if it is not whole.

  The size of every shard is checked then, a record when it is read. Any number
  of threads may read, and pickled copies too.

  Attributes:
    path: Folder that tools/pack_audio.py wrote.
  """

  path: str

  def __post_init__(self) -> None:
    if not self.path:
      raise ValueError(f'path: want the folder of a pack, got {self.path!r}')

  @property
  def classes(self) -> tuple[str, ...]:
    """All labels, in the order of the source that was packed."""
    return self._index.classes

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> clips_lib.Clip:
    shard, row = self._find(index)
    path = os.path.join(self.path, shard.file)
    reading.note(f'{path}#{row}')
    reader = _cached_reader(path, shard.clips, self._mtimes[shard.file])
    if reader is None:
      again = self._index.command_in(self.path)
      raise ValueError(f'{path}: want {shard.clips} clips, got damage: remove '
                       f'it and write it again with: {again}')
    return _clip(_record(reader, path, row), f'{path}#{row}')

  def labels(self, index: int) -> tuple[str, ...]:
    """See `clips.Source`."""
    self._find(index)
    return self._labels[index]

  @functools.cached_property
  def _index(self) -> Index:
    index = read_index(self.path)
    for problem in differences(self.path, index):
      raise ValueError(problem)
    return index

  @functools.cached_property
  def _ends(self) -> list[int]:
    return list(itertools.accumulate(s.clips for s in self._index.shards))

  @functools.cached_property
  def _mtimes(self) -> dict[str, int]:
    files = [shard.file for shard in self._index.shards]
    return {f: os.stat(os.path.join(self.path, f)).st_mtime_ns for f in files}

  @functools.cached_property
  def _labels(self) -> list[tuple[str, ...]]:
    # Equal ones once: there may be millions.
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}
    rows = []
    for shard in self._index.shards:
      for row in shard_labels(self.path, shard, self.classes):
        rows.append(shared.setdefault(row, row))
    return rows

  def _find(self, index: int) -> tuple[Shard, int]:
    """The shard with clip `index`, and its row there."""
    if not 0 <= operator.index(index) < len(self):
      raise IndexError(f'index: want 0 to {len(self) - 1}, got {index}')
    number = bisect.bisect_right(self._ends, index)
    shard = self._index.shards[number]
    return shard, int(index) - self._ends[number] + shard.clips


def read_index(path: str) -> Index:
  """What the folder of a finished pack says of itself; else ValueError."""
  file = os.path.join(path, INDEX)
  if os.path.exists(file):
    return parse_index(file)
  plan = os.path.join(path, PLAN)
  if os.path.exists(plan):
    names, again = os.listdir(path), parse_index(plan).command_in(path)
    done = sum(name.endswith(SUFFIX) for name in names)
    raise ValueError(f'{path}: want a finished pack, got one of which only '
                     f'{done} shards are written: finish it with: {again}')
  got = 'no such file' if os.path.isdir(path) else 'no such folder'
  raise ValueError(f'{file}: want the index of a pack, got {got}')


def parse_index(file: str) -> Index:
  """Reads `pack.json`, or the file that stands for it before."""
  try:
    tree = json.loads(pathlib.Path(file).read_text(encoding='utf-8'))
    version = tree.pop('version')
    if version != _VERSION:
      raise ValueError(f'{file}: want version {_VERSION}, got {version}')
    tree['classes'] = tuple(tree['classes'])
    tree['shards'] = tuple(Shard(**row) for row in tree['shards'])
    return Index(**tree)
  except KeyError as error:
    raise ValueError(f'{file}: want {error}, got none') from None
  except (
    AttributeError, TypeError, UnicodeError, json.JSONDecodeError
  ) as error:  # fmt: skip
    raise ValueError(f'{file}: want the index of a pack, got {error}') from None


def differences(path: str, index: Index) -> list[str]:
  """Shards that are missing, of another size, or too many: one line each."""
  known = {shard.file for shard in index.shards}
  others = [name for name in os.listdir(path) if name.endswith(SUFFIX)]
  lines = [
    f'{os.path.join(path, name)}: want no shards but those in {INDEX}, got '
    f'this one: remove it'
    for name in sorted(others)
    if name not in known
  ]
  for shard in index.shards:
    file = os.path.join(path, shard.file)
    size = os.path.getsize(file) if os.path.exists(file) else 'no such file'
    if size != shard.bytes:
      lines.append(f'{file}: want {shard.bytes} bytes, got {size}: write it '
                   f'again with: {index.command_in(path)}')
  return lines


def record(clip_id: str, labels: Iterable[str], flac: bytes) -> bytes:
  """What a shard holds of a clip."""
  # ASCII: names of files need not be UTF-8.
  header = json.dumps({'id': clip_id, 'labels': list(labels)})
  return f'{header}\n'.encode('ascii') + flac


def check_shard(
  path: str, shard: Shard, classes: tuple[str, ...],
  progress: Callable[[int], None],
) -> list[str]:  # fmt: skip
  """Reads all of a shard; returns what is wrong with it, one line each.

  Args:
    path: Folder of the pack.
    shard: The shard; its file exists.
    classes: Those of the pack.
    progress: Called with 1 after each clip, and with 0 within a long one.
  """
  file = os.path.join(path, shard.file)
  lines = []
  if (got := sha256(file)) != shard.sha256:
    lines.append(f'{file}: want SHA-256 {shard.sha256}, got {got}')
  reader = _reader(file)
  if (count := reader.num_records()) != shard.clips:
    return [*lines, f'{file}: want {shard.clips} clips, got {count}']
  length_s, labels = 0.0, []
  for row in range(count):
    try:
      clip = _clip(_record(reader, file, row), f'{file}#{row}')
      _read_all(clip, progress)
      labels.append(clip.labels)
      length_s += clip.samples / clip.rate_hz
    except clips_lib.BadClip as error:
      lines.append(str(error))
    progress(1)
  try:
    if not lines and labels != shard_labels(path, shard, classes):
      lines.append(f'{file}: want labels as in {shard.labels_file}, got others')
  except ValueError as error:
    lines.append(str(error))
  if not lines and round(length_s, 6) != shard.length_s:
    lines.append(f'{file}: want {shard.length_s} s, got {length_s:.6f}')
  return lines


def shard_labels(
  path: str, shard: Shard, classes: tuple[str, ...]
) -> list[tuple[str, ...]]:
  """The labels of a shard's clips, from the file beside it."""
  file = os.path.join(path, shard.labels_file)
  try:
    tree = json.loads(pathlib.Path(file).read_text(encoding='utf-8'))
    rows = [tuple(classes[number] for number in row) for row in tree['labels']]
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise ValueError(f'{file}: want labels, got {error}') from None
  if len(rows) != shard.clips:
    raise ValueError(f'{file}: want labels of {shard.clips} clips, got '
                     f'{len(rows)}')
  return rows


def sha256(path: str) -> str:
  """Of a file, in hexadecimal digits."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


@functools.lru_cache(maxsize=_OPEN_SHARDS)
def _cached_reader(path: str, clips: int, mtime: int) -> Any:
  """An open shard; None where it does not hold `clips` records.

  A file that leaves this cache is closed when the last thread has read it.
  Another `mtime` is another file.
  """
  del mtime
  reader = _reader(path)
  return reader if reader.num_records() == clips else None


def _reader(path: str) -> Any:
  return array_record_module.ArrayRecordReader(
    path, _READER, file_reader_buffer_size=_READER_BUFFER
  )


def _record(reader: Any, path: str, row: int) -> bytes:
  try:
    return reader.read([row])[0]
  except RuntimeError as error:  # All that array_record raises.
    raise clips_lib.BadClip(f'{path}#{row}', str(error)) from None


def _clip(record: bytes, name: str) -> clips_lib.Clip:
  header, _, flac = record.partition(b'\n')
  try:
    fields = json.loads(header)
    clip_id, labels = fields['id'], tuple(fields['labels'])
  except (ValueError, TypeError, KeyError):
    got = f'a record that starts with {header[:40]!r}'
    raise clips_lib.BadClip(name, got) from None
  return decoding.open_bytes(flac, clip_id, labels)


def _read_all(clip: clips_lib.Clip, progress: Callable[[int], None]) -> None:
  for start in range(0, clip.samples, _BLOCK_SAMPLES):
    progress(0)
    clip.read(start, min(_BLOCK_SAMPLES, clip.samples - start))
