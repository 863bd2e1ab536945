"""Tests of what is read from audio files; all files are written here."""

import io
import os
import pathlib
import pickle
import struct

import numpy as np
import pytest
from scipy.io import wavfile
import soundfile

from sslam_jax import clips
from sslam_jax import decoding


def _noise(samples: int, seed: int = 0) -> np.ndarray:
  noise = np.random.default_rng(seed).standard_normal(samples)
  return (0.2 * noise).clip(-1, 1).astype(np.float32)


def _sine(samples: int, rate_hz: int) -> np.ndarray:
  return np.sin(2 * np.pi * 1000 * np.arange(samples) / rate_hz)


def _clicks(samples: int) -> np.ndarray:
  """Decaying bursts over near silence, which lossy codecs code unevenly."""
  rng, wave = np.random.default_rng(5), 0.0005 * _noise(samples)
  for start in range(0, samples - 4000, 3777):
    burst = np.exp(-np.arange(4000) / rng.uniform(20, 800))
    wave[start : start + 4000] += burst * _noise(4000, start)
  return wave


def _write(path: pathlib.Path, wave=None, rate_hz=16_000, **options) -> str:
  path.parent.mkdir(parents=True, exist_ok=True)
  wave = _noise(800) if wave is None else wave
  soundfile.write(path, wave, rate_hz, **options)
  return str(path)


def _read_all(path: str) -> np.ndarray:
  clip = decoding.open_file(path, path, ())
  return clip.read(0, clip.samples)


def _error(function, *args, **options) -> str:
  with pytest.raises(ValueError) as caught:
    function(*args, **options)
  return str(caught.value)


@pytest.mark.parametrize(
  'name, subtype, tolerance',
  [
    ('a.wav', 'PCM_U8', 2**-7),
    ('a.wav', 'PCM_16', 2**-15),
    ('a.wav', 'PCM_24', 2**-22),
    ('a.wav', 'FLOAT', 0),
    ('a.flac', 'PCM_16', 2**-15),
    ('a.flac', 'PCM_24', 2**-22),
    ('a.ogg', 'VORBIS', 0.1),
    ('a.mp3', 'MPEG_LAYER_III', 0.1),
  ],
)
def test_formats_decode_to_what_was_written(tmp_path, name, subtype, tolerance):
  wave = (0.5 * _sine(8000, 16_000)).astype(np.float32)
  path = _write(tmp_path / name, wave, subtype=subtype)
  clip = decoding.open_file(path, 'me', ('dog',))
  assert (clip.id, clip.labels) == ('me', ('dog',))
  assert (clip.samples, clip.rate_hz) == (8000, 16_000)
  got = clip.read(0, 8000)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, wave, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
  'extension, tolerance',
  [('wav', 2**-15), ('flac', 2**-15), ('ogg', 0.05), ('mp3', 0.05)],
)
def test_channels_are_averaged(tmp_path, extension, tolerance):
  left, right = 0.4 * _sine(8000, 16_000), 0.2 * _sine(8000, 8000)
  path = _write(tmp_path / f'a.{extension}', np.stack([left, right], axis=1))
  want = (left + right) / 2
  np.testing.assert_allclose(_read_all(path), want, atol=tolerance)


@pytest.mark.parametrize(
  'name, tolerance',
  [('a.wav', 0), ('a.flac', 0), ('a.ogg', 0), ('a.mp3', 1e-6)],
)
def test_part_equals_the_same_part_of_all(tmp_path, name, tolerance):
  # Ogg: without a run-up, parts in the last page are 8 ms off. MP3, of low
  # variable bit rate: they start with a damaged frame.
  mp3 = {'bitrate_mode': 'VARIABLE', 'compression_level': 0.5}
  options = mp3 if name == 'a.mp3' else {}
  path = _write(tmp_path / name, _clicks(300_000), 22_050, **options)
  whole = _read_all(path)
  starts = [0, 1, 70_000, *range(90_000, 120_000, 2111)]
  for start in starts + list(range(280_000, 299_900, 1100)):
    count = min(3000, len(whole) - start)
    got = decoding.read(path, start, count, name=path)
    want = whole[start : start + count]
    np.testing.assert_allclose(got, want, atol=tolerance, rtol=0)


def test_part_of_nothing_is_empty(tmp_path):
  path = _write(tmp_path / 'a.wav')
  assert decoding.read(path, 5, 0, name=path).shape == (0,)
  for start, count in [(-1, 5), (5, -1)]:
    message = _error(decoding.read, path, start, count, name=path)
    assert message == f'{path}: want start, count >= 0, got {start, count}'


def _damaged(path: pathlib.Path, damage: str) -> str:
  data = bytearray(pathlib.Path(_write(path, _noise(8000))).read_bytes())
  if damage == 'unknown length':
    data[21], data[22:26] = data[21] & 0xF0, bytes(4)  # In STREAMINFO.
  elif damage == 'rate':
    data[24:28] = struct.pack('<I', 2**31 - 1)
  else:
    data = {'empty': b'', 'cut': data[:4000], 'text': b'<html>404</html>'}[
      damage
    ]
  path.write_bytes(data)
  return str(path)


@pytest.mark.parametrize(
  'name, damage, reason',
  [('a.wav', 'empty', 'got 0 bytes'), ('a.flac', 'empty', 'got 0 bytes'),
   ('a.ogg', 'empty', 'got 0 bytes'), ('a.mp3', 'empty', 'got 0 bytes'),
   ('a.wav', 'text', 'got 16 bytes'), ('a.mp3', 'text', 'got 16 bytes'),
   ('a.flac', 'cut', 'got 4000 bytes: '),
   ('a.flac', 'unknown length', 'got an unknown length'),
   ('a.wav', 'rate', 'got a rate of 2147483647 Hz')],
)  # fmt: skip
def test_damaged_file_is_a_bad_clip(tmp_path, name, damage, reason):
  path = _damaged(tmp_path / name, damage)
  with pytest.raises(clips.BadClip, match=reason) as caught:
    _read_all(path)
  assert str(caught.value).startswith(f'{path}: want readable audio, got ')
  assert caught.value.clip_id == path


@pytest.mark.parametrize(
  'name, reason',
  [('none.wav', 'no such file or directory'),
   ('', 'a folder or device, not a file'),
   ('pipe.wav', 'a folder or device, not a file'),
   ('loop.wav', 'too many levels of symbolic links'),
   ('a\0.wav', 'a name that no file can have'),
   ('a.raw', '100 bytes: Format not recognised.'),
   ('empty.wav', 'no samples')],
)  # fmt: skip
def test_file_without_audio_is_a_bad_clip(tmp_path, name, reason):
  (tmp_path / 'a.raw').write_bytes(bytes(100))
  (tmp_path / 'loop.wav').symlink_to('loop.wav')
  os.mkfifo(tmp_path / 'pipe.wav')  # Opening it would wait for a writer.
  _write(tmp_path / 'empty.wav', _noise(0))
  path = str(tmp_path / name)
  want = f'{path}: want readable audio, got {reason}'
  assert _error(_read_all, path) == want


def test_wrong_samples_are_a_bad_clip(tmp_path):
  wave = _noise(100)
  short = _write(tmp_path / 'short.wav', wave)
  with pytest.raises(clips.BadClip, match='got 10 of 11 samples from 90'):
    decoding.read(short, 90, 11, name=short)
  for value in (np.nan, np.inf):
    wave[50] = value
    path = _write(tmp_path / 'float.wav', wave, subtype='FLOAT')
    assert len(decoding.read(path, 51, 49, name=path)) == 49
    with pytest.raises(clips.BadClip, match='float.wav: .* not finite'):
      decoding.read(path, 0, 100, name=path)


def test_bad_clip_survives_pickling():
  error = pickle.loads(pickle.dumps(clips.BadClip('a b.wav', 'nothing')))
  assert (error.clip_id, error.reason) == ('a b.wav', 'nothing')
  assert str(error) == 'a b.wav: want readable audio, got nothing'


def test_file_that_may_not_be_read_is_a_bad_clip(tmp_path, monkeypatch):
  path = _write(tmp_path / 'a.wav')

  def refuse(name, *args, **options):  # Root may read all files.
    raise PermissionError(13, 'Permission denied', name)

  monkeypatch.setattr('builtins.open', refuse)
  want = f'{path}: want readable audio, got permission denied'
  assert _error(_read_all, path) == want


def _encoded(wave, rate_hz=16_000, **options) -> bytes:
  file = io.BytesIO()
  soundfile.write(file, wave, rate_hz, **options)
  return file.getvalue()


def _refusal(encoded: bytes) -> str:
  """Why opening refuses it, from memory and from a file alike."""
  with pytest.raises(clips.BadClip) as caught:
    decoding.open_bytes(encoded, 'me', ())
  return caught.value.reason


def _samples(encoded: bytes, path: pathlib.Path) -> np.ndarray:
  path.write_bytes(encoded)
  clip = decoding.open_bytes(encoded, 'me', ())
  wave = clip.read(0, clip.samples)
  np.testing.assert_array_equal(_read_all(str(path)), wave)
  return wave


_WHOLE = [
  ('WAV', 'PCM_16'), ('WAV', 'MS_ADPCM'), ('WAVEX', 'PCM_24'),
  ('RF64', 'PCM_16'), ('W64', 'PCM_16'), ('AIFF', 'PCM_16'), ('AU', 'PCM_16'),
  ('OGG', 'VORBIS'), ('OGG', 'OPUS'), ('MP3', 'MPEG_LAYER_III'),
]  # fmt: skip


@pytest.mark.parametrize('container, subtype', _WHOLE)
def test_cut_file_is_refused_when_opened(container, subtype, tmp_path):
  encoded = _encoded(_noise(300_000), format=container, subtype=subtype)
  assert len(_samples(encoded, tmp_path / 'a')) >= 300_000
  for part in (0.05, 0.5, 0.9, 0.95 if container == 'MP3' else 0.9999):
    count = round(part * len(encoded))
    assert _refusal(encoded[:count]), part
  assert 'cut short' in _refusal(encoded[: len(encoded) * 9 // 10])


@pytest.mark.parametrize(
  # libsndfile reads a Wave64 file to its end, whatever its header says.
  'container, subtype', [case for case in _WHOLE if case[0] != 'W64']
)
def test_file_with_something_behind_it_is_read(container, subtype, tmp_path):
  encoded = _encoded(_noise(8000), format=container, subtype=subtype)
  want = _samples(encoded, tmp_path / 'a')
  for junk in (b'\0', b'TAG' + bytes(125), b'LIST\xff\xff\xff\x00abc'):
    got = _samples(encoded + junk, tmp_path / 'a')
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('subtype', ['VORBIS', 'OPUS'])
def test_ogg_cut_between_pages_is_refused(subtype):
  encoded = _encoded(_noise(80_000), format='OGG', subtype=subtype)
  want = 'no end of the Ogg stream: it is cut short'
  assert _refusal(encoded[: encoded.rindex(b'OggS')]) == want


def test_audio_bytes_and_missing_bytes_are_told():
  encoded = _encoded(_noise(1000), format='WAV')
  want = '1000 of 2000 bytes of audio: it is cut short'
  assert _refusal(encoded[:1044]) == want
  tagged = b'ID3\4\0\0\0\0\1\0' + bytes(128) + _encoded(
    _noise(80_000), format='MP3'
  )
  assert 'cut short' in _refusal(tagged[: len(tagged) // 2])


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize(
  'riff, data',
  [(2**32 - 1, 2**32 - 1), (2**31 - 1, 2**31 - 37), (2**31, 2**31 - 36),
   (0x7FFFF024, 0x7FFFF000), (0, 0), (2**32 - 1, 0)],
)  # fmt: skip
def test_wav_whose_sizes_were_never_filled_in_is_read(riff, data, tmp_path):
  encoded = bytearray(_encoded(_noise(8000), format='WAV'))
  want = _samples(bytes(encoded), tmp_path / 'a')
  encoded[4:8] = struct.pack('<I', riff)
  encoded[40:44] = struct.pack('<I', data)
  got = _samples(bytes(encoded), tmp_path / 'a')
  np.testing.assert_array_equal(got, want)
  assert (tmp_path / 'a').read_bytes() == encoded


def test_closed_wav_without_audio_has_no_samples():
  encoded = _encoded(_noise(0), format='WAV') + b'LIST\4\0\0\0INFO'
  encoded = encoded[:4] + struct.pack('<I', len(encoded) - 8) + encoded[8:]
  assert _refusal(encoded) == 'no samples'


def test_part_of_a_frame_at_the_end_is_dropped(tmp_path):
  encoded = _encoded(_noise(1000), format='WAV')
  want = _samples(encoded, tmp_path / 'a')
  got = _samples(encoded[:-1], tmp_path / 'a')
  np.testing.assert_array_equal(got, want[:-1])


@pytest.mark.parametrize(
  'subtype, tolerance',
  [('PCM_U8', 2**-7), ('PCM_24', 2**-23), ('PCM_32', 2**-23), ('FLOAT', 0),
   ('DOUBLE', 0), ('ULAW', 0.03), ('ALAW', 0.03)],
)  # fmt: skip
@pytest.mark.parametrize('samples', [1, 7, 399, 5000])
def test_unusual_wavs_are_exact(subtype, tolerance, samples, tmp_path):
  wave_SxC = 0.5 * _noise(8 * samples).reshape(samples, 8)
  for container in ('WAV', 'WAVEX'):
    encoded = _encoded(wave_SxC, 192_000, format=container, subtype=subtype)
    got = _samples(encoded, tmp_path / 'a')
    assert decoding.open_bytes(encoded, 'me', ()).rate_hz == 192_000
    want = wave_SxC.mean(axis=1)
    np.testing.assert_allclose(got, want, atol=tolerance + 1e-7, rtol=0)


@pytest.mark.parametrize('container', ['MP3', 'FLAC', 'OGG'])
def test_name_does_not_matter(container, tmp_path):
  encoded = _encoded(_noise(8000), format=container)
  want = _samples(encoded, tmp_path / 'a')
  name = os.fsdecode(b'gr\xfcn \xc3\xb8.wav')
  got = _samples(encoded, tmp_path / name)
  np.testing.assert_array_equal(got, want)


def _mp3_in_wav(mp3: bytes, trailer: bytes) -> bytes:
  layout = struct.pack('<HHIIHHHHIHHH', 0x55, 1, 16_000, 8000, 1, 0, 12, 1, 2,
                       288, 1, 1393)  # fmt: skip
  chunks = b'fmt ' + struct.pack('<I', len(layout)) + layout
  chunks += b'data' + struct.pack('<I', len(mp3)) + mp3
  size = struct.pack('<I', len(chunks) + 4)
  return b'RIFF' + size + b'WAVE' + chunks + trailer


def test_mp3_in_wav_is_read_to_its_end_and_beyond(tmp_path):
  wave = (0.5 * _sine(48_000, 16_000)).astype(np.float32)
  mp3 = _encoded(
    wave, format='MP3', bitrate_mode='CONSTANT', compression_level=0.5
  )
  second = mp3.index(mp3[:2], 4)  # Frame; the first holds the Xing tag.
  for trailer in (b'', b'LIST\xff\xff\xff\x7f', b'fact'):
    got = _samples(_mp3_in_wav(mp3, trailer), tmp_path / 'a')
    np.testing.assert_allclose(got, wave, atol=0.05)
  plain = _samples(_mp3_in_wav(mp3[second:], b''), tmp_path / 'a')
  got = _samples(_mp3_in_wav(mp3[second:] + bytes(300), b''), tmp_path / 'a')
  # The length is estimated from bytes: some of it is not there.
  np.testing.assert_array_equal(got[: len(plain)], plain)
  assert len(got) > len(plain) and not got[-100:].any()
  assert 'cut short' in _refusal(_mp3_in_wav(mp3, b'')[:9000])


def test_many_channels_are_averaged_in_blocks(tmp_path, monkeypatch):
  encoded = _encoded(_noise(30_000).reshape(10_000, 3), format='FLAC')
  want = _samples(encoded, tmp_path / 'a')
  monkeypatch.setattr(decoding, '_BLOCK_VALUES', 1000)
  np.testing.assert_array_equal(_samples(encoded, tmp_path / 'a'), want)
  encoded = _encoded(np.zeros((5, 257), np.float32), format='WAV')
  assert _refusal(encoded) == '257 channels'


def test_impossible_length_costs_no_memory():
  encoded = bytearray(_encoded(_noise(8000), format='FLAC'))
  encoded[21] |= 0x0F  # STREAMINFO: 36 bits with the number of samples.
  encoded[22:26] = b'\xff\xff\xff\xfe'
  clip = decoding.open_bytes(bytes(encoded), 'me', ())
  assert clip.samples == 2**36 - 2
  with pytest.raises(clips.BadClip):
    clip.read(0, clip.samples)  # 275 GB of float32
  with pytest.raises(clips.BadClip):
    clip.read(2**35, 1000)


def test_samples_that_would_overflow_are_a_bad_clip(tmp_path):
  path = str(tmp_path / 'a.wav')
  wave = np.array([0.5, 2**31, 0.5], np.float32)
  wavfile.write(path, 16_000, wave)
  np.testing.assert_array_equal(_read_all(path), wave)
  for value in (2.0**32, -1e30):
    wave[1] = value
    wavfile.write(path, 16_000, wave)
    with pytest.raises(clips.BadClip, match='too large for audio'):
      _read_all(path)
