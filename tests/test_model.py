"""Encoder and decoder against float64 NumPy, and what they must not see."""

import functools
import math
import types

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sslam_jax import model

TOLERANCE = 2e-5  # absolute, of outputs of about 1; float32 against float64
GRADIENT_TOLERANCE = 1e-5  # relative to the largest
BFLOAT16_TOLERANCE = 0.1  # absolute; 8 bits, two blocks
VIT = model.Vit(width=32, depth=2, heads=2, dtype='float32')
DECODER = model.Decoder(depth=2, groups=4)
FRAMES, MEL_BINS, GRID, PATCHES = 64, 32, (4, 2), 8


def draw(shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.standard_normal(shape).astype(np.float32)


def shaken(params):
  """Parameters none of which is 0 or 1, so that each of them matters."""
  leaves, tree = jax.tree.flatten(params)
  return jax.tree.unflatten(tree, [
      np.asarray(leaf) + 0.2 * draw(leaf.shape, i)
      for i, leaf in enumerate(leaves)
  ])


def init(vit, seed=0):
  mel = jnp.zeros((1, FRAMES, MEL_BINS))
  return jax.jit(model.Encoder(vit).init)(jax.random.key(seed), mel)['params']


@functools.partial(jax.jit, static_argnums=0)
def _encode(fields, params, mel, keep):
  encoder = model.Encoder(model.Vit(**dict(fields)))
  return encoder.apply({'params': params}, mel, keep, with_layers=True)


def encode(params, mel, keep=None, vit=VIT):
  return _encode(tuple(vars(vit).items()), params, mel, keep)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _decode(params, patch, keep, fill, grid, dtype):
  decoder = model.ConvDecoder(DECODER, dtype)
  return decoder.apply({'params': params}, patch, keep, fill, grid)


def decode(params, patch, keep, fill, dtype='float32'):
  return _decode(params, patch, keep, fill, GRID, dtype)


@pytest.fixture(scope='module')
def params():
  return shaken(init(VIT))


@pytest.fixture(scope='module')
def decoder_params():
  fill = jnp.zeros((1, PATCHES, VIT.width))
  keep = jnp.zeros((1, 1), jnp.int32)
  init = jax.jit(model.ConvDecoder(DECODER, 'float32').init, static_argnums=4)
  return init(jax.random.key(1), fill[:, :1], keep, fill, GRID)['params']


@pytest.fixture(scope='module')
def large():
  """Initial parameters of a model wide enough for statistics."""
  vit = model.Vit(width=256, depth=2, heads=2, dtype='float32')
  return jax.device_get(init(vit))


def norm(x, epsilon, scale=1.0, bias=0.0):
  mean = x.mean(-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + epsilon) * scale + bias


def gelu(x):
  return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def linear(x, params):
  return x @ params['kernel'] + params['bias']


def attention(x, params, heads):
  """One sequence [S, D], head by head."""
  tokens, width = x.shape
  qkv = linear(x, params['qkv']).reshape(tokens, 3, heads, width // heads)
  out = np.zeros((tokens, heads, width // heads))
  for head in range(heads):
    q, k, v = (qkv[:, i, head] for i in range(3))
    logits = (q * (width // heads) ** -0.5) @ k.T
    weight = np.exp(logits - logits.max(1, keepdims=True))
    out[:, head] = weight / weight.sum(1, keepdims=True) @ v
  return linear(out.reshape(tokens, width), params['out'])


def numpy_encoder(params, mel, keep):
  """One clip [T, F]: class token, patches [K, D], layers [L, K, D]."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  tokens = [params['clip']]
  for n in keep:
    t, f = divmod(n, GRID[1])
    patch = mel[16 * t : 16 * (t + 1), 16 * f : 16 * (f + 1)]
    tokens.append(linear(patch.reshape(-1).astype(np.float64),
                         params['patch']) + numpy_position(t, f, VIT.width))
  x = norm(np.array(tokens), 1e-6, **params['pre_norm'])
  layers = []
  for i in range(VIT.depth):
    block = jax.tree.map(lambda leaf, i=i: leaf[i], params['blocks'])
    x = x + attention(x, block['attention'], VIT.heads)
    r = norm(x, 1e-6, **block['norm1'])
    h = linear(gelu(linear(r, block['mlp1'])), block['mlp2'])
    x = norm(r + h, 1e-6, **block['norm2'])
    layers.append(h[1:])
  return x[0], x[1:], np.array(layers)


def numpy_position(time, mel, width):
  """The first half of the channels is the place in mel, the second in time."""
  quarter = width // 4
  row = []
  for place in (mel, time):
    angles = [place / 10_000 ** (i / quarter) for i in range(quarter)]
    row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
  return np.array(row)


def numpy_conv(x, kernel, groups):
  """[H, W, D] with a kernel [E, E, D / groups, D]: loops over everything."""
  height, length, width = x.shape
  edge, part = len(kernel), width // groups
  y = np.zeros(x.shape)
  for i, j, o in np.ndindex(height, length, width):
    first = o // part * part
    for u, v in np.ndindex(edge, edge):
      row, column = i + u - edge // 2, j + v - edge // 2
      if 0 <= row < height and 0 <= column < length:
        y[i, j, o] += x[row, column, first : first + part] @ kernel[u, v, :, o]
  return y


@pytest.mark.parametrize('frames', [8, 9, 11])
def test_patch_index_is_time_first_and_surplus_frames_are_dropped(frames):
  mel = draw((2, frames, 12))
  patches = model.patchify(mel, 4)
  assert patches.shape == (2, 6, 16)
  for b, n, p in np.ndindex(2, 6, 16):
    frame, mel_bin = 4 * (n // 3) + p // 4, 4 * (n % 3) + p % 4
    assert patches[b, n, p] == mel[b, frame, mel_bin]


@pytest.mark.parametrize(('grid', 'width'), [
    ((64, 8), 64), ((4, 2), 32), ((3, 5), 4),
])
def test_positions_match_the_formula(grid, width):
  table = model.positions(grid, width)
  expected = [numpy_position(t, f, width)
              for t in range(grid[0]) for f in range(grid[1])]
  np.testing.assert_allclose(table, expected, rtol=0, atol=TOLERANCE)
  assert table.dtype == np.float32


def test_mel_is_in_the_first_half_of_the_positions_and_time_in_the_second():
  table = model.positions((5, 3), 16).reshape(5, 3, 16)
  assert (table[:1, :, :8] == table[:, :, :8]).all()
  assert (table[:, :1, 8:] == table[:, :, 8:]).all()
  assert len(np.unique(table.reshape(15, 16), axis=0)) == 15


@pytest.mark.parametrize(('frames', 'mel_bins'), [(64, 30), (64, 8), (15, 32)])
def test_a_spectrogram_that_is_no_grid_is_refused(frames, mel_bins):
  with pytest.raises(ValueError, match='patch: want a divisor'):
    VIT.grid(frames, mel_bins)


def test_grid_drops_what_is_left_over():
  assert VIT.grid(79, 48) == (4, 3)


@pytest.mark.parametrize('keep', [range(8), (0, 3, 4), (7,)])
def test_encoder_matches_numpy(params, keep):
  mel = draw((2, FRAMES, MEL_BINS), 1)
  encoded = encode(params, mel, np.array([[*keep], [*keep]]))
  for b in range(2):
    clip, patch, layers = numpy_encoder(params, mel[b], keep)
    for ours, expected in [
        (encoded.clip_RxD[b], clip),
        (encoded.patch_RxKxD[b], patch),
        (encoded.layers_LxRxKxD[:, b], layers),
    ]:
      np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE)


def numpy_encoder_with(params, mel, branch):
  """`numpy_encoder` of all patches with factors [L, 2] of its branches."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  for i in range(VIT.depth):
    block = jax.tree.map(lambda leaf, i=i: leaf[i], params['blocks'])
    for part, factor in ((block['attention']['out'], branch[i, 0]),
                         (block['mlp2'], branch[i, 1])):
      for leaf in part.values():
        leaf *= factor  # a view: the branch ends in this linear map
  return numpy_encoder(params, mel, range(PATCHES))


def test_factors_scale_attention_and_mlp_of_each_row(params):
  mel = draw((3, FRAMES, MEL_BINS), 3)
  branch = np.float32([[[1, 1], [0, 1.5], [2, 0]], [[1, 1], [0, 0], [0.5, 3]]])
  encoded = jax.jit(functools.partial(
      model.Encoder(VIT).apply, with_layers=False
  ))({'params': params}, mel, branch_LxRx2=branch)
  for row in range(3):
    clip, patch, _ = numpy_encoder_with(params, mel[row], branch[:, row])
    np.testing.assert_allclose(encoded.clip_RxD[row], clip, rtol=0,
                               atol=TOLERANCE)
    np.testing.assert_allclose(encoded.patch_RxKxD[row], patch, rtol=0,
                               atol=TOLERANCE)


def test_drop_path_rates_rise_from_0_to_the_last_one():
  rows, rate = 20_000, 0.4
  factor = np.asarray(jax.jit(model.drop_path, static_argnums=(2, 3))(
      jax.random.key(0), jnp.arange(rows), 5, rate))
  assert factor.shape == (5, rows, 2)
  for layer, dropped in enumerate([0, 0.1, 0.2, 0.3, 0.4]):
    values = np.unique(factor[layer])
    kept = np.float32(1 / (1 - dropped))
    np.testing.assert_allclose(values, [0, kept] if layer else [1], rtol=1e-6)
    np.testing.assert_allclose((factor[layer] == 0).mean(0), dropped,
                               atol=0.015)  # 4 deviations
  # Each branch of a block, and each block, is drawn alone.
  drops = (factor[1:] == 0).swapaxes(0, 1).reshape(rows, -1)
  correlation = np.corrcoef(drops.T) - np.eye(8)
  assert abs(correlation).max() < 0.04


def test_drop_path_is_a_function_of_the_row_s_number():
  rows = jnp.arange(16)
  factor = model.drop_path(jax.random.key(3), rows, 4, 0.5)
  again = model.drop_path(jax.random.key(3), rows[5:9], 4, 0.5)
  np.testing.assert_array_equal(again, factor[:, 5:9])
  other = model.drop_path(jax.random.key(4), rows, 4, 0.5)
  assert (other != factor).any()


def numpy_linear_softmax(x):
  """Louder tokens count more: sum s^2 / sum s, as a logit."""
  s = 1 / (1 + np.exp(-np.asarray(x, np.float64)))
  p = (s**2).sum(0) / s.sum(0)
  return np.log(p) - np.log(1 - p)


def test_linear_softmax_is_the_mean_weighted_by_itself():
  x = 3 * draw((2, 5, 4))
  ours = model.linear_softmax(x)
  for b in range(2):
    np.testing.assert_allclose(ours[b], numpy_linear_softmax(x[b]), rtol=0,
                               atol=TOLERANCE)


@pytest.mark.parametrize(('value', 'is_inside'), [
    (-200.0, False), (-30.0, True), (10.0, True), (200.0, False),
])
def test_linear_softmax_of_equal_tokens_is_that_token(value, is_inside):
  """0 with a gradient of 0 where sum s^2 / sum s is 0, 1 or 0 / 0."""
  pooled, pull = jax.vjp(model.linear_softmax, jnp.full((1, 4, 2), value))
  np.testing.assert_allclose(pooled, np.full((1, 2), value * is_inside),
                             rtol=1e-6)
  np.testing.assert_allclose(pull(jnp.ones((1, 2)))[0],
                             np.full((1, 4, 2), 0.25 * is_inside),
                             rtol=TOLERANCE)


@pytest.mark.parametrize('has_norm', [True, False])
@pytest.mark.parametrize('pooling', ['class', 'mean', 'linear_softmax'])
def test_head_matches_numpy(pooling, has_norm):
  clip, patch = draw((2, 8)), draw((2, 5, 8), 1)
  encoded = model.Encoded(jnp.asarray(clip), jnp.asarray(patch), None)
  head = model.Classifier(model.Head(pooling=pooling, norm=has_norm), 3)
  params = shaken(head.init(jax.random.key(0), encoded)['params'])
  pooled = {
      'class': clip, 'mean': patch.mean(1),
      'linear_softmax': np.stack([numpy_linear_softmax(x) for x in patch]),
  }[pooling]
  if has_norm:
    pooled = norm(pooled, 1e-6, **params['norm'])
  assert ('norm' in params) == has_norm
  np.testing.assert_allclose(head.apply({'params': params}, encoded),
                             linear(pooled, params['out']), rtol=0,
                             atol=TOLERANCE)


def test_head_computes_in_float32_from_bfloat16_tokens():
  """The mean too, of which bfloat16 would keep 8 bits."""
  patch = jnp.asarray(draw((2, 5, 8)), jnp.bfloat16)
  coarse = model.Encoded(patch[:, 0], patch, None)
  fine = jax.tree.map(lambda x: x.astype(jnp.float32), coarse)
  head = model.Classifier(model.Head(pooling='mean'), 3)
  params = head.init(jax.random.key(0), coarse)
  ours = head.apply(params, coarse)
  assert ours.dtype == jnp.float32
  np.testing.assert_allclose(ours, head.apply(params, fine), rtol=TOLERANCE)


def test_initial_head_is_truncated_normal_0_02():
  encoded = model.Encoded(jnp.zeros((1, 256)), jnp.zeros((1, 1, 256)), None)
  head = model.Classifier(model.Head(), 200).init(jax.random.key(0), encoded)
  out = head['params']['out']
  np.testing.assert_allclose(out['kernel'].std(), 0.02, rtol=0.02)
  assert abs(out['kernel']).max() > 3 * 0.02  # cut at 2, not at 2 deviations
  assert (out['bias'] == 0).all()


def test_hidden_patches_cannot_change_the_student(params):
  mel, keep = draw((1, 70, MEL_BINS)), np.array([[1, 2, 7]])
  changed = np.full_like(mel, 1e3)
  for n in keep[0]:
    place = (0, slice(n // 2 * 16, n // 2 * 16 + 16),
             slice(n % 2 * 16, n % 2 * 16 + 16))
    changed[place] = mel[place]
  before, after = encode(params, mel, keep), encode(params, changed, keep)
  jax.tree.map(np.testing.assert_array_equal, before, after)
  everything = encode(params, changed)
  assert not np.allclose(everything.clip_RxD, before.clip_RxD, atol=1e-2)


def test_a_keep_of_all_patches_equals_no_keep(params):
  mel = draw((2, FRAMES, MEL_BINS))
  every = encode(params, mel, np.tile(np.arange(PATCHES), (2, 1)))
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE),
      every, encode(params, mel),
  )


def test_row_r_is_a_clone_of_clip_r_b_over_rows(params):
  mel = draw((2, FRAMES, MEL_BINS))
  keep = np.array([[0, 5], [2, 3], [6, 7], [0, 5], [1, 4], [3, 7]])
  encoded = encode(params, mel, keep)
  for r in range(6):
    clip, patch, _ = numpy_encoder(params, mel[r * 2 // 6], keep[r])
    np.testing.assert_allclose(encoded.clip_RxD[r], clip, rtol=0,
                               atol=TOLERANCE)
    np.testing.assert_allclose(encoded.patch_RxKxD[r], patch, rtol=0,
                               atol=TOLERANCE)


def test_layers_are_returned_only_when_asked_for(params):
  mel = draw((1, FRAMES, MEL_BINS))
  apply = jax.jit(model.Encoder(VIT).apply)
  encoded = apply({'params': params}, mel)
  assert encoded.layers_LxRxKxD is None
  np.testing.assert_allclose(encoded.clip_RxD, encode(params, mel).clip_RxD,
                             rtol=0, atol=TOLERANCE)


def test_remat_changes_neither_values_nor_gradients(params):
  mel, keep = draw((2, FRAMES, MEL_BINS)), jnp.array([[0, 3], [1, 6]])
  weight = draw((2, VIT.width), 2)

  def loss(params, mel, remat):
    vit = model.Vit(**{**vars(VIT), 'remat': remat})
    encoded = model.Encoder(vit).apply({'params': params}, mel, keep)
    return jnp.sum(encoded.clip_RxD * weight)

  grad = jax.jit(jax.value_and_grad(loss), static_argnums=2)
  plain, plain_grad = grad(params, mel, False)
  again, again_grad = grad(params, mel, True)
  np.testing.assert_allclose(again, plain, rtol=TOLERANCE)
  for a, b in zip(jax.tree.leaves(again_grad), jax.tree.leaves(plain_grad)):
    assert abs(b).max() > 0
    np.testing.assert_allclose(a, b, rtol=0,
                               atol=GRADIENT_TOLERANCE * abs(b).max())


def kept(module, params, *inputs):
  """Shapes of what the forward pass leaves for the backward pass."""
  def back(params):
    return jax.vjp(
        lambda p: jax.tree.leaves(module.apply(p, *inputs)), params)[1]

  return [x.shape for x in jax.tree.leaves(jax.eval_shape(back, params))]


@pytest.mark.parametrize(
    ('remat', 'wide', 'narrow'), [(False, 1, 4), (True, 0, 1)])
def test_of_a_block_no_scores_and_one_wide_product_are_kept(
    remat, wide, narrow
):
  vit = model.Vit(width=32, depth=3, heads=2, remat=remat)
  encoder, mel = model.Encoder(vit), draw((2, FRAMES, MEL_BINS))
  params = jax.eval_shape(encoder.init, jax.random.key(0), mel)
  shapes = kept(encoder, params, mel)
  tokens = [(*x[:1], math.prod(x[1:-1]), *x[-1:]) for x in shapes]
  assert tokens.count((3, 2 * (1 + PATCHES), 4 * 32)) == wide
  # The block's input; and what attention, its projection and the MLP return.
  assert tokens.count((3, 2 * (1 + PATCHES), 32)) == narrow
  # Attention's scores, the largest of all where there are many tokens.
  assert not [x for x in shapes if x[-2:] == (1 + PATCHES, 1 + PATCHES)]


def test_of_attention_on_a_cpu_no_weights_are_kept():
  alone = types.SimpleNamespace(
      apply=lambda scale, x: model._cpu_attention(scale * x))
  shapes = kept(alone, np.float32(1), draw((2, 9, 3, 4, 8)))
  assert shapes and not [x for x in shapes if x[-2:] == (9, 9)]


def test_of_a_decoder_layer_its_input_and_convolution_are_kept():
  decoder = model.ConvDecoder(model.Decoder(depth=3, groups=4), 'float32')
  inputs = (draw((2, 3, 32)), jnp.array([[0, 1, 2], [1, 3, 4]]),
            jnp.asarray(draw((2, 10, 32))), (5, 2))
  params = jax.eval_shape(lambda: decoder.init(jax.random.key(0), *inputs))
  shapes = kept(decoder, params, *inputs)
  assert shapes.count((3, 2, 5, 2, 32)) == 2


def test_gelu_is_exact_and_bfloat16_loses_its_own_digits_only():
  x = np.linspace(-9, 9, 3601)
  slope = gelu(x) / np.where(x, x, 1) + x * np.exp(-x**2 / 2) / math.sqrt(
      2 * math.pi)
  slope[x == 0] = 0.5
  given = jnp.asarray(x, jnp.float32)
  np.testing.assert_allclose(model.gelu(given), gelu(x), rtol=0, atol=2e-6)
  np.testing.assert_allclose(jax.vmap(jax.grad(model.gelu))(given), slope,
                             rtol=0, atol=2e-6)
  rounded = given.astype(jnp.bfloat16)
  np.testing.assert_allclose(
      model.gelu(rounded).astype(jnp.float32),
      gelu(np.asarray(rounded, np.float64)), rtol=2**-8, atol=2e-6)


def test_the_program_does_not_grow_with_depth():
  def lines(depth, remat):
    vit = model.Vit(width=32, depth=depth, heads=2, remat=remat)
    encoder = model.Encoder(vit)
    mel = jax.ShapeDtypeStruct((1, FRAMES, MEL_BINS), jnp.float32)
    params = jax.eval_shape(encoder.init, jax.random.key(0), mel)
    lowered = jax.jit(encoder.apply).lower(params, mel)
    return lowered.as_text().count('\n')

  for remat in (False, True):
    assert lines(2, remat) == lines(6, remat) > 20


def test_bfloat16_computes_close_to_float32(params):
  vit = model.Vit(**{**vars(VIT), 'dtype': 'bfloat16'})
  mel, keep = draw((1, FRAMES, MEL_BINS)), np.array([[0, 3, 4]])
  coarse, fine = encode(params, mel, keep, vit), encode(params, mel, keep)
  for a, b in zip(jax.tree.leaves(coarse), jax.tree.leaves(fine)):
    assert a.dtype == jnp.bfloat16
    assert b.dtype == jnp.float32
    np.testing.assert_allclose(a.astype(np.float32), b, rtol=0,
                               atol=BFLOAT16_TOLERANCE)


def test_parameters_are_float32_in_bfloat16_models():
  vit = model.Vit(width=32, depth=2, heads=2, dtype='bfloat16')
  mel = jnp.zeros((1, FRAMES, MEL_BINS))
  params = jax.eval_shape(model.Encoder(vit).init, jax.random.key(0), mel)
  decoder = jax.eval_shape(
      lambda rng: model.ConvDecoder(DECODER, 'bfloat16').init(
          rng, jnp.zeros((1, 1, 32)), jnp.zeros((1, 1), jnp.int32),
          jnp.zeros((1, PATCHES, 32)), GRID,
      ), jax.random.key(0),
  )
  for leaf in jax.tree.leaves((params, decoder)):
    assert leaf.dtype == jnp.float32


@pytest.mark.parametrize(('fields', 'name'), [
    ({'heads': 5}, 'heads'), ({'width': 30, 'heads': 2}, 'width'),
    ({'depth': 0}, 'depth'), ({'patch': 0}, 'patch'),
])
def test_impossible_encoders_are_refused_by_name(fields, name):
  with pytest.raises(ValueError, match=f'^{name}: want'):
    model.Vit(**fields)


def test_initial_linear_maps_are_normal_0_02_without_bias(large):
  blocks = large['blocks']
  for part in (blocks['attention']['qkv'], blocks['attention']['out'],
               blocks['mlp1'], blocks['mlp2']):
    assert (part['bias'] == 0).all()
    for layer in part['kernel']:
      np.testing.assert_allclose(layer.std(), 0.02, rtol=0.02)
      assert abs(layer.mean()) < 5e-4
      assert abs(layer).max() > 3 * 0.02  # not cut at two deviations
    assert (part['kernel'][0] != part['kernel'][1]).any()


def test_initial_patch_embedding_is_xavier_uniform(large):
  kernel, bias = large['patch']['kernel'], large['patch']['bias']
  assert kernel.shape == (256, 256)
  limit = math.sqrt(6 / (256 + 256))
  assert 0.99 * limit < abs(kernel).max() <= limit
  np.testing.assert_allclose(kernel.std(), limit / math.sqrt(3), rtol=0.02)
  assert 0.9 / 16 < abs(bias).max() <= 1 / 16
  np.testing.assert_allclose(bias.std(), 1 / 16 / math.sqrt(3), rtol=0.15)


def test_initial_class_token_is_standard_normal_and_norms_do_nothing(large):
  np.testing.assert_allclose(large['clip'].std(), 1.0, rtol=0.15)
  norms = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(large)
           if 'norm' in jax.tree_util.keystr(path)]
  assert len(norms) == 6
  assert all((leaf == leaf.flat[0]).all() for leaf in norms)
  assert (large['pre_norm']['scale'] == 1).all()
  assert (large['pre_norm']['bias'] == 0).all()
  assert (large['blocks']['norm1']['scale'] == 1).all()
  assert (large['blocks']['norm2']['bias'] == 0).all()


def test_initial_decoder_is_uniform_within_its_fan_in(decoder_params):
  layers, out = decoder_params['layers'], decoder_params['out']
  limit = 1 / math.sqrt(32 // 4 * 9)
  for leaf in (layers['kernel'], layers['bias']):
    assert 0.8 * limit < abs(leaf).max() <= limit
    np.testing.assert_allclose(leaf.std(), limit / math.sqrt(3), rtol=0.2)
  assert (layers['kernel'][0] != layers['kernel'][1]).any()
  limit = 1 / math.sqrt(32)
  for leaf in (out['kernel'], out['bias']):
    assert 0.8 * limit < abs(leaf).max() <= limit


@pytest.mark.parametrize('kernel', [3, 5])
@pytest.mark.parametrize(('grid', 'groups'), [
    ((5, 3), 4), ((4, 2), 2), ((1, 7), 1), ((3, 3), 12),
])
def test_grouped_conv_and_its_gradients_are_the_library_s(
    kernel, grid, groups
):
  x, cotangent = draw((2, 2, *grid, 12))
  weight = draw((kernel, kernel, 12 // groups, 12), 1)

  def library(x, weight):
    return jax.lax.conv_general_dilated(
        x, weight, (1, 1), 'SAME', feature_group_count=groups,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  @functools.partial(jax.jit, static_argnums=0)
  def run(conv, x, weight, cotangent):
    y, pull = jax.vjp(conv, x, weight)
    return y, *pull(cotangent)

  ours = run(functools.partial(model.grouped_conv, groups=groups), x, weight,
             cotangent)
  for a, b in zip(ours, run(library, x, weight, cotangent)):
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=0,
                               atol=GRADIENT_TOLERANCE * abs(b).max())


@pytest.mark.parametrize(('kernel', 'groups'), [(3, 2), (5, 1), (1, 4)])
def test_grouped_conv_matches_loops(kernel, groups):
  x, weight = draw((1, 3, 4, 4)), draw((kernel, kernel, 4 // groups, 4), 1)
  ours = model.grouped_conv(x, weight, groups)
  np.testing.assert_allclose(ours[0], numpy_conv(x[0], weight, groups), rtol=0,
                             atol=TOLERANCE)


def test_the_grouped_conv_a_gpu_would_run_gives_the_same(monkeypatch):
  x, weight = draw((2, 5, 3, 12)), draw((3, 3, 3, 12), 1)
  expected = model.grouped_conv(x, weight, 4)
  monkeypatch.setattr(jax.lax, 'platform_dependent',
                      lambda *args, cpu, default: default(*args))
  np.testing.assert_allclose(model.grouped_conv(x, weight, 4), expected,
                             rtol=0, atol=TOLERANCE)


def test_decoder_matches_numpy(decoder_params):
  params = shaken(decoder_params)
  patch, fill = draw((2, 3, 32)), draw((2, PATCHES, 32), 1)
  keep = np.array([[0, 3, 6], [1, 2, 7]])
  ours = decode(params, patch, keep, fill)
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  for b in range(2):
    x = fill[b].astype(np.float64)
    x[keep[b]] = patch[b]
    x = x.reshape(*GRID, 32)
    for i in range(DECODER.depth):
      y = numpy_conv(x, params['layers']['kernel'][i], DECODER.groups)
      y = norm(y + params['layers']['bias'][i], 1e-5)
      x = x + gelu(y)
    expected = linear(x.reshape(PATCHES, 32), params['out'])
    np.testing.assert_allclose(ours[b], expected, rtol=0, atol=4 * TOLERANCE)


def test_decoder_puts_tokens_at_their_places(decoder_params):
  """With zero convolutions and an identity at the end it only places them."""
  params = jax.tree.map(np.zeros_like, flax.core.unfreeze(decoder_params))
  params['out']['kernel'] = np.eye(32, dtype=np.float32)
  patch, fill = draw((2, 3, 32)), draw((2, PATCHES, 32), 1)
  keep = np.array([[0, 3, 6], [1, 2, 7]])
  expected = fill.copy()
  for b in range(2):
    expected[b, keep[b]] = patch[b]
  np.testing.assert_array_equal(decode(params, patch, keep, fill), expected)


def test_decoder_in_bfloat16_is_close_to_float32(decoder_params):
  patch, fill = draw((2, 3, 32)), draw((2, PATCHES, 32), 1)
  keep = np.array([[0, 3, 6], [1, 2, 7]])
  fine = decode(decoder_params, patch, keep, fill)
  coarse = decode(decoder_params, patch, keep, fill, 'bfloat16')
  assert coarse.dtype == jnp.bfloat16
  np.testing.assert_allclose(coarse.astype(np.float32), fine, rtol=0,
                             atol=BFLOAT16_TOLERANCE)


@pytest.mark.parametrize('fields', [
    {'depth': 0}, {'groups': 0}, {'kernel': 4}, {'noise_std': -1.0},
])
def test_impossible_decoders_are_refused_by_name(fields):
  with pytest.raises(ValueError, match=f'^{next(iter(fields))}: want'):
    model.Decoder(**fields)


def test_groups_that_do_not_divide_the_width_are_refused():
  decoder = model.ConvDecoder(model.Decoder(groups=5), 'float32')
  fill = jnp.zeros((1, PATCHES, 32))
  with pytest.raises(ValueError, match='decoder.groups: .* 32, got 5'):
    decoder.init(jax.random.key(0), fill[:, :1], jnp.zeros((1, 1), jnp.int32),
                 fill, GRID)


@pytest.mark.parametrize(('dtype', 'tolerance'),
                         [('float32', 1e-6), ('bfloat16', 2e-2)])
def test_attention_is_that_of_jax_and_so_is_its_gradient(dtype, tolerance):
  rng = np.random.default_rng(0)
  q, k, v, weight = (
      jnp.asarray(3 * rng.standard_normal((3, 7, 2, 8)), dtype)
      for _ in range(4))

  def both(function):
    def loss(q, k, v):
      out = function(q, k, v)
      return jnp.sum((out * weight).astype(jnp.float32)), out

    (_, out), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
    assert out.dtype == dtype
    return [np.asarray(x, np.float32) for x in (out, *grads)]

  stacked = jax.jit(lambda *qkv: model.attention(jnp.stack(qkv, 2)))
  for ours, theirs in zip(both(stacked), both(jax.nn.dot_product_attention)):
    np.testing.assert_allclose(ours, theirs, rtol=0,
                               atol=tolerance * np.abs(theirs).max())


def test_the_attention_a_gpu_would_run_gives_the_same(monkeypatch):
  qkv, weight = draw((2, 7, 3, 2, 8)), draw((2, 7, 2, 8), 1)

  def both():
    return jax.value_and_grad(
        lambda x: (model.attention(x) * weight).sum())(jnp.asarray(qkv))

  expected = both()
  monkeypatch.setattr(jax.lax, 'platform_dependent',
                      lambda *args, cpu, default: default(*args))
  for ours, theirs in zip(both(), expected):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
