"""Tests of the tool that writes packs, as a user runs it."""

import errno
import fcntl
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from sslam_jax import clips
from sslam_jax import packs
from sslam_jax import resampling
from sslam_jax import soundscapes
from tools import pack_audio
from tools.packing import shards

_TOOL = pathlib.Path(pack_audio.__file__)


def _noise(samples: int, seed: int = 0) -> np.ndarray:
  noise = np.random.default_rng(seed).standard_normal(samples)
  return (0.2 * noise).clip(-1, 1).astype(np.float32)


def _write(path: pathlib.Path, wave_S, rate_hz=16_000, **options) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  soundfile.write(path, wave_S, rate_hz, **options)


def _folder(root: pathlib.Path, recordings: int = 8) -> pathlib.Path:
  for number in range(recordings):
    _write(root / f'in/{number}.wav', _noise(300 + number, number))
  return root / 'in'


def _run(*words, workers=1) -> int:
  return pack_audio.main([*map(str, words), f'--workers={workers}'])


def _pack(source: pathlib.Path, *flags) -> packs.Pack:
  out = source.with_name('out')
  assert _run(f'folder={source}', f'--out={out}', *flags) == 0
  return packs.Pack(path=str(out))


def _wave(clip: clips.Clip) -> np.ndarray:
  return clip.read(0, clip.samples)


def _bytes(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def _quantised(wave_S: np.ndarray, bits: int = 16) -> np.ndarray:
  scale = 2.0 ** (bits - 1)
  return np.clip(np.round(wave_S * scale), -scale, scale - 1) / scale


@pytest.mark.parametrize('bits', [16, 24])
def test_float_samples_are_rounded_to_the_bits(tmp_path, bits, capsys):
  wave_S = _noise(1000)
  wave_S[:4] = 1.0, -1.0, 1.5, -7.0
  _write(tmp_path / 'in/a.wav', wave_S, subtype='FLOAT')
  _write(tmp_path / 'in/b.wav', wave_S[:2], subtype='FLOAT')
  pack = _pack(tmp_path / 'in', f'--bits={bits}')
  got_S = _wave(pack[0])
  np.testing.assert_array_equal(got_S, _quantised(wave_S, bits))
  assert got_S[:4].tolist() == [1 - 2.0 ** (1 - bits), -1] * 2
  assert '1 clipped at full scale' in capsys.readouterr().out


def test_24_bit_samples_are_kept(tmp_path):
  values = np.random.default_rng(0).integers(-(2**23), 2**23, 5000)
  values[:2] = -(2**23), 2**23 - 1
  wave = (values << 8).astype(np.int32)
  _write(tmp_path / 'in/a.wav', wave, subtype='PCM_24')
  pack = _pack(tmp_path / 'in', '--bits=24')
  np.testing.assert_array_equal(_wave(pack[0]) * 2**23, values)


@pytest.mark.parametrize('resampler', ['sinc_hann', 'soxr'])
@pytest.mark.parametrize(
  'rate_hz, target_hz',
  [(44_100, 16_000), (8_000, 16_000), (16_000, 16_000), (48_000, 22_050),
   (96_000, 8_000), (11_025, 16_001)],
)  # fmt: skip
def test_long_recording_is_resampled_as_if_whole(
  tmp_path, monkeypatch, resampler, rate_hz, target_hz
):
  monkeypatch.setattr(shards, '_BLOCK_SAMPLES', 20_000)
  wave_S = _noise(2 * rate_hz + 77)
  _write(tmp_path / 'in/a.wav', wave_S, rate_hz, subtype='FLOAT')
  pack = _pack(
    tmp_path / 'in', f'--rate_hz={target_hz}', f'--resampler={resampler}',
    '--max_s=0.7', '--bits=24',
  )  # fmt: skip
  path = str(tmp_path / 'in/a.wav')
  starts_s = [float(clip.id.removeprefix(f'{path}@')) for clip in pack]
  size = round(0.7 * target_hz)
  assert starts_s == [round(n * size / target_hz, 6) for n in range(3)]
  whole_S = resampling.resample(wave_S, rate_hz, target_hz, resampler)
  want_S = _quantised(whole_S, 24)
  assert {clip.rate_hz for clip in pack} == {target_hz}
  assert pack[0].samples == pack[1].samples == size
  np.testing.assert_array_equal(np.concatenate(list(map(_wave, pack))), want_S)


def test_memory_does_not_grow_with_the_recording(tmp_path, monkeypatch):
  monkeypatch.setattr(shards, '_BLOCK_SAMPLES', 10_000)
  asked = []

  def read(start, count):
    asked.append(count)
    return _noise(count, start)

  clip = clips.Clip(
    id='a', labels=(), rate_hz=44_100, samples=10**6, read=read
  )
  settings = shards.Settings(source='', shards=1, max_s=None)
  (piece,) = shards._pieces(clip, settings, lambda count: None)
  assert max(asked) < 12_000 and sum(asked) < 1.1e6
  assert piece.id == 'a' and piece.length_s == pytest.approx(1e6 / 44_100)


def test_rate_is_kept_on_request(tmp_path):
  for rate_hz in (8_000, 44_100, 700_000):
    _write(tmp_path / f'in/{rate_hz}.wav', _noise(rate_hz // 20), rate_hz)
  flags = '--rate_hz=none', '--max_s=0', '--max_bad_fraction=0.5'
  pack = _pack(tmp_path / 'in', *flags)
  assert [clip.rate_hz for clip in pack] == [44_100, 8_000]
  assert [clip.samples for clip in pack] == [2205, 400]
  assert '700000 Hz' in (tmp_path / 'out/skipped.tsv').read_text()


def test_short_recordings_and_last_pieces_are_left_out(tmp_path, capsys):
  for name, length_s in (('a', 0.3), ('b', 1.25), ('c', 1.35), ('d', 0.29)):
    _write(tmp_path / f'in/{name}.wav', _noise(round(length_s * 16_000)))
  pack = _pack(tmp_path / 'in', '--min_s=0.3', '--max_s=0.5')
  top = f'{tmp_path}/in'
  assert [clip.id for clip in pack] == [
    f'{top}/a.wav', f'{top}/b.wav@0', f'{top}/b.wav@0.5', f'{top}/c.wav@0',
    f'{top}/c.wav@0.5', f'{top}/c.wav@1'
  ]  # fmt: skip
  assert '0 unreadable and 2 too short left out' in capsys.readouterr().out
  assert (tmp_path / 'out/skipped.tsv').read_text() == (
    f'{top}/b.wav@1\tonly 0.25 s\n{top}/d.wav\tonly 0.29 s\n'
  )


def test_unreadable_recordings_are_listed(tmp_path, capsys):
  folder = _folder(tmp_path)
  (folder / '3.wav').write_bytes(b'not audio')
  (folder / '7.wav').write_bytes(b'')
  words = f'folder={folder}', f'--out={tmp_path}/out', '--shards=4'
  assert _run(*words, '--max_bad_fraction=0.2') == 1
  first, three, *_ = capsys.readouterr().err.splitlines()
  assert 'want at most 1 unreadable recordings' in first and 'got 2' in first
  assert three.startswith(f'  {folder}/3.wav: ')
  listed = (tmp_path / 'out/skipped.tsv').read_text().splitlines()
  assert [row.split('\t')[0] for row in listed] == [
    f'{folder}/3.wav', f'{folder}/7.wav'
  ]
  with pytest.raises(ValueError, match='want a finished pack'):
    len(packs.Pack(path=f'{tmp_path}/out'))
  assert _run(*words, '--max_bad_fraction=0.25') == 0
  assert '2 unreadable' in capsys.readouterr().out
  assert (tmp_path / 'out/skipped.tsv').read_text().splitlines() == listed
  pack = packs.Pack(path=f'{tmp_path}/out')
  assert [pathlib.Path(clip.id).stem for clip in pack] == list('012456')


def test_readable_pieces_of_a_damaged_recording_are_kept(tmp_path, monkeypatch):
  monkeypatch.setattr(shards, '_BLOCK_SAMPLES', 8_000)
  wave_S = _noise(48_000)
  wave_S[20_000] = np.nan
  _write(tmp_path / 'in/a.wav', wave_S, subtype='FLOAT')
  pack = _pack(tmp_path / 'in', '--max_s=0.4', '--max_bad_fraction=1')
  got_S = np.concatenate(list(map(_wave, pack)))
  np.testing.assert_array_equal(got_S, _quantised(wave_S[:12_800]))
  assert 'not finite' in (tmp_path / 'out/skipped.tsv').read_text()


def test_soundscapes_in_processes_equal_those_in_one(tmp_path):
  words = 'soundscapes=5', '--shards=3'
  assert _run(*words, f'--out={tmp_path}/1') == 0
  assert _run(*words, f'--out={tmp_path}/2', workers=2) == 0
  assert _bytes(tmp_path / '1') == _bytes(tmp_path / '2')
  source = soundscapes.Soundscapes(clips=5)
  pack = packs.Pack(path=f'{tmp_path}/1')
  assert pack.classes == source.classes
  assert [pack.labels(i) for i in range(5)] == [c.labels for c in source]
  want_S = _quantised(_wave(source[3]))
  np.testing.assert_array_equal(_wave(pack[3]), want_S)


def test_killed_tool_goes_on_to_the_same_files(tmp_path, monkeypatch, capsys):
  words = 'soundscapes=60', '--shards=12', '--out=out'
  for folder in ('a', 'b'):
    (tmp_path / folder).mkdir()
  tool = subprocess.Popen(
    [sys.executable, _TOOL, *words, '--workers=2'],
    cwd=tmp_path / 'a', stderr=subprocess.PIPE,
  )  # fmt: skip
  out = tmp_path / 'a/out'
  while not list(out.glob('*-of-*.json')) and tool.poll() is None:
    time.sleep(0.005)
  tool.kill()
  tool.communicate(timeout=20)  # Ends when the workers have closed it, too.
  assert tool.returncode == -signal.SIGKILL
  kept = {path: path.stat().st_mtime_ns for path in out.glob('*-of-*.json')}
  assert 0 < len(kept) < 12
  with pytest.raises(ValueError, match='want a finished pack.*soundscapes=60'):
    len(packs.Pack(path=str(out)))
  for folder in ('a', 'b'):
    monkeypatch.chdir(tmp_path / folder)
    assert _run(*words) == 0
  assert kept == {path: path.stat().st_mtime_ns for path in kept}
  assert _bytes(out) == _bytes(tmp_path / 'b/out')
  assert _run('--verify', f'--out={out}') == 0
  assert 'whole: 60 clips in 12 shards, 600.0 s' in capsys.readouterr().out


def test_ctrl_c_stops_every_process(tmp_path):
  command = [sys.executable, _TOOL, 'soundscapes=4000', '--shards=2',
             f'--out={tmp_path}/out', '--workers=2']  # fmt: skip
  tool = subprocess.Popen(
    command, stderr=subprocess.PIPE, text=True, start_new_session=True
  )
  while not list(tmp_path.glob('out/.writing-*/*.array_record')):
    assert tool.poll() is None
    time.sleep(0.02)
  os.killpg(tool.pid, signal.SIGINT)  # As a terminal does.
  _, stderr = tool.communicate(timeout=20)  # Until the workers close it, too.
  assert tool.returncode == 130
  assert stderr == 'stopped: the same command goes on from here\n'
  assert sorted(os.listdir(tmp_path / 'out')) == ['.lock', 'unfinished.json']


def test_finished_pack_is_left_alone(tmp_path, capsys):
  words = f'folder={_folder(tmp_path)}', f'--out={tmp_path}/out', '--shards=2'
  assert _run(*words) == 0
  before = {p: p.stat().st_mtime_ns for p in (tmp_path / 'out').iterdir()}
  (tmp_path / 'out/unfinished.json').write_text('')  # Killed at the very end.
  (tmp_path / 'out/.writing-x').mkdir()
  assert _run(*words) == 0
  assert 'already finished' in capsys.readouterr().out
  after = {p: p.stat().st_mtime_ns for p in (tmp_path / 'out').iterdir()}
  before[tmp_path / 'out/.lock'] = after[tmp_path / 'out/.lock']
  assert after == before


def test_lost_shard_is_written_again(tmp_path):
  words = f'folder={_folder(tmp_path)}', f'--out={tmp_path}/out', '--shards=4'
  assert _run(*words) == 0
  before = _bytes(tmp_path / 'out')
  shard = tmp_path / 'out/00002-of-00004.array_record'
  for damage in (shard.unlink, lambda: os.truncate(shard, 1000),
                 shard.with_suffix('.json').unlink):  # fmt: skip
    damage()
    assert _run(*words) == 0
    assert _bytes(tmp_path / 'out') == before


@pytest.mark.parametrize('finished', [True, False])
def test_another_pack_in_the_folder_is_refused(tmp_path, capsys, finished):
  folder, out = _folder(tmp_path), tmp_path / 'out'
  if not finished:
    (folder / '0.wav').rename(tmp_path / '0.wav')
    (folder / '0.wav').write_text('')
  words = f'folder={folder}', f'--out={out}', '--shards=2'
  assert _run(*words) == (0 if finished else 1)
  before = _bytes(out)
  capsys.readouterr()
  for flag, want, got in (
    ('--bits=24', 'bits = 16', '24'), ('--shards=1', 'shards = 2', '1'),
    ('--rate_hz=none', 'rate_hz = 16000', 'None'),
    ('--max_s=9', 'max_s = 60.0', '9.0'),
  ):  # fmt: skip
    assert _run(*words, flag) == 2
    message = capsys.readouterr().err
    assert f'{out}: want {want} as it was started with, got {got}' in message
  _write(folder / '9.wav', _noise(9))
  assert _run(*words) == 2
  assert 'want recordings = 8 as it was' in capsys.readouterr().err
  (folder / '5.wav').unlink()
  assert _run(*words) == 2
  assert 'want fingerprint = ' in capsys.readouterr().err
  assert _bytes(out) == before


def test_second_process_in_the_folder_is_refused(tmp_path, capsys):
  words = f'folder={_folder(tmp_path)}', f'--out={tmp_path}/out'
  (tmp_path / 'out').mkdir()
  with open(tmp_path / 'out/.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert _run(*words) == 2
  assert 'want one process that packs into it' in capsys.readouterr().err
  assert _run(*words) == 0


def test_full_disk_leaves_no_half_shard(tmp_path):
  folder = tmp_path / 'in'
  for number in range(6):
    _write(folder / f'{number}.wav', _noise(100_000, number))
  words = f'folder={folder}', f'--out={tmp_path}/out', '--shards=2'

  def limit():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

  command = [sys.executable, _TOOL, *words, '--workers=1']
  tool = subprocess.run(
    command, preexec_fn=limit, capture_output=True, text=True
  )
  assert tool.returncode == 1
  assert tool.stderr.count('\n') == 1 and tool.stderr.startswith('error: ')
  assert 'want room to write' in tool.stderr
  assert os.strerror(errno.EFBIG) in tool.stderr
  assert not list(tmp_path.glob('out/*.array_record'))
  assert _run(*words) == 0 and _run('--verify', f'--out={tmp_path}/out') == 0


@pytest.mark.parametrize(
  'words, message',
  [
    ([], 'SOURCE: want what to pack, or --verify'),
    (['soundscapes=3', '--wrong'], 'unrecognized arguments: --wrong'),
    (['soundscapes=3', '--bits=8'], '--bits'),
    (['soundscapes=3', '--rate_hz=x'], '--rate_hz'),
    (['soundscapes=3', '--rate_hz=-1'], 'rate_hz: want 1 to 655350, or none'),
    (['soundscapes=3', '--max_s=0.01'], 'max_s: want at least 0.1, or none'),
    (['soundscapes=3', '--max_s=nan'], 'max_s: want at least 0.1, or none'),
    (['soundscapes=3', '--min_s=61'], 'min_s: want 0 to max_s, got 61.0'),
    (['soundscapes=3', '--shards=0'], '--shards: want at least 1'),
    (['soundscapes=3', '--shards=4'], '--shards: want 1 to 3, one per rec'),
    (['soundscapes=3', '--max_bad_fraction=2'], 'want 0 to 1'),
    (['noise=3'], 'noise'),
    (['folder=nowhere'], 'nowhere: want a folder, got nothing'),
    (['--verify'], 'pack.json: want the index of a pack, got no such folder'),
  ],
)
def test_wrong_usage_is_one_line(tmp_path, capsys, words, message):
  try:
    status = _run(*words, f'--out={tmp_path}/out')
  except SystemExit as error:
    status = error.code
  printed = capsys.readouterr().err
  assert status == 2
  assert printed.startswith('error: ') and printed.count('\n') == 1
  assert message in printed
  assert not (tmp_path / 'out').exists()


def test_folder_of_something_else_is_refused(tmp_path, capsys):
  folder = _folder(tmp_path)
  assert _run(f'folder={folder}', f'--out={folder}') == 2
  assert "want an empty folder" in capsys.readouterr().err
  assert _run(f'folder={folder}', f'--out={folder}/0.wav') == 2
  assert 'want a folder, got the file' in capsys.readouterr().err
  assert len(os.listdir(folder)) == 8


def test_nothing_left_is_an_error(tmp_path, capsys):
  words = f'folder={_folder(tmp_path)}', f'--out={tmp_path}/out', '--min_s=1'
  assert _run(*words) == 1
  assert 'want clips, got only' in capsys.readouterr().err


def test_label_that_is_no_class_is_an_error(tmp_path):
  class Source(list):
    classes = ('siren',)

  source = Source(soundscapes.Soundscapes(clips=9))
  settings = shards.Settings(source='', shards=1)
  with pytest.raises(ValueError, match='want labels among the classes, got'):
    shards.write(
      str(tmp_path / 'a'), source, range(9), settings, lambda count: None
    )
