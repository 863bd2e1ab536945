"""Tests of tools/parity.py, and by it of the package against official numbers.

`testdata/golden` is a reduced folder of the numbers it reads.
"""

import contextlib
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from sslam_jax import checkpoint
from sslam_jax import pretrained
from sslam_jax import run_folder
from tests import tiny
from tools import parity
from tools.golden import folder as folder_lib
from tools.golden import losses
from tools.golden import masks
from tools.golden import measures
from tools.golden import weights

_GOLDEN = pathlib.Path(__file__).parent / 'testdata' / 'golden'


def _run(folder, *flags):
  """Exit status, standard output and standard error."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    status = parity.main(['--golden', str(folder), *flags])
  return status, out.getvalue(), err.getvalue()


def _copy(folder, *files):
  """A folder with cases.json and some files of the golden one."""
  folder.mkdir()
  for file in ('cases.json', *files):
    shutil.copyfile(_GOLDEN / file, folder / file)
  return folder


def _rewrite(path, **changes):
  """Replaces arrays of an npz; None removes one."""
  with np.load(path) as file:
    arrays = dict(file) | changes
  np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


def _failures(output):
  return [line for line in output.splitlines() if line.endswith('| NO')]


@pytest.fixture(scope='module')
def whole():
  return _run(_GOLDEN)


def test_the_package_agrees_with_the_official_code(whole):
  status, output, _ = whole
  passed, failed = re.fullmatch(
      r'(\d+) passed, (\d+) failed', output.splitlines()[-1]).groups()
  assert _failures(output) == []
  assert (status, failed) == (0, '0')
  assert int(passed) > 800


@pytest.mark.parametrize('quantity', [
    'fbank silence_click/norm_esc50',
    'resample out_44100',
    'features r208/x_strided',
    'stage1_loss loss_over_sample_size',
    'stage1_loss grad/l2 (35 tensors',
    'stage2_loss A/mix_patch_loss/sum',
    'stage2_loss A/target/y_mix_patch_slice',
    'stage2_loss C/log/pred_var',
    'stage2_loss C/grad/l2 (35 tensors',
    'stage2_loss_terms A/mix_patch_loss/sum_x2_only_mixed_columns',
    'stage2_loss_terms eat_cls_loss/grad_l2 (35 tensors',
    'schedules ema_step/after_l2',
    'schedules lr/finetune_esc50/lr',
    'schedules adam/after3/w.weight',
    'schedules adam/intended_wd0_after3/extra_tokens',
    'mask_stats flexible/components_hist',
    'mask_stats det/mask_flexible_8x3',
    'schedules lr/finetune_scaled/0.0207119128',
    'finetune bce/elementwise',
    'finetune ce_train_ls0.1/elementwise',
    'finetune layer_lr_scale_per_block',
    'finetune drop_path_probs',
    'finetune mixup/x_slice',
    'finetune mixup/targets',
    'finetune specaug/width_stats max',
    'finetune_param_lr lr_at_end_of_warmup (153 tensors',
    'finetune_param_lr lr of an update (153 tensors',
    'finetune_param_lr lr * weight_decay_used of an update (153 tensors',
])
def test_quantities_have_a_line(whole, quantity):
  assert f'\n{quantity}' in whole[1]


def test_lines_are_aligned(whole):
  table = [line for line in whole[1].splitlines() if ' | ' in line]
  places = [[m.start() for m in re.finditer(r' \| ', line)] for line in table]
  assert all(place == places[0] for place in places)


def test_it_says_what_was_not_compared(whole):
  assert 'not compared: schedules adam/param_order' in whole[1]
  assert ('not compared: finetune logits and gradient: cases.json names no '
          'classifier') in whole[1]


def test_every_tensor_has_a_line_if_asked():
  rows = [folder_lib.Row('q', part, '', '', error,
                         measures.Tolerance(1.0, 'rel'))
          for part, error in (('a', 0.1), ('b', 0.2), ('c', 2.0))]
  titles = [title for title, _ in parity._lines(rows, verbose=False)]
  assert titles == ['q (2 tensors; worst: b)', 'q c']
  titles = [title for title, _ in parity._lines(rows, verbose=True)]
  assert titles == ['q a', 'q b', 'q c']


def test_a_wrong_number_fails_by_name(tmp_path):
  folder = _copy(tmp_path / 'golden', 'resample.npz')
  with np.load(folder / 'resample.npz') as file:
    out = file['out_8000']
  out[4321] += 3e-5
  _rewrite(folder / 'resample.npz', out_8000=out)
  status, output, _ = _run(folder)
  assert status == 1
  assert len(_failures(output)) == 1
  assert _failures(output)[0].startswith('resample out_8000 ')
  assert output.endswith('1 passed, 1 failed\n')


@pytest.mark.parametrize('out', [np.full(8000, np.nan), np.zeros(7999)])
def test_nan_and_another_shape_fail(tmp_path, out):
  folder = _copy(tmp_path / 'golden', 'resample.npz')
  _rewrite(folder / 'resample.npz', out_8000=out)
  status, output, _ = _run(folder)
  assert status == 1
  assert _failures(output)[0].startswith('resample out_8000 ')


def test_absent_and_unknown_keys_are_named(tmp_path):
  folder = _copy(tmp_path / 'golden', 'resample.npz')
  several = {f'many/{i}': np.zeros(2) for i in range(7)}
  _rewrite(folder / 'resample.npz', out_8000=None, other=np.zeros(2),
           **several)
  status, output, _ = _run(folder)
  assert status == 0
  assert 'not compared: resample out_8000: not in the file' in output
  assert 'not compared: resample other, many/* (7 keys)' in output


def test_only_the_named_files_are_compared(tmp_path):
  folder = _copy(tmp_path / 'golden', 'resample.npz', 'mask_stats.npz')
  _, output, _ = _run(folder, '--only', 'mask_stats')
  assert 'mask_stats det/mask' in output
  assert 'resample' not in output


def _truncated(folder):
  content = (_GOLDEN / 'resample.npz').read_bytes()
  (folder / 'resample.npz').write_bytes(content[: len(content) // 2])


def _corrupt(folder):
  content = (_GOLDEN / 'resample.npz').read_bytes()
  place = content.index(b'out_8000') + 2000
  (folder / 'resample.npz').write_bytes(
      content[:place] + bytes(50) + content[place + 50 :])


@pytest.mark.parametrize(('files', 'spoil', 'message'), [
    ([], lambda x: shutil.rmtree(x), 'no such folder'),
    ([], lambda x: (x / 'cases.json').unlink(), 'cases.json: no such file'),
    ([], lambda x: (x / 'cases.json').write_text('{'), 'cases.json: Expecting'),
    ([], lambda x: None, 'none of fbank, resample, '),
    ([], _truncated, 'resample.npz: not a readable npz'),
    ([], _corrupt, 'resample.npz: key out_8000: not a readable npz'),
    (['stage1_loss.npz'], lambda x: (x / 'cases.json').write_text('{}'),
     'cases.json: stage1_loss/student is missing'),
    (['stage1_loss.npz'], lambda x: None,
     'names_pretrain_student_depth2.json: no such file'),
    (['stage2_loss_terms.npz'], lambda x: None,
     'nothing to compare; stage2_loss_terms *: needs mask and idx of '
     'stage2_loss.npz'),
])
def test_a_bad_folder_is_told_in_one_line(tmp_path, files, spoil, message):
  folder = _copy(tmp_path / 'golden', *files)
  spoil(folder)
  status, output, error = _run(folder)
  assert (status, output) == (2, '')
  assert error.count('error') == 1
  assert error.splitlines()[-1].startswith(f'parity: error: {folder}')
  assert message in error


def test_a_missing_key_is_told_by_name(tmp_path):
  folder = _copy(
      tmp_path / 'golden', 'stage1_loss.npz',
      'names_pretrain_student_depth2.json',
      'names_pretrain_teacher_ema_depth2.json')
  _rewrite(folder / 'stage1_loss.npz', mask=None)
  status, _, error = _run(folder)
  assert status == 2
  assert 'stage1_loss.npz: key mask is missing' in error


def test_sets_are_all_in_the_file_unless_named(tmp_path):
  folder = _copy(tmp_path / 'golden', 'stage2_loss.npz')
  assert losses._sets(folder_lib.Golden(folder)) == ['C', 'A']
  (folder / 'cases.json').write_text(json.dumps({'stage2_loss': {}}))
  assert losses._sets(folder_lib.Golden(folder)) == ['A', 'C']


def test_it_runs_from_any_folder(tmp_path):
  run = subprocess.run(
      [sys.executable, parity.__file__, '--golden', 'nowhere'],
      cwd=tmp_path, capture_output=True, text=True, check=False)
  assert run.returncode == 2
  assert run.stderr == 'parity: error: nowhere: no such folder\n'


@pytest.mark.parametrize('flags', [('--only', 'nothing'), ('--device', 'abc')])
def test_unknown_choices_are_refused(flags):
  with pytest.raises(SystemExit, match='2'):
    _run(_GOLDEN, *flags)


@pytest.mark.parametrize(('unit', 'ours', 'error'), [
    ('abs', [1.0, 2.0], 2.0),
    ('rel', [1.0, 2.0], 0.5),
    ('mean abs', [1.0, 2.0], 1.5),
    ('of norm', [2.0, 8.0], 4 / 20**0.5),
])
def test_errors_have_the_stated_unit(unit, ours, error):
  measured = measures.Tolerance(0.0, unit).measure(
      np.array(ours), np.array([2.0, 4.0]))
  np.testing.assert_allclose(measured[2], error)


def test_errors_are_in_units_of_the_scale():
  tolerance = measures.Tolerance(5.0, 'sigma').by(np.array([1.0, 0.1, 0.0]))
  ours, official = np.array([2.0, 1.0, 3.0]), np.array([1.0, 0.8, 3.0])
  np.testing.assert_allclose(tolerance.measure(ours, official)[2], 2.0)


@pytest.mark.parametrize(('rule', 'expected'), [
    ('float32(normal * 0.3)', lambda x: (x * 0.3).astype('f')),
    ('float32(normal) * float32(0.3)',
     lambda x: x.astype('f') * np.float32(0.3)),
])
def test_spectrograms_follow_their_rule(tmp_path, rule, expected):
  folder = _copy(tmp_path / 'golden')
  source = {'seed': 9, 'shape': [2, 1, 32, 16], 'rule': rule}
  (folder / 'cases.json').write_text(json.dumps({'x': {'source': source}}))
  drawn = weights.source(folder_lib.Golden(folder), 'x')
  normal = np.random.Generator(np.random.PCG64(9)).standard_normal((2, 32, 16))
  np.testing.assert_array_equal(drawn, expected(normal), strict=True)


def test_an_unknown_rule_is_refused(tmp_path):
  folder = _copy(tmp_path / 'golden')
  source = {'seed': 9, 'shape': [2, 1, 32, 16], 'rule': 'uniform'}
  (folder / 'cases.json').write_text(json.dumps({'x': {'source': source}}))
  with pytest.raises(folder_lib.BadFolderError, match='got uniform'):
    weights.source(folder_lib.Golden(folder), 'x')


def test_islands_touch_at_edges_within_a_mask():
  kept = np.zeros((3, 3, 4), bool)
  kept[0, 0, :2] = kept[0, 1, 2] = kept[0, 2, 2] = True  # two, at a corner
  kept[1] = True  # one; does not join its neighbours
  count, largest = masks.islands(kept)
  np.testing.assert_array_equal(count, [2, 1, 0])
  np.testing.assert_array_equal(largest, [2, 12, 0])


def test_a_checkpoint_that_is_none_is_told_in_one_line(tmp_path):
  status, output, error = _run(_GOLDEN, '--checkpoint', str(tmp_path))
  assert (status, output) == (2, '')
  assert error == (f'parity: error: {tmp_path}: want a run folder, got a '
                   f'folder without config.json\n')


def test_a_checkpoint_that_no_case_can_use_is_an_error(tmp_path):
  """Others may pass, but say nothing of it."""
  config = tiny.stage1(str(tmp_path / 'run'))
  run_folder.write_config(tmp_path / 'run', config)
  params = jax.jit(lambda: pretrained.initial(config))()
  checkpoint.save_weights(config.workdir, 1, jax.device_get(params), None)
  golden = _copy(tmp_path / 'golden', 'fbank.npz')
  status, output, error = _run(golden, '--checkpoint', config.workdir)
  assert (status, output) == (2, '')
  assert (f'error: --checkpoint {config.workdir}: want the weights of a case, '
          f'got tensors of other names or shapes') in error
