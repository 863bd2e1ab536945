"""The same clips as FLAC files, WAV files and a pack, through the pipeline."""

from collections.abc import Iterable
import dataclasses
import pathlib
import tempfile
from typing import Any

import soundfile

from sslam_jax import clips
from sslam_jax import packs
from sslam_jax import sources
from sslam_jax import train
from tools.benchmarks import reading
from tools.packing import folder as folder_lib
from tools.packing import shards as shards_lib

_CLIPS = 256
_FILES = ('flac', 'wav')


def measure_formats(
    config: train.Config, workers: Iterable[int], seconds: float
) -> list[dict[str, Any]]:
  """A row per format and number of workers, of the first clips of the source.

  They are 16-bit files in a temporary folder, just written: what is measured
  is decoding, not a disk.
  """
  with tempfile.TemporaryDirectory(prefix='sslam_jax_') as name:
    folder = pathlib.Path(name)
    _write_files(config.data.source, folder)
    _write_pack(folder / 'flac', folder / 'pack')
    kinds: dict[str, clips.Source] = {
        kind: sources.Folder(paths=(str(folder / kind),)) for kind in _FILES
    }
    kinds['ArrayRecord of flac'] = packs.Pack(path=str(folder / 'pack'))
    rows = []
    for kind, source in kinds.items():
      data = dataclasses.replace(config.data, source=source)
      each = dataclasses.replace(config, data=data)
      for count in workers:
        row = reading.measure_pipeline(each, count, seconds)
        rows.append({'format': kind, 'clips': len(source), **row})
  return rows


def _write_files(source: clips.Source, folder: pathlib.Path) -> None:
  for kind in _FILES:
    (folder / kind).mkdir()
  for index in range(min(_CLIPS, len(source))):
    clip = source[index]
    wave = clip.read(0, clip.samples)
    for kind in _FILES:
      path = folder / kind / f'{index:04}.{kind}'
      soundfile.write(path, wave, clip.rate_hz, subtype='PCM_16')


def _write_pack(files: pathlib.Path, out: pathlib.Path) -> None:
  """As tools/pack_audio.py does it, in one shard and at the clips' rate."""
  source = sources.Folder(paths=(str(files),))
  settings = shards_lib.Settings(
      source=f'folder={files}', shards=1, rate_hz=None, max_s=None
  )
  with folder_lib.opened(str(out)) as folder:
    index = folder_lib.started(folder, source, settings)
    with folder_lib.unfinished(folder, index) as temporary:
      report = shards_lib.write(
          str(temporary / settings.file(0)), source, range(len(source)),
          settings, lambda _: None,
      )
      folder_lib.keep(folder, temporary, report)
      folder_lib.finish(folder, index, {0: report})
