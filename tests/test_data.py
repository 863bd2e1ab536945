"""The pipeline: one stream for any workers, threads, start and devices."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import soundfile

from sslam_jax import clips
from sslam_jax import data
from sslam_jax import mixing
from sslam_jax import sampling
from sslam_jax import sources
from sslam_jax import train
from tests import tiny

MEL_TOLERANCE = 1e-4  # the front end on other batch sizes


def data_of(**changes):
  return dataclasses.replace(tiny.stage2('unused').data, **changes)


def masked_of(**changes):
  views = dataclasses.replace(data_of().views, **changes)
  return data_of(views=views)


def take(config, batches, start=0, batch=4, seed=1):
  iterator = iter(data.records(config, batch=batch, seed=seed, patch=16,
                               start=start))
  found = [next(iterator) for _ in range(batches)]
  iterator.close()
  return found


def assert_same(ours, theirs):
  assert len(ours) == len(theirs)
  for a, b in zip(ours, theirs):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope='module')
def stream():
  return take(data_of(), 7)


@pytest.mark.parametrize('changes', [{'threads': 1}, {'threads': 8}])
def test_stream_is_the_same_for_any_threads(stream, changes):
  assert_same(take(data_of(**changes), 7), stream)


def test_stream_is_the_same_with_worker_processes(stream):
  assert_same(take(data_of(workers=2), 7), stream)


def test_stream_continues_from_any_batch(stream):
  assert_same(take(data_of(), 3, start=4), stream[4:])


def test_another_seed_is_another_stream(stream):
  other = take(data_of(), 1, seed=2)
  assert not np.array_equal(other[0]['wave'], stream[0]['wave'])


def test_each_epoch_is_a_permutation_with_new_draws(stream):
  ids = np.concatenate([record['id'] for record in stream])
  assert sorted(ids[:12]) == sorted(set(ids))  # 12 clips in the source
  assert list(ids[:12]) != sorted(ids[:12])
  assert list(ids[12:24]) != list(ids[:12])
  keep = np.concatenate([record['keep'] for record in stream])
  first = ids[0]
  again = 12 + list(ids[12:24]).index(first)
  assert not np.array_equal(keep[0], keep[again])


def test_records_hold_masks_columns_and_valid_lengths(stream):
  record = stream[0]
  assert record['keep'].shape == (4, tiny.CLONES, 4)
  assert record['keep'].dtype == np.int32
  assert record['column'].shape == (4, 8 - 2 * 1)
  samples = data_of().mel.samples
  assert record['wave'].shape == (4, samples)
  assert list(record['samples']) == [samples] * 4  # 1.5 s in clips of 1.295 s


class Ramp:
  """One clip whose samples tell their own place; counts what is read."""

  def __init__(self, samples, rate_hz=16_000):
    self.samples, self.rate_hz, self.asked = samples, rate_hz, []

  def __len__(self):
    return 1

  def __getitem__(self, index):
    return clips.Clip(id='ramp', labels=(), rate_hz=self.rate_hz,
                      samples=self.samples, read=self._read)

  def _read(self, start, count):
    self.asked.append((start, count))
    assert start + count <= self.samples
    return np.arange(start, start + count, dtype=np.float32)


class Damaged:
  """A source of which some clips cannot be read."""

  def __init__(self, source, bad, when):
    self.source, self.bad, self.when = source, bad, when

  def __len__(self):
    return len(self.source)

  def __getitem__(self, index):
    clip = self.source[index]
    if index not in self.bad:
      return clip
    if self.when == 'opened':
      raise clips.BadClip(clip.id, 'cut')
    return dataclasses.replace(clip, read=functools.partial(_fail, clip.id))


def _fail(clip_id, *_):
  raise clips.BadClip(clip_id, 'cut')


@pytest.mark.parametrize('when', ['opened', 'read'])
def test_stand_in_leaves_all_other_clips_as_they_are(stream, when):
  """For any threads, workers and start; what stands in is drawn at random."""
  source = Damaged(data_of().source, {3, 7}, when)
  found = take(data_of(source=source), 7)
  assert_same(take(data_of(source=source, threads=8), 4, start=3), found[3:])
  if when == 'read':
    assert_same(take(data_of(source=source, workers=2), 7), found)
  bad, stand_ins = {source.source[i].id for i in (3, 7)}, []
  for ours, theirs in zip(found, stream):
    for row, expected in enumerate(theirs['id']):
      same = [np.array_equal(ours[name][row], theirs[name][row])
              for name in ('keep', 'column', 'wave', 'id')]
      if expected in bad:
        skipped = json.loads(ours['skipped'][row])
        assert skipped[0] == [expected, 'cut']
        assert ours['id'][row] not in bad
        assert same[:2] == [True, True]  # masks and columns of the place
        stand_ins.append(ours['id'][row])
      else:
        assert all(same)
        assert ours['skipped'][row] == ''
  assert len(stand_ins) >= 4  # in two passes of 12 and four more
  assert len(set(stand_ins)) > 1


def test_stand_in_is_drawn_as_all_clips_are(tmp_path):
  """Here: by weights, of which the clip behind the damaged one has none."""
  weights = tmp_path / 'weights.txt'
  weights.write_text('1\n' * 8 + '0\n' + '1\n' * 3)
  source = sampling.Weighted(
      source=Damaged(data_of().source, {7}, 'read'), weights=str(weights),
      clips_per_epoch=11,
  )
  found = take(data_of(source=source), 11)
  ids = np.concatenate([record['id'] for record in found])
  names = [clip.id for clip in map(data_of().source.__getitem__, range(12))]
  assert sum(text != '' for record in found for text in record['skipped']) == 4
  assert set(ids) == set(names) - {names[7], names[8]}


def test_hundred_damaged_clips_in_a_row_are_too_many():
  source = Damaged(data_of().source, set(range(12)), 'read')
  with pytest.raises(ValueError, match='want readable clips, got 100 damaged '
                     r'ones in a row, the last soundscape-.*: cut'):
    take(data_of(source=source), 1)


def test_long_clip_is_cut_at_random_places_and_only_that_part_is_read():
  ramp, config = Ramp(1_000_000), data_of()
  rng = np.random.default_rng(0)
  waves = [data.excerpt(ramp[0], config, rng) for _ in range(50)]
  assert {len(w) for w in waves} == {config.mel.samples}
  assert {count for _, count in ramp.asked} == {config.mel.samples}
  starts = np.array([w[0] for w in waves])
  assert starts.min() < 100_000
  assert starts.max() > 850_000


def test_crop_start_takes_the_beginning():
  config = data_of(crop='start')
  wave = data.excerpt(Ramp(1_000_000)[0], config, np.random.default_rng(0))
  np.testing.assert_array_equal(wave, np.arange(config.mel.samples))


def test_short_clip_is_kept_whole():
  wave = data.excerpt(Ramp(500)[0], data_of(), np.random.default_rng(0))
  np.testing.assert_array_equal(wave, np.arange(500))


@pytest.mark.parametrize('samples', [500, 1_000_000])
def test_short_clips_are_repeated_and_all_else_is_as_it_was(samples):
  config = data_of(source=Ramp(samples), threads=1)
  full = config.mel.samples
  padded, = take(config, 1)
  repeated, = take(dataclasses.replace(config, short='repeat'), 1)
  for name in ('keep', 'column'):
    np.testing.assert_array_equal(padded[name], repeated[name])
  assert set(padded['samples']) == {min(samples, full)}
  assert set(repeated['samples']) == {full}  # no frame is padding
  expected = padded['wave'][:, np.arange(full) % min(samples, full)]
  np.testing.assert_array_equal(repeated['wave'], expected)
  if samples == 500:
    np.testing.assert_array_equal(repeated['wave'][3, 499:501], [499, 0])


@pytest.mark.parametrize('rate_hz', [8000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled_to_the_full_length(rate_hz):
  config = data_of()
  wave = data.excerpt(Ramp(10 * rate_hz, rate_hz)[0], config,
                      np.random.default_rng(0))
  assert len(wave) == config.mel.samples
  # A ramp stays a ramp, steeper by the ratio of the rates.
  slope = np.diff(wave[2000:-2000]).mean()
  np.testing.assert_allclose(slope, rate_hz / 16_000, rtol=1e-2)


def feed_of(devices, config=None):
  run = tiny.stage2('unused', devices=devices)
  config = config or run.data
  return data.Feed(config, batch=8, seed=1, patch=16,
                   mesh=train.make_mesh(run))


def test_views_are_the_same_on_any_devices():
  ids, views, *_ = next(feed_of(4))
  expected_ids, expected, *_ = next(feed_of(1))
  assert ids == expected_ids
  assert len(views.mel_BxTxF.sharding.device_set) == 4
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=MEL_TOLERANCE), views, expected)


def test_views_hold_the_mixture_of_the_group():
  _, views, *_ = next(feed_of(1))
  mel = np.asarray(views.mel_BxTxF)
  partner = mel.reshape(4, 2, *mel.shape[1:])[:, ::-1].reshape(mel.shape)
  np.testing.assert_array_equal(views.mixture.partners_BxTxF[0], partner)
  columns = np.asarray(views.mixture.column_BxC)
  np.testing.assert_array_equal(columns[::2], columns[1::2])  # shared
  for clip in range(8):
    is_mixed = np.isin(np.arange(128) // 16, columns[clip])[:, None]
    expected = np.where(is_mixed, np.maximum(mel, partner)[clip], mel[clip])
    np.testing.assert_array_equal(views.mixture.mel_BxTxF[clip], expected)


def test_columns_of_a_clip_are_its_own_unless_shared():
  config = masked_of(mix=mixing.PartialMix(group=2, shared_columns=False))
  _, views, *_ = next(feed_of(1, config))
  columns = np.asarray(views.mixture.column_BxC)
  assert any((columns[i] != columns[i + 1]).any() for i in range(0, 8, 2))


def test_saved_feed_continues_exactly():
  feed, other = feed_of(1), feed_of(4)
  for _ in range(3):
    next(feed)
  state = json.loads(json.dumps(feed.get_state()))
  ids, views, *_ = next(feed)
  other.set_state(state)
  other_ids, other_views, *_ = next(other)
  assert ids == other_ids
  np.testing.assert_array_equal(views.keep_BxMxK, other_views.keep_BxMxK)


def test_changed_source_goes_on_with_a_warning(caplog):
  feed = feed_of(1)
  state = feed.get_state() | {'batches': 3, 'clips': 11}
  feed.set_state(state)
  assert '12 clips, of 11 when the run was saved' in caplog.text
  assert feed.get_state() == state | {'clips': 12}
  caplog.clear()
  feed.set_state(feed.get_state(), moved=('data.source.path',))
  assert not caplog.text


def test_moved_source_has_to_hold_the_same_clips():
  state = feed_of(1).get_state()
  other = data_of(source=dataclasses.replace(data_of().source, seed=9))
  with pytest.raises(ValueError, match='data.source.path: want the data of '
                     r'this run, only elsewhere; got other clips \(12 clips'):
    feed_of(1, other).set_state(state, moved=('data.source.path',))


def test_fingerprint_is_of_lengths_and_labels_wherever_they_are(tmp_path):
  for name, samples in (('a', 500), ('b', 500), ('c', 501)):
    for label in ('dog', 'owl'):
      (tmp_path / name / label).mkdir(parents=True)
      soundfile.write(tmp_path / name / label / 'x.wav', np.zeros(samples),
                      8000)

  def of(name):
    return data.fingerprint(sources.Folder(paths=(str(tmp_path / name),)))

  assert of('a') == of('b')
  assert of('a') != of('c')
  (tmp_path / 'b' / 'dog').rename(tmp_path / 'b' / 'cat')
  assert of('a') != of('b')
  (tmp_path / 'a' / 'owl' / 'x.wav').write_bytes(b'')
  assert of('a') != of('b')


@pytest.mark.parametrize(('field', 'value'), [
    ('workers', -1), ('threads', 0)
])
def test_bad_numbers_are_refused(field, value):
  with pytest.raises(ValueError, match=f'{field}: want at least'):
    data_of(**{field: value})


def test_at_least_one_clone():
  with pytest.raises(ValueError, match='clones: want at least'):
    masked_of(clones=0)


@pytest.mark.parametrize('fraction', [-0.1, 1.1, float('nan')])
def test_bad_fraction_is_refused(fraction):
  with pytest.raises(ValueError, match='max_bad_fraction: want 0 to 1'):
    data_of(max_bad_fraction=fraction)
