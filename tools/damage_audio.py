"""Makes damaged audio files, to try what reads audio files.

  python tools/damage_audio.py SRC DST --count 1000 --seed 0

SRC is a folder of recordings, or `soundscapes`. Each file in DST is a stretch
of one, encoded as WAV, FLAC, Ogg Vorbis or MP3 and damaged in the way its name
says: 000123_truncated.flac. The same seed gives the same bytes with the same
libsndfile.
"""

import argparse
from collections.abc import Callable, Iterator
import contextlib
import io
import pathlib
import signal
import struct
import sys
import threading
import zipfile
import zlib

import numpy as np
from scipy.io import wavfile
import soundfile
import tqdm

# For a checkout that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from sslam_jax import catalogue
from sslam_jax import clips
from sslam_jax import sources

FORMATS = ('wav', 'flac', 'ogg', 'mp3')
_MAX_LENGTH_S = 5
_HEADER_BYTES = 44  # Of a plain WAV; elsewhere as good a place as any.
_SERIAL = slice(14, 18)  # In the header of an Ogg page,
_CHECKSUM = slice(22, 26)  # and another part of it.

_Rng = np.random.Generator


def main(args: list[str]) -> int:
  """Writes the files; exit status 2 where it cannot, 130 where stopped."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('src', metavar='SRC', help='folder, or: soundscapes')
  parser.add_argument('dst', metavar='DST', type=pathlib.Path)
  parser.add_argument('--count', type=int, default=1000, help='default: 1000')
  parser.add_argument('--seed', type=int, default=0, help='default: 0')
  options = parser.parse_args(args)
  try:
    source = recordings(options.src)
    write(source, options.dst, options.count, options.seed)
  except (OSError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('stopped', file=sys.stderr)
    return 130
  print(f'{options.count} files in {options.dst}')
  return 0


def recordings(text: str) -> clips.Source:
  """The undamaged clips that SRC names."""
  if text == 'soundscapes':
    return catalogue.source(text)
  return sources.Folder(paths=(text,))


def write(
  source: clips.Source, folder: pathlib.Path, count: int, seed: int
) -> None:
  """Fills an empty or new folder; the kinds and formats take turns."""
  if min(count - 1, seed) < 0:
    raise ValueError(f'count, seed: want > 0, >= 0, got {count}, {seed}')
  folder.mkdir(parents=True, exist_ok=True)
  if any(folder.iterdir()):
    raise ValueError(f'{folder}: want an empty folder, got one with files')
  kinds = list(KINDS)
  with _interrupted() as interrupted:
    # disable=None: no bar where the output is no terminal.
    for index in tqdm.trange(count, unit='file', disable=None):
      if interrupted.is_set():
        raise KeyboardInterrupt
      rng = np.random.default_rng([seed, index])
      kind = kinds[index % len(kinds)]
      ending = FORMATS[index // len(kinds) % len(FORMATS)]
      wave_S, rate_hz = _stretch(source, rng)
      data = KINDS[kind](_encoded(wave_S, rate_hz, ending), wave_S, rng)
      if kind == 'other_extension':
        ending = FORMATS[FORMATS.index(ending) - 1]
      if kind in _WAV_KINDS:
        ending = 'wav'
      (folder / f'{index:06d}_{kind}.{ending}').write_bytes(data)


@contextlib.contextmanager
def _interrupted() -> Iterator[threading.Event]:
  """Whether Ctrl-C was pressed; Python's own way may fail within libsndfile.

  It calls back into Python for what is in memory, and loses exceptions there.
  """
  interrupted = threading.Event()
  old = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
  try:
    yield interrupted
  finally:
    signal.signal(signal.SIGINT, old)


def _stretch(source: clips.Source, rng: _Rng) -> tuple[np.ndarray, int]:
  clip = source[int(rng.integers(len(source)))]
  count = min(clip.samples, _MAX_LENGTH_S * clip.rate_hz)
  start = int(rng.integers(clip.samples - count + 1))
  return clip.read(start, count), clip.rate_hz


def _encoded(wave_S: np.ndarray, rate_hz: int, ending: str) -> bytes:
  file = io.BytesIO()
  soundfile.write(file, wave_S, rate_hz, format=ending.upper())
  data = file.getvalue()
  return _with_serial(data) if ending == 'ogg' else data


def _with_serial(ogg: bytes) -> bytes:
  """An Ogg file with serial number 1; libsndfile takes one from the clock."""
  pages, at = [], 0
  while at < len(ogg):
    lacing = ogg[at + 27 : at + 27 + ogg[at + 26]]
    end = at + 27 + len(lacing) + sum(lacing)
    page = bytearray(ogg[at:end])
    page[_SERIAL], page[_CHECKSUM] = struct.pack('<I', 1), bytes(4)
    page[_CHECKSUM] = struct.pack('<I', _ogg_checksum(page))
    pages.append(bytes(page))
    at = end
  return b''.join(pages)


def _ogg_checksum(page: bytes | bytearray) -> int:
  """Ogg's CRC is that of zlib with all bits in the other order, from zero."""
  mirrored = bytes(page).translate(_MIRRORED)
  checksum = zlib.crc32(mirrored, 2**32 - 1) ^ (2**32 - 1)
  return int(f'{checksum:032b}'[::-1], 2)


_MIRRORED = bytes(int(f'{byte:08b}'[::-1], 2) for byte in range(256))


def _truncated(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
  return data[: rng.integers(1, len(data))]


def _truncated_header(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
  return data[: rng.integers(1, _HEADER_BYTES)]


def _bit_flips(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
  damaged = bytearray(data)
  for place in rng.integers(len(data), size=rng.integers(1, 101)):
    damaged[place] ^= 1 << int(rng.integers(8))
  return bytes(damaged)


def _header_bytes(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
  damaged = bytearray(data)
  for place in rng.integers(_HEADER_BYTES, size=rng.integers(1, 17)):
    damaged[place] = int(rng.integers(256))
  return bytes(damaged)


def _zeros_inside(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
  start = int(rng.integers(len(data)))
  count = min(int(rng.integers(1, 10_001)), len(data) - start)
  return data[:start] + bytes(count) + data[start + count :]


def _all_zero(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
  return bytes(len(data))


def _empty(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
  return b''


def _noise(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
  return rng.bytes(len(data))


def _text(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
  return b'file not found\n' * int(rng.integers(1, 1000))


def _html(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
  page = b'<!DOCTYPE html><html><body><h1>403 Forbidden</h1>%s</body></html>'
  return page % (b'<p>Sign in</p>' * int(rng.integers(1, 1000)))


def _json(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
  return b'{"error": {"code": 429, "status": "%d"}}' % rng.integers(1000)


def _png(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
  def chunk(name: bytes, body: bytes) -> bytes:
    checksum = struct.pack('>I', zlib.crc32(name + body))
    return struct.pack('>I', len(body)) + name + body + checksum

  header = struct.pack('>IIBBBBB', 64, 64, 8, 0, 0, 0, 0)
  pixels = zlib.compress((b'\0' + rng.bytes(64)) * 64)
  image = chunk(b'IHDR', header) + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + image


def _zip(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as archive:
    archive.writestr(zipfile.ZipInfo('recording'), data)  # Dated 1980.
  return file.getvalue()


def _same(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
  return data


def _halves(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
  return data[: len(data) // 2] + data[: len(data) // 2]


def _junk_behind(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
  return data + rng.bytes(int(rng.integers(1, 5000)))


def _junk_before(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
  return rng.bytes(int(rng.integers(1, 5000))) + data


def _not_finite(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
  wave_S = wave_S.copy()
  values = [np.nan, np.inf, -np.inf]
  wave_S[rng.integers(len(wave_S))] = values[rng.integers(len(values))]
  return _wav(wave_S)


def _float_bit_flips(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
  header = len(_wav(wave_S)) - wave_S.nbytes
  damaged = _wav(wave_S)
  return damaged[:header] + _bit_flips(damaged[header:], wave_S, rng)


def _wav(wave_S: np.ndarray) -> bytes:
  """As float32; libsndfile would write the time of day into it."""
  file = io.BytesIO()
  wavfile.write(file, 16_000, wave_S)
  return file.getvalue()


def _wav_field(layout: str, at: int, *values: int) -> '_Damage':
  """Writes one of some values over a field of a WAV header."""

  def damage(data: bytes, wave_S: np.ndarray, rng: _Rng) -> bytes:
    file = io.BytesIO()
    wavfile.write(file, 16_000, (wave_S.clip(-1, 1) * 32767).astype(np.int16))
    damaged = bytearray(file.getvalue())
    struct.pack_into(layout, damaged, at, values[rng.integers(len(values))])
    return bytes(damaged)

  return damage


_Damage = Callable[[bytes, np.ndarray, _Rng], bytes]
_WAV_FIELDS: dict[str, _Damage] = {
  'wav_format': _wav_field('<H', 20, 0, 2, 0x55, 0x1234, 0xFFFE, 0xFFFF),
  'wav_channels': _wav_field('<H', 22, 0, 257, 1024, 65_535),
  'wav_rate': _wav_field('<I', 24, 0, 2**31 - 1, 2**31, 2**32 - 1),
  'wav_frame': _wav_field('<H', 32, 0, 1, 3, 65_535),
  'wav_bits': _wav_field('<H', 34, 0, 1, 7, 24, 64, 65_535),
  'wav_size': _wav_field('<I', 40, 2**24, 2**30),
}
# Each makes a damaged file of an encoded clip and its samples.
KINDS: dict[str, _Damage] = {
  'truncated': _truncated,
  'truncated_header': _truncated_header,
  'bit_flips': _bit_flips,
  'header_bytes': _header_bytes,
  'zeros_inside': _zeros_inside,
  'all_zero': _all_zero,
  'empty': _empty,
  'noise': _noise,
  'text': _text,
  'html': _html,
  'json': _json,
  'png': _png,
  'zip': _zip,
  'other_extension': _same,
  'halves': _halves,
  'junk_behind': _junk_behind,
  'junk_before': _junk_before,
  'not_finite': _not_finite,
  'float_bit_flips': _float_bit_flips,
  **_WAV_FIELDS,
}
_WAV_KINDS = {'not_finite', 'float_bit_flips', *_WAV_FIELDS}


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
