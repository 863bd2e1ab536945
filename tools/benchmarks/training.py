"""How fast a run computes: its front end, its step, and both fed with data.

Front end and step are given noise for clips: no number depends on the sound,
and no data set is needed.
"""

from collections.abc import Callable, Iterator
import concurrent.futures
import contextlib
import dataclasses
import statistics
import sys
import tempfile
import time
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from sslam_jax import data as data_lib
from sslam_jax import state as state_lib
from sslam_jax import train
from sslam_jax import views as views_lib
from tools.benchmarks import flops
from tools.benchmarks import machine

_CALLS = 7  # at least; the first, which touches new memory, is left out
_WARM_STEPS = 2
_NOISE_STD = 0.1
_CACHE = 'jax_enable_compilation_cache'
_PLANNED = tuple(f'program_{part}bytes' for part in (
    '', 'temp_', 'argument_', 'output_', 'alias_', 'peak_'))


@dataclasses.dataclass(kw_only=True)
class Program:
  """A compiled step.

  Attributes:
    step: Maps (state, views) to (state, metrics); the state is used up.
    trace_s: Seconds from Python to the program that XLA is given.
    compile_s: Seconds that XLA took, without its cache on disk.
    flops: Of one device; None where an operation's cost is not known.
    flops_once: The same, with the body of each loop counted once.
  """

  step: jax.stages.Compiled
  trace_s: float
  compile_s: float
  flops: int | None
  flops_once: int | None


@dataclasses.dataclass(kw_only=True)
class _Run:
  """Steps with their data.

  Attributes:
    steps: How many.
    skipped: Damaged clips passed over.
    elapsed_s: Until the last was ready.
    drawing_s: Of it, in drawing batches.
    waiting_s: Of that, with nothing to do for the devices.
  """

  steps: int = 0
  skipped: int = 0
  elapsed_s: float = 0.0
  drawing_s: float = 0.0
  waiting_s: float = 0.0


def compile_step(config: train.Config, mesh: Mesh) -> Program:
  """Traces, counts and compiles the update of a run."""
  given = arguments(config, mesh)
  began = time.perf_counter()
  traced = train.compile_step(config, mesh).trace(*given)
  lowered = traced.lower()
  trace_s = time.perf_counter() - began
  step, compile_s = compile_cold(lowered)
  return Program(
      step=step, trace_s=trace_s, compile_s=compile_s,
      flops=_counted(traced, bodies_once=False),
      flops_once=_counted(traced, bodies_once=True),
  )


def trace_step(config: train.Config, mesh: Mesh) -> jax.stages.Traced:
  """The update of a run as XLA is given it; nothing is computed."""
  return train.compile_step(config, mesh).trace(*arguments(config, mesh))


def compile_cold(
    lowered: jax.stages.Lowered
) -> tuple[jax.stages.Compiled, float]:
  """(program, seconds) as for the first time: the cache on disk is left be."""
  with _settings({_CACHE: False}):
    began = time.perf_counter()
    return lowered.compile(), time.perf_counter() - began


def compile_from_cache(config: train.Config, mesh: Mesh) -> float:
  """Seconds to get the step from XLA's cache on disk, once traced."""
  with tempfile.TemporaryDirectory() as folder, _settings({
      _CACHE: True,
      'jax_compilation_cache_dir': folder,
      'jax_persistent_cache_min_compile_time_secs': 0.0,
      'jax_persistent_cache_min_entry_size_bytes': -1,
  }):
    trace_step(config, mesh).lower().compile()
    lowered = trace_step(config, mesh).lower()
    began = time.perf_counter()
    lowered.compile()
    return time.perf_counter() - began


def measure_front_end(
    config: train.Config, mesh: Mesh, seconds: float
) -> dict[str, Any]:
  """Clips/s from waveforms to log-mels and mixtures, on the devices."""
  make, batch = _front_end(config, mesh), _placed(noise(config), mesh)
  seconds_all, _ = times(lambda: make(batch), seconds)
  median_s = statistics.median(seconds_all)
  return {
      'length_s': config.data.mel.samples / config.data.mel.rate_hz,
      'calls': len(seconds_all),
      'batch_s': median_s,
      'clips_per_s': config.batch / median_s,
  }


def measure_step(
    config: train.Config, mesh: Mesh, program: Program, seconds: float
) -> dict[str, Any]:
  """Time, arithmetic and memory of an update, from log-mels on."""
  dtype, device = config.objective.vit.dtype, mesh.devices.flat[0]
  update = updates(config, mesh, program)
  jax.block_until_ready(update())
  memory = planned_memory(program.step) | {  # before other products are there
      'device_peak_bytes': machine.device_peak_bytes(device),
  }
  # Its rate drifts as the machine's does, and is to be the best there is.
  before = machine.matmul_rate(dtype, device)
  seconds_all, (_, metrics) = times(update, seconds)
  memory['process_peak_bytes'] = machine.peak_memory_bytes()
  rate = max(before, machine.matmul_rate(dtype, device))
  median_s = statistics.median(seconds_all)
  measured = {
      'devices': mesh.size,
      'dtype': dtype,
      'batch': config.batch,
      'trace_s': program.trace_s,
      'compile_s': program.compile_s,
      'compile_cached_s': compile_from_cache(config, mesh),
      'step_s': median_s,
      'step_s_all': seconds_all,
      'clips_per_s': config.batch / median_s,
      'loss': float(metrics['loss']),
  }
  return measured | _arithmetic(config, mesh, program, median_s, rate) | memory


def updates(
    config: train.Config, mesh: Mesh, program: Program
) -> Callable[[], tuple[state_lib.TrainState, Any]]:
  """A function that takes one step further, on noise: (state, metrics)."""
  views = _front_end(config, mesh)(_placed(noise(config), mesh))
  state = train.create_state(config, mesh)

  def update() -> tuple[state_lib.TrainState, Any]:
    nonlocal state
    state, metrics = program.step(state, views)
    return state, metrics

  return update


def measure_loop(
    config: train.Config, mesh: Mesh, program: Program, seconds: float
) -> dict[str, Any]:
  """Clips/s of a run, and which share of its time data were waited for.

  The order of work is that of `train.run`: the next batch is drawn while the
  devices compute the last step, so only what is left then is waiting.
  """
  state = train.create_state(config, mesh)
  feed = data_lib.Feed(
      config.data, batch=config.batch, seed=config.seed,
      patch=config.objective.vit.patch, mesh=mesh,
  )
  try:
    began = time.perf_counter()
    state = _warm(config, program, feed, state, seconds)
    start_s = time.perf_counter() - began
    run = _run(program, feed, state, seconds)
  finally:
    feed.close()
  return {
      'workers': config.data.workers,
      'threads': config.data.threads,
      'start_s': start_s,
      'steps': run.steps,
      'skipped_clips': run.skipped,
      'step_s': run.elapsed_s / run.steps,
      'clips_per_s': run.steps * config.batch / run.elapsed_s,
      'drawing_share': run.drawing_s / run.elapsed_s,
      'waiting_share': run.waiting_s / run.elapsed_s,
  }


def arguments(config: train.Config, mesh: Mesh) -> tuple[Any, Any]:
  """Shapes, types and places of the state and the views."""
  views = jax.eval_shape(_front_end(config, mesh), noise(config))
  spread = NamedSharding(mesh, PartitionSpec(views_lib.AXIS))
  return (
      _state(lambda: train.create_state(config, mesh), mesh),
      jax.tree.map(lambda x: _placed_shape(x, spread), views),
  )


def noise(config: train.Config) -> views_lib.Record:
  """A batch as the pipeline yields it, of noise for clips."""
  rng, data = np.random.default_rng(config.seed), config.data
  clips, samples = config.batch, data.mel.samples
  grid = config.objective.vit.grid(data.mel.frames, data.mel.mel_bins)
  drawn = [data.views.draw(rng, grid) | data.views.label(())
           for _ in range(clips)]
  wave_BxS = rng.standard_normal((clips, samples), np.float32) * _NOISE_STD
  return {name: np.stack([one[name] for one in drawn]) for name in drawn[0]} | {
      'wave': wave_BxS.astype(np.float32),
      'samples': np.full(clips, samples, np.int32),
      'row': np.arange(clips, dtype=np.int32),
  }


def times(
    function: Callable[[], Any], seconds: float
) -> tuple[list[float], Any]:
  """Seconds of each call but the first, and the last call's result."""
  seconds_all: list[float] = []
  begun = time.perf_counter()
  while len(seconds_all) < _CALLS or time.perf_counter() < begun + seconds:
    began = time.perf_counter()
    result = jax.block_until_ready(function())
    seconds_all.append(time.perf_counter() - began)
  return seconds_all[1:], result


def xla_gflop(step: jax.stages.Compiled) -> float | None:
  """XLA's own count, of all operations, loop bodies once."""
  counted = (step.cost_analysis() or {}).get('flops', -1)
  return counted / 1e9 if counted > 0 else None


def planned_memory(step: jax.stages.Compiled) -> dict[str, int | None]:
  """Bytes of one device that a program plans; None where XLA does not tell."""
  plan = step.memory_analysis()
  if plan is None:
    return dict.fromkeys(_PLANNED)
  temp, argument = plan.temp_size_in_bytes, plan.argument_size_in_bytes
  output, alias = plan.output_size_in_bytes, plan.alias_size_in_bytes
  # What is donated is argument and output in one.
  total = temp + argument + output - alias
  return dict(zip(_PLANNED, (total, temp, argument, output, alias,
                             plan.peak_memory_in_bytes)))


@contextlib.contextmanager
def _settings(values: dict[str, Any]) -> Iterator[None]:
  """JAX's, for a while."""
  before = {name: getattr(jax.config, name) for name in values}
  # Whether and where the cache is used is decided once, and anew after a reset.
  compilation_cache.reset_cache()
  try:
    for name, value in values.items():
      jax.config.update(name, value)
    yield
  finally:
    compilation_cache.reset_cache()
    for name, value in before.items():
      jax.config.update(name, value)


def _warm(
    config: train.Config,
    program: Program,
    feed: data_lib.Feed,
    state: state_lib.TrainState,
    seconds: float,
) -> state_lib.TrainState:
  """The first steps: they compile, and use up what was read meanwhile."""
  ahead = 2 * max(1, config.data.workers)
  began = time.perf_counter()
  for step in range(_WARM_STEPS + ahead):
    if step >= _WARM_STEPS and time.perf_counter() > began + seconds:
      break
    state, _ = jax.block_until_ready(program.step(state, next(feed).views))
  return state


def _run(
    program: Program,
    feed: data_lib.Feed,
    state: state_lib.TrainState,
    seconds: float,
) -> _Run:
  """Steps as `train.run` takes them, from devices that are idle on."""
  run, begun = _Run(), time.perf_counter()
  previous: Any = None
  with concurrent.futures.ThreadPoolExecutor(1) as watch:
    ready = watch.submit(time.perf_counter)
    while run.steps < _CALLS or time.perf_counter() < begun + seconds:
      asked_s = time.perf_counter()
      fed = next(feed)
      got_s = time.perf_counter()
      run.drawing_s += got_s - asked_s
      if ready.done():
        run.waiting_s += max(0.0, got_s - max(asked_s, ready.result()))
      state, metrics = program.step(state, fed.views)
      ready = watch.submit(_ready_s, metrics)
      jax.device_get(previous)  # metrics are told one step late
      previous = metrics
      run.steps += 1
      run.skipped += len(fed.skipped)
    run.elapsed_s = ready.result() - begun
  return run


def _front_end(
    config: train.Config, mesh: Mesh
) -> Callable[[views_lib.Record], Any]:
  patch = config.objective.vit.patch
  return data_lib.compile_views(config.data, patch, mesh)


def _placed(batch: views_lib.Record, mesh: Mesh) -> views_lib.Record:
  return jax.device_put(
      batch, NamedSharding(mesh, PartitionSpec(views_lib.AXIS))
  )


def _state(create: Callable[[], Any], mesh: Mesh) -> Any:
  """Shapes and types of a state that is not created, on its devices."""
  program, shapes = jax.make_jaxpr(create, return_shape=True)()
  leaves, tree = jax.tree.flatten(shapes)
  # Only the jit that would create it knows its places: they are in its
  # parameters.
  places = [
      place for equation in program.eqns
      for place in equation.params.get('out_shardings', ())
      if isinstance(place, NamedSharding)
  ]
  if len(places) != len(leaves):
    places = [NamedSharding(mesh, PartitionSpec())] * len(leaves)
  return jax.tree.unflatten(tree, map(_placed_shape, leaves, places))


def _placed_shape(x: Any, place: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


def _counted(traced: jax.stages.Traced, *, bodies_once: bool) -> int | None:
  try:
    return flops.count(traced.jaxpr, bodies_once=bodies_once)
  except flops.UncountableError as error:
    print(f'benchmark: FLOPs not counted: {error}', file=sys.stderr)
    return None


def _ready_s(metrics: Any) -> float:
  jax.block_until_ready(metrics)
  return time.perf_counter()


def _arithmetic(
    config: train.Config,
    mesh: Mesh,
    program: Program,
    step_s: float,
    matmul_rate: float,
) -> dict[str, float | None]:
  """The work of a step, beside XLA's own count and the machine's rate."""
  measured: dict[str, float | None] = {
      'matmul_gflop_per_s': matmul_rate / 1e9,
      'gflop_per_clip': None,
      'gflop_per_s': None,
      'matmul_share': None,
      'loops_once_gflop': None,
      'loops_once_gflop_xla': xla_gflop(program.step),
  }
  if program.flops is None or program.flops_once is None:
    return measured
  clips = config.batch / mesh.size  # of the device whose work was counted
  return measured | {
      'gflop_per_clip': program.flops / clips / 1e9,
      'gflop_per_s': program.flops / step_s / 1e9,
      'matmul_share': program.flops / step_s / matmul_rate,
      'loops_once_gflop': program.flops_once / 1e9,
  }
