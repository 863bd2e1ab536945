"""Whether an audio file is as long as it says.

libsndfile reads a file that was cut short without a word, as a shorter one.
So the sizes in the headers of WAV, RF64, Wave64, AIFF, AU and MP3 files are
compared with the file's, and Ogg files must end with an end-of-stream page.
Anything unusual is left to libsndfile.
"""

import contextlib
import io
import mmap
import struct
import typing

# Of files made of chunks: the header of a chunk (name, size), where the first
# one is, what their positions are multiples of, and the one with the audio.
_CHUNKS = {
  b'RIFF': (struct.Struct('<4sI'), 12, 2, b'data'),
  b'RIFX': (struct.Struct('>4sI'), 12, 2, b'data'),
  b'RF64': (struct.Struct('<4sI'), 12, 2, b'data'),
  b'FORM': (struct.Struct('>4sI'), 12, 2, b'SSND'),
  b'riff': (struct.Struct('<4s12xQ'), 40, 8, b'data'),  # Wave64
}
_MAX_CHUNKS = 100  # Before the audio; a damaged file may have millions.
_PLACEHOLDER = 0x7F00_0000  # Programs that write to a pipe state this or more.
_PAD_BYTES = 1  # Of an odd chunk; some programs count it but leave it out.
_HEAD_BYTES = 64  # Hold all but chunks, and the Xing tag of a first MP3 frame.
_MP3_SPARE_BYTES = 2 * 1441  # Two frames: programs count them differently.
_MAX_OGG_PAGE = 27 + 255 + 255 * 255


class CutShort(ValueError):
  """The end of a file is missing."""


def checked(
  raw: typing.BinaryIO, size: int, stack: contextlib.ExitStack
) -> typing.BinaryIO:
  """Returns an audio file, rewound, as a decoder should see it.

  That is the file itself but for a WAV whose writer was stopped before it
  could fill in the sizes: then a view in which the audio reaches to the end.

  Args:
    raw: The file.
    size: Its bytes.
    stack: Closes the view.

  Raises:
    CutShort: Bytes that the file announces are missing.
  """
  raw.seek(0)
  head = raw.read(_HEAD_BYTES)
  start, length = _announced(raw, head)
  if start + length > size + _PAD_BYTES:
    got = f'{max(0, size - start)} of {length} bytes of audio'
    raise CutShort(f'{got}: it is cut short')
  if head[:4] == b'OggS' and not _ends(raw, size):
    raise CutShort('no end of the Ogg stream: it is cut short')
  if length == 0 and 0 < start < size and _unclosed(head):
    raw = stack.enter_context(_closed(raw, start, size, head))
  raw.seek(0)
  return raw


def _announced(raw: typing.BinaryIO, head: bytes) -> tuple[int, int]:
  """Where the audio starts and how many bytes it has; (0, 0): not stated."""
  if head[:4] in _CHUNKS:
    start, length = _audio_chunk(raw, head)
  elif head[:4] == b'.snd' and len(head) >= 12:
    start, length = struct.unpack('>II', head[4:12])
  elif head[:3] == b'ID3' or head[:1] == b'\xff':
    start, length = _mp3(raw, head)
  else:
    return 0, 0
  wide = head[:4] in (b'RF64', b'riff')
  return (0, 0) if length >= _PLACEHOLDER and not wide else (start, length)


def _audio_chunk(raw: typing.BinaryIO, head: bytes) -> tuple[int, int]:
  header, at, multiple, audio = _CHUNKS[head[:4]]
  for _ in range(_MAX_CHUNKS):
    raw.seek(at)
    data = raw.read(header.size)
    if len(data) < header.size:
      break
    name, length = header.unpack(data)
    if head[:4] == b'riff':  # Its sizes count the header.
      length = max(0, length - header.size)
    if name == audio:
      if head[:4] == b'RF64' and head[12:16] == b'ds64':
        (length,) = struct.unpack('<Q', head[28:36])
      return at + header.size, length
    at += header.size + length
    at += -at % multiple
  return 0, 0


def _mp3(raw: typing.BinaryIO, head: bytes) -> tuple[int, int]:
  """The audio that the Xing tag in the first frame announces, at least."""
  start = 0
  if head[:3] == b'ID3' and len(head) >= 10:
    for byte in head[6:10]:
      start = start << 7 | byte & 0x7F
    start += 10
    raw.seek(start)
    head = raw.read(_HEAD_BYTES)
  tag = max(head.find(b'Xing'), head.find(b'Info'))
  if tag < 0 or len(head) < tag + 16 or not head[tag + 7] & 2:
    return 0, 0
  at = tag + 8 + 4 * (head[tag + 7] & 1)
  (length,) = struct.unpack('>I', head[at : at + 4])
  return start, max(0, length - _MP3_SPARE_BYTES)


def _ends(raw: typing.BinaryIO, size: int) -> bool:
  """Whether the last page of an Ogg file is whole and marked as the last."""
  raw.seek(max(0, size - _MAX_OGG_PAGE))
  tail = raw.read(_MAX_OGG_PAGE)
  page = tail[tail.rfind(b'OggS') :]
  if page[:4] != b'OggS':
    return True  # Behind it is so much else that it is not in sight.
  if len(page) < 27 or len(page) < 27 + page[26]:
    return False
  whole = len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
  return whole and page[5] & 4 != 0


def _unclosed(head: bytes) -> bool:
  """Whether the size of a whole WAV file was never filled in."""
  if head[:4] not in (b'RIFF', b'RIFX'):
    return False
  header = _CHUNKS[head[:4]][0]
  _, length = header.unpack(head[: header.size])
  return length == 0 or length >= _PLACEHOLDER


def _closed(
  raw: typing.BinaryIO, start: int, size: int, head: bytes
) -> typing.BinaryIO:
  """A WAV file with the size of its audio filled in, though not on disk."""
  if not isinstance(raw, io.BytesIO):
    # A private copy of the one page that is changed.
    view = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_COPY)
    raw = typing.cast(typing.BinaryIO, view)
  order: typing.Literal['big', 'little'] = (
    'big' if head[:4] == b'RIFX' else 'little'
  )
  raw.seek(start - 4)
  raw.write(min(size - start, 2**32 - 1).to_bytes(4, order))
  return raw
