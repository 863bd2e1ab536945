"""The command line of inference, as a user runs it."""

import csv
import functools
import pathlib
import runpy
import sys

import jax
import numpy as np
from pyarrow import parquet
import pytest
import soundfile

import sslam_jax
from sslam_jax import infer
from sslam_jax import inference
from sslam_jax import output
from sslam_jax import timeline
from sslam_jax import train
from tests import tiny

_ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A classifier's run folder, in which all classes differ."""
  config = tiny.classify(tmp_path_factory.mktemp('run'))
  state = train.create_state(config, train.make_mesh(config))
  rng = np.random.default_rng(0)
  noisy = jax.tree.map(
      lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(x.dtype),
      state.params,
  )
  tiny.save(config, state.replace(params=noisy), 3)
  return config.workdir


@pytest.fixture(scope='module', autouse=True)
def compiled_once():
  """A model is loaded, and compiled, once for all tests."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(inference, 'load', functools.cache(inference.load))
    yield


@pytest.fixture
def data(tmp_path):
  """Two folders with files of the same names, one of them damaged."""
  rng = np.random.default_rng(1)
  for name, seconds in (('a/x.wav', 0.5), ('a/sub/y.flac', 2.0),
                        ('b/x.wav', 1.0), ('b/x.flac', 0.9)):
    path = tmp_path / 'data' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * rng.normal(size=int(seconds * 16_000)), 16_000)
  (tmp_path / 'data' / 'b' / 'bad.wav').write_bytes(b'no audio')
  return tmp_path / 'data'


def features(data, run, out, *words):
  paths = [str(data / name) for name in 'ab']
  return infer.main(['features', *paths, '--run', run, '--out', str(out),
                     *words])


def test_features_mirror_the_folders_and_continue(data, run, tmp_path, capsys):
  out = tmp_path / 'out'
  assert features(data, run, out, '--granularity', 'frame') == 1
  names = ('a/x.wav', 'a/sub/y.flac', 'b/x.wav', 'b/x.flac')
  files = sorted(str(path.relative_to(out)) for path in out.rglob('*.*'))
  assert files == sorted([*(f'{name}.npy' for name in names),
                          'features.json', 'failed.tsv'])
  model = sslam_jax.load(run)
  for name in names:
    np.testing.assert_array_equal(
        np.load(out / f'{name}.npy'), model.embed_file(data / name, 'frame'))
  reason = '8 bytes: Format not recognised.'
  assert (out / 'failed.tsv').read_text() == f'{data}/b/bad.wav\t{reason}\n'
  assert f'1 files could not be read:\n  {data}/b/bad.wav' in (
      capsys.readouterr().err)

  (data / 'b' / 'bad.wav').unlink()
  (out / 'b' / 'x.wav.npy').unlink()
  np.save(out / 'a' / 'x.wav.npy', 'kept')
  assert features(data, run, out, '--granularity', 'frame') == 0
  printed = capsys.readouterr()
  assert '3 of 4 files are done already' in printed.out
  assert '1 files in' in printed.err
  assert (out / 'b' / 'x.wav.npy').exists()
  assert not (out / 'failed.tsv').exists()
  assert np.load(out / 'a' / 'x.wav.npy') == 'kept'

  assert features(data, run, out, '--granularity', 'patch') == 2
  assert "granularity was 'frame', now 'patch'" in capsys.readouterr().err
  assert features(data, run, out, '--granularity', 'frame', '--overwrite') == 0
  assert np.load(out / 'a' / 'x.wav.npy').shape == (3, 32)


def test_ctrl_c_keeps_what_was_done(data, run, tmp_path, monkeypatch, capsys):
  out, write, calls = tmp_path / 'out', output.Tables.write, []

  def interrupted(self, name, arrays):
    calls.append(name)
    if len(calls) == 3:
      raise KeyboardInterrupt
    write(self, name, arrays)

  monkeypatch.setattr(output.Tables, 'write', interrupted)
  assert features(data, run, out, '--format', 'parquet') == 130
  assert 'stopped' in capsys.readouterr().err
  assert features(data, run, out, '--format', 'parquet') == 1
  assert '2 of 5 files are done already' in capsys.readouterr().out
  table = parquet.read_table([str(x) for x in sorted(out.glob('part-*'))])
  names = table['path'].to_pylist()
  assert sorted(names) == ['a/sub/y.flac', 'a/x.wav', 'b/x.flac', 'b/x.wav']
  model = sslam_jax.load(run)
  for name, vector in zip(names, table['feature'].to_numpy()):
    np.testing.assert_allclose(vector, model.embed_file(data / name),
                               atol=1e-6)


def test_tags_are_printed_and_written(data, run, tmp_path, capsys):
  out = tmp_path / 'out'
  words = ['tag', str(data / 'a'), '--run', run, '--top', '2']
  assert infer.main([*words, '--out', str(out)]) == 0
  lines = capsys.readouterr().out.splitlines()
  (label, score), _ = sslam_jax.load(run).tag_file(data / 'a' / 'x.wav', 2)
  place = lines.index(f'{data}/a/x.wav')
  assert lines[place + 1].split() == [f'{score:.3f}', label]
  assert len(lines) == 6
  rows = list(csv.reader((out / 'tags.csv').open()))
  assert rows[0] == ['path', 'label', 'score'] and len(rows) == 5
  assert [f'{data}/a/x.wav', label, f'{score:.4f}'] in rows


def test_tags_go_on_where_they_were_stopped(
    data, run, tmp_path, monkeypatch, capsys
):
  out, write, calls = tmp_path / 'out', output.Tags.write, []
  words = ['tag', str(data / 'a'), str(data / 'b'), '--run', run, '--top', '2']

  def interrupted(self, path, tags):
    calls.append(path)
    if len(calls) == 2:
      raise KeyboardInterrupt
    write(self, path, tags)

  assert infer.main([*words, '--out', str(tmp_path / 'whole')]) == 1
  whole = sorted((tmp_path / 'whole' / 'tags.csv').read_text().splitlines())
  monkeypatch.setattr(output.Tags, 'write', interrupted)
  words += ['--out', str(out)]
  assert infer.main(words) == 130
  assert (out / 'tags.csv').read_text().count('\n') == 1 + 2
  with (out / 'tags.csv').open('a') as file:
    file.write(f'{data}/b/x.wav,bell')  # as of a full disk
  capsys.readouterr()
  assert infer.main(words) == 1
  assert '1 of 5 files are done already' in capsys.readouterr().out
  assert sorted((out / 'tags.csv').read_text().splitlines()) == whole
  assert infer.main([*words, '--top', '3']) == 2
  assert 'top was 2, now 3' in capsys.readouterr().err
  assert infer.main([*words, '--top', '3', '--overwrite']) == 1
  assert (out / 'tags.csv').read_text().count('\n') == 1 + 3 * 4
  (out / 'tags.json').unlink()
  assert infer.main(words) == 2
  assert 'tags.csv: want it with tags.json' in capsys.readouterr().err


def test_timelines_are_a_table_and_pictures(data, run, tmp_path, monkeypatch):
  monkeypatch.setattr(timeline, '_PAGE_S', 1.5)
  out, path = tmp_path / 'out', data / 'a' / 'sub' / 'y.flac'
  words = ['tag', str(path), '--run', run, '--out', str(out)]
  assert infer.main([*words, '--every', '0.5', '--top', '3']) == 0
  want = sslam_jax.load(run).timeline_file(path)
  rows = list(csv.DictReader((out / 'y.flac.csv').open()))
  assert len(rows) == 4 * 3
  for step, score_C in enumerate(want.score_KxC):
    row = rows[3 * step]
    assert (float(row['start_s']), float(row['end_s'])) == (
        want.start_s[step], want.end_s[step])
    assert row['label'] == want.classes[score_C.argmax()]
    assert row['score'] == f'{score_C.max():.4f}'
  assert sorted(x.name for x in out.iterdir()) == [
      'tags.csv', 'tags.json', 'y.flac-000min.png', 'y.flac.csv']

  above = float(np.median(want.score_KxC))
  assert infer.main([*words, '--every', '0.5', '--threshold', str(above),
                     '--overwrite']) == 0
  rows = list(csv.DictReader((out / 'y.flac.csv').open()))
  assert len(rows) == (want.score_KxC >= above).sum()


@pytest.mark.parametrize(('words', 'message'), [
    (['features', 'nowhere'], 'nowhere: want a file or folder'),
    (['features', 'EMPTY'], 'want .wav, .flac, .ogg, .mp3 files'),
    (['features', 'FILE', '--batch', '0'], 'batch: want at least 1'),
    (['tag', 'FILE', '--every', '1'], 'every: want --out too'),
    (['tag', 'FILE', '--top', '0'], '--top: want at least 1'),
    (['tag', 'FILE', '--threshold', '0.5'], 'threshold: want it with --every'),
])
def test_what_cannot_start_says_why(
    data, run, tmp_path, capsys, words, message
):
  (tmp_path / 'empty').mkdir()
  places = {'EMPTY': str(tmp_path / 'empty'), 'FILE': f'{data}/a/x.wav'}
  words = [places.get(word, word) for word in words] + ['--run', run]
  if words[0] == 'features':
    words += ['--out', str(tmp_path / 'out')]
  assert infer.main(words) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()


def test_a_wrong_run_folder_is_named(data, capsys):
  words = ['tag', f'{data}/a/x.wav', '--run', str(data)]
  assert infer.main(words) == 2
  assert 'want a run folder' in capsys.readouterr().err


def test_the_example_runs(data, run, capsys, monkeypatch):
  path = str(data / 'a' / 'sub' / 'y.flac')
  script = str(_ROOT / 'examples' / 'embed_and_tag.py')
  monkeypatch.setattr(sys, 'argv', [script, run, path])
  runpy.run_path(script, run_name='__main__')
  printed = capsys.readouterr().out
  assert 'clip embedding: (32,)' in printed
  assert 'one vector every 0.16 s: (13, 32)' in printed
  assert '  1.5 s: ' in printed
