"""The same recordings give the same batches in whatever form they come."""

import dataclasses
import itertools

import numpy as np
import pytest
import soundfile

from sslam_jax import data
from sslam_jax import packs
from sslam_jax import sources
from tests import tiny
from tests import toy
from tools import pack_audio

# (samples, rate): short, just as long as a spectrogram, longer; resampled.
_RECORDINGS = [
    (300, 16_000), (20_720, 16_000), (50_000, 16_000), (33_333, 16_000),
    (9_000, 8_000), (70_001, 44_100), (25_000, 16_000), (40_000, 22_050),
]


@pytest.fixture(scope='module')
def recordings(tmp_path_factory):
  """A folder of FLAC files, with lists of them beside it."""
  root = tmp_path_factory.mktemp('forms')
  (root / 'audio').mkdir()
  manifest, table = ['audio'], ['path,label']
  for index, (samples, rate_hz) in enumerate(_RECORDINGS):
    path = f'{index}.flac'
    pcm_S = toy.pcm(samples, seed=index)
    soundfile.write(root / 'audio' / path, pcm_S, rate_hz, subtype='PCM_16')
    manifest.append(f'{path}\t{samples}')
    table.append(f'audio/{path},dog')
  (root / 'train.tsv').write_text('\n'.join(manifest))
  (root / 'labels.csv').write_text('\n'.join(table))
  return root


def _packed(root, tmp_path):
  out = f'{tmp_path}/pack'
  assert pack_audio.main([f'folder={root}/audio', f'--out={out}', '--shards=3',
                          '--rate_hz=none', '--workers=1']) == 0
  return packs.Pack(path=out)


def _tfds_arrays(root, tmp_path):
  rows = [{'audio': toy.pcm(samples, seed=index), 'rate_hz': rate_hz}
          for index, (samples, rate_hz) in enumerate(_RECORDINGS)]
  return toy.prepared(tmp_path, toy.array(np.int16), *rows)


def _tfds_flac(root, tmp_path):
  rows = [{'audio': path.read_bytes()}
          for path in sorted((root / 'audio').iterdir())]
  return toy.prepared(tmp_path, {'audio': toy.BYTES}, *rows)


def _batches(source):
  """Two passes and a bit."""
  config = dataclasses.replace(tiny.stage2('unused').data, source=source)
  stream = iter(data.records(config, batch=4, seed=3, patch=16))
  batches = list(itertools.islice(stream, 5))
  stream.close()
  return batches


@pytest.fixture(scope='module')
def expected(recordings):
  return _batches(sources.Folder(paths=(f'{recordings}/audio',)))


@pytest.mark.parametrize('form', [
    lambda root, _: sources.Csv(path=f'{root}/labels.csv'),
    lambda root, _: sources.Manifest(path=str(root)),
    _packed, _tfds_arrays, _tfds_flac,
], ids=['csv', 'manifest', 'pack', 'tfds arrays', 'tfds flac'])
def test_batches_are_those_of_the_folder(form, recordings, expected, tmp_path):
  found = _batches(form(recordings, tmp_path))
  assert len(found) == len(expected) == 5
  for ours, theirs in zip(found, expected):
    assert ours.keys() == theirs.keys() >= {'wave', 'samples', 'keep', 'column'}
    assert not any(ours['skipped'])
    for name in ours.keys() - {'id'}:
      np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
      assert ours[name].dtype == theirs[name].dtype
  # Not the same clips over and over, and those of all lengths.
  assert len({samples for b in found for samples in b['samples']}) >= 3
