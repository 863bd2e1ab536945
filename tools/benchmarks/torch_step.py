"""A training step in plain PyTorch, and how much faster ours is.

What a PyTorch user would write: eager, under autocast where the configuration
computes in bfloat16, with PyTorch's own attention, AdamW, clip and average of
weights. It does the work of a step of `objectives`, except the deviations that
are logged. It needs torch, which is optional: import this where it is used.
"""

from collections.abc import Callable
import math
import statistics
import time
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import swa_utils

from sslam_jax import data as data_lib
from sslam_jax import model
from sslam_jax import objectives
from sslam_jax import optim as optim_lib
from sslam_jax import state as state_lib
from sslam_jax import torch_io
from sslam_jax import train
from sslam_jax.exported import sslam_torch
from tools.benchmarks import machine
from tools.benchmarks import training

# Of the decoder's maps. Which one is faster depends on the device.
LAYOUTS = {'channels last': torch.channels_last,
           'channels first': torch.contiguous_format}
_NORM_EPSILON = 1e-5  # of decoder and targets
_ROUNDS, _STEPS = 5, 3  # at least; of either side in a round


class Decoder(nn.Module):
  """Predicts every patch's target from the kept patches."""

  def __init__(
      self, width: int, config: model.Decoder, layout: torch.memory_format
  ) -> None:
    super().__init__()
    self.noise_std, self.layout = config.noise_std, layout
    self.blocks = nn.ModuleList(
        nn.Sequential(
            nn.Conv2d(width, width, config.kernel, groups=config.groups,
                      padding=config.kernel // 2),
            ChannelNorm(),
            nn.GELU(),
        )
        for _ in range(config.depth)
    )
    self.proj = nn.Linear(width, width)

  def forward(
      self, patch_RxKxD: Tensor, keep_RxK: Tensor, grid: tuple[int, int]
  ) -> Tensor:
    """Predictions [R, N, D] on the (time, mel) grid of N patches."""
    rows, _, width = patch_RxKxD.shape
    x = patch_RxKxD.new_empty(rows, math.prod(grid), width)
    x = x.normal_(std=self.noise_std).scatter_(
        1, keep_RxK[..., None].expand_as(patch_RxKxD), patch_RxKxD
    )
    x_RxDxHxW = x.unflatten(1, grid).permute(0, 3, 1, 2)
    for block in self.blocks:
      x_RxDxHxW = x_RxDxHxW.contiguous(memory_format=self.layout)
      x_RxDxHxW = x_RxDxHxW + block(x_RxDxHxW)
    return self.proj(x_RxDxHxW.permute(0, 2, 3, 1).flatten(1, 2))


class ChannelNorm(nn.Module):
  """LayerNorm over the channels of maps, without parameters."""

  def forward(self, x_RxDxHxW: Tensor) -> Tensor:
    x_RxHxWxD = x_RxDxHxW.permute(0, 2, 3, 1)
    return _norm(x_RxHxWxD).permute(0, 3, 1, 2)


class Step:
  """Student, teacher and optimiser; a call is an update."""

  def __init__(
      self,
      config: train.Config,
      params: state_lib.Params,
      teacher: state_lib.Params,
      device: torch.device,
      layout: torch.memory_format = torch.channels_last,
  ) -> None:
    """Copies our parameters; for a configuration that `check` lets pass."""
    objective = config.objective
    assert isinstance(objective, objectives.MaskedLatent)
    vit, mel = objective.vit, config.data.mel
    self._config, self._objective = config, objective
    self._grid = vit.grid(mel.frames, mel.mel_bins)
    self._device, self.updates = device, 0
    # Any, as PyTorch's types do not know that `to` takes a layout.
    decoder: Any = Decoder(vit.width, objective.decoder, layout)
    arrays = torch_io.to_torch({'decoder': params['decoder']})
    _load(decoder, arrays, 'modality_encoders.IMAGE.decoder.')
    self.decoder = decoder.to(device, memory_format=layout)
    self.encoder = _encoder(vit, mel.mel_bins, params['encoder']).to(device)
    self.teacher = _encoder(vit, mel.mel_bins, teacher).to(device)
    self.teacher.requires_grad_(False)
    self._parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
    self._optimizer = _optimizer(config.optim, self._parameters)

  def __call__(self, views: Any) -> Tensor:
    """Updates; returns the loss before. `views` as `placed` returns them."""
    optim, ema = self._config.optim, self._objective.ema
    for group in self._optimizer.param_groups:
      group['lr'] = _rate(optim, self.updates, self._config.steps)
    self._optimizer.zero_grad(set_to_none=True)
    loss = self.loss(views)
    loss.backward()
    if optim.clip_norm is not None:
      nn.utils.clip_grad_norm_(self._parameters, optim.clip_norm)
    self._optimizer.step()
    self.updates += 1
    left = max(0.0, 1 - self.updates / ema.anneal_steps)
    follow = swa_utils.get_ema_multi_avg_fn(
        ema.end - (ema.end - ema.start) * left
    )
    follow([*self.teacher.parameters()], [*self.encoder.parameters()], None)
    return loss.detach()

  def loss(self, views: Any) -> Tensor:
    """The loss of our objective on the same views."""
    objective, sides = self._objective, self._objective.sides
    mels = {'clean': views.mel_BxTxF}
    if views.mixture is not None:
      mels['mixed'] = views.mixture.mel_BxTxF
    mel_VBxTxF = torch.cat([mels[side] for side in sides])
    target_VBxNxD, clip_target_VBxD = self._teach(mel_VBxTxF)
    prediction_VBxMxNxD, clip_VBxMxD = self._study(mel_VBxTxF, views)
    hidden_BxMxN = self._hidden(views)
    error_VBxMxN = _error(prediction_VBxMxNxD, target_VBxNxD)
    clip_error_VBxM = _error(clip_VBxMxD, clip_target_VBxD)
    loss = _mean(error_VBxMxN, hidden_BxMxN.repeat(len(sides), 1, 1))
    loss = loss + objective.global_weight * clip_error_VBxM.mean()
    if not (isinstance(objective, objectives.SourceRetention)
            and objective.retention_weight):
      return loss
    target_BxNxD, is_mixed_BxN = self._retain(
        views, target_VBxNxD[: len(hidden_BxMxN)]
    )
    if objective.srl_patches == 'mixed':
      hidden_BxMxN = hidden_BxMxN & is_mixed_BxN[:, None]
    prediction_BxMxNxD = prediction_VBxMxNxD[len(hidden_BxMxN) :]
    retention = _mean(_error(prediction_BxMxNxD, target_BxNxD), hidden_BxMxN)
    return loss + objective.retention_weight * retention

  def _autocast(self) -> torch.autocast:
    return torch.autocast(self._device.type, torch.bfloat16,
                          enabled=self._objective.vit.dtype == 'bfloat16')

  @torch.no_grad()
  def _layers(
      self, mel_BxTxF: Tensor, keep_BxK: Tensor | None = None
  ) -> list[Tensor]:
    """The teacher's layers, normalised over the tokens: [B, D, K] each."""
    with self._autocast():
      _, layers = encode(self.teacher, mel_BxTxF, keep_BxK)
    return [F.instance_norm(x.transpose(1, 2).float(), eps=_NORM_EPSILON)
            for x in layers]

  def _teach(self, mel_BxTxF: Tensor) -> tuple[Tensor, Tensor]:
    """Targets of patches [B, N, D] and of clips [B, D]."""
    objective, layers = self._objective, self._layers(mel_BxTxF)
    target_BxNxD = clip_BxNxD = _average(layers, objective.local_layers)
    if objective.global_layers != objective.local_layers:
      clip_BxNxD = _average(layers, objective.global_layers)
    return target_BxNxD, clip_BxNxD.mean(1)

  def _study(self, mel_VBxTxF: Tensor, views: Any) -> tuple[Tensor, Tensor]:
    """Predictions [VB, M, N, D] and class tokens [VB, M, D] of the clones."""
    clips, clones, _ = views.keep_BxMxK.shape
    copies = len(mel_VBxTxF) // clips
    keep_RxK = views.keep_BxMxK.repeat(copies, 1, 1).flatten(0, 1)
    with self._autocast():
      x_RxSxD, _ = encode(self.encoder, mel_VBxTxF, keep_RxK)
      prediction_RxNxD = self.decoder(x_RxSxD[:, 1:], keep_RxK, self._grid)
    rows = -1, clones
    return prediction_RxNxD.unflatten(0, rows), x_RxSxD[:, 0].unflatten(0, rows)

  def _hidden(self, views: Any) -> Tensor:
    """bool [B, M, N], True where a patch is hidden from the student."""
    keep_BxMxK = views.keep_BxMxK
    shape = *keep_BxMxK.shape[:2], math.prod(self._grid)
    hidden_BxMxN = keep_BxMxK.new_ones(shape, dtype=torch.bool)
    return hidden_BxMxN.scatter_(2, keep_BxMxK, False)

  def _retain(
      self, views: Any, own_BxNxD: Tensor
  ) -> tuple[Tensor, Tensor]:
    """Targets of source retention, and where a clip is mixed [B, N]."""
    column_BxC = views.mixture.column_BxC
    mel_patch = torch.arange(self._grid[1], device=column_BxC.device)
    token_BxC = (column_BxC[..., None] * self._grid[1] + mel_patch).flatten(1)
    index = token_BxC[..., None].expand(-1, -1, own_BxNxD.shape[-1])
    sources = [own_BxNxD.gather(1, index)] + [
        _average(self._layers(mel_BxTxF, token_BxC),
                 self._objective.local_layers)
        for mel_BxTxF in views.mixture.partners_BxTxF
    ]
    mean_BxCxD = sum(sources[1:], sources[0]) / len(sources)
    is_mixed_BxN = token_BxC.new_zeros(own_BxNxD.shape[:2], dtype=torch.bool)
    return (own_BxNxD.scatter(1, index, mean_BxCxD),
            is_mixed_BxN.scatter_(1, token_BxC, True))


def check(config: train.Config, mesh: Mesh) -> None:
  """Raises ValueError where ours cannot be compared with this."""
  objective, mel = config.objective, config.data.mel
  longest = sslam_torch.MAX_COLUMNS * objective.vit.patch
  platform = mesh.devices.flat[0].platform
  runs = platform == 'cpu' or platform == 'gpu' and torch.cuda.is_available()
  for what, is_right, wanted, got in (
      ('objective', isinstance(objective, objectives.MaskedLatent),
       'MaskedLatent or SourceRetention', type(objective).__name__),
      ('optim.layer_decay', config.optim.layer_decay is None, None,
       config.optim.layer_decay),
      ('data.mel.frames', mel.frames < longest + objective.vit.patch,
       f'at most {longest}', mel.frames),
      ('devices', mesh.size == 1, 1, mesh.size),
      ('torch', runs, f'a build that runs on JAX\'s {platform}',
       torch.__version__),
  ):
    if not is_right:
      raise ValueError(f'{what}: want {wanted} to compare with PyTorch, '
                       f'got {got}')


def measure(
    config: train.Config,
    mesh: Mesh,
    program: training.Program,
    seconds: float,
) -> dict[str, Any]:
  """Time of our update and of PyTorch's, in turns, from log-mels on.

  Each round times some steps of either, so that a drift of the machine meets
  both. Both begin with the same parameters and views; their noise differs.
  `check` has to let the configuration pass.
  """
  device = _device(mesh)
  views = data_lib.compile_views(
      config.data, config.objective.vit.patch, mesh
  )(training.noise(config))
  tensors = placed(views, device)
  state = train.create_state(config, mesh)

  def ours() -> jax.Array:
    nonlocal state
    state, metrics = program.step(state, views)
    return metrics['loss']

  def build(layout: str) -> Callable[[], Tensor]:
    step = Step(config, state.params, state.teacher, device, LAYOUTS[layout])
    return lambda: step(tensors)

  def warm_s(layout: str) -> float:
    step = build(layout)
    step()
    return _seconds(step)

  layout = min(LAYOUTS, key=warm_s)
  if device.type == 'cuda':
    torch.cuda.reset_peak_memory_stats()
  theirs = build(layout)
  losses = {'loss': float(ours()), 'torch_loss': float(theirs())}
  rounds = _rounds(ours, theirs, seconds)
  peak_bytes = None
  if device.type == 'cuda':
    peak_bytes = torch.cuda.max_memory_allocated()
  return {
      'version': torch.__version__,
      'dtype': config.objective.vit.dtype,
      'layout': layout,
      'batch': config.batch,
      **_summary(rounds, config.batch),
      **losses,
      'torch_peak_bytes': peak_bytes,
  }


def placed(views: Any, device: torch.device) -> Any:
  """Our views with tensors for arrays, indices as int64."""

  def place(x: Any) -> Tensor:
    tensor = torch.from_numpy(np.array(x)).to(device)
    return tensor if tensor.is_floating_point() else tensor.long()

  return jax.tree.map(place, views)


def encode(
    encoder: sslam_torch.Sslam,
    mel_BxTxF: Tensor,
    keep_RxK: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
  """Tokens [R, 1 + K, D], and each block's MLP output for patches [R, K, D].

  Row r of R sees the patches `keep_RxK` of clip r * B // R, or all.
  """
  edge = encoder.patch
  whole_BxTxF = mel_BxTxF[:, : mel_BxTxF.shape[1] // edge * edge]
  x = whole_BxTxF.unflatten(1, (-1, edge)).unflatten(3, (-1, edge))
  x = x.transpose(2, 3).flatten(3).flatten(1, 2)
  position = encoder.fixed_positional_encoder.get_buffer('positions')
  if keep_RxK is None:
    position = position[:, : x.shape[1]]
  else:
    row_R = torch.arange(len(keep_RxK), device=x.device)
    row_R = row_R // (len(keep_RxK) // len(x))
    x, position = x[row_R[:, None], keep_RxK], position[0, keep_RxK]
  proj = encoder.local_encoder.proj
  x = F.linear(x, proj.weight.flatten(1), proj.bias) + position
  clip_Rx1xD = encoder.extra_tokens.expand(len(x), -1, -1)
  x = encoder.pre_norm(torch.cat([clip_Rx1xD, x], 1))
  layers = []
  block: Any
  for block in encoder.blocks:
    x = block.norm1(x + block.attn(x))
    h = block.mlp(x)
    layers.append(h[:, 1:])
    x = block.norm2(x + h)
  return x, layers


def _device(mesh: Mesh) -> torch.device:
  """PyTorch's name of our only device, which it is set up to use fully."""
  if mesh.devices.flat[0].platform == 'cpu':
    torch.set_num_threads(machine.cores())
    return torch.device('cpu')
  torch.backends.cudnn.benchmark = True
  torch.set_float32_matmul_precision('high')  # TF32, as JAX's default
  return torch.device('cuda')


def _encoder(
    vit: model.Vit, mel_bins: int, params: state_lib.Params
) -> sslam_torch.Sslam:
  encoder = sslam_torch.Sslam(
      width=vit.width, depth=vit.depth, heads=vit.heads,
      mlp_ratio=vit.mlp_ratio, patch=vit.patch, mel_bins=mel_bins,
  )
  tensors = torch_io.to_huggingface(torch_io.to_torch({'encoder': params}))
  _load(encoder, tensors, 'model.')
  return encoder


def _load(
    module: nn.Module, arrays: dict[str, np.ndarray], prefix: str
) -> None:
  """Copies arrays by official names; what is constant stays."""
  tensors = {name.removeprefix(prefix): torch.tensor(x)
             for name, x in arrays.items()}
  module.load_state_dict({**module.state_dict(), **tensors})


def _optimizer(
    config: optim_lib.Optim, parameters: list[nn.Parameter]
) -> torch.optim.Optimizer:
  groups: list[dict[str, Any]] = [{'params': parameters}]
  if config.decay_mask == 'matrices':
    groups = [
        {'params': [x for x in parameters if x.ndim > 1]},
        {'params': [x for x in parameters if x.ndim == 1], 'weight_decay': 0.0},
    ]
  return torch.optim.AdamW(
      groups, lr=config.peak_lr, betas=(config.beta1, config.beta2),
      eps=config.eps, weight_decay=config.weight_decay, fused=True,
  )


def _rate(config: optim_lib.Optim, done: int, steps: int) -> float:
  """The learning rate after some updates, as `Optim.schedule` has it."""
  span, warmup = config.peak_lr - config.min_lr, config.warmup_steps
  if done < warmup:
    return config.min_lr + span * done / warmup
  turn = math.pi * (done - warmup) / (steps - warmup)
  return config.min_lr + span * (1 + math.cos(turn)) / 2


def _average(layers: list[Tensor], last: int | None) -> Tensor:
  """Targets [B, K, D] from normalised layers [B, D, K]."""
  used = layers if last is None else layers[-last:]
  mean_BxDxK = torch.stack(used).mean(0)
  return _norm(mean_BxDxK.transpose(1, 2))


def _norm(x: Tensor) -> Tensor:
  return F.layer_norm(x, x.shape[-1:], eps=_NORM_EPSILON)


def _error(prediction: Tensor, target: Tensor) -> Tensor:
  """Of [B, M, ..., D] from [B, ..., D]: squares by sqrt(D), [B, M, ...]."""
  target = target[:, None].expand_as(prediction)
  error = F.mse_loss(prediction.float(), target, reduction='none')
  return error.sum(-1) * target.shape[-1] ** -0.5


def _mean(error: Tensor, counts: Tensor) -> Tensor:
  """Of the elements that count; 0 where none does."""
  return (error * counts).sum() / counts.sum().clamp(min=1)


def _rounds(
    ours: Callable[[], Any], theirs: Callable[[], Any], seconds: float
) -> list[tuple[float, float]]:
  """Seconds of a step of each, in turns."""
  rounds: list[tuple[float, float]] = []
  begun = time.perf_counter()
  while len(rounds) < _ROUNDS or time.perf_counter() < begun + seconds:
    rounds.append((_seconds(ours), _seconds(theirs)))
  return rounds


def _summary(
    rounds: list[tuple[float, float]], clips: int
) -> dict[str, Any]:
  ours_s, theirs_s = (statistics.median(column) for column in zip(*rounds))
  # Of a round each, so that a drift from one to the next is in none.
  ratios = [theirs / ours for ours, theirs in rounds]
  return {
      'rounds': len(rounds),
      'step_s': ours_s,
      'torch_step_s': theirs_s,
      'clips_per_s': clips / ours_s,
      'torch_clips_per_s': clips / theirs_s,
      'ratio': statistics.median(ratios),
      'ratio_range': [min(ratios), max(ratios)],
  }


def _seconds(step: Callable[[], Any]) -> float:
  """Of a step, from idle to idle."""
  began = time.perf_counter()
  for _ in range(_STEPS):
    loss = step()
  float(loss)  # on the host, so that all before it is done
  return (time.perf_counter() - began) / _STEPS
