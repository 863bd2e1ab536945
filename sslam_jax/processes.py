"""One run in several processes, on one host or many.

Each process computes on its own devices and reads its own rows of every batch;
only the first writes logs. All see the same sums at the same step, so all stop
at the same step. With one process every function here is trivial.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
import types
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# JAX ends this process where another is silent for so long: late, so that
# `watch` can say which it is.
_LOST_S = 60
_SHUTDOWN_S = 30
_JOIN_S = 120
# The service is in process 0, and the others end at once when it does: until
# then they have to learn why.
_GRACE_S = 10.0
_BOARD = 'sslam_jax/watch/'
# In what JAX raises when a process it talks to is gone.
_LOSS_SIGNS = ('Gloo', 'NCCL', 'UNAVAILABLE', 'ABORTED', 'DEADLINE_EXCEEDED',
               'heartbeat', 'coordination service', 'Connection', 'Barrier')


def join(
    coordinator: str | None, count: int | None, index: int | None
) -> None:
  """Makes this process one of a job; before anything else of JAX is used.

  Args:
    coordinator: `host:port` where process 0 listens; None: all three are found
      by JAX (Slurm, Open MPI, GKE, TPU pods).
    count: How many processes there are.
    index: Which this is.

  Raises:
    ValueError: They contradict, no cluster was found, or not all processes
      came within two minutes.
  """
  if index == 0 and coordinator is not None:
    _check_free(coordinator)
  try:
    jax.distributed.initialize(
        coordinator, count, index, initialization_timeout=_JOIN_S,
        heartbeat_timeout_seconds=_LOST_S,
        shutdown_timeout_seconds=_SHUTDOWN_S,
    )
  except (ValueError, RuntimeError) as error:
    raise ValueError(f'processes: cannot join: {error}') from None


def _check_free(coordinator: str) -> None:
  """JAX ends with a segmentation fault where the port is taken."""
  port = int(coordinator.rpartition(':')[2])
  try:
    socket.create_server(('', port)).close()
  except OSError as error:
    raise ValueError(f'--coordinator={coordinator}: want a free port, '
                     f'got {error}') from None


def is_first() -> bool:
  """Whether this process writes logs, pictures and metrics."""
  return jax.process_index() == 0


def host() -> str:
  """The machine that this process runs on."""
  return socket.gethostname()


def name() -> str:
  """This process, as messages call it."""
  return f'process {jax.process_index()} on {host()}'


def leave(status: int, *, at_once: bool = False) -> NoReturn:
  """Ends this process whatever else in it still waits.

  The usual way out would wait for threads that hang, and for other processes
  that wait for this one.
  """
  if not at_once and jax.process_count() > 1 and is_first():
    time.sleep(_GRACE_S)
  for child in multiprocessing.active_children():
    child.kill()
  os._exit(status)


def is_loss(error: Exception) -> bool:
  """Whether an error means that another process of the job is gone."""
  return jax.process_count() > 1 and any(
      sign in str(error) for sign in _LOSS_SIGNS
  )


def rows(sharding: NamedSharding, batch: int) -> range:
  """Rows of a batch that lie on this process's devices: one after another."""
  slices = sharding.addressable_devices_indices_map((batch,)).values()
  spans = [part[0].indices(batch) for part in slices if part is not None]
  return range(min(span[0] for span in spans), max(span[1] for span in spans))


def spread(tree: Any, sharding: NamedSharding) -> Any:
  """Arrays over all devices, from the rows that this process holds."""
  return jax.tree.map(
      functools.partial(jax.make_array_from_process_local_data, sharding), tree
  )


def local(tree: Any) -> Any:
  """The rows that this process holds, as NumPy: the inverse of `spread`."""

  def fetch(x: jax.Array) -> np.ndarray:
    shards = sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])

  return jax.tree.map(fetch, tree)


class Table:
  """A row of numbers from each process, without waiting for the result."""

  def __init__(self, mesh: Mesh) -> None:
    axis, = mesh.axis_names
    self._sharding = NamedSharding(mesh, PartitionSpec(axis))
    self._rows = len(rows(self._sharding, mesh.size))
    owners = [device.process_index for device in mesh.devices.flat]
    self._firsts = [owners.index(owner) for owner in dict.fromkeys(owners)]
    self._copy = jax.jit(
        lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec())
    )

  def __call__(self, numbers: list[float]) -> jax.Array:
    """The numbers of all devices [devices, numbers]; all have to call it."""
    x = np.tile(np.array(numbers, np.float32), (self._rows, 1))
    return self._copy(spread(x, self._sharding))

  def read(self, table: jax.Array) -> np.ndarray:
    """Waits for what a call returned: the row of each process."""
    return np.asarray(table)[self._firsts]


class Board:
  """A short text of each process, for all to see.

  It is kept in process 0: where that hangs, so do these functions.
  """

  def __init__(self) -> None:
    # No public part of JAX has it; 0.10 and 0.11 do.
    self._client: Any = distributed.global_state.client

  def post(self, text: str) -> None:
    """Replaces the text of this process."""
    self._client.key_value_set(f'{_BOARD}{jax.process_index()}', text,
                               allow_overwrite=True)

  def read(self) -> dict[int, str]:
    """The texts of all processes that have one, by their index."""
    found = self._client.key_value_dir_get(_BOARD)
    return {int(key.removeprefix(_BOARD)): text for key, text in found}


def gather(items: list[Any]) -> list[Any]:
  """The JSON lists of all processes, joined; all of them must call it."""
  if jax.process_count() == 1:
    return items
  lines = ''.join(f'{json.dumps(item)}\n' for item in items)
  text = gather_rows(np.frombuffer(lines.encode(), np.uint8)).tobytes()
  return list(map(json.loads, text.splitlines()))


def gather_rows(x_NxD: np.ndarray) -> np.ndarray:
  """The rows of all processes, as many as each has; all must call it."""
  if jax.process_count() == 1:
    return x_NxD
  lengths = multihost_utils.process_allgather(np.int32(len(x_NxD)))
  padded = np.zeros((lengths.max(), *x_NxD.shape[1:]), x_NxD.dtype)
  padded[: len(x_NxD)] = x_NxD
  parts = multihost_utils.process_allgather(padded)
  return np.concatenate([part[:length]
                         for part, length in zip(parts, lengths)])


class Stop:
  """Whether this run was told to stop, by SIGINT or SIGTERM."""

  def __init__(self) -> None:
    self._told: list[int] = []

  def note(self, number: int) -> None:
    """Keeps a signal's number."""
    self._told.append(number)
    if jax.process_count() > 1 and number != signal.SIGTERM:
      os.kill(os.getpid(), signal.SIGTERM)  # which JAX tells all processes

  @property
  def told(self) -> bool:
    """Whether this process was, whatever the others know."""
    return bool(self._told)

  def reason(self, step: int) -> str | None:
    """The signal's name once all processes agree to stop after `step`."""
    if jax.process_count() > 1:
      if not multihost_utils.reached_preemption_sync_point(step):
        return None
      return 'SIGTERM'
    return signal.Signals(self._told[0]).name if self._told else None


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
  """Notes SIGINT and SIGTERM; a second one ends the process at once."""
  stop = Stop()
  before: dict[int, Any] = {}

  def note(number: int, _: types.FrameType | None) -> None:
    signal.signal(number, before[number])
    stop.note(number)

  # SIGTERM to one of several processes is caught and spread by JAX itself.
  numbers = [signal.SIGINT]
  if jax.process_count() == 1:
    numbers.append(signal.SIGTERM)
  try:
    if threading.current_thread() is threading.main_thread():
      for number in numbers:
        before[number] = signal.signal(number, note)
    yield stop
  finally:
    for caught, handler in before.items():
      signal.signal(caught, handler)
