"""The folder of a pack while it is written, by one process at a time.

A shard is written in a temporary folder and moved out of it when complete;
after that its report is written, and only then does the shard count.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import tempfile

from sslam_jax import clips as clips_lib
from sslam_jax import packs
from tools.packing import shards as shards_lib

SKIPPED = 'skipped.tsv'

_LOCK = '.lock'
_TEMPORARY = '.writing-'
_SHARD_RECORDINGS = 1000
_FEW_SHARDS = 8  # At least, to use several cores for a small source ...
_FEW_RECORDINGS = 50  # ... but not with fewer recordings than this in each.
_SAMPLED = 1000  # Recordings that the fingerprint of a source looks at.

_Path = pathlib.Path
_Reports = Mapping[int, shards_lib.Report]


def default_shards(recordings: int) -> int:
  """How many shards a source of some length is packed into."""
  few = min(_FEW_SHARDS, -(-recordings // _FEW_RECORDINGS))
  return max(-(-recordings // _SHARD_RECORDINGS), few)


@contextlib.contextmanager
def opened(path: str) -> Iterator[_Path]:
  """Makes the folder; ValueError where another process is in here."""
  folder = _Path(path)
  if folder.exists() and not folder.is_dir():
    raise ValueError(f'--out: want a folder, got the file {path}')
  names = os.listdir(folder) if folder.exists() else []
  if names and not {_LOCK, packs.INDEX, packs.PLAN} & set(names):
    raise ValueError(f'--out: want an empty folder, or a pack to go on with; '
                     f'got {path} with {min(names)!r}')
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / _LOCK, 'w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(f'{path}: want one process that packs into it, got a '
                       f'second one') from None
    _clean(folder)
    yield folder


def started(
  folder: _Path, source: clips_lib.Source, settings: shards_lib.Settings
) -> packs.Index:
  """The pack begun in a folder, or a new one; ValueError where they differ."""
  plan = {
    **dataclasses.asdict(settings),
    'recordings': len(source),
    'fingerprint': _fingerprint(source),
  }
  new = packs.Index(
    command=settings.command(),
    plan=plan,
    classes=tuple(source.classes),
  )
  files = [folder / name for name in (packs.INDEX, packs.PLAN)]
  for file in filter(_Path.exists, files):
    old = packs.parse_index(str(file))
    _check_same(folder, {**old.plan, 'classes': old.classes},
                {**plan, 'classes': new.classes})
    return dataclasses.replace(old, shards=())
  return new


def reports(
  folder: _Path, index: packs.Index
) -> dict[int, shards_lib.Report]:
  """The reports of all shards that are complete, by their numbers."""
  found = {}
  for number in range(index.plan['shards']):
    file = folder / shards_lib.file(number, index.plan['shards'])
    side = file.with_suffix('.json')
    if not (side.exists() and file.exists()):
      continue
    try:
      report = shards_lib.Report.from_json(side.read_text(encoding='utf-8'))
    except (ValueError, TypeError, LookupError):
      continue  # Damaged: the shard is written again.
    if report.shard.bytes == file.stat().st_size:
      found[number] = report
  return found


def is_finished(folder: _Path, index: packs.Index, reports: _Reports) -> bool:
  """Whether the index is there, and is that of these shards."""
  file = folder / packs.INDEX
  return file.exists() and _text(index, reports) == file.read_text()


@contextlib.contextmanager
def unfinished(folder: _Path, index: packs.Index) -> Iterator[_Path]:
  """Marks a pack as begun; yields a temporary folder for its shards."""
  if not (folder / packs.INDEX).exists():
    _replace(folder, folder / packs.PLAN, index.to_json())
  with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder) as name:
    yield _Path(name)


def keep(
  folder: _Path, temporary: _Path, report: shards_lib.Report
) -> None:
  """Moves a complete shard into the folder, and then writes its report."""
  file = report.shard.file
  with open(temporary / file, 'rb') as shard:
    os.fsync(shard.fileno())
  side = folder / report.shard.labels_file
  side.unlink(missing_ok=True)  # Of a shard that is written again.
  os.replace(temporary / file, folder / file)
  _replace(temporary, side, report.to_json())


def finish(
  folder: _Path, index: packs.Index, reports: _Reports
) -> packs.Index:
  """Writes the index, which makes a folder a pack."""
  write_skipped(folder, reports)
  _replace(folder, folder / packs.INDEX, _text(index, reports))
  (folder / packs.PLAN).unlink(missing_ok=True)
  return packs.parse_index(str(folder / packs.INDEX))


def write_skipped(folder: _Path, reports: _Reports) -> None:
  """Lists what was left out: lines of id, tab and reason."""
  rows = [
    row
    for number in sorted(reports)
    for row in (*reports[number].unreadable, *reports[number].short)
  ]
  lines = ['\t'.join(map(_one_line, row)) + '\n' for row in rows]
  _replace(folder, folder / SKIPPED, ''.join(lines))


def _clean(folder: _Path) -> None:
  """Removes what a process left that was killed."""
  for old in folder.glob(f'{_TEMPORARY}*'):
    shutil.rmtree(old)
  if (folder / packs.INDEX).exists():
    (folder / packs.PLAN).unlink(missing_ok=True)


def _one_line(text: str) -> str:
  return ' '.join(text.split())


def _text(index: packs.Index, reports: _Reports) -> str:
  shards = tuple(reports[number].shard for number in sorted(reports))
  return dataclasses.replace(index, shards=shards).to_json()


def _fingerprint(source: clips_lib.Source) -> str:
  """A hash of recordings at even distances."""
  count = min(len(source), _SAMPLED)
  digest = hashlib.sha256()
  for number in range(count):
    row: tuple[object, ...]
    try:
      clip = source[number * len(source) // count]
      row = clip.id, clip.labels, int(clip.rate_hz), int(clip.samples)
    except clips_lib.BadClip as error:
      row = (error.clip_id,)
    digest.update(json.dumps(row).encode('ascii'))
  return digest.hexdigest()


def _check_same(
  folder: _Path, old: dict[str, object], new: dict[str, object]
) -> None:
  for name in {**old, **new}:
    # The same recordings may be named in another way.
    if name != 'source' and old.get(name) != new.get(name):
      raise ValueError(
        f'{folder}: want {name} = {_short(old.get(name))} as it was started '
        f'with, got {_short(new.get(name))}'
      )


def _short(value: object) -> str:
  text = str(value)
  return text if len(text) <= 60 else f'{text[:57]}...'


def _replace(temporary: _Path, file: _Path, text: str) -> None:
  """Writes a file whole or not at all."""
  part = temporary / f'{file.name}.part'
  with open(part, 'w', encoding='utf-8', errors='surrogateescape') as stream:
    stream.write(text)
    stream.flush()
    os.fsync(stream.fileno())
  os.replace(part, file)
