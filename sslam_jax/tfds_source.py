"""Clips from TensorFlow Datasets, by random access and without TensorFlow.

A data set must be prepared as ArrayRecord files. TFDS itself finds, opens and
parses them; only the features asked for are parsed. Its `Audio` features need
TensorFlow to be described, so without it a stand-in of ours describes them.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import glob
import importlib.util
import math
import operator
import os
import re
import threading
from typing import Any

import numpy as np

from sslam_jax import clips as clips_lib
from sslam_jax import decoding
from sslam_jax import errors

_INFO = 'dataset_info.json'
_AUDIO = 'tensorflow_datasets.core.features.audio_feature.Audio'
_RATES = ('rate_hz', 'sample_rate', 'sampling_rate', 'rate')
_IDS = ('id', 'audio_id', 'clip_id', 'utterance_id', 'filename',
        'audio/filename')  # fmt: skip
_BIT16 = 2.0**15
_MAX_RATE_HZ = 1_000_000  # More is a mistake, and a huge filter.
_MAX_SAMPLE = 2.0**31  # As in decoding.
# TFDS keeps state while it loads, and Grain's threads may all come first.
_OPENING = threading.Lock()


@dataclasses.dataclass(kw_only=True)
class Tfds:
  """A source of TensorFlow Datasets. Raises ValueError on first use.

  Names of features inside others are written `outer/inner`.

  Attributes:
    name: As TFDS knows it, `name[/config][:version]`, or the folder that holds
      the `dataset_info.json` of a prepared data set.
    split: Such as `train`, `train[:50%]` or `train+test`.
    data_dir: Folder of the prepared data sets; None: TFDS's own default.
    audio_key: Feature with the audio: encoded bytes, or samples [S] or
      [S, channels]. None: the only `Audio` feature; else the only one of
      bytes; else the only array; of several the one named `audio`.
    label_key: Feature with the labels: class labels or texts, or a sequence of
      them. None: the only one of class labels, or no labels.
    id_key: Feature with the ids, which must be unique; None: one with a usual
      name such as `id`, else `name/split#index`.
    rate_hz: Of arrays; None: that of the `Audio` feature, else of a number
      such as `rate_hz` beside it. Encoded audio says its own.
    full_scale: What integers are divided by; more in a clip makes it a bad
      one. None: 2**15, as 16-bit files give in an `Audio` feature of any type
      and in int16 and int64 arrays; int32 arrays must say it.
    download: Downloads and prepares the data set if need be.
  """

  name: str
  split: str = 'train'
  data_dir: str | None = None
  audio_key: str | None = None
  label_key: str | None = None
  id_key: str | None = None
  rate_hz: int | None = None
  full_scale: float | None = None
  download: bool = False

  def __post_init__(self) -> None:
    _check(self.name != '', 'name', 'a data set', self.name)
    _check(self.split != '', 'split', 'a name', self.split)
    rate_hz = 1 if self.rate_hz is None else self.rate_hz
    _check(0 < rate_hz <= _MAX_RATE_HZ, 'rate_hz',
           f'1 to {_MAX_RATE_HZ}', self.rate_hz)  # fmt: skip
    scale = 1 if self.full_scale is None else self.full_scale
    valid = 0 < scale < math.inf
    _check(valid, 'full_scale', 'more than 0', self.full_scale)
    self._opened: _Rows | None = None

  def __getstate__(self) -> dict[str, Any]:
    # Each process opens the files itself.
    return {**vars(self), '_opened': None}

  @property
  def _rows(self) -> '_Rows':
    with _OPENING:
      if self._opened is None:
        self._opened = _open(self)
      return self._opened

  @functools.cached_property
  def classes(self) -> tuple[str, ...]:
    """All labels; texts are found by reading the whole split once."""
    rows = self._rows
    if rows.classes is not None:
      return rows.classes
    found = {label for i in range(len(self)) for label in self.labels(i)}
    return tuple(sorted(found))

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> clips_lib.Clip:
    row = self._rows.read(index)
    if isinstance(row.audio, bytes):
      return decoding.open_bytes(row.audio, row.id, row.labels)
    if row.rate_hz is None:
      raise ValueError(f'rate_hz: want that of {self.name}, got None')
    if not 0 < row.rate_hz <= _MAX_RATE_HZ:
      raise clips_lib.BadClip(row.id, f'a rate of {row.rate_hz} Hz')
    wave_S = _mono(row.audio, self._rows.full_scale, row.id)
    return clips_lib.Clip(
      id=row.id,
      labels=row.labels,
      rate_hz=row.rate_hz,
      samples=len(wave_S),
      read=functools.partial(_part, wave_S, row.id),
    )

  def labels(self, index: int) -> tuple[str, ...]:
    """See `clips.Source`; none where the record is damaged."""
    return self._rows.labels(index)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Row:
  """One example; `rate_hz` is None where only encoded audio tells it."""

  id: str
  labels: tuple[str, ...]
  audio: bytes | np.ndarray
  rate_hz: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Keys:
  """Which feature holds what."""

  audio: str
  labels: str | None
  id: str | None
  rate: str | None


class _Rows:
  """The examples of a prepared split.

  Attributes:
    classes: None where the labels are texts.
    full_scale: What integers are divided by.
  """

  def __init__(self, config: Tfds, builder: Any, tfds: Any) -> None:
    flat = _flat(builder.info.features, tfds.features.FeaturesDict)
    kinds = {key: _kind(flat[key], tfds) for key in sorted(flat)}
    keys = _Keys(
      audio=_audio_key(config.audio_key, kinds),
      labels=_label_key(config.label_key, kinds),
      id=_id_key(config.id_key, kinds),
      rate=next((k for k in _RATES if kinds.get(k) == 'number'), None),
    )
    audio = flat[keys.audio]
    described_hz = audio.sample_rate if kinds[keys.audio] == 'audio' else None
    self._keys = keys
    self._rate_hz = config.rate_hz or described_hz or None
    self._name = f'{builder.info.full_name}/{config.split}'
    features = builder.info.features
    self._features = _parts(features, dataclasses.astuple(keys), tfds)
    self._label_features = _parts(features, (keys.labels,), tfds)
    self._records = _records(config, builder, tfds)
    self.classes = _classes(flat, keys.labels, tfds)
    self.full_scale = config.full_scale or _full_scale(
      kinds[keys.audio], np.dtype(audio.np_dtype)
    )

  def __len__(self) -> int:
    return len(self._records)

  def read(self, index: int) -> _Row:
    """One example, with only the features that are needed."""
    keys, clip_id = self._keys, f'{self._name}#{index}'
    try:
      example = self._example(index, self._features)
    except RuntimeError as error:  # What ArrayRecord raises for a damaged file.
      raise clips_lib.BadClip(clip_id, ' '.join(str(error).split())) from None
    rate_hz = self._rate_hz
    if rate_hz is None and keys.rate is not None:
      rate_hz = int(example[keys.rate])
    return _Row(
      id=clip_id if keys.id is None else _text(example[keys.id]),
      labels=self._label_names(example),
      audio=example[keys.audio],
      rate_hz=rate_hz,
    )

  def labels(self, index: int) -> tuple[str, ...]:
    """Those of an example, of which nothing else is parsed."""
    try:
      return self._label_names(self._example(index, self._label_features))
    except RuntimeError:
      return ()

  def _example(self, index: int, features: Any) -> dict[str, Any]:
    if not 0 <= operator.index(index) < len(self):
      raise IndexError(f'index: want 0 to {len(self) - 1}, got {index}')
    record = self._records[index]
    return _flat(features.deserialize_example_np(record), dict)

  def _label_names(self, example: dict[str, Any]) -> tuple[str, ...]:
    key = self._keys.labels
    return () if key is None else _names(example[key], self.classes)


def _check(valid: bool, what: str, wanted: str, got: object) -> None:
  if not valid:
    raise ValueError(f'{what}: want {wanted}, got {got!r}')


def _open(config: Tfds) -> _Rows:
  """Finds the data set, which is prepared first if need be."""
  tfds = _library()
  folder = os.path.expanduser(config.name)
  try:
    if not os.path.isfile(os.path.join(folder, _INFO)):
      folder = _prepared(config, tfds)
    return _Rows(config, tfds.builder_from_directory(folder), tfds)
  except ImportError as error:  # In TFDS: of TensorFlow, pydub and others.
    text = errors.first_line(error)
    raise ValueError(
      f'{config.name}: want what TFDS needs for this data set (for '
      f'TensorFlow: pip install tensorflow), got: {text}'
    ) from None


@functools.cache
def _library() -> Any:
  """TFDS, able to describe `Audio` features."""
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise ValueError(
      'TensorFlow Datasets: want pip install -r requirements-tfds.txt, '
      f'got: {error}'
    ) from None
  if importlib.util.find_spec('tensorflow') is None:
    _describe_audio(tensorflow_datasets)
  return tensorflow_datasets


def _describe_audio(tfds: Any) -> None:
  """Registers what to use where a prepared data set names `Audio`.

  An `Audio` feature is stored as a tensor of samples or, if it is lazily
  decoded, as the bytes of a file; only its constructor needs TensorFlow.
  """

  class StoredAudio(tfds.features.Tensor):
    """A tensor with a sampling rate, or the bytes of a file."""

    ALIASES = [_AUDIO]  # TFDS's way to read a feature of another name.

    def __init__(
      self, *, sample_rate: int | None, lazy_decode: bool, **tensor: Any
    ) -> None:
      if lazy_decode:
        tensor = {'shape': (), 'dtype': np.object_}
      super().__init__(**tensor)
      self.sample_rate = sample_rate

    @classmethod
    def from_json_content(cls, value: Any) -> 'StoredAudio':
      if isinstance(value, Mapping):  # As older versions of TFDS wrote it.
        return cls(
          shape=tuple(value['shape']),
          dtype=np.dtype(value['dtype']),
          sample_rate=value['sample_rate'],
          lazy_decode=value.get('lazy_decode', False),
        )
      return cls(
        shape=tuple(None if n < 0 else n for n in value.shape.dimensions),
        dtype=np.dtype(value.dtype),
        encoding=value.encoding or 'none',
        sample_rate=value.sample_rate,
        lazy_decode=value.lazy_decode,
      )


def _prepared(config: Tfds, tfds: Any) -> str:
  """The folder of a data set that TFDS finds by its name."""
  from tensorflow_datasets.core import read_only_builder

  try:
    # From its files only: its code may need TensorFlow.
    builder = read_only_builder.builder_from_files(
      config.name, data_dir=config.data_dir
    )
  except tfds.core.DatasetNotFoundError:
    if not config.download or not _known(config.name, tfds):
      raise ValueError(_not_there(config, tfds)) from None
    builder = tfds.builder(config.name, data_dir=config.data_dir)
    builder.download_and_prepare(file_format='array_record')
  return os.fspath(builder.data_dir)


def _known(name: str, tfds: Any) -> bool:
  return _base(name) in tfds.list_builders(with_community_datasets=False)


def _base(name: str) -> str:
  return re.split('[/:]', name)[0]


def _not_there(config: Tfds, tfds: Any) -> str:
  default = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  folder = os.path.expanduser(config.data_dir or default)
  found = [
    os.path.dirname(path)
    for stars in ('*/*', '*/*/*')  # name/version, name/config/version
    for path in glob.glob(os.path.join(stars, _INFO), root_dir=folder)
  ]
  if _base(config.name) == 'sslam_soundscapes':
    how = f'python tools/build_tfds.py --data_dir={folder} prepares it'
  elif _known(config.name, tfds):
    how = 'download=True prepares it'
  else:
    how = 'nor does TFDS know that name'
  return (
    f'name: want a data set prepared in {folder}, where there are '
    f'{sorted(found)}, got {config.name!r}; {how}'
  )


def _records(config: Tfds, builder: Any, tfds: Any) -> Any:
  """Random access to the serialised examples of the split."""
  stored = sorted(item.value for item in builder.info.available_file_formats())
  _check(
    'array_record' in stored,
    str(builder.data_dir),
    'array_record files, as download=True makes in another data_dir',
    stored,
  )
  try:
    return builder.as_data_source(
      config.split,
      deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
      file_format='array_record',
    )
  except ValueError as error:
    splits, text = sorted(builder.info.splits), errors.first_line(error)
    raise ValueError(
      f'split: want one of {splits} or a part with clips, got '
      f'{config.split!r}: {text}'
    ) from None


def _flat(tree: Any, nest: type) -> dict[str, Any]:
  """The leaves of nested features or values, as `outer/inner`."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, nest):
      flat.update({f'{key}/{k}': v for k, v in _flat(value, nest).items()})
    else:
      flat[key] = value
  return flat


def _parts(features: Any, keys: Iterable[str | None], tfds: Any) -> Any:
  """The features that hold some keys: others would be parsed in vain."""
  used = [f'{key}/' for key in keys if key is not None]
  return tfds.features.FeaturesDict({
    name: feature
    for name, feature in features.items()
    if any(key.startswith(f'{name}/') for key in used)
  })


def _kind(feature: Any, tfds: Any) -> str:
  """What a feature can hold: 'audio', 'bytes', 'array', 'classes' and so on."""
  inside, sequence = feature, isinstance(feature, tfds.features.Sequence)
  if sequence:
    inside = feature.feature
  if isinstance(inside, tfds.features.ClassLabel):
    return 'classes'
  if isinstance(inside, tfds.features.Text):
    return 'text'
  if sequence or not isinstance(feature, tfds.features.Tensor):
    return 'other'
  if hasattr(feature, 'sample_rate'):  # TFDS's Audio, or its stand-in.
    return 'audio'
  shape, dtype = feature.shape, np.dtype(feature.np_dtype)
  if not shape:
    return 'bytes' if dtype.kind in 'OSU' else 'number'
  valid = dtype.kind in 'if' and (len(shape) == 1 or shape[1:] != (None,))
  return 'array' if valid and len(shape) <= 2 else 'other'


def _audio_key(given: str | None, kinds: dict[str, str]) -> str:
  ways = ('audio', 'bytes', 'array')
  choices = {way: [k for k, v in kinds.items() if v == way] for way in ways}
  if given is not None:
    found = [key for way in ways for key in choices[way]]
    _check(given in found, 'audio_key', f'one of {found}', given)
    return given
  for found in filter(None, choices.values()):
    if len(found) > 1 and 'audio' not in found:
      raise ValueError(f'audio_key: want one of {found}, got None')
    return 'audio' if 'audio' in found else found[0]
  raise ValueError(
    f'audio_key: want a data set with audio, got features {sorted(kinds)}'
  )


def _label_key(given: str | None, kinds: dict[str, str]) -> str | None:
  if given is not None:
    found = [k for k, v in kinds.items() if v in ('classes', 'text', 'bytes')]
    _check(given in found, 'label_key', f'one of {found}', given)
    return given
  found = [key for key, kind in kinds.items() if kind == 'classes']
  return found[0] if len(found) == 1 else None


def _id_key(given: str | None, kinds: dict[str, str]) -> str | None:
  found = [k for k, v in kinds.items() if v in ('text', 'bytes', 'number')]
  if given is not None:
    _check(given in found, 'id_key', f'one of {found}', given)
    return given
  return next((key for key in _IDS if key in found), None)


def _classes(
  flat: dict[str, Any], key: str | None, tfds: Any
) -> tuple[str, ...] | None:
  if key is None:
    return ()
  feature = flat[key]
  if isinstance(feature, tfds.features.Sequence):
    feature = feature.feature
  if isinstance(feature, tfds.features.ClassLabel):
    return tuple(feature.names)
  return None


def _full_scale(kind: str, dtype: np.dtype) -> float:
  if kind == 'array' and dtype == np.int32:
    raise ValueError(
      'full_scale: want 32768 or 2147483648 for int32 samples, got None'
    )
  return _BIT16


def _names(values: Any, classes: tuple[str, ...] | None) -> tuple[str, ...]:
  """The labels, each once; -1 is TFDS's way to say that there is none."""
  if not isinstance(values, list | np.ndarray):
    values = [values]
  if classes is None:
    return tuple(dict.fromkeys(filter(None, map(_text, values))))
  return tuple(dict.fromkeys(classes[v] for v in values if v >= 0))


def _text(value: Any) -> str:
  return value.decode(errors='replace') if type(value) is bytes else str(value)


def _mono(audio: Any, full_scale: float, clip_id: str) -> np.ndarray:
  """Samples as float32 [S], channels averaged."""
  wave = np.asarray(audio)
  if not len(wave):
    raise clips_lib.BadClip(clip_id, 'no samples')
  if wave.dtype.kind == 'i':
    peak = max(int(wave.max()), -int(wave.min()))
    if peak > full_scale:
      reason = f'samples up to {peak}, above full_scale={full_scale:g}'
      raise clips_lib.BadClip(clip_id, reason)
    wave = wave / full_scale
  wave = wave if wave.ndim == 1 else wave.mean(axis=1)
  return wave.astype(np.float32, copy=False)


def _part(wave_S: np.ndarray, name: str, start: int, count: int) -> np.ndarray:
  """A part of a wave, refused where decoding would refuse it."""
  if min(start, count) < 0:
    raise ValueError(
      f'{name}: want start, count >= 0, got {(start, count)}'
    )
  part_S = wave_S[start : start + count].copy()
  if len(part_S) < count:
    got = f'{len(part_S)} of {count} samples from {start} on'
    raise clips_lib.BadClip(name, got)
  peak = np.abs(part_S).max(initial=0)
  if not np.isfinite(peak):
    raise clips_lib.BadClip(name, 'samples that are not finite')
  if peak > _MAX_SAMPLE:
    raise clips_lib.BadClip(name, 'samples beyond 32 bits')
  return part_S
