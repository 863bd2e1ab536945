"""What the settings of a checkpoint say, in each form they have."""

import math
import pathlib

import pytest

from sslam_jax import audio
from sslam_jax import model
from sslam_jax import torch_files
from sslam_jax import torch_settings

NETWORK = {'num_heads': 16, 'embed_dim': 1024, 'depth': 24, 'mlp_ratio': 4.0,
           'modalities': {'image': {'patch_size': 16}}}


def settings(**changes):
  return torch_settings.of(torch_files.Checkpoint(
      path=pathlib.Path('x'), layout='fairseq', student={}, **changes))


def test_nothing_is_said_by_no_settings():
  assert settings(fairseq={}) == torch_settings.Settings()
  assert settings(fairseq={'common': {'seed': 1}}) == torch_settings.Settings()


def test_pre_training_says_the_sizes():
  said = settings(fairseq={'model': NETWORK, 'task': {'target_length': 512}})
  assert (said.heads, said.width, said.depth) == (16, 1024, 24)
  assert (said.mlp_ratio, said.patch, said.frames) == (4, 16, 512)
  said.check(model.large())
  with pytest.raises(ValueError, match='width: want 1024, as the settings say, '
                     'got 768 in the tensors'):
    said.check(model.base())


@pytest.mark.parametrize(('flag', 'norm', 'kind', 'divisor'), [
    ('esc50_eval', 'esc50', 'ce', 'positives'),
    ('spcv2_eval', 'speech_commands', 'bce', 'clips'),
    ('AS2M_finetune', 'audioset', 'bce', 'positives'),
])
@pytest.mark.parametrize('part', ['model', 'task'])
def test_fine_tuning_says_data_and_loss(flag, norm, kind, divisor, part):
  tree = {'model': {'pretrained_model_args': {'model': NETWORK}}, 'task': {}}
  tree[part] = tree[part] | {flag: True, 'target_length': 128}
  said = settings(fairseq=tree)
  assert (said.mean, said.std) == audio.NORMALISATION[norm]
  assert (said.loss_kind, said.bce_divisor) == (kind, divisor)
  assert (said.heads, said.frames) == (16, 128)


def flags(esc50=False, spcv2=False):
  return {'esc50_eval': esc50, 'spcv2_eval': spcv2}


@pytest.mark.parametrize(('task', 'model', 'norm', 'loss'), [
    (flags(spcv2=True), flags(esc50=True), 'speech_commands',
     ('ce', 'positives')),
    (flags(), flags(esc50=True), 'audioset', ('ce', 'positives')),
    (flags(esc50=True), flags(), 'esc50', ('bce', 'positives')),
    (flags(True, True), flags(True, True), 'speech_commands',
     ('bce', 'clips')),
])
def test_the_task_s_flags_are_of_the_data_and_the_model_s_of_the_loss(
    task, model, norm, loss
):
  said = settings(fairseq={'task': task, 'model': model})
  assert (said.mean, said.std) == audio.NORMALISATION[norm]
  assert (said.loss_kind, said.bce_divisor) == loss


@pytest.mark.parametrize(('mode', 'pooling'), [
    ('CLS_TOKEN', 'class'), ('PredictionMode.MEAN_POOLING', 'mean'),
    (2, 'class'), ('LIN_SOFTMAX', 'linear_softmax'), (1, 'mean'), (None, None),
    ('X', None),
])
def test_pooling_has_a_name_or_a_number(mode, pooling):
  said = settings(fairseq={'model': {'prediction_mode': mode}})
  assert said.pooling == pooling


def test_what_stands_elsewhere_is_not_known():
  tree = {'model': {'num_heads': '${x}', 'depth': True, 'embed_dim': 0.5,
                    'modalities': None}, 'task': '${y}'}
  said = settings(fairseq=tree)
  assert (said.heads, said.depth, said.width) == (None, None, None)


def test_published_hugging_face_models_have_other_words():
  said = settings(huggingface={
      'model_type': 'eat', 'embed_dim': 768, 'depth': 12, 'num_heads': 12,
      'mel_bins': 128, 'mlp_ratio': 4.0, 'num_classes': 527,
      'img_size': [512, 128]})
  said.check(model.base())
  assert (said.frames, said.mean, said.loss_kind) == (512, None, None)
  assert (said.heads, said.mel_bins, said.labels) == (12, 128, None)


@pytest.mark.parametrize(('change', 'message'), [
    ({'num_attention_heads': 'x'}, "want a positive whole number, got 'x'"),
    ({'hidden_size': 0}, 'hidden_size: want a positive whole number, got 0'),
    ({'max_frames': math.inf}, 'max_frames: want a positive .*got inf'),
    ({'mel_std': math.nan}, 'mel_std: want a number, got nan'),
    ({'mel_mean': True}, 'mel_mean: want a number, got True'),
    ({'pooling': 'cls'}, 'want one of mean, class, linear_softmax, got cls'),
    ({'problem_type': 'regression'}, 'problem_type: want one of .*regression'),
    ({'bce_divisor': 'x'}, 'one of positives, clips, elements, got x'),
    ({'img_size': [1.5, 128]}, 'img_size: want a positive whole .*got 1.5'),
    ({'img_size': 1024}, 'img_size: want list, got 1024'),
    ({'id2label': {'0': 'a', '2': 'b'}}, 'the numbers 0 to 1, got 0, 2'),
    ({'id2label': ['a']}, r"id2label: want dict, got \['a'\]"),
])
def test_a_wrong_value_is_told(change, message):
  with pytest.raises(ValueError, match=message):
    settings(huggingface={'model_type': 'sslam'} | change)
