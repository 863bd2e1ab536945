"""Small TFDS data sets that tests make up."""

import numpy as np
import tensorflow_datasets as tfds

from sslam_jax import tfds_source

BYTES = tfds.features.Tensor(shape=(), dtype=np.object_)


class Toy(tfds.core.GeneratorBasedBuilder):
  """A data set of the given features and examples."""

  VERSION = tfds.core.Version('1.0.0')

  def __init__(self, *, features, examples, **options):
    self._given = features, examples
    super().__init__(**options)

  def _info(self):
    features = tfds.features.FeaturesDict(self._given[0])
    return tfds.core.DatasetInfo(
      builder=self, features=features, disable_shuffling=True
    )

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    yield from enumerate(self._given[1])


def array(dtype, shape=(None,), **options):
  audio = tfds.features.Tensor(shape=shape, dtype=dtype, **options)
  return {'audio': audio, 'rate_hz': np.int32}


def example(audio, **more):
  return {'audio': audio, 'rate_hz': 8000, **more}


def prepared(path, features, *examples, **options) -> tfds_source.Tfds:
  builder = Toy(features=features, examples=examples, data_dir=str(path))
  builder.download_and_prepare(file_format='array_record')
  return tfds_source.Tfds(name='toy', data_dir=str(path), **options)


def pcm(samples=500, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(-(2**15), 2**15, samples).astype(np.int16)
