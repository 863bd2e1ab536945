"""Tests of reading packs; they are written here with the tool."""

import concurrent.futures
import functools
import json
import os
import pathlib
import pickle
import shutil

from absl import flags
import grain
import numpy as np
import pytest
import soundfile

from sslam_jax import clips
from sslam_jax import config
from sslam_jax import packs
from sslam_jax import sources
from tools import pack_audio

_RATE_HZ = 16_000


def _source(root: pathlib.Path, recordings: int = 9) -> sources.Csv:
  """16-bit recordings of all values, with names of all kinds."""
  rng = np.random.default_rng(0)
  names = ['ø r', os.fsdecode(b'gr\xfcn'), *'abcdefghijklm']
  rows = [b'path,label']
  (root / 'audio').mkdir(parents=True)
  for number, name in enumerate(names[:recordings]):
    wave_S = rng.integers(-(2**15), 2**15, 400 + number).astype(np.int16)
    wave_S[:4] = -(2**15), 2**15 - 1, -1, 1
    path = root / 'audio' / f'{name}.wav'
    soundfile.write(str(path).encode('utf-8', 'surrogateescape'), wave_S,
                    _RATE_HZ)  # fmt: skip
    label = ('', 'dög', 'cat;dög', 'cat')[number % 4]
    rows.append(os.fsencode(f'audio/{path.name},{label}'))
  (root / 'l.csv').write_bytes(b'\n'.join(rows))
  return sources.Csv(path=str(root / 'l.csv'))


def _pack(root: pathlib.Path, *flags: str) -> str:
  out = str(root / 'pack')
  argv = [f'csv={root}/l.csv', f'--out={out}', '--workers=1', *flags]
  assert pack_audio.main(argv) == 0
  return out


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> pathlib.Path:
  root = tmp_path_factory.mktemp('packs')
  _source(root)
  _pack(root, '--shards=3')
  return root


@pytest.fixture
def pack(whole, tmp_path) -> pathlib.Path:
  """A copy to be damaged."""
  return pathlib.Path(shutil.copytree(whole / 'pack', tmp_path / 'pack'))


def _error(path) -> str:
  with pytest.raises(ValueError) as caught:
    len(packs.Pack(path=str(path)))
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_pack_holds_its_source_bit_for_bit(whole):
  source = sources.Csv(path=f'{whole}/l.csv')
  pack = packs.Pack(path=f'{whole}/pack')
  assert len(pack) == len(source) == 9
  assert pack.classes == source.classes == ('cat', 'dög')
  for index in range(9):
    want, got = source[index], pack[index]
    assert (got.id, got.labels) == (want.id, want.labels)
    assert (got.rate_hz, got.samples) == (want.rate_hz, want.samples)
    assert pack.labels(index) == want.labels
    wave_S = want.read(0, want.samples)
    assert wave_S[:4].tolist() == [-1, 1 - 2**-15, -(2**-15), 2**-15]
    np.testing.assert_array_equal(got.read(0, got.samples), wave_S)
    np.testing.assert_array_equal(got.read(50, 100), wave_S[50:150])
  assert pack[np.int64(8)].id == source[8].id


def test_record_is_what_the_documentation_says(whole):
  (path, *_) = sorted((whole / 'pack').glob('*.array_record'))
  source = grain.sources.ArrayRecordDataSource([str(path)])
  assert len(source) == 3
  header, flac = source[0].split(b'\n', 1)
  clip_id = f'{whole}/audio/ø r.wav'
  assert json.loads(header) == {'id': clip_id, 'labels': []}
  assert flac[:4] == b'fLaC'


def test_index_out_of_range_is_an_error(whole):
  pack = packs.Pack(path=f'{whole}/pack')
  for index in (-1, 9):
    for ask in (pack.__getitem__, pack.labels):
      with pytest.raises(IndexError, match=f'want 0 to 8, got {index}'):
        ask(index)


def test_pack_is_a_configuration():
  with pytest.raises(ValueError, match='path: want the folder of a pack'):
    packs.Pack(path='')
  pack = packs.Pack(path='nowhere')
  assert config.from_json(config.to_json(pack)) == pack
  assert config.checked(pack) == pack


def test_sixteen_threads_read_what_one_reads(tmp_path, monkeypatch):
  _source(tmp_path)
  out = _pack(tmp_path, '--shards=9')
  # Fewer open files than shards, so that they are closed under the readers.
  cached = functools.lru_cache(2)(packs._cached_reader.__wrapped__)
  monkeypatch.setattr(packs, '_cached_reader', cached)
  pack = packs.Pack(path=out)
  want = [pack[i].read(0, pack[i].samples) for i in range(9)]
  order = np.random.default_rng(0).integers(9, size=2000)

  def same(index: int) -> bool:
    clip = pack[index]
    return np.array_equal(clip.read(0, clip.samples), want[index])

  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    assert all(pool.map(same, order))
  assert cached.cache_info().currsize == 2
  assert cached.cache_info().misses > 100


def test_pickled_copy_reads_no_index_again(pack):
  source = packs.Pack(path=str(pack))
  want = source[4].read(0, 404)
  copy = pickle.loads(pickle.dumps(source))
  (pack / 'pack.json').unlink()
  np.testing.assert_array_equal(copy[4].read(0, 404), want)
  np.testing.assert_array_equal(
    pickle.loads(pickle.dumps(copy[4])).read(0, 404), want
  )


def test_grain_reads_the_pack_in_workers(whole):
  source = packs.Pack(path=f'{whole}/pack')
  stream = grain.MapDataset.source(source).map(_Sum()).to_iter_dataset(
    grain.ReadOptions(num_threads=4)
  )
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  options = grain.MultiprocessingOptions(num_workers=1)
  got = list(stream.mp_prefetch(options))
  assert got == [_Sum().map(source[i]) for i in range(9)]


class _Sum(grain.transforms.Map):
  def map(self, clip):
    return float(clip.read(0, clip.samples).sum())


def test_missing_shard_is_named_with_what_writes_it_again(pack):
  shard = sorted(pack.glob('*.array_record'))[1]
  size = shard.stat().st_size
  shard.unlink()
  message = _error(pack)
  assert message.startswith(f'{shard}: want {size} bytes, got no such file: ')
  assert 'again with: python tools/pack_audio.py csv=' in message
  assert message.endswith(f'--shards=3 --out={pack}')  # Not where it was.


def test_folder_with_blanks_is_quoted_in_commands(whole, tmp_path, capsys):
  moved = shutil.copytree(whole / 'pack', tmp_path / "it's moved")
  want = f"--out='{tmp_path}/it'\"'\"'s moved'"
  sorted(moved.glob('*.array_record'))[1].unlink()
  assert _error(moved).endswith(want)
  assert pack_audio.main(['--verify', f'--out={moved}', '--workers=1']) == 1
  assert capsys.readouterr().err.endswith(f'{want}\n')
  (moved / 'pack.json').rename(moved / 'unfinished.json')
  message = _error(moved)
  assert 'finish it with: ' in message and message.endswith(want)


def test_truncated_shard_is_named(pack):
  shard = sorted(pack.glob('*.array_record'))[1]
  size = shard.stat().st_size
  os.truncate(shard, size - 1)
  assert f'{shard}: want {size} bytes, got {size - 1}: write' in _error(pack)


def test_other_shard_is_named(pack):
  shutil.copy(sorted(pack.glob('*.array_record'))[0], pack / 'x.array_record')
  assert _error(pack).startswith(f'{pack}/x.array_record: want no shards but')


def test_shard_of_something_else_is_named(pack):
  shard = sorted(pack.glob('*.array_record'))[1]
  shard.write_bytes(bytes(shard.stat().st_size))
  source = packs.Pack(path=str(pack))
  assert source[0].samples == 400 and source[8].samples == 408
  with pytest.raises(ValueError, match='00001-of-.*want 3 clips, got damage'):
    source[4]


@pytest.mark.parametrize(
  'change, message',
  [
    ({'version': 2}, 'pack.json: want version 1, got 2'),
    ({'classes': None}, 'pack.json: want the index of a pack, got '),
    ({'shards': [{}]}, 'pack.json: want the index of a pack, got '),
    ({'more': 1}, 'pack.json: want the index of a pack, got '),
  ],
)
def test_other_index_is_an_error(pack, change, message):
  file = pack / 'pack.json'
  file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
  assert _error(pack).startswith(f'{pack}/{message}')


def test_folder_without_a_pack_is_an_error(pack):
  (pack / 'pack.json').write_text('{')
  assert 'pack.json: want the index of a pack, got' in _error(pack)
  (pack / 'pack.json').write_text('{}')
  assert "pack.json: want 'version', got none" in _error(pack)
  (pack / 'pack.json').unlink()
  assert _error(pack).endswith('want the index of a pack, got no such file')
  assert _error(pack / 'none').endswith('got no such folder')


def test_flipped_byte_is_a_bad_clip_and_found_by_verify(pack, capsys):
  shard = sorted(pack.glob('*.array_record'))[1]
  data = bytearray(shard.read_bytes())
  source = packs.Pack(path=str(pack))
  clip_id = source[4].id.encode()
  data[data.index(clip_id) + 500] ^= 1  # In the FLAC of the shard's row 1.
  shard.write_bytes(data)
  source = packs.Pack(path=str(pack))
  assert source[3].samples and source[5].samples
  with pytest.raises(clips.BadClip, match='hash mismatch') as caught:
    source[4]
  assert caught.value.clip_id == f'{shard}#1'
  assert pack_audio.main(['--verify', f'--out={pack}', '--workers=1']) == 1
  printed = capsys.readouterr()
  first, second = printed.out.splitlines()
  assert first.startswith(f'{shard}: want SHA-256 ')
  assert second.startswith(f'{shard}#1: want readable audio, got ')
  assert 'got 2 problems' in printed.err


def test_header_that_is_damaged_is_a_bad_clip(pack):
  shard = sorted(pack.glob('*.array_record'))[0]
  writer = packs.array_record_module.ArrayRecordWriter(
    str(shard), 'group_size:1,uncompressed'
  )
  for record in (b'', b'{"id": 1}\nfLaC', b'{"id": "a", "labels": []}\nfLaC'):
    writer.write(record)
  writer.close()
  file = pack / 'pack.json'
  tree = json.loads(file.read_text())
  tree['shards'][0]['bytes'] = shard.stat().st_size
  file.write_text(json.dumps(tree))
  source = packs.Pack(path=str(pack))
  for row, name in ((0, f'{shard}#0'), (1, f'{shard}#1'), (2, 'a')):
    with pytest.raises(clips.BadClip) as caught:
      source[row]
    assert caught.value.clip_id == name


def test_labels_that_do_not_fit_are_an_error(pack, capsys):
  side = sorted(pack.glob('*-of-*.json'))[1]
  tree = json.loads(side.read_text())
  side.write_text(json.dumps({**tree, 'labels': tree['labels'][:2]}))
  with pytest.raises(ValueError, match='00001-of.*: want labels of 3 clips'):
    packs.Pack(path=str(pack)).labels(0)
  side.write_text(json.dumps({**tree, 'labels': [[7]] * 3}))
  with pytest.raises(ValueError, match='00001-of-00003.json: want labels, got'):
    packs.Pack(path=str(pack)).labels(0)
  side.write_text(json.dumps({**tree, 'labels': [[]] * 3}))
  assert pack_audio.main(['--verify', f'--out={pack}', '--workers=1']) == 1
  assert 'want labels as in 00001-of-00003.json' in capsys.readouterr().out
