"""tools/compare_exports.py: how far exported models are from the JAX model."""

import re

import numpy as np
import pytest
import soundfile

from tests import exports
from tools import compare_exports

pytest.importorskip('transformers')
classifier, stage1 = exports.classifier, exports.stage1


@pytest.fixture(scope='module')
def sounds(tmp_path_factory):
  """Two files of other rates, 1.5 s together."""
  folder = tmp_path_factory.mktemp('sounds')
  rng = np.random.default_rng(0)
  for name, rate_hz, seconds in (('a', 16_000, 1), ('b', 8_000, 0.5)):
    wave = 0.1 * rng.standard_normal(int(rate_hz * seconds))
    soundfile.write(folder / f'{name}.wav', wave, rate_hz)
  return str(folder)


@pytest.mark.parametrize('kind', ['classifier', 'stage1'])
def test_each_program_agrees(kind, request, sounds, capsys):
  config, _ = request.getfixturevalue(kind)
  status = compare_exports.main([config.workdir, sounds, '--seconds=0.3,1.5'])
  lines = capsys.readouterr().out.splitlines()
  table = [line for line in lines if line.startswith('|')]
  columns = 'clip | patch' + ' | logits' * (kind == 'classifier')
  assert table[0] == f'| seconds | program | {columns} |'
  assert [re.match(r'\| (\S+) \| ([^|]*) \|', line).groups()
          for line in table[2:]] == [
      (length, program) for length in ('0.3', '1.5')
      for program in ('PyTorch', 'transformers', 'ONNX Runtime')]
  assert status == 0 and lines[-1].endswith('tolerance 2e-05')


@pytest.mark.parametrize(('name', 'value'), [
    ('clip', 1e-3), ('patch', np.nan), ('logits', 1e-3)])
def test_a_difference_is_told(classifier, sounds, monkeypatch, capsys, name,
                              value):
  def off(learned, folder):
    del folder
    program = compare_exports._by_jax(learned)
    yield 'other', lambda wave: {
        key: x + value * (key == name) for key, x in program(wave).items()}

  monkeypatch.setattr(compare_exports, '_exported', off)
  config, _ = classifier
  args = [config.workdir, sounds, '--seconds=0.5']
  assert compare_exports.main(args) == 1
  assert f'largest: {"inf" if np.isnan(value) else "1.0e-03"}' in (
      capsys.readouterr().out)


@pytest.mark.parametrize(('words', 'message'), [
    (['--seconds=1.6'], 'want 1.6 s of audio, got 1.50 s'),
    (['missing.wav'], 'missing.wav: want a file or folder, got nothing'),
])
def test_what_cannot_be_compared_is_told(classifier, sounds, capsys, words,
                                         message):
  assert compare_exports.main([classifier[0].workdir, sounds, *words]) == 2
  assert message in capsys.readouterr().err
