"""A stage's loss, set up as the official numbers were made."""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from sslam_jax import audio
from sslam_jax import masking
from sslam_jax import mixing
from sslam_jax import objectives
from sslam_jax import state
from sslam_jax import torch_io
from sslam_jax import views as views_lib
from tools.golden import encoder
from tools.golden import folder
from tools.golden import latents
from tools.golden import weights

# Official names of the global, local and retention terms.
LOSS_NAMES = {
    1: ('cls', 'IMAGE_regression'),
    2: ('eat_cls_loss', 'eat_patch_loss', 'mix_patch_loss'),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
  """A stage's loss on one batch.

  Attributes:
    stage: 1 or 2.
    objective: As the folder's README maps our configuration to its numbers.
    params: The student's.
    teacher: The teacher's.
    mel_BxTxF: The clips.
    hidden_BxMxN: Their masks.
  """

  stage: int
  objective: objectives.MaskedLatent
  params: state.Params
  teacher: state.Params
  mel_BxTxF: np.ndarray
  hidden_BxMxN: np.ndarray

  @property
  def copies(self) -> int:
    """Of each clip: clean, mixed."""
    return len(self.objective.sides)

  @property
  def hidden_RxN(self) -> np.ndarray:
    """Masks of clips and clones in one axis."""
    return self.hidden_BxMxN.reshape(-1, self.hidden_BxMxN.shape[-1])

  @property
  def sample_size(self) -> int:
    """Hidden tokens of all copies: what the official sums are divided by."""
    return self.copies * int(self.hidden_BxMxN.sum())

  def columns(self, idx: np.ndarray) -> np.ndarray:
    """The mixed columns when the clean windows start at frames `idx`."""
    patch = self.objective.vit.patch
    if idx.shape != (2,) or np.any(idx % patch):
      raise folder.BadFolderError(
          f'idx: want two multiples of {patch} frames, got {idx.tolist()}')
    columns = self.mel_BxTxF.shape[1] // patch
    clean = mixing.PartialMix().clean(columns)
    return mixing.mixed_columns(idx // patch, clean, columns)

  def views(self, idx: np.ndarray | None) -> views_lib.Views:
    """All views of the batch; without mixtures if `idx` is None."""
    clips, clones, _ = self.hidden_BxMxN.shape
    keep_BxMxK = masking.kept_indices(self.hidden_RxN).reshape(
        clips, clones, -1)
    mel_BxTxF, mixture = jnp.asarray(self.mel_BxTxF), None
    if idx is not None:
      record = {'column': np.tile(self.columns(idx), (clips, 1))}
      mixture = views_lib.mixture_of(
          mel_BxTxF, record, mixing.PartialMix(group=clips), audio.LogMel(),
          self.objective.vit.patch)
    return views_lib.Views(
        mel_BxTxF, jnp.asarray(keep_BxMxK), jnp.arange(clips), mixture)

  def latents(self, views: views_lib.Views) -> dict[str, Any]:
    """Outputs of student and teacher, as `latents.rebuild` describes them."""
    rebuilt = self._jitted_latents(self.params, self.teacher, views)
    return jax.tree.map(np.asarray, rebuilt)

  def backward(
      self, views: views_lib.Views, term: int
  ) -> tuple[np.ndarray, dict[str, Array], folder.Tensors]:
    """Loss and terms, what is logged, and the gradient of one of the former."""
    weight_W = np.eye(1 + len(LOSS_NAMES[self.stage]), dtype=np.float32)[term]
    (_, (shares, metrics)), gradient = self._jitted_backward(
        self.params, self.teacher, views, weight_W)
    gradient = torch_io.to_torch(jax.tree.map(np.asarray, gradient))
    return np.asarray(shares), metrics, gradient

  @functools.cached_property
  def _jitted_latents(self) -> Callable[..., Any]:
    return jax.jit(functools.partial(latents.rebuild, self.objective))

  @functools.cached_property
  def _jitted_backward(self) -> Callable[..., Any]:
    return jax.jit(jax.value_and_grad(
        functools.partial(_weighted, self.objective), has_aux=True))


@functools.lru_cache(maxsize=1)  # one is large at full size
def set_up(golden: folder.Golden, case: str, stage: int) -> Trial:
  """Sets up a case of cases.json, with the masks in its npz."""
  params = weights.params(golden, case, 'student')
  if 'decoder' not in params:
    raise golden.bad_case((case, 'student'), 'has no decoder')
  mel_BxTxF = weights.source(golden, case)
  hidden_BxMxN = _masks(golden, case, len(mel_BxTxF))
  return Trial(
      stage=stage,
      objective=_objective(
          params, stage, stage * math.prod(hidden_BxMxN.shape[:2])),
      params=params,
      teacher=weights.params(golden, case, 'teacher')['encoder'],
      mel_BxTxF=mel_BxTxF,
      hidden_BxMxN=hidden_BxMxN,
  )


def loss(
    objective: objectives.MaskedLatent, params: state.Params,
    teacher: state.Params, views: views_lib.Views,
) -> tuple[Array, dict[str, Array], dict[str, Array]]:
  """The loss, its sums and counts; nothing is random without decoder noise."""
  counts = objective.counts(views)
  rng = jax.random.key(0)
  return *objective.loss(params, teacher, views, rng, counts), counts


def _masks(golden: folder.Golden, case: str, clips: int) -> np.ndarray:
  """The masks of a file of losses: bool [B, M, N]."""
  section, clones = golden.section(case), golden.case(case, 'clones')
  mask_RxN = section.need('mask')
  kept = (mask_RxN == 0).sum(-1)
  if mask_RxN.ndim != 2 or len(mask_RxN) != clips * clones or np.ptp(kept):
    raise folder.BadFolderError(
        f'{section.file.path}: mask: want {clips} x {clones} rows that keep '
        f'equally many patches, got {list(mask_RxN.shape)}, '
        f'{np.unique(kept)} kept')
  return mask_RxN.astype(bool).reshape(clips, clones, -1)


def _objective(
    params: state.Params, stage: int, rows: int
) -> objectives.MaskedLatent:
  """Reference behaviour: class token loss summed, all hidden tokens count."""
  common: dict[str, Any] = {
      'vit': encoder.vit_of(params['encoder']),
      'decoder': dataclasses.replace(
          torch_io.decoder_of(params), noise_std=0.0),
      'global_weight': float(rows),
  }
  if stage == 1:
    return objectives.MaskedLatent(**common, global_layers=None)
  return objectives.SourceRetention(
      **common, global_layers=1, srl_patches='all')


def _weighted(
    objective: objectives.MaskedLatent, params: state.Params,
    teacher: state.Params, views: views_lib.Views, weight_W: Array,
) -> tuple[Array, tuple[Array, dict[str, Array]]]:
  """Loss and terms under weights: one compilation for all their gradients."""
  total, sums, counts = loss(objective, params, teacher, views)
  clip, patch = (
      sum(sums[f'{kind}_{side}'] for side in objective.sides)
      / len(objective.sides) for kind in ('global', 'local')
  )
  shares = [total, objective.global_weight * clip, patch]
  if 'retention' in sums:
    shares.append(sums['retention'])
  share_W = jnp.stack(shares)
  return jnp.dot(weight_W, share_W), (share_W, objective.metrics(sums, counts))
