"""The optimiser: AdamW, cosine with warm-up, global-norm clip, as in Optax."""

import dataclasses
from typing import Literal

import jax
import optax


@dataclasses.dataclass(kw_only=True)
class Optim:
  """Configuration of the optimiser.

  Attributes:
    peak_lr: Learning rate after warm-up.
    min_lr: Learning rate of the first update and towards the end.
    warmup_steps: Updates of linear warm-up.
    beta1: Decay of the gradient's mean.
    beta2: Decay of its square's mean.
    eps: Added to the root of the latter.
    weight_decay: Decoupled, scaled by the learning rate.
    decay_mask: 'all' decays every tensor, as the published runs did;
      'matrices' leaves out what has one dimension there: biases and norms.
      They meant to, but the option never took effect.
    clip_norm: Largest global norm of a gradient.
  """

  peak_lr: float
  min_lr: float = 0.0
  warmup_steps: int
  beta1: float = 0.9
  beta2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.05
  decay_mask: Literal['all', 'matrices'] = 'all'
  clip_norm: float = 4.0

  def __post_init__(self) -> None:
    for name in ('peak_lr', 'eps', 'clip_norm'):
      if getattr(self, name) <= 0:
        raise ValueError(f'{name}: want a positive number, '
                         f'got {getattr(self, name)}')
    for name in ('min_lr', 'weight_decay', 'warmup_steps'):
      if getattr(self, name) < 0:
        raise ValueError(f'{name}: want at least 0, got {getattr(self, name)}')
    for name in ('beta1', 'beta2'):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f'{name}: want 0 to below 1, '
                         f'got {getattr(self, name)}')
    if self.min_lr > self.peak_lr:
      raise ValueError(f'min_lr: want at most peak_lr {self.peak_lr}, '
                       f'got {self.min_lr}')

  def schedule(self, steps: int) -> optax.Schedule:
    """Learning rate as a function of the updates done, for a run of `steps`.

    Source: fairseq's cosine schedule (first update at `min_lr`).
    """
    if self.warmup_steps >= steps:
      raise ValueError(f'optim.warmup_steps: want fewer than steps {steps}, '
                       f'got {self.warmup_steps}')
    return optax.warmup_cosine_decay_schedule(
        self.min_lr, self.peak_lr, self.warmup_steps, steps, self.min_lr
    )

  def build(self, steps: int) -> optax.GradientTransformation:
    """The whole update rule for a run of `steps` updates."""
    mask = decays if self.decay_mask == 'matrices' else None
    return optax.chain(
        optax.clip_by_global_norm(self.clip_norm),
        optax.adamw(
            self.schedule(steps),
            b1=self.beta1,
            b2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=mask,
        ),
    )


def decays(params: optax.Params) -> optax.Params:
  """False for biases and norms, True for kernels and the class token.

  The class token is a vector here, but (1, 1, D) in the reference.
  """
  return jax.tree_util.tree_map_with_path(
      lambda path, _: path[-1].key in ('kernel', 'clip'), params
  )
