"""Checkpoints of a run: Orbax, asynchronous, written atomically.

A step holds the items `params` (the student), `teacher` (where there is one),
`rest` (optimiser, step, RNG) and `data` (the pipeline's state), so that
inference and the next stage load what they need alone. Imported weights are the
first two alone.
"""

import contextlib
import dataclasses
import math
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from sslam_jax import errors
from sslam_jax import state as state_lib

_FOLDER = 'checkpoints'
_UNFINISHED = '.orbax-checkpoint-tmp'
_PARAMS, _TEACHER, _REST, _DATA = 'params', 'teacher', 'rest', 'data'
_FOR_EVER_S = 2_000_000  # its milliseconds have to fit 32 bits


@dataclasses.dataclass(kw_only=True)
class Keep:
  """Which steps are saved and kept.

  Attributes:
    every: Steps from one checkpoint to the next; the last step is saved too.
    last: How many of the latest stay.
    forever_every: Checkpoints at multiples of this are never removed; None
      for none.
  """

  every: int
  last: int = 2
  forever_every: int | None = None

  def __post_init__(self) -> None:
    for name in ('every', 'last', 'forever_every'):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f'{name}: want at least 1, got {value}')


class SaveFailed(OSError):
  """A checkpoint could not be written; those before it are as they were."""


class SaveHung(Exception):
  """This process cannot write its part of a checkpoint, for too long."""


class Checkpointer:
  """Saves and restores the states of one run, whose folder is its alone.

  Args:
    workdir: The run folder.
    keep: Which steps stay.
    patience_s: How long writing may take; None: for ever.
  """

  def __init__(
      self, workdir: str, keep: Keep, *, patience_s: float | None = None
  ) -> None:
    folder = self._folder = pathlib.Path(workdir).absolute() / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    self._remove_unfinished()  # of a killed run
    self._patience_s = patience_s
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep.last, keep_period=keep.forever_every,
        async_options=ocp.AsyncOptions(
            timeout_secs=math.ceil(patience_s or _FOR_EVER_S)
        ),
    )
    self._manager = ocp.CheckpointManager(
        folder, options=options, item_handlers=_handlers()
    )

  def save(
      self, step: int, state: state_lib.TrainState, data: dict[str, int]
  ) -> None:
    """Starts to save; returns once the state may be changed again.

    Raises:
      SaveFailed: This save or the one before.
      SaveHung: This process has not written the one before in time.
      jax.errors.JaxRuntimeError: Another process has not.
    """
    with self._failing():
      self._manager.save(
          step,
          args=ocp.args.Composite(**{
              **{name: ocp.args.StandardSave(item)
                 for name, item in _items(state).items()},
              _DATA: ocp.args.JsonSave(data),
          }),
      )

  def check(self) -> None:
    """Raises, as `save`, where the save under way has failed by now."""
    with self._failing():
      self._manager.check_for_errors()

  def restore(
      self, like: state_lib.TrainState
  ) -> tuple[state_lib.TrainState, dict[str, int]]:
    """The latest state with the data's; `like` gives shapes and sharding.

    Raises:
      ValueError: The checkpoint is damaged; its folder is named.
    """
    step = self._manager.latest_step()
    try:
      restored = self._manager.restore(
          step,
          args=ocp.args.Composite(**{
              **{name: ocp.args.StandardRestore(_abstract(item))
                 for name, item in _items(like).items()},
              _DATA: ocp.args.JsonRestore(),
          }),
      )
    except jax.errors.JaxRuntimeError:
      raise  # such as too little memory
    except Exception as error:  # what Orbax makes of TensorStore's errors
      before = [other for other in self._manager.all_steps() if other < step]
      way = f'step {max(before)}' if before else 'the start'
      raise ValueError(
          f'{self._folder / str(step)}: want a whole checkpoint, got '
          f'{errors.first_line(error)}; without that folder the run goes on '
          f'from {way}') from error
    teacher = restored[_TEACHER] if like.teacher else {}
    state = state_lib.TrainState(
        params=restored[_PARAMS], teacher=teacher, **restored[_REST]
    )
    return state, restored[_DATA]

  def wait(self) -> None:
    """Waits until everything is written, or raises as `save`."""
    with self._failing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """The same, and ends."""
    with self._failing():
      self._manager.close()

  def _remove_unfinished(self) -> None:
    if jax.process_index() == 0:
      for unfinished in self._folder.glob(f'*{_UNFINISHED}*'):
        shutil.rmtree(unfinished, ignore_errors=True)

  @contextlib.contextmanager
  def _failing(self) -> Iterator[None]:
    try:
      yield
    except TimeoutError as error:
      if isinstance(error.__cause__, jax.errors.JaxRuntimeError):
        raise error.__cause__ from None  # this process waited for another
      raise SaveHung(
          f'{self._folder}: cannot save: {errors.first_line(error)} '
          f'(patience_s: {self._patience_s})') from error
    except (ValueError, OSError) as error:  # ValueError: TensorStore's
      self._remove_unfinished()
      last = latest_step(str(self._folder.parent))
      got = 'there is none' if last is None else f'step {last} is whole'
      raise SaveFailed(
          f'{self._folder}: cannot save: {errors.first_line(error)}; of the '
          f'checkpoints before, {got}') from error


def save_weights(
    workdir: str,
    step: int,
    params: state_lib.Params,
    teacher: state_lib.Params | None,
) -> None:
  """Saves what was learned elsewhere, of which no run can go on.

  Args:
    workdir: A new run folder.
    step: Updates done there.
    params: The student's parameters, or a part of them.
    teacher: The teacher's; None: there is none.
  """
  folder = pathlib.Path(workdir).absolute() / _FOLDER
  folder.mkdir(parents=True)
  items = {_PARAMS: params} | ({_TEACHER: teacher} if teacher else {})
  saved = {name: ocp.args.StandardSave(item) for name, item in items.items()}
  with ocp.CheckpointManager(folder, item_handlers=_handlers()) as manager:
    manager.save(step, args=ocp.args.Composite(**saved))


def check_resumable(workdir: str) -> None:
  """Raises ValueError where a folder holds weights without a state."""
  step = latest_step(workdir)
  if step is None:
    return
  folder = pathlib.Path(workdir).absolute() / _FOLDER / str(step)
  if not any((folder / item).exists() for item in (_REST, _DATA)):
    raise ValueError(
        f'{workdir}: want a new folder or one of a run, got imported weights: '
        f'they are for --config.init_from={workdir} with another --workdir')


def latest_step(workdir: str) -> int | None:
  """Step of a run's last complete checkpoint, None where there is none."""
  folder = pathlib.Path(workdir).absolute() / _FOLDER
  if not folder.is_dir():
    return None
  with ocp.CheckpointManager(folder, item_handlers=_handlers()) as manager:
    return manager.latest_step()


def load_params(
    path: str, *, like: state_lib.Params, parts: tuple[str, ...] | None = None
) -> state_lib.Params:
  """The student's parameters from the latest checkpoint of a run folder.

  Args:
    path: The run folder.
    like: Gives shapes and sharding.
    parts: Top-level parts to load; `like` has these alone, the checkpoint may
      have others. None: all.

  Raises:
    ValueError: `path` is no run folder, or a leaf is missing, extra or of
      another shape than in `like`; all such leaves are named.
  """
  return _load(path, _PARAMS, like, parts)


def load_teacher(path: str, *, like: state_lib.Params) -> state_lib.Params:
  """The same for the teacher's."""
  return _load(path, _TEACHER, like, None)


def contents(path: str) -> tuple[str, ...]:
  """The parts that the latest checkpoint holds, 'teacher' one of them.

  Raises:
    ValueError: `path` is no run folder.
  """
  saved = _saved(path)
  return (*saved[_PARAMS].tree, *filter(saved.__contains__, (_TEACHER,)))


def _saved(path: str) -> dict[str, Any]:
  """What Orbax knows of each item of the latest checkpoint."""
  folder, step = _latest(path)
  with ocp.CheckpointManager(folder, item_handlers=_handlers()) as manager:
    metadata = dict(manager.item_metadata(step).items())
    return {name: item for name, item in metadata.items() if item is not None}


def _load(
    path: str,
    item: str,
    like: state_lib.Params,
    parts: tuple[str, ...] | None,
) -> state_lib.Params:
  folder, step = _latest(path)
  saved = _saved(path)
  if item not in saved:
    raise ValueError(f'{path}, step {step}: want student and {item}, got '
                     f'{", ".join(contents(path))} alone')
  with ocp.CheckpointManager(folder, item_handlers=_handlers()) as manager:
    found = saved[item].tree
    if {*found} < {*like}:  # as of an imported encoder
      raise ValueError(f'{path}, step {step}, {item}: want '
                       f'{", ".join(sorted(like))}, got '
                       f'{", ".join(sorted(found))} alone')
    wanted = found
    if parts is not None:
      wanted = {name: found[name] for name in parts if name in found}
    if problems := _mismatches(wanted, like):
      raise ValueError(f'{path}, step {step}, {item}: not of the shape of this '
                       f'model: ' + '; '.join(problems))
    others = {name: part for name, part in found.items() if name not in like}
    abstract = _abstract(like) | jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), others
    )
    restore = {item: ocp.args.StandardRestore(abstract)}
    loaded = manager.restore(step, args=ocp.args.Composite(**restore))[item]
    return {name: loaded[name] for name in like}


def _latest(path: str) -> tuple[pathlib.Path, int]:
  """The checkpoints of a run, and the step of the last one."""
  folder = pathlib.Path(path).absolute() / _FOLDER
  if not folder.is_dir():
    exists = folder.parent.is_dir()
    got = f'one without {_FOLDER}/' if exists else 'none: it does not exist'
    raise ValueError(f'{path}: want a run folder, got {got}')
  step = latest_step(path)
  if step is None:
    raise ValueError(f'{path}: want a run folder, '
                     f'got one without a complete checkpoint')
  return folder, step


def _mismatches(found: Any, like: Any) -> list[str]:
  """What differs between two trees of shapes, leaf by leaf."""
  ours, theirs = (
      {jax.tree_util.keystr(path, simple=True, separator='/'): tuple(x.shape)
       for path, x in jax.tree_util.tree_leaves_with_path(tree)}
      for tree in (like, found)
  )
  return [
      f'{name} want {ours.get(name, "nothing")}, '
      f'got {theirs.get(name, "nothing")}'
      for name in sorted({*ours, *theirs})
      if ours.get(name) != theirs.get(name)
  ]


def _handlers() -> dict[str, Any]:
  arrays = {item: ocp.StandardCheckpointHandler()
            for item in (_PARAMS, _TEACHER, _REST)}
  return {**arrays, _DATA: ocp.JsonCheckpointHandler()}


def _items(state: state_lib.TrainState) -> dict[str, Any]:
  rest = {'step': state.step, 'opt_state': state.opt_state, 'rng': state.rng}
  teacher = {_TEACHER: state.teacher} if state.teacher else {}
  return {_PARAMS: state.params, **teacher, _REST: rest}


def _abstract(tree: Any) -> Any:
  return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
