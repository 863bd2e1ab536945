"""Tests of the TensorFlow Datasets source and builder; all data made here."""

import builtins
import concurrent.futures
import contextlib
import dataclasses
import io
import json
import pathlib
import pickle
import sys
import time

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from sslam_jax import clips
from sslam_jax import config
from sslam_jax import data
from sslam_jax import soundscapes
from sslam_jax import tfds_soundscapes
from sslam_jax import tfds_source
from tests import tiny
from tests import toy
from tools import build_tfds

_AUDIO = 'tensorflow_datasets.core.features.audio_feature.Audio'
_LABEL = tfds.features.ClassLabel(names=['cat', 'dog', 'owl'])
_TEXT = tfds.features.Text()
_BYTES, _array, _example = toy.BYTES, toy.array, toy.example
_toy, _pcm = toy.prepared, toy.pcm


class ToyDownload(toy.Toy):
  """One that TFDS can prepare by its name."""

  def __init__(self, **options):
    examples = [_example(_pcm())]
    super().__init__(
      features=_array(np.int16), examples=examples, **options
    )


def _flac(pcm_S, rate_hz=16_000) -> bytes:
  file = io.BytesIO()
  soundfile.write(file, pcm_S, rate_hz, format='FLAC', subtype='PCM_16')
  return file.getvalue()


def _wave(clip: clips.Clip) -> np.ndarray:
  return clip.read(0, clip.samples)


def _bad(function, *args) -> str:
  with pytest.raises(clips.BadClip) as caught:
    function(*args)
  return str(caught.value)


def _error(source: tfds_source.Tfds) -> str:
  with pytest.raises(ValueError) as caught:
    len(source)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def _edit(path: pathlib.Path, change) -> None:
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def _as_audio(path: pathlib.Path, **settings) -> None:
  """Makes the array in a prepared toy an `Audio` feature, as stored by TFDS."""

  def change(content):
    feature = content['featuresDict']['features']['audio']
    feature['pythonClassName'] = _AUDIO
    feature['audio'] = {**feature.pop('tensor'), **settings}

  _edit(path / 'toy/1.0.0/features.json', change)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Prepared soundscapes: 12, 3 and 3 of 1.5 s."""
  path = str(tmp_path_factory.mktemp('tfds'))
  args = ['--clips=12', '--eval_clips=3', '--length_s=1.5']
  assert build_tfds.main([f'--data_dir={path}', *args]) == 0
  return path


def _soundscapes(folder, split='train', **options) -> tfds_source.Tfds:
  return tfds_source.Tfds(
    name='sslam_soundscapes', data_dir=folder, split=split, **options
  )


@pytest.mark.parametrize(
  'split, count, seed', [('train', 12, 0), ('validation', 3, 1), ('test', 3, 2)]
)
def test_prepared_soundscapes_equal_the_procedural_ones(
  folder, split, count, seed
):
  want = soundscapes.Soundscapes(clips=count, length_s=1.5, seed=seed)
  got = _soundscapes(folder, split)
  assert len(got) == count and got.classes == want.classes
  for i in range(count):
    left, right = got[i], want[i]
    for name in ('id', 'labels', 'rate_hz', 'samples'):
      assert getattr(left, name) == getattr(right, name)
    difference = np.abs(_wave(left) - _wave(right)).max()
    assert difference <= 2**-16  # Half a step of 16 bit.


def test_prepared_soundscapes_hold_their_events(folder):
  rows = tfds.data_source('sslam_soundscapes', split='train', data_dir=folder)
  scenes = soundscapes.Soundscapes(clips=12, length_s=1.5)
  names = np.array(scenes.classes)
  for i in range(12):
    events, plan = rows[i]['events'], scenes.plan(i)
    assert [names[k] for k in events['label']] == [e.family for e in plan]
    for field in ('onset_s', 'length_s', 'gain_db'):
      want = [getattr(event, field) for event in plan]
      np.testing.assert_allclose(events[field], want, rtol=1e-6)


def test_splits_and_seeds_share_no_scene():
  def ids(seed):
    scenes = soundscapes.Soundscapes(clips=2, seed=seed)
    builder = tfds_soundscapes.SslamSoundscapes(
      scenes=scenes, eval_clips=2, data_dir='/nowhere'
    )
    splits = map(builder.scenes, ('train', 'validation', 'test'))
    return [split[i].id for split in splits for i in range(2)]

  assert len({*ids(0), *ids(1), *ids(2)}) == 18


@pytest.mark.parametrize(
  'split, want',
  [('train[:50%]', range(6)), ('train[3:7]', range(3, 7)),
   ('train[-2:]', [10, 11]), ('train[:2]+train[9:10]', [0, 1, 9])],
)  # fmt: skip
def test_parts_of_splits(folder, split, want):
  source = _soundscapes(folder, split)
  got = [source[i].id for i in range(len(source))]
  assert got == [f'soundscape-0-{i:06d}' for i in want]


def test_a_folder_is_a_name_too(folder):
  path = f'{folder}/sslam_soundscapes/1.0.0'
  source = tfds_source.Tfds(name=path, split='test')
  assert source[2].id == 'soundscape-2-000002'


def test_builder_tool_keeps_what_is_there(folder, capsys):
  path = pathlib.Path(folder, 'sslam_soundscapes/1.0.0')
  files = {f: f.stat().st_mtime_ns for f in path.iterdir()}
  args = [f'--data_dir={folder}', '--clips=12', '--eval_clips=3']
  assert build_tfds.main([*args, '--length_s=1.5']) == 0
  said = capsys.readouterr().out
  assert 'train 12, validation 3, test 3 clips; to train' in said
  assert build_tfds.main([*args, '--length_s=2']) == 2
  want = f'error: {path}: want a folder that does not exist'
  error = capsys.readouterr().err
  assert error.startswith(want) and "{'length_s': 1.5}" in error
  assert files == {f: f.stat().st_mtime_ns for f in path.iterdir()}


@pytest.mark.parametrize('flag', ['--clips=0', '--eval_clips=0'])
def test_builder_tool_refuses_impossible_sizes(tmp_path, flag, capsys):
  assert build_tfds.main([f'--data_dir={tmp_path}', flag]) == 2
  name = flag.strip('-').split('=')[0]
  assert capsys.readouterr().err.startswith(f'error: {name}: want ')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'dtype, scale, options',
  [(np.int16, 1, {}), (np.int64, 1, {}), (np.float32, 2**-15, {}),
   (np.float64, 2**-15, {}), (np.int32, 1, {'full_scale': 2.0**15}),
   (np.int32, 2**16, {'full_scale': 2.0**31})],
)  # fmt: skip
def test_arrays_are_scaled(tmp_path, dtype, scale, options):
  audio = (_pcm().astype(np.float64) * scale).astype(dtype)
  source = _toy(tmp_path, _array(dtype), _example(audio), **options)
  (clip,) = source
  assert (clip.rate_hz, clip.samples, clip.labels) == (8000, 500, ())
  assert clip.id == 'toy/1.0.0/train#0'
  got = clip.read(100, 300)
  assert got.dtype == np.float32
  np.testing.assert_array_equal(got, _pcm()[100:400] / np.float32(2**15))


@pytest.mark.parametrize('encoding', ['none', 'zlib'])
def test_channels_of_arrays_are_averaged(tmp_path, encoding):
  pcm_SxC = _pcm(600).reshape(200, 3)
  features = _array(np.int16, (None, 3), encoding=encoding)
  (clip,) = _toy(tmp_path, features, _example(pcm_SxC))
  want = pcm_SxC.astype(np.float64).mean(axis=1) / 2**15
  np.testing.assert_allclose(_wave(clip), want, atol=1e-7)


def test_samples_above_full_scale_are_a_bad_clip(tmp_path):
  good, loud = np.full(9, -(2**15)), np.full(9, 2**15 + 1)
  source = _toy(tmp_path, _array(np.int64), _example(good), _example(loud))
  assert _wave(source[0]).tolist() == [-1] * 9
  want = 'toy/1.0.0/train#1: want readable audio, got samples up to 32769, '
  assert _bad(source.__getitem__, 1) == f'{want}above full_scale=32768'


def test_int32_arrays_must_say_their_scale(tmp_path):
  source = _toy(tmp_path, _array(np.int32), _example(np.ones(9, np.int32)))
  assert _error(source).startswith('full_scale: want 32768 or 2147483648')


def test_rate_is_the_option_or_that_of_the_example(tmp_path):
  features = {'audio': _array(np.int16)['audio'], 'sample_rate': np.int32}
  source = _toy(tmp_path, features, {'audio': _pcm(), 'sample_rate': 44_100},
                {'audio': _pcm(), 'sample_rate': 0})  # fmt: skip
  assert source[0].rate_hz == 44_100
  assert 'got a rate of 0 Hz' in _bad(source.__getitem__, 1)
  assert dataclasses.replace(source, rate_hz=11_025)[0].rate_hz == 11_025


def test_rate_that_is_nowhere_is_asked_for(tmp_path):
  features = {'audio': _array(np.int16)['audio']}
  source = _toy(tmp_path, features, {'audio': _pcm()})
  with pytest.raises(ValueError, match='^rate_hz: want that of toy, got None'):
    source[0]
  assert dataclasses.replace(source, rate_hz=96_000)[0].rate_hz == 96_000


@pytest.mark.parametrize('dtype', [np.int64, np.int32, np.int16])
def test_audio_features_are_read_without_tensorflow(tmp_path, dtype):
  features = {**_array(dtype), 'label': _LABEL}
  _toy(tmp_path, features, _example(_pcm().astype(dtype), label=1))
  _as_audio(tmp_path, sampleRate='22050')
  source = tfds_source.Tfds(name='toy', data_dir=str(tmp_path))
  (clip,) = source
  assert (clip.rate_hz, clip.labels) == (22_050, ('dog',))
  np.testing.assert_array_equal(_wave(clip), _pcm() / np.float32(2**15))
  assert dataclasses.replace(source, rate_hz=8000)[0].rate_hz == 8000


def test_lazy_audio_features_are_read_without_tensorflow(tmp_path):
  _toy(tmp_path, {'audio': _BYTES}, {'audio': _flac(_pcm(), 11_025)})
  shape = {'dimensions': ['-1']}
  _as_audio(tmp_path, lazyDecode=True, dtype='int16', shape=shape)
  (clip,) = tfds_source.Tfds(name='toy', data_dir=str(tmp_path))
  assert clip.rate_hz == 11_025
  np.testing.assert_array_equal(_wave(clip), _pcm() / np.float32(2**15))


def test_audio_feature_of_an_old_version_is_read(tmp_path):
  _toy(tmp_path, _array(np.int64), _example(_pcm().astype(np.int64)))
  content = {'file_format': 'wav', 'shape': [None], 'dtype': 'int64',
             'sample_rate': 32_000}  # fmt: skip
  entry = {'type': _AUDIO, 'content': content}
  kind = 'tensorflow_datasets.core.features.features_dict.FeaturesDict'
  path = tmp_path / 'toy/1.0.0/features.json'
  path.write_text(json.dumps({'type': kind, 'content': {'audio': entry}}))
  (clip,) = tfds_source.Tfds(name='toy', data_dir=str(tmp_path))
  assert clip.rate_hz == 32_000
  np.testing.assert_array_equal(_wave(clip), _pcm() / np.float32(2**15))


@pytest.mark.parametrize(
  'key, labels, classes',
  [(None, (), ()), ('sort', ('owl',), ('cat', 'dog', 'owl')),
   ('in/tags', ('dog', 'cat'), ('cat', 'dog', 'owl')),
   ('text', ('Grün',), ('Grün', 'rot')), ('none', (), ('cat', 'dog', 'owl')),
   ('texts', ('b', 'a'), ('a', 'b', 'c'))],
)  # fmt: skip
def test_labels(tmp_path, key, labels, classes):
  sequence = tfds.features.Sequence
  features = {**_array(np.int16), 'sort': _LABEL, 'none': _LABEL,
              'in': {'tags': sequence(_LABEL)}, 'text': _TEXT,
              'texts': sequence(_TEXT)}  # fmt: skip
  first = _example(_pcm(), sort=2, none=-1, text='Grün', texts=['b', 'a'],
                   **{'in': {'tags': [1, 0, 1]}})  # fmt: skip
  second = {**first, 'text': 'rot', 'texts': ['c', '']}
  source = _toy(tmp_path, features, first, second, label_key=key)
  assert source[0].labels == source.labels(0) == labels
  assert source.classes == classes


@pytest.mark.parametrize(
  'more, key, want',
  [({'id': 'ä 1'}, None, 'ä 1'), ({'audio/filename': 'x.wav'}, None, 'x.wav'),
   ({'speaker': 's'}, None, 'toy/1.0.0/train#0'), ({'n': 7}, 'n', '7'),
   ({'speaker': 's'}, 'speaker', 's')],
)  # fmt: skip
def test_ids(tmp_path, more, key, want):
  kinds = {k: np.int64 if k == 'n' else _TEXT for k in more}
  features = {**_array(np.int16), **kinds}
  (clip,) = _toy(tmp_path, features, _example(_pcm(), **more), id_key=key)
  assert clip.id == want


def test_audio_is_found_or_asked_for(tmp_path):
  array, two = _array(np.int16)['audio'], {'left': _BYTES, 'right': _BYTES}
  rows = {'left': _flac(_pcm()), 'right': _flac(_pcm(300)), 'x': _pcm()}
  source = _toy(tmp_path / '1', {**two, 'x': array}, rows)
  want = "audio_key: want one of ['left', 'right'], got None"
  assert _error(source) == want
  assert dataclasses.replace(source, audio_key='right')[0].samples == 300
  wrong = dataclasses.replace(source, audio_key='up')
  want = "audio_key: want one of ['left', 'right', 'x'], got 'up'"
  assert _error(wrong) == want
  source = _toy(tmp_path / '2', {'x': array, 'text': _TEXT},
                {'x': _pcm(), 'text': 'y'}, rate_hz=8000)  # fmt: skip
  assert source[0].samples == 500
  source = _toy(tmp_path / '3', {'text': _TEXT, 'label': _LABEL},
                {'text': 'y', 'label': 0})  # fmt: skip
  want = "audio_key: want a data set with audio, got features ['label', 'text']"
  assert _error(source) == want
  for option in ('label_key', 'id_key'):
    wrong = tfds_source.Tfds(
      name='toy', data_dir=str(tmp_path / '2'), **{option: 'x'}
    )
    assert _error(wrong) == f"{option}: want one of ['text'], got 'x'"


def test_unusable_audio_is_a_bad_clip(tmp_path):
  good, empty = _flac(_pcm()), _flac(_pcm(0))
  audio = [b'', b'<html>', good[:200], empty, good]
  features = {'audio': _BYTES, 'id': _TEXT}
  rows = [{'audio': a, 'id': f'n{i}'} for i, a in enumerate(audio)]
  source = _toy(tmp_path / 'bytes', features, *rows)
  assert 'n0: want readable audio, got 0 bytes' in _bad(source.__getitem__, 0)
  for i in range(4):
    message = _bad(lambda i=i: _wave(source[i]))
    assert message.startswith(f'n{i}: ')
  assert len(_wave(source[4])) == 500
  holed = np.full(9, 0.5, np.float32)
  holed[5], holed[0] = np.nan, -1e30
  source = _toy(tmp_path / 'array', _array(np.float32), _example(holed[:0]),
                _example(holed))  # fmt: skip
  assert 'got no samples' in _bad(source.__getitem__, 0)
  assert source[1].read(1, 4).tolist() == [0.5] * 4
  assert 'beyond 32 bits' in _bad(source[1].read, 0, 5)
  assert 'not finite' in _bad(source[1].read, 0, 9)
  assert 'got 2 of 3 samples from 7 on' in _bad(source[1].read, 7, 3)


def test_damaged_records_are_bad_clips(tmp_path):
  rows = [_example(_pcm(20_000, seed), text='new') for seed in range(20)]
  source = _toy(tmp_path, {**_array(np.int16), 'text': _TEXT}, *rows)
  (path,) = (tmp_path / 'toy/1.0.0').glob('*array_record*')
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  bad = []
  for i in range(20):
    try:
      want = _pcm(20_000, i) / np.float32(2**15)
      np.testing.assert_array_equal(_wave(source[i]), want)
    except clips.BadClip as error:
      bad.append(error)
  assert [error.clip_id for error in bad] == [f'toy/1.0.0/train#{len(rows)//2}']
  assert 'hash mismatch' in str(bad[0])
  source = dataclasses.replace(source, label_key='text')
  want = [('new',)] * 20
  want[10] = ()
  assert [source.labels(i) for i in range(20)] == want
  assert source.classes == ('new',)


def test_index_is_checked(folder):
  source = _soundscapes(folder)
  for index in (-1, 12):
    for function in (source.__getitem__, source.labels):
      with pytest.raises(IndexError, match=f'want 0 to 11, got {index}'):
        function(index)


def test_errors_say_what_is_there(folder):
  there = f"want a data set prepared in {folder}, where there are "
  there = f"name: {there}['sslam_soundscapes/1.0.0'], got "
  for name, want in [
    ('nope', "'nope'; nor does TFDS know that name"),
    ('gtzan', "'gtzan'; download=True prepares it"),
    ('sslam_soundscapes:2.0.0', "'sslam_soundscapes:2.0.0'; python "
     f'tools/build_tfds.py --data_dir={folder} prepares it'),
  ]:  # fmt: skip
    source = tfds_source.Tfds(name=name, data_dir=folder)
    assert _error(source) == there + want
  for split in ('nope', 'train[:0]', 'train[x]', 'train[5:99]'):
    want = "split: want one of ['test', 'train', 'validation'] or a part with "
    want += f'clips, got {split!r}: '
    assert _error(_soundscapes(folder, split)).startswith(want)


def test_other_file_formats_are_refused(tmp_path):
  source = _toy(tmp_path, _array(np.int16), _example(_pcm()))
  path = tmp_path / 'toy/1.0.0'
  _edit(path / 'dataset_info.json', lambda c: c.update(fileFormat='tfrecord'))
  want = f'{path}: want array_record files, as download=True makes in another '
  assert _error(source) == f"{want}data_dir, got ['tfrecord']"


@pytest.mark.parametrize(
  'field, value',
  [('name', ''), ('split', ''), ('rate_hz', 0), ('full_scale', 0.0),
   ('full_scale', float('nan'))],
)  # fmt: skip
def test_impossible_settings_are_refused(field, value):
  with pytest.raises(ValueError, match=f'^{field}: want .* got '):
    tfds_source.Tfds(**{'name': 'toy', field: value})


def test_download_prepares_a_data_set_without_being_asked_twice(tmp_path):
  source = tfds_source.Tfds(name='toy_download', data_dir=str(tmp_path))
  assert _error(source).endswith('; download=True prepares it')
  assert not list(tmp_path.iterdir())
  for _ in range(2):
    (clip,) = dataclasses.replace(source, download=True)
    np.testing.assert_array_equal(_wave(clip), _pcm() / np.float32(2**15))


def _without(monkeypatch, absent):
  """As if a library were not installed."""
  real, known = builtins.__import__, sys.modules.pop(absent, None)
  if known is not None:
    monkeypatch.setitem(sys.modules, absent, known)  # Put back at the end.
    del sys.modules[absent]

  def load(name, *args, **options):
    if name == absent:
      raise ModuleNotFoundError(f'No module named {name!r}')
    return real(name, *args, **options)

  monkeypatch.setattr(builtins, '__import__', load)


def test_missing_library_is_named(folder, monkeypatch):
  tfds_source._library.cache_clear()
  with monkeypatch.context() as patch:
    _without(patch, 'tensorflow_datasets')
    message = _error(_soundscapes(folder))
  want = 'TensorFlow Datasets: want pip install -r requirements-tfds.txt, got: '
  assert message.startswith(want)
  assert len(_soundscapes(folder)) == 12


def test_data_set_that_needs_tensorflow_says_so(tmp_path):
  with contextlib.suppress(ImportError):
    import tensorflow  # noqa: F401

    pytest.skip('TensorFlow is installed')
  source = tfds_source.Tfds(
    name='gtzan', data_dir=str(tmp_path), download=True
  )
  message = _error(source)
  assert message.startswith('gtzan: want what TFDS needs for this data set ')
  assert 'pip install tensorflow' in message
  assert message.endswith("No module named 'tensorflow'")


def test_copies_open_the_files_themselves(folder):
  source = _soundscapes(folder, 'train[2:]', label_key='labels')
  small = len(pickle.dumps(source))
  want = source[3]
  copy = pickle.loads(pickle.dumps(source))
  assert small < 500 and len(pickle.dumps(source)) < small + 10
  assert copy == source and copy[3].id == want.id
  np.testing.assert_array_equal(_wave(copy[3]), _wave(want))
  assert config.from_json(config.to_json(source)) == source


def test_sixteen_threads_read_what_one_reads(folder, monkeypatch):
  want = [_wave(clip) for clip in _soundscapes(folder)]
  source, order = _soundscapes(folder), list(range(12)) * 8
  opened, really = [], tfds_source._open

  def slowly(settings):
    opened.append(settings)
    time.sleep(0.1)  # All threads come meanwhile.
    return really(settings)

  monkeypatch.setattr(tfds_source, '_open', slowly)
  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    got = list(pool.map(lambda i: _wave(source[i]), order))
  for i, wave in zip(order, got):
    np.testing.assert_array_equal(wave, want[i])
  assert len(opened) == 1


def test_workers_leave_the_stream_as_it_is(folder, tmp_path):
  settings = tiny.stage1(tmp_path).data
  settings.source = _soundscapes(folder)
  streams = []
  for workers in (0, 2):
    settings.workers = workers
    batches = iter(data.records(settings, batch=8, seed=3, patch=16))
    streams.append([next(batches) for _ in range(4)])
    batches.close()
  for left, right in zip(*streams):
    assert left.keys() == right.keys()
    for key in left:
      np.testing.assert_array_equal(left[key], right[key])
  ids = {clip_id for batch in streams[0] for clip_id in batch['id']}
  assert len(ids) == 12
