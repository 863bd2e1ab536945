"""How many masks per clip, at equal compute?

  python tools/sweep.py --config=configs/sweeps/clones.py --workdir=runs/clones

1, 2, 4, 8 (published) or 16 masks of each clip: the teacher's passes are
shared by them, so that more masks make a clip dearer but a mask cheaper. Held
equal: stage 1, clips per update, and the arithmetic of the whole run, passes of
the teacher included (counted from the sizes: products of the encoder, the
decoder and attention, forward and backward; to within half an update). For it
the number of updates differs, and with it how many clips are seen; warm-up and
the time in which the teacher's decay rises keep their share of the run.

The counts are of the configuration with its argument: to change the length,
batch or model on the command line would not change them.

Arguments: those of configs/stage2.py.
"""

from collections.abc import Iterator
import dataclasses
import math
from typing import Any

from configs import stage2
from sslam_jax import model
from sslam_jax import objectives
from sslam_jax import train
from sslam_jax import views

_CLONES = (1, 2, 4, 8, 16)

get_config = stage2.get_config


def sweep(arg: str = '') -> Iterator[dict[str, Any]]:
  config = stage2.get_config(arg)
  ema = config.objective.ema
  assert isinstance(config.data.views, views.Masked) and ema is not None
  budget = clip_flops(config) * config.steps
  for clones in _CLONES:
    masked = dataclasses.replace(config.data.views, clones=clones)
    data = dataclasses.replace(config.data, views=masked)
    one = dataclasses.replace(config, data=data)
    steps = round(budget / clip_flops(one))
    share = steps / config.steps
    yield {
        'name': f'clones_{clones}',
        'data.views.clones': clones,
        'steps': steps,
        'optim.warmup_steps': round(share * config.optim.warmup_steps),
        'objective.ema.anneal_steps': max(1, round(share * ema.anneal_steps)),
    }


def clip_flops(config: train.Config) -> int:
  """Operations of an update per clip: 2 for a multiplication and an addition.

  The backward pass is twice the forward one, but for the inputs of the patch
  embedding, which need no gradient, and attention, which it computes again.
  """
  objective, masked = config.objective, config.data.views
  assert isinstance(objective, objectives.SourceRetention)
  assert isinstance(masked, views.Masked)
  vit, mel = objective.vit, config.data.mel
  grid = vit.grid(mel.frames, mel.mel_bins)
  kept = masked.mask.kept(grid)
  row = (3 * _encoder(vit, kept) - _embedding(vit, kept)
         + vit.depth * _attention(vit, kept)
         + 3 * _decoder(objective.decoder, vit.width, grid))
  sides = len(objective.sides)
  flops = sides * (masked.clones * row + _encoder(vit, math.prod(grid)))
  if objective.retention_weight:
    assert masked.mix is not None
    mixed = (grid[0] - 2 * masked.mix.clean(grid[0])) * grid[1]
    flops += (masked.mix.sources - 1) * _encoder(vit, mixed)
  return flops


def _encoder(vit: model.Vit, patches: int) -> int:
  """Forward pass of a row with its class token."""
  tokens = patches + 1
  maps = 2 * tokens * vit.width**2 * (4 + 2 * vit.mlp_ratio)
  block = maps + _attention(vit, patches)
  return _embedding(vit, patches) + vit.depth * block


def _attention(vit: model.Vit, patches: int) -> int:
  """Its two products of tokens with tokens."""
  return 4 * (patches + 1)**2 * vit.width


def _embedding(vit: model.Vit, patches: int) -> int:
  return 2 * patches * vit.patch**2 * vit.width


def _decoder(
    decoder: model.Decoder, width: int, grid: tuple[int, int]
) -> int:
  """Forward pass of a row; what a kernel finds outside the grid is left out."""
  half = decoder.kernel // 2
  taps = math.prod(n * decoder.kernel - half * (half + 1) for n in grid)
  convolution = 2 * taps * width * (width // decoder.groups)
  return decoder.depth * convolution + 2 * math.prod(grid) * width**2
