"""The report as aligned text; `TITLES` also documents the keys of the JSON."""

from collections.abc import Iterable, Iterator
from typing import Any

_NOT_REPORTED = 'not reported'

# Key -> what it is. Rates are of all devices, work and memory of one.
TITLES: dict[str, dict[str, str]] = {
    'machine': {
        'date': 'date',
        'commit': 'commit',
        'cpu': 'CPU',
        'cores': 'cores',
        'devices': 'devices of JAX',
        'platform': 'system',
        'python': 'Python',
        'jax': 'jax',
        'jaxlib': 'jaxlib',
        'glibc_tunables': 'GLIBC_TUNABLES',
        'xla_flags': 'XLA_FLAGS',
        'load_1min': 'load at the start',
        'is_quiet': 'quiet',
    },
    'source': {
        'source': 'source',
        'kind': 'kind',
        'clips': 'clips',
        'open_s': 'open, s',
        'threads': 'threads',
        'clips_per_s': 'clips/s',
        'bad_clips': 'bad',
    },
    'pipeline': {
        'workers': 'workers',
        'threads': 'threads',
        'start_s': 'first batch, s',
        'batches': 'batches',
        'clips_per_s': 'clips/s',
    },
    'formats': {
        'format': 'format',
        'clips': 'clips',
        'workers': 'workers',
        'threads': 'threads',
        'start_s': 'first batch, s',
        'batches': 'batches',
        'clips_per_s': 'clips/s',
    },
    'frontend': {
        'length_s': 'clip, s',
        'calls': 'batches',
        'batch_s': 's/batch, median',
        'clips_per_s': 'clips/s',
    },
    'step': {
        'devices': 'devices',
        'dtype': 'compute type',
        'batch': 'clips',
        'trace_s': 'trace, s',
        'compile_s': 'compile without cache, s',
        'compile_cached_s': 'compile from the cache on disk, s',
        'step_s': 's/step, median',
        'step_s_all': 's/step, all',
        'clips_per_s': 'clips/s',
        'loss': 'loss (of noise)',
        'matmul_gflop_per_s': 'matrix product, GFLOP/s',
        'gflop_per_clip': 'GFLOP/clip',
        'gflop_per_s': 'GFLOP/s of a device',
        'matmul_share': 'share of the matrix rate',
        'loops_once_gflop': 'GFLOP of a device, loop bodies once',
        'loops_once_gflop_xla': 'the same by XLA, all operations',
        'program_bytes': 'program',
        'program_temp_bytes': '  temporary',
        'program_argument_bytes': '  arguments',
        'program_output_bytes': '  outputs',
        'program_alias_bytes': '  outputs in place of arguments',
        'program_peak_bytes': '  peak by XLA',
        'device_peak_bytes': 'peak of the device',
        'process_peak_bytes': 'peak of this process',
    },
    'loop': {
        'workers': 'workers',
        'threads': 'threads',
        'start_s': 'first steps, s',
        'steps': 'steps',
        'skipped_clips': 'clips passed over',
        'step_s': 's/step, mean',
        'clips_per_s': 'clips/s',
        'drawing_share': 'share of time drawing a batch',
        'waiting_share': 'share of time waiting for data',
    },
    'memory': {
        'batch': 'clips',
        'program_bytes': 'program',
        'program_temp_bytes': 'temporary',
        'program_argument_bytes': 'arguments',
        'program_peak_bytes': 'peak by XLA',
        'ran': 'ran',
        'device_peak_bytes': 'peak of the device',
    },
    'memory_line': {
        'line_of': 'line through',
        'fixed_bytes': 'of a device: without clips',
        'clip_bytes': '  and per clip on it',
        'residual_share': '  largest residual',
        'limit_bytes': 'memory of a device',
        'largest_batch': 'largest batch by the line',
    },
    'scaling': {
        'devices': 'devices',
        'on': 'on',
        'batch': 'clips',
        'device_gflop': 'GFLOP of a device',
        'loops_once_gflop_xla': 'by XLA, loop bodies once',
        'collectives': 'collectives',
        'all_reduce_bytes': 'all-reduce',
        'all_gather_bytes': 'all-gather',
        'reduce_scatter_bytes': 'reduce-scatter',
        'other_bytes': 'others',
        'sent_bytes': 'sent by a device',
        'program_bytes': 'program',
        'step_s': 's/step, median',
        'clips_per_s': 'clips/s',
    },
    'projection': {
        'run': 'AudioSet-2M',
        'devices': 'devices',
        'device_hours': 'device-hours',
        'hours': 'hours',
        'scaling': 'scaling',
        'work': 'work of a clip',
    },
    'comparison': {
        'turns': 'turns',
        'this_step_s': 's/step, median',
        'other_step_s': '  of the other',
        'this_clips_per_s': 'clips/s',
        'other_clips_per_s': '  of the other',
        'ratio': 'times as fast as the other',
        'ratio_least': '  least of the turns',
        'ratio_quartiles': '  quartiles',
        'ratio_largest': '  largest',
    },
    'torch': {
        'version': 'PyTorch',
        'dtype': 'compute type',
        'layout': 'faster layout of its decoder',
        'batch': 'clips',
        'rounds': 'rounds, each of both',
        'step_s': 'ours, s/step, median',
        'torch_step_s': 'PyTorch, s/step, median',
        'clips_per_s': 'ours, clips/s',
        'torch_clips_per_s': 'PyTorch, clips/s',
        'ratio': 'ours by PyTorch, median of the rounds',
        'ratio_range': '  least and most of a round',
        'loss': 'ours, first loss (of noise)',
        'torch_loss': 'PyTorch, first loss (with other noise)',
        'torch_peak_bytes': 'PyTorch, peak of the device',
    },
}


def lines(report: dict[str, Any]) -> Iterator[str]:
  """The lines of the sections that a report has."""
  for section, titles in TITLES.items():
    if section not in report:
      continue
    yield section
    measured = report[section]
    if isinstance(measured, list):
      rows = [[_text(key, row[key]) for key in titles] for row in measured]
      yield from _aligned([list(titles.values()), *rows])
    else:
      yield from _aligned(
          [title, _text(key, measured[key])] for key, title in titles.items()
      )
    yield ''


def _aligned(rows: Iterable[list[str]]) -> Iterator[str]:
  rows = list(rows)
  widths = [max(map(len, column)) for column in zip(*rows)]
  for row in rows:
    yield '  ' + '  '.join(map(str.ljust, row, widths)).rstrip()


def _text(key: str, value: Any) -> str:
  if value is None:
    return _NOT_REPORTED
  if isinstance(value, list):
    return ' '.join(_text(key, part) for part in value)
  if isinstance(value, bool):
    return 'yes' if value else 'NO'
  if key.endswith('_bytes'):
    return f'{value / 2**20:.1f} MiB'
  if key.endswith('_share'):
    return f'{100 * value:.1f} %'
  return f'{value:.4g}' if isinstance(value, float) else str(value)
