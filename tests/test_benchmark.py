"""The benchmark tool: known rates, known work, and what it prints."""

import dataclasses
import itertools
import json
import pathlib
import time

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import numpy as np
import pytest

from sslam_jax import audio
from sslam_jax import clips
from sslam_jax import model
from sslam_jax import sampling
from sslam_jax import train
from tests import tiny
from tools import benchmark
from tools.benchmarks import flops
from tools.benchmarks import machine
from tools.benchmarks import reading
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


def test_compile_time_is_that_of_a_cold_start(tmp_path):
  settings = {'jax_compilation_cache_dir': str(tmp_path),
              'jax_persistent_cache_min_compile_time_secs': 0.0}
  kept = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  try:
    x = jnp.ones((7, 3))

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
  file = tmp_path / 'out.json'
  args = [_config_file(tmp_path), '--config.data.threads=1', '--workers=0',
          '--seconds=0.05', f'--json={file}']
  assert benchmark.main(args) == 0
  report = json.loads(file.read_text())
  assert set(report) == {'config', 'command', 'machine', *benchmark.PARTS}
  assert set(table.TITLES) == {'machine', *benchmark.PARTS, 'torch'}
  for section in ('machine', *benchmark.PARTS):
    rows, titles = report[section], table.TITLES[section]
    for row in rows if isinstance(rows, list) else [rows]:
      assert set(row) == set(titles)
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
  report = benchmark.measure(config, parts=())
  assert report['machine']['is_quiet'] is False
  assert 'not quiet (load 90.0)' in capsys.readouterr().err


@pytest.mark.parametrize(
    'arg, wanted',
    [('--parts=step,speed', "frontend,step,loop, got 'speed'"),
     ('--workers=1,two', "got '1,two'"), ('--workers=-1', "got '-1'"),
     ('--seconds=0', "want a positive number, got '0'"),
     ('--seconds=nan', "got 'nan'"),
     ('--json=no/such/folder/out.json', 'want a file in a folder that exists'),
     ('--steps=3', '--steps=3: want --config.FIELD=VALUE'),
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


def test_missing_data_are_an_error(tmp_path, capsys):
  args = ['--config=configs/stage1.py:demo,folder=nowhere', '--parts=source']
  assert benchmark.main(args) == 2
  assert 'error: nowhere: want a folder' in capsys.readouterr().err
