"""The training step on any number of devices, and the loop around it."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
import soundfile

from sslam_jax import checkpoint
from sslam_jax import data
from sslam_jax import report
from sslam_jax import run_folder
from sslam_jax import sources
from sslam_jax import train
from tests import tiny

# Sums over devices are taken in another order than over one.
GRADIENT_TOLERANCE = 1e-5  # of each tensor's norm
LOSS_TOLERANCE = 1e-5  # relative
PARAMETER_TOLERANCE = 2e-5  # absolute, after 20 updates of at most 1e-3
STEPS = 20

pytestmark = pytest.mark.usefixtures('shared_steps')


def feed_of(config, mesh):
  return data.Feed(
      config.data, batch=config.batch, seed=config.seed,
      patch=config.objective.vit.patch, mesh=mesh,
  )


@functools.cache
def twenty_steps(devices, accumulate, shard_optimizer=False):
  """Metrics of every step, the last state, bytes of moments by device; and
  the gradients of the first step."""
  config = tiny.stage2('unused', steps=STEPS, devices=devices,
                       accumulate=accumulate, shard_optimizer=shard_optimizer)
  mesh = train.make_mesh(config)
  step_fn = train.compile_step(config, mesh)
  state, feed = train.create_state(config, mesh), feed_of(config, mesh)
  history = []
  for _ in range(STEPS):
    views = next(feed).views
    state, metrics = step_fn(state, views)
    history.append(jax.device_get(metrics))
    if len(history) == 1:
      grads = first_gradients(state, history[0]['grad_norm'], config.optim)
  feed.close()
  places = train.shardings(state, config, mesh)
  assert all(x.sharding.is_equivalent_to(place, x.ndim) for x, place in
             zip(jax.tree.leaves(state), jax.tree.leaves(places)))
  held = [
      sum(shard.data.nbytes for x in jax.tree.leaves(state.opt_state)
          for shard in x.addressable_shards if shard.device == device)
      for device in mesh.devices.flat
  ]
  return history, jax.device_get(
      dataclasses.replace(state, rng=jax.random.key_data(state.rng))
  ), held, grads


def first_gradients(state, norm, config):
  """Those of the first update, of which Adam's mean holds a part, unclipped.

  The gradients themselves: Adam hides a wrong factor.
  """
  adam = next(x for x in jax.tree.leaves(
      state.opt_state, is_leaf=lambda x: hasattr(x, 'mu')) if hasattr(x, 'mu'))
  scale = max(1, norm / config.clip_norm) / (1 - config.beta1)
  return jax.tree.map(lambda x: scale * np.asarray(x), adam.mu)


def assert_close_gradients(ours, theirs):
  def check(path, a, b):
    error = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert error < GRADIENT_TOLERANCE, (jax.tree_util.keystr(path), error)

  jax.tree_util.tree_map_with_path(check, ours, theirs)


@pytest.mark.parametrize(('devices', 'accumulate'), [(4, 1), (2, 2), (1, 4)])
def test_gradients_do_not_depend_on_how_the_batch_is_cut(devices, accumulate):
  history, *_, gradients = twenty_steps(devices, accumulate)
  expected_history, *_, expected = twenty_steps(1, 1)
  assert_close_gradients(gradients, expected)
  for name, value in expected_history[0].items():
    np.testing.assert_allclose(history[0][name], value, rtol=LOSS_TOLERANCE,
                               err_msg=name)


@pytest.mark.parametrize(('devices', 'accumulate', 'shard_optimizer'),
                         [(4, 1, False), (2, 2, False), (4, 1, True)])
def test_twenty_steps_are_the_same_on_any_devices(devices, accumulate,
                                                  shard_optimizer):
  history, state, held, _ = twenty_steps(devices, accumulate, shard_optimizer)
  expected_history, expected, (whole,), _ = twenty_steps(1, 1)
  # What no 4 devices divide are two counters.
  assert held == [(whole - 8) // 4 + 8 if shard_optimizer else whole] * devices
  for metrics, expected_metrics in zip(history, expected_history):
    for name in ('loss', 'local_clean', 'local_mixed', 'retention'):
      np.testing.assert_allclose(metrics[name], expected_metrics[name],
                                 rtol=LOSS_TOLERANCE, err_msg=name)
  for ours, theirs in ((state.params, expected.params),
                       (state.teacher, expected.teacher)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(
        a, b, rtol=0, atol=PARAMETER_TOLERANCE), ours, theirs)


def test_save_that_hangs_as_a_run_ends_is_a_hang(tmp_path, caplog):
  with pytest.raises(train.Hung, match='cannot save: timed out'), \
      train._told_ends(tmp_path):
    raise checkpoint.SaveHung('cannot save: timed out')
  assert 'stopped: cannot save: timed out' in caplog.text


@pytest.mark.parametrize(('error', 'message'), [
    (RuntimeError("Unable to initialize backend 'tpu'"),
     "devices: want at least 1, got none: Unable to initialize backend 'tpu'"),
    (AssertionError(), 'this JAX is for none of JAX_PLATFORMS'),
])
def test_no_device_is_one_clear_error(monkeypatch, error, message):
  def fail():
    raise error

  monkeypatch.setattr(jax, 'devices', fail)
  with pytest.raises(ValueError, match=message):
    train.make_mesh(tiny.stage2('unused'))


def test_losses_fall_and_the_teacher_follows():
  history, state, *_ = twenty_steps(1, 1)
  assert history[-1]['local_clean'] < 0.97 * history[0]['local_clean']
  assert state.step == STEPS
  distance = optax.tree.norm(jax.tree.map(
      lambda a, b: a - b, state.teacher, state.params['encoder']))
  assert 0 < distance < 0.5 * optax.tree.norm(state.teacher)


def test_a_step_moves_the_teacher_as_method_7_says():
  """From an exact copy; after update u by d(u + 1), towards the new student."""
  config = tiny.stage2('unused')
  mesh = train.make_mesh(config)
  step_fn, feed = train.compile_step(config, mesh), feed_of(config, mesh)
  state = train.create_state(config, mesh)
  jax.tree.map(np.testing.assert_array_equal, state.teacher,
               state.params['encoder'])
  for update in (1, 2, 3):
    before = jax.device_get(state.teacher)
    state, _ = step_fn(state, next(feed).views)
    ema = config.objective.ema
    decay = ema.end - (ema.end - ema.start) * (1 - update / ema.anneal_steps)
    jax.tree.map(lambda t, s, new, d=decay: np.testing.assert_allclose(
        new, d * t + (1 - d) * s, rtol=0, atol=1e-6),
        before, jax.device_get(state.params['encoder']), state.teacher)
  feed.close()


def test_noise_is_new_in_every_step():
  """The same views and parameters at another step: another local loss."""
  config = tiny.stage2('unused')
  config.objective.decoder.noise_std = 1.0
  mesh = train.make_mesh(config)
  step_fn, feed = train.compile_step(config, mesh), feed_of(config, mesh)
  views = next(feed).views
  feed.close()
  losses = []
  for step in (0, 0, 1):
    state = train.create_state(config, mesh).replace(step=np.int32(step))
    losses.append(float(step_fn(state, views)[1]['local_clean']))
  assert losses[0] == losses[1]
  assert abs(losses[0] - losses[2]) > 1e-3


def test_first_update_has_rate_zero_and_later_ones_the_schedule():
  history, *_ = twenty_steps(1, 1)
  schedule = tiny.stage2('unused').optim.schedule(STEPS)
  np.testing.assert_allclose([m['lr'] for m in history],
                             [schedule(u) for u in range(STEPS)], rtol=1e-6)
  assert history[0]['lr'] == 0


def run_metrics(config):
  train.run(config)
  return [
      {k: v for k, v in line.items() if k not in tiny.TIMES}
      for line in report.read_metrics(config.workdir)
  ]


@pytest.fixture(scope='module')
def whole_run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  return workdir, run_metrics(tiny.stage2(workdir))


def test_run_folder_holds_what_a_user_looks_for(whole_run):
  workdir, metrics = whole_run
  assert [line['step'] for line in metrics] == [1, 2, 3, 4, 5, 6]
  assert checkpoint.latest_step(workdir) == 6
  assert (workdir / 'config.json').exists()
  assert 'starts at step 0 of 6' in (workdir / 'log.txt').read_text()
  assert list(workdir.glob('events.out.tfevents.*'))


def test_killed_run_resumes_with_the_same_losses(whole_run, tmp_path):
  """SIGKILL after the checkpoint of step 3, in a process of its own."""
  config = tiny.stage2(tmp_path)
  script = (
      'from sslam_jax import checkpoint, train; from tests import tiny;'
      'import os, signal, sys, time;'
      'check = train.Guard.check\n'
      'def kill(self, step, metrics):\n'
      '  check(self, step, metrics)\n'
      '  if step < 5: return\n'
      '  while not checkpoint.latest_step(sys.argv[1]): time.sleep(0.1)\n'
      '  os.kill(os.getpid(), signal.SIGKILL)\n'
      'train.Guard.check = kill\n'
      'train.run(tiny.stage2(sys.argv[1]))\n'
  )
  root = pathlib.Path(__file__).parent.parent
  process = subprocess.run(
      [sys.executable, '-c', script, str(tmp_path)], cwd=root, check=False,
      env={**os.environ, 'PYTHONPATH': str(root)}, timeout=120,
  )
  assert process.returncode == -signal.SIGKILL
  assert checkpoint.latest_step(tmp_path) == 3
  assert run_metrics(config) == whole_run[1]  # bit for bit
  assert 'resumes after step 3' in (tmp_path / 'log.txt').read_text()


def tell(monkeypatch, method, at, number):
  """Sends this process a signal once the loop's `method` has run `at` times."""
  ran = []
  original = getattr(train._Loop, method)

  def patched(self, *args):
    original(self, *args)
    ran.append(method)
    if len(ran) == at:
      os.kill(os.getpid(), number)

  monkeypatch.setattr(train._Loop, method, patched)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_saves_the_step_under_way(whole_run, tmp_path,
                                                  monkeypatch, number):
  # The metrics of step 4 are read once step 5 is under way (and at the save
  # of step 3 nothing is pending for one more reading).
  tell(monkeypatch, '_consume', 6, number)
  with pytest.raises(train.Interrupted, match=f'{number.name} after step 5'):
    train.run(tiny.stage2(tmp_path))
  assert checkpoint.latest_step(tmp_path) == 5
  monkeypatch.undo()
  assert run_metrics(tiny.stage2(tmp_path)) == whole_run[1]


def test_signal_after_the_last_look_waits_for_the_next_step(tmp_path,
                                                            monkeypatch):
  """Whenever it comes, the step that is said to be saved is."""
  tell(monkeypatch, '_save', 1, signal.SIGINT)  # of step 3
  with pytest.raises(train.Interrupted, match='SIGINT after step 4'):
    train.run(tiny.stage2(tmp_path))
  assert checkpoint.latest_step(tmp_path) == 4


def test_resuming_may_change_what_leaves_the_numbers_alone(whole_run):
  config = tiny.stage2(whole_run[0], accumulate=2)
  config.objective.vit.remat = True
  config.guard.min_target_std = 0.0
  run_folder.check(whole_run[0], config)


def test_finished_run_does_nothing_more(whole_run):
  workdir, metrics = whole_run
  before = (workdir / 'metrics.jsonl').read_text()
  train.run(tiny.stage2(workdir))
  assert (workdir / 'metrics.jsonl').read_text() == before


def test_stage2_starts_from_student_and_teacher_of_stage1(tmp_path):
  first = train.run(tiny.stage1(tmp_path / 'one', steps=4))
  config = tiny.stage2(tmp_path / 'two', init_from=str(tmp_path / 'one'))
  started = train._start_from(
      config.init_from,
      train.create_state(config, train.make_mesh(config)),
      config.objective,
  )
  for ours, theirs in ((started.params, first.params),
                       (started.teacher, first.teacher)):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  assert started.step == 0


def test_folder_of_another_configuration_is_refused(whole_run):
  workdir, _ = whole_run
  config = tiny.stage2(workdir)
  config.optim.peak_lr = 5e-4
  with pytest.raises(ValueError, match='optim.peak_lr was 0.001, now 0.0005'):
    train.run(config)


def test_collapse_stops_the_run_and_names_step_and_threshold(tmp_path):
  guard = train.Guard(min_target_std=10.0, after_steps=4)
  with pytest.raises(train.TrainingStopped,
                     match='step 5: target_std collapsed .*at least 10.0'):
    train.run(tiny.stage1(tmp_path, guard=guard))
  assert checkpoint.latest_step(tmp_path) == 3  # nothing computed is lost
  assert 'step 5' in (tmp_path / 'log.txt').read_text()


def test_non_finite_loss_stops_before_it_is_saved(tmp_path):
  config = tiny.stage1(tmp_path)
  config.objective.global_weight = 3e38  # overflows float32
  with pytest.raises(train.TrainingStopped, match='step 1: loss is inf'):
    train.run(config)
  assert checkpoint.latest_step(tmp_path) is None


def recordings(folder, good, damaged):
  """Noise clips, and damaged ones among them; returns a run on the folder."""
  rng = np.random.default_rng(0)
  folder.mkdir()
  for i in range(good + damaged):
    wave = rng.normal(size=24_000) * 0.1
    soundfile.write(folder / f'{i:02d}.wav', wave, 16_000)
  for i in range(0, 3 * damaged, 3):
    (folder / f'{i:02d}.wav').write_bytes(b'RIFF, they said')
  config = tiny.stage1(folder.parent / 'run', steps=9)
  config.data.source = sources.Folder(paths=(str(folder),))
  return config


def test_damaged_clips_are_passed_over_counted_and_listed_once(tmp_path):
  """36 drawn in two passes of 20 clips; the run is stopped and resumed."""
  config = recordings(tmp_path / 'clips', good=17, damaged=3)
  config.data.max_bad_fraction = 0.3
  whole = run_metrics(config)
  assert [line['step'] for line in whole] == list(range(1, 10))
  counts = [line['skipped'] for line in whole]
  assert counts == sorted(counts)
  assert counts[-1] >= 9  # 72 drawn: each of 3 at least in 3 whole passes
  rows = [line.split('\t') for line in
          (tmp_path / 'run' / 'skipped.tsv').read_text().splitlines()]
  assert sorted(pathlib.Path(row[1]).name for row in rows) == [
      '00.wav', '03.wav', '06.wav'
  ]
  first = next(line['step'] for line in whole if line['skipped'])
  assert int(rows[0][0]) == first
  assert {row[2] for row in rows} == {'15 bytes: Format not recognised.'}
  log = (tmp_path / 'run' / 'log.txt').read_text()
  assert log.count('passed over') == 3
  again = dataclasses.replace(config, workdir=str(tmp_path / 'again'))
  for stop in (4, 9):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(train.processes.Stop, 'reason', lambda _, step, at=stop:
                    'SIGTERM' if step == at else None)
      with contextlib.suppress(train.Interrupted):
        train.run(again)
  assert run_metrics(again) == whole  # counts too, across the resume
  assert ((tmp_path / 'again' / 'skipped.tsv').read_text()
          == (tmp_path / 'run' / 'skipped.tsv').read_text())


def test_too_many_damaged_clips_stop_the_run_after_saving(tmp_path):
  config = recordings(tmp_path / 'clips', good=17, damaged=3)
  with pytest.raises(train.TrainingStopped) as caught:
    train.run(config)
  lines = str(caught.value).splitlines()
  step = checkpoint.latest_step(config.workdir)
  assert lines[0].startswith(f'step {step}, which is saved: data.max_bad_'
                             f'fraction: want at most 1.00% of all clips')
  assert lines[1].endswith('.wav: 15 bytes: Format not recognised.')
  assert step == report.read_metrics(config.workdir)[-1]['step']
  config.data.max_bad_fraction = 0.3
  assert train.run(config).step == 9  # goes on where more are allowed


def test_hardly_a_readable_clip_stops_the_run_after_saving(tmp_path,
                                                           monkeypatch):
  """The disk goes away in the middle of a run."""
  config = recordings(tmp_path / 'clips', good=12, damaged=0)
  read, reads = data.excerpt, []

  def failing(clip, *args):
    reads.append(clip.id)
    if len(reads) > 60:
      raise sources.decoding.clips_lib.BadClip(clip.id, 'I/O error')
    return read(clip, *args)

  monkeypatch.setattr(data, 'excerpt', failing)
  with pytest.raises(train.TrainingStopped, match=r'step \d: no data: want '
                     r'readable clips, got 100 damaged ones in a row, .*I/O'):
    train.run(config)
  saved = checkpoint.latest_step(config.workdir)
  assert saved == report.read_metrics(config.workdir)[-1]['step']
  assert saved > 0


@pytest.mark.parametrize(('changes', 'message'), [
    ({'batch': 6, 'devices': 4}, 'batch: want a multiple of 4'),
    ({'devices': 5}, 'devices: want at most the 4 found, got 5'),
    ({'batch': 12, 'devices': 4},
     'data.views.mix.group: want a divisor of the 3'),
    ({'init_from': 'nowhere'}, 'nowhere: want a run folder, got none'),
])  # fmt: skip
def test_impossible_run_is_refused_before_anything_is_written(
    tmp_path, changes, message
):
  workdir = tmp_path / 'run'
  with pytest.raises(ValueError, match=message):
    train.run(tiny.stage2(workdir, **changes))
  assert not workdir.exists()


def test_stage1_folder_of_another_shape_is_refused_by_name(whole_run,
                                                           tmp_path):
  config = tiny.stage2(tmp_path / 'run', init_from=str(whole_run[0]))
  config.objective.vit.width = 16
  with pytest.raises(ValueError,
                     match='want an encoder of width 16, got width 32'):
    train.run(config)


@pytest.mark.parametrize(('field', 'value', 'message'), [
    ('steps', 2, 'optim.warmup_steps: want fewer than steps 2'),
    ('batch', 0, 'batch: want at least 1'),
])
def test_contradicting_values_are_refused(field, value, message):
  with pytest.raises(ValueError, match=message):
    tiny.stage1('unused', **{field: value})


def test_metrics_are_plain_json(whole_run):
  workdir, _ = whole_run
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  terms = {'loss', 'local_clean', 'local_mixed', 'global_clean',
           'global_mixed', 'retention', 'target_std', 'prediction_std',
           'grad_norm', 'lr', 'ema_decay', 'skipped', 'clips_per_s',
           'data_wait', 'host_work', 'step'}
  assert set(json.loads(lines[0])) == terms - set(tiny.TIMES)
  assert set(json.loads(lines[1])) == terms


def test_shares_of_the_time_name_the_slowest_of_several_processes(tmp_path):
  """Half of the time the second waited for data, a tenth it worked itself."""
  now = [100.0]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report.time, 'monotonic', lambda: now[0])
    log = report.Report(str(tmp_path), start=0, steps=9, batch=4)
    for step in (1, 2, 3):
      now[0] += 10.0
      log.progress(step, {'loss': 1.0})
      log.took(np.array([[1.0, 0.5], [5.0, 1.0], [1.0, 3.0]]))
      if step != 2:
        log.write(step, {'loss': 1.0})
    log.close()
  first, third = report.read_metrics(str(tmp_path))
  assert 'slowest' not in first
  assert third['slowest'] == 1
  expected = {'data_wait': 7 / 30, 'host_work': 4.5 / 30,
              'data_wait_max': 0.5, 'host_work_max': 0.3}
  for name, share in expected.items():
    assert third[name] == pytest.approx(share), name


def test_device_does_not_wait_for_metrics(tmp_path, monkeypatch):
  """Step n + 1 is given to the device before the metrics of n are read."""
  order = []
  compile_step = train.compile_step

  def traced(config, mesh):
    step_fn = compile_step(config, mesh)

    def step(state, views):
      order.append('step')
      return step_fn(state, views)

    return step

  check = train.Guard.check
  monkeypatch.setattr(train, 'compile_step', traced)
  monkeypatch.setattr(train.Guard, 'check',
                      lambda *a: (order.append('read'), check(*a)))
  train.run(tiny.stage1(tmp_path, keep=checkpoint.Keep(every=100)))
  assert order == ['step', *['step', 'read'] * 5, 'read']
