"""The benchmark tool: known rates, known work, and what it prints."""

import dataclasses
import itertools
import json
import pathlib
import subprocess
import time
import types

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from configs import stage1
from configs import stage2
from sslam_jax import audio
from sslam_jax import clips
from sslam_jax import model
from sslam_jax import sampling
from sslam_jax import train
from tests import tiny
from tools import benchmark
from tools.benchmarks import collectives
from tools.benchmarks import comparison
from tools.benchmarks import flops
from tools.benchmarks import formats
from tools.benchmarks import machine
from tools.benchmarks import memory
from tools.benchmarks import projection
from tools.benchmarks import reading
from tools.benchmarks import scaling
from tools.benchmarks import table
from tools.benchmarks import training


@dataclasses.dataclass(kw_only=True)
class Slow:
  """Silence that takes a known time to read; every `bad`-th is damaged."""

  read_s: float
  bad: int | None = None

  classes = ()

  def __len__(self):
    return 1000

  def __getitem__(self, index):
    def read(start, count):
      time.sleep(self.read_s)
      return np.zeros(count, np.float32)

    if self.bad is not None and index % self.bad == 0:
      raise clips.BadClip(str(index), 'damage')
    return clips.Clip(
        id=str(index), labels=(), rate_hz=16_000, samples=16_000, read=read
    )

  def labels(self, index):
    return ()


def _config() -> train.Config:
  return tiny.stage2('unused', devices=2)


@pytest.fixture(scope='module')
def program():
  config = _config()
  return training.compile_step(config, train.make_mesh(config))


def _flops(function, *args) -> int:
  return flops.count(jax.jit(function).trace(*args).jaxpr)


def _xla_flops(function, *args) -> float:
  return jax.jit(function).lower(*args).cost_analysis()['flops']


def test_flops_of_a_step_are_those_of_the_unrolled_program(monkeypatch):
  config = tiny.stage2('unused', batch=12)
  # At this size products are 99 % of what XLA counts; compiled, not run.
  config.objective.vit = model.Vit(depth=2, dtype='float32')
  config.objective.decoder = model.Decoder(depth=2)
  config.data.mel = audio.LogMel(frames=1024, mel_bins=32)
  config.data.views.clones = 8
  mesh = train.make_mesh(config)
  scanned = flops.count(training.trace_step(config, mesh).jaxpr)
  scan = jax.lax.scan
  monkeypatch.setattr(
      jax.lax, 'scan', lambda *args, **options: scan(
          *args, **{**options, 'unroll': True})
  )
  unrolled = training.trace_step(config, mesh)
  assert scanned == flops.count(unrolled.jaxpr)
  xla = unrolled.lower().compile().cost_analysis()['flops']
  assert scanned == pytest.approx(xla, rel=0.02)


def test_flops_per_clip_depend_on_no_number_of_devices():
  counts = []
  for devices in (1, 4):
    config = tiny.stage2('unused', devices=devices)
    traced = training.trace_step(config, train.make_mesh(config))
    counts.append(flops.count(traced.jaxpr) * devices)
  assert counts[0] == counts[1] > 0


def test_flops_count_what_is_computed_again():
  config = tiny.stage1('unused')
  mesh = train.make_mesh(config)
  once = flops.count(training.trace_step(config, mesh).jaxpr)
  config.objective.vit.remat = True
  again = flops.count(training.trace_step(config, mesh).jaxpr)
  assert 1.1 * once < again < 4 / 3 * once


def test_flops_of_products():
  a, b = jnp.zeros((3, 5, 7)), jnp.zeros((3, 7, 11))
  assert _flops(jnp.matmul, a, b) == 2 * 3 * 5 * 7 * 11

  def looped(x):
    return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=6)[0]

  x = jnp.zeros((4, 4))
  assert _flops(looped, x) == 6 * 2 * 4**3
  once = flops.count(jax.jit(looped).trace(x).jaxpr, bodies_once=True)
  assert once == 2 * 4**3
  both = _flops(lambda i, x: jax.lax.switch(
      i, (lambda x: x @ x, looped), x), 0, x)
  assert both == 6 * 2 * 4**3


@pytest.mark.parametrize(
    'options',
    [{}, {'padding': 'SAME'}, {'feature_group_count': 4}, {'strides': (2, 3)},
     {'padding': ((2, 1), (0, 3))},
     {'lhs_dilation': (2, 1), 'padding': ((1, 2), (0, 1))},
     {'rhs_dilation': (1, 2), 'padding': 'SAME'}],
)  # fmt: skip
def test_flops_of_convolutions_are_those_of_xla(options):
  options = {'padding': 'VALID', 'strides': (1, 1), **options}
  inputs = 8 // options.get('feature_group_count', 1)
  image, kernel = jnp.zeros((2, 9, 8, 8)), jnp.zeros((3, 2, inputs, 12))

  def convolve(image, kernel):
    return jax.lax.conv_general_dilated(
        image, kernel, options['strides'], options['padding'],
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        **{key: value for key, value in options.items()
           if key not in ('strides', 'padding')},
    )

  assert _flops(convolve, image, kernel) == _xla_flops(convolve, image, kernel)


def test_flops_of_fused_attention_are_those_of_the_plain_one(monkeypatch):
  cudnn = 'jax._src.cudnn.fused_attention_stablehlo.check_'
  monkeypatch.setattr(f'{cudnn}cudnn_version', lambda: 92_000)
  monkeypatch.setattr(f'{cudnn}compute_capability', lambda _: True)
  q, k = (jnp.zeros((2, tokens, 4, 8), 'bfloat16') for tokens in (24, 40))

  def attend(kind):
    return lambda q, k: jnp.sum(
        jax.nn.dot_product_attention(q, k, k, implementation=kind), dtype='f4')

  plain = 2 * 2 * 2 * 4 * 24 * 40 * 8
  assert _flops(attend('cudnn'), q, k) == _flops(attend('xla'), q, k) == plain
  # Two products forward and four backward, and one of the scores again.
  assert _flops(jax.grad(attend('xla'), (0, 1)), q, k) == 3 * plain
  assert _flops(jax.grad(attend('cudnn'), (0, 1)), q, k) == 3.5 * plain


def test_work_that_cannot_be_known_is_not_counted():
  def until(x):
    return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x)

  with pytest.raises(flops.UncountableError, match='products in a while'):
    _flops(until, jnp.zeros((4, 4)))
  assert _flops(lambda x: jax.lax.while_loop(
      lambda x: x < 5, lambda x: x + 1, x), 0) == 0


def test_source_rate_is_that_of_its_reads():
  config = tiny.stage1('unused')
  config.data.source = Slow(read_s=0.01)
  rows = reading.measure_sources(config.data, seconds=0.4)
  assert [row['threads'] for row in rows] == [1, 2]
  assert rows[0]['clips_per_s'] == pytest.approx(100, rel=0.25)
  assert rows[1]['clips_per_s'] == pytest.approx(200, rel=0.25)
  assert rows[0]['bad_clips'] == 0 and rows[0]['clips'] == 1000


def test_parts_of_a_source_are_measured_too():
  config = tiny.stage1('unused')
  fast = sampling.Weighted(source=Slow(read_s=0.001), clips_per_epoch=10)
  config.data.source = sampling.Concat(
      parts=(Slow(read_s=0.02, bad=2), fast), shares=(1.0, 1.0)
  )
  config.data.threads = 1
  rows = reading.measure_sources(config.data, seconds=0.3)
  name = 'data.source'
  assert [row['source'] for row in rows] == [
      name, f'{name}.parts[0]', f'{name}.parts[1]', f'{name}.parts[1].source'
  ]
  assert rows[2]['kind'] == 'Weighted'
  assert rows[1]['clips_per_s'] == pytest.approx(50, rel=0.25)
  assert rows[2]['clips_per_s'] > 200
  assert rows[1]['bad_clips'] > 3 and rows[2]['bad_clips'] == 0


def test_pipeline_rate_is_that_of_its_reads():
  config = tiny.stage2('unused')
  config.data.source = Slow(read_s=0.01)
  row = reading.measure_pipeline(config, workers=0, seconds=0.5)
  assert row['clips_per_s'] == pytest.approx(200, rel=0.3)  # 2 threads
  assert row['batches'] >= 0.5 * row['clips_per_s'] / tiny.BATCH
  config.data.threads = 1
  row = reading.measure_pipeline(config, workers=0, seconds=0.5)
  assert row['clips_per_s'] == pytest.approx(100, rel=0.3)
  assert row['start_s'] > tiny.BATCH * 0.01


def test_pipeline_leaves_out_what_was_read_during_its_start(monkeypatch):
  def records(data, *, batch, seed, patch):
    assert (data.workers, batch, seed) == (1, tiny.BATCH, 1)
    for number in itertools.count():
      time.sleep(0.0 if number in (1, 2) else 0.05)
      yield {}

  monkeypatch.setattr('sslam_jax.data.records', records)
  config = tiny.stage2('unused')
  row = reading.measure_pipeline(config, workers=1, seconds=0.12)
  assert row['clips_per_s'] == pytest.approx(tiny.BATCH / 0.05, rel=0.2)
  assert row['batches'] == 3 and row['workers'] == 1


def test_loop_waits_for_slow_data_only(program):
  config = _config()
  config.data.source = Slow(read_s=0.06, bad=3)
  mesh = train.make_mesh(config)
  slow = training.measure_loop(config, mesh, program, seconds=0.5)
  assert 0.7 < slow['waiting_share'] <= slow['drawing_share'] <= 1
  assert slow['clips_per_s'] == pytest.approx(33, rel=0.3)
  assert slow['skipped_clips'] > 3
  config.data.source = Slow(read_s=0.0)
  fast = training.measure_loop(config, mesh, program, seconds=0.5)
  assert fast['waiting_share'] < 0.5
  assert fast['clips_per_s'] > 2 * slow['clips_per_s']
  assert fast['skipped_clips'] == 0


class Device:
  """A step that takes a known time, while this process goes on."""

  def __init__(self, step_s):
    self._step_s, self._free_s = step_s, 0.0

  def __call__(self, state, views):
    self._free_s = max(time.perf_counter(), self._free_s) + self._step_s
    return state, Late(self._free_s)


class Late:
  """A result that is there at some time."""

  def __init__(self, ready_s):
    self._ready_s = ready_s

  def block_until_ready(self):
    time.sleep(max(0.0, self._ready_s - time.perf_counter()))
    return self

  def __array__(self):
    self.block_until_ready()
    return np.zeros(())


def test_drawing_while_the_device_computes_is_no_waiting(program):
  config = _config()
  config.data.source = Slow(read_s=0.05)  # 0.2 s a batch
  device = dataclasses.replace(program, step=Device(0.15))
  mesh = train.make_mesh(config)
  loop = training.measure_loop(config, mesh, device, seconds=0.1)
  assert loop['step_s'] == pytest.approx(0.2, rel=0.2)
  assert loop['waiting_share'] == pytest.approx(0.25, abs=0.12)
  assert loop['drawing_share'] > 0.5


def test_step_is_measured_against_the_machine(program, monkeypatch):
  monkeypatch.setattr(machine, '_EDGES', {'cpu': 1024})
  config = _config()
  mesh = train.make_mesh(config)
  step = training.measure_step(config, mesh, program, seconds=0.01)
  assert set(step) == set(table.TITLES['step'])
  assert len(step['step_s_all']) == 6
  assert step['step_s'] == np.median(step['step_s_all']) > 0
  assert step['clips_per_s'] == pytest.approx(tiny.BATCH / step['step_s'])
  assert step['gflop_per_clip'] * tiny.BATCH == pytest.approx(
      mesh.size * program.flops / 1e9)
  assert mesh.size * step['gflop_per_s'] == pytest.approx(
      step['gflop_per_clip'] * step['clips_per_s'])
  assert step['matmul_share'] == pytest.approx(
      step['gflop_per_s'] / step['matmul_gflop_per_s'])
  assert 0 < step['matmul_share'] < 1
  # Less than XLA counts of all operations, in which loops count once as well.
  assert step['loops_once_gflop'] < step['loops_once_gflop_xla']
  assert step['loops_once_gflop'] * 1e9 < program.flops
  assert step['program_bytes'] == (
      step['program_temp_bytes'] + step['program_argument_bytes']
      + step['program_output_bytes'] - step['program_alias_bytes'])
  assert step['program_alias_bytes'] > 0  # the state is donated
  assert step['process_peak_bytes'] > step['program_bytes']
  assert np.isfinite(step['loss'])


def _found(text, devices):
  found = collectives.count(text, devices)
  return {kind: tuple(found[kind, what] for what in
                      ('calls', 'bytes', 'sent_bytes'))
          for kind in collectives.KINDS if found[kind, 'calls']}


def test_collectives_of_a_compiled_program():
  mesh = jax.make_mesh((4,), ('data',))

  def sharded(x):
    x = jax.lax.psum_scatter(x, 'data', tiled=True)
    x, _ = jax.lax.scan(lambda x, _: (jax.lax.psum(x, 'data') / 2, None), x,
                        None, length=7)
    x = jax.lax.ppermute(x, 'data', [(i, (i + 1) % 4) for i in range(4)])
    return jax.lax.all_gather(x, 'data', tiled=True)

  spec = PartitionSpec()
  step = jax.jit(jax.shard_map(sharded, mesh=mesh, in_specs=spec,
                               out_specs=spec, check_vma=False))
  text = step.lower(jnp.ones((64, 16))).compile().as_text()
  whole = 64 * 16 * 4
  assert _found(text, 4) == {
      'reduce-scatter': (1, whole, whole * 3 / 4),
      'all-reduce': (7, 7 * whole / 4, 7 * whole / 4 * 2 * 3 / 4),
      'collective-permute': (1, whole / 4, whole / 4),
      'all-gather': (1, whole, whole * 3 / 4),
  }


_GPU_HLO = """HloModule jit_step, entry_computation_layout={()->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%async (p: bf16[16]) -> bf16[4] {
  %p = bf16[16]{0} parameter(0)
  ROOT %scatter = bf16[4]{0} reduce-scatter(%p), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
}

%few (c: (f32[8])) -> f32[8] {
  %c = (f32[8]{0}) parameter(0)
  ROOT %first = f32[8]{0} get-tuple-element(%c), index=0
}

%many (d: (f32[8])) -> f32[8] {
  %d = (f32[8]{0}) parameter(0)
  %second = f32[8]{0} get-tuple-element(%d), index=0
  ROOT %mean = f32[8]{0} all-reduce(%second), replica_groups={}, to_apply=%add
}

ENTRY %main (x: f32[8], y: pred[3], z: bf16[16]) -> f32[8] {
  %x = f32[8]{0:T(256)} parameter(0)
  %y = pred[3]{0} parameter(1)
  %z = bf16[16]{0} parameter(2)
  %which = pred[] constant(true)
  %gather = (f32[8]{0}, f32[64]{0}, /*index=2*/u32[]) all-gather-start(%x), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %gathered = f32[64]{0} all-gather-done(%gather)
  %reduce = (f32[8]{0}, pred[3]{0}) all-reduce-start(%x, %y), replica_groups=[4,2]<=[8], to_apply=%add
  %reduced = (f32[8]{0}, pred[3]{0}) all-reduce-done(%reduce)
  %alone = f32[8]{0} all-reduce(%x), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  %start = ((bf16[16]{0}), bf16[4]{0}, u32[]) async-start(%z), calls=%async
  %done = bf16[4]{0} async-done(%start)
  %pair = (f32[8]{0}) tuple(%x)
  ROOT %out = f32[8]{0} conditional(%which, %pair, %pair), true_computation=%few, false_computation=%many
}
"""  # noqa: E501


def test_collectives_as_written_for_a_gpu():
  assert _found(_GPU_HLO, 8) == {
      'all-gather': (1, 8 * 32, 7 * 32),
      # In pairs, and in a branch among all eight.
      'all-reduce': (2, 35 + 32, 35 + 2 * 7 / 8 * 32),
      'reduce-scatter': (1, 32, 3 / 4 * 32),
  }


def test_collectives_in_a_loop_of_unknown_length_are_not_counted():
  text = _GPU_HLO.replace('conditional(%which, %pair, %pair), true_computation',
                          'while(%pair), condition')
  text = text.replace('false_computation', 'body')
  with pytest.raises(flops.UncountableError, match='collectives in a while'):
    collectives.count(text, 8)


def test_scaling_counts_the_gradients_once_and_times_real_devices(
    program, monkeypatch, capsys
):
  monkeypatch.setattr(training, 'compile_step', lambda *_: program)
  config = _config()
  [row] = scaling.measure_scaling(config, [2], seconds=0.01)
  assert set(row) == set(table.TITLES['scaling'])
  state = jax.eval_shape(
      lambda: train.create_state(config, train.make_mesh(config)))
  learned = 4 * sum(x.size for x in jax.tree.leaves(state.params))
  # The rest are sums of losses and moments.
  assert learned < row['all_reduce_bytes'] < learned + 2000
  assert row['sent_bytes'] == pytest.approx(row['all_reduce_bytes'], abs=9)
  assert row['all_gather_bytes'] == row['other_bytes'] == 0
  assert row['device_gflop'] * 1e9 == program.flops
  assert row['batch'] == tiny.BATCH and row['clips_per_s'] == (
      pytest.approx(tiny.BATCH / row['step_s']))

  def unknown(*_):
    raise flops.UncountableError('a loop')

  monkeypatch.setattr(collectives, 'count', unknown)
  [row] = scaling.measure_scaling(config, [2], seconds=0.01)
  assert row['sent_bytes'] is row['all_reduce_bytes'] is None
  assert 'collectives not counted: a loop' in capsys.readouterr().err


def test_scaling_to_more_devices_than_there_are_is_compiled_only(monkeypatch):
  config = tiny.classify('unused', devices=2, batch=4)
  config.objective.vit.depth = 1
  monkeypatch.setattr(training, 'compile_step', None)  # not here
  [row] = scaling.measure_scaling(config, [8], seconds=0.01)
  assert (row['devices'], row['batch'], row['on']) == (8, 16, 'virtual CPU')
  assert row['step_s'] is None and row['device_gflop'] > 0
  assert row['sent_bytes'] == pytest.approx(
      2 * 7 / 8 * row['all_reduce_bytes'], abs=9)
  monkeypatch.setattr(subprocess, 'run', lambda *_, **__: (
      subprocess.CompletedProcess([], 1, stdout='', stderr='at\nit broke\n')))
  with pytest.raises(ValueError, match='on 8 virtual devices: it broke'):
    scaling.measure_scaling(config, [8], seconds=0.01)


def test_program_takes_the_state_as_it_will_be_spread(monkeypatch):
  config = _config()
  mesh = train.make_mesh(config)
  whole, part = (NamedSharding(mesh, spec) for spec in
                 (PartitionSpec(), PartitionSpec('data')))

  def create(*_):
    return jax.jit(lambda: {'a': jnp.zeros(2), 'b': jax.random.key(0)},
                   out_shardings={'a': part, 'b': whole})()

  monkeypatch.setattr(train, 'create_state', create)
  state, views = training.arguments(config, mesh)
  assert state['a'].sharding == part and state['b'].sharding == whole
  assert state['b'].dtype == jax.random.key(0).dtype
  assert views.mel_BxTxF.sharding == part


class Planned:
  """A program that takes 1000 bytes and 100 per clip of its 2 devices."""

  def __init__(self, batch):
    self._temp = 700 + 100 * batch // 2

  def memory_analysis(self):
    return types.SimpleNamespace(
        temp_size_in_bytes=self._temp, argument_size_in_bytes=300,
        output_size_in_bytes=40, alias_size_in_bytes=40,
        peak_memory_in_bytes=self._temp,
    )


@pytest.fixture
def planned(monkeypatch, program):
  def compile_step(config, mesh):
    assert mesh.size == 2 and config.batch // 2 % config.data.views.group == 0
    return dataclasses.replace(program, step=Planned(config.batch))

  monkeypatch.setattr(training, 'compile_step', compile_step)


def test_memory_by_batch_and_the_largest_that_fits(planned, monkeypatch):
  config = _config()
  config.data.views.mix.group = 3
  monkeypatch.setattr(machine, 'device_limit_bytes', lambda _: 2599)
  measured = memory.measure_memory(config, (12, 4, 24))
  rows, line = measured['memory'], measured['memory_line']
  assert set(rows[0]) >= set(table.TITLES['memory'])
  assert set(line) == set(table.TITLES['memory_line'])
  assert [row['batch'] for row in rows] == [4, 12, 24]
  assert [row['program_bytes'] for row in rows] == [1200, 1600, 2200]
  assert {row['ran'] for row in rows} == {None}
  assert line['fixed_bytes'] == pytest.approx(1000)
  assert line['clip_bytes'] == pytest.approx(100)
  assert line['residual_share'] == pytest.approx(0, abs=1e-9)
  assert line['largest_batch'] == 30  # of 2 devices x groups of 3
  assert config.data.views.mix.group == 3
  assert 'memory_line' not in memory.measure_memory(config, (12,))


def test_memory_is_that_used_where_devices_tell_it(planned, monkeypatch):
  peaks = {4: 900, 8: 2000, 16: 4000}  # before them 1000
  used = [1000]

  def updates(config, mesh, program):
    if config.batch == 32:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')
    return lambda: used.append(max(used[-1], peaks[config.batch]))

  monkeypatch.setattr(training, 'updates', updates)
  monkeypatch.setattr(machine, 'device_peak_bytes', lambda _: used[-1])
  measured = memory.measure_memory(_config(), (4, 8, 16, 32))
  rows, line = measured['memory'], measured['memory_line']
  assert [row['ran'] for row in rows] == [True, True, True, False]
  assert [row['device_peak_bytes'] for row in rows] == [None, 2000, 4000, None]
  assert (line['line_of'], line['largest_batch']) == ('device_peak_bytes', None)
  assert line['fixed_bytes'] == pytest.approx(0, abs=1e-6)
  assert line['clip_bytes'] == pytest.approx(500)


def _published(monkeypatch, config):
  """FLOPs of a published run's clip, counted once."""
  work = projection.clip_flops(config)
  monkeypatch.setattr(projection, '_published_flops', lambda _: work)
  return work


def test_projection_of_the_published_run(monkeypatch):
  config = stage2.get_config()
  assert _published(monkeypatch, config) == pytest.approx(1230e9, rel=1e-3)
  config.objective.vit.remat = True  # is time, but no other work
  rows = projection.project(
      config, [{'devices': 1, 'batch': 12, 'step_s': 0.1},
               {'devices': 4, 'batch': 48, 'step_s': 0.125}])
  assert set(rows[0]) == set(table.TITLES['projection'])
  hours = 200_000 * 4 * 0.1 / 3600  # 4 steps of 12 clips an update
  assert [row['devices'] for row in rows] == [1, 2, 4, 8]
  assert [row['device_hours'] for row in rows] == pytest.approx(
      [hours, hours, 1.25 * hours, 1.25 * hours])
  assert [row['hours'] for row in rows] == pytest.approx(
      [hours, hours / 2, 1.25 * hours / 4, 1.25 * hours / 8])
  assert [row['scaling'] for row in rows] == [
      'measured', 'perfect from 1', 'measured', 'perfect from 4']
  assert {row['work'] for row in rows} == {'published'}


def test_projection_from_another_amount_of_work_is_scaled_by_flops(
    monkeypatch, capsys
):
  config = stage1.get_config()
  published = _published(monkeypatch, config)
  assert published == pytest.approx(1084e9, rel=1e-3)
  config.data.views.clones = 8
  config.objective.vit.dtype = 'float32'
  work = published / projection.clip_flops(config)
  assert 1.5 < work < 2  # the teacher sees each clip once
  step = {'devices': 2, 'batch': 4, 'step_s': 0.01}
  row = projection.project(config, [step])[0]
  assert row['device_hours'] == pytest.approx(
      400_000 * 48 * 0.01 * 2 / 4 * work / 3600)
  assert row['scaling'] == 'perfect from 2'
  assert row['work'] == f'scaled, FLOPs x {work:.3g}, in float32'
  assert row['run'].startswith('stage 1, 400000 x 48')
  assert not projection.project(tiny.classify('unused'), [step])
  assert capsys.readouterr().err == ''
  assert not projection.project(tiny.stage1('unused'), [step])
  assert 'not projected: the published clip is ' in capsys.readouterr().err


def test_two_configurations_are_compared_by_turns(
    tmp_path, capsys, monkeypatch
):
  turns = []

  def updates(config, mesh, program):
    def update():
      turns.append(config.batch)
      time.sleep({8: 0.02, 16: 0.06}[config.batch])
    return update

  monkeypatch.setattr(training, 'compile_step', lambda *_: None)
  monkeypatch.setattr(training, 'updates', updates)
  file = tmp_path / 'out.json'
  args = [_config_file(tmp_path), '--seconds=0.01', f'--json={file}']
  assert benchmark.main([*args, '--against.batch=16']) == 0
  assert turns == [8, 16] * 7
  report = json.loads(file.read_text())
  assert (report['config']['batch'], report['against']['batch']) == (8, 16)
  compared = report['comparison']
  assert set(compared) == set(table.TITLES['comparison'])
  assert compared['turns'] == 6
  # 8 clips in 20 ms against 16 in 60.
  assert compared['ratio'] == pytest.approx(1.5, rel=0.15)
  low, high = compared['ratio_quartiles']
  assert high == pytest.approx(1.5, rel=0.3)
  assert compared['ratio_least'] <= low <= high <= compared['ratio_largest']
  assert 'times as fast as the other' in capsys.readouterr().out


# Writes the report that the file `speed` beside it says, and that it ran.
_TOOL = """
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
out = [a for a in sys.argv if a.startswith('--json=')][0].split('=')[1]
speed = json.loads((here / 'speed').read_text())
with open({log!r}, 'a') as log:
  tunables = os.environ.get('GLIBC_TUNABLES')
  log.write(json.dumps([speed, tunables, sys.argv[1:4]]) + '\\n')
if speed is None:
  sys.exit('error: it broke')
step = {{'batch': 8, 'step_s_all': [speed, speed * 1.1, speed * 0.9]}}
pathlib.Path(out).write_text(json.dumps(
    {{'step': step, 'config': {{}}, 'machine': {{'commit': str(speed)}}}}))
"""


@pytest.fixture
def repository(tmp_path):
  """(folder, its log): commits of 2 and of null, and 1 s in the checkout."""
  root, log = tmp_path / 'repository', tmp_path / 'log'
  (root / 'tools').mkdir(parents=True)
  (root / 'tools/benchmark.py').write_text(_TOOL.format(log=str(log)))
  git = ['git', '-C', str(root), '-c', 'user.name=n', '-c', 'user.email=e']
  subprocess.run([*git, 'init', '-q'], check=True)
  for speed in ('2.0', 'null', '1.0'):
    (root / 'tools/speed').write_text(speed)
    if speed != '1.0':
      subprocess.run([*git, 'add', '.'], check=True)
      subprocess.run([*git, 'commit', '-q', '-m', speed], check=True)
  return root, log


def test_the_checkout_is_compared_with_a_commit_by_turns(
    repository, monkeypatch
):
  root, log = repository
  # As after a restart: each side decides itself about its pages.
  monkeypatch.setenv('SSLAM_JAX_RESTARTED', 'before')
  monkeypatch.setenv('GLIBC_TUNABLES', 'before:glibc.malloc.hugetlb=1')
  args = [f'--config={root}/c.py:demo', '--config.batch=8']
  reports, compared = comparison.compare_commits(
      'HEAD~1', args, [*args, '--config.seed=2'], rounds=2, seconds=1.0,
      root=root)
  runs = [json.loads(line) for line in log.read_text().splitlines()]
  # Of each checkout its own file of the configuration.
  this = ['--config=c.py:demo', '--config.batch=8', '--parts=step']
  other = [*this[:2], '--config.seed=2']
  assert runs == [[1.0, 'before', this], [2.0, 'before', other]] * 2
  assert [r['machine']['commit'] for r in reports] == ['1.0', '2.0']
  assert compared['turns'] == 2
  assert compared['ratio'] == pytest.approx(2)
  assert compared['ratio_quartiles'] == pytest.approx([2, 2])
  listed = subprocess.run(['git', '-C', str(root), 'worktree', 'list'],
                          capture_output=True, text=True, check=True).stdout
  assert len(listed.splitlines()) == 1


def test_commits_that_cannot_be_measured_are_errors(repository):
  root, _ = repository
  options = {'rounds': 1, 'seconds': 1.0, 'root': root}
  args = ['--config=c.py']
  for revision in ('nowhere', '--all', 'HEAD:tools'):
    with pytest.raises(ValueError, match=f"want a commit .* got '{revision}'"):
      comparison.compare_commits(revision, args, args, **options)
  with pytest.raises(ValueError, match='(?s)checkout/.* failed:.*it broke'):
    comparison.compare_commits('HEAD', args, args, **options)


def test_formats_hold_the_same_clips(monkeypatch):
  config = tiny.stage2('unused')
  config.data.source.clips = 3
  seen = {}

  def measure(config, workers, seconds):
    source = config.data.source
    clips = [source[i] for i in range(len(source))]
    seen[type(source).__name__, source.path if hasattr(source, 'path') else
         source.paths[0].rpartition('/')[2], workers] = [
             clip.read(0, clip.samples) for clip in clips]
    return {'workers': workers}

  monkeypatch.setattr(reading, 'measure_pipeline', measure)
  rows = formats.measure_formats(config, (0, 4), 0.01)
  assert [(row['format'], row['workers']) for row in rows] == [
      (kind, n) for kind in ('flac', 'wav', 'ArrayRecord of flac')
      for n in (0, 4)]
  assert {row['clips'] for row in rows} == {3}
  wanted = [clip.read(0, clip.samples) for clip in map(
      config.data.source.__getitem__, range(3))]
  assert len(seen) == 6
  for waves in seen.values():
    for wave, want in zip(waves, wanted, strict=True):
      np.testing.assert_allclose(wave, want, atol=1 / 32_000)


def test_what_xla_does_not_report_is_said_so(program, monkeypatch):
  config = _config()
  monkeypatch.setattr(jax.stages.Compiled, 'cost_analysis', lambda _: {})
  monkeypatch.setattr(jax.stages.Compiled, 'memory_analysis', lambda _: None)
  monkeypatch.setattr(machine, 'matmul_rate', lambda *_: 1e12)
  unknown = dataclasses.replace(program, flops=None, flops_once=None)
  mesh = train.make_mesh(config)
  step = training.measure_step(config, mesh, unknown, seconds=0.01)
  missing = {key for key, value in step.items() if value is None}
  assert missing >= {'gflop_per_clip', 'gflop_per_s', 'matmul_share',
                     'loops_once_gflop', 'loops_once_gflop_xla',
                     'program_bytes', 'program_temp_bytes'}
  lines = [line for line in table.lines({'step': step})
           if line.endswith('not reported')]
  assert len(lines) == len(missing)


@pytest.mark.parametrize('is_after', [False, True])
def test_rate_of_products_is_the_best_around_the_steps(
    program, monkeypatch, is_after
):
  timed, times = [], training.times

  def timing(*args):
    timed.append(args)
    return times(*args)

  monkeypatch.setattr(training, 'times', timing)
  monkeypatch.setattr(training, 'compile_from_cache', lambda *_: 0.0)
  monkeypatch.setattr(machine, 'matmul_rate', lambda *_: (
      2e12 if bool(timed) == is_after else 1e12))
  config = _config()
  step = training.measure_step(config, train.make_mesh(config), program, 0.01)
  assert step['matmul_gflop_per_s'] == 2000
  assert step['matmul_share'] == pytest.approx(
      step['gflop_per_s'] / 2000, rel=1e-9)


def test_compile_time_is_that_of_a_cold_start(tmp_path):
  settings = {'jax_compilation_cache_dir': str(tmp_path),
              'jax_persistent_cache_min_compile_time_secs': 0.0}
  kept = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  try:
    x = np.ones((7, 3), np.float32)

    def lower():
      return jax.jit(lambda x: jnp.sin(x) @ x.T).lower(x)

    compiled, seconds = training.compile_cold(lower())
    assert seconds > 0 and compiled(x).shape == (7, 7)
    assert not list(tmp_path.iterdir())
    lower().compile()  # for which the cache is there again
    assert list(tmp_path.iterdir())
  finally:
    for name, value in kept.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_compile_time_from_the_cache_is_that_of_a_hit():
  before, events = jax.config.jax_compilation_cache_dir, []

  def listen(event, **_):
    if event.startswith('/jax/compilation_cache/cache_'):
      events.append(event.rpartition('_')[-1])

  jax.monitoring.register_event_listener(listen)
  try:
    config = _config()
    assert training.compile_from_cache(config, train.make_mesh(config)) > 0
  finally:
    jax.monitoring.unregister_event_listener(listen)
  assert events == ['misses', 'hits']
  assert jax.config.jax_compilation_cache_dir == before


def test_matmul_rate_is_work_by_time(monkeypatch):
  clock = itertools.count(0, 0.5)
  monkeypatch.setattr(machine, '_EDGES', {'cpu': 64})
  monkeypatch.setattr('time.perf_counter', lambda: next(clock))
  rate = machine.matmul_rate('float32', jax.devices()[0])
  assert rate == 2 * 64**3 / 0.5


def _config_file(folder) -> str:
  path = folder / 'config.py'
  path.write_text('from tests import tiny\n'
                  'def get_config(arg=""):\n'
                  '  return tiny.stage2("nowhere", devices=2)\n')
  return f'--config={path}'


def test_report_as_table_and_json(tmp_path, capsys, monkeypatch, program):
  monkeypatch.setattr(training, 'compile_step', lambda *_: program)
  monkeypatch.setattr(machine, '_EDGES', {'cpu': 256})
  monkeypatch.setattr(projection, 'project', lambda _, steps: [
      dict.fromkeys(table.TITLES['projection'], steps[0]['step_s'])])
  file = tmp_path / 'out.json'
  args = [_config_file(tmp_path), '--config.data.threads=1', '--workers=0',
          '--seconds=0.05', f'--json={file}']
  assert benchmark.main(args) == 0
  report = json.loads(file.read_text())
  sections = {'machine', 'projection', *benchmark.DEFAULT_PARTS}
  assert set(report) == {'config', 'command', *sections}
  assert set(table.TITLES) == {*sections, *benchmark.PARTS, 'memory_line',
                               'comparison'}
  for section in sections:
    rows, titles = report[section], table.TITLES[section]
    for row in rows if isinstance(rows, list) else [rows]:
      assert set(row) == set(titles)
  assert report['projection'][0]['hours'] == report['step']['step_s']
  assert report['config']['data']['threads'] == 1
  assert '--workers=0' in report['command']
  assert [row['workers'] for row in report['pipeline']] == [0]
  assert report['frontend']['length_s'] == pytest.approx(1.295, abs=0.02)
  printed = capsys.readouterr().out
  rate = f'{report["loop"]["clips_per_s"]:.4g}'
  assert [line for line in printed.splitlines()
          if line.split() == ['clips/s', rate]]
  assert 'peak of the device' in printed and 'not reported' in printed
  assert not pathlib.Path('nowhere').exists()


def test_only_the_named_parts_are_measured(tmp_path, capsys):
  args = [_config_file(tmp_path), '--seconds', '0.01', '--parts', 'source']
  assert benchmark.main(args) == 0
  printed = capsys.readouterr().out
  assert '\nsource\n' in printed
  for part in ('pipeline', 'frontend', 'step', 'loop'):
    assert f'\n{part}\n' not in printed


def test_default_workers_are_powers_of_two_up_to_the_cores(monkeypatch):
  for cores, want in [(1, (0, 1)), (2, (0, 1, 2)), (6, (0, 1, 2, 4))]:
    monkeypatch.setattr(machine, 'cores', lambda cores=cores: cores)
    assert benchmark.default_workers() == want


def test_a_busy_machine_is_told(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr('os.getloadavg', lambda: (90.0, 0.0, 0.0))
  config = tiny.stage2('unused')
  report = benchmark.measure(config, benchmark.Settings(parts=()))
  assert report['machine']['is_quiet'] is False
  assert 'not quiet (load 90.0)' in capsys.readouterr().err


@pytest.mark.parametrize(
    'arg, wanted',
    [('--parts=step,speed', "memory,scaling,torch, got 'speed'"),
     ('--workers=1,two', "got '1,two'"), ('--workers=-1', "got '-1'"),
     ('--batches=0,2', "want numbers from 1 on such as 1,2,4, got '0,2'"),
     ('--batches=8,5', 'error: memory of batch 5: batch: want a multiple of 2'),
     ('--batches=2', 'error: memory of batch 2: group: want at least 2 clips'),
     ('--devices=0', "want numbers from 1 on such as 1,2,4, got '0'"),
     ('--rounds=0', "want at least 1, got '0'"),
     ('--against.speed=1', "no field 'speed'"),
     ('--against=nowhere.py', "'nowhere.py', which does not exist"),
     ('--against-commit=nowhere', "want a commit of the repository in"),
     ('--seconds=0', "want a positive number, got '0'"),
     ('--seconds=nan', "got 'nan'"),
     ('--json=no/such/folder/out.json', 'want a file in a folder that exists'),
     ('--steps=3', '--steps=3: want --config.FIELD=VALUE, --against.'),
     ('--config.batch=0', 'error: batch: want at least 1, got 0'),
     ('--config.speed=1', "no field 'speed'"),
     ('--config=nowhere.py', "'nowhere.py', which does not exist")],
)  # fmt: skip
def test_wrong_arguments_are_refused(tmp_path, capsys, arg, wanted):
  try:
    status = benchmark.main([_config_file(tmp_path), arg])
  except SystemExit as error:
    status = error.code
  assert status == 2
  printed = capsys.readouterr()
  assert wanted in printed.err and printed.out == ''


def test_parts_and_comparisons_exclude_each_other(tmp_path, capsys):
  config = _config_file(tmp_path)
  for args, wanted in [
      (['--parts=step', '--against.batch=16'], 'not both'),
      (['--batches=4', '--against-commit=HEAD'], 'not both'),
      ([config.replace('--config', '--against')], 'got the same'),
  ]:
    with pytest.raises(SystemExit):
      benchmark.main([config, *args])
    assert wanted in capsys.readouterr().err


def test_missing_data_are_an_error(tmp_path, capsys):
  args = ['--config=configs/stage1.py:demo,folder=nowhere', '--parts=source']
  assert benchmark.main(args) == 2
  assert 'error: nowhere: want a folder' in capsys.readouterr().err


def test_a_classifier_has_the_classes_of_its_data(tmp_path, capsys):
  out = tmp_path / 'out.json'
  assert benchmark.main([
      '--config=configs/finetune.py:demo', '--parts=memory', '--batches=4,8',
      f'--json={out}', '--config.objective.vit.depth=1']) == 0
  classes = json.loads(out.read_text())['config']['data']['views']['classes']
  assert len(classes) == 16
