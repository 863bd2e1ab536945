"""What a loss is made of, rebuilt from the public parts of the package."""

import math
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp

from sslam_jax import mixing
from sslam_jax import model
from sslam_jax import objectives
from sslam_jax import state
from sslam_jax import targets
from sslam_jax import views as views_lib
from tools.golden import encoder


def rebuild(
    objective: objectives.MaskedLatent, params: state.Params,
    teacher: state.Params, views: views_lib.Views,
) -> dict[str, Any]:
  """Outputs of the student ('student') and of the teacher.

  The teacher's are 'full' (all student inputs, unmasked) and, with mixtures,
  'dropped' (the partner's columns alone) and 'joined' (the mixture's target).
  """
  mixture = views.mixture
  mels = [views.mel_BxTxF] + ([mixture.mel_BxTxF] if mixture else [])
  mel_VBxTxF = jnp.concatenate(mels)
  full = _taught(objective, teacher, mel_VBxTxF, None)
  student = _studied(objective, params, mel_VBxTxF, views.keep_BxMxK)
  if mixture is None:
    return {'full': full, 'student': student}
  _, mel_patches = objective.vit.grid(*mel_VBxTxF.shape[1:])
  token_BxC = mixing.tokens(mixture.column_BxC, mel_patches)
  partner = _taught(objective, teacher, mixture.partners_BxTxF[0], token_BxC)
  own_BxNxD = full['target'][:len(token_BxC)]
  return {
      'full': full,
      'student': student,
      # The clip before each of ours; the official arrays are in clip order.
      'dropped': jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), partner),
      'joined': targets.join(own_BxNxD, [partner['target']], token_BxC),
  }


def _taught(
    objective: objectives.MaskedLatent, teacher: state.Params,
    mel_BxTxF: Array, keep_BxK: Array | None,
) -> dict[str, Array]:
  """The teacher's targets, and the norms of its output."""
  encoded: Any = model.Encoder(objective.vit).apply(
      {'params': teacher}, mel_BxTxF, keep_BxK, with_layers=True)
  layers_LxBxNxD = encoded.layers_LxRxKxD
  last_BxNxD = targets.average_layers(
      layers_LxBxNxD, last=objective.global_layers)
  norm_B = jnp.sqrt(jnp.sum(encoder.with_clip(encoded) ** 2, axis=(1, 2)))
  return {
      'target': targets.average_layers(layers_LxBxNxD, last=None),
      'last': last_BxNxD,
      'clip': last_BxNxD.mean(1),
      'norm': norm_B,
  }


def _studied(
    objective: objectives.MaskedLatent, params: state.Params,
    mel_VBxTxF: Array, keep_BxMxK: Array,
) -> dict[str, Array]:
  """The student's tokens, class token and decoded patches, [rows, ...]."""
  copies = len(mel_VBxTxF) // len(keep_BxMxK)
  keep_RxK = jnp.tile(keep_BxMxK, (copies, 1, 1)).reshape(
      -1, keep_BxMxK.shape[-1])
  encoded: Any = model.Encoder(objective.vit).apply(
      {'params': params['encoder']}, mel_VBxTxF, keep_RxK)
  grid = objective.vit.grid(*mel_VBxTxF.shape[1:])
  fill = jnp.zeros((len(keep_RxK), math.prod(grid), objective.vit.width))
  decoder = model.ConvDecoder(objective.decoder, objective.vit.dtype)
  out_RxNxD = decoder.apply(
      {'params': params['decoder']}, encoded.patch_RxKxD, keep_RxK, fill, grid)
  return {
      'x': encoder.with_clip(encoded),
      'clip': encoded.clip_RxD,
      'out': out_RxNxD,
  }
