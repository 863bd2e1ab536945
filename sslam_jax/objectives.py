"""What a run learns: stage 1 (masked latents) and stage 2 (source retention).

An objective returns its device's share of the global loss: every sum is
divided by the count over the whole batch. Shares add up over devices and
accumulated parts, so that no weight depends on how a batch is cut.
"""

import dataclasses
import math
from typing import Any, Literal, Protocol

import flax
import jax
import jax.numpy as jnp
from jax import Array

from sslam_jax import clips
from sslam_jax import losses
from sslam_jax import mixing
from sslam_jax import model
from sslam_jax import state
from sslam_jax import targets
from sslam_jax import views as views_lib

Scalars = dict[str, Array]


@flax.struct.dataclass
class Side:
  """Student and teacher on one kind of clip, clean or mixed.

  Attributes:
    prediction_BxMxNxD: The student's, of every patch, from each clone.
    clip_BxMxD: Its class tokens.
    target_BxNxD: The teacher's latents.
    clip_target_BxD: Their mean over the clip.
  """

  prediction_BxMxNxD: Array
  clip_BxMxD: Array
  target_BxNxD: Array
  clip_target_BxD: Array


class Objective(Protocol):
  """The only thing that training knows about learning."""

  vit: model.Vit

  @property
  def ema(self) -> state.Ema | None:
    """How the teacher follows; None: there is no teacher."""

  @property
  def frozen(self) -> tuple[str, ...]:
    """Top-level parts of the parameters that are not learned."""

  @property
  def inherited(self) -> tuple[str, ...] | None:
    """Parts of the parameters that `init_from` gives.

    None: all of them, and its teacher.
    """

  def check(self, views: views_lib.Kind) -> None:
    """Raises ValueError where these are not the views that it learns from."""

  def check_source(self, source: clips.Source) -> None:
    """Raises ValueError where it cannot learn from these clips."""

  def init(
      self, rng: Array, shape: tuple[int, int], classes: int
  ) -> state.Params:
    """Initial parameters, for log-mels of `shape` [T, F] and some classes."""

  def teacher(self, params: state.Params) -> state.Params:
    """The part of the parameters that the teacher follows."""

  def counts(self, views: Any) -> Scalars:
    """How many items each term averages over in these views."""

  def loss(
      self,
      params: state.Params,
      teacher: state.Params,
      views: Any,
      rng: Array,
      counts: Scalars,
  ) -> tuple[Array, Scalars]:
    """The share of these views in the loss, and sums for `metrics`."""

  def metrics(self, sums: Scalars, counts: Scalars) -> Scalars:
    """What is logged, from sums and counts over the whole batch."""


@dataclasses.dataclass(kw_only=True)
class MaskedLatent:
  """Stage 1: the student predicts the teacher's latents of hidden patches.

  loss = local + global_weight * global, each a mean over all tokens or rows.

  Attributes:
    vit: The encoder of student and teacher.
    decoder: The student's decoder.
    ema: How the teacher follows.
    global_weight: Weight of the class token's loss. The published code sums
      it over the 192 rows of a GPU, hence 192 times the mean.
    local_layers: Last layers averaged into the patch targets (None: all).
    global_layers: The same for the class token's target.
  """

  vit: model.Vit = dataclasses.field(default_factory=model.Vit)
  decoder: model.Decoder = dataclasses.field(default_factory=model.Decoder)
  ema: state.Ema = dataclasses.field(default_factory=state.Ema)
  global_weight: float = 192.0
  local_layers: int | None = None
  global_layers: int | None = None

  def __post_init__(self) -> None:
    if self.vit.width % self.decoder.groups:
      raise ValueError(f'decoder.groups: want a divisor of vit.width '
                       f'{self.vit.width}, got {self.decoder.groups}')
    if not 0 <= self.global_weight < math.inf:
      raise ValueError(f'global_weight: want at least 0, '
                       f'got {self.global_weight}')
    for name in ('local_layers', 'global_layers'):
      layers = getattr(self, name)
      if layers is not None and not 1 <= layers <= self.vit.depth:
        raise ValueError(f'{name}: want None or 1 to {self.vit.depth} '
                         f'(vit.depth), got {layers}')

  @property
  def frozen(self) -> tuple[str, ...]:
    return ()

  @property
  def inherited(self) -> None:
    return None

  def check(self, views: views_lib.Kind) -> None:
    if _masked(views).mix is not None:
      raise ValueError('data.views.mix: want None, as the objective sees no '
                       'mixtures; got a mix')

  def check_source(self, source: clips.Source) -> None:
    pass  # any will do

  @property
  def sides(self) -> tuple[str, ...]:
    """Which kinds of clip the student sees."""
    return ('clean',)

  def init(
      self, rng: Array, shape: tuple[int, int], classes: int = 0
  ) -> state.Params:
    del classes
    encoder_rng, decoder_rng = jax.random.split(rng)
    grid, width = self.vit.grid(*shape), self.vit.width
    encoder = self._encoder.init(encoder_rng, jnp.zeros((1, *shape)))
    decoder = self._decoder.init(
        decoder_rng,
        jnp.zeros((1, 1, width)),
        jnp.zeros((1, 1), jnp.int32),
        jnp.zeros((1, math.prod(grid), width)),
        grid,
    )
    return {'encoder': encoder['params'], 'decoder': decoder['params']}

  def teacher(self, params: state.Params) -> state.Params:
    return params['encoder']

  def counts(self, views: views_lib.Views) -> Scalars:
    clips, clones, kept = views.keep_BxMxK.shape
    hidden = clips * clones * (self._patches(views) - kept)
    return {
        'rows': jnp.float32(clips * clones),
        'hidden': jnp.float32(hidden),
    }

  def loss(
      self,
      params: state.Params,
      teacher: state.Params,
      views: views_lib.Views,
      rng: Array,
      counts: Scalars,
  ) -> tuple[Array, Scalars]:
    sums, _ = self._bootstrap(params, teacher, views, rng, counts)
    return self._total(sums), sums

  def metrics(self, sums: Scalars, counts: Scalars) -> Scalars:
    hidden = counts['hidden'] * len(self.sides)
    terms = {name: value for name, value in sums.items() if value.ndim == 0}
    return terms | {
        'loss': self._total(sums),
        'target_std': losses.mean_std(sums['target_moments'], hidden),
        'prediction_std': losses.mean_std(sums['prediction_moments'], hidden),
    }

  @property
  def _encoder(self) -> model.Encoder:
    return model.Encoder(self.vit)

  @property
  def _decoder(self) -> model.ConvDecoder:
    return model.ConvDecoder(self.decoder, self.vit.dtype)

  def _patches(self, views: views_lib.Views) -> int:
    return math.prod(self.vit.grid(*views.mel_BxTxF.shape[1:]))

  def _total(self, sums: Scalars) -> Array:
    """The weighted loss; local and global are means over the sides."""
    local = [sums[f'local_{side}'] for side in self.sides]
    clip = [sums[f'global_{side}'] for side in self.sides]
    return sum(local, jnp.float32(0)) / len(local) + self.global_weight * (
        sum(clip, jnp.float32(0)) / len(clip)
    )

  def _mels(self, views: views_lib.Views) -> dict[str, Array]:
    """The log-mels of each side."""
    return {'clean': views.mel_BxTxF}

  def _bootstrap(
      self,
      params: state.Params,
      teacher: state.Params,
      views: views_lib.Views,
      rng: Array,
      counts: Scalars,
  ) -> tuple[Scalars, dict[str, Side]]:
    """Shares of the local and global terms and moments, and the sides."""
    mel_VBxTxF = jnp.concatenate(list(self._mels(views).values()))
    targets_VB = self._teach(teacher, mel_VBxTxF)
    predictions_VB = self._study(params, mel_VBxTxF, views, rng)
    sides = {
        name: Side(*(jnp.split(x, len(self.sides))[v]
                     for x in (*predictions_VB, *targets_VB)))
        for v, name in enumerate(self.sides)
    }
    hidden_BxMxN = views.hidden_BxMxN(self._patches(views))
    shares = [
        _shares(name, side, hidden_BxMxN, counts)
        for name, side in sides.items()
    ]
    moments = [_moments(side, hidden_BxMxN) for side in sides.values()]
    sums = jax.tree.map(lambda *x: sum(x[1:], x[0]), *moments)
    return {k: v for share in shares for k, v in share.items()} | sums, sides

  def _teach(
      self, teacher: state.Params, mel_BxTxF: Array
  ) -> tuple[Array, Array]:
    """Targets of whole clips: [B, N, D] for patches, [B, D] for the clip."""
    layers_LxBxNxD = self._layers(teacher, mel_BxTxF, None)
    target_BxNxD = targets.average_layers(
        layers_LxBxNxD, last=self.local_layers
    )
    clip_target_BxNxD = targets.average_layers(
        layers_LxBxNxD, last=self.global_layers
    )
    return target_BxNxD, clip_target_BxNxD.mean(1)

  def _layers(
      self, teacher: state.Params, mel_BxTxF: Array, keep_BxK: Array | None
  ) -> Array:
    encoded: Any = self._encoder.apply(
        {'params': teacher}, mel_BxTxF, keep_BxK, with_layers=True
    )
    return encoded.layers_LxRxKxD

  def _study(
      self,
      params: state.Params,
      mel_VBxTxF: Array,
      views: views_lib.Views,
      rng: Array,
  ) -> tuple[Array, Array]:
    """Predictions [VB, M, N, D] and class tokens [VB, M, D] of the clones."""
    _, clones, kept = views.keep_BxMxK.shape
    copies = len(mel_VBxTxF) // len(views.row_B)
    keep_RxK = jnp.tile(views.keep_BxMxK, (copies, 1, 1)).reshape(-1, kept)
    encoded: Any = self._encoder.apply(
        {'params': params['encoder']}, mel_VBxTxF, keep_RxK
    )
    shape = (clones, self._patches(views), self.vit.width)
    fill = _noise(rng, views.row_B, copies, shape, self.decoder.noise_std)
    prediction_RxNxD: Any = self._decoder.apply(
        {'params': params['decoder']},
        encoded.patch_RxKxD,
        keep_RxK,
        fill.reshape(-1, *shape[1:]),
        self.vit.grid(*mel_VBxTxF.shape[1:]),
    )
    prediction_VBxMxNxD = prediction_RxNxD.reshape(-1, *shape)
    clip_VBxMxD = encoded.clip_RxD.reshape(-1, clones, self.vit.width)
    return prediction_VBxMxNxD, clip_VBxMxD


@dataclasses.dataclass(kw_only=True)
class SourceRetention(MaskedLatent):
  """Stage 2: clean and partially mixed clips, and every source retained.

  loss = local + global_weight * global + retention_weight * retention.
  The arms of the paper's Table 2: MB-UA clean only, MB-PMA mixed only,
  MB-UA-PMA both, SSLAM both and retention.

  Attributes:
    clean: The student sees clean clips.
    mixed: The student sees partial mixtures.
    retention_weight: Weight of the source retention loss; 0 leaves it out.
    srl_patches: It counts hidden patches of 'mixed' columns, as in equation 4,
      or 'all' hidden patches, as in the published code.
  """

  global_layers: int | None = 1
  clean: bool = True
  mixed: bool = True
  retention_weight: float = 1.0
  srl_patches: Literal['mixed', 'all'] = 'mixed'

  def __post_init__(self) -> None:
    super().__post_init__()
    if not (self.clean or self.mixed):
      raise ValueError('clean: want clean or mixed clips, got neither')
    if not 0 <= self.retention_weight < math.inf:
      raise ValueError(f'retention_weight: want at least 0, '
                       f'got {self.retention_weight}')
    if self.retention_weight and not (self.clean and self.mixed):
      raise ValueError(
          'retention_weight: source retention wants clean and mixed clips, '
          f'got clean={self.clean}, mixed={self.mixed}'
      )

  def check(self, views: views_lib.Kind) -> None:
    if not self.mixed:
      super().check(views)
    elif _masked(views).mix is None:
      raise ValueError('data.views.mix: want how to mix, as the objective sees '
                       'mixtures; got None')

  @property
  def sides(self) -> tuple[str, ...]:
    return ('clean',) * self.clean + ('mixed',) * self.mixed

  def counts(self, views: views_lib.Views) -> Scalars:
    counts = super().counts(views)
    if self.retention_weight:
      retained = jnp.sum(self._retained_BxMxN(views), dtype=jnp.float32)
      counts['retained'] = retained
    return counts

  def loss(
      self,
      params: state.Params,
      teacher: state.Params,
      views: views_lib.Views,
      rng: Array,
      counts: Scalars,
  ) -> tuple[Array, Scalars]:
    sums, sides = self._bootstrap(params, teacher, views, rng, counts)
    if self.retention_weight:
      target_BxNxD = self._retention_target(teacher, views, sides['clean'])
      error_BxMxN = losses.regression(
          sides['mixed'].prediction_BxMxNxD, target_BxNxD[:, None]
      )
      error = jnp.sum(error_BxMxN, where=self._retained_BxMxN(views))
      # No token counts where hardly any is hidden.
      sums['retention'] = error / jnp.maximum(counts['retained'], 1.0)
    return self._total(sums), sums

  def _total(self, sums: Scalars) -> Array:
    total = super()._total(sums)
    if not self.retention_weight:
      return total
    return total + self.retention_weight * sums['retention']

  def _mels(self, views: views_lib.Views) -> dict[str, Array]:
    mels = {'clean': views.mel_BxTxF}
    if views.mixture is not None:
      mels['mixed'] = views.mixture.mel_BxTxF
    return {side: mels[side] for side in self.sides}

  def _tokens(self, views: views_lib.Views) -> Array:
    """Patches in mixed columns: int32 [B, C * mel patches]."""
    assert views.mixture is not None
    _, mel_patches = self.vit.grid(*views.mel_BxTxF.shape[1:])
    return mixing.tokens(views.mixture.column_BxC, mel_patches)

  def _retained_BxMxN(self, views: views_lib.Views) -> Array:
    """Where the source retention loss counts."""
    hidden_BxMxN = views.hidden_BxMxN(self._patches(views))
    if self.srl_patches == 'all':
      return hidden_BxMxN
    token_BxC = self._tokens(views)
    is_mixed_BxN = jnp.zeros(hidden_BxMxN[:, 0].shape, bool)
    row_Bx1 = jnp.arange(len(token_BxC))[:, None]
    is_mixed_BxN = is_mixed_BxN.at[row_Bx1, token_BxC].set(True)
    return hidden_BxMxN & is_mixed_BxN[:, None]

  def _retention_target(
      self, teacher: state.Params, views: views_lib.Views, clean: Side
  ) -> Array:
    """Mean of all sources' targets where mixed, the clip's own elsewhere.

    A partner's come from a pass over its mixed columns alone: what it would
    hear of itself there without its clean windows.
    """
    assert views.mixture is not None
    token_BxC = self._tokens(views)
    partners_BxCxD = [
        targets.average_layers(self._layers(teacher, mel_BxTxF, token_BxC),
                               last=self.local_layers)
        for mel_BxTxF in views.mixture.partners_BxTxF
    ]
    return targets.join(clean.target_BxNxD, partners_BxCxD, token_BxC)


def _masked(views: views_lib.Kind) -> views_lib.Masked:
  if not isinstance(views, views_lib.Masked):
    raise ValueError(f'data.views: want Masked, as the objective predicts '
                     f'hidden patches; got {type(views).__name__}')
  return views


def _noise(
    rng: Array,
    row_B: Array,
    copies: int,
    shape: tuple[int, ...],
    std: float,
) -> Array:
  """Gaussian noise [copies * B, *shape], a function of copy and row alone."""
  if std == 0:
    return jnp.zeros((copies * len(row_B), *shape))
  keys = jax.vmap(
      lambda copy: jax.vmap(
          lambda row: jax.random.fold_in(jax.random.fold_in(rng, copy), row)
      )(row_B)
  )(jnp.arange(copies)).reshape(-1)
  return std * jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def _shares(
    name: str, side: Side, hidden_BxMxN: Array, counts: Scalars
) -> Scalars:
  """This device's shares of a side's local and global means."""
  error_BxMxN = losses.regression(
      side.prediction_BxMxNxD, side.target_BxNxD[:, None]
  )
  clip_error_BxM = losses.regression(
      side.clip_BxMxD, side.clip_target_BxD[:, None]
  )
  return {
      f'local_{name}': jnp.sum(error_BxMxN, where=hidden_BxMxN)
      / counts['hidden'],
      f'global_{name}': jnp.sum(clip_error_BxM) / counts['rows'],
  }


def _moments(side: Side, hidden_BxMxN: Array) -> Scalars:
  """Moments over hidden tokens, of targets and predictions."""
  prediction = jax.lax.stop_gradient(side.prediction_BxMxNxD)
  return {
      'target_moments': losses.moments(
          side.target_BxNxD, hidden_BxMxN.sum(1)
      ),
      'prediction_moments': losses.moments(prediction, hidden_BxMxN),
  }
