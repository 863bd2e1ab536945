"""A sweep of minutes: fine-tuning on procedural soundscapes, without data.

  python tools/sweep.py --config=examples/sweep.py --workdir=runs/sweep --jobs=2
"""

from collections.abc import Iterator

from configs import finetune
from sslam_jax import sweeping
from sslam_jax import train


def get_config(arg: str = '') -> train.Config:
  config = finetune.get_config(arg or 'demo,run=none')
  config.steps = 60
  config.optim.warmup_steps = 10
  config.pictures_every = None
  return config


def sweep(arg: str = '') -> Iterator[sweeping.Point]:
  rates = sweeping.grid({'optim.peak_lr': [1e-4, 1e-3, 1e-2]})
  yield from sweeping.join(rates, sweeping.seeds(1, 2))
  yield {'name': 'too_fast', 'optim.peak_lr': 1e30}
