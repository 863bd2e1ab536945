"""Measures the log-mel mean and deviation of a data set, for normalisation.

  python tools/audio_stats.py --config=configs/stage1.py:folder=DIR

Clips are drawn as in training (excerpts of the spectrogram's length); frames
beyond the end of a clip do not count.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator

import jax
import numpy as np
import tqdm

# For a checkout that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from sslam_jax import audio
from sslam_jax import config as config_lib
from sslam_jax import data
from sslam_jax import train

_BATCH = 16


def main(args: list[str]) -> int:
  """Prints the constants; exit status 2 where the data cannot be read."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', required=True, metavar='FILE.py[:ARGUMENT]')
  parser.add_argument('--clips', type=int, default=2000,
                      help='how many to draw (default: 2000)')
  options = parser.parse_args(args)
  try:
    config = config_lib.checked(config_lib.load(options.config))
    mean, std = measure(config, min(options.clips, len(config.data.source)))
  except ValueError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(f'mean {mean:.4f}, std {std:.4f} (nats); to train with them:')
  print(f'--config.data.mel.mean={mean:.4f} --config.data.mel.std={std:.4f}')
  return 0


def measure(config: train.Config, clips: int) -> tuple[float, float]:
  """(mean, std) over all frames and mel bins of the first clips drawn."""
  if clips < 1:
    raise ValueError(f'--clips: want at least 1, got {clips}')
  count, total, square = 0, 0.0, 0.0
  for mel_TxF in _log_mels(config, clips):
    values = mel_TxF.astype(np.float64)
    count += values.size
    total += values.sum()
    square += (values**2).sum()
  if not count:
    raise ValueError(f'data: want clips of at least one frame, got none in '
                     f'{clips}')
  mean = total / count
  return mean, (square / count - mean**2) ** 0.5


def _log_mels(config: train.Config, clips: int) -> Iterator[np.ndarray]:
  """Log-mels of clips without the frames beyond their ends."""
  mel: audio.LogMel = config.data.mel
  patch = config.objective.vit.patch
  log_mel = jax.jit(mel.log_mel)
  batches = iter(
      data.records(config.data, batch=_BATCH, seed=config.seed, patch=patch)
  )
  # disable=None: no bar where the output is no terminal.
  for done in tqdm.trange(0, clips, _BATCH, unit='batch', disable=None):
    record = next(batches)
    mel_BxTxF = np.asarray(log_mel(record['wave'], record['samples']))
    for row in range(min(_BATCH, clips - done)):
      frames = 1 + (int(record['samples'][row]) - mel.window) // mel.hop
      yield mel_BxTxF[row, : max(frames, 0)]
  batches.close()


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
