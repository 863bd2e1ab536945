"""SSLAM in PyTorch: waveforms to tokens and logits; needs torch alone.

  model = sslam_torch.load('FOLDER').eval()  # an exported folder
  tokens = model(wave)  # [clips, samples] -> [clips, 1 + patches, width]

Tensors have the names of the published Hugging Face models without `model.`.
Letters in names of arrays are axes: B clips, S samples, T frames, W samples of
a frame, F mel bins, N tokens, D width, C classes.
"""

import array
import functools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOLINGS = 'class', 'mean', 'linear_softmax'
MAX_COLUMNS = 768  # patches in time that have positions
_LOG_FLOOR = 2.0**-23  # float32 epsilon, as Kaldi
_PRE_EMPHASIS = 0.97
_LOW_HZ = 20.0
_PUBLISHED_SCALE = 2.0  # the published recipes divide by twice the deviation
_WAVELENGTH = 10_000.0  # longest, of the sin-cos positions
_NORM_EPSILON = 1e-6
# Arguments of `Sslam` and their names in config.json.
_FIELDS = {
    'width': 'hidden_size', 'depth': 'num_hidden_layers',
    'heads': 'num_attention_heads', 'mlp_ratio': 'mlp_ratio',
    'patch': 'patch_size', 'rate_hz': 'sampling_rate',
    'mel_bins': 'num_mel_bins', 'mean': 'mel_mean', 'std': 'mel_std',
    'pooling': 'pooling', 'head_norm': 'head_norm',
}  # fmt: skip
_PREFIX = 'model.'  # of every name in model.safetensors
_DTYPES = {'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16}


class Sslam(nn.Module):
  """Front end, encoder and, with `classes`, a head.

  The front end is computed in float64 whatever the type of the weights, as
  neither autocast nor TF32 touches it then.
  """

  def __init__(
      self,
      *,
      width: int = 768,
      depth: int = 12,
      heads: int = 12,
      mlp_ratio: int = 4,
      patch: int = 16,
      rate_hz: int = 16_000,
      mel_bins: int = 128,
      mean: float = -4.268,
      std: float = 4.569,
      classes: int = 0,
      pooling: str = 'class',
      head_norm: bool = True,
  ) -> None:
    """Builds it with random weights.

    Args:
      width: Channels D.
      depth: Number of blocks.
      heads: Attention heads; divides `width`.
      mlp_ratio: Width of a block's MLP, relative to `width`.
      patch: Edge of the square patches, in frames and mel bins.
      rate_hz: Sampling rate of the waveforms.
      mel_bins: Number of mel filters, 20 Hz to half of `rate_hz`.
      mean: Mean of the data set's log-mels, in nats.
      std: Their standard deviation.
      classes: What the head tells apart; 0: there is no head.
      pooling: What it sees of a clip: the 'class' token, or of the patch
        tokens the 'mean' or the 'linear_softmax'.
      head_norm: It begins with a norm.
    """
    super().__init__()
    for name, is_right, wanted, got in (
        ('width', width % 4 == 0, 'a multiple of 4', width),
        ('heads', width % heads == 0, f'a divisor of width {width}', heads),
        ('patch', mel_bins % patch == 0, f'a divisor of {mel_bins} mel bins',
         patch),
        ('rate_hz', rate_hz >= 1000 and rate_hz % 100 == 0,
         'a multiple of 100 of at least 1000', rate_hz),
        ('pooling', pooling in POOLINGS, ', '.join(POOLINGS), pooling),
    ):
      if not is_right:
        raise ValueError(f'{name}: want {wanted}, got {got}')
    self.patch, self.rate_hz, self.mel_bins = patch, rate_hz, mel_bins
    self.mean, self.std, self.pooling = mean, std, pooling
    self.local_encoder = PatchEmbedding(width, patch, mel_bins // patch)
    self.fixed_positional_encoder = Positions(width, mel_bins // patch)
    self.extra_tokens = nn.Parameter(torch.randn(1, 1, width))
    self.pre_norm = nn.LayerNorm(width, _NORM_EPSILON)
    blocks = [Block(width, heads, mlp_ratio) for _ in range(depth)]
    self.blocks = nn.ModuleList(blocks)
    if classes:
      norm = nn.LayerNorm(width, _NORM_EPSILON) if head_norm else nn.Identity()
      self.fc_norm, self.head = norm, nn.Linear(width, classes)

  def forward(
      self,
      wave_BxS: Tensor,
      samples_B: Tensor | None = None,
      frames: int | None = None,
  ) -> Tensor:
    """Tokens [B, 1 + N, D] of waveforms: the class token, then the patches.

    Args:
      wave_BxS: In [-1, 1] at `rate_hz`; anything beyond their valid length.
      samples_B: Valid length of each, at most S; None: S.
      frames: How many, of 10 ms; missing ones are 0.0 in the log-mel domain.
        None: those that fit S, rounded up to whole patches.

    Returns:
      The patch of time t and mel m is token 1 + t * (mel_bins / patch) + m.
    """
    return self.encode(self.log_mel(wave_BxS, samples_B, frames))

  def log_mel(
      self,
      wave_BxS: Tensor,
      samples_B: Tensor | None = None,
      frames: int | None = None,
  ) -> Tensor:
    """Normalised log-mels, float32 [B, T, F]; see `forward`."""
    if wave_BxS.ndim != 2 or not wave_BxS.is_floating_point():
      raise ValueError(f'wave_BxS: want floats [clips, samples], got '
                       f'{wave_BxS.dtype} {list(wave_BxS.shape)}')
    batch, samples = wave_BxS.shape
    if samples_B is None:
      samples_B = wave_BxS.new_full((batch,), samples, dtype=torch.int64)
    if samples_B.shape != (batch,):
      raise ValueError(f'samples_B: want one number for each of {batch} clips, '
                       f'got {list(samples_B.shape)}')
    frames = self.frames(samples) if frames is None else frames
    mel_BxTxF = _log_mel(wave_BxS, samples_B, frames, self.rate_hz,
                         self.mel_bins)
    return ((mel_BxTxF - self.mean) / (_PUBLISHED_SCALE * self.std)).float()

  def frames(self, samples: int) -> int:
    """Frames that fit so many samples, up to whole patches; at least one."""
    window, hop = _window_hop(self.rate_hz)
    more = samples - window
    if isinstance(more, Tensor):  # as sizes are while torch.jit traces
      more = more.clamp(min=0)
    else:
      more = torch.sym_max(more, 0)
    return (more // (hop * self.patch) + 1) * self.patch

  def encode(self, mel_BxTxF: Tensor) -> Tensor:
    """Tokens [B, 1 + N, D] of normalised log-mels."""
    x_BxNxD = self.embed(mel_BxTxF)
    for block in self.blocks:
      x_BxNxD = block(x_BxNxD)
    return x_BxNxD

  def embed(self, mel_BxTxF: Tensor) -> Tensor:
    """What the first block sees, [B, 1 + N, D]."""
    x_BxNxD = self.fixed_positional_encoder(self.local_encoder(mel_BxTxF))
    clip_Bx1xD = self.extra_tokens.expand(x_BxNxD.shape[0], -1, -1)
    x_BxNxD = torch.cat([clip_Bx1xD.to(x_BxNxD.dtype), x_BxNxD], 1)
    return self.pre_norm(x_BxNxD.to(self.pre_norm.weight.dtype))

  def logits(self, tokens_BxNxD: Tensor) -> Tensor:
    """A logit for each class, [B, C], of the tokens of `forward`."""
    x_BxD = pool(tokens_BxNxD, self.pooling)
    return self.head(self.fc_norm(x_BxD.to(self.head.weight.dtype)))


class PatchEmbedding(nn.Module):
  """A linear map of each patch."""

  def __init__(self, width: int, patch: int, rows: int) -> None:
    super().__init__()
    self.rows = rows
    self.proj = nn.Conv2d(1, width, patch, patch)

  def forward(self, mel_BxTxF: Tensor) -> Tensor:
    """[B, N, D]; left-over frames at the end are dropped."""
    patch = self.proj.kernel_size[0]
    frames, longest = mel_BxTxF.shape[1], MAX_COLUMNS * patch
    if frames < patch or frames // patch > MAX_COLUMNS:
      raise ValueError(f'frames: want {patch} to {longest}, for which there '
                       f'are positions, got {frames}')
    mel_BxRxPxF = mel_BxTxF[:, _spans(mel_BxTxF, frames // patch, patch, patch)]
    x = mel_BxRxPxF.to(self.proj.weight.dtype)
    # With -1 instead, torch.compile asks where the number of mel bins is from.
    x = x.unflatten(3, (self.rows, patch))
    x_BxNxP = x.transpose(2, 3).flatten(3).flatten(1, 2)
    # Not as a convolution: cuDNN computes those in TF32 unless told otherwise.
    return F.linear(x_BxNxP, self.proj.weight.flatten(1), self.proj.bias)


class Positions(nn.Module):
  """Adds the fixed sin-cos table: mel in half of the channels, then time."""

  def __init__(self, width: int, columns: int) -> None:
    super().__init__()
    self.width, self.columns = width, columns
    self.register_buffer('positions', self.table())

  def table(self) -> Tensor:
    """The table, float32 [1, N, D]; a file's replaces it."""
    time = torch.arange(MAX_COLUMNS).repeat_interleave(self.columns)
    mel = torch.arange(self.columns).repeat(MAX_COLUMNS)
    rank = torch.arange(self.width // 4).float() / (self.width // 4)
    omega = _WAVELENGTH**-rank
    angles = [place.float()[:, None] * omega for place in (mel, time)]
    parts = [f(angle) for angle in angles for f in (torch.sin, torch.cos)]
    return torch.cat(parts, 1)[None]

  def forward(self, x_BxNxD: Tensor) -> Tensor:
    return x_BxNxD + self.get_buffer('positions')[:, : x_BxNxD.shape[1]]


class Block(nn.Module):
  """Post-norm transformer block."""

  def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
    super().__init__()
    self.attn = Attention(width, heads)
    self.norm1 = nn.LayerNorm(width, _NORM_EPSILON)
    self.mlp = Mlp(width, mlp_ratio * width)
    self.norm2 = nn.LayerNorm(width, _NORM_EPSILON)

  def forward(self, x_BxNxD: Tensor) -> Tensor:
    x_BxNxD = self.norm1(x_BxNxD + self.attn(x_BxNxD))
    return self.norm2(x_BxNxD + self.mlp(x_BxNxD))


class Attention(nn.Module):
  """Multi-head self-attention with one projection for q, k and v."""

  def __init__(self, width: int, heads: int) -> None:
    super().__init__()
    self.heads = heads
    self.qkv = nn.Linear(width, 3 * width)
    self.proj = nn.Linear(width, width)

  def forward(self, x_BxNxD: Tensor) -> Tensor:
    qkv = self.qkv(x_BxNxD).unflatten(2, (3, self.heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    x_BxHxNxd = F.scaled_dot_product_attention(q, k, v)
    return self.proj(x_BxHxNxd.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
  """Two linear maps with an exact GELU between them."""

  def __init__(self, width: int, hidden: int) -> None:
    super().__init__()
    self.fc1 = nn.Linear(width, hidden)
    self.fc2 = nn.Linear(hidden, width)

  def forward(self, x_BxNxD: Tensor) -> Tensor:
    return self.fc2(F.gelu(self.fc1(x_BxNxD)))


def pool(tokens_BxNxD: Tensor, pooling: str) -> Tensor:
  """One vector for each clip, float32 [B, D]; see `Sslam`."""
  if pooling == 'class':
    return tokens_BxNxD[:, 0].float()
  x_BxNxD = tokens_BxNxD[:, 1:].float()
  return x_BxNxD.mean(1) if pooling == 'mean' else linear_softmax(x_BxNxD)


def linear_softmax(x_BxNxD: Tensor) -> Tensor:
  """Per channel, the logit of the tokens' mean weighted by itself: [B, D].

  With s = sigmoid(x) it is logit(p), p = sum s^2 / sum s, and 0 where p is 0 or
  1 in float32.
  """
  s_BxNxD = x_BxNxD.sigmoid()
  p_BxD = s_BxNxD.square().sum(1) / s_BxNxD.sum(1)
  # From logarithms, so that no gradient is infinite either.
  log_s_BxNxD = F.logsigmoid(x_BxNxD)
  log_rest_BxNxD = F.logsigmoid(-x_BxNxD)  # of 1 - s
  logit_BxD = (torch.logsumexp(2 * log_s_BxNxD, 1)
               - torch.logsumexp(log_s_BxNxD + log_rest_BxNxD, 1))
  return torch.where((p_BxD > 0) & (p_BxD < 1), logit_BxD, 0.0)


def load(folder: str | pathlib.Path) -> Sslam:
  """The model of an exported folder, its weights in the type of the file.

  Raises:
    ValueError: One of its two files is not as exported, or they do not match.
  """
  path = pathlib.Path(folder) / 'config.json'
  try:
    config = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{path}: want JSON, got {error}') from None
  path = path.with_name('model.safetensors')
  tensors = {name.removeprefix(_PREFIX): tensor
             for name, tensor in _read_safetensors(path).items()}
  with torch.device('meta'):
    model = build(config, classes=len(tensors.get('head.weight', ())))
  try:
    model.load_state_dict(tensors, assign=True)
  except RuntimeError as error:
    raise ValueError(f'{path}: want the tensors of config.json, '
                     f'got {" ".join(str(error).split())}') from None
  return model


def build(config: Mapping[str, Any], *, classes: int) -> Sslam:
  """A model with random weights from the contents of a config.json."""
  if missing := sorted(set(_FIELDS.values()) - set(config)):
    raise ValueError(f'config.json: want {", ".join(missing)}, got none')
  return Sslam(classes=classes,
               **{ours: config[theirs] for ours, theirs in _FIELDS.items()})


def _log_mel(
    wave_BxS: Tensor, samples_B: Tensor, frames: int, rate_hz: int, bins: int
) -> Tensor:
  """Log-mels in nats, [B, frames, F]; 0.0 beyond each clip.

  Source: torchaudio.compliance.kaldi.fbank as the official SSLAM code calls it,
  after subtraction of each clip's mean.
  """
  window, hop = _window_hop(rate_hz)
  hann_W, filters = _constants(rate_hz, bins, wave_BxS.device)
  valid_BxS = torch.arange(wave_BxS.shape[1], device=wave_BxS.device)
  valid_BxS = valid_BxS < samples_B[:, None]
  # Not NaN times 0 where there is anything beyond a clip.
  wave_BxS = torch.where(valid_BxS, wave_BxS, 0.0).to(filters.dtype)
  total_Bx1 = wave_BxS.sum(1, keepdim=True)
  wave_BxS = wave_BxS - total_Bx1 / samples_B[:, None].clamp(min=1)
  power = _power(_frames(wave_BxS, frames, window, hop), hann_W,
                 _fft_length(window))
  mel_BxTxF = torch.log((power @ filters).clamp(min=_LOG_FLOOR))
  ends_T = torch.arange(frames, device=wave_BxS.device) * hop + window
  is_whole_BxT = ends_T <= samples_B[:, None]
  return torch.where(is_whole_BxT[:, :, None], mel_BxTxF, 0.0)


def _frames(wave_BxS: Tensor, frames: int, window: int, hop: int) -> Tensor:
  """Overlapping frames [B, frames, window]; what is missing is 0."""
  wave_BxS = F.pad(wave_BxS, (0, frames * hop + window))
  return wave_BxS[:, _spans(wave_BxS, frames, hop, window)]


def _spans(x: Tensor, count: int, step: int, length: int) -> Tensor:
  """Indices [count, length] of spans, on the device of `x`.

  With these torch.export keeps the number of frames free; a reshape fixes it.
  """
  starts = torch.arange(count, device=x.device) * step
  return starts[:, None] + torch.arange(length, device=x.device)


def _power(frame_BxTxW: Tensor, hann_W: Tensor, fft_length: int) -> Tensor:
  """Power spectra [B, T, FFT bins] of the conditioned frames."""
  frame_BxTxW = frame_BxTxW - frame_BxTxW.mean(2, keepdim=True)
  # The first sample is its own predecessor.
  before = torch.cat([frame_BxTxW[:, :, :1], frame_BxTxW[:, :, :-1]], 2)
  frame_BxTxW = (frame_BxTxW - _PRE_EMPHASIS * before) * hann_W
  spectrum = torch.fft.rfft(frame_BxTxW, fft_length)
  return spectrum.real.square() + spectrum.imag.square()


def _window_hop(rate_hz: int) -> tuple[int, int]:
  """Samples of a frame, and from one to the next: 25 and 10 ms."""
  return rate_hz * 25 // 1000, rate_hz // 100


def _fft_length(window: int) -> int:
  return 1 << (window - 1).bit_length()


@torch.compiler.assume_constant_result
def _constants(
    rate_hz: int, bins: int, device: torch.device
) -> tuple[Tensor, Tensor]:
  """The window [W] and the mel filters [FFT bins, F]."""
  # Apple's GPUs have no float64.
  dtype = torch.float32 if device.type == 'mps' else torch.float64
  hann, filters = (
      torch.frombuffer(values, dtype=torch.float64).to(dtype).to(device)
      for values in _values(rate_hz, bins)
  )
  return hann, filters.unflatten(0, (-1, bins))


@functools.cache
def _values(rate_hz: int, bins: int) -> tuple[array.array, array.array]:
  """The numbers of `_constants`, bin by bin; that of Nyquist weighs 0.

  Kaldi's triangles, linear in mel, and the symmetric Hann window.
  """
  window, _ = _window_hop(rate_hz)
  length = _fft_length(window)
  turn = 2 * math.pi / (window - 1)
  hann = [0.5 - 0.5 * math.cos(turn * i) for i in range(window)]
  low, high = _mel(_LOW_HZ), _mel(rate_hz / 2)
  filters = []
  for bin_index in range(length // 2):
    hz = bin_index * rate_hz / length
    place = (_mel(hz) - low) / (high - low) * (bins + 1)
    filters += [max(0.0, min(place - i, i + 2 - place)) for i in range(bins)]
  return array.array('d', hann), array.array('d', filters + [0.0] * bins)


def _mel(hz: float) -> float:
  return 1127.0 * math.log1p(hz / 700.0)


def _read_safetensors(path: pathlib.Path) -> dict[str, Tensor]:
  """Tensors of a file: the length of a JSON header, the header, the values."""
  data = bytearray(path.read_bytes())
  start = 8 + int.from_bytes(data[:8], 'little')
  try:
    header = json.loads(data[8:start])
    header.pop('__metadata__', None)
    entries = [(name, _DTYPES[entry['dtype']], entry['shape'],
                start + entry['data_offsets'][0])
               for name, entry in header.items()]
    return {name: torch.frombuffer(data, dtype=dtype, count=math.prod(shape),
                                   offset=offset).unflatten(0, shape)
            for name, dtype, shape, offset in entries}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{path}: want a whole safetensors file of '
                     f'{", ".join(_DTYPES)}, got {error!r}') from None
