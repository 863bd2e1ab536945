"""tools/probe.py as a user runs it."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
import soundfile

from sslam_jax import features
from sslam_jax import pretrained
from sslam_jax import probing
from tests import tiny
from tools import probe
from tools.probing import table

RATE = 16_000


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Two parts of two classes, low and high tones; one clip is damaged."""
  top = tmp_path_factory.mktemp('tones')
  rng = np.random.default_rng(0)
  rows = ['path,tone']
  for part in ('one', 'two'):
    for i in range(12):
      path = top / part / ('low', 'high')[i % 2] / f'{i}.wav'
      path.parent.mkdir(parents=True, exist_ok=True)
      hz = (300, 3000)[i % 2] * rng.uniform(0.8, 1.2)
      wave = np.sin(np.arange(int(0.5 * RATE)) * 2 * np.pi * hz / RATE)
      wave = 0.1 * wave + 0.01 * rng.normal(size=len(wave))
      soundfile.write(path, wave, RATE, subtype='FLOAT')
      rows.append(f'{part}/{path.parent.name}/{i}.wav,{i // 4}')
  (top / 'two' / 'low' / '0.wav').write_bytes(b'')
  (top / 'groups.csv').write_text('\n'.join(rows) + '\n')
  return top


@pytest.fixture(scope='module')
def model():
  config = tiny.stage1('unused')
  shape = config.data.mel.frames, config.data.mel.mel_bins
  params = jax.jit(lambda: config.objective.init(jax.random.key(5), shape, 0))()
  return pretrained.Model(path='r', step=1, config=config, params=params)


@pytest.fixture
def run(model, tmp_path, monkeypatch):

  def load(path, weights):
    assert path == str(tmp_path / 'run') and weights == 'student'
    return model

  monkeypatch.setattr(probe.pretrained, 'load', load)
  (tmp_path / 'run').mkdir()
  return str(tmp_path / 'run')


def _main(folder, run, *args):
  return probe.main([
      run, *args, '--batch=3', f'--cache={folder}/cache', '--resamples=20'])


def test_folds_networks_and_seeds(folder, run, capsys):
  status = _main(folder, run, 'random', 'logmel', '--seeds=2',
                 '--folds', f'folder={folder}/one', f'folder={folder}/two',
                 '--features=mean+std', '--probes=linear,knn')
  printed = capsys.readouterr().out.splitlines()
  assert status == 1
  assert printed[-1].startswith('note: damaged clips, left out: 1 (')
  out = pathlib.Path(run, 'probe')
  damaged = (out / 'damaged.tsv').read_text()
  assert damaged.startswith(f'{folder}/two/low/0.wav\t')
  tree = json.loads((out / 'probe.json').read_text())
  assert (tree['metric'], tree['clips']) == ('accuracy', [12, 12])
  names = [(row['network'], row['probe']) for row in tree['rows']]
  assert names == [(name, head) for name in (run, 'random', 'logmel')
                   for head in ('linear', 'knn')]
  for row in tree['rows']:
    means = np.mean(row['values'], axis=1)  # of the folds of each seed
    assert np.shape(row['values']) == (2, 2)
    assert row['mean'] == pytest.approx(np.mean(means))
    assert row['deviation'] == pytest.approx(np.std(means, ddof=1))
  logmel = tree['rows'][-2]
  assert logmel['mean'] == 1.0 and logmel['interval'] == [1.0, 1.0]
  table = (out / 'table.md').read_text().splitlines()
  assert table == printed[:-1]
  assert '| accuracy | sd over seeds | 95 % interval |' in table[0]
  assert table[-2] == ('| logmel | linear | mean+std | 1.000 | 0.000 | '
                       '1.000-1.000 |')


def test_multi_label_split_with_groups(folder, run, capsys):
  status = _main(folder, run, 'logmel', '--seeds=1', '--multi-label',
                 f'--train=folder={folder}/one',
                 f'--test=folder={folder}/two',
                 '--features=mean', '--probes=linear,attentive',
                 '--groups', f'{folder}/groups.csv:tone')
  captured = capsys.readouterr()
  assert status == 1
  assert 'patch tokens and other features of 24 clips take' in captured.err
  tree = json.loads(pathlib.Path(run, 'probe', 'probe.json').read_text())
  assert tree['metric'] == 'mAP'
  assert [(row['probe'], row['features']) for row in tree['rows']] == [
      ('linear', 'mean'), ('attentive', 'patch'), ('linear', 'mean+std')]
  for row in tree['rows']:
    assert row['by_sources'] == {'1': pytest.approx(row['mean'])}
  assert '| 1 source |' in captured.out.splitlines()[0]


def _part(ids, *labels):
  return features.Features(folder=pathlib.Path(), ids=tuple(ids), labels=labels,
                           classes=(), arrays={}, damaged={})


def test_notes_name_what_a_mean_leaves_out_and_clips_seen_before(tmp_path):
  (tmp_path / 'x.wav').touch()
  (tmp_path / 'y.wav').symlink_to(tmp_path / 'x.wav')
  parts = [_part([f'{tmp_path}/x.wav', 'b'], ('cat',), ('dog', 'owl')),
           _part([f'{tmp_path}/y.wav', 'c'], ('cat',), ('dog', 'cat')),
           _part(['b', 'd'], ('owl',), ('dog',))]

  def notes(splits, is_single=False):
    return list(table.notes(parts, probing.Task(
        sources=[], splits=splits, classes=('cat', 'dog', 'owl'),
        is_single=is_single, group=None)))

  assert notes([([0], 1)]) == [
      'classes without a clip in the test part, in no mAP there: 1 (owl)',
      f'clips both in training and test: 1 ({tmp_path}/y.wav)']
  assert notes([([0], 1)], is_single=True) == [
      f'clips both in training and test: 1 ({tmp_path}/y.wav)']
  assert notes([([1, 2], 0), ([0, 2], 1), ([0, 1], 2)]) == [
      'classes without a clip in a fold, in no mAP there: 2 (owl, and 1 more)',
      f'clips both in training and test: 3 ({tmp_path}/x.wav, and 2 more)']
  assert notes([([1], 2)])[1:] == []


def test_deviation_is_over_seeds_and_of_one_seed_over_folds():
  folds = [[0.1, 0.9], [0.3, 0.9], [0.5, 0.9]]
  assert table.deviation(folds) == pytest.approx(0.1)
  assert table.deviation(folds[:1]) == pytest.approx(np.std(folds[0], ddof=1))
  assert table.deviation([[0.4]]) is None
  row = table.Row(network='r', probe='knn', features='mean', values=folds,
                  mean=0.6, deviation=0.1, interval=None, by_sources={},
                  strengths=[])
  assert 'sd over seeds' in next(table.lines([row], False))
  one = dataclasses.replace(row, values=folds[:1])
  assert 'sd over folds' in next(table.lines([one], False))


@pytest.mark.parametrize('words, message', [
    (['--train=soundscapes'], 'data: want --train and --test, or --folds'),
    (['--folds', 'soundscapes'], '--folds: want at least 2, got 1'),
    (['--folds', 'a', 'b', '--probes=svm'], "--probes: want some of linear"),
    (['--folds', 'a', 'b', '--features=patch'], 'features: want class, '),
    (['--folds', 'a', 'b', '--seconds=0'], '--seconds: want a length'),
    (['--folds', 'a', 'b', '--seeds=0'], '--seeds: want at least 1, got 0'),
    (['--folds', 'folder=no', 'folder=no'], 'no: want a folder'),
    (['--folds', 'soundscapes=2', 'soundscapes=2', '--groups=x'],
     'groups: want FILE.csv:COLUMN'),
])
def test_mistakes_are_one_line(folder, run, capsys, words, message):
  assert _main(folder, run, *words) == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and lines[0].startswith(f'error: {message}')


def test_groups_must_hold_every_clip(folder, run, tmp_path, capsys):
  table = tmp_path / 'groups.csv'
  table.write_text('path,tone\nx.wav,1\n')
  words = [f'--train=folder={folder}/one', f'--test=folder={folder}/one',
           '--features=mean', '--seeds=1']
  assert _main(folder, run, *words, f'--groups={table}:tone') == 2
  assert 'got no row for 12 of 12' in capsys.readouterr().err
  assert _main(folder, run, *words, f'--groups={table}:session') == 2
  assert "want a column 'session'" in capsys.readouterr().err
  assert probe.main(['random', *words]) == 2
  assert 'RUN: want at least one run folder' in capsys.readouterr().err
