"""Prepares our soundscapes as a TensorFlow data set, without TensorFlow.

  python tools/build_tfds.py --data_dir=DIR --clips=4096 --length_s=10

It holds the splits train, validation and test, as ArrayRecord files.
"""

import argparse
import pathlib
import sys

# For a checkout that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from sslam_jax import soundscapes


def main(args: list[str]) -> int:
  """Writes the data set; exit status 2 where that is not possible."""
  default = soundscapes.Soundscapes()
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data_dir', required=True, metavar='DIR',
                      help='folder of all TensorFlow data sets')
  parser.add_argument('--clips', type=int, default=default.clips,
                      help='scenes in train (default: %(default)s)')
  parser.add_argument('--eval_clips', type=int, default=512,
                      help='in validation and test (default: %(default)s)')
  parser.add_argument('--length_s', type=float, default=default.length_s,
                      help='of every scene (default: %(default)s)')
  parser.add_argument('--seed', type=int, default=default.seed,
                      help='another one, other scenes (default: %(default)s)')
  options = parser.parse_args(args)
  try:
    scenes = soundscapes.Soundscapes(
        clips=options.clips, length_s=options.length_s, seed=options.seed
    )
    folder, sizes = prepare(options.data_dir, scenes, options.eval_clips)
  except (ImportError, OSError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  counts = ', '.join(f'{split} {clips}' for split, clips in sizes.items())
  print(f'{folder}: {counts} clips; to train with them:')
  print(f'--config=configs/stage1.py:tfds={folder}:train')
  return 0


def prepare(
    data_dir: str, scenes: soundscapes.Soundscapes, eval_clips: int
) -> tuple[str, dict[str, int]]:
  """Writes the data set where it is not there yet.

  Returns:
    Its folder, and the clips of each split.

  Raises:
    ValueError: It is there with other settings.
  """
  from sslam_jax import tfds_soundscapes  # An extra.

  builder = tfds_soundscapes.SslamSoundscapes(
      scenes=scenes, eval_clips=eval_clips, data_dir=data_dir,
      file_format='array_record',
  )
  there = dict(builder.info.metadata)  # As read from the disk, if it is.
  if there != builder.settings:
    differing = {name: there.get(name) for name, value
                 in builder.settings.items() if there.get(name) != value}
    raise ValueError(f'{builder.data_dir}: want a folder that does not exist, '
                     f'or another --data_dir, got scenes of {differing}')
  builder.download_and_prepare()
  splits = builder.info.splits.items()
  return str(builder.data_dir), {name: of.num_examples for name, of in splits}


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
