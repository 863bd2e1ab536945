"""Two processes: the numbers of one, one log, and an end when one is lost."""

import json
import os
import re
import signal
import time

import jax
import numpy as np
import pytest
import soundfile
from jax.sharding import NamedSharding, PartitionSpec

from sslam_jax import checkpoint
from sslam_jax import data
from sslam_jax import processes
from sslam_jax import report
from sslam_jax import sampling
from sslam_jax import sources
from sslam_jax import train
from sslam_jax import views
from sslam_jax import watch
from tests import child
from tests import tiny

LOSS_TOLERANCE = 1e-5  # relative: sums are taken in another order
STEPS, COMPARED = 2000, 6
LOST_S = 30  # until the other process has to have ended
# Processes that are lost are so by a shorter time: ten pulses, as ever.
HASTE = 2.5

pytestmark = pytest.mark.usefixtures('shared_steps')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """As many recordings as are drawn at first, one of them damaged."""
  folder = tmp_path_factory.mktemp('clips')
  rng = np.random.default_rng(0)
  for i in range(tiny.BATCH * COMPARED):
    soundfile.write(folder / f'{i:03d}.wav', rng.normal(size=3000) * 0.1,
                    16_000)
  (folder / '007.wav').write_bytes(b'RIFF, they said')
  return folder


def wait_for_steps(workdir, jobs, count):
  """Until so many lines of metrics are written after those there are now."""
  lines = workdir / 'metrics.jsonl'

  def written():
    return lines.read_text().count('\n') if lines.exists() else 0

  before, end = written(), time.monotonic() + 180
  while time.monotonic() < end and not any(job.poll() for job in jobs):
    if written() >= before + count:
      return
    time.sleep(0.05)
  raise AssertionError(child.ends_of(jobs))


def start_two(workdir, folder, *args, **options):
  return child.start_two(workdir, f'--steps={STEPS}', f'--folder={folder}',
                         f'--haste={HASTE}', *args, **options)


@pytest.fixture(scope='module')
def pair(tmp_path_factory, folder):
  """Two processes of two devices, as Slurm starts them.

  They are stopped by a signal to the second after a few steps.
  """
  workdir = tmp_path_factory.mktemp('pair')
  jobs = start_two(workdir, folder, launched=child.as_slurm, devices=2)
  wait_for_steps(workdir, jobs, COMPARED)
  jobs[1].send_signal(signal.SIGTERM)
  return workdir, *child.ends_of(jobs, 2 * LOST_S)


def test_signal_to_one_process_saves_both_at_the_same_step(pair):
  workdir, status, errors = pair
  assert status == [3, 3], errors
  step = checkpoint.latest_step(str(workdir))
  assert all(f'SIGTERM after step {step}, which is saved' in text
             for text in errors)
  assert report.read_metrics(str(workdir))[-1]['step'] == step


def test_two_processes_learn_what_one_with_their_devices_does(
    pair, tmp_path, folder, monkeypatch
):
  config = child.config(tmp_path, STEPS, str(folder))
  config.devices = 4
  monkeypatch.setattr(processes.Stop, 'reason', lambda _, step: (
      'SIGTERM' if step == COMPARED else None))
  with pytest.raises(train.Interrupted):
    train.run(config)
  ours, theirs = (report.read_metrics(str(path))[:COMPARED]
                  for path in (pair[0], tmp_path))
  assert [line['step'] for line in ours] == [1, 2, 3, 4, 5, 6]
  for line, expected in zip(ours, theirs):
    assert line['skipped'] == expected['skipped']
    for name in ('loss', 'local_clean', 'local_mixed', 'retention'):
      np.testing.assert_allclose(line[name], expected[name],
                                 rtol=LOSS_TOLERANCE, err_msg=name)
  assert ours[-1]['skipped'] == 1  # in the half of one process only
  skipped = (pair[0] / 'skipped.tsv').read_text()
  assert skipped == (tmp_path / 'skipped.tsv').read_text()
  assert '007.wav\t15 bytes' in skipped


def test_only_the_first_process_writes(pair):
  workdir, _, (first, second) = pair
  assert len(list(workdir.glob('events.out.tfevents.*'))) == 1
  log = (workdir / 'log.txt').read_text()
  assert log.count('starts at step 0') == 1
  assert log.count('on 4 x cpu') == 1
  assert f'step 1/{STEPS}' in first
  assert f'step 1/{STEPS}' not in second


def test_checkpoint_of_two_processes_goes_on_in_one(pair, folder, monkeypatch):
  workdir, before = pair[0], checkpoint.latest_step(str(pair[0]))
  monkeypatch.setattr(processes.Stop, 'reason', lambda _, step: 'SIGTERM')
  with pytest.raises(train.Interrupted, match=f'after step {before + 1},'):
    config = child.config(workdir, STEPS, str(folder))
    config.devices = 4
    train.run(config)


def test_lost_process_ends_the_other_with_a_message(pair, folder):
  workdir = pair[0]
  jobs = start_two(workdir, folder)
  wait_for_steps(workdir, jobs, 2)
  jobs[1].kill()
  errors = jobs[0].communicate(timeout=LOST_S)[1]
  assert jobs[0].returncode == watch.LOST, errors
  assert f'process 1 on {processes.host()}: has been silent for' in errors
  assert 'start the job again, it goes on from its last checkpoint' in errors
  jobs[1].communicate()


def test_slow_process_shows_in_the_metrics_and_stopped_it_is_named(
    tmp_path, folder
):
  jobs = start_two(tmp_path, folder, '--slow=0.4', launched=child.as_open_mpi)
  wait_for_steps(tmp_path, jobs, COMPARED)
  jobs[1].send_signal(signal.SIGSTOP)
  errors = jobs[0].communicate(timeout=LOST_S)[1]
  assert jobs[0].returncode == watch.LOST, errors
  silent_s = watch._SILENT_S / HASTE
  assert (f'stopped: process 1 on {processes.host()}: has been silent for '
          f'{silent_s:.0f} s' in errors)
  assert 'silent' in (tmp_path / 'log.txt').read_text()
  jobs[1].kill()
  jobs[1].communicate()
  # What was read ahead while the first step was compiled is used up by then.
  for line in report.read_metrics(str(tmp_path))[COMPARED - 2 : COMPARED]:
    assert line['slowest'] == 1
    # 1.6 s for its four clips of a batch. The other waits for its device.
    assert line['data_wait_max'] > 0.25
    assert line['data_wait'] < 0.75 * line['data_wait_max']
    assert 0 < line['host_work'] <= line['host_work_max'] < 0.2


def test_hung_worker_of_one_process_ends_both_with_its_clip(tmp_path, folder):
  workdir = tmp_path / 'run'
  source = sources.Folder(paths=(str(folder),))
  # Of the second half of batch 4, which the second process reads. It takes
  # seconds to start a worker process, for which it has patience too.
  stuck = sampling.order(source, 1)[3 * tiny.BATCH + 5]
  os.mkfifo(f'{workdir}.fifo')
  jobs = start_two(workdir, folder, f'--stuck={stuck}', '--patience=15',
                   '--workers=1')
  status, (first, second) = child.ends_of(jobs)
  assert status == [watch.LOST] * 2, (first, second)
  told = (rf'step 4: no data: process 1 on {processes.host()} waited 15 s for '
          rf'a batch \(patience_s\): worker 0 of 1 \(pid \d+\) on '
          rf'{source.files()[stuck]} for \d+ s; start the job again')
  assert re.search(rf'stopped: {told}', second), second
  assert re.search(rf'stopped: process 1 on {processes.host()}: {told}', first)
  assert re.search(told, (workdir / 'log.txt').read_text().splitlines()[-1])
  assert checkpoint.latest_step(str(workdir)) == 2


def test_processes_read_disjoint_rows_that_make_up_the_batch():
  config = tiny.stage2('unused').data

  def take(rows):
    stream = iter(data.records(config, batch=8, seed=1, patch=16, start=2,
                               rows=rows))
    found = [next(stream) for _ in range(3)]
    stream.close()
    return found

  for whole, first, second in zip(take(None), take(range(4)),
                                  take(range(4, 8))):
    for name in whole:
      joined = np.concatenate([first[name], second[name]])
      np.testing.assert_array_equal(joined, whole[name], err_msg=name)


def test_rows_of_a_process_are_those_of_its_devices():
  mesh = train.make_mesh(tiny.stage2('unused', devices=4))
  sharding = NamedSharding(mesh, PartitionSpec(views.AXIS))
  assert processes.rows(sharding, 8) == range(8)
  x = np.arange(8.0).reshape(8, 1)
  spread = processes.spread({'x': x}, sharding)
  assert len(spread['x'].sharding.device_set) == 4
  np.testing.assert_array_equal(processes.local(spread)['x'], x)
  table = processes.Table(mesh)
  np.testing.assert_array_equal(table.read(table([3, 0.5])), [[3, 0.5]])


def test_gather_of_one_process_is_its_own_list():
  items = [['ä b.wav', 'cut']]
  assert processes.gather(items) == items == json.loads(json.dumps(items))


def test_job_of_several_processes_takes_all_devices(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(ValueError, match='devices: want all 4 of a job of 2'):
    train.make_mesh(tiny.stage2('unused', devices=2))
