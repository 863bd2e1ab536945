"""The study: its runs, how it goes on, and the numbers of its page."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from configs.study import design
from sslam_jax import checkpoint
from sslam_jax import config as config_lib
from sslam_jax import evaluate
from sslam_jax import report
from sslam_jax import run_folder
from tests import tiny
from tests.test_sweep import stop_once_begun
from tools import study
from tools import sweep
from tools.studying import comparing
from tools.studying import drawing
from tools.studying import page
from tools.sweeping import points as points_lib
from tools.sweeping import standing

_RECORDINGS = ['data=../shared/data']
_TASKS = ['polyphonic', 'animals', 'digits']
# Three differences of mean 0.2 and deviation 0.1: t(0.975, 2) = 4.302653.
_SPREAD = 4.302653 * 0.1 / 3 ** 0.5  # 0.2484


def points_of(words, part):
  spec = study.parts('W', words)[part]
  return points_lib.load(spec, pathlib.Path('W', part))


def test_parts_are_one_stage_1_its_arms_and_their_fine_tuning():
  assert [*study.parts('W', _RECORDINGS)] == [
      'stage1', 'arms', 'arms-short', *(f'finetune-{x}' for x in _TASKS)]
  assert [*study.parts('W', ['soundscapes'])] == [
      'stage1', 'arms', 'arms-short', 'finetune-polyphonic']
  first, *random = points_of([*_RECORDINGS, 'seeds=3'], 'stage1')
  assert (first.name, first.config.steps, first.config.seed) == (
      'stage1', 8000, 1)
  assert [(x.label, x.seed) for x in random] == [
      ('random', 1), ('random', 2), ('random', 3)]
  # Not even the smallest weight of an encoder is moved by such a rate.
  rate = random[0].config.optim.peak_lr
  assert np.float32(1e-20) + np.float32(rate) == np.float32(1e-20)
  arms = points_of(_RECORDINGS, 'arms')
  assert [x.seed for x in arms] == [y for x in range(1, 6) for y in [x] * 4]
  for point in arms:
    assert point.config.init_from == first.config.workdir
    for name in ('source', 'mel', 'short'):
      assert getattr(point.config.data, name) == getattr(
          first.config.data, name)
    assert point.config.evals == first.config.evals
  for task in _TASKS:
    tuned = points_of(_RECORDINGS, f'finetune-{task}')
    starts = {(x.label, x.seed): x.config.init_from for x in tuned}
    assert len(tuned) == 6 * 5 == len(starts)
    for point in arms:  # each with its own seed
      assert starts[point.label, point.seed] == point.config.workdir
    assert starts['stage1', 4] == first.config.workdir
    assert starts['random', 4] is None
    assert all(x.config.objective.vit == first.config.objective.vit
               for x in tuned)


def test_arms_are_a_quarter_of_stage_1_and_once_more_half_of_that():
  usual, short = (points_of(_RECORDINGS, x) for x in ('arms', 'arms-short'))
  for points, steps in ((usual, 2000), (short, 1000)):
    for config in (point.config for point in points):
      assert config.steps == steps
      assert config.optim.warmup_steps == steps // 10
      assert config.objective.ema.anneal_steps == steps // 2
  assert [(x.name, x.config.init_from) for x in short] == [
      (x.name, x.config.init_from) for x in usual]


def test_clips_are_single_sounds_and_mixtures_are_tested():
  config = config_lib.load('configs/study/stage1.py')
  assert config.data.short == 'repeat'
  assert [path.split('/')[-2] for path in config.data.source.paths] == [
      'animals', 'digits', 'oneshots']
  heard = {x.name: (x.length_s, x.features, x.groups and x.groups[-13:])
           for x in config.evals}
  both = 'rows,rows+rows_std'
  assert heard['polyphonic'] == heard['mixtures'] == (5.12, both, None)
  assert heard['animals'] == (5.12, both, 'session_group')
  assert heard['digits'][0] == 1.28
  assert len(heard) == 4
  mixtures, = (x for x in config.evals if x.name == 'mixtures')
  for source, part in ((mixtures.train, 'train'), (mixtures.test, 'test')):
    assert [path.split('/')[-2:] for path in source.source.paths] == [
        [name, part] for name in ('animals', 'digits', 'oneshots')]
    assert len(source) == 2000
  assert mixtures.train.seed != mixtures.test.seed
  scenes = config_lib.load('configs/study/stage1.py:soundscapes')
  probe, = scenes.evals
  assert {len(scenes.data.source.labels(i)) for i in range(50)} == {1}
  for source in (probe.train, probe.test):
    assert len(source) == 1000
    assert {len(source.labels(i)) for i in range(50)} == {1, 2, 3, 4}
  assert len({scenes.data.source.seed, probe.train.seed, probe.test.seed}) == 3
  tuned = config_lib.load('configs/study/finetune.py:task=polyphonic,'
                          'soundscapes')
  assert (tuned.data.source, tuned.evals[0].source) == (probe.train, probe.test)
  assert tuned.evals[0].by_sources
  assert tuned.objective.head.pooling == 'linear_softmax'


def test_quick_is_a_hundredth():
  quick, full = (config_lib.load(f'configs/study/finetune.py:task=digits{x}')
                 for x in (',quick', ''))
  assert (quick.steps, full.steps) == (15, 1500)
  assert (quick.optim.warmup_steps, full.optim.warmup_steps) == (1, 150)
  assert quick.evals[0].source.source == full.evals[0].source
  assert len(points_of([*_RECORDINGS, 'quick'], 'arms')) == 4 * 2


@pytest.mark.parametrize(('words', 'message'), [
    (['--data=nowhere'],
     '--data=nowhere: want the recordings of docs/study.md, or --soundscapes; '
     'got no animals/train'),
    (['--soundscapes', '--only=arms,finetune-digits'],
     '--only: want some of stage1, arms, arms-short, finetune-polyphonic; got '
     'finetune-digits'),
    (['--soundscapes', '--seeds=0', '--only=arms'],
     'arms: seeds: want at least 1, got 0'),
    (['--page=there'], 'W: want the folder of a study, got none'),
])
def test_wrong_command_is_refused(
    tmp_path, monkeypatch, capsys, words, message
):
  monkeypatch.chdir(tmp_path)
  assert study.main(['--workdir=W', *words]) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1


@pytest.mark.parametrize(('spec', 'message'), [
    ('finetune.py', 'task: want task=NAME, of polyphonic, animals, digits; '
                    'got None'),
    ('finetune.py:soundscapes,task=digits', 'of polyphonic; got digits'),
    ('arms.py:soundscapes,data=x', 'want data=DIR or soundscapes, got both'),
    ('stage1.py:seed=2', "'seed=2': want perhaps seeds=..."),
])
def test_wrong_words_are_refused(spec, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    config_lib.load(f'configs/study/{spec}')


_TOY = """
from configs.study import design
from tests import tiny, trouble
from sslam_jax import soundscapes


def get_config(arg=''):
  words = dict(design.parse(arg, 'from'))
  return tiny.stage1('unused', steps=12, init_from=words.get('from'))


def sweep(arg=''):
  scenes = soundscapes.Soundscapes(clips=12, length_s=1.5)
  slow = trouble.Trouble(source=scenes, slow_s=0.02, slow_process=0)
  yield {POINT, 'data.source': slow}
"""


def test_a_study_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
  """A toy of it: two runs, of which the second starts from the first."""
  monkeypatch.setattr(study, '_CONFIGS', tmp_path)
  for file, point in (('stage1', "'name': 'stage1'"),
                      ('arms', "'name': 'sslam', 'seed': 1")):
    (tmp_path / f'{file}.py').write_text(_TOY.replace('POINT', point))
  workdir = tmp_path / 'study'
  command = [f'--workdir={workdir}', '--soundscapes']
  first = workdir / 'stage1' / 'points' / 'stage1'
  last = workdir / 'arms' / 'points' / 'sslam,seed=1'

  assert study.main([*command, '--only=arms']) == 1
  said = capsys.readouterr().out
  assert (f'arms: sslam,seed=1: left out: {first}: want a run folder, got '
          f'nothing') in said
  assert not (workdir / 'arms').exists()

  thread = stop_once_begun(first)
  assert study.main([*command, '--only=stage1,arms']) == 3
  thread.join()
  assert checkpoint.latest_step(first) < 12
  assert '\narms' not in capsys.readouterr().out
  assert study.main([*command, '--only=arms']) == 1
  assert re.search(r'left out: .*: want a finished run, got step \d+ of 12',
                   capsys.readouterr().out)

  spec = study.parts(str(workdir), ['soundscapes'])['stage1']
  assert sweep.main([f'--config={spec}', f'--workdir={workdir / "stage1"}',
                     '--point=stage1']) == 0
  before = (first / report.METRICS).stat().st_mtime_ns
  assert study.main([*command, '--only=stage1,arms']) == 0
  assert (first / report.METRICS).stat().st_mtime_ns == before
  assert checkpoint.latest_step(last) == 12
  text = (workdir / 'page' / page.RESULTS).read_text()
  assert 'All 2 runs are done.' in text
  assert '| 12 of 8 clips x 2 masks | 12 of 8 clips x 2 masks |' in text
  assert text.count('python tools/study.py --workdir=') == 4
  assert (workdir / 'page' / 'arms.png').stat().st_size > 5000

  model = workdir / 'model'
  command = [*command, f'--model={model}', f'--page={workdir / "again"}']
  assert study.main(command) == 0
  assert (workdir / 'again' / page.RESULTS).read_text() == text
  card = (model / 'README.md').read_text()
  assert '- started from: the run stage1\n- updates: 12 of 12\n' in card
  assert study.main(command) == 2
  assert f'--model: want a new or empty folder, got {model}' in (
      capsys.readouterr().err)


def plant(workdir, part, name, seed, scores=None, **changes):
  """A run as it would lie there; without scores it has not ended."""
  folder = workdir / part
  path = folder / 'points' / name
  names = {re.sub(r'(_rows.*)?_(map(_\d)?|accuracy|auc|top1)$', '', key)
           for key in scores or ()}
  source = tiny.stage1('x').data.source
  config = tiny.stage2(path, seed=seed, evals=tuple(
      evaluate.Probe(name=x, train=source, test=source) for x in names
  ), **changes)
  run_folder.write_config(path, config)
  loss = 5.0 if scores is None else 2.0
  rows = [{'step': 3, 'loss': loss, 'clips_per_s': 8.0}]
  if scores is None:
    rows += [{'step': 3, **probed(0.9, 0.9, 0.9)}]  # before its end
  else:
    rows += [{'step': 6, 'loss': 1.0, 'clips_per_s': 16.0},
             {'step': 6, **scores}]
    checkpoint.save_weights(path, 6, {'x': np.zeros(1)}, None)
  (path / report.METRICS).write_text(
      ''.join(json.dumps(row) + '\n' for row in rows))
  record(folder, name, seed)


def record(folder, name, seed):
  path = folder / 'sweep.json'
  points = (json.loads(path.read_text())['points'] if path.exists() else {})
  points[name] = {'seed': seed}
  folder.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps({'config': 'c.py', 'points': points}))


def probed(polyphonic, one, animals):
  return {'polyphonic_rows_map': polyphonic, 'polyphonic_rows_map_1': one,
          'polyphonic_rows_rows_std_map': 0.9, 'animals_rows_accuracy': animals}


@pytest.fixture
def planted(tmp_path):
  """Two arms with three seeds, one with one; a fine-tuning of each."""
  workdir = tmp_path / 'study'
  plant(workdir, 'stage1', 'stage1', 1, probed(0.2, 0.2, 0.7))
  for seed, more in ((1, 0.1), (2, 0.2), (3, 0.3)):
    base = seed / 100
    plant(workdir, 'arms', f'mb_ua,seed={seed}', seed,
          probed(0.3 + base, 0.4 + base, 0.5))
    plant(workdir, 'arms', f'sslam,seed={seed}', seed,
          # Of the second the differences are ten times less apart.
          probed(0.3 + base + more, 0.4 + base + 0.18 + more / 10,
                 0.5 - (seed == 2) / 10))
  plant(workdir, 'arms', 'mb_pma,seed=2', 2, probed(0.3, 0.4, 0.5))
  for label, score in (('mb_ua', 0.25), ('sslam', 0.75), ('my_arm', 0.5)):
    plant(workdir, 'arms-short', f'{label},seed=1', 1,
          {'mixtures_rows_map': 0.5, 'mixtures_rows_map_2': score,
           **({'birds_rows_accuracy': 0.125} if label == 'my_arm' else {})})
  plant(workdir, 'arms', 'mb_pma,seed=3', 3)
  record(workdir / 'arms', 'mb_pma,seed=4', 4)
  for label, scores in (('sslam', (0.5, 0.7, 0.1, 0.4)),
                        ('mb_ua', (0.5, 0.4, 0.2, 0.3))):
    plant(workdir, 'finetune-polyphonic', f'{label},seed=1', 1, {
        'test_map': 0.5, 'test_auc': 0.9, **{
            f'test_map_{count}': value for count, value in enumerate(scores, 1)
        }})
    plant(workdir, 'finetune-digits', f'{label},seed=1', 1,
          {'test_map': 0.1, 'test_top1': scores[1]})
  failed = points_lib.Point(name='random,seed=1', label='random', settings={},
                            config=tiny.stage1('x'))
  record(workdir / 'finetune-digits', 'random,seed=1', 1)
  standing.note_end(workdir / 'finetune-digits', failed, 1, 'loss | nan')
  return workdir


def rows_of(text, start):
  """Cells of the rows that begin so."""
  return [[cell.strip() for cell in line.split('|')[1:-1]]
          for line in text.splitlines() if line.startswith(f'| {start} |')]


def test_page_has_means_paired_differences_and_what_is_missing(
    planted, monkeypatch
):
  panels, drawn = drawing._panels, []
  monkeypatch.setattr(
      drawing, '_panels', lambda count: drawn.append(panels(count)) or drawn[-1]
  )
  assert page.write(planted, planted.parent / 'page') == [
      'results.md', 'arms.png', 'arms-short.png', 'arms-linear.png',
      'arms-short-linear.png', 'finetune.png']
  (losses, *_), _, (linear_axis, *_), (short_axis,), _ = (
      axes for _, axes in drawn)
  (line, _, _), = short_axis.containers
  assert line.get_xydata().tolist() == [[pytest.approx(2, abs=0.2), 0.5]]
  curves = {line.get_label(): line.get_ydata() for line in losses.lines}
  assert list(curves['MB-PMA']) == [2.0, 1.0]  # of the run that is done
  bars = {each.get_label(): each.lines[2][0].get_segments()
          for each in linear_axis.containers}
  assert [len(bar) for bar in bars['MB-PMA']] == [0]  # one seed
  assert [len(bar) for bar in bars['SSLAM']] == [2]
  text = (planted.parent / 'page' / 'results.md').read_text()
  linear, tuned = text.split('## Fine-tuning')
  linear, short = linear.split('### arms-short: features `rows`')
  assert rows_of(short, 'my_arm') == [
      ['my_arm', '1', '', '', '0.5000', '0.5000', '', '0.1250']]
  assert rows_of(short, 'SSLAM')[2][1:4] == [
      'mixtures mAP, 2 sources', '1', '+0.5000']
  rows, rows_std = linear.split('### arms: features `rows+rows_std`')
  mean, = [row for row in rows_of(rows, 'MB-UA')]
  assert mean == ['MB-UA', '3', '0.3200 ± 0.0100', '0.4200 ± 0.0100',
                  '0.5000 ± 0.0000']
  assert rows_of(rows, 'stage 1 alone') == [
      ['stage 1 alone', '1', '0.2000', '0.2000', '0.7000']]
  assert rows_of(rows, 'SSLAM')[1:] == [
      ['SSLAM', 'polyphonic mAP', '3', '+0.2000',
       f'{0.2 - _SPREAD:+.4f} to {0.2 + _SPREAD:+.4f}', '3 of 3', 'no'],
      ['SSLAM', 'polyphonic mAP, 1 source', '3', '+0.2000',
       f'{0.2 - _SPREAD / 10:+.4f} to {0.2 + _SPREAD / 10:+.4f}', '3 of 3',
       'yes'],
      # 0, -0.1, 0: deviation 0.05774
      ['SSLAM', 'animals accuracy', '3', '-0.0333', '-0.1768 to +0.1101',
       '0 of 3', 'no'],
  ]
  # Paired with the same seed, and no interval of one.
  assert rows_of(rows, 'MB-PMA')[1] == [
      'MB-PMA', 'polyphonic mAP', '1', '-0.0200', '', '0 of 1', '']
  assert rows_of(rows_std, 'SSLAM')[0] == ['SSLAM', '3', '0.9000 ± 0.0000']
  assert rows_of(tuned, 'SSLAM')[0] == [
      'SSLAM', '1', '0.5000', '0.5000', '0.7000', '0.1000', '0.4000', '0.4000',
      '0.7000']  # all, 1 to 4, mean of 2 to 4, digits
  assert rows_of(tuned, 'SSLAM')[6][1:4] == [
      'polyphonic mAP, mean of 2 to 4 sources', '1', '+0.1000']
  missing = text.split('## Not done')[1].splitlines()[4:]
  assert [line.split(' | ')[:5] for line in missing] == [
      ['| arms', 'mb_pma,seed=3', 'unfinished', '', '3/6'],
      ['| arms', 'mb_pma,seed=4', 'waiting', '', ''],
      ['| finetune-digits', 'random,seed=1', 'failed', '1', ''],
  ]
  assert 'loss \\| nan' in missing[2]
  model = text.split('## Linear')[0]
  # 6 updates of 8 clips at 16 clips/s are 3 s; those not done do not count.
  assert rows_of(model, 'runs done')[0][1:] == [
      '1 of 1 begun', '7 of 8 begun', '3 of 3 begun']
  assert rows_of(model, 'clips heard')[0][1] == '48 (0.0 hours)'


def test_page_of_a_study_that_has_only_begun(planted):
  for part in ('arms', 'arms-short', 'finetune-polyphonic',
               'finetune-digits'):
    shutil.rmtree(planted / part)
  folder = planted.parent / 'page'
  assert page.write(planted, folder) == ['results.md']
  text = (folder / 'results.md').read_text()
  assert '| random weights |' not in text
  assert text.endswith('Nothing is done yet.\n\n## Not done\n\n'
                       'All 1 runs are done.\n')


def test_difference_is_beyond_0_by_its_interval():
  one = comparing.difference([0.1])
  assert (one.spread, one.is_beyond_0, one.ahead) == (None, None, 1)
  wide = comparing.difference([-0.1, -0.2, -0.3])
  assert wide.spread == pytest.approx(_SPREAD, rel=1e-6)
  assert (wide.is_beyond_0, wide.ahead) == (False, 0)
  assert comparing.difference([-0.19, -0.2, -0.21]).is_beyond_0


def test_arms_are_those_of_table_2():
  assert {point.label for point in points_of(_RECORDINGS, 'arms')} == {
      *design.ARMS}
