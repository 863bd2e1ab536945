"""Training: one pure step, spread over devices, and the loop around it."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sslam_jax import checkpoint
from sslam_jax import data as data_lib
from sslam_jax import evaluate
from sslam_jax import objectives
from sslam_jax import optim as optim_lib
from sslam_jax import pictures
from sslam_jax import processes
from sslam_jax import report as report_lib
from sslam_jax import run_folder
from sslam_jax import skips as skips_lib
from sslam_jax import state as state_lib
from sslam_jax import views as views_lib
from sslam_jax import watch as watch_lib

_AXIS = views_lib.AXIS
Metrics = dict[str, float]
Evals = list[tuple[evaluate.Evaluation, evaluate.Run]]
TERMS = ('local_', 'global_', 'retention')  # beginnings of a loss's parts
# Where the loop may be, as `watch.judge` says it.
_FEED = 'waiting for a batch'
_DEVICES = 'waiting for its devices'
_HOST = 'working on the host'
_SAVE = 'saving'
_EVALUATION = 'evaluating'
logger = report_lib.logger


class TrainingStopped(RuntimeError):
  """The run cannot go on; the message says at which step and why."""


class Hung(TrainingStopped):
  """No batch came in time, or the last checkpoint was not written in time.

  What reads or writes may never end: then this process does not end by itself,
  see `processes.leave`.
  """


class Interrupted(Exception):
  """The run was told to stop, and has saved its state."""


@dataclasses.dataclass(kw_only=True)
class Guard:
  """When a run is stopped; a non-finite loss or gradient always does.

  Attributes:
    min_target_std: Least deviation of the targets over hidden tokens; 1 is
      healthy, 0 is collapse. (The published runs had no such limits.)
    min_prediction_std: The same of the predictions.
    after_steps: Steps before the two are looked at.
  """

  min_target_std: float = 0.1
  min_prediction_std: float = 0.01
  after_steps: int = 5000

  def __post_init__(self) -> None:
    for name in ('min_target_std', 'min_prediction_std', 'after_steps'):
      if getattr(self, name) < 0:
        raise ValueError(f'{name}: want at least 0, got {getattr(self, name)}')

  def check(self, step: int, metrics: Metrics) -> None:
    """Raises TrainingStopped with the step and the number at fault."""
    for name in ('loss', 'grad_norm'):
      if not np.isfinite(metrics[name]):
        raise TrainingStopped(f'step {step}: {name} is {metrics[name]}, '
                              f'want a finite number')
    if step <= self.after_steps:
      return
    for name in ('target_std', 'prediction_std'):
      least = getattr(self, f'min_{name}')
      if metrics.get(name, least) < least:
        raise TrainingStopped(
            f'step {step}: {name} collapsed to {metrics[name]:.3g}, want at '
            f'least {least} (guard.min_{name})'
        )


@dataclasses.dataclass(kw_only=True)
class Config:
  """Configuration of a run.

  Attributes:
    workdir: Its folder; the same command resumes what it holds.
    objective: What is learned.
    data: From what.
    optim: By which updates.
    steps: How many updates.
    batch: Clips per update, over all devices.
    accumulate: Parts that a device's batch is computed in, to save memory.
    devices: How many to use; None for all.
    shard_optimizer: The optimiser's moments are spread over the devices, not
      copied to each (ZeRO-1): 8 bytes per parameter and device become 8 / n.
    seed: Of parameters, data order, masks, mixtures and noise.
    init_from: Run folder whose student and teacher to start from (of which a
      classifier takes the student's encoder), or None.
    keep: Checkpoints.
    guard: When to stop.
    log_every: Steps from one line of metrics to the next.
    pictures_every: Steps from one picture to the next; None for none at all.
    evals: What is measured now and then.
    patience_s: How long a batch is waited for, a checkpoint to be written, or
      one of several processes, before the run ends and names what hangs; None:
      for ever.
  """

  workdir: str
  objective: objectives.Objective
  data: data_lib.Data
  optim: optim_lib.Optim
  steps: int
  batch: int = 48
  accumulate: int = 1
  devices: int | None = None
  shard_optimizer: bool = False
  seed: int = 1
  init_from: str | None = None
  keep: checkpoint.Keep
  guard: Guard = dataclasses.field(default_factory=Guard)
  log_every: int
  pictures_every: int | None
  evals: tuple[evaluate.Evaluation, ...] = ()
  patience_s: float | None = 600.0

  def __post_init__(self) -> None:
    for name in ('steps', 'batch', 'accumulate', 'devices', 'log_every',
                 'pictures_every'):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f'{name}: want at least 1, got {value}')
    if self.patience_s is not None and self.patience_s <= 0:
      raise ValueError(f'patience_s: want more than 0, or None, '
                       f'got {self.patience_s}')
    if not 0 <= self.seed < 2**32:
      raise ValueError(f'seed: want 0 to 2**32 - 1, got {self.seed}')
    self.optim.schedule(self.steps)
    grid = self.objective.vit.grid(self.data.mel.frames, self.data.mel.mel_bins)
    self.data.views.check(grid)
    self.objective.check(self.data.views)
    for evaluation in self.evals:
      evaluation.check(self.objective)
    names = [evaluation.name for evaluation in self.evals]
    if len(set(names)) < len(names):
      raise ValueError(f'evals: want a name of its own for each, got '
                       f'{", ".join(names)}')


def gradients(
    state: state_lib.TrainState,
    views: Any,
    *,
    objective: objectives.Objective,
    accumulate: int,
) -> tuple[state_lib.Params, objectives.Scalars]:
  """Gradients and metrics of a batch, on one device's views.

  Runs under `shard_map`. The loss is a sum of shares over devices and
  accumulated parts, each divided by the counts of the whole batch: so gradients
  are summed, not averaged.
  """
  counts = jax.lax.psum(objective.counts(views), _AXIS)
  rng = jax.random.fold_in(state.rng, state.step)
  learned, frozen = _split(state.params, objective)
  # As device-varying values the parameters get this device's gradient alone,
  # which is summed once instead of after every part.
  varying = jax.tree.map(_varying, learned)

  def share(part: Any) -> tuple[Any, objectives.Scalars]:
    def loss(learned: state_lib.Params) -> tuple[Array, objectives.Scalars]:
      params = {**frozen, **learned}
      return objective.loss(params, state.teacher, part, rng, counts)

    (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(varying)
    return grads, sums

  grads, sums = jax.lax.psum(_sum_parts(share, views, accumulate), _AXIS)
  return grads, objective.metrics(sums, counts)


def update(
    state: state_lib.TrainState,
    grads: state_lib.Params,
    *,
    objective: objectives.Objective,
    tx: optax.GradientTransformation,
) -> tuple[state_lib.TrainState, objectives.Scalars]:
  """The state after a step, and metrics of the update."""
  learned, frozen = _split(state.params, objective)
  updates, opt_state = tx.update(grads, state.opt_state, learned)
  params = {**frozen, **optax.apply_updates(learned, updates)}
  step, teacher = state.step + 1, state.teacher
  metrics = {'grad_norm': optax.tree.norm(grads)}
  if objective.ema is not None:
    teacher = objective.ema.follow(teacher, objective.teacher(params), step)
    metrics |= {'ema_decay': 1 - objective.ema.step_size(step)}
  return (
      state_lib.TrainState(step, params, teacher, opt_state, state.rng),
      metrics,
  )


def compile_step(config: Config, mesh: Mesh) -> jax.stages.Wrapped:
  """`gradients` over the mesh and `update`, jitted; the state is used up.

  It maps (state, views) to (state, metrics).
  """
  schedule, tx = config.optim.schedule(config.steps), config.optim.build(
      config.steps
  )
  everywhere, spread = PartitionSpec(), PartitionSpec(_AXIS)
  spread_gradients = jax.shard_map(
      functools.partial(gradients, objective=config.objective,
                        accumulate=config.accumulate),
      mesh=mesh, in_specs=(everywhere, spread), out_specs=everywhere,
  )

  def step(
      state: state_lib.TrainState, views: Any
  ) -> tuple[state_lib.TrainState, objectives.Scalars]:
    # Without the moments, which may be spread.
    grads, metrics = spread_gradients(
        dataclasses.replace(state, opt_state=()), views
    )
    new_state, more = update(state, grads, objective=config.objective, tx=tx)
    new_state = jax.lax.with_sharding_constraint(
        new_state, shardings(new_state, config, mesh)
    )
    lr = jnp.asarray(schedule(state.step))
    return new_state, metrics | more | {'lr': lr}

  return jax.jit(step, donate_argnums=0)


def create_state(config: Config, mesh: Mesh) -> state_lib.TrainState:
  """The state at step 0, on the devices of the mesh."""

  def create() -> state_lib.TrainState:
    init_rng, rng = jax.random.split(jax.random.key(config.seed))
    mel = config.data.mel
    params = config.objective.init(
        init_rng, (mel.frames, mel.mel_bins), len(config.data.views.names)
    )
    learned, _ = _split(params, config.objective)
    return state_lib.TrainState(
        step=jnp.int32(0),
        params=params,
        teacher=jax.tree.map(jnp.copy, config.objective.teacher(params)),
        opt_state=config.optim.build(config.steps).init(learned),
        rng=rng,
    )

  places = shardings(jax.eval_shape(create), config, mesh)
  return jax.jit(create, out_shardings=places)()


def shardings(
    state: state_lib.TrainState, config: Config, mesh: Mesh
) -> state_lib.TrainState:
  """Where each array of a state lies: everywhere, or spread over the devices.

  Moments are spread along their last axis that can be divided.
  """

  def place(x: Any, is_spread: bool) -> NamedSharding:
    divided = [axis for axis, length in enumerate(x.shape)
               if length % mesh.size == 0]
    if not is_spread or not divided:
      return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec(*[None] * divided[-1], _AXIS))

  everywhere = jax.tree.map(lambda x: place(x, False), state)
  return dataclasses.replace(everywhere, opt_state=jax.tree.map(
      lambda x: place(x, config.shard_optimizer), state.opt_state
  ))


def make_mesh(config: Config) -> Mesh:
  """The devices of a run, in a row, those of each process together.

  Raises:
    ValueError: JAX finds none, or the batch cannot be spread over them.
  """
  all_devices = _devices()
  found = len(all_devices)
  devices = config.devices or found
  if devices > found:
    raise ValueError(f'devices: want at most the {found} found, got {devices}')
  if jax.process_count() > 1 and devices < found:
    raise ValueError(f'devices: want all {found} of a job of '
                     f'{jax.process_count()} processes, got {devices}')
  parts = devices * config.accumulate
  if config.batch % parts:
    raise ValueError(
        f'batch: want a multiple of {parts} ({devices} devices x '
        f'accumulate {config.accumulate}), got {config.batch}'
    )
  group = config.data.views.group
  if config.batch // devices % group:
    raise ValueError(
        f'data.views.mix.group: want a divisor of the '
        f'{config.batch // devices} clips of a device (batch {config.batch} '
        f'on {devices} devices), got {group}'
    )
  row = sorted(all_devices, key=lambda d: (d.process_index, d.id))[:devices]
  return Mesh(np.array(row), (_AXIS,), axis_types=(AxisType.Auto,))


def _devices() -> list[jax.Device]:
  try:
    return jax.devices()
  except (RuntimeError, AssertionError) as error:  # the latter says nothing
    reason = str(error) or 'this JAX is for none of JAX_PLATFORMS'
    raise ValueError(f'devices: want at least 1, got none: {reason}') from None


def resolved(config: Config) -> Config:
  """With what it takes from its data, such as the classes of labels."""
  data = config.data
  data = dataclasses.replace(data, views=data.views.resolved(data.source))
  return dataclasses.replace(config, data=data)


def run(config: Config) -> state_lib.TrainState:
  """Trains to the end, from the last checkpoint in the run folder if any.

  Raises:
    ValueError: Something about the configuration, the data or the folder
      cannot work; found before anything is written.
    TrainingStopped: See `Guard`, whereupon the last checkpoint stays as it
      is; or too many clips are damaged, and what was computed so far is saved;
      or something cannot be written; or no batch came in time (`Hung`).
    Interrupted: By Ctrl-C or SIGTERM, after the step under way was saved.
  A save that hangs, or another process, ends this process with status 4.
  """
  workdir, config = pathlib.Path(config.workdir), resolved(config)
  config.objective.check_source(config.data.source)
  checkpoint.check_resumable(config.workdir)
  run_folder.check(workdir, config)
  mesh = make_mesh(config)
  feed = data_lib.Feed(
      config.data, batch=config.batch, seed=config.seed,
      patch=config.objective.vit.patch, mesh=mesh,
      patience_s=config.patience_s,
  )
  evals = [
      (evaluation, evaluation.start(config.objective, config.data, mesh))
      for evaluation in config.evals
  ]
  state = create_state(config, mesh)
  if config.init_from is not None and (
      checkpoint.latest_step(config.workdir) is None
  ):
    state = _start_from(config.init_from, state, config.objective)
  alone = contextlib.nullcontext()
  with run_folder.locked(workdir) if processes.is_first() else alone:
    run_folder.check(workdir, config)  # another job may have been here
    return _train(config, mesh, feed, state, evals)


def _train(
    config: Config,
    mesh: Mesh,
    feed: data_lib.Feed,
    state: state_lib.TrainState,
    evals: Evals,
) -> state_lib.TrainState:
  """The run in its folder, which is this job's alone."""
  workdir, is_first = pathlib.Path(config.workdir), processes.is_first()
  skips = skips_lib.Skips(
      config.workdir, clips=len(config.data.source),
      max_fraction=config.data.max_bad_fraction, writes=is_first,
  )
  checkpointer = checkpoint.Checkpointer(
      config.workdir, config.keep, patience_s=config.patience_s
  )
  skipped = 0
  if checkpoint.latest_step(config.workdir) is not None:
    state, data_state = checkpointer.restore(state)
    feed.set_state(data_state, moved=run_folder.moved(workdir, config))
    skipped = data_state['skipped']
  start = int(state.step)
  skips.resume(start, skipped)
  if is_first:
    run_folder.write_config(workdir, config)
  report = report_lib.Report(
      config.workdir, start=start, steps=config.steps, batch=config.batch
  ) if is_first else report_lib.Silence()
  verb = 'resumes after' if start else 'starts at'
  verb = 'is finished at' if start == config.steps else verb
  logger.info('run folder %s: %s step %d of %d, on %d x %s', workdir, verb,
              start, config.steps, mesh.size, mesh.devices.flat[0].device_kind)
  try:
    with _told_ends(workdir), contextlib.closing(checkpointer), \
        contextlib.closing(feed), processes.stopping() as stop, \
        watch_lib.Watch(config.patience_s) as watch:
      loop = _Loop(config, mesh, feed, checkpointer, report, skips, stop,
                   watch, evals)
      try:
        return loop.run(state)
      except checkpoint.SaveHung as error:
        watch.end(str(error))
      except (RuntimeError, ValueError) as error:
        # A failed collective raises one or the other.
        is_ours = isinstance(error, TrainingStopped)
        if not is_ours and processes.is_loss(error):
          watch.end_without_others(error)
        raise
  finally:
    report.close()


@contextlib.contextmanager
def _told_ends(workdir: pathlib.Path) -> Iterator[None]:
  """Logs why a run ends early; of what cannot be written too."""
  try:
    yield
  except (TrainingStopped, Interrupted) as error:
    logger.error('stopped: %s', error)
    raise
  except checkpoint.SaveHung as error:  # as the run ended for another reason
    logger.error('stopped: %s', error)
    raise Hung(str(error)) from error
  except OSError as error:
    stopped = TrainingStopped(str(error))
    if not isinstance(error, checkpoint.SaveFailed):
      last = checkpoint.latest_step(str(workdir))
      stopped = TrainingStopped(f'{workdir}: cannot write: {error}; the last '
                                f'checkpoint is that of step {last}')
    logger.error('stopped: %s', stopped)
    raise stopped from error


class _Pending(NamedTuple):
  """A step that the device has been given, and what to tell of it."""

  step: int
  metrics: objectives.Scalars
  table: Array  # skipped clips, seconds for data and on the host: of all
  skipped: list[tuple[str, str]]  # those of this process


class _Loop:
  """The steps of a run, one after another.

  Metrics are fetched one step late, so that the device never waits.
  """

  def __init__(
      self,
      config: Config,
      mesh: Mesh,
      feed: data_lib.Feed,
      checkpointer: checkpoint.Checkpointer,
      report: report_lib.Report,
      skips: skips_lib.Skips,
      stop: processes.Stop,
      watch: watch_lib.Watch,
      evals: Evals,
  ) -> None:
    self._config, self._feed, self._checkpointer = config, feed, checkpointer
    self._report, self._skips, self._stop = report, skips, stop
    self._step_fn = compile_step(config, mesh)
    self._evals, self._watch = evals, watch
    self._table = processes.Table(mesh)
    self._pending: _Pending | None = None
    self._saved = 0

  def run(self, state: state_lib.TrainState) -> state_lib.TrainState:
    """All steps from `state` on, or until a signal or damaged data ends it."""
    config, first = self._config, int(state.step) + 1
    self._saved = first - 1
    self._make_up(first - 1, state)
    picture_every = self._picture_every()
    for step in range(first, config.steps + 1):
      fed = self._next(step, state)
      if picture_every and (step == first or step % picture_every == 0):
        self._draw(step, fed)
      times = fed.waited_s, self._watch.take_spent(_HOST)
      self._watch.at(step, _DEVICES)
      state, metrics = self._step_fn(state, fed.views)
      table = self._table([len(fed.skipped), *times])
      self._watch.at(step, _HOST)
      self._consume()
      self._pending = _Pending(step, metrics, table, fed.skipped)
      self._checkpointer.check()
      # Read once: a signal may come at any moment, and what is said to be
      # saved has to be.
      told = self._stop.reason(step) if step < config.steps else None
      excess = self._skips.excess((step - 1) * config.batch)
      if step % config.keep.every == 0 or step == config.steps or (
          told or excess
      ):
        self._save(step, state)
      if excess:
        self._checkpointer.wait()
        raise TrainingStopped(f'step {step}, which is saved: {excess}')
      if told:
        self._interrupt(step, told)
      self._evaluate(step, state)
    self._watch.at(config.steps, _SAVE)
    self._checkpointer.wait()
    if excess := self._skips.excess(config.steps * config.batch):
      logger.warning('finished, but %s', excess)
    if picture_every:
      pictures.draw_losses(self._pictures() / 'losses.png',
                           report_lib.read_metrics(config.workdir))
    return state

  def _next(self, step: int, state: state_lib.TrainState) -> data_lib.Fed:
    """The batch of a step; what was computed is saved where there is none."""
    self._watch.at(step, _FEED)
    try:
      fed = next(self._feed)
    except data_lib.Hung as error:
      self._end_hung(step, state, error)
    except (ValueError, OSError, RuntimeError) as error:
      # Hardly a clip can be read, or a worker process died (RuntimeError):
      # killed for its memory, or by the signal that stops the run.
      if processes.is_loss(error):
        raise
      # Of several processes this one alone knows, and cannot save alone.
      if jax.process_count() == 1 and step > 1:
        self._save_once(step - 1, state)
        if self._stop.told:
          self._interrupt(step - 1, self._stop.reason(step - 1))
        self._checkpointer.wait()
      raise TrainingStopped(f'step {step}: no data: {error}') from error
    self._watch.at(step, _HOST)
    return fed

  def _end_hung(
      self, step: int, state: state_lib.TrainState, error: data_lib.Hung
  ) -> NoReturn:
    reason = f'step {step}: no data: {error}'
    if jax.process_count() > 1:
      # The others wait for this process, which cannot save alone.
      self._watch.end(reason)
    if step > 1:
      self._save_once(step - 1, state)
      self._checkpointer.wait()
    raise Hung(f'{reason}; start the run again, it goes on after step '
               f'{step - 1}')

  def _interrupt(self, step: int, told: str | None) -> NoReturn:
    self._watch.at(step, _SAVE)
    self._checkpointer.wait()
    self._watch.close()  # the others do the same, each at its own pace
    raise Interrupted(f'{told} after step {step}, which is saved: the same '
                      f'command goes on from there')

  def _save_once(self, step: int, state: state_lib.TrainState) -> None:
    if step > self._saved:
      self._save(step, state)

  def _save(self, step: int, state: state_lib.TrainState) -> None:
    # A state is saved only once its own metrics are known to be sound.
    self._consume()
    data_state = self._feed.get_state() | {'skipped': self._skips.count}
    self._watch.at(step, _SAVE)
    self._checkpointer.save(step, state, data_state)
    self._saved = step
    self._watch.at(step, _HOST)

  def _consume(self) -> None:
    """Waits for the pending step's metrics, checks, shows and writes them."""
    if self._pending is None:
      return
    step, metrics, table, skipped = self._pending
    self._pending = None
    config, report = self._config, self._report
    self._watch.at(step, _DEVICES)
    metrics, table_Px3 = jax.device_get(metrics), self._table.read(table)
    if count := int(table_Px3[:, 0].sum()):
      self._skips.add(step, count, map(tuple, processes.gather(skipped)))
    self._watch.at(step, _HOST)
    report.took(table_Px3[:, 1:])
    values = {name: float(x)
              for name, x in sorted(metrics.items(), key=_rank)}
    values['skipped'] = self._skips.count
    report.progress(step, values)
    if step % config.log_every == 0 or step in (1, config.steps):
      report.write(step, values)
    config.guard.check(step, values)

  def _make_up(self, step: int, state: state_lib.TrainState) -> None:
    """The evaluations after a saved step, if the run ended in between."""
    if not step or not self._evals:
      return
    done: list[str] = []
    if processes.is_first():
      # A line of evaluations has no loss.
      lines = [line for line in report_lib.read_metrics(self._config.workdir)
               if line['step'] == step and 'loss' not in line]
      done = sorted(evaluate.measured(lines, self._config.evals))
    self._evaluate(step, state, done=processes.gather(done))

  def _evaluate(
      self, step: int, state: state_lib.TrainState, done: Sequence[str] = ()
  ) -> None:
    for evaluation, run in self._evals:
      is_due = evaluation.every and step % evaluation.every == 0
      if evaluation.name not in done and (
          is_due or step == self._config.steps
      ):
        self._consume()
        began = time.monotonic()
        self._watch.at(step, _EVALUATION)
        values = run(state.params, state.teacher)
        self._watch.at(step, _HOST)
        self._report.measured(step, values, time.monotonic() - began)

  def _picture_every(self) -> int | None:
    if self._config.pictures_every is None or not processes.is_first():
      return None
    if pictures.available():
      return self._config.pictures_every
    logger.warning('no pictures: want matplotlib, which is not installed '
                   '(pip install -r requirements-plot.txt)')
    return None

  def _draw(self, step: int, fed: data_lib.Fed) -> None:
    pictures.draw_views(
        self._pictures() / f'step_{step:07d}.png', fed.ids,
        processes.local(fed.views), self._config.objective.vit.patch,
        self._config.data.views.names,
    )

  def _pictures(self) -> pathlib.Path:
    return pathlib.Path(self._config.workdir) / 'pictures'


def _rank(item: tuple[str, Any]) -> tuple[bool, bool, str]:
  """Sorts what a reader looks for first to the front: the loss, its terms."""
  name, _ = item
  is_term = name.startswith(TERMS)
  return name != 'loss', not is_term, name


def _split(
    params: state_lib.Params, objective: objectives.Objective
) -> tuple[state_lib.Params, state_lib.Params]:
  """The parts that are learned, and those that are not."""
  parts: tuple[dict[str, Any], dict[str, Any]] = {}, {}
  for name, part in params.items():
    parts[name in objective.frozen][name] = part
  return parts


def _start_from(
    path: str, state: state_lib.TrainState, objective: objectives.Objective
) -> state_lib.TrainState:
  """What the objective takes from another run; all else starts anew."""
  try:
    return _inherit(path, state, objective)
  except ValueError as error:
    reason = _mismatch(path, objective) or str(error)
    raise ValueError(f'init_from: {reason}') from None


def _mismatch(path: str, objective: objectives.Objective) -> str | None:
  """Why a run is none to start from, where that needs no list of tensors."""
  if not pathlib.Path(path).is_dir():
    return (f'{path}: want a run folder, got none: it does not exist; '
            f'--config.init_from=None, or run=none of finetune.py and '
            f'linear.py, starts from random weights')
  try:
    before = run_folder.read_config(pathlib.Path(path)).objective.vit
  except ValueError:
    return None
  ours, theirs = vars(objective.vit), vars(before)
  differ = [name for name in ('width', 'depth', 'heads', 'mlp_ratio', 'patch')
            if ours[name] != theirs[name]]
  wanted, got = (', '.join(f'{name} {fields[name]}' for name in differ)
                 for fields in (ours, theirs))
  return f'{path}: want an encoder of {wanted}, got {got}' if differ else None


def _inherit(
    path: str, state: state_lib.TrainState, objective: objectives.Objective
) -> state_lib.TrainState:
  if (parts := objective.inherited) is None:
    return dataclasses.replace(
        state,
        params=checkpoint.load_params(path, like=state.params),
        teacher=checkpoint.load_teacher(path, like=state.teacher),
    )
  like = {name: state.params[name] for name in parts}
  params = checkpoint.load_params(path, like=like, parts=parts)
  params = {**state.params, **params}
  teacher = jax.tree.map(jnp.copy, objective.teacher(params))
  return dataclasses.replace(state, params=params, teacher=teacher)


def _sum_parts(
    function: Callable[[Any], Any],
    views: Any,
    parts: int,
) -> Any:
  """Sum of `function` over equal parts of the views, one after another."""
  stacked = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), views)
  first = jax.tree.map(lambda x: x[0], stacked)
  zero = jax.tree.map(
      lambda x: _varying(jnp.zeros(x.shape, x.dtype)),
      jax.eval_shape(function, first),
  )

  def add(total: Any, part: Any) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, function(part)), None

  return jax.lax.scan(add, zero, stacked)[0]


def _varying(x: Array) -> Array:
  return jax.lax.pcast(x, (_AXIS,), to='varying')
