"""How fast clips are read: of each source alone, and of the whole pipeline."""

from collections.abc import Iterator
import concurrent.futures
import dataclasses
import time
from typing import Any

import numpy as np

from sslam_jax import clips
from sslam_jax import data as data_lib
from sslam_jax import train

_Named = tuple[str, clips.Source]


def measure_sources(
    data: data_lib.Data, seconds: float
) -> list[dict[str, Any]]:
  """Clips/s of the source and of those inside it, by one and all threads."""
  rows = []
  for name, source in _named(data.source, 'data.source'):
    began = time.perf_counter()
    size = len(source)
    open_s = time.perf_counter() - began
    for threads in sorted({1, data.threads}):
      read, bad, elapsed_s = _read(data, source, threads, seconds)
      rows.append({
          'source': name,
          'kind': type(source).__name__,
          'clips': size,
          'open_s': round(open_s, 3),
          'threads': threads,
          'clips_per_s': read / elapsed_s,
          'bad_clips': bad,
      })
  return rows


def measure_pipeline(
    config: train.Config, workers: int, seconds: float
) -> dict[str, Any]:
  """Clips/s of the batches that the host makes, and seconds to the first."""
  data = dataclasses.replace(config.data, workers=workers)
  began = time.perf_counter()
  batches = iter(data_lib.records(
      data, batch=config.batch, seed=config.seed,
      patch=config.objective.vit.patch,
  ))
  try:
    next(batches)
    start_s = time.perf_counter() - began
    _drain(batches, data, config.batch, seconds)
    count, elapsed_s = _batches(batches, seconds)
  finally:
    batches.close()
  return {
      'workers': workers,
      'threads': data.threads,
      'start_s': start_s,
      'batches': count,
      'clips_per_s': count * config.batch / elapsed_s,
  }


def _named(source: Any, name: str) -> Iterator[_Named]:
  """A source and, where it is made of others, each of them."""
  yield name, source
  if not dataclasses.is_dataclass(source):
    return
  for field in dataclasses.fields(source):
    value = getattr(source, field.name)
    parts = {f'{name}.{field.name}': value}
    if isinstance(value, tuple):
      parts = {f'{name}.{field.name}[{i}]': x for i, x in enumerate(value)}
    for part_name, part in parts.items():
      if dataclasses.is_dataclass(part) and hasattr(part, '__getitem__'):
        yield from _named(part, part_name)


def _read(
    data: data_lib.Data, source: clips.Source, threads: int, seconds: float
) -> tuple[int, int, float]:
  """(read, bad, seconds) of random clips, as training reads them."""
  began = time.perf_counter()

  def read(seed: int) -> tuple[int, int]:
    rng, good, bad = np.random.default_rng(seed), 0, 0
    while time.perf_counter() < began + seconds:
      try:
        data_lib.excerpt(source[int(rng.integers(len(source)))], data, rng)
        good += 1
      except clips.BadClip:
        bad += 1
    return good, bad

  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    counts = list(pool.map(read, range(threads)))
  elapsed_s = time.perf_counter() - began
  good, bad = map(sum, zip(*counts))
  return good, bad, elapsed_s


def _drain(
    batches: Iterator[Any], data: data_lib.Data, batch: int, seconds: float
) -> None:
  """Takes what was read ahead during the start, which came at no cost."""
  ahead = max(2, data.threads // batch) * max(1, data.workers)
  began = time.perf_counter()
  for _ in range(ahead):
    if time.perf_counter() > began + seconds:
      return
    next(batches)


def _batches(batches: Iterator[Any], seconds: float) -> tuple[int, float]:
  """(batches drawn, seconds they took), of at least two."""
  count, began = 0, time.perf_counter()
  while count < 2 or time.perf_counter() < began + seconds:
    next(batches)
    count += 1
  return count, time.perf_counter() - began
