"""The Grain pipeline: from a source of clips to the views a step learns from.

Source -> shuffle -> repeat -> draw (excerpt, masks, mixed columns) in threads
or worker processes -> batch -> devices -> log-mel and mix, jitted.
Every random number is a function of the seed and a clip's place in the stream,
and nothing is filtered out: so the stream is the same for any number of
workers, and starting it at batch n continues it exactly.
"""

import dataclasses
import functools
import logging
import math
from typing import Any, Literal

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sslam_jax import audio
from sslam_jax import clips
from sslam_jax import masking
from sslam_jax import mixing
from sslam_jax import resampling
from sslam_jax import views

AXIS = 'data'  # of the mesh: clips are spread over it

_logger = logging.getLogger('sslam_jax')


@dataclasses.dataclass(kw_only=True)
class Data:
  """Configuration of the pipeline.

  Attributes:
    source: Where the clips come from.
    mel: The front end, with the data set's normalisation.
    mask: How patches are hidden.
    clones: Masks per clip, M.
    mix: How clips are mixed; None where the objective needs no mixtures.
    resampler: 'sinc_hann' equals torchaudio's default, on which the published
      weights were trained; 'soxr' is faster and differs above 7 kHz.
    crop: Where a clip longer than the spectrogram is cut: 'random', or
      'start', as the reference cuts its frames. Only that part is read.
    workers: Processes that read and draw; 0 does it in this process.
    threads: Reading threads, of each process.
  """

  source: clips.Source
  mel: audio.LogMel = dataclasses.field(default_factory=audio.LogMel)
  mask: masking.InverseBlock = dataclasses.field(
      default_factory=masking.InverseBlock
  )
  clones: int
  mix: mixing.PartialMix | None = None
  resampler: Literal['sinc_hann', 'soxr'] = 'sinc_hann'
  crop: Literal['random', 'start'] = 'random'
  workers: int = 0
  threads: int = 16

  def __post_init__(self) -> None:
    for name, least in (('clones', 1), ('workers', 0), ('threads', 1)):
      if getattr(self, name) < least:
        raise ValueError(f'{name}: want at least {least}, '
                         f'got {getattr(self, name)}')


def records(
    data: Data, *, batch: int, seed: int, patch: int, start: int = 0
) -> grain.IterDataset:
  """Batches of NumPy records, without end, from batch `start` on."""
  stream = (
      grain.MapDataset.source(data.source)
      .seed(seed)
      .shuffle()
      .repeat()
      .random_map(_Draw(data, patch))
      .slice(slice(start * batch, None))
      .to_iter_dataset(
          grain.ReadOptions(
              num_threads=data.threads,
              prefetch_buffer_size=max(2 * batch, data.threads),
          )
      )
  )
  if data.workers:
    # Grain's workers read command-line flags, which only absl's main parses.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    stream = stream.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=data.workers)
    )
  # After the workers: their number then leaves the batches as they are.
  return stream.batch(batch, drop_remainder=True)


class Feed:
  """Iterates over (clip ids, `views.Views` sharded over the mesh).

  Its state is the number of batches drawn: with it the stream continues
  exactly, with any number of workers, threads and devices. (The state of a
  Grain iterator itself fits one number of workers only.)
  """

  def __init__(
      self, data: Data, *, batch: int, seed: int, patch: int, mesh: Mesh
  ) -> None:
    self._open = functools.partial(
        records, data, batch=batch, seed=seed, patch=patch
    )
    self._clips = len(data.source)
    self._sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    make = functools.partial(
        views.make, mel=data.mel, mix=data.mix, patch=patch
    )
    spec = PartitionSpec(AXIS)
    self._make = jax.jit(
        jax.shard_map(make, mesh=mesh, in_specs=spec, out_specs=spec)
    )
    self._row_B: Any = np.arange(batch, dtype=np.int32)
    self._batches = 0
    self._iterator: Any = None

  def __iter__(self) -> 'Feed':
    return self

  def __next__(self) -> tuple[list[str], views.Views]:
    if self._iterator is None:
      self._iterator = iter(self._open(start=self._batches))
    record = next(self._iterator)
    self._batches += 1
    batch = views.Batch(
        wave_BxS=record['wave'],
        samples_B=record['samples'],
        keep_BxMxK=record['keep'],
        row_B=self._row_B,
        column_BxC=record.get('column'),
    )
    return list(record['id']), self._make(jax.device_put(batch,
                                                         self._sharding))

  def get_state(self) -> dict[str, int]:
    """What `set_state` needs, as plain JSON."""
    return {'batches': self._batches, 'clips': self._clips}

  def set_state(self, state: dict[str, int]) -> None:
    """Continues where `state` was taken.

    Where clips were added or removed since, the new stream goes on from the
    same batch, with a warning: its clips come in another order.
    """
    if state['clips'] != self._clips:
      _logger.warning(
          'data: %d clips, but %d when the run was saved: it goes on, with '
          'the clips in another order', self._clips, state['clips'],
      )
    self.close()
    self._batches = state['batches']

  def close(self) -> None:
    """Stops threads and worker processes."""
    if self._iterator is not None:
      self._iterator.close()
    self._iterator = None


def excerpt(
    clip: clips.Clip, data: Data, rng: np.random.Generator
) -> np.ndarray:
  """At most as many samples of a clip as fill the spectrogram, resampled.

  Only the part that is needed is read.
  """
  rate_hz, samples = data.mel.rate_hz, data.mel.samples
  count = min(math.ceil(samples * clip.rate_hz / rate_hz), clip.samples)
  spare = clip.samples - count
  start = rng.integers(spare + 1) if data.crop == 'random' else 0
  wave = clip.read(int(start), count)
  wave = resampling.resample(wave, clip.rate_hz, rate_hz, data.resampler)
  return wave[:samples]


class _Draw(grain.transforms.RandomMap):
  """All random choices of one clip in the stream."""

  def __init__(self, data: Data, patch: int) -> None:
    self._data = data
    frames, mel_bins = data.mel.frames, data.mel.mel_bins
    self._grid = frames // patch, mel_bins // patch

  def random_map(
      self, clip: clips.Clip, rng: np.random.Generator
  ) -> dict[str, Any]:
    data = self._data
    hidden_MxN = data.mask.sample(rng, data.clones, self._grid)
    keep_MxK = masking.kept_indices(hidden_MxN)
    record: dict[str, Any] = {'id': clip.id, 'keep': keep_MxK}
    if data.mix is not None:
      record['column'] = data.mix.plan(rng, self._grid[0])
    wave = excerpt(clip, data, rng)
    record['wave'] = np.zeros(data.mel.samples, np.float32)
    record['wave'][: len(wave)] = wave
    record['samples'] = np.int32(len(wave))
    return record
