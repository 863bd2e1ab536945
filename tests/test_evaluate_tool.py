"""tools/evaluate.py: what it writes of scores whose truth is known."""

import csv
import json
import pathlib
import re
import shutil
import types

import jax
from matplotlib import image
import numpy as np
import pytest
import soundfile

from sslam_jax import catalogue
from sslam_jax import classify
from sslam_jax import clips
from sslam_jax import metrics
from sslam_jax import pretrained
from sslam_jax import views
from tests import tiny
from tools import evaluate
from tools.evaluation import folder
from tools.evaluation import mistakes
from tools.evaluation import pictures
from tools.evaluation import tables

CLASSES = 'bell', 'cat', 'dog'
TONES_HZ = {'bell': 500, 'cat': 1500, 'dog': 4000}
_RATE_HZ = 16_000


def scored(score_NxC, label_NxC, classes=CLASSES):
  return metrics.Scored(
      ids=tuple(f'/data/{i}.wav' for i in range(len(score_NxC))),
      classes=classes,
      score_NxC=np.asarray(score_NxC, np.float32),
      label_NxC=np.asarray(label_NxC, bool),
  )


@pytest.fixture
def data(tmp_path):
  """Two clips of each class, of a tone of its own; one more is damaged."""
  time_S = np.arange(_RATE_HZ) / _RATE_HZ
  for name, rate_hz in TONES_HZ.items():
    for number in '12':
      path = tmp_path / 'data' / name / f'{number}.wav'
      path.parent.mkdir(parents=True, exist_ok=True)
      wave_S = 0.3 * np.sin(2 * np.pi * rate_hz * time_S)
      soundfile.write(path, wave_S, _RATE_HZ)
  (tmp_path / 'data' / 'bell' / '0.wav').write_bytes(b'no audio')
  return f'folder={tmp_path}/data'


class _Scorer:
  """Knows bells, and takes cats and dogs for each other."""

  def __init__(self, objective, data, *, batch, mesh):
    assert data.mel.frames == 500
    _Scorer.made = batch, mesh.size

  def __call__(self, params, source):
    assert params == 'the parameters'
    scores = {'bell': (0.9, 0.1, 0.1, 0.1), 'cat': (0.1, 0.2, 0.8, 0.1),
              'dog': (0.2, 0.6, 0.1, 0.1), 'data': (0.1, 0.9, 0.1, 0.9)}
    found, bad = [], []
    for index in range(len(source)):
      try:
        found.append(source[index])
      except clips.BadClip as error:
        bad.append(error)
    rows = [scores[pathlib.Path(clip.id).parent.name] for clip in found]
    label = [[name in clip.labels for name in (*CLASSES, 'owl')]
             for clip in found]
    return metrics.Scored(
        tuple(clip.id for clip in found), (*CLASSES, 'owl'),
        np.array(rows, np.float32), np.array(label)), bad


@pytest.fixture
def run(tmp_path, monkeypatch):
  """A folder, and the model that is said to be in it, which `_Scorer` is."""
  model = types.SimpleNamespace(
      classes=(*CLASSES, 'owl'), step=7, params='the parameters',
      config=types.SimpleNamespace(data=types.SimpleNamespace(
          mel=types.SimpleNamespace(frames=500))),
      classifier=types.SimpleNamespace(is_single=False))
  monkeypatch.setattr(evaluate.pretrained, 'load', lambda path: model)
  monkeypatch.setattr(evaluate.evaluate, 'Scorer', _Scorer)
  (tmp_path / 'run').mkdir()
  return str(tmp_path / 'run'), model


def test_a_model_scores_the_clips(data, tmp_path, monkeypatch):
  config = tiny.stage1(tmp_path)
  config.objective = classify.Classify(
      vit=config.objective.vit, loss_kind='ce')
  config.data.views = views.Labelled(classes=CLASSES)
  shape = config.data.mel.frames, config.data.mel.mel_bins
  params = jax.jit(
      lambda: config.objective.init(jax.random.key(0), shape, 3))()
  params['head'] = jax.tree.map(
      lambda x: jax.random.normal(jax.random.key(1), x.shape), params['head'])
  model = pretrained.Model(
      path='somewhere', step=3, config=config, params=params)
  monkeypatch.setattr(evaluate.pretrained, 'load', lambda path: model)
  out = tmp_path / 'out'
  assert evaluate.main(['somewhere', '--data', data, f'--out={out}',
                        '--resamples=0', '--worst=0', '--batch=2']) == 1
  arrays = np.load(out / 'scores.npz')
  assert arrays['scores'].shape == (6, 3)
  assert arrays['labels'].tolist() == np.eye(3)[[0, 0, 1, 1, 2, 2]].tolist()
  # Both clips of a class are the same tone; other tones score otherwise.
  assert arrays['scores'][::2] == pytest.approx(
      arrays['scores'][1::2], rel=1e-5)
  assert np.ptp(arrays['scores'], axis=0).max() > 1e-4
  assert arrays['scores'].sum(axis=1) == pytest.approx(1)
  tree = json.loads((out / 'scores.json').read_text())
  assert tree['single_label']


def test_a_run_without_classes_is_named(tmp_path, monkeypatch, capsys):
  model = pretrained.Model(
      path='old', step=3, config=tiny.stage1(tmp_path), params={})
  monkeypatch.setattr(evaluate.pretrained, 'load', lambda path: model)
  assert evaluate.main(['old', '--data=soundscapes']) == 2
  assert capsys.readouterr().err.startswith(
      'error: old: want a run that has learned classes')
  monkeypatch.undo()
  assert evaluate.main([str(tmp_path / 'no'), '--data=soundscapes']) == 2
  assert f'{tmp_path}/no: want a run folder' in capsys.readouterr().err


def test_everything_is_written(data, run, tmp_path, capsys, monkeypatch):
  drawn = {}
  monkeypatch.setattr(
      pictures, 'draw_spectrogram',
      lambda path, mel_TxF, lines: drawn.update({path.name: (mel_TxF, lines)}))
  path, model = run
  words = [path, '--data', data, '--resamples=20', '--worst=3', '--batch=6']
  assert evaluate.main(words) == 1  # One clip is damaged.
  assert _Scorer.made == (6, 2)  # on two of the four devices
  out = tmp_path / 'run' / 'evaluation'
  tree = json.loads((out / 'scores.json').read_text())
  # Dogs are above cats; cats are above dogs and bells, which are equal.
  assert tree['overall']['map']['value'] == pytest.approx(
      (1 + 2 / 4 + 2 / 6) / 3)
  assert tree['overall']['top1']['value'] == pytest.approx(2 / 6)
  assert tree['without_positives'] == ['owl']
  assert (tree['run'], tree['data'], tree['step']) == (path, data, 7)
  assert (tree['damaged'], tree['resamples']) == (1, 20)
  assert (out / 'damaged.tsv').read_text() == (
      f'{tmp_path}/data/bell/0.wav\t8 bytes: Format not recognised.\n')
  arrays = np.load(out / 'scores.npz')
  assert arrays['scores'].shape == arrays['labels'].shape == (6, 4)
  assert arrays['ids'][0] == f'{tmp_path}/data/bell/1.wav'
  assert arrays['classes'].tolist() == list(model.classes)
  table = (out / 'table.md').read_text()
  assert '| cat      | dog            | 2     | 2  | 100%' in table
  assert '- classes without a clip, in no mean: 1 (owl)' in table
  assert 'Simultaneous' not in table and not (out / 'polyphony.png').exists()
  assert len((out / 'confusion.md').read_text().splitlines()) == 8
  assert image.imread(out / 'classes.png').shape[2] == 4
  rows = list(csv.DictReader((out / 'worst' / 'worst.tsv').open(),
                             dialect='excel-tab'))
  ends = [row['clip'].removeprefix(f'{tmp_path}/data/') for row in rows]
  assert ends == ['cat/1.wav', 'cat/2.wav', 'dog/1.wav']
  assert rows[2]['margin'] == '0.5000' and rows[2]['labels'] == 'dog'
  # The tone of each clip is seen: its own file was drawn.
  assert list(drawn) == ['001.png', '002.png', '003.png']
  loud = [int(mel.mean(axis=0).argmax()) for mel, _ in drawn.values()]
  assert loud[0] == loud[1] < loud[2] - 20
  assert drawn['003.png'][0].shape == (98, 128)  # of one second
  assert drawn['003.png'][1] == [
      '1.wav', 'labelled: dog', 'scored: cat 0.60, bell 0.20, dog 0.10']
  printed = capsys.readouterr().out
  assert '| mAP            | 0.611 |' in printed
  assert 'note: damaged clips, left out: 1 (damaged.tsv)' in printed
  assert printed.endswith(f'6 clips, 3 classes; all of it: {out}\n')


def test_a_second_evaluation_leaves_nothing_of_the_first(data, run, tmp_path):
  path, model = run
  out = tmp_path / 'out'
  words = [path, '--data', data, f'--out={out}', '--resamples=0']
  assert evaluate.main([*words, '--worst=3']) == 1
  (out / 'mine.txt').write_text('stays')
  (tmp_path / 'data' / 'bell' / '0.wav').unlink()
  shutil.copy(tmp_path / 'data' / 'cat' / '1.wav', tmp_path / 'data')
  model.classifier.is_single = True
  model.classes = 'bell', 'cat', 'owl'
  assert evaluate.main([*words, '--worst=1']) == 0
  names = {str(p.relative_to(out)) for p in out.rglob('*') if p.is_file()}
  assert names == {'mine.txt', 'scores.json', 'scores.npz', 'table.md',
                   'confusion.md', 'classes.png', 'worst/worst.tsv',
                   'worst/001.png'}
  tree = json.loads((out / 'scores.json').read_text())
  assert tree['single_label'] and tree['overall']['map']['low'] is None
  assert tree['unknown_labels'] == ['dog']
  # Not the clip without a label, of which nothing is known.
  assert tree['unlabelled'] == 1
  assert '001\t' + str(tmp_path / 'data' / 'cat' / '1.wav') in (
      out / 'worst' / 'worst.tsv').read_text()


def test_without_matplotlib_there_are_tables(
    data, run, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(evaluate.pictures, 'available', lambda: False)
  assert evaluate.main([run[0], '--data', data, '--resamples=0']) == 1
  assert 'no pictures, which need matplotlib' in capsys.readouterr().out
  assert not list(tmp_path.rglob('*.png'))
  assert list(tmp_path.rglob('worst.tsv')) and list(tmp_path.rglob('table.md'))


@pytest.mark.parametrize('words, classes, match', [
    (['--data', 'nonsense'], CLASSES, "argument 'nonsense': want some of"),
    (['--data', 'folder={data}'], ('owl', 'bat'),
     r'--data: want labels among the classes of the model \(owl, bat\), got '
     'bell, cat, dog$'),
    (['--data', 'folder={data}/bell'], CLASSES,
     '--data: want labelled clips, got no label'),
    (['--data', 'folder={data}', '--batch=0'], CLASSES,
     '--batch: want at least 1, got 0'),
    (['--data', 'folder={data}', '--out={data}/cat/1.wav'], CLASSES,
     'File exists'),
])
def test_wrong_usage_is_one_line(
    words, classes, match, data, run, tmp_path, capsys
):
  path, model = run
  model.classes = classes
  words = [word.format(data=tmp_path / 'data') for word in words]
  assert evaluate.main([path, *words]) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and error.count('\n') == 1
  assert re.search(match, error)


def test_notes_say_what_the_scores_leave_out():
  label = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 1], [0, 0, 0]], bool)
  case = scored(np.zeros((4, 3)), label)
  many = metrics.summary(case, single_label=False, resamples=0)
  assert list(evaluate.notes(many, (), 0)) == [
      'classes without a clip, in no mean: 1 (cat)',
      'clips without any of the classes, negatives of every class: 1',
  ]
  single = metrics.summary(case, single_label=True, resamples=0)
  unknown = [f'x{i}' for i in range(10)]
  assert list(evaluate.notes(single, unknown, 2)) == [
      'labels unknown to the model, not scored: 10 '
      '(x0, x1, x2, x3, x4, x5, x6, x7 and 2 more)',
      'classes without a clip, in no mean: 1 (cat)',
      'classes of every clip, in no mean AUC: 1 (bell)',
      'clips without any of the classes, left out: 1',
      'damaged clips, left out: 2 (damaged.tsv)',
  ]


def test_confusions_are_of_the_highest_score():
  case = scored(
      [[.9, .2, .1], [.1, .9, .2], [.1, .9, .2], [.3, .2, .1], [.2, .8, .1]],
      [[1, 0, 0], [1, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1]])
  assert mistakes.confusions(case) == [
      mistakes.Confusion('bell', 'cat', 2, 3, '/data/1.wav'),
      mistakes.Confusion('dog', 'cat', 1, 2, '/data/1.wav'),
  ]


def test_worst_clips_are_those_of_the_largest_margin():
  case = scored(
      [[.9, .2, .1], [.1, .9, .3], [.5, .1, .1], [.1, .6, .1], [.4, .5, .6]],
      [[1, 0, 0], [1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1]])
  found = mistakes.worst(case, 9, top=2)
  assert [x.row for x in found] == [1, 2, 3, 4, 0]
  assert [x.margin for x in found] == pytest.approx(
      [.9 - .2, .5, .1 - .35, -.5, .2 - .9])
  assert found[0].labels == ('bell', 'dog') and found[1].labels == ()
  assert found[0].top == (
      ('cat', pytest.approx(.9)), ('dog', pytest.approx(.3)))
  assert [x.row for x in mistakes.worst(case, 2)] == [1, 2]


def test_polyphony_has_a_table_and_a_picture(tmp_path, monkeypatch):
  rng = np.random.default_rng(0)
  label = np.zeros((40, 6), bool)
  for row in range(40):
    label[row, rng.choice(6, 1 + row % 4, replace=False)] = True
  case = scored(rng.random((40, 6)) * 0.5 + 0.5 * label, label,
                ('a', 'b', '$', '|', '$c$ d', 'long $e$ ' * 9))
  summary = metrics.summary(case, single_label=False, resamples=20)
  lines = tables.by_sources(summary).splitlines()
  assert len({len(line) for line in lines}) == 1
  assert [line.split()[1] for line in lines[2:]] == ['1', '2', '3', '4+']
  one = summary.by_sources['1']
  assert (f'{one.map.value:.3f} ({one.map.low:.3f} to {one.map.high:.3f}) | '
          f'{one.chance_map:.3f}') in lines[2]
  drawn, save = [], pictures._save
  monkeypatch.setattr(pictures, '_save', lambda figure, path: (
      drawn.append(figure), save(figure, path)))
  folder.write_pictures(tmp_path, summary)
  for figure in drawn:  # a legend hides no data
    frame = figure.legends[0].get_window_extent()
    assert not any(frame.overlaps(axis.bbox) for axis in figure.axes)
  for name in ('classes.png', 'polyphony.png'):
    assert image.imread(tmp_path / name)[..., :3].std() > 0.05


def test_cells_are_escaped_and_classes_sorted_by_ap():
  case = scored([[.9, .1, .2], [.8, .2, .3], [.7, .3, .1]],
                [[1, 0, 0], [0, 1, 0], [0, 0, 1]], ('a|b', 'low', 'last'))
  summary = metrics.summary(case, single_label=True, resamples=0)
  lines = tables.per_class(summary).splitlines()
  assert [line[:7].strip('| ') for line in lines[2:]] == [
      'a\\|b', 'low', 'last']
  assert '| 1     | 0.500 |' in lines[3]
  assert tables.overall(summary).splitlines()[2].startswith('| top-1')


def test_many_classes_are_drawn_from_both_ends(tmp_path):
  rng = np.random.default_rng(0)
  label = rng.random((80, 300)) < 0.1
  names = tuple(f'class {i}' for i in range(300))
  heights = []
  for count in (50, 300):
    case = scored(rng.random((80, count)), label[:, :count], names[:count])
    summary = metrics.summary(case, single_label=False, resamples=0)
    pictures.draw_classes(tmp_path / 'x.png', summary)
    heights.append(len(image.imread(tmp_path / 'x.png')))
  assert heights[1] - heights[0] == pytest.approx(19, abs=1)  # one row


def test_long_and_odd_clips_are_drawn(tmp_path, monkeypatch):
  # Half a minute of forty seconds, at another rate; a clip without a frame.
  (tmp_path / 'a').mkdir()
  time_S = np.arange(40 * 8000) / 8000
  wave_S = np.where(time_S < 35, 0.1 * np.sin(2000 * time_S), 0.5)
  soundfile.write(tmp_path / 'a' / 'lo$ng$.wav', wave_S, 8000)
  soundfile.write(tmp_path / 'a' / 'short.wav', wave_S[:50], 8000)
  source = catalogue.source(f'folder={tmp_path}')
  found = [mistakes.Mistake(row, source[row].id, ('a',), (('b', 1.0),), 1.0)
           for row in (1, 0)]
  shown = []
  draw = pictures.draw_spectrogram
  monkeypatch.setattr(
      pictures, 'draw_spectrogram',
      lambda *args: (shown.append(args), draw(*args)))
  folder.write_worst(tmp_path, found, source, is_drawn=True)
  (_, short_TxF, _), (_, long_TxF, title) = shown
  assert title[0] == 'lo$ng$.wav (first 30 s)'
  assert (len(short_TxF), len(long_TxF)) == (1, 2998)
  assert len(list((tmp_path / 'worst').glob('*.png'))) == 2
  other = mistakes.Mistake(0, 'gone.wav', (), (), 0.0)
  with pytest.raises(ValueError, match='gone.wav: want it still in the data'):
    folder.write_worst(tmp_path, [other], source, is_drawn=True)


def test_odd_names_are_drawn_as_they_are(tmp_path):
  # A broken formula, and what a name that is not UTF-8 becomes.
  names = '$\\frac$', 'a\udcff', 'c'
  summary = metrics.summary(
      scored(np.eye(3), np.eye(3), names), single_label=True, resamples=0)
  pictures.draw_classes(tmp_path / 'x.png', summary)
  pictures.draw_spectrogram(tmp_path / 'y.png', np.zeros((9, 8)), names)
  assert pictures._shortened('$1 ' * 40, 20) == '\\$1 ' * 5 + '\\$1...'
