"""From a batch of waveforms to clean and mixed spectrograms."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sslam_jax import audio
from sslam_jax import augment
from sslam_jax import mixing
from sslam_jax import pictures
from sslam_jax import soundscapes
from sslam_jax import views

TOLERANCE = 1e-6  # absolute; the same numbers from another compilation
MEL = audio.LogMel(frames=70, mel_bins=32)  # 4 columns and 6 frames
PATCH, COLUMNS, CLIPS, GROUP = 16, 4, 6, 3


@functools.cache
def batch(mixes=True):
  """Six clips of different lengths, each with columns of its own."""
  rng = np.random.default_rng(0)
  wave = 0.1 * rng.standard_normal((CLIPS, MEL.samples))
  keep = [[rng.permutation(8)[:3] for _ in range(2)] for _ in range(CLIPS)]
  columns = [[0, 1], [1, 2], [2, 3], [0, 3], [1, 3], [0, 2]]
  record = {
      'wave': jnp.asarray(wave, jnp.float32),
      'samples': jnp.array([MEL.samples - 900 * i for i in range(CLIPS)]),
      'keep': jnp.asarray(np.sort(keep), jnp.int32),
      'row': jnp.arange(10, 10 + CLIPS),
  }
  return record | ({'column': jnp.array(columns)} if mixes else {})


@functools.cache
def log_mels():
  return np.asarray(MEL(batch()['wave'], batch()['samples']))


@functools.cache
def made(shared, group=GROUP):
  mix = mixing.PartialMix(group=group, shared_columns=shared)
  masked = views.Masked(clones=2, mix=mix)
  return jax.jit(lambda batch: masked.make(batch, MEL, PATCH))(batch())


def mixture(partners, columns):
  """The mixture of every clip with its partner, cell by cell."""
  mel = log_mels()
  mixed = mel.copy()
  for i, (j, mixed_columns) in enumerate(zip(partners, columns)):
    for column in mixed_columns:
      for t in range(column * PATCH, (column + 1) * PATCH):
        for f in range(32):
          mixed[i, t, f] = max(mel[i, t, f], mel[j, t, f])
  return mixed


@pytest.mark.parametrize(('shared', 'group', 'partners'), [
    (True, 3, [2, 0, 1, 5, 3, 4]),
    (False, 3, [2, 0, 1, 5, 3, 4]),
    (True, 2, [1, 0, 3, 2, 5, 4]),
])
def test_every_clip_is_mixed_with_the_one_before_it_in_its_group(
    shared, group, partners
):
  columns = np.asarray(batch()['column'])
  if shared:
    columns = columns[[i // group * group for i in range(CLIPS)]]
  side = made(shared, group).mixture
  np.testing.assert_array_equal(side.column_BxC, columns)
  partner, = side.partners_BxTxF
  np.testing.assert_allclose(partner, log_mels()[partners], rtol=0,
                             atol=TOLERANCE)
  np.testing.assert_allclose(side.mel_BxTxF, mixture(partners, columns),
                             rtol=0, atol=TOLERANCE)


def test_three_sources_are_each_clip_and_the_two_before_it():
  mix = mixing.PartialMix(group=3, sources=3, clean_share=0.0)
  record = batch() | {'column': jnp.tile(jnp.arange(4), (CLIPS, 1))}
  side = views.mixture_of(jnp.asarray(log_mels()), record, mix, MEL, PATCH)
  groups = log_mels().reshape(2, 3, 70, 32)
  loudest = groups.max(1, keepdims=True).repeat(3, 1).reshape(CLIPS, 70, 32)
  np.testing.assert_array_equal(side.mel_BxTxF[:, :64], loudest[:, :64])
  near, far = side.partners_BxTxF
  np.testing.assert_array_equal(near, log_mels()[[2, 0, 1, 5, 3, 4]])
  np.testing.assert_array_equal(far, log_mels()[[1, 2, 0, 4, 5, 3]])


def test_a_picture_shows_every_partner():
  mix = mixing.PartialMix(group=3, sources=3)
  out = views.Masked(clones=2, mix=mix).make(batch(), MEL, PATCH)
  titles, mels, bars = zip(*pictures._panels(out, 1, PATCH))
  assert titles[:4] == ('log-mel', 'partner 1', 'partner 2',
                        'mixture (bar: mixed)')
  for mel, clip in zip(mels, (1, 0, 2)):
    np.testing.assert_allclose(mel, log_mels()[clip], rtol=0, atol=TOLERANCE)
  np.testing.assert_array_equal(mels[3], out.mixture.mel_BxTxF[1])
  # Columns 0 and 1 are the first clip's, which the group shares.
  np.testing.assert_array_equal(np.flatnonzero(bars[3]), np.arange(32))


def test_waveforms_are_added_in_mixed_columns_alone():
  mix = mixing.PartialMix(group=2, how='wave', shared_columns=False,
                          snr_db=(-3.0, 3.0))
  masked = views.Masked(clones=2, mix=mix)
  record = batch() | {'snr_db': jnp.linspace(-3, 3, CLIPS)[:, None]}
  side = jax.jit(lambda record: masked.make(record, MEL, PATCH))(record).mixture
  heard = np.asarray(MEL(*mix.add(record)))
  assert np.abs(heard - log_mels()).max() > 0.1
  for clip, columns in enumerate(np.asarray(batch()['column'])):
    is_mixed = np.isin(np.arange(70) // PATCH, columns)[:, None]
    expected = np.where(is_mixed, heard[clip], log_mels()[clip])
    # Another compilation, of logarithms of next to nothing.
    np.testing.assert_allclose(side.mel_BxTxF[clip], expected, rtol=0,
                               atol=1e-4)


def test_mixtures_differ_from_their_clips_in_mixed_columns_alone():
  out = made(True)
  changed = np.asarray(out.mixture.mel_BxTxF != out.mel_BxTxF).any(2)
  for i, columns in enumerate(np.asarray(out.mixture.column_BxC)):
    frames = {t for t in range(70) if t // PATCH in columns}
    assert {*np.nonzero(changed[i])[0]} <= frames
    assert changed[i].any()


def test_the_clean_side_is_the_front_end_s():
  np.testing.assert_allclose(made(True).mel_BxTxF, log_mels(), rtol=0,
                             atol=TOLERANCE)


def test_masks_and_rows_pass_through():
  out = made(True)
  np.testing.assert_array_equal(out.keep_BxMxK, batch()['keep'])
  np.testing.assert_array_equal(out.row_B, np.arange(10, 16))


@pytest.mark.parametrize('mixes', [True, False])
def test_without_mixing_there_is_no_mixture(mixes):
  out = views.Masked(clones=2).make(batch(mixes), MEL, PATCH)
  assert out.mixture is None
  np.testing.assert_allclose(out.mel_BxTxF, log_mels(), rtol=0, atol=TOLERANCE)


def test_hidden_is_everything_that_is_not_kept():
  out = made(True)
  hidden = np.asarray(out.hidden_BxMxN(8))
  for b, m, n in np.ndindex(CLIPS, 2, 8):
    assert hidden[b, m, n] == (n not in np.asarray(out.keep_BxMxK)[b, m])


CLASSES = 'alarm', 'bell', 'cat'


def test_labels_are_in_the_order_of_the_classes():
  labelled = views.Labelled(classes=('cat', 'alarm', 'bell'))
  label = labelled.label(('bell', 'cat', 'unknown'))['label']
  np.testing.assert_array_equal(label, np.float32([1, 0, 1]), strict=True)
  np.testing.assert_array_equal(labelled.label(())['label'], np.zeros(3))


@dataclasses.dataclass
class Named:
  """As much of a source as is asked for."""

  classes: tuple[str, ...]


def test_classes_are_the_source_s_unless_given():
  source = soundscapes.Soundscapes(clips=1)
  assert views.Labelled().names == ()
  assert views.Labelled().resolved(source).names == source.classes
  given = views.Labelled(classes=(*CLASSES, 'dog'))
  assert given.resolved(Named(CLASSES)).names == (*CLASSES, 'dog')


@pytest.mark.parametrize(('classes', 'found', 'message'), [
    (None, (), 'data.source: want labelled clips, got none'),
    (CLASSES, (), 'data.source: want labelled clips, got none'),
    (CLASSES, ('cat', 'owl', 'ape'), 'data.views.classes: .*missing: ape, owl'),
])
def test_labels_that_cannot_be_learned_are_refused(classes, found, message):
  with pytest.raises(ValueError, match=message):
    views.Labelled(classes=classes).resolved(Named(found))


def test_without_augmentation_examples_are_clips_and_labels():
  labels = jnp.eye(CLIPS, 3)
  labelled = views.Labelled(classes=CLASSES)
  assert labelled.draw(np.random.default_rng(0), (4, 2)) == {}
  out = labelled.make(batch() | {'label': labels}, MEL, PATCH)
  np.testing.assert_allclose(out.mel_BxTxF, log_mels(), rtol=0, atol=TOLERANCE)
  np.testing.assert_array_equal(out.label_BxC, labels)
  np.testing.assert_array_equal(out.row_B, np.arange(10, 16))
  assert not out.has_mixup


def test_steps_are_applied_in_order():
  """The gain before the log-mel; noise, the mixture, and last the blank."""
  labelled = views.Labelled(
      classes=CLASSES, wave=augment.RollGain(roll=False),
      noise=augment.Noise(), mixup=augment.Mixup(probability=1.0),
      spec=augment.SpecAugment(share=0.5),
  )
  rng = np.random.default_rng(1)
  drawn = [labelled.draw(rng, (4, 2)) for _ in range(CLIPS)]
  record = jax.tree.map(lambda *x: np.stack(x), *drawn) | {
      'wave': batch()['wave'], 'samples': batch()['samples'],
      'label': np.eye(CLIPS, 3, dtype=np.float32), 'row': np.arange(CLIPS),
  }
  spec = jax.sharding.PartitionSpec(views.AXIS)
  mesh = jax.make_mesh((1,), (views.AXIS,), (jax.sharding.AxisType.Auto,))
  out = jax.jit(jax.shard_map(
      functools.partial(labelled.make, mel=MEL, patch=PATCH), mesh=mesh,
      in_specs=spec, out_specs=spec))(record)
  gain = record['gain'][:, None]
  mel = MEL(gain * record['wave'], record['samples'])
  mel = np.asarray(labelled.noise.apply(mel, record))
  share = record['mixup'][0]
  mel = share * mel + (1 - share) * mel[::-1]
  label = share * record['label'] + (1 - share) * record['label'][::-1]
  mel = labelled.spec.apply(mel, record)
  np.testing.assert_allclose(out.mel_BxTxF, mel, rtol=0, atol=2e-5)
  np.testing.assert_allclose(out.label_BxC, label, rtol=0, atol=TOLERANCE)
  assert out.has_mixup
  assert ((out.mel_BxTxF == 0).sum((1, 2)) > 0).any()
