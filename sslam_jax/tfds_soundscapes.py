"""Our procedural soundscapes as a TensorFlow Datasets builder.

Importing this registers `sslam_soundscapes`; tools/build_tfds.py prepares it,
without TensorFlow. Audio is kept as 16-bit FLAC bytes: samples in a tf.Example
are varints, which take 1.7 times the space and are slower to read.
"""

from collections.abc import Iterator
import dataclasses
import io
from typing import Any

import numpy as np
import soundfile

from sslam_jax import soundscapes

try:
  import tensorflow_datasets as tfds
except ImportError as error:
  raise ImportError(
    f'TensorFlow Datasets: want pip install -r requirements-tfds.txt, '
    f'got: {error}'
  ) from error

_SPLITS = ('train', 'validation', 'test')


class SslamSoundscapes(tfds.core.GeneratorBasedBuilder):
  """Procedural scenes of one to a few labelled sound events."""

  VERSION = tfds.core.Version('1.0.0')

  def __init__(
    self,
    *,
    scenes: soundscapes.Soundscapes | None = None,
    eval_clips: int = 512,
    **options: Any,
  ) -> None:
    """What data there is to build.

    Args:
      scenes: The scenes, `clips` of them in the split train; None: as many and
        as long as is the default there.
      eval_clips: Scenes in validation and in test, each.
      **options: As of every TFDS builder: data_dir, file_format and others.
    """
    if eval_clips < 1:
      raise ValueError(f'eval_clips: want at least 1, got {eval_clips}')
    self._scenes = scenes or soundscapes.Soundscapes()
    self._eval_clips = eval_clips
    super().__init__(**options)

  @property
  def settings(self) -> dict[str, Any]:
    """What the scenes are a function of; prepared data keep it with them."""
    return {**dataclasses.asdict(self._scenes), 'eval_clips': self._eval_clips}

  def scenes(self, split: str) -> soundscapes.Soundscapes:
    """The scenes of a split; no other split or seed has the same."""
    place = _SPLITS.index(split)
    return dataclasses.replace(
      self._scenes,
      clips=self._eval_clips if place else self._scenes.clips,
      seed=len(_SPLITS) * self._scenes.seed + place,
    )

  def _info(self) -> tfds.core.DatasetInfo:
    label = tfds.features.ClassLabel(names=self._scenes.classes)
    features = {
      'id': tfds.features.Text(),
      'audio': tfds.features.Tensor(shape=(), dtype=np.object_),
      'rate_hz': tfds.features.Scalar(dtype=np.int32),
      'labels': tfds.features.Sequence(label),
      'events': tfds.features.Sequence({
        'label': label,
        'onset_s': tfds.features.Scalar(dtype=np.float32),
        'length_s': tfds.features.Scalar(dtype=np.float32),
        'gain_db': tfds.features.Scalar(dtype=np.float32),
      }),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description=SslamSoundscapes.__doc__,
      features=tfds.features.FeaturesDict(features),
      metadata=tfds.core.MetadataDict(self.settings),
      disable_shuffling=True,  # Row i of a split is scene i.
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # Nothing to download.
    return {name: self._generate_examples(name) for name in _SPLITS}

  def _generate_examples(
    self, split: str
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    scenes = self.scenes(split)
    for index in range(len(scenes)):
      yield index, _example(scenes, index)


def _example(scenes: soundscapes.Soundscapes, index: int) -> dict[str, Any]:
  clip = scenes[index]
  return {
    'id': clip.id,
    'audio': _flac(clip.read(0, clip.samples), clip.rate_hz),
    'rate_hz': clip.rate_hz,
    'labels': list(clip.labels),
    'events': [
      {
        'label': event.family,
        'onset_s': event.onset_s,
        'length_s': event.length_s,
        'gain_db': event.gain_db,
      }
      for event in scenes.plan(index)
    ],
  }


def _flac(wave_S: np.ndarray, rate_hz: int) -> bytes:
  # libsndfile would scale floats by 32767, but decodes with 32768.
  pcm_S = np.round(wave_S * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)
  file = io.BytesIO()
  soundfile.write(file, pcm_S, rate_hz, format='FLAC', subtype='PCM_16')
  return file.getvalue()
