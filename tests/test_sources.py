"""Tests of the audio file sources; all files are written here."""

import dataclasses
import os
import pathlib
import pickle
import shutil
import tracemalloc

import numpy as np
import pytest
import soundfile

from sslam_jax import config
from sslam_jax import clips
from sslam_jax import sources


def _noise(samples: int, seed: int = 0) -> np.ndarray:
  noise = np.random.default_rng(seed).standard_normal(samples)
  return (0.2 * noise).clip(-1, 1).astype(np.float32)


def _write(path: pathlib.Path, wave=None, rate_hz=16_000, **options) -> str:
  path.parent.mkdir(parents=True, exist_ok=True)
  wave = _noise(800) if wave is None else wave
  soundfile.write(path, wave, rate_hz, **options)
  return str(path)


def _write_text(path: pathlib.Path, *lines: str) -> str:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')
  return str(path)


def _ids(source) -> list[str]:
  return [source[i].id for i in range(len(source))]


def _error(function, *args, **options) -> str:
  with pytest.raises(ValueError) as caught:
    function(*args, **options)
  return str(caught.value)


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


def test_csv_of_one_split(tmp_path):
  table = tmp_path / 'x.csv'
  table.write_text('split,path,label\ntrain,a.wav,owl\ntest,b.wav,dog\n'
                   'train,c.wav,cat\n')
  source = sources.Csv(path=str(table), split='train')
  assert [source.labels(i) for i in range(len(source))] == [('owl',), ('cat',)]
  assert source.classes == ('cat', 'owl')
  with pytest.raises(ValueError, match=r"x.csv: want rows with 'dev' as "
                     r"'split', got \['train', 'test'\]"):
    len(sources.Csv(path=str(table), split='dev'))
  with pytest.raises(ValueError, match="want a column 'part'"):
    len(sources.Csv(path=str(table), split='x', split_column='part'))


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
  assert message.startswith(f'{tmp_path}/eval.tsv: want a manifest, got no')
  assert 'tools/prepare.py, see docs/downstream_data.md' in message


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


def test_absolute_paths_may_stand_among_others(tmp_path):
  """The root is not part of what the paths have in common."""
  lists = _corpus(tmp_path)
  far = _write(tmp_path / 'far/z.wav')
  near = f'{lists}/../audio/x.wav'
  for rows, want in (([far, 'x.wav'], [far, near]), ([far], [far])):
    (lists / 'train.lbl').unlink(missing_ok=True)
    _write_text(lists / 'train.tsv', '../audio', *(f'{r}\t9' for r in rows))
    assert _ids(sources.Manifest(path=str(lists))) == want


def test_millions_of_rows_need_little_memory(tmp_path):
  count = 20_000
  names = (f'audio/Y{i:011d}.wav\t{320_000 - i}' for i in range(count))
  _write_text(tmp_path / 'train.tsv', '.', *names)
  labels = (f'{i} /m/{i % 50},/m/{i % 5}' for i in range(count))
  _write_text(tmp_path / 'train.lbl', *labels)
  tracemalloc.start()
  manifest = sources.Manifest(path=str(tmp_path))
  assert len(manifest) == count
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak / count < 150  # Bytes.
