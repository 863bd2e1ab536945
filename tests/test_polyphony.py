"""Mixtures: what is drawn, how it sounds, and what is refused."""

import pickle
import re

import numpy as np
import pytest

from configs import labelled
from sslam_jax import catalogue
from sslam_jax import clips
from sslam_jax import polyphony
from sslam_jax import soundscapes

_RATE_HZ = 8_000
_BANDS_HZ = {'a': 500, 'b': 1_100, 'c': 1_900, 'd': 2_900, 'e': 3_300}


class Tones:
  """Tones of 0.5 to 1.25 s, whose pitch is their label's."""

  def __init__(self, rate_hz=_RATE_HZ, level=0.01, longest_s=1.25):
    self._rate_hz, self._level = rate_hz, level
    self._lengths_s = np.linspace(0.5, longest_s, 4)

  classes = (*_BANDS_HZ, 'unused')

  def __len__(self):
    return 20

  def labels(self, index):
    return ([*_BANDS_HZ][index % 5],)

  def __getitem__(self, index):
    label, = self.labels(index)
    time_S = np.arange(round(self._lengths_s[index // 5] * self._rate_hz))
    wave_S = np.sin(2 * np.pi * _BANDS_HZ[label] / self._rate_hz * time_S)
    wave_S = (self._level * wave_S).astype(np.float32)
    return clips.Clip(
        id=f'tone-{index}', labels=(label,), rate_hz=self._rate_hz,
        samples=len(wave_S), read=lambda start, count: wave_S[start:][:count],
    )


def mixtures(source=None, **fields):
  fields = {'clips': 40, 'length_s': 2.0, 'rate_hz': _RATE_HZ, **fields}
  return polyphony.Mixtures(source=source or Tones(), **fields)


def levels_db(wave_S):
  """Of each label's pitch, its loudest 50 ms below full scale, in dB."""
  frame_FxS = wave_S[: len(wave_S) // 400 * 400].reshape(-1, 400)
  time_S = np.arange(400) / _RATE_HZ
  found = {}
  for label, pitch_hz in _BANDS_HZ.items():
    tone_S = np.exp(-2j * np.pi * pitch_hz * time_S)
    rms_F = np.abs(frame_FxS @ tone_S) / 400 * 2 / 2**0.5
    found[label] = 20 * np.log10(rms_F.max() + 1e-9)
  return found


def test_labels_are_what_is_heard_and_their_number_goes_round():
  source = mixtures()
  waves = [source[index].read(0, 16_000) for index in range(40)]
  for index, wave_S in enumerate(waves):
    assert len(source.labels(index)) == 1 + index % 4
    heard = {label for label, level in levels_db(wave_S).items() if level > -46}
    assert heard == set(source.labels(index)) == set(source[index].labels)
  every = {label for index in range(40) for label in source.labels(index)}
  assert every == {*_BANDS_HZ}


def test_levels_lie_between_those_asked_for():
  found = [levels_db(source[i].read(0, 16_000))[label]
           for source in [mixtures(gain_db=(-6.0, -2.0))]
           for i in range(40) for label in source.labels(i)]
  # The loudest 50 ms of a clip is not always a whole frame of ours.
  assert -37 < min(found) < -35
  assert -33.5 < max(found) < -31.5


def test_what_would_clip_is_turned_down_as_a_whole():
  loud, usual = (mixtures(gain_db=(gain, gain)) for gain in (40.0, 0.0))
  for index in range(4):
    loud_S, usual_S = (x[index].read(0, 16_000) for x in (loud, usual))
    assert np.abs(loud_S).max() == pytest.approx(0.99, abs=1e-6)
    ratio = 0.99 / np.abs(usual_S).max()
    np.testing.assert_allclose(loud_S, ratio * usual_S, atol=2e-5)


def test_every_part_sounds_together_with_the_longest():
  source, starts = mixtures(clips=200, length_s=5.0), []
  for index in range(200):
    wave_S = source[index].read(0, 40_000)
    frame_FxS = wave_S.reshape(-1, 100)
    active_F = np.flatnonzero(np.abs(frame_FxS).max(1) > 1e-4)
    assert active_F[-1] - active_F[0] + 1 == len(active_F)  # no gap
    starts.append(active_F[0] / 80)
  assert min(starts) < 0.3 < 3.2 < max(starts)  # all over the mixture


def test_half_of_every_part_lies_within_the_longest():
  source = mixtures(Tones(longest_s=4.0), clips=100, length_s=5.0)
  time_S = np.arange(40_000) / _RATE_HZ
  least = 1.0
  for index in range(100):
    wave_S, parts = source[index].read(0, 40_000), source.plan(index)
    spans, lengths = [], []
    for part in parts:
      clip = Tones(longest_s=4.0)[part.index]
      lengths.append(clip.samples)
      # Where a pitch is: the tones are well apart.
      tone_S = wave_S * np.exp(-2j * np.pi * _BANDS_HZ[clip.labels[0]] * time_S)
      level_S = np.abs(np.convolve(tone_S, np.ones(200) / 200, 'same'))
      loud_S = np.flatnonzero(level_S > level_S.max() / 2)
      spans.append((loud_S[0], loud_S[-1] + 1))
      assert loud_S[-1] - loud_S[0] == pytest.approx(clip.samples, abs=120)
    begin, end = spans[np.argmax(lengths)]
    for span in spans:
      inside = min(end, span[1]) - max(begin, span[0])
      least = min(least, inside / (span[1] - span[0]))
  assert 0.46 < least < 0.6


def test_mixtures_are_a_function_of_seed_and_index():
  source, other = mixtures(), mixtures(seed=1)
  again = pickle.loads(pickle.dumps(mixtures()))
  for index in (0, 7, 39):
    wave_S = source[index].read(0, 16_000)
    np.testing.assert_array_equal(again[index].read(0, 16_000), wave_S)
    np.testing.assert_array_equal(source[index].read(50, 70), wave_S[50:120])
  assert source[7].id == again[7].id != other[7].id
  assert [x.plan(7) for x in (source, other)].count(source.plan(7)) == 1


def test_clips_are_resampled_and_cut_to_the_mixture():
  source = mixtures(Tones(rate_hz=16_000, longest_s=9.0), length_s=1.0)
  lengths = set()
  for index in range(20):
    wave_S = source[index].read(0, 16_000)
    lengths.add(len(wave_S))
    heard = {label for label, level in levels_db(wave_S).items() if level > -46}
    assert heard == set(source.labels(index))
  assert lengths == {8_000}


def test_what_is_silent_stays_so():
  wave_S = mixtures(Tones(level=0.0))[3].read(0, 16_000)
  np.testing.assert_array_equal(wave_S, 0)
  # 43 dB below -80 dB: raised by 50 dB, as what is at -80 dB.
  faint_S = mixtures(Tones(level=1e-6), gain_db=(0, 0))[0].read(0, 16_000)
  assert np.abs(faint_S).max() == pytest.approx(1e-6 * 10**2.5, rel=0.01)


def test_labels_and_clips_are_equally_likely():
  source = mixtures(clips=4000, max_sources=1)
  indices = [part.index for i in range(4000) for part in source.plan(i)]
  # Within four deviations of 800 and of 200.
  assert np.abs(np.bincount([x % 5 for x in indices]) - 800).max() < 100
  assert np.abs(np.bincount(indices) - 200).max() < 56


@pytest.mark.parametrize(('fields', 'message'), [
    ({'clips': 0}, 'clips: want at least 1, got 0'),
    ({'length_s': 1e-6}, 'length_s: want a sample at least, got 1e-06'),
    ({'gain_db': (0.0, -1.0)}, 'gain_db: want (lowest, highest), got (0.0, -1'),
    ({'seed': -1}, 'seed: want at least 0, got -1'),
])
def test_impossible_settings_are_refused(fields, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    mixtures(**fields)


def test_too_few_labels_are_told():
  with pytest.raises(ValueError, match='max_sources: want at most the 5 labels '
                     'of the clips, got 6'):
    mixtures(max_sources=6).labels(0)
  with pytest.raises(IndexError, match='index: want 0 to 39, got 40'):
    mixtures()[40]


def test_clips_of_several_labels_are_refused():
  scenes = soundscapes.Soundscapes(clips=8)
  several = next(i for i in range(8) if len(scenes.labels(i)) > 1)
  message = f'clip {several}: want at most one label'
  with pytest.raises(ValueError, match=message):
    mixtures(scenes).plan(0)


def test_a_damaged_part_is_told_by_its_own_id():
  source = Tones()
  source.__class__ = type('Bad', (Tones,), {'__getitem__': damaged})
  with pytest.raises(clips.BadClip, match='tone-[0-9]+: want readable audio'):
    mixtures(source)[2].read(0, 10)


def damaged(source, index):
  raise clips.BadClip(f'tone-{index}', 'noise')


def test_words_make_mixtures():
  made = catalogue.source('folder=a,folder=b,mixtures=30,length=3,seed=5')
  assert isinstance(made, polyphony.Mixtures)
  assert (made.clips, made.length_s, made.seed) == (30, 3.0, 5)
  assert made.source.paths == ('a', 'b')
  for words, message in (
      ('folder=x,length=3', 'length: want it with soundscapes=... or mixtures'),
      ('soundscapes,mixtures=many', "mixtures: want a number, got 'many'"),
      ('folder=x,mixtures=3,length=x', "length: want seconds, got 'x'"),
      ('folder=x,folder=y,shares=1:2,mixtures=3', 'shares: want it without'),
      ('folder=x,weights=labels,mixtures=3', 'weights: want it without'),
  ):
    with pytest.raises(ValueError, match=re.escape(message)):
      catalogue.source(words)


def test_mixtures_to_test_are_others_and_folds_are_of_no_mixtures():
  train, test = labelled.sources([
      ('folder', 'a'), ('mixtures', '9'), ('test_folder', 'b'),
      ('test_mixtures', '9')])
  assert (train.seed, test.seed) == (0, 1)
  with pytest.raises(ValueError, match='folds: want it without mixtures'):
    labelled.sources([('folder', 'a'), ('mixtures', '9'), ('folds', '5')])


def test_mixtures_of_divided_folders_are_of_either_part(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for part in ('train', 'test'):
    (tmp_path / 'a' / part).mkdir(parents=True)
  train, test = labelled.sources([
      ('folder', 'a'), ('mixtures', '9'), ('seed', '4'), ('length', '2')])
  for made, part, seed in ((train, 'train', 4), (test, 'test', 5)):
    assert made.source.paths == (f'a/{part}',)
    assert (made.clips, made.seed, made.length_s) == (9, seed, 2.0)
