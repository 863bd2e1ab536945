"""Tests of the audio file sources; all files are written here."""

import dataclasses
import math
import os
import pathlib
import pickle
import shutil
import struct

import numpy as np
import pytest
import soundfile

from sslam_jax import config
from sslam_jax import clips
from sslam_jax import decoding
from sslam_jax import resampling
from sslam_jax import sources


def _noise(samples: int, seed: int = 0) -> np.ndarray:
  noise = np.random.default_rng(seed).standard_normal(samples)
  return (0.2 * noise).clip(-1, 1).astype(np.float32)


def _sine(samples: int, rate_hz: int) -> np.ndarray:
  return np.sin(2 * np.pi * 1000 * np.arange(samples) / rate_hz)


def _clicks(samples: int) -> np.ndarray:
  """Decaying bursts over near silence, which lossy codecs code unevenly."""
  rng, wave = np.random.default_rng(5), 0.0005 * _noise(samples)
  for start in range(0, samples - 4000, 3777):
    burst = np.exp(-np.arange(4000) / rng.uniform(20, 800))
    wave[start : start + 4000] += burst * _noise(4000, start)
  return wave


def _write(path: pathlib.Path, wave=None, rate_hz=16_000, **options) -> str:
  path.parent.mkdir(parents=True, exist_ok=True)
  wave = _noise(800) if wave is None else wave
  soundfile.write(path, wave, rate_hz, **options)
  return str(path)


def _write_text(path: pathlib.Path, *lines: str) -> str:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')
  return str(path)


def _read_all(path: str) -> np.ndarray:
  clip = decoding.open_file(path, path, ())
  return clip.read(0, clip.samples)


def _ids(source) -> list[str]:
  return [source[i].id for i in range(len(source))]


def _error(function, *args, **options) -> str:
  with pytest.raises(ValueError) as caught:
    function(*args, **options)
  return str(caught.value)


def _windowed_sinc(wave_S: np.ndarray, rate_hz: int, target_hz: int):
  """torchaudio's definition, one weight per pair of samples, in float64."""
  width_hz = 0.99 * min(rate_hz, target_hz)
  outputs = math.ceil(len(wave_S) * target_hz / rate_hz)
  seconds = np.arange(outputs)[:, None] / target_hz
  seconds = seconds - np.arange(len(wave_S)) / rate_hz
  crossings = (seconds * width_hz).clip(-6, 6)
  window = np.cos(crossings * np.pi / 12) ** 2
  return np.sinc(crossings) * window @ wave_S * (width_hz / rate_hz)


@pytest.mark.parametrize('rate_hz', [8000, 11025, 16001, 22050, 44100, 48000])
def test_resample_equals_the_definition(rate_hz):
  wave = _noise(1500)
  want = _windowed_sinc(wave.astype(np.float64), rate_hz, 16_000)
  got = resampling.resample(wave, rate_hz, 16_000)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_resample_takes_any_pair_of_rates():
  wave = _noise(700)
  want = _windowed_sinc(wave.astype(np.float64), 16_000, 22_051)
  got = resampling.resample(wave, 16_000, 22_051)
  np.testing.assert_allclose(got, want, atol=1e-6)
  assert len(resampling.resample(_noise(192_000), 192_000, 11_027)) == 11_027


@pytest.mark.parametrize('resampler', resampling.RESAMPLERS)
@pytest.mark.parametrize('rate_hz', [8000, 44_100, 96_000])
def test_resample_keeps_a_sine(resampler, rate_hz):
  wave = _sine(rate_hz // 2, rate_hz)
  got = resampling.resample(wave, rate_hz, 16_000, resampler)
  assert got.dtype == np.float32
  want = _sine(8000, 16_000)
  np.testing.assert_allclose(got[500:-500], want[500:-500], atol=2e-3)


@pytest.mark.parametrize('resampler', resampling.RESAMPLERS)
@pytest.mark.parametrize(
  'samples, rate_hz, target_hz, want',
  [
    (441, 44_100, 16_000, 160),
    (442, 44_100, 16_000, 161),
    (1, 48_000, 16_000, 1),
    (4, 48_000, 16_000, 2),
    (7, 8000, 16_000, 14),
    (16_002, 16_001, 16_000, 16_001),
    (108, 37_800, 22_050, 63),  # In float 108 * (22050 / 37800) exceeds 63.
  ],
)
def test_resample_rounds_the_length_up(
  resampler, samples, rate_hz, target_hz, want
):
  got = resampling.resample(_noise(samples), rate_hz, target_hz, resampler)
  assert got.shape == (want,) and got.dtype == np.float32


def test_resample_at_equal_rates_returns_the_wave():
  wave = _noise(10)
  assert resampling.resample(wave, 44_100, 44_100) is wave


def test_resample_refuses_bad_settings():
  assert 'rates' in _error(resampling.resample, _noise(9), 0, 16_000)
  message = _error(resampling.resample, _noise(9), 8000, 16_000, 'linear')
  assert "one of ('sinc_hann', 'soxr')" in message and "got 'linear'" in message


@pytest.mark.parametrize(
  'name, subtype, tolerance',
  [
    ('a.wav', 'PCM_U8', 2**-7),
    ('a.wav', 'PCM_16', 2**-15),
    ('a.wav', 'PCM_24', 2**-22),
    ('a.wav', 'FLOAT', 0),
    ('a.flac', 'PCM_16', 2**-15),
    ('a.flac', 'PCM_24', 2**-22),
    ('a.ogg', 'VORBIS', 0.1),
    ('a.mp3', 'MPEG_LAYER_III', 0.1),
  ],
)
def test_formats_decode_to_what_was_written(tmp_path, name, subtype, tolerance):
  wave = (0.5 * _sine(8000, 16_000)).astype(np.float32)
  path = _write(tmp_path / name, wave, subtype=subtype)
  clip = decoding.open_file(path, 'me', ('dog',))
  assert (clip.id, clip.labels) == ('me', ('dog',))
  assert (clip.samples, clip.rate_hz) == (8000, 16_000)
  got = clip.read(0, 8000)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, wave, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
  'extension, tolerance',
  [('wav', 2**-15), ('flac', 2**-15), ('ogg', 0.05), ('mp3', 0.05)],
)
def test_channels_are_averaged(tmp_path, extension, tolerance):
  left, right = 0.4 * _sine(8000, 16_000), 0.2 * _sine(8000, 8000)
  path = _write(tmp_path / f'a.{extension}', np.stack([left, right], axis=1))
  want = (left + right) / 2
  np.testing.assert_allclose(_read_all(path), want, atol=tolerance)


@pytest.mark.parametrize(
  'name, tolerance',
  [('a.wav', 0), ('a.flac', 0), ('a.ogg', 0), ('a.mp3', 1e-6)],
)
def test_part_equals_the_same_part_of_all(tmp_path, name, tolerance):
  # Ogg: without a run-up, parts in the last page are 8 ms off. MP3, of low
  # variable bit rate: they start with a damaged frame.
  mp3 = {'bitrate_mode': 'VARIABLE', 'compression_level': 0.5}
  options = mp3 if name == 'a.mp3' else {}
  path = _write(tmp_path / name, _clicks(300_000), 22_050, **options)
  whole = _read_all(path)
  starts = [0, 1, 70_000, *range(90_000, 120_000, 2111)]
  for start in starts + list(range(280_000, 299_900, 1100)):
    count = min(3000, len(whole) - start)
    got = decoding.read(path, start, count, name=path)
    want = whole[start : start + count]
    np.testing.assert_allclose(got, want, atol=tolerance, rtol=0)


def test_part_of_nothing_is_empty(tmp_path):
  path = _write(tmp_path / 'a.wav')
  assert decoding.read(path, 5, 0, name=path).shape == (0,)
  for start, count in [(-1, 5), (5, -1)]:
    message = _error(decoding.read, path, start, count, name=path)
    assert message == f'{path}: want start, count >= 0, got {start, count}'


def _damaged(path: pathlib.Path, damage: str) -> str:
  data = bytearray(pathlib.Path(_write(path, _noise(8000))).read_bytes())
  if damage == 'unknown length':
    data[21], data[22:26] = data[21] & 0xF0, bytes(4)  # In STREAMINFO.
  elif damage == 'rate':
    data[24:28] = struct.pack('<I', 2**31 - 1)
  else:
    data = {'empty': b'', 'cut': data[:4000], 'text': b'<html>404</html>'}[
      damage
    ]
  path.write_bytes(data)
  return str(path)


@pytest.mark.parametrize(
  'name, damage, reason',
  [('a.wav', 'empty', 'got 0 bytes'), ('a.flac', 'empty', 'got 0 bytes'),
   ('a.ogg', 'empty', 'got 0 bytes'), ('a.mp3', 'empty', 'got 0 bytes'),
   ('a.wav', 'text', 'got 16 bytes'), ('a.mp3', 'text', 'got 16 bytes'),
   ('a.flac', 'cut', 'got 4000 bytes: '),
   ('a.flac', 'unknown length', 'got an unknown length'),
   ('a.wav', 'rate', 'got a rate of 2147483647 Hz')],
)  # fmt: skip
def test_damaged_file_is_a_bad_clip(tmp_path, name, damage, reason):
  path = _damaged(tmp_path / name, damage)
  with pytest.raises(clips.BadClip, match=reason) as caught:
    _read_all(path)
  assert str(caught.value).startswith(f'{path}: want readable audio, got ')
  assert caught.value.clip_id == path


@pytest.mark.parametrize(
  'name, reason',
  [('none.wav', 'no such file'), ('', 'no such file'),
   ('a.raw', '100 bytes: samplerate must be specified'),
   ('empty.wav', 'no samples')],
)  # fmt: skip
def test_file_without_audio_is_a_bad_clip(tmp_path, name, reason):
  (tmp_path / 'a.raw').write_bytes(bytes(100))
  _write(tmp_path / 'empty.wav', _noise(0))
  path = str(tmp_path / name)
  want = f'{path}: want readable audio, got {reason}'
  assert _error(_read_all, path) == want


def test_wrong_samples_are_a_bad_clip(tmp_path):
  wave = _noise(100)
  short = _write(tmp_path / 'short.wav', wave)
  with pytest.raises(clips.BadClip, match='got 10 of 11 samples from 90'):
    decoding.read(short, 90, 11, name=short)
  for value in (np.nan, np.inf):
    wave[50] = value
    path = _write(tmp_path / 'float.wav', wave, subtype='FLOAT')
    assert len(decoding.read(path, 51, 49, name=path)) == 49
    with pytest.raises(clips.BadClip, match='float.wav: .* not finite'):
      decoding.read(path, 0, 100, name=path)


def test_bad_clip_survives_pickling():
  error = pickle.loads(pickle.dumps(clips.BadClip('a b.wav', 'nothing')))
  assert (error.clip_id, error.reason) == ('a b.wav', 'nothing')
  assert str(error) == 'a b.wav: want readable audio, got nothing'


def _zoo(root: pathlib.Path) -> sources.Folder:
  """A folder with all that a real one may have."""
  for name in ('b/2.wav', 'b/10.FLAC', 'top.wav', 'a b/Grün 1.Wav', 'a b/ø.ogg',
               'b/deep/x.mp3', 'b/._2.wav', '.cache/x.wav'):  # fmt: skip
    path = root / name
    _write(path.with_suffix(path.suffix.lower())).encode()
    path.with_suffix(path.suffix.lower()).rename(path)
  _write_text(root / 'b/notes.txt', 'no audio')
  (root / 'b/loop').symlink_to(root)
  (root / 'c').symlink_to(root / 'b/deep')
  return sources.Folder(paths=(str(root),))


def test_folder_lists_audio_with_the_names_of_folders(tmp_path):
  folder = _zoo(tmp_path)
  got = {clip.id: clip.labels for clip in map(folder.__getitem__, range(6))}
  assert got == {
    f'{tmp_path}/a b/Grün 1.Wav': ('a b',),
    f'{tmp_path}/a b/ø.ogg': ('a b',),
    f'{tmp_path}/b/10.FLAC': ('b',),
    f'{tmp_path}/b/2.wav': ('b',),
    f'{tmp_path}/b/deep/x.mp3': ('deep',),
    f'{tmp_path}/top.wav': (),
  }
  assert list(got) == sorted(got) and len(folder) == 6
  assert folder.classes == ('a b', 'b', 'deep')
  assert len(folder[0].read(0, folder[0].samples)) == 800


def test_folder_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
  want = _ids(_zoo(tmp_path))
  walk = os.walk

  def backwards(*args, **kwargs):
    for folder, below, names in walk(*args, **kwargs):
      below.reverse()
      names.reverse()
      yield folder, below, names

  monkeypatch.setattr(os, 'walk', backwards)
  assert _ids(sources.Folder(paths=(str(tmp_path),))) == want


def test_folder_reads_no_folder_twice(tmp_path):
  _zoo(tmp_path)
  inner, outer = str(tmp_path / 'b'), str(tmp_path)
  folder = sources.Folder(paths=(inner, outer, f'{outer}/'))
  assert sorted(_ids(folder)) == sorted(set(_ids(folder)))
  assert len(folder) == 6
  assert folder[0].id == f'{inner}/10.FLAC' and folder[0].labels == ()


def test_folder_follows_links_to_the_outside(tmp_path):
  _write(tmp_path / 'far/x.wav')
  (tmp_path / 'top').mkdir()
  (tmp_path / 'top/near').symlink_to(tmp_path / 'far')
  (clip,) = list(sources.Folder(paths=(str(tmp_path / 'top'),)))
  assert clip.id == f'{tmp_path}/top/near/x.wav' and clip.labels == ('near',)


def test_folder_looks_for_the_given_extensions(tmp_path):
  _zoo(tmp_path)
  folder = sources.Folder(paths=(str(tmp_path),), extensions=('.OGG', '.mp3'))
  assert [pathlib.Path(i).name for i in _ids(folder)] == ['ø.ogg', 'x.mp3']


def test_folder_errors_say_what_is_there(tmp_path):
  path = _write(tmp_path / 'x/a.wav')
  _write_text(tmp_path / 'y/deep/notes.txt')
  _write_text(tmp_path / 'y/b.aiff')
  for name, want in [
    ('none', f"{tmp_path}/none: want a folder, got nothing: it does not exist"),
    ('x/a.wav', f"{path}: want a folder, got a file"),
    ('y', f"{tmp_path}/y: want .wav, .mp3 files, got 'only 2 other files'"),
  ]:
    paths = (str(tmp_path / 'x'), str(tmp_path / name))
    folder = sources.Folder(paths=paths, extensions=('.wav', '.mp3'))
    assert _error(len, folder) == want


def test_folder_that_may_not_be_read_is_an_error(tmp_path, monkeypatch):
  folder = _zoo(tmp_path)
  scandir = os.scandir

  def refuse(path):
    if str(path).endswith('deep'):
      raise PermissionError(13, 'Permission denied', str(path))
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  with pytest.raises(PermissionError, match='deep'):
    len(folder)


def _corpus(root: pathlib.Path) -> pathlib.Path:
  """A manifest with labels, descriptors and a relative root."""
  for name in ('a b/ö 1.wav', 'x.wav', 'y.flac'):
    _write(root / 'audio' / name)
  _write_text(
    root / 'lists/train.tsv',
    '../audio', 'a b/ö 1.wav\t9000', 'x.wav\t20000', 'y.flac\t10000',
  )  # fmt: skip
  _write_text(root / 'lists/train.lbl', '0 /m/2,/m/0', '1 /m/1', '2\t/m/0')
  _write_text(
    root / 'lists/label_descriptors.csv',
    '1,/m/1,Dog', '0,/m/2,"Speech, man"', '', '2,/m/0',
  )  # fmt: skip
  return root / 'lists'


def test_manifest_reads_rows_labels_and_classes(tmp_path):
  lists = _corpus(tmp_path)
  for path in (lists, lists / 'train.tsv'):
    manifest = sources.Manifest(path=str(path))
    got = [(pathlib.Path(c.id).name, c.labels) for c in manifest]
    assert got == [
      ('ö 1.wav', ('/m/2', '/m/0')),
      ('x.wav', ('/m/1',)),
      ('y.flac', ('/m/0',)),
    ]
    assert manifest.classes == ('/m/2', '/m/1', '/m/0')
    assert len(manifest[0].read(0, 800)) == 800


def test_manifest_leaves_out_short_rows_with_their_labels(tmp_path):
  lists = str(_corpus(tmp_path))
  manifest = sources.Manifest(path=lists, min_samples=10_000)
  got = [(pathlib.Path(clip.id).name, clip.labels) for clip in manifest]
  assert got == [('x.wav', ('/m/1',)), ('y.flac', ('/m/0',))]
  assert manifest.classes == ('/m/2', '/m/1', '/m/0')
  message = _error(len, sources.Manifest(path=lists, min_samples=20_001))
  assert 'train.tsv' in message and 'at least 20001' in message


def test_manifest_needs_no_labels(tmp_path):
  lists = _corpus(tmp_path)
  (lists / 'train.tsv').rename(lists / 'eval.tsv')
  manifest = sources.Manifest(path=str(lists), split='eval')
  assert [clip.labels for clip in manifest] == [(), (), ()]
  (lists / 'label_descriptors.csv').unlink()
  assert sources.Manifest(path=str(lists), split='eval').classes == ()
  (lists / 'train.lbl').rename(lists / 'eval.lbl')
  manifest = sources.Manifest(path=str(lists), split='eval')
  assert manifest.classes == ('/m/0', '/m/1', '/m/2')


def test_manifest_takes_any_root_name_and_line_end(tmp_path):
  path = _write(tmp_path / 'far/"x" y\'.wav')
  text = f'\ufeff{tmp_path}/far \r\n"x" y\'.wav\t5\r\n'
  (tmp_path / 'm.tsv').write_bytes(text.encode())
  assert _ids(sources.Manifest(path=str(tmp_path / 'm.tsv'))) == [path]


_TSV, _LBL, _DESCRIPTORS = 'train.tsv', 'train.lbl', 'label_descriptors.csv'


@pytest.mark.parametrize(
  'name, lines, message',
  [
    (_TSV, [], 'train.tsv line 1: want a root folder'),
    (_TSV, ['x.wav\t5'], "line 1: want a root folder, got ['x.wav', '5']"),
    (_TSV, ['../none'], 'lists/../none: want a folder, got nothing: it does'),
    (_TSV, ['train.lbl'], "lists/train.lbl: want a folder, got a file"),
    (_TSV, ['../audio'], "train.tsv line 2: want path<TAB>samples, got 'no"),
    (_TSV, ['.', 'a\t5', 'b 5'], 'train.tsv line 3: want path<TAB>samples'),
    (_TSV, ['.', 'a\t5', 'b\t5.0'], "line 3: want path<TAB>samples, got ['b',"),
    (_TSV, ['.', '\t5'], 'train.tsv line 2: want path<TAB>samples'),
    (_TSV, ['.', 'a\t-5'], 'train.tsv line 2: want path<TAB>samples'),
    (_TSV, ['.', 'a\t5\t6'], 'train.tsv line 2: want path<TAB>samples'),
    (_TSV, ['.', 'a\t5'], 'train.lbl: want 1 lines, one per row, got 3'),
    (_LBL, ['0 /m/1', '1'], 'train.lbl line 2: want id label[,label...]'),
    (_LBL, ['0 /m/1,'], 'train.lbl line 1: want id label[,label...]'),
    (_LBL, ['0 a dog'], 'train.lbl line 1: want id label[,label...]'),
    (_LBL, ['0 /m/1'], 'train.lbl: want 3 lines, one per row, got 1'),
    (
      _LBL,
      ['0 /m/1', '1 /m/0,/m/7'],
      "train.lbl line 2: want a label of label_descriptors.csv, got '/m/7'",
    ),
    (_DESCRIPTORS, [], 'train.lbl line 1: want a label of label_desc'),
    (_DESCRIPTORS, ['index,mid'], 'descriptors.csv line 1: want index,label'),
    (_DESCRIPTORS, ['0,a', '1'], 'descriptors.csv line 2: want index,label'),
    (_DESCRIPTORS, ['0,a', '1,a'], 'descriptors.csv line 2: want index,label'),
    (_DESCRIPTORS, ['0,a', '2,b'], 'want indices 0, 1, 2, ..., got [0, 2]'),
  ],
)
def test_manifest_errors_name_file_and_line(tmp_path, name, lines, message):
  lists = _corpus(tmp_path)
  _write_text(lists / name, *lines)
  got = _error(len, sources.Manifest(path=str(lists)))
  assert got.startswith(str(lists)) and message in got


def test_manifest_that_is_missing_is_named(tmp_path):
  message = _error(len, sources.Manifest(path=str(tmp_path), split='eval'))
  assert message.startswith(f'{tmp_path}/eval.tsv: want a table')


def test_csv_reads_paths_and_labels(tmp_path):
  for name in ('x, y.wav', 'd/ä.flac'):
    _write(tmp_path / name)
  elsewhere = _write(tmp_path / 'far.wav')
  path = tmp_path / 'labels.csv'
  rows = ['path,no,label', '"x, y.wav",1,dog; cat;dog', 'd/ä.flac,2,', '',
          f'{elsewhere},3,bird']  # fmt: skip
  path.write_text('\ufeff' + '\r\n'.join(rows), encoding='utf-8')
  table = sources.Csv(path=str(path))
  assert [(clip.id, clip.labels) for clip in table] == [
    (f'{tmp_path}/x, y.wav', ('dog', 'cat')),
    (f'{tmp_path}/d/ä.flac', ()),
    (elsewhere, ('bird',)),
  ]
  assert table.classes == ('bird', 'cat', 'dog')


def test_csv_reads_the_given_columns(tmp_path):
  _write(tmp_path / 'audio/x.wav')
  path = _write_text(tmp_path / 'l.csv', 'file,class', 'x.wav,a;b/c')
  root = str(tmp_path / 'audio')
  table = sources.Csv(
    path=path, path_column='file', label_column='class', label_separator='/',
    root=root,
  )  # fmt: skip
  assert table[0].labels == ('a;b', 'c')
  table = dataclasses.replace(table, label_column=None)
  assert table[0].labels == () and table.classes == ()
  assert table[0].id == f'{root}/x.wav'


@pytest.mark.parametrize(
  'lines, message',
  [
    ([], ": want a column 'path', got []"),
    (['path,label'], ': want rows below the header'),
    (['a,label'], " line 1: want a column 'path', got ['a', 'label']"),
    (['path,a'], " line 1: want a column 'label', got ['path', 'a']"),
    (['path,label', 'a.wav,x', ' ,x'], " line 3: want a path as 'path'"),
    (['path,label', 'a,b.wav,x'], " line 2: want 2 cells, got ['a',"),
    (['path,label', 'a.wav'], " line 2: want 2 cells, got ['a.wav']"),
  ],
)
def test_csv_errors_name_file_and_line(tmp_path, lines, message):
  path = _write_text(tmp_path / 'l.csv', *lines)
  assert _error(len, sources.Csv(path=path)).startswith(path + message)


def test_csv_errors_name_missing_files(tmp_path):
  path = str(tmp_path / 'l.csv')
  assert _error(len, sources.Csv(path=path)).startswith(f'{path}: want a table')
  _write_text(tmp_path / 'l.csv', 'path,label', 'x.wav,')
  message = _error(len, sources.Csv(path=path, root=f'{tmp_path}/none'))
  assert message == (f"root: {tmp_path}/none: want a folder, "
                     f"got nothing: it does not exist")
  table = sources.Csv(path=path)
  with pytest.raises(clips.BadClip, match='x.wav.*no such file') as caught:
    table[0]
  assert caught.value.clip_id == f'{tmp_path}/x.wav'


def test_names_in_another_encoding_can_be_listed_and_read(tmp_path):
  name = os.fsdecode(b'gr\xfcn.wav')
  os.rename(_write(tmp_path / 'a.wav'), tmp_path / name)
  (tmp_path / 'l.csv').write_bytes(b'path\ngr\xfcn.wav\n')
  for source in (
    sources.Folder(paths=(str(tmp_path),)),
    sources.Csv(path=str(tmp_path / 'l.csv'), label_column=None),
  ):
    assert len(source[0].read(0, 800)) == 800


def _each(root: pathlib.Path):
  lists = _corpus(root)
  table = _write_text(root / 'l.csv', 'path,label', 'audio/x.wav,dog')
  return (
    sources.Folder(paths=(str(root / 'audio'),)),
    sources.Manifest(path=str(lists)),
    sources.Csv(path=table),
  )


def test_pickled_copy_does_not_read_the_disk(tmp_path):
  each = _each(tmp_path)
  want = [(len(source), source.classes, source[0].id) for source in each]
  pickled = pickle.dumps(each)
  shutil.rmtree(tmp_path)
  copies = pickle.loads(pickled)
  assert copies == each
  for copy, (length, classes, clip_id) in zip(copies, want):
    assert (len(copy), copy.classes) == (length, classes)
    with pytest.raises(clips.BadClip) as caught:
      copy[0]
    assert caught.value.clip_id == clip_id


def test_clip_can_be_pickled(tmp_path):
  for source in _each(tmp_path):
    clip = source[0]
    copy = pickle.loads(pickle.dumps(clip))
    np.testing.assert_array_equal(copy.read(10, 50), clip.read(10, 50))


def test_index_out_of_range_is_an_error(tmp_path):
  for source in _each(tmp_path):
    assert source[np.int64(0)].id
    for index in (-1, len(source)):
      with pytest.raises(IndexError, match=f'want 0 to .* got {index}'):
        source[index]
    assert len(list(source)) == len(source)


def test_source_is_a_configuration(tmp_path):
  for source in _each(tmp_path / 'none'):
    shutil.rmtree(tmp_path / 'none')
    copy = config.checked(source)  # Reads no disk.
    assert copy == source and copy is not source
    assert config.from_json(config.to_json(source)) == source
    (tmp_path / 'none').mkdir()
  each = _each(tmp_path)
  for source in each:
    assert len(source) and config.checked(source) == source


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: sources.Folder(paths=()), 'paths: want'),
    (lambda: sources.Folder(paths=('',)), 'paths: want'),
    (lambda: sources.Folder(paths=('a',), extensions=()), 'extensions: want'),
    (lambda: sources.Folder(paths=('a',), extensions=('wav',)), "got ('wav',)"),
    (lambda: sources.Manifest(path=''), 'path: want'),
    (lambda: sources.Manifest(path='a', split=''), 'split: want'),
    (lambda: sources.Manifest(path='a', min_samples=-1), 'min_samples: want'),
    (lambda: sources.Csv(path=''), 'path: want'),
    (lambda: sources.Csv(path='a', label_separator=''), 'label_separator: '),
  ],
)
def test_impossible_settings_are_refused(make, message):
  assert message in _error(make)
