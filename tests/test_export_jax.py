"""The exported inference function, as a program with jax alone runs it."""

import json
import sys

import jax
import numpy as np
import pytest

from sslam_jax import audio
from sslam_jax import model
from tests import exports
from tools import export_jax

TOLERANCE = 1e-6  # absolute, of the same operations compiled alone

stage1, classifier = exports.stage1, exports.classifier


def snippet():
  """What the docstring says is all that a program needs."""
  text = export_jax.__doc__
  start = text.index('  import jax, numpy')
  lines = text[start : text.index('`wave` is')].splitlines()
  return '\n'.join(line.removeprefix('  ') for line in lines)


def called(path, wave_BxS, samples_B):
  names = {'wave': wave_BxS, 'samples': samples_B}
  exec(snippet().replace('FILE.npz', str(path)), names)
  return jax.device_get(names['outputs']), json.loads(str(names['settings']))


@pytest.fixture(scope='module')
def file(classifier, tmp_path_factory):
  path = tmp_path_factory.mktemp('jax') / 'x.npz'
  assert export_jax.main([classifier[0].workdir, f'--out={path}']) == 0
  return path


def test_the_function_is_the_model_for_any_number_of_clips(file, classifier):
  config, state = classifier
  samples = audio.LogMel(frames=128).samples
  wave_BxS, samples_B = exports.waves(3, samples)
  samples_B = samples_B.astype(np.int32)
  token_BxNxD, logit_BxC = exports.ours(
      config, state.teacher, wave_BxS, samples_B, 8)
  expected = {'clip': token_BxNxD[:, 0], 'patch': token_BxNxD[:, 1:],
              'scores': jax.nn.softmax(logit_BxC)}
  for rows in (slice(0, 3), slice(1, 2)):
    found, settings = called(file, wave_BxS[rows], samples_B[rows])
    assert settings['outputs'] == sorted(found) == sorted(expected)
    for name, want in expected.items():
      np.testing.assert_allclose(found[name], want[rows], rtol=0,
                                 atol=TOLERANCE, err_msg=name)
  assert settings['samples'] == samples and settings['sampling_rate'] == 16_000
  assert settings['id2label'] == dict(zip('012', exports.CLASSES))


def test_it_is_for_every_platform(file):
  with np.load(file) as arrays:
    function = jax.export.deserialize(bytearray(arrays['function']))
  assert function.platforms == ('cpu', 'cuda', 'tpu')
  # Parameters are not in it.
  assert len(function.serialize()) < 1e6


def test_the_teacher_of_other_lengths(stage1, tmp_path):
  config, state = stage1
  path = tmp_path / 'x.npz'
  export_jax.export(config.workdir, path, weights='teacher', seconds=0.5)
  samples = audio.LogMel(frames=48).samples  # whole patches
  wave_BxS, samples_B = exports.waves(2, samples)
  found, settings = called(path, wave_BxS, samples_B.astype(np.int32))
  assert (settings['samples'], settings['max_frames']) == (samples, 48)
  want, _ = exports.ours(config, {'encoder': state.teacher}, wave_BxS,
                        samples_B.astype(np.int32), 3)
  np.testing.assert_allclose(found['patch'], want[:, 1:], rtol=0,
                             atol=TOLERANCE)
  assert 'scores' not in found


def test_it_computes_in_the_run_s_type(stage1):
  """As inference does; outputs are float32 anyway."""
  learned = export_jax.pretrained.load(stage1[0].workdir)
  learned.config.objective.vit = model.Vit(
      width=32, depth=2, heads=2, dtype='bfloat16')
  params = export_jax.flax.traverse_util.flatten_dict(learned.params, sep='/')
  run = export_jax.function(learned, learned.config.data.mel)
  jaxpr = str(jax.make_jaxpr(run)(
      params, np.zeros((1, 20_720), np.float32), np.ones(1, np.int32)))
  assert 'bf16' in jaxpr


@pytest.mark.parametrize(('words', 'match'), [
    (['--out={tmp}/x.bin'], '--out: want a name that ends in .npz'),
    (['--out={tmp}/old.npz'], '--out: want a new file, got {tmp}/old.npz'),
    (['--out={tmp}/x.npz', '--seconds=0.1'],
     '--seconds: want at least 0.16, a patch, got 0.1'),
    (['--out={tmp}/x.npz', '--seconds=nan'], '--seconds: want at least'),
    (['--out={tmp}/x.npz', '--weights=teacher'], 'weights: want student, as'),
])
def test_wrong_usage_is_one_line(words, match, classifier, tmp_path, capsys):
  (tmp_path / 'old.npz').write_text('stays')
  words = [word.format(tmp=tmp_path) for word in words]
  assert export_jax.main([classifier[0].workdir, *words]) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and error.count('\n') == 1
  assert match.format(tmp=tmp_path) in error
  assert [x.name for x in tmp_path.iterdir()] == ['old.npz']


def test_a_missing_library_is_named(stage1, tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'flatbuffers', None)
  words = [stage1[0].workdir, f'--out={tmp_path}/x.npz']
  assert export_jax.main(words) == 2
  assert 'flatbuffers: want it installed' in capsys.readouterr().err
