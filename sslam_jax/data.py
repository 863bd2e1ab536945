"""The Grain pipeline: from a source of clips to the views a step learns from.

Order of the clips -> draw (excerpt; masks or augmentation) in threads or
worker processes -> batch -> devices -> log-mel and views, jitted.
Every random number is a function of the seed and a clip's place in the stream,
and nothing is filtered out (another clip stands in for a damaged one): so the
stream is the same for any number of workers and of processes, and starting it
at batch n continues it exactly.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sslam_jax import audio
from sslam_jax import clips
from sslam_jax import processes
from sslam_jax import reading
from sslam_jax import resampling
from sslam_jax import sampling
from sslam_jax import views as views_lib

_TRIES = 100  # damaged clips in a row: the disk is gone, not a clip
# First places of the stream, from which stand-ins are drawn. (Of a weighted
# source any other place would cost the draw of its epoch.)
_PLACES = 10_000
_SAMPLED = 64  # clips that tell one data set from another
_UNSEEN = contextlib.nullcontext()

_logger = logging.getLogger('sslam_jax')


@dataclasses.dataclass(kw_only=True)
class Data:
  """Configuration of the pipeline.

  Attributes:
    source: Where the clips come from.
    mel: The front end, with the data set's normalisation.
    views: What the model sees of each clip.
    resampler: 'sinc_hann' equals torchaudio's default, on which the published
      weights were trained; 'soxr' is faster and differs above 7 kHz.
    crop: Where a clip longer than the spectrogram is cut: 'random', or
      'start', as the reference cuts its frames. Only that part is read.
    short: What fills the spectrogram after the end of a shorter clip in
      training: log-mels of 0 ('pad'), as published, which are louder than most
      sound; or the clip again and again, the last time in part ('repeat', as
      of LAION-CLAP; its 'repeatpad' is silent there). Evaluations always pad.
    workers: Processes that read and draw; 0 does it in this process.
    threads: Reading threads, of each process.
    max_bad_fraction: Damaged clips are passed over, and others stand in for
      them; more than this part of all clips tried, and of one pass (10,000
      clips at most) on top, stops the run.
  """

  source: clips.Source
  mel: audio.LogMel = dataclasses.field(default_factory=audio.LogMel)
  views: views_lib.Kind
  resampler: resampling.Resampler = 'sinc_hann'
  crop: Literal['random', 'start'] = 'random'
  short: Literal['pad', 'repeat'] = 'pad'
  workers: int = 0
  threads: int = 16
  max_bad_fraction: float = 0.01

  def __post_init__(self) -> None:
    for name, least in (('workers', 0), ('threads', 1)):
      if getattr(self, name) < least:
        raise ValueError(f'{name}: want at least {least}, '
                         f'got {getattr(self, name)}')
    if not 0 <= self.max_bad_fraction <= 1:
      raise ValueError(f'max_bad_fraction: want 0 to 1, '
                       f'got {self.max_bad_fraction}')


def records(
    data: Data,
    *,
    batch: int,
    seed: int,
    patch: int,
    start: int = 0,
    rows: range | None = None,
    slate: reading.Slate | None = None,
) -> grain.IterDataset:
  """Batches of NumPy records, without end, from batch `start` on.

  Args:
    data: What of.
    batch: Clips per batch, over all processes.
    seed: Of every random number.
    patch: Side of a patch, in frames and mel bins.
    start: First batch.
    rows: Those of each batch that this process reads; None for all.
    slate: Where reading threads say which clip they are on.
  """
  rows = range(batch) if rows is None else rows
  order = sampling.order(data.source, seed)
  stream = (
      _Rows(order.random_map(_Draw(data, patch, order, slate)), batch, rows)
      .slice(slice(start * len(rows), None))
      .to_iter_dataset(
          grain.ReadOptions(
              num_threads=data.threads,
              prefetch_buffer_size=max(2 * len(rows), data.threads),
          )
      )
  )
  if data.workers:
    # Grain's workers read command-line flags, which only absl's main parses.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    stream = stream.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=data.workers), _start_worker
    )
  # After the workers: their number then leaves the batches as they are.
  return stream.batch(len(rows), drop_remainder=True)


class Hung(RuntimeError):
  """No batch came in time; the message says which clips were being read."""


class Fed(NamedTuple):
  """A batch; of several processes, `ids` and `skipped` are this one's."""

  ids: list[str]
  views: Any  # of `data.views`, sharded over the mesh
  skipped: list[tuple[str, str]]  # damaged clips passed over: (id, reason)
  waited_s: float  # for the clips; not for the devices, which make the views


class Feed:
  """Iterates over batches for the devices of a mesh.

  Its state is the number of batches drawn: with it the stream continues
  exactly, with any number of workers, threads, devices and processes. (The
  state of a Grain iterator itself fits one number of workers only.)
  """

  def __init__(
      self,
      data: Data,
      *,
      batch: int,
      seed: int,
      patch: int,
      mesh: Mesh,
      patience_s: float | None = None,
  ) -> None:
    """A feed at its first batch; it waits `patience_s` for one, or for ever."""
    self._patience_s = patience_s
    self._sharding = NamedSharding(mesh, PartitionSpec(views_lib.AXIS))
    rows = processes.rows(self._sharding, batch)
    self._open = functools.partial(
        records, data, batch=batch, seed=seed, patch=patch, rows=rows
    )
    self._clips, self._fingerprint = len(data.source), fingerprint(data.source)
    self._make = compile_views(data, patch, mesh)
    self._row_B: Any = np.array(rows, dtype=np.int32)
    self._batches = 0
    self._iterator: Any = None
    self._slate: reading.Slate | None = None
    # Waits for the iterator, which cannot be left once it is asked.
    self._asker: concurrent.futures.Executor | None = None

  def __iter__(self) -> 'Feed':
    return self

  def __next__(self) -> Fed:
    began = time.monotonic()
    record = self._read()
    waited_s = time.monotonic() - began
    self._batches += 1
    ids, texts = list(record.pop('id')), record.pop('skipped')
    record['row'] = self._row_B
    return Fed(
        ids=ids,
        views=self._make(processes.spread(record, self._sharding)),
        skipped=[(clip, reason) for text in texts if text
                 for clip, reason in json.loads(text)],
        waited_s=waited_s,
    )

  def _read(self) -> views_lib.Record:
    if self._iterator is None or self._slate is None or self._asker is None:
      self._slate = reading.Slate()
      self._asker = concurrent.futures.ThreadPoolExecutor(1)
      self._iterator = iter(self._open(start=self._batches, slate=self._slate))
    answer = self._asker.submit(next, self._iterator)
    concurrent.futures.wait([answer], self._patience_s)
    if not answer.done():
      assert self._patience_s is not None
      # Clips are read ahead, so what hangs may have begun before the wait.
      on = self._slate.describe(self._patience_s / 2)
      self._iterator = None  # closing it would wait for what hangs
      raise Hung(f'{processes.name()} waited {self._patience_s:g} s for a '
                 f'batch (patience_s): {on}')
    return answer.result()

  def get_state(self) -> dict[str, Any]:
    """What `set_state` needs, as plain JSON."""
    return {'batches': self._batches, 'clips': self._clips,
            'fingerprint': self._fingerprint}

  def set_state(
      self, state: dict[str, Any], *, moved: tuple[str, ...] = ()
  ) -> None:
    """Continues where `state` was taken.

    Where clips were added, removed or changed since, the new stream goes on
    from the same batch, with a warning: its clips come in another order.

    Args:
      state: Of `get_state`.
      moved: Fields of the configuration by which the data is elsewhere now.

    Raises:
      ValueError: Elsewhere are other clips.
    """
    was, now = ((s['clips'], s['fingerprint']) for s in
                (state, self.get_state()))
    if was != now:
      got = f'{now[0]} clips, of {was[0]} when the run was saved'
      if moved:
        raise ValueError(f'{", ".join(moved)}: want the data of this run, only '
                         f'elsewhere; got other clips ({got})')
      _logger.warning('data: other clips than before (%s): the run goes on, '
                      'with the clips in another order', got)
    self.close()
    self._batches = state['batches']

  def close(self) -> None:
    """Stops threads and worker processes."""
    if self._iterator is not None:
      self._iterator.close()
    if self._asker is not None:
      self._asker.shutdown(wait=False)
    if self._slate is not None:
      self._slate.remove()
    self._iterator = self._asker = self._slate = None


def compile_views(
    data: Data, patch: int, mesh: Mesh
) -> Callable[[views_lib.Record], Any]:
  """`data.views.make` over the mesh, jitted."""
  make = functools.partial(data.views.make, mel=data.mel, patch=patch)
  spec = PartitionSpec(views_lib.AXIS)
  return jax.jit(jax.shard_map(make, mesh=mesh, in_specs=spec, out_specs=spec))


def fingerprint(source: clips.Source) -> str:
  """Hash of lengths and labels of some clips: the same wherever they are."""
  digest, count = hashlib.sha256(), len(source)
  for index in sorted({i * count // _SAMPLED for i in range(_SAMPLED)}):
    try:
      clip = source[index]
      row = [clip.samples, clip.rate_hz, *clip.labels]
    except clips.BadClip:
      row = ['damaged']
    digest.update(json.dumps(row).encode())
  return digest.hexdigest()[:16]


def excerpt(
    clip: clips.Clip, data: Data, rng: np.random.Generator
) -> np.ndarray:
  """At most as many samples of a clip as fill the spectrogram, resampled.

  Only the part that is needed is read.
  """
  if data.crop == 'start':
    return beginning(clip, data.mel, data.resampler)
  spare = clip.samples - _needed(clip, data.mel)
  start = int(rng.integers(spare + 1))
  return beginning(clip, data.mel, data.resampler, start)


def beginning(
    clip: clips.Clip,
    mel: audio.LogMel,
    resampler: resampling.Resampler,
    start: int = 0,
) -> np.ndarray:
  """What fills the spectrogram of a clip from its sample `start` on.

  Resampled; only that part is read.
  """
  wave = clip.read(start, min(_needed(clip, mel), clip.samples - start))
  wave = resampling.resample(wave, clip.rate_hz, mel.rate_hz, resampler)
  return wave[: mel.samples]


def _needed(clip: clips.Clip, mel: audio.LogMel) -> int:
  """Samples of a clip, at its own rate, that fill the spectrogram."""
  return min(math.ceil(mel.samples * clip.rate_hz / mel.rate_hz), clip.samples)


def _start_worker(index: int, count: int) -> None:
  """Leaves signals to the run, with which a worker ends."""
  multiprocessing.current_process().name = f'worker {index} of {count}'
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)


class _Rows(grain.MapDataset):
  """The places of a stream that stand in some rows of its batches."""

  def __init__(
      self, stream: grain.MapDataset, batch: int, rows: range
  ) -> None:
    super().__init__(stream)
    self._batch, self._rows = batch, rows

  def __len__(self) -> int:
    return sys.maxsize // self._batch * len(self._rows)

  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, slice):
      return self.slice(index)
    number, row = divmod(index, len(self._rows))
    return self._parent[number * self._batch + self._rows[row]]


class _Draw(grain.transforms.RandomMap):
  """All random choices of one clip in the stream."""

  def __init__(
      self,
      data: Data,
      patch: int,
      order: grain.MapDataset,
      slate: reading.Slate | None,
  ) -> None:
    self._data, self._order, self._slate = data, order, slate
    frames, mel_bins = data.mel.frames, data.mel.mel_bins
    self._grid = frames // patch, mel_bins // patch

  def random_map(
      self, index: int, rng: np.random.Generator
  ) -> views_lib.Record:
    data = self._data
    record = data.views.draw(rng, self._grid)
    clip, wave, skipped = self._read(index, rng)
    if data.short == 'repeat':
      wave = np.resize(wave, data.mel.samples)  # of its copies, one by one
    record |= data.views.label(clip.labels)
    record['id'] = clip.id
    record['wave'] = np.zeros(data.mel.samples, np.float32)
    record['wave'][: len(wave)] = wave
    record['samples'] = np.int32(len(wave))
    record['skipped'] = json.dumps(skipped) if skipped else ''
    return record

  def _read(
      self, index: int, rng: np.random.Generator
  ) -> tuple[clips.Clip, np.ndarray, list[tuple[str, str]]]:
    """A clip and its wave, and the damaged ones tried before it.

    A stand-in comes from a random place of the stream: drawn as all are.
    """
    skipped: list[tuple[str, str]] = []
    for _ in range(_TRIES):
      try:
        with self._slate.reading(index) if self._slate else _UNSEEN:
          clip = self._data.source[index]
          reading.note(clip.id)
          return clip, excerpt(clip, self._data, rng), skipped
      except clips.BadClip as error:
        skipped.append((error.clip_id, error.reason))
        index = self._order[int(rng.integers(_PLACES))]
    clip_id, reason = skipped[-1]
    raise ValueError(f'want readable clips, got {_TRIES} damaged ones in '
                     f'a row, the last {clip_id}: {reason}')
