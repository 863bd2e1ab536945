"""Every network: patch embedding, positions, ViT encoder, decoder, head.

The encoder's blocks are post-norm, and the output of a block's MLP before its
residual is that layer's result, from which the teacher's targets are made.
They are stacked and scanned: compile time does not grow with their number.
Source: EAT models/base.py, modules.py, images.py.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.ad_checkpoint import checkpoint_name

_NORM_EPSILON = 1e-6
_DECODER_NORM_EPSILON = 1e-5
_ATTENDED, _CONVOLVED = 'attended', 'convolved'  # kept for the backward pass
_WAVELENGTH = 10_000.0  # longest, of the sin-cos positions


@dataclasses.dataclass(kw_only=True)
class Vit:
  """Configuration of the encoder.

  Attributes:
    width: Channels D.
    depth: Number of blocks L.
    heads: Attention heads H; divides `width`.
    mlp_ratio: Width of a block's MLP, relative to `width`.
    patch: Edge of the square patches, in frames and mel bins.
    dtype: Compute type; parameters, norms and softmax are float32 anyway.
    remat: Compute whole blocks again in the backward pass: less memory. Without
      it products with parameters are kept, and all else computed again:
      attention's scores and softmax, norms, GELU.
  """

  width: int = 768
  depth: int = 12
  heads: int = 12
  mlp_ratio: int = 4
  patch: int = 16
  dtype: Literal['float32', 'bfloat16'] = 'bfloat16'
  remat: bool = False

  def __post_init__(self) -> None:
    for name in ('width', 'depth', 'heads', 'mlp_ratio', 'patch'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}: want at least 1, got {getattr(self, name)}')
    if self.width % self.heads:
      raise ValueError(f'heads: want a divisor of width {self.width}, '
                       f'got {self.heads}')
    if self.width % 4:
      raise ValueError(f'width: want a multiple of 4 for the sin-cos '
                       f'positions, got {self.width}')

  def grid(self, frames: int, mel_bins: int) -> tuple[int, int]:
    """(time, mel) patches of a spectrogram; left-over frames are dropped."""
    if mel_bins % self.patch or frames < self.patch:
      raise ValueError(
          f'patch: want a divisor of {mel_bins} mel bins and at most '
          f'{frames} frames, got {self.patch}'
      )
    return frames // self.patch, mel_bins // self.patch


def small() -> Vit:
  """21 million parameters."""
  return Vit(width=384, depth=12, heads=6)


def base() -> Vit:
  """85 million parameters, the published SSLAM and EAT-base."""
  return Vit()


def large() -> Vit:
  """303 million parameters, the published EAT-large."""
  return Vit(width=1024, depth=24, heads=16)


@dataclasses.dataclass(kw_only=True)
class Decoder:
  """Configuration of the convolutional decoder.

  Attributes:
    depth: Number of convolution layers.
    groups: Groups of each convolution; divides the encoder's width.
    kernel: Edge of the convolutions, in patches.
    noise_std: Deviation of the noise that stands for hidden patches.
  """

  depth: int = 6
  groups: int = 16
  kernel: int = 3
  noise_std: float = 0.01

  def __post_init__(self) -> None:
    for name in ('depth', 'groups', 'kernel'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}: want at least 1, got {getattr(self, name)}')
    if self.kernel % 2 == 0:
      raise ValueError(f'kernel: want an odd number, got {self.kernel}')
    if self.noise_std < 0:
      raise ValueError(f'noise_std: want at least 0, got {self.noise_std}')


@flax.struct.dataclass
class Encoded:
  """What the encoder returns, in its compute type.

  Attributes:
    clip_RxD: Class token.
    patch_RxKxD: Patch tokens.
    layers_LxRxKxD: Each block's MLP output for the patch tokens, or None.
  """

  clip_RxD: Array
  patch_RxKxD: Array
  layers_LxRxKxD: Array | None


class Encoder(nn.Module):
  """ViT over the patches of log-mel spectrograms."""

  config: Vit

  @nn.compact
  def __call__(
      self,
      mel_BxTxF: Array,
      keep_RxK: Array | None = None,
      *,
      with_layers: bool = False,
      branch_LxRx2: Array | None = None,
  ) -> Encoded:
    """Encodes each clip, or R rows of kept patches.

    Args:
      mel_BxTxF: Normalised log-mels.
      keep_RxK: Patch indices that row r of clip r * B // R keeps; R is a
        multiple of B. None keeps all: R = B, K = N.
      with_layers: Return the layers' results too.
      branch_LxRx2: Factors of each block's attention and MLP branch, such as
        those of `drop_path`.
    """
    config = self.config
    patch_BxNxP = patchify(mel_BxTxF, config.patch)
    grid = config.grid(*mel_BxTxF.shape[1:])
    position_RxKxD = jnp.asarray(positions(grid, config.width))[None]
    patch_RxKxP = patch_BxNxP
    if keep_RxK is not None:
      row_R = jnp.arange(len(keep_RxK)) // (len(keep_RxK) // len(mel_BxTxF))
      patch_RxKxP = patch_BxNxP[row_R[:, None], keep_RxK]
      position_RxKxD = position_RxKxD[0][keep_RxK]
    dtype = jnp.dtype(config.dtype)
    edge = 1 / config.patch
    x_RxKxD = nn.Dense(
        config.width,
        dtype=dtype,
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=symmetric_uniform(edge),
        name='patch',
    )(patch_RxKxP)
    x_RxKxD = x_RxKxD + position_RxKxD
    clip_D = self.param('clip', nn.initializers.normal(1.0), (config.width,))
    rows = x_RxKxD.shape[0]  # len() is no number where it is symbolic
    clip_Rx1xD = jnp.broadcast_to(clip_D, (rows, 1, config.width))
    x_RxSxD = jnp.concatenate([clip_Rx1xD, x_RxKxD], axis=1)
    x_RxSxD = _layer_norm('pre_norm')(x_RxSxD).astype(dtype)
    policies = jax.checkpoint_policies
    kept = (policies.nothing_saveable if config.remat
            else policies.save_from_both_policies(
                policies.dots_with_no_batch_dims_saveable,
                policies.save_only_these_names(_ATTENDED)))
    stack = nn.scan(
        nn.remat(Block, prevent_cse=False, policy=kept),
        variable_axes={'params': 0},
        split_rngs={'params': True},
        length=config.depth,
    )
    x_RxSxD, layers = stack(config, with_layers, name='blocks')(
        x_RxSxD, branch_LxRx2
    )
    return Encoded(
        clip_RxD=x_RxSxD[:, 0],
        patch_RxKxD=x_RxSxD[:, 1:],
        layers_LxRxKxD=layers,
    )


class Block(nn.Module):
  """Post-norm transformer block; carries x, returns its MLP's output."""

  config: Vit
  with_output: bool

  @nn.compact
  def __call__(
      self, x_RxSxD: Array, branch_Rx2: Array | None
  ) -> tuple[Array, Array | None]:
    config, dtype = self.config, jnp.dtype(self.config.dtype)
    attended_RxSxD = Attention(config, name='attention')(x_RxSxD)
    x_RxSxD = x_RxSxD + _scaled(attended_RxSxD, branch_Rx2, 0)
    r_RxSxD = _layer_norm('norm1')(x_RxSxD).astype(dtype)
    h_RxSxE = _dense(r_RxSxD, config.mlp_ratio * config.width, dtype, 'mlp1')
    h_RxSxE = gelu(h_RxSxE)
    h_RxSxD = _dense(h_RxSxE, config.width, dtype, 'mlp2')
    x_RxSxD = _layer_norm('norm2')(
        r_RxSxD + _scaled(h_RxSxD, branch_Rx2, 1)
    ).astype(dtype)
    return x_RxSxD, h_RxSxD[:, 1:] if self.with_output else None


class Attention(nn.Module):
  """Multi-head self-attention with one projection for q, k and v."""

  config: Vit

  @nn.compact
  def __call__(self, x_RxSxD: Array) -> Array:
    width, heads = self.config.width, self.config.heads
    dtype = jnp.dtype(self.config.dtype)
    qkv = _dense(x_RxSxD, 3 * width, dtype, 'qkv')
    qkv = qkv.reshape(*x_RxSxD.shape[:2], 3, heads, width // heads)
    out_RxSxHxd = attention(qkv)
    out_RxSxD = checkpoint_name(out_RxSxHxd.reshape(x_RxSxD.shape), _ATTENDED)
    return _dense(out_RxSxD, width, dtype, 'out')


def gelu(x: Array) -> Array:
  """Exact GELU as PyTorch computes it.

  `jax.nn.gelu` takes five times as long on a CPU: it is made of erfc, to keep
  the relative precision of values near zero.
  """
  x32 = x.astype(jnp.float32)
  return (x32 * (0.5 + 0.5 * jax.lax.erf(x32 * 0.5**0.5))).astype(x.dtype)


def attention(qkv_RxSx3xHxd: Array) -> Array:
  """Softmax attention of each head, [R, S, H, d]; the softmax is float32.

  Args:
    qkv_RxSx3xHxd: Queries, keys and values.
  """
  return jax.lax.platform_dependent(
      qkv_RxSx3xHxd, cpu=_cpu_attention,
      default=lambda qkv: jax.nn.dot_product_attention(
          *(qkv[:, :, i] for i in range(3))),
  )


def _cpu_attention(qkv_RxSx3xHxd: Array) -> Array:
  """Row by row, so that a row's scores stay in the cache.

  With the 513 tokens of a clip of 10 s that is 2.7 times as fast as JAX's own.
  The backward pass computes them again, row by row too: to keep them took 1.4
  times as long.
  """

  @functools.partial(jax.checkpoint, prevent_cse=False)  # in a loop
  def row(qkv_Sx3xHxd: Array) -> Array:
    q_HxSxd, k_HxSxd, v_HxSxd = (qkv_Sx3xHxd[:, i].swapaxes(0, 1)
                                 for i in range(3))
    score_HxSxS = jnp.einsum('hqd,hkd->hqk', q_HxSxd, k_HxSxd,
                             preferred_element_type=jnp.float32)
    weight_HxSxS = jax.nn.softmax(score_HxSxS * q_HxSxd.shape[-1] ** -0.5)
    out_HxSxd = jnp.einsum('hqk,hkd->hqd', weight_HxSxS.astype(v_HxSxd.dtype),
                           v_HxSxd)
    return out_HxSxd.swapaxes(0, 1)

  return jax.lax.map(row, qkv_RxSx3xHxd)


@dataclasses.dataclass(kw_only=True)
class Head:
  """Configuration of a classifier's head: pool, normalise, map to classes.

  Attributes:
    pooling: What stands for a clip: its class token, or of its patch tokens
      the mean or the linear softmax (louder ones count more).
    norm: Normalise it (LayerNorm).
  """

  pooling: Literal['class', 'mean', 'linear_softmax'] = 'class'
  norm: bool = True


class Classifier(nn.Module):
  """The head: from the encoder's tokens to a logit for each class."""

  config: Head
  classes: int

  @nn.compact
  def __call__(self, encoded: Encoded) -> Array:
    """Logits, float32 [B, C].

    Source: forward() of EAT models/EAT_audio_classification.py.
    """
    x_BxD = pool(encoded, self.config.pooling)
    if self.config.norm:
      x_BxD = _layer_norm('norm')(x_BxD)
    init = truncated_normal(0.02)
    return nn.Dense(self.classes, kernel_init=init, name='out')(x_BxD)


def pool(encoded: Encoded, pooling: str) -> Array:
  """One vector for each clip, float32 [B, D]; see `Head`."""
  if pooling == 'class':
    return encoded.clip_RxD.astype(jnp.float32)
  patch_BxNxD = encoded.patch_RxKxD.astype(jnp.float32)
  if pooling == 'mean':
    return patch_BxNxD.mean(1)
  return linear_softmax(patch_BxNxD)


def linear_softmax(x_BxNxD: Array) -> Array:
  """Per channel, the logit of the tokens' mean weighted by itself: [B, D].

  With s = sigmoid(x) it is logit(p), p = sum s^2 / sum s, and 0 where p is 0 or
  1 in float32, as published.
  """
  s_BxNxD = jax.nn.sigmoid(x_BxNxD)
  p_BxD = jnp.sum(s_BxNxD**2, 1) / jnp.sum(s_BxNxD, 1)
  # From logarithms, so that no gradient is infinite either.
  log_s_BxNxD = jax.nn.log_sigmoid(x_BxNxD)
  log_rest_BxNxD = jax.nn.log_sigmoid(-x_BxNxD)  # of 1 - s
  logit_BxD = (jax.nn.logsumexp(2 * log_s_BxNxD, axis=1)
               - jax.nn.logsumexp(log_s_BxNxD + log_rest_BxNxD, axis=1))
  return jnp.where((p_BxD > 0) & (p_BxD < 1), logit_BxD, 0.0)


def drop_path(
    rng: Array, row_R: Array, depth: int, last_rate: float
) -> Array:
  """Factors of branches, [depth, R, 2]: 0 where dropped, more than 1 elsewhere.

  Each row drops each branch alone, at rates that rise linearly from 0 in the
  first block to `last_rate`. A function of the rows' numbers.
  """
  keys = jax.vmap(lambda row: jax.random.fold_in(rng, row))(row_R)
  draw = jax.vmap(lambda key: jax.random.uniform(key, (depth, 2)), out_axes=1)
  keep_L = 1 - jnp.linspace(0, last_rate, depth)
  keep_Lx1x1 = keep_L[:, None, None]
  return jnp.where(draw(keys) < keep_Lx1x1, 1 / keep_Lx1x1, 0.0)


class ConvDecoder(nn.Module):
  """Predicts every patch's target from the kept patches, on the patch grid."""

  config: Decoder
  dtype: str

  @nn.compact
  def __call__(
      self,
      patch_RxKxD: Array,
      keep_RxK: Array,
      fill_RxNxD: Array,
      grid: tuple[int, int],
  ) -> Array:
    """Decodes.

    Args:
      patch_RxKxD: The encoder's patch tokens.
      keep_RxK: Where they belong.
      fill_RxNxD: What stands at the hidden places (noise).
      grid: (time, mel) patches, N in all.

    Returns:
      Predictions [R, N, D] in the compute type.
    """
    rows, _, width = patch_RxKxD.shape
    if width % self.config.groups:
      raise ValueError(f'decoder.groups: want a divisor of width {width}, '
                       f'got {self.config.groups}')
    x_RxNxD = fill_RxNxD.astype(self.dtype)
    x_RxNxD = x_RxNxD.at[jnp.arange(rows)[:, None], keep_RxK].set(
        patch_RxKxD.astype(self.dtype)
    )
    kept = jax.checkpoint_policies.save_only_these_names(_CONVOLVED)
    stack = nn.scan(
        nn.remat(ConvLayer, prevent_cse=False, policy=kept),
        variable_axes={'params': 0},
        split_rngs={'params': True},
        length=self.config.depth,
    )
    x_RxHxWxD, _ = stack(self.config, self.dtype, name='layers')(
        x_RxNxD.reshape(rows, *grid, width), None
    )
    init = symmetric_uniform(width**-0.5)
    out = nn.Dense(width, dtype=self.dtype, kernel_init=init, bias_init=init,
                   name='out')
    return out(x_RxHxWxD.reshape(x_RxNxD.shape))


class ConvLayer(nn.Module):
  """x + GELU(norm(grouped convolution of x))."""

  config: Decoder
  dtype: str

  @nn.compact
  def __call__(self, x_RxHxWxD: Array, _: None) -> tuple[Array, None]:
    width, kernel = x_RxHxWxD.shape[-1], self.config.kernel
    inputs = width // self.config.groups
    init = symmetric_uniform((inputs * kernel**2) ** -0.5)
    weight = self.param('kernel', init, (kernel, kernel, inputs, width))
    bias_D = self.param('bias', init, (width,))
    y_RxHxWxD = checkpoint_name(grouped_conv(
        x_RxHxWxD, weight.astype(self.dtype), self.config.groups
    ) + bias_D.astype(self.dtype)[None, None, None], _CONVOLVED)
    y_RxHxWxD = nn.LayerNorm(
        epsilon=_DECODER_NORM_EPSILON, use_bias=False, use_scale=False,
        use_fast_variance=False, dtype=jnp.float32,
    )(y_RxHxWxD).astype(self.dtype)
    return x_RxHxWxD + gelu(y_RxHxWxD), None


def grouped_conv(x_RxHxWxD: Array, kernel: Array, groups: int) -> Array:
  """2-D convolution in `groups` groups, zero padding, same size.

  Args:
    x_RxHxWxD: The maps.
    kernel: [edge, edge, D / groups, D].
    groups: Group g maps channels g * D / groups onwards to the same.
  """
  return jax.lax.platform_dependent(
      x_RxHxWxD,
      kernel,
      cpu=functools.partial(_cpu_conv, groups),
      default=lambda x, k: _conv(x, k, groups),
  )


def _conv(x: Array, kernel: Array, groups: int) -> Array:
  return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', feature_group_count=groups,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _split_conv(groups: int, x: Array, kernel: Array) -> Array:
  parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1))
  return jnp.concatenate([_conv(*part, 1) for part in parts], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cpu_conv(groups: int, x: Array, kernel: Array) -> Array:
  """The grouped convolution in the form that XLA's CPU backend runs well.

  There a grouped convolution is 7 times slower than one for each group, and
  its filter gradient is computed naively (15 times slower than as a matrix
  product, whether grouped or not).
  """
  return _split_conv(groups, x, kernel)


def _cpu_conv_forward(
    groups: int, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
  return _split_conv(groups, x, kernel), (x, kernel)


def _cpu_conv_backward(
    groups: int, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
  x, kernel = saved
  edge, _, inputs, _ = kernel.shape
  back = kernel[::-1, ::-1].reshape(edge, edge, inputs, groups, -1)
  back = back.swapaxes(2, 4).reshape(kernel.shape)
  # A tap (i, j) is a product of x moved by j along one axis and dy moved by -i
  # along the other; one product of all that are moved has every tap.
  moves = range(-(edge // 2), edge // 2 + 1)
  x_GxPxJI = _by_group([_moved(x, 2, by) for by in moves], groups)
  dy_GxPxIO = _by_group([_moved(dy, 1, -by) for by in moves], groups)
  dkernel = jnp.einsum('gpa,gpb->gab', x_GxPxJI, dy_GxPxIO)
  dkernel = dkernel.reshape(groups, edge, inputs, edge, -1)
  return (_split_conv(groups, dy, back),
          dkernel.transpose(3, 1, 2, 0, 4).reshape(kernel.shape))


def _by_group(xs: Sequence[Array], groups: int) -> Array:
  """Maps [R, H, W, D] as [groups, R * H * W, len(xs) * D / groups]."""
  return jnp.concatenate([
      x.reshape(-1, groups, x.shape[-1] // groups).swapaxes(0, 1) for x in xs
  ], axis=-1)


def _moved(x: Array, axis: int, by: int) -> Array:
  """At n what x has at n + by along the axis, 0 where it has nothing."""
  padding = [(0, 0, 0)] * x.ndim
  padding[axis] = (-by, by, 0)
  return jax.lax.pad(x, jnp.zeros((), x.dtype), padding)


_cpu_conv.defvjp(_cpu_conv_forward, _cpu_conv_backward)


def patchify(mel_BxTxF: Array, patch: int) -> Array:
  """Flat patches [B, N, patch * patch], index = time * mel patches + mel."""
  batch, frames, mel_bins = mel_BxTxF.shape
  rows, columns = frames // patch, mel_bins // patch
  x = mel_BxTxF[:, : rows * patch].reshape(batch, rows, patch, columns, patch)
  return x.swapaxes(2, 3).reshape(batch, rows * columns, patch * patch)


def positions(grid: tuple[int, int], width: int) -> np.ndarray:
  """Fixed 2-D sin-cos table, float32 [N, D].

  The first half of the channels encodes mel, the second time; each half is
  [sin, cos]. Source: get_2d_sincos_pos_embed_flexible of EAT, in float32.
  """
  time, mel = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
  rank = np.arange(width // 4, dtype=np.float32) / np.float32(width / 4)
  omega = 1 / np.float32(_WAVELENGTH) ** rank
  halves = []
  for place in (mel, time):
    angle = place.astype(np.float32)[:, None] * omega
    halves += [np.sin(angle), np.cos(angle)]
  return np.concatenate(halves, axis=1).astype(np.float32)


def symmetric_uniform(limit: float) -> nn.initializers.Initializer:
  """Uniform in (-limit, limit)."""

  def init(
      key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32
  ) -> Array:
    return jax.random.uniform(key, shape, dtype, -limit, limit)

  return init


def truncated_normal(std: float) -> nn.initializers.Initializer:
  """N(0, std^2) without what is further than 2 from 0, as timm has it."""

  def init(
      key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32
  ) -> Array:
    end = 2 / std
    return std * jax.random.truncated_normal(key, -end, end, shape, dtype)

  return init


def _scaled(x_RxSxD: Array, branch_Rx2: Array | None, branch: int) -> Array:
  if branch_Rx2 is None:
    return x_RxSxD
  factor_Rx1x1 = branch_Rx2[:, branch, None, None]
  return x_RxSxD * factor_Rx1x1.astype(x_RxSxD.dtype)


def _dense(x_RxSxD: Array, width: int, dtype: jnp.dtype, name: str) -> Array:
  """A dense layer of all tokens, in one axis.

  Of two axes XLA's CPU backend copies a factor of the weights' gradient, which
  then takes up to 1.4 times as long.
  """
  init = nn.initializers.normal(0.02)
  dense = nn.Dense(width, dtype=dtype, kernel_init=init, name=name)
  rows, tokens, inputs = x_RxSxD.shape
  return dense(x_RxSxD.reshape(-1, inputs)).reshape(rows, tokens, width)


def _layer_norm(name: str) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=_NORM_EPSILON, use_fast_variance=False,
                      dtype=jnp.float32, name=name)
