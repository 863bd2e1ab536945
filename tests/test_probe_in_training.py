"""Probes of a run under way: in its metrics, after a kill, as tools/probe.py.

One tiny run with two probes, of which one name begins with the other's.
"""

import dataclasses
import json
import pathlib
import types

import pytest

from sslam_jax import catalogue
from sslam_jax import evaluate
from sslam_jax import report
from sslam_jax import train
from tests import tiny
from tools import probe

TRAIN = 'soundscapes=20,length=1.5,seed=3'
TEST = 'soundscapes=16,length=2,seed=4'
SECONDS = 2.0  # two windows
STEPS, EVERY = 3, 2

pytestmark = pytest.mark.usefixtures('shared_steps')


def config_of(workdir):
  parts = {'train': catalogue.source(TRAIN), 'test': catalogue.source(TEST),
           'length_s': SECONDS, 'batch': 4}
  return tiny.stage1(workdir, steps=STEPS, evals=(
      evaluate.Probe(name='scenes', every=EVERY, **parts),
      evaluate.Probe(name='scenes_teacher', weights='teacher', seed=1,
                     **parts)))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  config = config_of(tmp_path_factory.mktemp('run'))
  train.run(config)
  return config


def evaluated(config):
  """Lines of evaluations."""
  return [line for line in report.read_metrics(config.workdir)
          if 'loss' not in line]


def test_values_are_in_the_metrics_under_the_probe_s_name(run):
  lines = evaluated(run)
  assert [line['step'] for line in lines] == [EVERY, STEPS, STEPS]
  *students, teacher = lines
  for line in students:
    assert {*line} > {'step', 'scenes_map', 'scenes_map_1', 'scenes_map_2'}
    assert all(name == 'step' or name.startswith('scenes_map') for name in line)
  assert 0.1 < teacher['scenes_teacher_map'] < 1
  assert students[0]['scenes_map'] != students[1]['scenes_map']
  told = f'step 3/3: scenes_teacher_map {teacher["scenes_teacher_map"]:.4g} '
  assert told in pathlib.Path(run.workdir, 'log.txt').read_text()


@pytest.mark.parametrize(('name', 'weights', 'seed'), [
    ('scenes', 'student', 0), ('scenes_teacher', 'teacher', 1),
])
def test_values_are_those_of_the_tool(run, tmp_path, name, weights, seed):
  status = probe.main([
      run.workdir, f'--weights={weights}', '--features=rows+rows_std',
      f'--train={TRAIN}', f'--test={TEST}', f'--seconds={SECONDS}',
      '--seeds=2', '--resamples=0', f'--out={tmp_path}',
      f'--cache={tmp_path}/cache',
  ])
  row, = json.loads((tmp_path / 'probe.json').read_text())['rows']
  line = next(x for x in evaluated(run)
              if x['step'] == STEPS and f'{name}_map' in x)
  assert status == 0
  assert line[f'{name}_map'] == pytest.approx(row['values'][seed][0], abs=1e-6)
  found = {key.rstrip('+') for key in row['by_sources']}
  assert {f'{name}_map_{count}' for count in found} == {
      *line} - {'step', f'{name}_map'}


@pytest.mark.parametrize('written', [1, 2])
def test_what_a_kill_left_out_is_made_up(run, written):
  """The run was killed after its last save, with some evaluations written."""
  path = pathlib.Path(run.workdir, report.METRICS)
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(lines[: len(lines) - written]))
  train.run(run)
  assert path.read_text().splitlines(keepends=True) == lines


def test_a_probe_added_to_a_finished_run_is_made_up(run):
  added = dataclasses.replace(run.evals[1], name='new')
  train.run(dataclasses.replace(run, evals=(added, *run.evals)))
  *_, teacher, new = evaluated(run)
  assert new['new_map'] == teacher['scenes_teacher_map']


def test_data_that_cannot_work_is_refused_before_anything_is_written(tmp_path):
  config = config_of(tmp_path / 'run')
  config.evals[0].train = types.SimpleNamespace(classes=())
  with pytest.raises(ValueError, match='evals: scenes: data: want labelled'):
    train.run(config)
  assert not (tmp_path / 'run').exists()
