"""The small tools, as a user runs them."""

import os
import pathlib
import select
import signal
import subprocess
import sys
import termios

import numpy as np
import pytest
import soundfile

from sslam_jax import audio
from tools import audio_stats

_ROOT = pathlib.Path(__file__).parent.parent


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


def _interrupted(words, when):
  """Sends Ctrl-C to a tool and its processes once its bar shows `when`."""
  ours, its = os.openpty()
  termios.tcsetwinsize(its, (24, 120))
  process = subprocess.Popen(
      [sys.executable, *words], stdout=subprocess.PIPE, stderr=its, text=True,
      cwd=_ROOT, start_new_session=True,
  )
  os.close(its)
  shown = b''
  try:
    while when not in shown:
      assert select.select([ours], [], [], 60)[0], shown
      shown += os.read(ours, 1000)
    os.killpg(process.pid, signal.SIGINT)
    # Ends when all that write there have ended, and so the workers.
    output, _ = process.communicate(timeout=30)
    try:
      while True:
        shown += os.read(ours, 1000)
    except OSError:  # the end of a terminal
      pass
  finally:
    process.kill()
    os.close(ours)
  return process.returncode, output, shown.decode().splitlines()


def test_ctrl_c_ends_the_check_with_what_was_found(tmp_path):
  for name in 'ab':
    (tmp_path / f'{name}.wav').write_bytes(b'')
  out = tmp_path / 'bad.tsv'
  status, output, shown = _interrupted(
      ['tools/check_audio.py', f'folder={tmp_path},soundscapes=100000',
       '--workers=2', f'--out={out}'], b'bad=2')
  assert status == 130
  assert '2  bad of ' in output and '100002' not in output
  assert out.read_text() == ''.join(
      f'{tmp_path}/{name}.wav\t0 bytes: Format not recognised.\n'
      for name in 'ab')
  assert shown[-1] == 'stopped'
  assert not any('Traceback' in line for line in shown)


def test_ctrl_c_ends_the_damage_with_one_line(tmp_path):
  status, output, shown = _interrupted(
      ['tools/damage_audio.py', 'soundscapes', str(tmp_path / 'x'),
       '--count=100000'], b'[00:01<')
  assert (status, output, shown[-1]) == (130, '', 'stopped')
  assert not any('Traceback' in line for line in shown)
