"""The card of an exported folder: what it says to type works."""

import re

import jax
import numpy as np
import pytest

from tests import exports
from tools import export_torch

transformers = pytest.importorskip('transformers')
TOLERANCE = 2e-5


@pytest.mark.parametrize('loss_kind', ['ce', 'bce'])
def test_what_the_card_of_a_classifier_says_gives_its_scores(loss_kind,
                                                             tmp_path):
  config, state = exports.saved_classifier(tmp_path / 'run', loss_kind)
  folder = tmp_path / 'folder'
  assert export_torch.main([config.workdir, '--format=huggingface',
                            f'--out={folder}']) == 0
  card = (folder / 'README.md').read_text()
  code, = re.findall('```python\n(.*?)```', card, re.DOTALL)
  wave_BxS, samples_B = exports.waves(1, 20_480)  # as long as in training
  names = {'wave': wave_BxS[0]}
  exec(code.replace('FOLDER', str(folder)), names)
  found = {part['label']: part['score'] for part in names['scores']}
  _, logit_BxC = exports.ours(config, state.teacher, wave_BxS, samples_B, 8)
  score = jax.nn.sigmoid if loss_kind == 'bce' else jax.nn.softmax
  np.testing.assert_allclose([found[name] for name in exports.CLASSES],
                             score(logit_BxC)[0], rtol=0, atol=TOLERANCE)
