"""Features on disk, read back by the libraries that users have."""

import json

import numpy as np
from pyarrow import parquet
import pytest
import safetensors.numpy

from sslam_jax import output

RNG = np.random.default_rng(0)
CLIP = RNG.normal(size=4).astype(np.float32)
PATCH = RNG.normal(size=(3, 2, 4)).astype(np.float32)
TIME_S = np.array([0.08, 0.24, 0.4], np.float32)
ARRAYS = {'clip': {'clip': CLIP}, 'patch': {'patch': PATCH},
          'frame': {'frame': PATCH[:, 0], 'time_s': TIME_S},
          'all': {'clip': CLIP, 'patch': PATCH}}


def opened(folder, kind, granularity='clip', overwrite=False, **about):
  return output.opened(folder, kind, {'granularity': granularity, **about},
                       overwrite=overwrite)


@pytest.mark.parametrize('granularity', ['patch', 'frame', 'all'])
@pytest.mark.parametrize('kind', output.FORMATS)
def test_a_file_for_each_recording(tmp_path, kind, granularity):
  writer, arrays = opened(tmp_path, kind, granularity), ARRAYS[granularity]
  assert 'b/x.wav' not in writer
  writer.write('b/x.wav', arrays)
  assert 'b/x.wav' in writer and 'b/x.flac' not in writer
  path = tmp_path / 'b' / f'x.wav.{kind}'
  tokens = [x.reshape(-1, 4) for name, x in arrays.items()
            if name != 'time_s']
  if kind == 'npy':
    want = (np.concatenate(tokens) if granularity == 'all'
            else next(iter(arrays.values())))
    np.testing.assert_array_equal(np.load(path), want)
  elif kind == 'parquet':
    table = parquet.read_table(path)
    feature = np.stack(table['feature'].to_numpy())
    np.testing.assert_array_equal(feature, np.concatenate(tokens))
    columns = [None] * (granularity == 'all') + [0, 1, 2]
    if granularity == 'frame':
      np.testing.assert_array_equal(table['time_s'], TIME_S)
    else:
      columns = [None] * (granularity == 'all') + [0, 0, 1, 1, 2, 2]
      assert table['mel'].to_pylist()[-2:] == [0, 1]
    assert table['column'].to_pylist() == columns
  else:
    read = np.load if kind == 'npz' else safetensors.numpy.load_file
    found = read(path)
    assert set(found) == set(arrays)
    for name, x in arrays.items():
      np.testing.assert_array_equal(found[name], x)


@pytest.mark.parametrize('kind', ['npz', 'parquet', 'safetensors'])
def test_clips_are_rows_of_tables_that_are_continued(
    tmp_path, kind, monkeypatch
):
  monkeypatch.setattr(output, '_PART_ROWS', 2)
  names = [f'{i}\udcff.wav' for i in range(5)]
  writer = opened(tmp_path, kind)
  for i, name in enumerate(names[:3]):
    writer.write(name, {'clip': CLIP + i})
  writer.close()
  writer = opened(tmp_path, kind)
  assert [name in writer for name in names] == [True] * 3 + [False] * 2
  for i, name in enumerate(names[3:], 3):
    writer.write(name, {'clip': CLIP + i})
  writer.close()
  parts = sorted(tmp_path.glob('part-*'))
  assert [part.name for part in parts] == [
      f'part-0000{i}.{kind}' for i in range(3)]
  paths, rows = [], []
  for part in parts:
    if kind == 'npz':
      arrays = np.load(part)
      paths += list(arrays['path'])
      rows += list(arrays['feature'])
    elif kind == 'parquet':
      table = parquet.read_table(part)
      paths += table['path'].to_pylist()
      rows += list(table['feature'].to_numpy())
    else:
      rows += list(safetensors.numpy.load_file(part)['feature'])
      with safetensors.safe_open(part, framework='numpy') as file:
        paths += json.loads(file.metadata()['path'])
  assert paths == [f'{i}\\udcff.wav' for i in range(5)]
  np.testing.assert_array_equal(rows, [CLIP + i for i in range(5)])


def test_tags_continue_wherever_the_table_was_cut_off(tmp_path):
  """No row twice, none half, and what is whole is kept."""
  told = {name: [('a "b", c', 0.25), (f'é\udcff{i}', 0.5)]
          for i, name in enumerate(('x\udcff.wav', 'y\n,"z".wav', 'w.wav'))}
  path = tmp_path / 'tags.csv'

  def table(names):
    writer = output.Tags(path, labels=2)
    left = [name for name in names if name not in writer]
    for name in left:
      writer.write(name, told[name])
    writer.close()
    return left

  sizes = []
  for count in range(1, 4):
    table(list(told)[:count])
    sizes.append(path.stat().st_size)
  whole = path.read_bytes()
  assert whole.count(b'0.2500\n') == whole.count(b'0.5000\n') == 3
  for size in range(len(whole) + 1):
    path.write_bytes(whole[:size])
    left = table(told)
    assert path.read_bytes() == whole
    # But for its line's end a recording is whole.
    assert len(left) == sum(size < end - 1 for end in sizes)


def test_other_features_are_refused_and_overwritten_on_request(tmp_path):
  opened(tmp_path, 'npy', step=1, run='a').write('x.wav', {'clip': CLIP})
  assert 'x.wav' in opened(tmp_path, 'npy', step=1, run='b')
  with pytest.raises(ValueError, match='step was 1, now 2'):
    opened(tmp_path, 'npy', step=2)
  with pytest.raises(ValueError, match="format was 'npy', now 'npz'"):
    opened(tmp_path, 'npz', step=1)
  assert 'x.wav' not in opened(tmp_path, 'npz', step=2, overwrite=True)
  assert [path.name for path in tmp_path.iterdir()] == ['features.json']


def test_a_folder_with_other_files_is_left_alone(tmp_path):
  (tmp_path / 'mine.npy').write_text('x')
  for overwrite in (False, True):
    with pytest.raises(ValueError, match='got one with other files'):
      opened(tmp_path, 'npy', overwrite=overwrite)
  assert (tmp_path / 'mine.npy').read_text() == 'x'


def test_what_fails_leaves_no_file(tmp_path):
  with (
      pytest.raises(OSError, match='full'),
      output.replaced(tmp_path / 'x.npy') as unfinished,
  ):
    unfinished.write_text('half')
    raise OSError('full')
  assert not list(tmp_path.iterdir())


def test_two_that_write_one_folder_leave_one_whole(tmp_path):
  (tmp_path / 'out').mkdir()  # empty
  with (pytest.raises(OSError, match='not empty'),
        output.new_folder(tmp_path / 'out') as late):
    (late / 'a').write_text('late')
    with output.new_folder(tmp_path / 'out') as early:
      (early / 'a').write_text('early')
  assert [x.name for x in tmp_path.iterdir()] == ['out']
  assert (tmp_path / 'out' / 'a').read_text() == 'early'


def test_failures_of_an_earlier_call_are_forgotten(tmp_path):
  output.write_failed(tmp_path, {'a.wav': 'no samples'})
  assert (tmp_path / output.FAILED).read_text() == 'a.wav\tno samples\n'
  output.write_failed(tmp_path, {})
  assert not (tmp_path / output.FAILED).exists()
