"""Which columns are mixed, with which clip, and the mixture itself."""

import collections
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sslam_jax import audio
from sslam_jax import config as config_lib
from sslam_jax import mixing

SIGMAS = 5
DRAWS = 8_000
MEL = audio.LogMel(frames=50, mel_bins=32, mean=-6.0, std=4.0)
RATE_HZ, DECIBELS = MEL.rate_hz, 10 / np.log(10)  # of a neper of power
LOW, HIGH = 5, 25  # mel bins of two tones that hardly touch


def starts(mixed, columns, clean):
  """First columns of the two clean windows, from the mixed columns."""
  free = [c for c in range(columns) if c not in set(mixed.tolist())]
  assert len(free) == 2 * clean
  for window in (free[:clean], free[clean:]):
    assert window == [*range(window[0], window[0] + clean)]
  return free[0], free[clean]


@pytest.fixture(scope='module')
def published():
  """Both starts of many draws with 64 columns."""
  mix, rng = mixing.PartialMix(), np.random.default_rng(0)
  return [starts(mix.plan(rng, 64), 64, 15) for _ in range(DRAWS)]


def test_published_draws_mix_34_of_64_columns():
  mix, rng = mixing.PartialMix(), np.random.default_rng(1)
  for _ in range(200):
    mixed = mix.plan(rng, 64)
    assert len(mixed) == 34
    assert mixed.dtype == np.int32
    assert (np.diff(mixed) > 0).all()
    starts(mixed, 64, 15)  # two whole windows: they never overlap


def test_published_first_window_is_uniform_over_32_starts(published):
  count = collections.Counter(first for first, _ in published)
  assert sorted(count) == [*range(32)]
  p = 1 / 32
  noise = np.sqrt(DRAWS * p * (1 - p))
  assert all(abs(n - DRAWS * p) < SIGMAS * noise for n in count.values())


def test_published_second_window_is_uniform_over_what_the_first_leaves(
    published
):
  """Frames 240 after the first to 768, in steps of 16."""
  chance = collections.Counter()
  for first in range(32):
    choices = [s // 16 for s in range(first * 16 + 240, 768 + 1, 16)]
    for second in choices:
      chance[first, second] += 1 / 32 / len(choices)
  assert {*published} <= {*chance}
  second_chance = collections.Counter()
  for (_, second), p in chance.items():
    second_chance[second] += p
  count = collections.Counter(second for _, second in published)
  assert sorted(count) == sorted(second_chance)
  for second, p in second_chance.items():
    noise = np.sqrt(DRAWS * p * (1 - p))
    assert abs(count[second] - DRAWS * p) < SIGMAS * noise


def test_published_second_window_depends_on_the_first(published):
  """After 31 it starts at 46 to 48 only, a third each."""
  late = [second for first, second in published if first == 31]
  count = collections.Counter(late)
  assert sorted(count) == [46, 47, 48]
  noise = np.sqrt(len(late) * 2 / 9)
  assert all(abs(n - len(late) / 3) < SIGMAS * noise for n in count.values())


@pytest.mark.parametrize('columns', [5, 8, 11, 16, 31, 63, 65, 128, 200])
@pytest.mark.parametrize('share', [15 / 64, 0.4, 0.49])
def test_any_number_of_columns_has_two_whole_clean_windows(columns, share):
  mix, rng = mixing.PartialMix(clean_share=share), np.random.default_rng(2)
  clean = int(columns * share)
  assert mix.clean(columns) == clean >= 1
  seen = {starts(mix.plan(rng, columns), columns, clean) for _ in range(100)}
  for first, second in seen:
    assert 0 <= first <= second - clean <= columns - 2 * clean
  assert len(seen) > 1 or columns <= 5


def test_128_columns_are_in_proportion_to_the_published_64():
  mix, rng = mixing.PartialMix(), np.random.default_rng(3)
  seen = [starts(mix.plan(rng, 128), 128, 30) for _ in range(2_000)]
  assert {first for first, _ in seen} == {*range(63)}
  assert max(second for _, second in seen) == 96


def test_without_clean_share_everything_is_mixed():
  mix = mixing.PartialMix(clean_share=0.0)
  for columns in (1, 7, 64):
    mixed = mix.plan(np.random.default_rng(4), columns)
    np.testing.assert_array_equal(mixed, np.arange(columns))


def test_plans_depend_on_the_generator_alone():
  mix = mixing.PartialMix()
  first, again, other = (
      mix.plan(np.random.default_rng(seed), 64) for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def test_an_snr_is_drawn_for_each_partner_after_the_columns():
  """Nothing else is drawn where there is none: old runs go on as they were."""
  waves = mixing.PartialMix(how='wave', snr_db=(-5.0, 10.0), sources=3)
  rng, other = np.random.default_rng(6), np.random.default_rng(6)
  column = mixing.PartialMix().plan(other, 64)
  drawn = waves.draw(rng, 64)
  np.testing.assert_array_equal(drawn['column'], column)
  assert (drawn['snr_db'].shape, drawn['snr_db'].dtype) == ((2,), np.float32)
  snr_db = np.stack([waves.draw(rng, 64)['snr_db'] for _ in range(1000)])
  noise = SIGMAS * 15 / np.sqrt(12 * 1000)
  assert (snr_db >= -5).all() and (snr_db <= 10).all()
  np.testing.assert_allclose(snr_db.mean(0), 2.5, rtol=0, atol=noise)
  assert abs(np.corrcoef(snr_db.T)[0, 1]) < SIGMAS / np.sqrt(1000)
  for how in ('max', 'log_mean', 'power', 'wave'):
    one, two = np.random.default_rng(7), np.random.default_rng(7)
    assert mixing.PartialMix(how=how).draw(one, 64).keys() == {'column'}
    mixing.PartialMix().plan(two, 64)
    assert one.random() == two.random()


@pytest.mark.parametrize('fields', [
    {'group': 1}, {'clean_share': -0.1}, {'clean_share': 0.5},
    {'sources': 1}, {'sources': 13}, {'snr_db': (0.0, 0.0)},
    {'snr_db': (0.0, 0.0), 'how': 'power'},
    {'snr_db': (1.0, 0.0), 'how': 'wave'},
    {'snr_db': (0.0, float('inf')), 'how': 'wave'},
])
def test_impossible_settings_are_refused_by_name(fields):
  with pytest.raises(ValueError, match=f'^{next(iter(fields))}: want'):
    mixing.PartialMix(**fields)


def test_a_window_of_no_column_is_refused():
  with pytest.raises(ValueError, match='clean_share: .* 4 columns'):
    mixing.PartialMix().plan(np.random.default_rng(0), 4)


@pytest.mark.parametrize(('start', 'clean', 'expected'), [
    ((1, 4), 2, [0, 3, 6, 7]),
    ((0, 6), 2, [2, 3, 4, 5]),
    ((2, 4), 2, [0, 1, 6, 7]),
    ((0, 3), 0, [0, 1, 2, 3, 4, 5, 6, 7]),
])
def test_mixed_columns_are_those_outside_both_windows(start, clean, expected):
  mixed = mixing.mixed_columns(np.array(start), clean, 8)
  np.testing.assert_array_equal(mixed, expected)


def test_shared_columns_are_the_first_clip_s_of_each_group():
  column = np.array([[0, 1], [1, 2], [2, 3], [0, 3], [1, 3], [0, 2]])
  shared = mixing.PartialMix(group=3).share(column)
  np.testing.assert_array_equal(
      shared, [[0, 1], [0, 1], [0, 1], [0, 3], [0, 3], [0, 3]]
  )


def test_columns_that_are_not_shared_stay_as_drawn():
  column = np.array([[0, 1], [1, 2], [2, 3], [0, 3]])
  own = mixing.PartialMix(group=2, shared_columns=False).share(column)
  np.testing.assert_array_equal(own, column)


@pytest.mark.parametrize(('group', 'expected'), [
    (2, [1, 0, 3, 2, 5, 4]),
    (3, [2, 0, 1, 5, 3, 4]),
    (6, [5, 0, 1, 2, 3, 4]),
])
def test_partner_is_the_clip_before_cyclic_within_the_group(group, expected):
  clips = np.arange(6)
  np.testing.assert_array_equal(mixing.partner(clips, group), expected)
  maps = np.broadcast_to(clips[:, None, None], (6, 2, 3))
  partners = mixing.partner(maps, group)
  assert partners.shape == (6, 2, 3)
  np.testing.assert_array_equal(partners[:, 1, 2], expected)


def test_partners_are_the_clips_before_the_nearest_first():
  clips = np.arange(8)
  near, far = mixing.PartialMix(group=4, sources=3).partners(clips)
  np.testing.assert_array_equal(near, [3, 0, 1, 2, 7, 4, 5, 6])
  np.testing.assert_array_equal(far, [2, 3, 0, 1, 6, 7, 4, 5])


def test_together_are_the_published_maximum_or_the_mean():
  own, *others = np.float32([[[[1, -2]]], [[[0, 6]]], [[[5, -1]]]])
  for how, expected in (('max', [5, 6]), ('log_mean', [2, 1])):
    mix = mixing.PartialMix(how=how, sources=3)
    heard = mix.together(own, (*others,), {}, MEL)
    np.testing.assert_array_equal(heard, [[expected]])


def test_powers_add_up_in_nats_before_normalisation():
  """1 + 3 + 4 = 8; with a floor of next to nothing a clip stays itself."""
  nats = np.log(np.float32([[[1, 5]], [[3, 1e-7]], [[4, 1e-7]]]))
  own, *others = (MEL.normalise(x[None]) for x in nats)
  mix = mixing.PartialMix(how='power', sources=3)
  heard = mix.together(own, (*others,), {}, MEL)
  np.testing.assert_allclose(np.exp(MEL.nats(heard)), [[[8, 5]]], rtol=2e-6)


def tone(mel_bin, level, samples=MEL.samples, mean=0.0):
  """A sine in the middle of a filter, with its mean power of level**2 / 2."""
  edges = np.linspace(*(1127 * np.log1p(hz / 700) for hz in (20, 8000)), 34)
  hz = 700 * np.expm1(edges[mel_bin + 1] / 1127)
  wave = np.zeros(MEL.samples)
  phase = 2 * np.pi * hz / RATE_HZ * np.arange(samples)
  wave[:samples] = level * np.sin(phase) + mean
  return wave


def record_of(*waves, samples=None, **drawn):
  samples = samples or [MEL.samples] * len(waves)
  return {'wave': jnp.asarray(np.stack(waves), jnp.float32),
          'samples': jnp.asarray(samples), **drawn}


@functools.cache
def heard(how, snr_db=None):
  """Log-mels in nats of a low and a louder high tone, alone and together."""
  record = record_of(tone(LOW, 0.1), tone(HIGH, 0.3))
  mix = mixing.PartialMix(group=2, how=how, snr_db=snr_db)
  if snr_db is not None:
    record['snr_db'] = jnp.full((2, 1), snr_db[0])
  mel = MEL(record['wave'], record['samples'])
  together = mix.together(mel, mix.partners(mel), record, MEL)
  return np.asarray(MEL.nats(mel)), np.asarray(MEL.nats(together))


def test_sum_of_waveforms_is_the_sum_of_powers_of_tones_that_do_not_meet():
  alone, waves = heard('wave')
  _, powers = heard('power')
  for clip in (0, 1):
    for mel_bin, source in ((LOW, 0), (HIGH, 1)):
      for together in (waves, powers):
        np.testing.assert_allclose(together[clip, :, mel_bin],
                                   alone[source, :, mel_bin], atol=0.02)


@pytest.mark.parametrize('snr_db', [-7.0, 0.0, 12.0])
def test_snr_is_that_of_the_two_tones_in_the_mixture(snr_db):
  """The clip keeps its level; its partner's follows."""
  alone, together = heard('wave', (snr_db, snr_db))
  level = 20 * np.log10(0.1 / 0.3)
  for clip, own, other, raised_db in ((0, LOW, HIGH, level - snr_db),
                                      (1, HIGH, LOW, -level - snr_db)):
    gain_db = DECIBELS * (together - alone[clip])[clip, :, own]
    np.testing.assert_allclose(gain_db, 0, atol=0.1)
    gain_db = DECIBELS * (together[clip] - alone[1 - clip])[:, other]
    np.testing.assert_allclose(gain_db, raised_db, atol=0.1)


def test_snr_holds_for_every_partner_of_any_length_without_its_offset():
  """Powers are means over the part that a clip fills."""
  samples = [4000, 8000, 2000]
  waves = [tone(b, level, n, mean) for b, level, n, mean in
           zip((LOW, 15, HIGH), (0.1, 0.3, 0.02), samples, (0.0, 0.2, -0.1))]
  snr_db = np.float32([[3, -4], [0, 6], [-9, 9]])
  mix = mixing.PartialMix(group=3, sources=3, how='wave', snr_db=(-9.0, 9.0))
  record = record_of(*waves, samples=samples, snr_db=jnp.asarray(snr_db))
  total, longest = jax.jit(mix.add)(record)
  np.testing.assert_array_equal(longest, [8000, 8000, 8000])
  centred = [w - w[:n].mean() * (np.arange(len(w)) < n)
             for w, n in zip(waves, samples)]
  power = [np.mean(w[:n] ** 2) for w, n in zip(centred, samples)]
  for clip in range(3):
    parts = [centred[clip]]
    for back in (1, 2):
      i = (clip - back) % 3
      wanted = power[clip] / 10 ** (snr_db[clip, back - 1] / 10)
      parts.append(centred[i] * np.sqrt(wanted / power[i]))
    np.testing.assert_allclose(total[clip], sum(parts), rtol=0, atol=2e-6)


def test_what_a_longer_partner_adds_is_heard_after_the_clip_s_end():
  short, long = tone(LOW, 0.1, 3000), tone(HIGH, 0.1)
  record = record_of(short, long, samples=[3000, MEL.samples])
  mix = mixing.PartialMix(group=2, how='wave')
  mel = MEL(record['wave'], record['samples'])
  together = mix.together(mel, mix.partners(mel), record, MEL)
  np.testing.assert_allclose(together[0, 20:], mel[1, 20:], atol=1e-4)
  assert (mel[0, 20:] == MEL.normalise(0.0)).all()  # padding


def test_beside_silence_clips_stay_as_they_are():
  """No level, no NaN: neither with itself nor with a sound."""
  sound, nothing = tone(LOW, 0.1), np.zeros(MEL.samples)
  sound -= sound.mean()
  record = record_of(sound, nothing, nothing, nothing,
                     snr_db=jnp.full((4, 1), 5.0))
  mix = mixing.PartialMix(group=2, how='wave', snr_db=(5.0, 5.0))
  total, _ = mix.add(record)
  np.testing.assert_allclose(total, [sound, sound, nothing, nothing], rtol=0,
                             atol=1e-6)
  for how in ('wave', 'power', 'log_mean', 'max'):
    mix = mixing.PartialMix(group=2, how=how)
    mel = MEL(record['wave'], record['samples'])
    together = mix.together(mel, mix.partners(mel), record, MEL)
    assert np.isfinite(together).all()


def test_runs_of_before_there_was_a_choice_are_the_published_mixtures():
  saved = json.loads(config_lib.to_json(mixing.PartialMix(group=4)))
  for name in ('sources', 'how', 'snr_db'):
    del saved[name]
  assert config_lib.from_json(json.dumps(saved)) == mixing.PartialMix(
      group=4, sources=2, how='max', snr_db=None)


def test_mixtures_are_spliced_in_in_mixed_columns_alone():
  rng = np.random.default_rng(5)
  own, other = rng.standard_normal((2, 3, 11, 4)).astype(np.float32)
  column = np.array([[0, 2], [1, 3], [2, 4]])
  expected = own.copy()
  for b in range(3):
    for t in range(10):  # frame 10 is beyond the last column of 2 frames
      for f in range(4):
        if t // 2 in column[b]:
          expected[b, t, f] = other[b, t, f]
  mixed = jax.jit(mixing.splice, static_argnums=3)(own, other, column, 2)
  np.testing.assert_array_equal(mixed, expected)
  assert (expected != own).any()
  assert (mixed[:, 10] == own[:, 10]).all()


def test_tokens_are_all_patches_of_the_columns():
  tokens = mixing.tokens(np.array([[0, 2], [1, 3]], np.int32), 3)
  np.testing.assert_array_equal(
      tokens, [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]
  )
  assert tokens.dtype == np.int32
