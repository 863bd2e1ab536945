"""Training and test clips of a user's own labelled data, by words.

The words of `catalogue` name the training clips, the same with `test_` before
them the test clips. Data that is divided already needs no second ones.
"""

import pathlib

from sslam_jax import catalogue
from sslam_jax import clips
from sslam_jax import polyphony
from sslam_jax import sampling
from sslam_jax import soundscapes

TEST = 'test_'
_OF_MIXTURES = {'mixtures', 'length', 'seed'}
Pairs = list[tuple[str, str]]


def sources(
    pairs: Pairs, *, scene_s: float | None = None
) -> tuple[clips.Source, clips.Source]:
  """Training and test clips.

  Args:
    pairs: Words and values, of which those of no source are passed over.
    scene_s: Length of soundscapes that no word gives; None: their own.
  """
  own = [(word, value) for word, value in pairs
         if word in catalogue.KEYS or word in catalogue.FLAGS]
  test = [(word.removeprefix(TEST), value) for word, value in pairs
          if word.startswith(TEST)]
  if 'folds' in dict(pairs):
    if test:
      raise ValueError('folds: want it without test data; got both')
    if 'mixtures' in dict(own):  # the same recordings would be in all folds
      raise ValueError('folds: want it without mixtures=...; got both')
    return _folds(catalogue.build(own), dict(pairs))
  if not test and 'split' not in dict(own):
    own, test = _split(own)
  if not test:
    raise ValueError(
        'test data: want test_folder=DIR, test_csv=FILE or others, a csv= with '
        'a column split, a folder= with the folders train and test, or '
        'folds=K; got none'
    )
  return _scenes(catalogue.build(own), scene_s, seed=0), _scenes(
      catalogue.build(test), scene_s, seed=1
  )


def number(words: dict[str, str], word: str, default: int) -> int:
  """The number that a word gives."""
  value = words.get(word, str(default))
  if not value.isdecimal():
    raise ValueError(f'{word}: want a number, got {value!r}')
  return int(value)


def _split(own: Pairs) -> tuple[Pairs, Pairs]:
  """Both parts of data that is divided already: words for either."""
  kinds = {word for word, _ in own}
  if kinds <= {'soundscapes'}:
    return own, [('soundscapes', '300')]
  if 'csv' in kinds:
    return [*own, ('split', 'train')], [*own, ('split', 'test')]
  if 'manifest' in kinds:
    return [*own, ('split', 'train')], [*own, ('split', 'eval')]
  paths = [path for word, path in own if word == 'folder']
  others = [(word, value) for word, value in own if word != 'folder']
  if {word for word, _ in others} <= _OF_MIXTURES and paths and all(
      pathlib.Path(path, part).is_dir()
      for path in paths for part in ('train', 'test')
  ):
    train, test = ([*(('folder', f'{path}/{part}') for path in paths), *others]
                   for part in ('train', 'test'))
    return train, test
  return own, []


def _folds(
    source: clips.Source, words: dict[str, str]
) -> tuple[clips.Source, clips.Source]:
  fold, folds = number(words, 'fold', 1), number(words, 'folds', 0)
  return (
      sampling.Fold(source=source, folds=folds, fold=fold, held_out=False),
      sampling.Fold(source=source, folds=folds, fold=fold, held_out=True),
  )


def _scenes(
    source: clips.Source, scene_s: float | None, seed: int
) -> clips.Source:
  if isinstance(source, soundscapes.Soundscapes | polyphony.Mixtures):
    source.seed += seed  # or the test would be of training's scenes
  if isinstance(source, soundscapes.Soundscapes) and scene_s is not None:
    source.length_s = scene_s
  return source
