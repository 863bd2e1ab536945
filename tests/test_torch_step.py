"""The step in plain PyTorch: the same numbers as ours, timed in turns."""

import dataclasses
import functools
import sys
import types

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from sslam_jax import masking
from sslam_jax import mixing
from sslam_jax import model
from sslam_jax import optim
from sslam_jax import torch_io
from sslam_jax import train
from sslam_jax import views as views_lib
from tests import tiny
from tools import benchmark
from tools.benchmarks import table
from tools.benchmarks import training

torch = pytest.importorskip('torch')
torch_step = pytest.importorskip('tools.benchmarks.torch_step')

UPDATES = 3
CPU = torch.device('cpu')
DECODER = 'modality_encoders.IMAGE.decoder.'


@pytest.fixture(autouse=True, scope='module')
def one_thread():
  """Threads that wait for each other would take minutes on a busy machine."""
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(threads)


def config_of(stage) -> train.Config:
  """Without noise, which no two libraries draw alike."""
  config = {1: tiny.stage1, 2: tiny.stage2}[stage]('unused')
  config.objective.decoder = model.Decoder(depth=2, groups=4, noise_std=0.0)
  if stage == 2:
    config.objective.local_layers, config.objective.global_layers = 1, 2
  config.objective.global_weight = 2.0  # 192 would drown the other terms
  # The second update is at the peak, the third is not.
  config.optim = optim.Optim(
      peak_lr=1e-3, min_lr=1e-4, warmup_steps=1, clip_norm=0.5,
      decay_mask={1: 'all', 2: 'matrices'}[stage], weight_decay=5.0,
  )
  return config


@functools.cache
def views_of(stage, update=0) -> views_lib.Views:
  rng, grid = np.random.default_rng((stage, update)), (8, 2)
  shape = tiny.BATCH, tiny.FRAMES, tiny.MEL_BINS
  mask, plan = masking.InverseBlock(hide=0.75, block=2), mixing.PartialMix()
  keep = np.stack([
      masking.kept_indices(mask.sample(rng, tiny.CLONES, grid))
      for _ in range(tiny.BATCH)
  ])
  mels = rng.standard_normal((3, *shape), np.float32)
  column = np.stack([plan.plan(rng, grid[0]) for _ in range(tiny.BATCH)])
  mixture = None
  if stage == 2:
    mixture = views_lib.Mixture((mels[1],), mels[2], column)
  return views_lib.Views(mels[0], keep, np.arange(tiny.BATCH, dtype=np.int32),
                         mixture)


@functools.cache
def step_of(stage):
  config = config_of(stage)
  return train.compile_step(config, train.make_mesh(config))


@functools.cache
def start_of(stage):
  """Student and another teacher, no tensor of which is constant."""
  config = config_of(stage)
  state = jax.device_get(train.create_state(config, train.make_mesh(config)))
  rng = np.random.default_rng(0)

  def disturb(tree):
    return jax.tree.map(lambda x: x + np.float32(0.1) * rng.standard_normal(
        x.shape, np.float32), tree)

  return dataclasses.replace(state, params=disturb(state.params),
                             teacher=disturb(state.teacher))


@functools.cache
def ours(stage):
  """Loss and clipped gradient of the first update; the state after the last."""
  config, state = config_of(stage), start_of(stage)
  mesh = train.make_mesh(config)
  # Placed as in `measure`: otherwise the step would be compiled twice.
  spread = NamedSharding(mesh, PartitionSpec(views_lib.AXIS))
  views = [jax.device_put(views_of(stage, update), spread)
           for update in range(UPDATES)]
  state = jax.device_put(state, train.shardings(state, config, mesh))
  state, first = step_of(stage)(state, views[0])
  adam = next(x for x in jax.tree.leaves(
      state.opt_state, is_leaf=lambda x: hasattr(x, 'mu')) if hasattr(x, 'mu'))
  # The mean starts with 1 - beta1 of it.
  gradient = jax.tree.map(lambda x: np.asarray(x) / np.float32(0.1), adam.mu)
  for update in range(1, UPDATES):
    state, _ = step_of(stage)(state, views[update])
  return first, gradient, jax.device_get(state)


def named(step, tensors):
  """Our trees of PyTorch's tensors: (student's, teacher's)."""

  def arrays(module, prefix):
    return {prefix + name: tensors(x).numpy(force=True)
            for name, x in module.named_parameters()}

  encoder, teacher = (
      torch_io.from_huggingface(arrays(module, 'model.'))
      for module in (step.encoder, step.teacher)
  )
  decoder = arrays(step.decoder, DECODER)
  return (torch_io.from_torch(encoder | decoder),
          torch_io.from_torch(teacher)['encoder'])


def distance(tree, other, *, of):
  """Norm of the difference of each leaf, by that of another: the largest."""
  def relative(a, b, c):
    return float(np.linalg.norm(a - b) / np.linalg.norm(c))

  return max(jax.tree.leaves(jax.tree.map(relative, tree, other, of)))


def flat(tree):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@pytest.mark.parametrize('layout', torch_step.LAYOUTS)
@pytest.mark.parametrize('stage', [1, 2])
def test_updates_are_ours(stage, layout):
  config, start = config_of(stage), start_of(stage)
  metrics, gradient, end = ours(stage)
  step = torch_step.Step(config, start.params, start.teacher, CPU,
                         torch_step.LAYOUTS[layout])
  loss = float(step(torch_step.placed(views_of(stage), CPU)))
  assert loss == pytest.approx(float(metrics['loss']), rel=1e-5)
  assert float(metrics['grad_norm']) > config.optim.clip_norm
  theirs, _ = named(step, lambda x: x.grad if x.grad is not None else x)
  assert distance(theirs, gradient, of=gradient) < 1e-4
  for update in range(1, UPDATES):
    step(torch_step.placed(views_of(stage, update), CPU))
  params, teacher = named(step, lambda x: x)

  # All at once, as Adam makes whole steps of gradients that are rounding.
  change = flat(end.params) - flat(start.params)
  assert distance(flat(params), flat(end.params), of=change) < 1e-3
  change = flat(end.teacher) - flat(start.teacher)
  assert distance(flat(teacher), flat(end.teacher), of=change) < 1e-3


def loss_of(views, **changes):
  config, start = config_of(2), start_of(2)
  config.objective = dataclasses.replace(config.objective, **changes)
  step = torch_step.Step(config, start.params, start.teacher, CPU)
  return step.loss(torch_step.placed(views, CPU)).item()


def test_mixed_clips_alone_are_learned_like_clean_ones():
  views = views_of(2)
  as_clean = dataclasses.replace(views, mel_BxTxF=views.mixture.mel_BxTxF)
  alone = {'retention_weight': 0.0}
  mixed = loss_of(views, clean=False, **alone)
  assert mixed == loss_of(as_clean, mixed=False, **alone)
  clean = loss_of(views, mixed=False, **alone)
  assert loss_of(views, **alone) == pytest.approx((clean + mixed) / 2, rel=1e-5)
  assert clean != pytest.approx(mixed, rel=1e-3)


def test_retention_counts_all_hidden_patches_where_told_to():
  everywhere = np.tile(np.arange(8, dtype=np.int32), (tiny.BATCH, 1))
  mixture = dataclasses.replace(views_of(2).mixture, column_BxC=everywhere)
  views = dataclasses.replace(views_of(2), mixture=mixture)
  assert loss_of(views) == loss_of(views, srl_patches='all')
  assert loss_of(views_of(2)) != pytest.approx(
      loss_of(views_of(2), srl_patches='all'), rel=1e-3)


def test_products_are_in_bfloat16_where_ours_are():
  config, start = config_of(2), start_of(2)
  config.objective.vit.dtype = 'bfloat16'
  step = torch_step.Step(config, start.params, start.teacher, CPU)
  dtypes = []
  for module in (step.encoder, step.teacher):
    module.blocks[0].attn.qkv.register_forward_hook(
        lambda *args: dtypes.append(args[-1].dtype))
  loss = step(torch_step.placed(views_of(2), CPU))
  assert dtypes == [torch.bfloat16] * 3  # of the teacher two
  error = float(loss) / float(ours(2)[0]['loss']) - 1
  assert 1e-6 < abs(error) < 2e-2
  for x in (*step.encoder.parameters(), *step.decoder.parameters()):
    assert x.dtype == x.grad.dtype == torch.float32


def test_noise_stands_for_hidden_patches_alone():
  config = model.Decoder(depth=1, groups=4, noise_std=0.5)
  decoder = torch_step.Decoder(32, config, torch.channels_last)
  seen = []
  decoder.blocks[0].register_forward_pre_hook(
      lambda _, inputs: seen.append(inputs[0].permute(0, 2, 3, 1).flatten(1, 2))
  )
  keep = torch.tensor([[1, 9], [0, 15]])
  patch = torch.full((2, 2, 32), 7.0)
  for _ in range(2):
    decoder(patch, keep, (8, 2))
  for x in seen:
    assert (x == 7.0).all(2).nonzero().tolist() == [
        [0, 1], [0, 9], [1, 0], [1, 15]]
    assert x[x != 7.0].std() == pytest.approx(0.5, rel=0.1)
  assert not torch.equal(*seen)


def test_both_are_timed_in_turns(monkeypatch):
  """By a clock that steps alone move on, slower from round to round."""
  config, now, calls = config_of(2), [0.0], []
  monkeypatch.setattr('time.perf_counter', lambda: now[0])
  monkeypatch.setattr('tools.benchmarks.machine.cores', lambda: 1)
  their_step = torch_step.Step.__call__

  def ours(state, views):
    now[0] += 1.0 + calls.count('ours')
    calls.append('ours')
    return step_of(2)(state, views)

  def theirs(step, views):
    is_first = step.decoder.layout == torch.contiguous_format
    now[0] += (2.5 if is_first else 5) * (1.0 + calls.count('ours'))
    calls.append('theirs' if is_first else 'slower')
    return their_step(step, views)

  monkeypatch.setattr(torch_step.Step, '__call__', theirs)
  program = training.Program(step=ours, trace_s=0.0, compile_s=0.0, flops=None,
                             flops_once=None)
  mesh = train.make_mesh(config)
  measured = torch_step.measure(config, mesh, program, seconds=600.0)
  assert set(measured) == set(table.TITLES['torch'])
  assert measured['layout'] == 'channels first'
  # Round i takes 46.5 + 31.5 i seconds.
  assert measured['rounds'] == 6
  tried, rest = calls[:8], calls[8:]
  assert tried == ['slower'] * 4 + ['theirs'] * 4
  assert rest == ['ours', 'theirs'] + (['ours'] * 3 + ['theirs'] * 3) * 6
  ours_s, theirs_s = 3 + 3 * np.arange(6), 2.5 * (5 + 3 * np.arange(6))
  ratios = theirs_s / ours_s
  assert measured['step_s'] == np.median(ours_s)
  assert measured['torch_step_s'] == np.median(theirs_s)
  assert measured['clips_per_s'] == tiny.BATCH / np.median(ours_s)
  assert measured['torch_clips_per_s'] == tiny.BATCH / np.median(theirs_s)
  assert measured['ratio'] == pytest.approx(np.median(ratios))
  assert measured['ratio_range'] == pytest.approx([min(ratios), max(ratios)])
  assert measured['torch_loss'] == pytest.approx(measured['loss'], rel=1e-5)


def test_frames_that_fill_no_patch_are_dropped():
  start = start_of(1)
  step = torch_step.Step(config_of(1), start.params, start.teacher, CPU)
  mel = torch.from_numpy(views_of(1).mel_BxTxF)
  longer = torch.nn.functional.pad(mel, (0, 0, 0, 2), value=9.0)
  assert torch.equal(*(torch_step.encode(step.encoder, x)[0]
                       for x in (mel, longer)))


@pytest.mark.parametrize(('changes', 'message'), [
    (vars(tiny.classify('unused')) | {'optim': config_of(1).optim},
     'objective: want MaskedLatent or SourceRetention .* got Classify'),
    ({'optim': optim.Optim(peak_lr=1.0, warmup_steps=1, layer_decay=0.5)},
     'optim.layer_decay: want None .* got 0.5'),
    ({'devices': 2}, 'devices: want 1 .* got 2'),
])
def test_what_cannot_be_compared_is_refused(changes, message):
  config = config_of(1)
  for name, value in changes.items():
    setattr(config, name, value)
  with pytest.raises(ValueError, match=message):
    torch_step.check(config, train.make_mesh(config))


def test_longer_clips_than_have_positions_are_refused():
  config = config_of(1)
  mesh = train.make_mesh(config)
  config.data.mel.frames = 768 * 16 + 15
  torch_step.check(config, mesh)
  config.data.mel.frames += 1
  with pytest.raises(ValueError, match='frames: want at most 12288 .* 12304'):
    torch_step.check(config, mesh)


def test_torch_has_to_run_where_jax_does(monkeypatch):
  config = config_of(1)
  mesh = train.make_mesh(config)
  torch_step.check(config, mesh)
  gpu = types.SimpleNamespace(platform='gpu')
  mesh = types.SimpleNamespace(size=1, devices=np.array([gpu], object))
  monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
  with pytest.raises(ValueError, match=r"torch: want .* JAX's gpu .* got \d"):
    torch_step.check(config, mesh)
  monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
  torch_step.check(config, mesh)


def test_the_tool_compares_where_it_is_told_to(tmp_path, capsys, monkeypatch):
  path = tmp_path / 'config.py'
  path.write_text('from tests import tiny\n'
                  'def get_config(arg=""):\n'
                  '  return tiny.stage2("nowhere")\n')
  args = [f'--config={path}', '--parts=source', '--seconds=0.01']
  row = dict.fromkeys(table.TITLES['torch'], 1) | {'ratio_range': [1.5, 2.5]}
  given = []
  monkeypatch.setattr(training, 'compile_step', lambda *_: 'program')
  monkeypatch.setattr(torch_step, 'measure',
                      lambda *args: given.append(args[2:]) or row)
  assert benchmark.main(args) == 0
  assert '\ntorch\n' not in capsys.readouterr().out and not given
  assert benchmark.main([*args, '--parts=source,torch']) == 0
  printed = capsys.readouterr().out
  assert '\nsource\n' in printed
  assert printed.index('\ntorch\n') < printed.index('  1.5 2.5\n')
  assert given == [('program', 0.01)]
  args.append('--parts=source,torch')
  assert benchmark.main([*args, '--config.devices=2']) == 2
  captured = capsys.readouterr()
  assert 'error: devices: want 1' in captured.err
  assert 'benchmark: source' not in captured.err
  monkeypatch.setitem(sys.modules, 'torch', None)
  assert benchmark.main(args) == 2
  captured = capsys.readouterr()
  assert 'error: torch: want it installed' in captured.err
  assert 'benchmark: source' not in captured.err
