"""Tests of decoding on damaged files, and of the tool that makes them.

What decodes is C code: a crash in it would end this process, too.
"""

import collections
import pathlib
import time

import numpy as np
import pytest
import soundfile

from sslam_jax import clips
from sslam_jax import decoding
from sslam_jax import soundscapes
from sslam_jax import sources
from tools import damage_audio

_ROUNDS = 6
_COUNT = _ROUNDS * len(damage_audio.KINDS)  # 150
# How many of the six files of a kind are no audio; the others may be either.
_REFUSED = {
  **dict.fromkeys(
    ('truncated', 'truncated_header', 'all_zero', 'empty', 'noise', 'text',
     'html', 'json', 'png', 'zip', 'junk_before', 'not_finite',
     'wav_channels', 'wav_rate', 'wav_size', 'wav_format'),
    _ROUNDS,
  ),
  **dict.fromkeys(('other_extension', 'junk_behind'), 0),
}  # fmt: skip
_UNDECIDED = {'bit_flips', 'header_bytes', 'zeros_inside', 'halves',
              'float_bit_flips', 'wav_frame', 'wav_bits'}  # fmt: skip


@pytest.fixture(scope='module')
def damaged(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('damaged') / 'files'
  source = soundscapes.Soundscapes(clips=5, length_s=2.5)
  damage_audio.write(source, folder, _COUNT, seed=0)
  return folder


def _kind(path: str) -> str:
  return pathlib.Path(path).stem.partition('_')[2]


def _reason(source, index: int) -> str:
  """Why a clip is bad; '' if all of it is finite audio."""
  try:
    clip = source[index]
    wave_S = clip.read(0, clip.samples)
  except clips.BadClip as error:
    assert error.reason
    return error.reason
  assert wave_S.shape == (clip.samples,) and wave_S.dtype == np.float32
  assert np.isfinite(wave_S).all() and np.abs(wave_S).max() <= 2**31
  return ''


def test_damaged_files_are_audio_or_bad_clips(damaged):
  source = sources.Folder(paths=(str(damaged),))
  assert len(source) == _COUNT
  made, refused = collections.Counter(), collections.Counter()
  for index, path in enumerate(sorted(map(str, damaged.iterdir()))):
    made[_kind(path)] += 1
    refused[_kind(path)] += _reason(source, index) != ''
  assert made == dict.fromkeys(damage_audio.KINDS, _ROUNDS)
  assert {kind: refused[kind] for kind in _REFUSED} == _REFUSED
  assert set(made) == _UNDECIDED | set(_REFUSED)


def test_parts_of_damaged_files_are_audio_or_bad_clips(damaged):
  for path in sorted(map(str, damaged.iterdir())):
    try:
      clip = decoding.open_file(path, path, ())
    except clips.BadClip:
      continue
    for start in (0, clip.samples // 2, max(0, clip.samples - 100)):
      count = min(1000, clip.samples - start)
      try:
        assert np.isfinite(clip.read(start, count)).all()
      except clips.BadClip as error:
        assert error.reason and error.clip_id == path


def test_damage_is_a_function_of_the_seed(damaged, tmp_path):
  source = soundscapes.Soundscapes(clips=5, length_s=2.5)
  time.sleep(1.1 - time.time() % 1)  # libsndfile seeds by the second.
  for seed in (0, 1):
    damage_audio.write(source, tmp_path / str(seed), 100, seed)
  same = {
    seed: sum(
      path.read_bytes() == (damaged / path.name).read_bytes()
      for path in (tmp_path / str(seed)).iterdir()
    )
    for seed in (0, 1)
  }
  assert same[0] == 100
  assert same[1] < 20  # The empty ones, for instance.


def test_ogg_pages_keep_valid_checksums(tmp_path):
  wave = 0.1 * np.random.default_rng(0).standard_normal(48_000)
  ogg = damage_audio._encoded(wave.astype(np.float32), 16_000, 'ogg')
  # Known: libsndfile's own pages.
  path = tmp_path / 'a.ogg'
  soundfile.write(path, wave, 16_000)
  page = bytearray(path.read_bytes()[:58])
  checksum = int.from_bytes(page[22:26], 'little')
  page[22:26] = bytes(4)
  assert damage_audio._ogg_checksum(page) == checksum
  path.write_bytes(ogg)
  assert soundfile.info(path).frames == 48_000


@pytest.mark.parametrize(
  'options, message',
  [
    (['none', 'DST'], 'none: want a folder, got nothing'),
    (['soundscapes', 'DST', '--count=0'], 'count, seed: want'),
    (['soundscapes', '.'], '.: want an empty folder'),
  ],
)
def test_wrong_usage_is_one_line(options, message, tmp_path, capsys):
  options = [option.replace('DST', str(tmp_path)) for option in options]
  assert damage_audio.main(options) == 2
  error = capsys.readouterr().err
  assert error.startswith(f'error: {message}') and error.count('\n') == 1
