"""Tests of the tool that finds damaged clips."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from sslam_jax import clips
from tools import check_audio

_ROOT = pathlib.Path(__file__).parent.parent


def _write(path: pathlib.Path, seed: int) -> bytes:
  wave = np.random.default_rng(seed).uniform(-0.5, 0.5, 5000)
  soundfile.write(path, wave, 16_000)
  return path.read_bytes()


def test_check_counts_and_lists_bad_clips(tmp_path):
  whole = _write(tmp_path / 'good 0.flac', 0)
  good = _write(tmp_path / 'good 1.wav', 1)
  # libmpg123 writes a warning about this one, which is good, to stderr.
  noted = _write(tmp_path / 'good 2.mp3', 2) + bytes(900)
  (tmp_path / 'good 2.mp3').write_bytes(noted)
  for name, data in [(b'a.wav', good[:5044]), (b'b.wav', good[:4044]),
                     (b'gr\xfcn.wav', b''), (b'm.flac', whole[:9000])]:
    (tmp_path / os.fsdecode(name)).write_bytes(data)
  out = tmp_path / 'bad.tsv'
  result = subprocess.run(
    [sys.executable, 'tools/check_audio.py', f'folder={tmp_path}',
     '--workers=2', f'--out={out}'], capture_output=True, text=True, cwd=_ROOT,
  )  # fmt: skip
  assert (result.returncode, result.stderr) == (1, '')
  table = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
  assert table == [
    ['2', 'N of N bytes of audio: it is cut short'],
    ['1', 'N bytes: Format not recognised.'],
    ['1', 'N bytes: Error : flac decoder lost sync.'],
    ['4', 'bad of 7 clips'],
  ]
  here = os.fsencode(tmp_path)
  assert out.read_bytes().splitlines() == [
    here + b'/a.wav\t5000 of 10000 bytes of audio: it is cut short',
    here + b'/b.wav\t4000 of 10000 bytes of audio: it is cut short',
    here + b'/gr\xfcn.wav\t0 bytes: Format not recognised.',
    here + b'/m.flac\t9000 bytes: Error : flac decoder lost sync.',
  ]


def test_check_of_good_clips_succeeds(tmp_path, capfd):
  for seed in range(3):
    _write(tmp_path / f'{seed}.flac', seed)
  assert check_audio.main([f'folder={tmp_path}', '--workers=1']) == 0
  output = capfd.readouterr()
  assert output.out.split() == ['0', 'bad', 'of', '3', 'clips']
  assert output.err == ''


@pytest.mark.parametrize(
  'options, message',
  [
    (['folder=none'], 'none: want a folder, got nothing'),
    (['soundscapes=1', '--workers=0'], 'workers: want > 0, got 0'),
    (['soundscapes=1', '--timeout_s=-1'], 'timeout_s: want > 0, got -1'),
    (['tune=1'], ''),
    (['folder=none', '--out=none/x'], '[Errno 2] No such file or directory'),
  ],
)
def test_wrong_usage_is_one_line(options, message, capsys):
  assert check_audio.main(options) == 2
  error = capsys.readouterr().err
  assert error.startswith(f'error: {message}') and error.count('\n') == 1


def test_table_is_printed_where_the_list_cannot_be_written(tmp_path, capsys):
  (tmp_path / 'a.wav').write_bytes(b'')
  words = [f'folder={tmp_path}', '--workers=1', '--out=/dev/full']
  assert check_audio.main(words) == 2
  printed = capsys.readouterr()
  assert printed.out.endswith('  1  bad of 1 clips\n')
  assert printed.err == 'error: [Errno 28] No space left on device\n'


@dataclasses.dataclass
class _Faulty:
  """Clips of 150 s, some of which end or stop the process that reads them."""

  faults: tuple[str, ...]
  classes: tuple[str, ...] = ()

  def __len__(self):
    return len(self.faults)

  def labels(self, index):
    return ()

  def __getitem__(self, index):
    fault = self.faults[index]
    if fault == 'crash when opened':
      os.kill(os.getpid(), signal.SIGSEGV)

    def read(start, count):
      if fault == 'crash at the end' and start + count == 1500:
        os.kill(os.getpid(), signal.SIGSEGV)
      if fault == 'Ctrl-C':  # Of a terminal, to all: only the parent acts.
        os.kill(os.getpid(), signal.SIGINT)
      if fault == 'hang':
        time.sleep(1000)
      if fault == 'bug':
        sys.exit(3)
      if fault == 'late' and start > 0:
        raise clips.BadClip('late', 'noise')
      assert count <= 600
      return np.zeros(count, np.float32)

    return clips.Clip(
      id=f'{index} {fault}', labels=(), rate_hz=10, samples=1500, read=read
    )


def test_check_survives_crash_and_hang():
  faults = ('crash when opened', '', 'hang', 'crash at the end', '', 'late',
            'bug', 'Ctrl-C', '')  # fmt: skip
  start = time.monotonic()
  results = list(check_audio.check(_Faulty(faults), workers=2, timeout_s=1.0))
  assert sorted(index for index, *_ in results) == list(range(9))
  assert sorted(result for result in results if result[2]) == [
    (0, 'clip 0', 'a crash of the decoder (SIGSEGV)'),
    (2, '2 hang', 'reading took too long'),
    (3, '3 crash at the end', 'a crash of the decoder (SIGSEGV)'),
    (5, '5 late', 'noise'),
    (6, '6 bug', 'an error of the reading process (exit status 3)'),
  ]
  assert time.monotonic() - start < 60
