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
import types
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# A process that is silent for so long is lost, and the others end.
_LOST_S = 30
_JOIN_S = 120
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
        heartbeat_timeout_seconds=_LOST_S, shutdown_timeout_seconds=_LOST_S,
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


def leave(status: int) -> None:
  """Ends this process at once where others may wait for it in vain.

  The usual way out would wait for the others, and they for this one.
  """
  if jax.process_count() > 1:
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


class Total:
  """Sums a number over all processes, without waiting for the result."""

  def __init__(self, mesh: Mesh) -> None:
    axis, = mesh.axis_names
    self._sharding = NamedSharding(mesh, PartitionSpec(axis))
    self._rows = len(rows(self._sharding, mesh.size))
    self._sum = jax.jit(
        lambda x: x.sum(), out_shardings=NamedSharding(mesh, PartitionSpec())
    )

  def __call__(self, number: int) -> jax.Array:
    x = np.zeros(self._rows, np.int32)
    x[0] = number
    return self._sum(spread(x, self._sharding))


def gather(items: list[Any]) -> list[Any]:
  """The JSON lists of all processes, joined; all of them must call it."""
  if jax.process_count() == 1:
    return items
  text = np.frombuffer(json.dumps(items).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(len(text)))
  padded = np.zeros(lengths.max(), np.uint8)
  padded[: len(text)] = text
  texts = multihost_utils.process_allgather(padded)
  return [item for row, length in zip(texts, lengths)
          for item in json.loads(row[:length].tobytes())]


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
