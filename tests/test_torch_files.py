"""Reading checkpoints of PyTorch: all of them, safely, or one clear error."""

import argparse
import collections
import enum
import os
import pathlib
import pickle
import typing
import zipfile

import numpy as np
import pytest
from safetensors import torch as safetensors_torch
import torch

from sslam_jax import torch_files
from sslam_jax import torch_io
from tests import official

TOKENS = f'{official.IMAGE}extra_tokens'
SETTINGS = {'model': {'num_heads': 2, 'modalities': {'image': {'a': [1, 2]}}},
            'task': {'target_length': 128, 'missing': '???'}}


class Mode(enum.Enum):
  """What the official classifier has as prediction_mode."""

  MEAN = 1
  CLASS = 2


def student(dtype=torch.float32):
  rng = np.random.default_rng(0)
  x = torch.as_tensor(rng.standard_normal((1, 1, 8)), dtype=dtype)
  return {TOKENS: x, 'blocks.0.norm1.bias': torch.ones(3, dtype=dtype)}


def saved(path, legacy=False, **changes):
  tree = official.fairseq(student(), {TOKENS: torch.zeros(1, 1, 8)}, **changes)
  return official.save(tree, path,
                       _use_new_zipfile_serialization=not legacy)


@pytest.mark.parametrize('legacy', [False, True])
def test_a_fairseq_checkpoint_is_read_without_its_libraries(tmp_path, legacy):
  with official.libraries() as new:
    config = official.omegaconf(new, SETTINGS | {'mode': Mode.CLASS})
    config._metadata.ref_type = typing.List[str]  # noqa: UP006
    config._metadata.resolver_cache = collections.defaultdict(dict, a={})
    path = saved(
        tmp_path / 'x.pt', legacy, cfg=config,
        task_state=argparse.Namespace(best=np.float64(1)),
        other=[new('user_dir.tasks.Settings', x=1), pathlib.Path('/a/b'), {1}],
    )
  read = torch_files.read(path)
  assert (read.layout, read.updates) == ('fairseq', 402_620)
  assert read.fairseq == SETTINGS | {'mode': 2}
  np.testing.assert_array_equal(read.student[TOKENS], student()[TOKENS])
  assert {*read.student} == {*student()}
  np.testing.assert_array_equal(read.teacher[TOKENS], np.zeros((1, 1, 8)))


@pytest.mark.parametrize(('change', 'settings'), [
    ({'cfg': None, 'args': argparse.Namespace(task={'a': 1}, b=None)},
     {'task': {'a': 1}, 'b': None}),
    ({'cfg': SETTINGS}, SETTINGS),
    ({'cfg': None}, {}),
])
def test_settings_may_be_plain_or_older_or_none(tmp_path, change, settings):
  read = torch_files.read(saved(tmp_path / 'x.pt', **change))
  assert read.fairseq == settings


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('kind', ['pt', 'safetensors'])
def test_half_precision_becomes_float32(tmp_path, dtype, kind):
  path, tensors = tmp_path / f'x.{kind}', student(dtype)
  save = torch.save if kind == 'pt' else safetensors_torch.save_file
  save(tensors, path)
  read = torch_files.read(path)
  assert read.layout == 'state_dict'
  assert read.teacher is None
  for name, tensor in tensors.items():
    assert read.student[name].dtype == np.float32
    np.testing.assert_array_equal(read.student[name], tensor.float())


@pytest.mark.parametrize('kind', ['pt', 'safetensors'])
@pytest.mark.parametrize('dtype', [torch.float64, torch.int64])
def test_other_types_are_refused(tmp_path, kind, dtype):
  path = tmp_path / f'x.{kind}'
  save = torch.save if kind == 'pt' else safetensors_torch.save_file
  save(student(dtype), path)
  want = f'want float32, float16, bfloat16, got {dtype}'.replace('torch.', '')
  with pytest.raises(ValueError, match=f'x.{kind}: .*{want}'):
    torch_files.read(path)


def test_a_folder_has_weights_and_settings(tmp_path):
  tensors = torch_io.to_huggingface(student())
  safetensors_torch.save_file(tensors, tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text('{"num_heads": 2, "a": 1}')
  (tmp_path / 'preprocessor_config.json').write_text('{"b": 2, "a": 3}')
  tensors['model.local_encoder.proj.bias'] = torch.ones(8)
  torch.save(tensors, tmp_path / 'pytorch_model.bin')
  (tmp_path / 'model.safetensors').unlink()
  read = torch_files.read(tmp_path)
  assert read.layout == 'huggingface'
  assert read.huggingface == {'num_heads': 2, 'a': 1, 'b': 2}
  assert TOKENS in read.student
  # The file alone has the settings beside it.
  beside = torch_files.read(tmp_path / 'pytorch_model.bin')
  assert beside.huggingface == {'num_heads': 2, 'a': 1}


def test_safetensors_may_carry_their_settings(tmp_path):
  path = tmp_path / 'x.safetensors'
  for text, settings in (('{"a": 1}', {'a': 1}), ('[1]', {})):
    safetensors_torch.save_file(student(), path, metadata={'config': text})
    assert torch_files.read(path).huggingface == settings
  safetensors_torch.save_file(student(), path, metadata={'config': '{'})
  with pytest.raises(ValueError, match='metadata: config: want JSON'):
    torch_files.read(path)


class _Calls:
  """An object whose pickle calls a function."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize(('function', 'name'), [
    (os.system, 'posix.system'), (eval, 'builtins.eval'),
    (getattr, 'builtins.getattr'), (torch.hub.load, 'torch.hub.load'),
    (pickle.loads, 'pickle.loads'),
])
def test_code_is_named_and_not_run(tmp_path, legacy, function, name):
  proof = tmp_path / 'proof'
  code = _Calls(function, f'touch {proof}')
  path = saved(tmp_path / 'x.pt', legacy, cfg={'model': code})
  with pytest.raises(ValueError, match=f'x.pt: .*pickled code.* {name},'):
    torch_files.read(path)
  assert not proof.exists()


def test_what_a_foreign_class_would_do_is_not_done(tmp_path):
  """Names of libraries are no more than names, installed or not."""
  path = saved(tmp_path / 'x.pt', other=_Calls(
      np.savetxt, str(tmp_path / 'proof'), [1]))
  assert torch_files.read(path).updates == 402_620
  assert not (tmp_path / 'proof').exists()


def _damaged(content, kind):
  inside = content.index(b'num_updates')
  return {
      'cut': content[: len(content) // 2],
      'flipped': content[:inside] + b'X' + content[inside + 1 :],
      'empty': b'',
      'page': b'<!DOCTYPE html><html></html>',
      'pickle': pickle.dumps({'model': {}}, 4),
      'zeros': bytes(1000),
  }[kind]


@pytest.mark.parametrize(('kind', 'legacy', 'got'), [
    ('cut', False, 'one that is cut short'), ('cut', True, 'cannot be read'),
    ('flipped', False, 'damaged x/data.pkl'), ('empty', False, 'another kind'),
    ('page', False, 'another kind of file'), ('zeros', False, 'another kind'),
    ('pickle', False, 'cannot be read'),
])
def test_a_damaged_file_is_told_in_one_line(tmp_path, kind, legacy, got):
  path = saved(tmp_path / 'x.pt', legacy)
  path.write_bytes(_damaged(path.read_bytes(), kind))
  with pytest.raises(ValueError) as error:
    torch_files.read(path)
  told = str(error.value)
  assert told.startswith(f'{path}: want a whole checkpoint of PyTorch, got ')
  assert got in told
  assert '\n' not in told


def test_another_protocol_is_told_without_advice_to_run_it(tmp_path):
  path = tmp_path / 'x.pt'
  torch.save({'model': {}}, path, pickle_protocol=4)
  with pytest.raises(ValueError) as error:
    torch_files.read(path)
  assert str(error.value) == (
      f'{path}: want a whole checkpoint of PyTorch, got one that cannot be '
      f'read: Unsupported operand 149')


def test_damaged_safetensors_are_told(tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors_torch.save_file(student(), path)
  path.write_bytes(path.read_bytes()[:-3])
  with pytest.raises(ValueError, match='want a whole safetensors file'):
    torch_files.read(path)


@pytest.mark.parametrize(('tree', 'message'), [
    ([1, 2], 'with tensors by name, got list'),
    ({'epoch': 3}, "tensors by name, got 'epoch': int"),
    ({'model': {'conv1.weight': torch.ones(3), 'fc.bias': torch.ones(3)}},
     r'EAT or SSLAM, .*got 2 others \(conv1.weight, fc.bias\)'),
    ({f'layer{i}': torch.ones(3) for i in range(60)},
     r'60 others \(.*layer7, \.\.\.\)'),
    ({'model': {TOKENS: torch.ones(3), '_ema': 3}}, '_ema: want a dict'),
    ({'model': {TOKENS: torch.ones(3), 3: torch.ones(3)}}, 'got 3: Tensor'),
    ({'model': {TOKENS: torch.ones(3).to_sparse()}}, 'got sparse_coo'),
])
def test_other_contents_are_refused(tmp_path, tree, message):
  path = official.save(tree, tmp_path / 'x.pt')
  with pytest.raises(ValueError, match=message):
    torch_files.read(path)


def test_a_zip_of_something_else_is_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / 'x.pt', 'w') as archive:
    archive.writestr('a.txt', 'a')
  with pytest.raises(ValueError, match='without data.pkl'):
    torch_files.read(tmp_path / 'x.pt')


def test_endless_settings_end(tmp_path):
  twice = []
  for _ in range(50):
    twice = [twice, twice]  # 2**50 lists, if each were copied
  path = saved(tmp_path / 'x.pt', cfg={'model': {'twice': twice}})
  assert torch_files.read(path).fairseq['model'].keys() == {'twice'}


@pytest.mark.parametrize(('files', 'message'), [
    ({}, 'with model.safetensors or pytorch_model.bin, got neither'),
    ({'model.safetensors.index.json': '{}'}, 'index.json of one in parts'),
    ({'pytorch_model.bin': ''}, 'config.json: want it'),
    ({'pytorch_model.bin': '', 'config.json': '{'}, 'config.json: want JSON'),
    ({'pytorch_model.bin': '', 'config.json': '[]'}, 'an object, got list'),
])
def test_a_folder_that_lacks_something_is_told(tmp_path, files, message):
  for name, text in files.items():
    (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=message):
    torch_files.read(tmp_path)


def test_nothing_is_told(tmp_path):
  with pytest.raises(ValueError, match='got nothing: it does not exist'):
    torch_files.read(tmp_path / 'x.pt')


def test_an_absent_library_is_named(tmp_path, monkeypatch):
  path = saved(tmp_path / 'x.pt')
  monkeypatch.setitem(__import__('sys').modules, 'torch', None)
  with pytest.raises(ValueError, match='torch: want it installed: pip install '
                     '-r requirements-torch.txt'):
    torch_files.read(path)
