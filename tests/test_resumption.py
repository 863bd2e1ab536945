"""A run that nothing can spoil: kills, failing disks, other devices."""

import os
import pathlib
import random
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from sslam_jax import checkpoint
from sslam_jax import report
from sslam_jax import sampling
from sslam_jax import train
from sslam_jax import watch
from tests import child
from tests import tiny

STEPS = 30
LOSS_TOLERANCE = 1e-5  # relative, across numbers of devices

pytestmark = pytest.mark.usefixtures('shared_steps')


def metrics_of(workdir):
  return [{k: v for k, v in line.items() if k not in tiny.TIMES}
          for line in report.read_metrics(str(workdir))]


def params_of(workdir):
  config = child.config(workdir, STEPS)
  config.devices = 1
  state = train.create_state(config, train.make_mesh(config))
  return jax.device_get((
      checkpoint.load_params(str(workdir), like=state.params),
      checkpoint.load_teacher(str(workdir), like=state.teacher),
  ))


def wait_for(condition, process, limit_s=60.0):
  """Whether `condition` came true while the process was running."""
  end = time.monotonic() + limit_s
  while process.poll() is None and time.monotonic() < end:
    if condition():
      return True
    time.sleep(0.002)
  return False


def kill_somewhere(process, workdir, moment, rng):
  """SIGKILL in the middle of a save, or a random time after a new step.

  Returns whether it was still running.
  """
  lines = workdir / 'metrics.jsonl'
  before = lines.stat().st_mtime_ns if lines.exists() else 0

  def steps():
    return lines.exists() and lines.stat().st_mtime_ns > before

  def saves():
    return steps() and any(workdir.glob('checkpoints/*orbax-checkpoint-tmp*'))

  wait_for(saves if moment == 'save' else steps, process)
  if moment == 'any':
    time.sleep(rng.uniform(0, 1.0))
  running = process.poll() is None
  process.kill()
  process.communicate()
  return running


def run_on(workdir, devices, steps, *, until):
  """Runs to a step on some devices, as if it was told to stop there."""
  config = tiny.stage2(workdir, steps=steps, devices=devices,
                       keep=checkpoint.Keep(every=2))
  if until == steps:
    train.run(config)
    return
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train.processes.Stop, 'reason',
                  lambda _, step: 'SIGTERM' if step == until else None)
    with pytest.raises(train.Interrupted, match=f'after step {until}'):
      train.run(config)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  process = child.start(workdir, f'--steps={STEPS}')
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  return workdir


def test_killed_at_random_moments_it_ends_as_if_never_killed(
    whole, tmp_path, request
):
  """Losses of every step and the final weights, bit for bit."""
  rng = random.Random(3)
  unfinished = 0
  for kill in range(request.config.getoption('kills')):
    process = child.start(tmp_path, f'--steps={STEPS}')
    moment = 'save' if kill % 2 == 0 else 'any'
    running = kill_somewhere(process, tmp_path, moment, rng)
    assert running, 'it ended before the kill'
    unfinished += any(tmp_path.glob('checkpoints/*orbax-checkpoint-tmp*'))
    if (checkpoint.latest_step(str(tmp_path)) or 0) > STEPS - 8:
      # Near the end there is nothing to kill: once more from an early step.
      for step in (tmp_path / 'checkpoints').iterdir():
        shutil.rmtree(step)
  assert unfinished, 'no kill came in the middle of a save'
  process = child.start(tmp_path, f'--steps={STEPS}')
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  assert not any(tmp_path.glob('checkpoints/*orbax-checkpoint-tmp*'))
  assert metrics_of(tmp_path) == metrics_of(whole)
  jax.tree.map(np.testing.assert_array_equal, params_of(tmp_path),
               params_of(whole))


def test_disk_full_stops_the_run_and_leaves_the_last_checkpoint(
    whole, tmp_path
):
  run_on(tmp_path, 1, STEPS, until=4)
  # Files may grow to 30 kB: metrics can be written, no checkpoint can.
  process = child.start(tmp_path, f'--steps={STEPS}', '--file_limit=30000')
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 1
  # TensorStore's threads may still complain behind it.
  line, = (line for line in errors.splitlines()
           if line.startswith(f'stopped: {tmp_path}/checkpoints: cannot save'))
  assert 'File too large' in line
  assert line.endswith('of the checkpoints before, step 4 is whole')
  assert checkpoint.latest_step(str(tmp_path)) == 4
  assert 'cannot save' in (tmp_path / 'log.txt').read_text()
  process = child.start(tmp_path, f'--steps={STEPS}')
  process.communicate(timeout=120)
  assert process.returncode == 0
  assert metrics_of(tmp_path)[4:] == metrics_of(whole)[4:]
  names = [p.name for p in (tmp_path / 'checkpoints').iterdir()]
  assert sorted(names) == [str(STEPS - 2), str(STEPS)]  # no litter


def test_checkpoint_of_one_device_goes_on_on_four_and_back(tmp_path):
  run_on(tmp_path / 'one', 1, 6, until=6)
  for devices, until in ((1, 2), (4, 4), (1, 6)):
    run_on(tmp_path / 'both', devices, 6, until=until)
  ours, theirs = metrics_of(tmp_path / 'both'), metrics_of(tmp_path / 'one')
  assert [line['step'] for line in ours] == [1, 2, 3, 4, 5, 6]
  for line, expected in zip(ours, theirs):
    for name in ('loss', 'local_clean', 'local_mixed', 'retention'):
      np.testing.assert_allclose(line[name], expected[name],
                                 rtol=LOSS_TOLERANCE, err_msg=name)


@pytest.fixture
def short(tmp_path):
  """A run of two steps, saved at both."""
  config = tiny.stage1(tmp_path / 'short', steps=4, devices=1,
                       keep=checkpoint.Keep(every=2))
  train.run(config)
  return config


@pytest.mark.parametrize('damage', ['cut', 'gone', 'text'])
def test_damaged_checkpoint_is_named_with_the_way_out(short, damage):
  folder = f'{short.workdir}/checkpoints/4'
  files = sorted(pathlib.Path(folder).glob('params/**/d/*'))
  largest = max(files, key=lambda path: path.stat().st_size)
  if damage == 'cut':
    largest.write_bytes(largest.read_bytes()[:1000])
  elif damage == 'gone':
    shutil.rmtree(f'{folder}/rest')
  else:
    (pathlib.Path(folder) / 'data' / 'metadata').write_text('{')
  with pytest.raises(ValueError) as caught:
    train.run(short)
  message = str(caught.value)
  assert message.startswith(f'{folder}: want a whole checkpoint, got ')
  assert message.endswith('without that folder the run goes on from step 2')
  shutil.rmtree(folder)
  assert train.run(short).step == 4


def test_signal_number_of_a_killed_child_is_its_status(tmp_path):
  """SIGTERM in time is no kill: exit status 3, and the step is saved."""
  process = child.start(tmp_path, f'--steps={STEPS}')
  lines = tmp_path / 'metrics.jsonl'
  assert wait_for(lambda: lines.exists() and lines.stat().st_size, process)
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 3, errors
  step = checkpoint.latest_step(str(tmp_path))
  assert f'SIGTERM after step {step}, which is saved' in errors
  assert metrics_of(tmp_path)[-1]['step'] == step


def children_of(pid):
  tasks = pathlib.Path(f'/proc/{pid}/task').glob('*/children')
  return [int(child) for task in tasks for child in task.read_text().split()]


def is_alive(pid):
  try:
    state = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2]
  except FileNotFoundError:
    return False
  return state.split()[0] != 'Z'


@pytest.mark.skipif(not pathlib.Path('/proc/self/task').exists(),
                    reason='finds child processes in /proc')
def test_reading_processes_leave_signals_to_the_run_and_end_with_it(tmp_path):
  """Ctrl-C reaches the whole group; SIGKILL leaves no orphans behind."""
  lines = tmp_path / 'metrics.jsonl'
  statuses = []
  for number in (signal.SIGINT, signal.SIGKILL):
    before = lines.stat().st_size if lines.exists() else 0
    process = child.start(tmp_path, '--steps=2000', '--workers=1')
    assert wait_for(
        lambda b=before: lines.exists() and lines.stat().st_size > b, process
    )
    workers = children_of(process.pid)
    assert workers
    if number == signal.SIGINT:
      os.killpg(process.pid, number)
    else:
      process.kill()
    _, errors = process.communicate(timeout=60)
    statuses.append(process.returncode)
    if number == signal.SIGINT:
      step = checkpoint.latest_step(str(tmp_path))
      assert f'SIGINT after step {step}, which is saved' in errors
      assert 'Traceback' not in errors
    end = time.monotonic() + 20
    while any(map(is_alive, workers)) and time.monotonic() < end:
      time.sleep(0.1)
    assert not any(map(is_alive, workers))
  assert statuses == [3, -signal.SIGKILL]


def test_dead_reading_process_stops_the_run_after_saving(tmp_path):
  process = child.start(tmp_path, '--steps=2000', '--workers=1')
  lines = tmp_path / 'metrics.jsonl'
  assert wait_for(lambda: lines.exists() and lines.stat().st_size, process)
  for pid in children_of(process.pid):
    command = pathlib.Path(f'/proc/{pid}/cmdline').read_text()
    if 'spawn_main' in command:
      os.kill(pid, signal.SIGKILL)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 1
  assert 'no data: ' in errors
  assert 'Traceback' not in errors
  saved = checkpoint.latest_step(str(tmp_path))
  assert saved == metrics_of(tmp_path)[-1]['step']


def test_hung_reading_thread_ends_the_run_after_saving(tmp_path):
  workdir, fifo = tmp_path / 'run', tmp_path / 'run.fifo'
  config = child.config(workdir, STEPS)
  stuck = sampling.order(config.data.source, 1)[tiny.BATCH]  # in step 2
  os.mkfifo(fifo)
  process = child.start(workdir, f'--steps={STEPS}', f'--stuck={stuck}',
                        '--patience=4')
  _, errors = process.communicate(timeout=120)
  assert process.returncode == watch.LOST, errors
  assert re.search(
      rf'stopped: step 2: no data: process 0 on \S+ waited 4 s for a batch '
      rf'\(patience_s\): the run \(pid {process.pid}\) on '
      rf'clip {stuck} of the source for \d+ s; .*start the run again, it goes '
      rf'on after step 1', errors), errors
  assert checkpoint.latest_step(str(workdir)) == 1
  assert [line['step'] for line in metrics_of(workdir)] == [1]


def test_disk_full_for_the_metrics_names_the_last_checkpoint(tmp_path,
                                                             monkeypatch):
  def write(self, step, metrics):
    if step == 3:
      raise OSError(28, 'No space left on device')

  monkeypatch.setattr(report.Report, 'write', write)
  config = child.config(tmp_path, 6)
  config.devices = 1
  with pytest.raises(train.TrainingStopped) as caught:
    train.run(config)
  message = str(caught.value)
  assert message.startswith(f'{tmp_path}: cannot write: [Errno 28] No space')
  assert message.endswith('the last checkpoint is that of step 2')


def test_failed_save_is_noticed_at_the_next_step(tmp_path, monkeypatch):
  """Saving is asynchronous, and the next save may be hours away."""
  steps = []

  def check(self):
    steps.append('step')
    if len(steps) == 3:
      raise checkpoint.SaveFailed('cannot save: disk full')

  monkeypatch.setattr(checkpoint.Checkpointer, 'check', check)
  config = tiny.stage2(tmp_path, devices=1, keep=checkpoint.Keep(every=100))
  with pytest.raises(train.TrainingStopped, match='cannot save: disk full'):
    train.run(config)
  assert 'cannot save' in (tmp_path / 'log.txt').read_text()
