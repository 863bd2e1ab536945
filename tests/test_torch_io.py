"""Official names and layouts of tensors, in both directions."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sslam_jax import model
from sslam_jax import torch_io

TOLERANCE = 1e-5  # absolute, of sums of tens of products
VIT = model.Vit(width=32, depth=2, heads=2, dtype='float32')
DECODER = model.Decoder(depth=2, groups=4)
FRAMES, MEL_BINS = 64, 32
IMAGE = 'modality_encoders.IMAGE.'
POSITIONS = f'{IMAGE}fixed_positional_encoder.positions'


def names(depth=2, layers=2):
  """Official names and shapes, width 32."""
  shapes = {
      f'{IMAGE}extra_tokens': (1, 1, 32),
      f'{IMAGE}local_encoder.proj.weight': (32, 1, 16, 16),
      f'{IMAGE}local_encoder.proj.bias': (32,),
      f'{IMAGE}context_encoder.norm.weight': (32,),
      f'{IMAGE}context_encoder.norm.bias': (32,),
  }
  for i in range(depth):
    shapes |= {
        f'blocks.{i}.norm1.weight': (32,), f'blocks.{i}.norm1.bias': (32,),
        f'blocks.{i}.norm2.weight': (32,), f'blocks.{i}.norm2.bias': (32,),
        f'blocks.{i}.attn.qkv.weight': (96, 32),
        f'blocks.{i}.attn.qkv.bias': (96,),
        f'blocks.{i}.attn.proj.weight': (32, 32),
        f'blocks.{i}.attn.proj.bias': (32,),
        f'blocks.{i}.mlp.fc1.weight': (128, 32),
        f'blocks.{i}.mlp.fc1.bias': (128,),
        f'blocks.{i}.mlp.fc2.weight': (32, 128),
        f'blocks.{i}.mlp.fc2.bias': (32,),
    }
  for i in range(layers):
    shapes[f'{IMAGE}decoder.blocks.{i}.0.weight'] = (32, 8, 3, 3)
    shapes[f'{IMAGE}decoder.blocks.{i}.0.bias'] = (32,)
  if layers:
    shapes[f'{IMAGE}decoder.proj.weight'] = (32, 32)
    shapes[f'{IMAGE}decoder.proj.bias'] = (32,)
  return shapes


def official(depth=2, layers=2):
  """Tensors of which no two have the same values."""
  rng = np.random.default_rng(0)
  return {name: rng.standard_normal(shape).astype(np.float32)
          for name, shape in names(depth, layers).items()}


def ours():
  """Shapes of the parameters of our encoder and decoder."""
  fill = jnp.zeros((1, 8, 32))
  key, keep = jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
  mel = jnp.zeros((1, FRAMES, MEL_BINS))
  encoder = jax.eval_shape(model.Encoder(VIT).init, key, mel)
  decoder = jax.eval_shape(
      lambda key: model.ConvDecoder(DECODER, 'float32').init(
          key, fill[:, :1], keep, fill, (4, 2)
      ), key,
  )
  return {'encoder': encoder['params'], 'decoder': decoder['params']}


def test_official_tensors_become_our_model_s_parameters():
  params, shapes = torch_io.from_torch(official()), ours()
  assert jax.tree.structure(params) == jax.tree.structure(shapes)
  jax.tree.map(lambda p, s: np.testing.assert_equal(p.shape, s.shape),
               params, shapes)


@pytest.mark.parametrize(('depth', 'layers'), [(2, 2), (1, 1), (12, 0)])
def test_to_torch_after_from_torch_is_the_identity(depth, layers):
  tensors = official(depth, layers)
  again = torch_io.to_torch(torch_io.from_torch(tensors))
  assert sorted(again) == sorted(tensors)
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(again[name], tensor, err_msg=name)
    assert again[name].flags.c_contiguous


def test_from_torch_after_to_torch_is_the_identity():
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda s: rng.standard_normal(s.shape), ours())
  tensors = torch_io.to_torch(params)
  assert {k: v.shape for k, v in tensors.items()} == names()
  again = torch_io.from_torch(tensors)
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_every_value_is_used_once():
  tensors = official()
  loaded = jax.tree.leaves(torch_io.from_torch(tensors))
  values = np.concatenate([leaf.ravel() for leaf in loaded])
  wanted = np.concatenate([tensor.ravel() for tensor in tensors.values()])
  np.testing.assert_array_equal(np.sort(values), np.sort(wanted))


def test_the_table_of_positions_is_passed_over():
  tensors = official()
  table = model.positions((768, 2), 32)[None]
  params = torch_io.from_torch({**tensors, POSITIONS: table})
  jax.tree.map(np.testing.assert_array_equal, params,
               torch_io.from_torch(tensors))


def test_a_teacher_has_no_decoder():
  assert [*torch_io.from_torch(official(layers=0))] == ['encoder']


@pytest.mark.parametrize('name', [
    'head.weight', 'blocks.0.norm3.weight', 'blocks.0.norm1.weight.more',
    f'{IMAGE}decoder.blocks.0.1.weight', 'blocksX0.norm1.weight',
    'model.blocks.0.norm1.weight',  # then the others should begin so too
])
def test_unknown_names_are_refused(name):
  tensors = {**official(), name: np.zeros(32)}
  unknown = 'blocks.0' if name.startswith('model.') else name
  with pytest.raises(ValueError, match=f'unknown names .*{unknown}'):
    torch_io.from_torch(tensors)


@pytest.mark.parametrize('name', [
    f'{IMAGE}extra_tokens', f'{IMAGE}context_encoder.norm.bias',
    f'{IMAGE}local_encoder.proj.weight', 'blocks.0.norm1.weight',
    f'{IMAGE}decoder.blocks.0.0.weight',
    'blocks.1.attn.qkv.bias', 'blocks.1.mlp.fc2.weight',
    f'{IMAGE}decoder.blocks.1.0.bias', f'{IMAGE}decoder.proj.weight',
    f'{IMAGE}decoder.proj.bias',
])
def test_missing_names_are_refused(name):
  tensors = official()
  del tensors[name]
  with pytest.raises(ValueError, match='missing'):
    torch_io.from_torch(tensors)


def test_a_kind_that_is_missing_in_all_layers_is_refused():
  tensors = {name: tensor for name, tensor in official().items()
             if 'norm1.weight' not in name}
  with pytest.raises(ValueError, match=r'missing names .*norm1\.weight'):
    torch_io.from_torch(tensors)


def test_parameters_without_an_official_name_are_refused():
  params = torch_io.from_torch(official())
  params['encoder']['scale'] = np.ones(3)
  with pytest.raises(ValueError, match='encoder/scale'):
    torch_io.to_torch(params)


def fine_tuned(has_norm=True, classes=5):
  """A classifier's tensors, of which no two have the same values."""
  rng = np.random.default_rng(2)
  head = {'head.weight': (classes, 32), 'head.bias': (classes,)}
  if has_norm:
    head |= {'fc_norm.weight': (32,), 'fc_norm.bias': (32,)}
  encoder = official(layers=0)
  return {f'model.{name}': tensor for name, tensor in encoder.items()} | {
      name: rng.standard_normal(shape).astype(np.float32)
      for name, shape in head.items()}


@pytest.mark.parametrize('has_norm', [True, False])
def test_a_classifier_is_its_encoder_and_its_head(has_norm):
  tensors = fine_tuned(has_norm)
  params = torch_io.from_torch(tensors)
  jax.tree.map(np.testing.assert_array_equal, params['encoder'],
               torch_io.from_torch(official(layers=0))['encoder'])
  head = params['head']
  np.testing.assert_array_equal(head['out']['kernel'],
                                tensors['head.weight'].T)
  np.testing.assert_array_equal(head['out']['bias'], tensors['head.bias'])
  if has_norm:
    for ours, theirs in (('scale', 'weight'), ('bias', 'bias')):
      np.testing.assert_array_equal(head['norm'][ours],
                                    tensors[f'fc_norm.{theirs}'])
  config = model.Head(norm=has_norm)
  shapes = jax.eval_shape(
      model.Classifier(config, 5).init, jax.random.key(0),
      model.Encoded(jnp.zeros((1, 32)), jnp.zeros((1, 8, 32)), None),
  )['params']
  assert jax.tree.map(np.shape, head) == jax.tree.map(np.shape, shapes)
  again = torch_io.to_torch(params)
  assert sorted(again) == sorted(tensors)
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(again[name], tensor, err_msg=name)


def test_the_table_of_positions_of_a_classifier_is_passed_over():
  positions = f'model.{POSITIONS}'
  tensors = {**fine_tuned(), positions: model.positions((768, 2), 32)[None]}
  assert positions not in torch_io.to_torch(torch_io.from_torch(tensors))


@pytest.mark.parametrize('name', [
    'head.weight', 'head.bias', 'fc_norm.weight',
    'model.blocks.1.attn.qkv.bias', f'model.{IMAGE}extra_tokens',
])
def test_missing_names_of_a_classifier_are_refused(name):
  tensors = fine_tuned()
  del tensors[name]
  with pytest.raises(ValueError, match=rf"unknown names \[\], .*\['{name}'\]"):
    torch_io.from_torch(tensors)


@pytest.mark.parametrize('name', [
    f'{IMAGE}extra_tokens', f'model.{IMAGE}decoder.proj.weight', 'model.head',
])
def test_unknown_names_of_a_classifier_are_refused(name):
  tensors = {**fine_tuned(), name: np.zeros(32)}
  with pytest.raises(ValueError, match=rf"unknown names \['{name}'\], .*\[\]"):
    torch_io.from_torch(tensors)


def test_layers_are_ordered_by_number_and_not_by_name():
  tensors = official(depth=12, layers=0)
  scale = torch_io.from_torch(tensors)['encoder']['blocks']['norm1']['scale']
  for i in range(12):
    np.testing.assert_array_equal(scale[i], tensors[f'blocks.{i}.norm1.weight'])


@pytest.mark.parametrize(('theirs', 'path'), [
    ('blocks.1.attn.qkv', ('encoder', 'blocks', 'attention', 'qkv')),
    ('blocks.1.attn.proj', ('encoder', 'blocks', 'attention', 'out')),
    ('blocks.1.mlp.fc1', ('encoder', 'blocks', 'mlp1')),
    ('blocks.1.mlp.fc2', ('encoder', 'blocks', 'mlp2')),
    (f'{IMAGE}decoder.proj', ('decoder', 'out')),
])
def test_a_linear_map_does_what_pytorch_s_does(theirs, path):
  """PyTorch: y_o = sum_i weight[o, i] x_i + bias_o."""
  tensors = official()
  part = torch_io.from_torch(tensors)
  for key in path:
    part = part[key]
  if path[0] == 'encoder':
    part = {name: leaf[1] for name, leaf in part.items()}
  weight, bias = tensors[f'{theirs}.weight'], tensors[f'{theirs}.bias']
  x = np.random.default_rng(2).standard_normal(weight.shape[1])
  expected = [sum(weight[o] * x) + bias[o] for o in range(len(weight))]
  np.testing.assert_allclose(x @ part['kernel'] + part['bias'], expected,
                             rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(('theirs', 'part'), [
    (f'{IMAGE}context_encoder.norm', ('pre_norm', None)),
    ('blocks.0.norm1', ('norm1', 0)), ('blocks.1.norm2', ('norm2', 1)),
])
def test_a_norm_s_weight_is_our_scale(theirs, part):
  tensors, (name, layer) = official(), part
  encoder = torch_io.from_torch(tensors)['encoder']
  norm = encoder[name] if layer is None else encoder['blocks'][name]
  for ours, suffix in (('scale', 'weight'), ('bias', 'bias')):
    leaf = norm[ours] if layer is None else norm[ours][layer]
    np.testing.assert_array_equal(leaf, tensors[f'{theirs}.{suffix}'])


def test_the_patch_embedding_does_what_pytorch_s_convolution_does():
  """PyTorch: y[o, t, f] = sum_uv weight[o, 0, u, v] x[16 t + u, 16 f + v]."""
  tensors = official()
  weight = tensors[f'{IMAGE}local_encoder.proj.weight']
  kernel = torch_io.from_torch(tensors)['encoder']['patch']['kernel']
  mel = np.random.default_rng(3).standard_normal((1, 32, 48))
  embedded = np.asarray(model.patchify(mel, 16))[0] @ kernel
  for t, f in np.ndindex(2, 3):
    patch = mel[0, 16 * t : 16 * t + 16, 16 * f : 16 * f + 16]
    expected = (weight[:, 0] * patch).sum((1, 2))
    np.testing.assert_allclose(embedded[3 * t + f], expected, rtol=0,
                               atol=10 * TOLERANCE)


def test_a_decoder_layer_does_what_pytorch_s_convolution_does():
  """PyTorch's weight is [out, in / groups, height, width], no flip."""
  tensors = official()
  weight = tensors[f'{IMAGE}decoder.blocks.1.0.weight']
  kernel = torch_io.from_torch(tensors)['decoder']['layers']['kernel'][1]
  x = np.random.default_rng(4).standard_normal((4, 2, 32)).astype(np.float32)
  ours = model.grouped_conv(x[None], kernel, 4)[0]
  padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
  for i, j, o in np.ndindex(4, 2, 32):
    first = o // 8 * 8
    window = padded[i : i + 3, j : j + 3, first : first + 8]
    expected = (weight[o].transpose(1, 2, 0) * window).sum()
    np.testing.assert_allclose(ours[i, j, o], expected, rtol=0,
                               atol=10 * TOLERANCE)


def test_the_class_token_loses_its_two_axes_of_1():
  tensors = official()
  clip = torch_io.from_torch(tensors)['encoder']['clip']
  np.testing.assert_array_equal(clip, tensors[f'{IMAGE}extra_tokens'][0, 0])


@pytest.mark.parametrize('name', [
    f'{IMAGE}extra_tokens', f'{IMAGE}local_encoder.proj.weight',
    'blocks.0.attn.qkv.bias', 'blocks.1.mlp.fc1.weight',
    'blocks.1.norm2.weight', f'{IMAGE}decoder.blocks.1.0.weight',
])
def test_a_tensor_of_another_shape_is_named(name):
  tensors = official()
  want = [*tensors[name].shape]
  tensors[name] = np.zeros([*want[:-1], want[-1] + 1], np.float32)
  with pytest.raises(ValueError) as error:
    torch_io.from_torch(tensors)
  got = [*tensors[name].shape]
  assert f"misshapen ['{name}: want {want}, got {got}']" in str(error.value)


def test_a_block_of_another_width_is_the_odd_one():
  tensors = official(depth=3)
  odd = {'fc1.weight': (96, 32), 'fc1.bias': (96,), 'fc2.weight': (32, 96)}
  for name, shape in odd.items():
    tensors[f'blocks.0.mlp.{name}'] = np.zeros(shape, np.float32)
  with pytest.raises(ValueError) as error:
    torch_io.from_torch(tensors)
  assert str(error.value).count('want') == 3
  assert 'blocks.0.mlp.fc1.bias: want [128], got [96]' in str(error.value)


def test_names_and_shapes_are_told_together():
  tensors = official()
  del tensors['blocks.0.norm1.bias']
  tensors['more'] = tensors['blocks.0.norm2.bias']
  tensors['blocks.0.norm2.bias'] = np.zeros(3)
  with pytest.raises(ValueError, match=(
      r"unknown names \['more'\], missing names \['blocks.0.norm1.bias'\], "
      r"misshapen \['blocks.0.norm2.bias: want")):
    torch_io.from_torch(tensors)


def test_a_number_without_layers_asks_for_no_more_than_there_are():
  tensors = official()
  tensors['blocks.999999999.norm1.bias'] = np.zeros(32)
  with pytest.raises(ValueError, match='unknown names .*999999999'):
    torch_io.from_torch(tensors)


@pytest.mark.parametrize(('change', 'message'), [
    (lambda x: x[:, ::-1], 'want the fixed sin-cos positions'),
    (lambda x: x + 0.01, 'values that differ from them by up to 0.01'),
    (lambda x: x * np.nan, 'want the fixed'),
    (lambda x: x[:, :-1], r'want \[1, 768 \* mel patches, 32\], got \[1, 1535'),
    (lambda x: x[0], r'got \[1536, 32\]'),
    (lambda x: x[:, :, :16], r'got \[1, 1536, 16\]'),
])
def test_other_positions_are_refused(change, message):
  table = model.positions((768, 2), 32)[None]
  for prefix, tensors in (('', official()), ('model.', fine_tuned())):
    with pytest.raises(ValueError, match=message):
      torch_io.from_torch({**tensors, prefix + POSITIONS: change(table)})


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_positions_may_have_been_rounded(dtype):
  table = model.positions((768, 2), 32)[None].astype(dtype)
  torch_io.from_torch({**official(), POSITIONS: table.astype(np.float32)})


def published(tensors):
  """Hugging Face names, written out."""
  renamed = {}
  for name, tensor in tensors.items():
    short = name.removeprefix('model.')
    for theirs, ours in (
        (f'{IMAGE}context_encoder.norm.', 'pre_norm.'), (IMAGE, ''),
    ):
      short = short.replace(theirs, ours)
    renamed[f'model.{short}'] = tensor
  return renamed


@pytest.mark.parametrize('is_classifier', [False, True])
def test_hugging_face_has_other_names_for_the_same(is_classifier):
  tensors = fine_tuned() if is_classifier else official(layers=0)
  prefix = 'model.' * is_classifier
  tensors[prefix + POSITIONS] = model.positions((768, 2), 32)[None]
  theirs = torch_io.to_huggingface(tensors)
  assert theirs.keys() == published(tensors).keys()
  assert {'model.extra_tokens', 'model.local_encoder.proj.weight',
          'model.pre_norm.bias', 'model.blocks.1.attn.qkv.weight',
          'model.fixed_positional_encoder.positions'} <= theirs.keys()
  again = torch_io.from_huggingface(theirs)
  assert again.keys() == tensors.keys()
  assert all(again[name] is tensors[name] for name in tensors)
  assert torch_io.is_huggingface(theirs)
  assert not torch_io.is_huggingface(tensors)


def test_a_decoder_has_no_hugging_face_name():
  with pytest.raises(ValueError, match='decoder.*want a tensor of encoder'):
    torch_io.to_huggingface(official())


@pytest.mark.parametrize('name', ['model.decoder.x', 'blocks.0.norm1.bias'])
def test_unknown_hugging_face_names_are_listed(name):
  tensors = torch_io.to_huggingface(official(layers=0))
  with pytest.raises(ValueError, match=rf"unknown names \['{name}'\]"):
    torch_io.from_huggingface({**tensors, name: np.zeros(32)})


def test_sizes_are_read_off_the_tensors():
  params = torch_io.from_torch(official(depth=3, layers=2))
  vit = model.Vit(width=32, depth=3, heads=4, mlp_ratio=4, patch=16)
  assert torch_io.vit_of(params, heads=4) == vit
  assert torch_io.decoder_of(params) == model.Decoder(depth=2, groups=4)
  with pytest.raises(ValueError, match='heads: want their number'):
    torch_io.vit_of(params)
  with pytest.raises(ValueError, match='heads: want a divisor of width 32'):
    torch_io.vit_of(params, heads=5)


@pytest.mark.parametrize('vit', [model.small(), model.base(), model.large()])
def test_published_sizes_have_a_head_for_64_channels(vit):
  blocks = {'mlp1': {'kernel': np.empty((vit.depth, vit.width, 4 * vit.width))}}
  encoder = {'blocks': blocks, 'patch': {'kernel': np.empty((256, vit.width))}}
  assert torch_io.vit_of({'encoder': encoder}) == vit


def test_positions_tell_the_mel_bins():
  tensors = official()
  assert torch_io.mel_bins_of(tensors) is None
  for columns in (2, 8):
    table = model.positions((768, columns), 32)[None]
    assert torch_io.mel_bins_of({**tensors, POSITIONS: table}) == 16 * columns
