"""Sweeps: their points, processes, summaries, plots and job files."""

import csv
import io
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import yaml

from sslam_jax import checkpoint
from sslam_jax import evaluate
from sslam_jax import report
from sslam_jax import run_folder
from sslam_jax import soundscapes
from sslam_jax import train
from tests import tiny
from tools import sweep
from tools.sweeping import board
from tools.sweeping import devices
from tools.sweeping import plots
from tools.sweeping import points as points_lib
from tools.sweeping import standing
from tools.sweeping import summary as summary_lib

_ROOT = pathlib.Path(__file__).parent.parent
_CONFIG = """
from sslam_jax import soundscapes, sweeping
from tests import tiny, trouble


def get_config(arg=''):
  return tiny.stage1('unused', steps=12)


def sweep(arg=''):
  scenes = soundscapes.Soundscapes(clips=12, length_s=1.5)
  slow = trouble.Trouble(source=scenes, slow_s=0.04, slow_process=0)
  yield {'name': 'plain'}
  yield {'name': 'slow', 'data.source': slow}
  yield {'name': 'breaks', 'data.mel.std': 1e-38}
  yield {'log_every': 2, 'seed': 7}
"""
_LAST = 'log_every=2,seed=7'

pytestmark = pytest.mark.usefixtures('shared_steps')


def write_sweep(folder, *points):
  """A configuration file of such a sweep; what runs it."""
  path = folder / 'config.py'
  path.write_text(
      'from tests import tiny\n'
      "def get_config(arg=''):\n  return tiny.stage2('unused')\n"
      f"def sweep(arg=''):\n  return {list(points)!r}\n"
  )
  return [f'--config={path}', f'--workdir={folder / "all"}']


def stop_once_begun(folder):
  """SIGTERM to this process when that run has logged a step."""
  lines = folder / 'metrics.jsonl'

  def wait():
    for _ in range(6000):
      if lines.exists() and lines.read_text():
        os.kill(os.getpid(), signal.SIGTERM)
        return
      time.sleep(0.01)

  thread = threading.Thread(target=wait)
  thread.start()
  return thread


def test_sweep_of_four_with_a_failure_and_an_interruption(tmp_path, capsys):
  (tmp_path / 'config.py').write_text(_CONFIG)
  workdir = tmp_path / 'all'
  command = [f'--config={tmp_path}/config.py', f'--workdir={workdir}',
             '--score=loss']
  # In this process, as the tasks of job files do it.
  assert sweep.main([*command, '--point=0']) == 0
  assert sweep.main([*command, f'--point={_LAST}']) == 0
  assert sweep.main([*command, '--point=breaks']) == 1
  assert sweep.main([*command, '--summary']) == 0
  text = (workdir / 'summary.md').read_text()
  assert '4 points, 2 done, 1 failed, 1 waiting' in text
  assert '| slow | waiting |  | 0/12 | never begun |' in text
  before = (workdir / 'points' / 'plain' / 'metrics.jsonl').stat()

  thread = stop_once_begun(workdir / 'points' / 'slow')
  assert sweep.main(command) == 3
  thread.join()
  text = (workdir / 'summary.md').read_text()
  assert '2 done, 1 failed, 1 interrupted' in text
  assert '| slow | interrupted | 3 |' in text
  assert 'SIGTERM after step' in text
  capsys.readouterr()

  assert sweep.main([*command, '--jobs=2', '--sort=loss']) == 1
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith('plain: done, step 12/12: ')
  assert lines[1].startswith('slow: running, step ')
  assert lines[2].startswith('breaks: running')
  assert any(line.startswith('slow: done, step 12/12: ') for line in lines)
  assert any(line.startswith('breaks: failed (status 1), step ')
             and 'loss is ' in line for line in lines)
  assert 'resumes after step' in (workdir / 'logs' / 'slow.log').read_text()
  rows = report.read_metrics(str(workdir / 'points' / 'slow'))
  assert [row['step'] for row in rows] == list(range(1, 13))
  after = (workdir / 'points' / 'plain' / 'metrics.jsonl').stat()
  assert after.st_mtime_ns == before.st_mtime_ns  # was not trained again
  text = (workdir / 'summary.md').read_text()
  assert '4 points, 3 done, 1 failed' in text
  assert '| breaks | failed | 1 |' in text
  assert (workdir / 'plots' / 'loss_by_setting.png').stat().st_size > 5000
  written = list(csv.DictReader(io.StringIO(
      (workdir / 'summary.csv').read_text())))
  assert [row['state'] for row in written] == ['done', 'done', 'failed', 'done']
  assert [row['seed'] for row in written] == ['1', '1', '1', '7']
  losses = [row['loss'] for row in rows]
  assert float(written[1]['loss']) == pytest.approx(sum(losses[2:]) / 10)

  # The same folder, with other settings under a name of before.
  path = tmp_path / 'config.py'
  path.write_text(_CONFIG.replace(
      "2, 'seed': 7", "3, 'seed': 7, 'name': 'log_every=2'"))
  assert sweep.main([*command, '--dry-run']) == 2
  assert (f"point {_LAST}: {workdir} holds it with the settings "
          in capsys.readouterr().err)
  path.write_text(_CONFIG.replace("'seed': 7", "'seed': 7, 'name': 'other'"))
  assert sweep.main([*command, '--dry-run']) == 2
  assert f'holds it under the name {_LAST}' in capsys.readouterr().err
  path.write_text(_CONFIG)
  assert sweep.main([*command, '--dry-run', '--config.steps=5']) == 2
  assert ('point plain: ' in (error := capsys.readouterr().err)
          and 'steps was 12, now 5' in error)


@pytest.mark.parametrize(('points', 'message'), [
    ([{'optim.peak': 1}], 'point peak=1: optim.peak: '),
    ([{'seed': 1}, {'optim.peak_lr': 'high', 'seed': 2}],
     "point peak_lr=high,seed=2: optim.peak_lr: want float, got 'high'"),
    ([{'data.views.mix': None}],
     'point mix=None: data.views.mix: want how to mix'),
    ([{'seed': 1}, {}], 'points seed=1 and base: want different settings'),
    ([{'name': 'a'}, {'name': 'a', 'steps': 7}],
     'point a: want one of each name'),
    ([{'name': 'a', 'seed': 1}, {'name': 'a', 'seed': 2, 'steps': 7}],
     'point a,seed=2: want the settings of a,seed=1 but for the seed'),
    ([{'name': '../a'}], 'point ../a: want a name of at most 150 letters'),
    ([{'name': '12'}], 'point 12: want a name of at most'),
    ([{'workdir': 'x'}], 'point workdir=x: want no workdir'),
    ([], 'want a sweep() of some points, got none'),
    ([3], 'want a sweep() that yields dicts, got 3'),
])
def test_all_points_are_checked_before_anything_runs(
    tmp_path, capsys, points, message
):
  command = write_sweep(tmp_path, *points)
  assert sweep.main(command) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1
  assert not (tmp_path / 'all').exists()


@pytest.mark.parametrize(('words', 'message'), [
    (['--config.optim.peak_lr=1'], '--config.optim.peak_lr: want a field that '
                                   'is not swept'),
    (['--seeds=1,2'], '--seeds: want a sweep without the field seed'),
    (['--point=2'], '--point=2: want 0 to 1 or a name such as peak_lr=0.5'),
    (['--point=peak_lr=0.7'], 'a name such as peak_lr=0.'),
    (['--devices=0,', '--jobs=2'], "--devices: want such as 0,1,2, got '0,'"),
    (['--devices=3', '--jobs=2'], '--jobs: want at most one for each device '
                                  '(3), got 2'),
    (['--write=xpk'], '--image: want the container to run, for xpk'),
])
def test_wrong_command_is_refused(tmp_path, capsys, words, message):
  command = write_sweep(tmp_path, {'optim.peak_lr': 0.5},
                        {'optim.peak_lr': 0.7, 'seed': 4})
  assert sweep.main([*command, *words]) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / 'all').exists()


def test_two_sweeps_in_a_folder_are_refused(tmp_path, capsys):
  command = write_sweep(tmp_path, {})
  workdir = tmp_path / 'all'
  with sweep.run_folder.locked(workdir):
    assert sweep.main(command) == 2
  assert 'want a folder that no other job writes' in capsys.readouterr().err


def test_seeds_and_fields_are_for_all_points(tmp_path, capsys):
  command = write_sweep(tmp_path, {'optim.peak_lr': 0.5}, {})
  assert sweep.main([*command, '--seeds=3,4', '--config.steps=9',
                     '--dry-run']) == 0
  assert capsys.readouterr().out.splitlines() == [
      '0 peak_lr=0.5,seed=3 (waiting): optim.peak_lr=0.5 seed=3',
      '1 peak_lr=0.5,seed=4 (waiting): optim.peak_lr=0.5 seed=4',
      '2 seed=3 (waiting): seed=3', '3 seed=4 (waiting): seed=4',
  ]
  points = points_lib.load(command[0].removeprefix('--config='), tmp_path,
                           ['steps=9'], [3, 4])
  assert {point.config.steps for point in points} == {9}
  assert points[3].config.workdir == f'{tmp_path}/points/seed=4'


def point(label, seed, **settings):
  config = tiny.stage2('unused', seed=seed)
  fields = {name.replace('__', '.'): value for name, value in settings.items()}
  config = points_lib.config_lib.replaced(config, fields)
  return points_lib.Point(name=f'{label},seed={seed}', label=label,
                          settings={**fields, 'seed': seed}, config=config)


def stand(rows, state=standing.DONE, **changes):
  fields = {'state': state, 'step': 9, 'steps': 9, 'clips_per_s': None,
            'left_s': None, 'rows': rows, 'status': None, 'reason': ''}
  return standing.Standing(**{**fields, **changes})


def rows_of(test_map):
  return [{'step': 3, 'test_map': 0.0, 'test_old': 1.0},
          {'step': 9, 'loss': 2.0}, {'step': 9, 'test_map': test_map},
          {'step': 9, 'other_map': 10 * test_map}]


def summary_of(names=None):
  points = [point('lr=1', 1, optim__peak_lr=1), point('lr=1', 2,
                                                     optim__peak_lr=1),
            point('lr=30', 1, optim__peak_lr=30), point('lr=30', 2,
                                                        optim__peak_lr=30)]
  lost = stand([], standing.FAILED, status=-9, reason='gone|away', step=4)
  standings = [stand(rows_of(0.2)), stand(rows_of(0.4)), stand(rows_of(0.5)),
               lost]
  return summary_lib.summarise(points, standings, names)


def test_summary_has_means_and_deviations_over_seeds():
  lines = list(summary_lib.markdown(pathlib.Path('d'), 'c.py', summary_of(),
                                    'test_map'))
  assert lines[5:9] == [
      '| setting | n | test_map | other_map |', '|---|---|---|---|',
      '| lr=30 | 1 | 0.5 | 5 |',
      '| lr=1 | 2 | 0.3 ± 0.14 | 3 ± 1.4 |',  # sqrt(.1^2 + .1^2)
  ]
  assert lines[-1] == '| lr=30,seed=2 | failed | -9 | 4/9 | gone\\|away |'
  rows = list(csv.DictReader(io.StringIO(summary_lib.table(summary_of()))))
  assert rows[0] == {
      'point': 'lr=1,seed=1', 'setting': 'lr=1', 'seed': '1', 'state': 'done',
      'status': '', 'reason': '', 'step': '9', 'optim.peak_lr': '1.0',
      'test_map': '0.2', 'other_map': '2.0', 'loss': '2.0',
  }
  assert rows[3]['test_map'] == '' and rows[3]['reason'] == 'gone|away'
  with pytest.raises(ValueError, match='--sort=acc: want one of test_map'):
    list(summary_lib.markdown(pathlib.Path('d'), '', summary_of(), 'acc'))
  with pytest.raises(ValueError, match='--score=acc: want .*loss, other_map'):
    summary_of(['acc'])
  assert summary_of(['loss']).names == ['loss']


def test_without_evaluations_the_last_ten_losses_count():
  rows = [{'step': step, 'loss': step, 'retention': 1.0, 'lr': 3.0}
          for step in range(1, 13)]
  found = summary_lib.summarise([point('a', 1), point('b', 1)],
                                [stand(rows), stand(rows[:2])])
  assert found.names == ['loss', 'retention']
  assert found.values['a,seed=1']['loss'] == 7.5  # of 3 to 12
  assert found.values['b,seed=1']['loss'] == 1.5
  lines = list(summary_lib.markdown(pathlib.Path('d'), '', found, 'loss'))
  assert 'last 10 logged steps' in lines[4]
  assert [line.split(' ')[1] for line in lines[8:]] == ['b', 'a']  # least first


def test_plots_have_a_line_for_each_setting_of_the_others():
  points = [
      point('peak_lr=1,depth=2', 1, optim__peak_lr=1, objective__vit__depth=2),
      point('peak_lr=1,depth=3', 1, optim__peak_lr=1, objective__vit__depth=3),
      point('peak_lr=30,depth=2', 1, optim__peak_lr=30,
            objective__vit__depth=2),
      point('batch=4', 1, batch=4),
      point('base', 1),
  ]
  summary = summary_lib.summarise(
      points, [stand(rows_of(value)) for value in (0.1, 0.2, 0.3, 0.4, 0.5)])
  assert plots.lines_of(summary, 'test_map', 'optim.peak_lr', 'peak_lr') == {
      'depth=2': [(1.0, 0.1), (30.0, 0.3)], 'depth=3': [(1.0, 0.2)],
      '': [(1e-3, 0.5)],  # what sets nothing; batch=4 has no place here
  }
  assert plots.lines_of(summary, 'test_map', 'batch', 'batch') == {
      '': [(4, 0.4), (8, 0.5)]}
  pairs = [(30, 0.5), (1, 0.2), (1, 0.4)]
  assert plots.means_of(pairs) == [
      (1, pytest.approx(0.3), pytest.approx(0.02 ** 0.5)), (30, 0.5, 0)]
  assert plots.is_logarithmic([1, 30]) and not plots.is_logarithmic([0, 30])
  assert not plots.is_logarithmic([4, 8])
  assert not plots.is_numeric([None, 3]) and not plots.is_numeric([True, 3])


def test_lines_are_of_fields_whatever_points_are_called():
  weight = 'objective.retention_weight'
  points = [
      point(f'{name}_{value}', seed, objective__retention_weight=value, **more)
      for name, more in (('low', {}), ('high', {'optim__peak_lr': 30.0}))
      for value in (0.1, 1.0) for seed in (1, 2)
  ]
  summary = summary_lib.summarise(
      points, [stand(rows_of(value)) for value in range(8)])
  assert plots.lines_of(summary, 'test_map', weight, 'retention_weight') == {
      '': [(0.1, 0), (0.1, 1), (1.0, 2), (1.0, 3)],
      'peak_lr=30.0': [(0.1, 4), (0.1, 5), (1.0, 6), (1.0, 7)],
  }


def test_lines_have_names_where_fields_do_not_tell_them_apart():
  points = [
      point(f'{name},batch={batch}', 1, batch=batch, data__source=source)
      for name, source in (('few', soundscapes.Soundscapes(clips=12)),
                           ('many', soundscapes.Soundscapes(clips=24)))
      for batch in (4, 8)
  ]
  summary = summary_lib.summarise(
      points, [stand(rows_of(value)) for value in range(4)])
  assert plots.lines_of(summary, 'test_map', 'batch', 'batch') == {
      'few': [(4, 0), (8, 1)], 'many': [(4, 2), (8, 3)]}


def test_a_run_in_the_folder_is_compared_with_what_it_takes_from_its_data(
    tmp_path
):
  config = tiny.classify(tmp_path / 'points' / 'a')
  config.data.views.classes = None
  run_folder.write_config(pathlib.Path(config.workdir), train.resolved(config))
  points_lib.check(tmp_path, [points_lib.Point(
      name='a', label='a', settings={}, config=config)])
  config.steps = 5
  with pytest.raises(ValueError, match='point a: .*steps was 6, now 5'):
    points_lib.check(tmp_path, [points_lib.Point(
        name='a', label='a', settings={}, config=config)])


class Terminal(io.StringIO):

  def isatty(self):
    return True


def test_live_table_is_redrawn_in_place(monkeypatch):
  monkeypatch.setenv('COLUMNS', '70')
  monkeypatch.setenv('LINES', '30')
  stream = Terminal()
  live = board.Board(stream)
  running = stand([{'step': 3, 'loss': 2.0, 'local_clean': 1.5}],
                  standing.RUNNING, step=3, clips_per_s=8.0, left_s=6.0)
  live.show({'a': running, 'b': stand([], standing.WAITING, step=0)})
  first = stream.getvalue()
  assert first.split('\n')[1] == (
      'a      running  3/9   8.0      6 s   2     local_clean 1.5')
  live.show({'a': stand(rows_of(0.5)), 'b': running})
  second = stream.getvalue()[len(first):]
  assert second.startswith('\x1b[4A\r\x1b[J')  # over all four lines
  assert second.split('\n')[-2] == '2 points: 1 running, 1 done'
  assert 'test_map 0.5 other_map 5' in second.split('\n')[1]
  many = {str(i): stand([], standing.WAITING) for i in range(50)}
  shown = list(board.lines({**many, 'a': running}, 10))
  assert len(shown) == 10 and shown[1].startswith('a ')


@pytest.mark.parametrize(('given', 'jobs', 'environment', 'expected'), [
    (None, 2, {'CUDA_VISIBLE_DEVICES': '2,5,7'},
     [{'CUDA_VISIBLE_DEVICES': '2'}, {'CUDA_VISIBLE_DEVICES': '5'}]),
    (None, 1, {'CUDA_VISIBLE_DEVICES': '2,5'}, [{}]),  # it may use both
    (None, 2, {'CUDA_VISIBLE_DEVICES': ''}, [{}, {}]),
    (None, 2, {'CUDA_VISIBLE_DEVICES': '2', 'JAX_PLATFORMS': 'cpu'}, [{}, {}]),
    ('0,0', 2, {}, [{'CUDA_VISIBLE_DEVICES': '0'}] * 2),
])
def test_each_process_gets_its_own_device(given, jobs, environment, expected):
  assert devices.places(given, jobs, {'PATH': '', **environment}) == expected


def test_chips_of_tpus_are_slices_of_one():
  first, second = devices.places(
      None, 2, {'PATH': '', 'TPU_VISIBLE_CHIPS': '1,3'})
  assert (first['TPU_VISIBLE_CHIPS'], second['TPU_VISIBLE_CHIPS']) == ('1', '3')
  assert first['TPU_CHIPS_PER_PROCESS_BOUNDS'] == '1,1,1'


def test_gpus_are_counted_by_nvidia_smi(tmp_path):
  script = tmp_path / 'nvidia-smi'
  script.write_text('#!/bin/sh\necho "GPU 0: H200"\necho "GPU 1: H200"\n')
  script.chmod(0o755)
  places = devices.places(None, 2, {'PATH': f'{tmp_path}'})
  assert [place['CUDA_VISIBLE_DEVICES'] for place in places] == ['0', '1']


def test_slurm_task_runs_its_point(tmp_path, monkeypatch, capsys):
  """The script by hand, with srun and scontrol that only say what they got."""
  command = write_sweep(tmp_path, {'optim.peak_lr': 0.5}, {})
  assert sweep.main([*command, '--write=slurm', '--seeds=1,2', '--jobs=3',
                     '--time=1:00:00', '--gpus=2', '--config.steps=9']) == 0
  path = tmp_path / 'all' / 'jobs' / 'slurm.sbatch'
  assert f'sbatch {path}' in capsys.readouterr().out
  text = path.read_text()
  for option in ('--array=0-3%3', '--gpus=2', '--time=1:00:00',
                 '--signal=TERM@120'):
    assert f'#SBATCH {option}\n' in text
  assert '--partition' not in text
  (tmp_path / 'srun').write_text('#!/bin/sh\nprintf "%s\\n" "$@"; exit $ENDS\n')
  (tmp_path / 'scontrol').write_text('#!/bin/sh\necho scontrol "$@"\n')
  for name in ('srun', 'scontrol'):
    (tmp_path / name).chmod(0o755)
  environment = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}',
                 'SLURM_ARRAY_TASK_ID': '2', 'SLURM_ARRAY_JOB_ID': '70'}

  def run(ends, restarts='49'):
    return subprocess.run(
        ['bash', path], capture_output=True, text=True, check=False,
        env={**environment, 'ENDS': ends, 'SLURM_RESTART_COUNT': restarts})

  assert run('1').returncode == 1
  assert run('3').stdout.splitlines()[-1] == 'scontrol requeue 70_2'
  lost = run('137', '50')
  assert lost.returncode == 137 and 'scontrol' not in lost.stdout
  words = run('0').stdout.splitlines()
  assert words[2] == sys.executable
  assert words[3] == str(_ROOT / 'tools' / 'sweep.py')
  args, assignments = sweep._parse(words[4:])
  assert (args.point, args.seeds, assignments) == (
      'seed=1', [1, 2], ['steps=9'])


def test_kubernetes_and_xpk_files_call_each_point(tmp_path):
  command = write_sweep(tmp_path, {'optim.peak_lr': 0.5}, {})
  for kind in ('kubernetes', 'xpk'):
    assert sweep.main([*command, f'--write={kind}', '--image=me/it:1']) == 0
  jobs = tmp_path / 'all' / 'jobs'
  job = yaml.safe_load((jobs / 'kubernetes.yaml').read_text())
  assert (job['spec']['completions'], job['spec']['parallelism']) == (2, 2)
  pod = job['spec']['template']['spec']
  container, = pod['containers']
  assert container['image'] == 'me/it:1'
  assert container['resources']['limits'] == {'nvidia.com/gpu': 1}
  assert container['command'] == [
      'bash', '-c', f'points=(peak_lr=0.5 base); exec python tools/sweep.py '
      f'{" ".join(command)} --point="${{points[$JOB_COMPLETION_INDEX]}}"']
  mount, = container['volumeMounts']
  assert str(tmp_path).startswith(mount['mountPath'] + '/')
  assert job['spec']['podFailurePolicy']['rules'][1]['onExitCodes'][
      'values'] == [1, 2]
  script = jobs / 'xpk.sh'
  assert subprocess.run(['bash', '-n', script], check=False).returncode == 0
  (tmp_path / 'xpk').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
  (tmp_path / 'xpk').chmod(0o755)
  said = subprocess.run(
      ['bash', script], capture_output=True, text=True, check=True,
      env={'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'CLUSTER': 'c',
           'DEVICE': '--device-type=l4-1'},
  ).stdout.splitlines()
  assert [line for line in said if line.startswith('--workload')] == [
      '--workload=all-0', '--workload=all-1']
  assert said.count('--device-type=l4-1') == 2
  assert (f'--command=python tools/sweep.py {" ".join(command)} --point=base'
          in said)


def test_a_process_that_was_killed_is_told_of(tmp_path):
  lost = point('a', 1)
  log = standing.log_path(tmp_path, lost)
  log.parent.mkdir()
  log.write_text('step 1\nstep 2\n')
  standing.note_lost(tmp_path, lost, -signal.SIGKILL)
  found = standing.look(tmp_path, lost)
  assert (found.state, found.status) == (standing.FAILED, -9)
  assert found.reason == 'ended by SIGKILL (want of memory?); its last line: ' \
                         'step 2'
  end = json.loads((tmp_path / 'logs' / 'a,seed=1.json').read_text())
  assert end['status'] == -9
  standing.forget_end(tmp_path, lost)
  standing.note_lost(tmp_path, lost, -signal.SIGTERM)
  assert standing.look(tmp_path, lost).state == standing.INTERRUPTED


def test_a_reason_is_one_line():
  last = standing.LastError()
  last.emit(logging.makeLogRecord({'msg': 'stopped:\n  step 3\tx'}))
  assert last.message == 'stopped: step 3 x'


def test_half_a_line_of_metrics_is_left_out(tmp_path):
  (tmp_path / report.METRICS).write_text('{"step": 1}\n{"step": 2}\n{"ste')
  assert report.read_metrics(str(tmp_path)) == [{'step': 1}, {'step': 2}]


def test_points_that_start_from_runs_of_their_seeds_are_one_setting(tmp_path):
  starts = [{'name': 'a', 'seed': seed,
             'init_from': f'{tmp_path}/points/b,seed={seed}'}
            for seed in (1, 12)]
  spec, _ = write_sweep(tmp_path, *starts)
  points = points_lib.load(spec.removeprefix('--config='), tmp_path)
  assert [point.name for point in points] == ['a,seed=1', 'a,seed=12']
  assert points[1].config.init_from == starts[1]['init_from']
  starts[1]['init_from'] = starts[0]['init_from']  # of another seed
  write_sweep(tmp_path, *starts)
  with pytest.raises(ValueError, match='a,seed=12: want the settings of a,'):
    points_lib.load(spec.removeprefix('--config='), tmp_path)


def test_only_some_points_are_chosen(tmp_path, capsys):
  points = [point('a', 1), point('a', 2), point('b', 1)]

  def names(patterns):
    return [each.name for each in points_lib.chosen(points, patterns)]

  assert names(None) == ['a,seed=1', 'a,seed=2', 'b,seed=1']
  assert names(['b,*', 'a,seed=2']) == ['a,seed=2', 'b,seed=1']
  command = write_sweep(tmp_path, {'optim.peak_lr': 0.5})
  for does in ('--summary', '--point=0'):
    assert sweep.main([*command, '--only=b', does]) == 2
    assert '--only: want neither --summary' in capsys.readouterr().err
  assert sweep.main([*command, '--only=c*']) == 2
  assert ('--only=c*: want a name or a pattern of some, such as peak_lr=0.5'
          in capsys.readouterr().err)


def test_only_those_are_listed_and_written(tmp_path, capsys):
  command = write_sweep(tmp_path, {'name': 'a'}, {'name': 'b', 'steps': 5})
  assert sweep.main([*command, '--only=b', '--dry-run']) == 0
  assert capsys.readouterr().out == '1 b (waiting): steps=5\n'
  assert sweep.main([*command, '--only=b', '--write=slurm']) == 0
  text = (tmp_path / 'all' / 'jobs' / 'slurm.sbatch').read_text()
  assert '\npoints=(b)\n' in text and '--array=0-0\n' in text


@pytest.mark.parametrize('wrong', ['--score=acc', '--sort=acc'])
def test_a_wrong_score_after_a_run_is_a_warning(tmp_path, capsys, wrong):
  words = ['--config=c.py', f'--workdir={tmp_path}', '--no-plots', wrong]
  made = summary_of()
  args, _ = sweep._parse([*words, '--summary'])
  with pytest.raises(ValueError, match=wrong):
    sweep._summarise(args, made.points, made.standings)
  args, _ = sweep._parse(words)
  sweep._summarise(args, made.points, made.standings)
  assert f'warning: {wrong}: want ' in capsys.readouterr().err
  assert '| lr=1 | 2 | 0.3 ' in (tmp_path / 'summary.md').read_text()
  assert (tmp_path / 'summary.csv').exists()


def test_a_run_is_finished_when_each_evaluation_has_found_something(tmp_path):
  source = tiny.stage1('x').data.source
  parts = {'train': source, 'test': source}
  config = tiny.stage1(tmp_path, evals=tuple(
      evaluate.Probe(name=name, **parts) for name in ('a', 'a_b')))
  checkpoint.save_weights(tmp_path, 6, {'x': np.zeros(1)}, None)
  each = points_lib.Point(name='n', label='n', settings={}, config=config)
  rows = [{'step': 6, 'loss': 1.0}, {'step': 6, 'a_b_map': 1.0}]
  assert not standing.is_finished(each, rows)
  assert not standing.is_finished(each, [*rows, {'step': 3, 'a_map': 1.0}])
  assert standing.is_finished(each, [*rows, {'step': 6, 'a_map': 1.0}])
