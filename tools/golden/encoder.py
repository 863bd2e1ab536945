"""The encoder's features, and every block of it."""

import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from sslam_jax import model
from sslam_jax import torch_io
from tools.golden import folder
from tools.golden import measures
from tools.golden import weights


def vit_of(encoder: Any) -> model.Vit:
  """The configuration that these parameters belong to, in float32."""
  vit = torch_io.vit_of({'encoder': encoder})
  return dataclasses.replace(vit, dtype='float32')


def with_clip(encoded: model.Encoded) -> Array:
  """Class token and patch tokens in one array."""
  clip_Rx1xD = encoded.clip_RxD[:, None]
  return jnp.concatenate([clip_Rx1xD, encoded.patch_RxKxD], axis=1)


def check(golden: folder.Golden) -> None:
  """All inputs of `features.npz`."""
  section = golden.section('features')
  encoder = weights.params(golden, 'features', 'student')['encoder']
  for name in golden.case('features', 'inputs'):
    part = section.under(f'{name}/')
    mel_BxTxF = _input(golden, part, name)
    if mel_BxTxF is not None:
      part.expect('x', 'x_strided')
      _check_output(part, encoder, mel_BxTxF)
      _check_blocks(part, encoder, mel_BxTxF)


def _input(
    golden: folder.Golden, part: folder.Section, name: str
) -> np.ndarray | None:
  """The log-mels [B, T, F] of an entry of features/inputs."""
  entry = ('features', 'inputs', name)
  frames, origin = golden.case(*entry, 'frames'), golden.case(*entry, 'from')
  if origin == 'source':
    return weights.source(golden, 'features')[:, :frames]
  if origin != 'fbank':
    raise golden.bad_case(entry, f'from {origin!r}, want source or fbank')
  if not golden.has('fbank'):
    part.skip('*', 'needs fbank.npz')
    return None
  clip = golden.case(*entry, 'clip')
  return golden.section('fbank').need(f'{clip}/norm')[None, :frames]


def _check_output(
    part: folder.Section, encoder: Any, mel_BxTxF: np.ndarray
) -> None:
  encoded = jax.jit(model.Encoder(vit_of(encoder)).apply)(
      {'params': encoder}, mel_BxTxF
  )
  x_BxSxD, patch_BxNxD = with_clip(encoded), encoded.patch_RxKxD
  part.compare('shape_all', x_BxSxD.shape, measures.EQUAL)
  part.compare('shape_frame', patch_BxNxD.shape, measures.EQUAL)
  part.compare('x', x_BxSxD, measures.VALUES)
  part.compare('x_strided', x_BxSxD[:, ::16, ::8], measures.VALUES)
  part.compare('cls', encoded.clip_RxD, measures.VALUES)
  part.compare('token_l2', measures.l2(x_BxSxD, 2), measures.NORM)
  part.compare('mean_over_patches', patch_BxNxD.mean(1), measures.VALUES)


def _check_blocks(
    part: folder.Section, encoder: Any, mel_BxTxF: np.ndarray
) -> None:
  """The first block's input; every block's output and MLP output."""
  vit = vit_of(encoder)
  x_BxSxD = jax.jit(functools.partial(_embed, vit))(encoder, mel_BxTxF)
  part.compare('context_encoder_out_slice', x_BxSxD[:, ::16, ::16],
               measures.VALUES)
  part.compare('context_encoder_out_l2', measures.l2(x_BxSxD, 2), measures.NORM)
  block = jax.jit(functools.partial(_block, vit))
  layers: dict[str, list[Array]] = {'block_out': [], 'layer_result': []}
  for layer in range(vit.depth):
    params = jax.tree.map(lambda x, layer=layer: x[layer], encoder['blocks'])
    x_BxSxD, h_BxSxD = block(params, x_BxSxD)
    layers['block_out'].append(x_BxSxD)
    layers['layer_result'].append(h_BxSxD)
  for key, parts in layers.items():
    part.compare(f'{key}_l2', [measures.l2(x, 0) for x in parts], measures.NORM)
    slices = np.stack([x[:, ::64, ::64] for x in parts], axis=1)
    part.compare(f'{key}_slice', slices, measures.VALUES)


def _embed(vit: model.Vit, encoder: Any, mel_BxTxF: Array) -> Array:
  """What enters the first block."""
  return _capture(model.Encoder(vit), 'pre_norm', encoder, mel_BxTxF)[1]


def _block(vit: model.Vit, params: Any, x_BxSxD: Array) -> tuple[Array, Array]:
  """A block's output and its MLP's, both with the class token."""
  block = model.Block(vit, with_output=False)
  (x_BxSxD, _), h_BxSxD = _capture(block, 'mlp2', params, x_BxSxD, None)
  return x_BxSxD, h_BxSxD.reshape(x_BxSxD.shape)  # tokens in one axis


def _capture(
    module: nn.Module, name: str, params: Any, *inputs: Array | None
) -> tuple[Any, Array]:
  """Outputs of a module and of its submodule `name`."""
  outputs, others = module.apply(
      {'params': params}, *inputs, mutable=['intermediates'],
      capture_intermediates=lambda inner, _: inner.name == name,
  )
  return outputs, others['intermediates'][name]['__call__'][0]
