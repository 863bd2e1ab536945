"""What is saved comes back, on any devices, and nothing else is accepted."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sslam_jax import checkpoint
from sslam_jax import train
from tests import tiny


def state_on(devices, seed=1, shard_optimizer=False):
  config = tiny.stage1('unused', devices=devices, seed=seed,
                       shard_optimizer=shard_optimizer)
  return train.create_state(config, train.make_mesh(config))


def assert_equal(ours, theirs):
  plain = lambda s: jax.device_get(  # noqa: E731
      s.replace(rng=jax.random.key_data(s.rng))
  )
  jax.tree.map(np.testing.assert_array_equal, plain(ours), plain(theirs))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A run folder with checkpoints of steps 1 to 5, saved one by one."""
  workdir = tmp_path_factory.mktemp('saved')
  state = state_on(1)
  keep = checkpoint.Keep(every=1, last=2, forever_every=2)
  saver = checkpoint.Checkpointer(workdir, keep)
  for step in range(1, 6):
    state = state.replace(step=jnp.int32(step))
    saver.save(step, state, {'batches': step})
  saver.close()
  return workdir, state


@pytest.mark.parametrize(('devices', 'shard_optimizer'),
                         [(1, False), (4, False), (4, True)])
def test_state_comes_back_on_any_devices(saved, devices, shard_optimizer):
  workdir, state = saved
  like = state_on(devices, seed=2, shard_optimizer=shard_optimizer)
  saver = checkpoint.Checkpointer(workdir, checkpoint.Keep(every=1))
  restored, data_state = saver.restore(like)
  saver.close()
  assert_equal(restored, state)
  assert data_state == {'batches': 5}
  assert len(jax.tree.leaves(restored.params)[0].devices()) == devices
  shardings = [jax.tree.map(lambda x: x.sharding, s) for s in (like, restored)]
  assert shardings[0] == shardings[1]


def test_spread_state_comes_back_on_one_device(tmp_path):
  state = state_on(4, shard_optimizer=True)
  state = state.replace(opt_state=jax.tree.map(lambda x: x + 1,
                                               state.opt_state))
  saver = checkpoint.Checkpointer(tmp_path, checkpoint.Keep(every=1))
  saver.save(1, state, {'batches': 1})
  saver.close()
  saver = checkpoint.Checkpointer(tmp_path, checkpoint.Keep(every=1))
  restored, _ = saver.restore(state_on(1))
  saver.close()
  assert_equal(restored, state)


def test_latest_and_every_second_are_kept(saved):
  steps = {int(p.name) for p in (saved[0] / 'checkpoints').iterdir()}
  assert steps == {2, 4, 5}
  assert checkpoint.latest_step(saved[0]) == 5


def test_parameters_load_without_the_rest(saved):
  workdir, state = saved
  like = state_on(1, seed=2)
  params = checkpoint.load_params(workdir, like=like.params)
  teacher = checkpoint.load_teacher(workdir, like=like.teacher)
  jax.tree.map(np.testing.assert_array_equal, params, state.params)
  jax.tree.map(np.testing.assert_array_equal, teacher, state.teacher)


def test_differing_leaves_are_all_named(saved):
  workdir, state = saved
  like = dict(jax.device_get(state.params))
  like['head'] = {'bias': np.zeros(3)}
  like['encoder'] = {**like['encoder'], 'clip': np.zeros(7)}
  del like['decoder']
  with pytest.raises(ValueError) as error:
    checkpoint.load_params(workdir, like=like)
  for part in ('head/bias want (3,), got nothing',
               'encoder/clip want (7,), got (32,)',
               'decoder/out/bias want nothing, got (32,)'):
    assert part in str(error.value)


def test_no_run_folder_is_told_from_an_empty_one(tmp_path):
  for path, message in ((tmp_path / 'none', 'does not exist'),
                        (tmp_path, 'without checkpoints/')):
    with pytest.raises(ValueError, match=message):
      checkpoint.load_params(str(path), like={})
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(ValueError, match='without a complete checkpoint'):
    checkpoint.load_params(str(tmp_path), like={})


def test_interrupted_save_does_not_count(saved, tmp_path):
  """What a kill leaves behind is a folder with a temporary name."""
  folder = tmp_path / 'checkpoints'
  folder.mkdir()
  (folder / '7.orbax-checkpoint-tmp').mkdir()
  assert checkpoint.latest_step(tmp_path) is None


def test_state_is_saved_as_it_was_though_training_goes_on(tmp_path):
  """Saving is asynchronous and steps reuse the state's memory."""
  config = tiny.stage1(tmp_path)
  mesh = train.make_mesh(config)
  step_fn, state = train.compile_step(config, mesh), state_on(1)
  from sslam_jax import data
  feed = data.Feed(config.data, batch=8, seed=1, patch=16, mesh=mesh)
  views = next(feed).views
  feed.close()
  saver = checkpoint.Checkpointer(tmp_path, config.keep)
  before = jax.device_get(jax.tree.map(jnp.copy, state.params))
  saver.save(1, state, {})
  for _ in range(3):
    state, _ = step_fn(state, views)
  saver.close()
  loaded = checkpoint.load_params(tmp_path, like=state.params)
  jax.tree.map(np.testing.assert_array_equal, loaded, before)


def test_hung_save_ends_by_patience(tmp_path, monkeypatch):
  let_go = threading.Event()

  async def hang(*_):
    let_go.wait(60)

  monkeypatch.setattr(ocp.JsonCheckpointHandler, '_save_fn', hang)
  saver = checkpoint.Checkpointer(tmp_path, checkpoint.Keep(every=1),
                                  patience_s=0.5)
  saver.save(1, state_on(1), {})
  with pytest.raises(checkpoint.SaveHung,
                     match=r'timed out after .* \(patience_s: 0.5\)'):
    saver.wait()
  let_go.set()
  assert checkpoint.latest_step(tmp_path) is None


def test_hung_save_of_another_process_is_not_taken_for_ones_own(
    tmp_path, monkeypatch
):
  def wait(self):
    barrier = jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: Barrier')
    raise TimeoutError('async_write_complete') from barrier

  saver = checkpoint.Checkpointer(tmp_path, checkpoint.Keep(every=1))
  monkeypatch.setattr(ocp.CheckpointManager, 'wait_until_finished', wait)
  with pytest.raises(jax.errors.JaxRuntimeError, match='DEADLINE_EXCEEDED'):
    saver.wait()


def test_what_a_killed_run_left_unfinished_is_removed(tmp_path):
  left = tmp_path / 'checkpoints' / '7.orbax-checkpoint-tmp' / 'params'
  left.mkdir(parents=True)
  checkpoint.Checkpointer(tmp_path, tiny.stage1('unused').keep).close()
  assert not left.parent.exists()


def test_weights_alone_are_for_others_to_start_from(saved, tmp_path):
  params, teacher = {'encoder': {'a': np.ones(2)}}, {'a': np.zeros(2)}
  workdir = str(tmp_path / 'run')
  checkpoint.save_weights(workdir, 9, params, teacher)
  assert checkpoint.latest_step(workdir) == 9
  assert checkpoint.contents(workdir) == ('encoder', 'teacher')
  jax.tree.map(np.testing.assert_array_equal,
               checkpoint.load_params(workdir, like=params), params)
  jax.tree.map(np.testing.assert_array_equal,
               checkpoint.load_teacher(workdir, like=teacher), teacher)
  with pytest.raises(ValueError, match=f'--config.init_from={workdir} with'):
    checkpoint.check_resumable(workdir)
  for other in (saved[0], tmp_path / 'new'):
    checkpoint.check_resumable(str(other))


def test_what_is_not_there_is_told_by_its_name(tmp_path):
  params = {'encoder': {'a': np.ones(2)}}
  workdir = str(tmp_path / 'run')
  checkpoint.save_weights(workdir, 9, params, None)
  like = {**params, 'decoder': {'b': np.ones(3)}}
  with pytest.raises(ValueError, match='step 9, params: want decoder, encoder, '
                     'got encoder alone'):
    checkpoint.load_params(workdir, like=like)
  with pytest.raises(ValueError, match='want student and teacher, got encoder'):
    checkpoint.load_teacher(workdir, like=params['encoder'])
