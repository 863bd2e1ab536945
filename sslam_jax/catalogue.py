"""Data sources by the words of a command line.

`folder=DIR,csv=FILE,shares=3:1` is what configurations and tools take. One
word is one source; several are joined, see `sampling.Concat`.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from sslam_jax import clips
from sslam_jax import config
from sslam_jax import packs
from sslam_jax import polyphony
from sslam_jax import sampling
from sslam_jax import soundscapes
from sslam_jax import sources
from sslam_jax import tfds_source

FLAGS = ('soundscapes',)
_SOURCES = ('folder', 'manifest', 'csv', 'pack', 'tfds', 'soundscapes')
# Which sources these words say more of.
_OPTIONS = {
    'path': ('csv',),
    'label': ('csv',),
    'split': ('csv', 'manifest'),
    'length': ('soundscapes', 'mixtures'),
    'seed': ('soundscapes', 'mixtures'),
}
KEYS = (*_SOURCES, *_OPTIONS, 'shares', 'mixtures', 'weights', 'epoch')
HELP = """\
folder=DIR         all audio files below DIR; the folder's name is the label
manifest=TSV       fairseq manifest, with .lbl and label_descriptors.csv; or
                   the folder it is in, with split=
csv=FILE           table with the columns path and label
path=COLUMN        of csv=, if it is not called path
label=COLUMN       of csv=, if it is not called label
split=NAME         rows of csv= with NAME in the column split; or of manifest=,
                   the file NAME.tsv in its folder
pack=DIR           shards written by tools/pack_audio.py
tfds=NAME[:SPLIT]  prepared TFDS data set, or its folder
soundscapes[=N]    procedural sounds, no data needed
shares=3:1         how often each of several sources is taken
mixtures=N         N mixtures of 1 to 4 of these clips, which have labels
length=SECONDS     of mixtures (default: 5); or of soundscapes (10)
seed=N             of mixtures, or of soundscapes: another one, others
weights=FILE       weight of clip i in line i; weights=labels: rare ones more
epoch=N            clips drawn by weight per epoch (default: 200000)"""


def source(text: str) -> clips.Source:
  """The source that comma-separated words name; see `HELP`.

  Raises:
    ValueError: An unknown word, no source, or words that contradict.
  """
  return build(config.options(text, flags=FLAGS, keys=KEYS))


def build(pairs: Sequence[tuple[str, str]]) -> clips.Source:
  """The same of (word, value) pairs; the value of a bare word is ''."""
  named = [(word, value) for word, value in pairs if word in _SOURCES]
  options: dict[str, str] = {}
  for word, value in pairs:
    if word not in _SOURCES:
      if word in options:
        raise ValueError(f'{word}: want it once, got {value!r} too')
      options[word] = value
  if not named:
    choices = ', '.join(f'{word}=...' for word in _SOURCES)
    raise ValueError(f'data source: want {choices}; got none')
  joined = _joined(named, options)
  if 'mixtures' in options:
    for word in ('shares', 'weights'):
      if word in options:
        raise ValueError(f'{word}: want it without mixtures=..., got both')
    joined = _mixtures(joined, options)
  if 'weights' not in options:
    if 'epoch' in options:
      raise ValueError('epoch: want it with weights=...')
    return joined
  weighted = sampling.Weighted(
      source=joined,
      weights=None if options['weights'] == 'labels' else options['weights'],
  )
  if 'epoch' in options:
    weighted.clips_per_epoch = _number('epoch', options['epoch'])
  return dataclasses.replace(weighted)  # which checks it


def _joined(
    named: Sequence[tuple[str, str]], options: Mapping[str, str]
) -> clips.Source:
  shares, words = options.get('shares'), dict(named)
  for option, owners in _OPTIONS.items():
    if option in options and not set(owners) & {*words, *options}:
      wanted = ' or '.join(f'{owner}=...' for owner in owners)
      raise ValueError(f'{option}: want it with {wanted}')
  if shares is None:
    if set(words) == {'folder'}:
      return sources.Folder(paths=tuple(path for _, path in named))
    if len(named) == 1:
      return _one(*named[0], options)
  parts = tuple(_one(word, value, options) for word, value in named)
  try:
    numbers = None if shares is None else tuple(map(float, shares.split(':')))
  except ValueError:
    raise ValueError(f'shares: want numbers such as 3:1, got '
                     f'{shares!r}') from None
  return sampling.Concat(parts=parts, shares=numbers)


def _one(word: str, value: str, options: Mapping[str, str]) -> clips.Source:
  split = options.get('split')
  if word == 'folder':
    return sources.Folder(paths=(value,))
  if word == 'manifest':
    return sources.Manifest(path=value, split=split or 'train')
  if word == 'csv':
    columns = {f'{word}_column': options[word]
               for word in ('path', 'label') if word in options}
    return sources.Csv(path=value, split=split, **columns)
  if word == 'pack':
    return packs.Pack(path=value)
  if word == 'tfds':
    return _tfds(value)
  return _soundscapes(value, options)


def _mixtures(
    source: clips.Source, options: Mapping[str, str]
) -> polyphony.Mixtures:
  mixtures = polyphony.Mixtures(
      source=source, clips=_number('mixtures', options['mixtures'])
  )
  if 'seed' in options:
    mixtures.seed = _number('seed', options['seed'])
  if 'length' in options:
    mixtures.length_s = _seconds('length', options['length'])
  return dataclasses.replace(mixtures)  # which checks it


def _soundscapes(
    value: str, options: Mapping[str, str]
) -> soundscapes.Soundscapes:
  scenes = soundscapes.Soundscapes()
  if value:
    scenes.clips = _number('soundscapes', value)
  if 'seed' in options:
    scenes.seed = _number('seed', options['seed'])
  if 'length' in options:
    scenes.length_s = _seconds('length', options['length'])
  return dataclasses.replace(scenes)  # which checks it


def _tfds(value: str) -> tfds_source.Tfds:
  # A colon may also come before a version, or in a split such as train[:50%].
  match = re.fullmatch(r'(.+?)(?::([^\d:/][^/]*))?', value)
  assert match is not None  # The value is never empty.
  name, split = match.groups()
  return tfds_source.Tfds(name=name, split=split or 'train')


def _seconds(word: str, value: str) -> float:
  try:
    return float(value)
  except ValueError:
    raise ValueError(f'{word}: want seconds, got {value!r}') from None


def _number(word: str, value: str) -> int:
  if not value.isdecimal():
    raise ValueError(f'{word}: want a number, got {value!r}')
  return int(value)
