"""The small tools, as a user runs them."""

import numpy as np
import pytest
import soundfile

from sslam_jax import audio
from tools import audio_stats


@pytest.fixture
def folder(tmp_path):
  rng = np.random.default_rng(0)
  for i, seconds in enumerate((0.3, 0.5, 0.02, 0.4)):  # one has no frame
    wave = 0.1 * rng.normal(size=int(seconds * 16_000))
    soundfile.write(tmp_path / f'{i}.wav', wave, 16_000, subtype='FLOAT')
  return tmp_path


def test_audio_stats_are_those_of_the_real_frames(folder, capsys):
  argument = f'--config=configs/stage1.py:demo,folder={folder}'
  assert audio_stats.main([argument]) == 0
  printed = capsys.readouterr().out
  mels = []
  for path in folder.iterdir():
    wave, _ = soundfile.read(path, dtype='float32')
    mels.append(np.asarray(audio.LogMel().log_mel(
        wave[None], np.array([len(wave)]))).reshape(-1))
  values = np.concatenate(mels)
  assert f'--config.data.mel.mean={values.mean():.3f}' in printed
  assert f'--config.data.mel.std={values.std():.3f}' in printed


def test_audio_stats_names_a_missing_folder(capsys):
  argument = '--config=configs/stage1.py:demo,folder=nowhere'
  assert audio_stats.main([argument]) == 2
  assert 'nowhere: want a folder' in capsys.readouterr().err
