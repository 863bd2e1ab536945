"""Stage 1: masked latent bootstrapping on single sources, the EAT recipe.

  python -m sslam_jax.main --config=configs/stage1.py

The published run: AudioSet-2M, 10 epochs, 48 clips x 16 masks per update, 4
GPUs of 24 GB, about 70 hours on 4 RTX 3090 with the official code.

Arguments, joined by commas (`--config=configs/stage1.py:small,folder=DIR`):
  demo          tiny model on 2.56 s clips: 2 to 3 minutes on 2 CPU cores
  small, large  encoder of that size (large: the published EAT-large recipe)
  folder=DIR, manifest=TSV, csv=FILE, pack=DIR, tfds=NAME, soundscapes
                the data: docs/data.md; the default is
                manifest=data/audioset/train.tsv, and soundscapes for demo
  probe=NAME    from here to the next probe= the words of a linear probe of the
                features at the end of the run (docs/probing.md):
    probe_folder=DIR      labelled clips in DIR/train and DIR/test; or
                          probe_test_folder=DIR for the latter
    probe_csv=FILE        a table with train and test in its column split;
                          probe_label=COLUMN of labels; and all other words of
                          finetune.py's "Your own data", probe_ before each
    probe_seconds=S       heard of a clip (default: as in training)
    probe_every=STEPS     not at the end alone
    probe_groups=FILE.csv:COLUMN  clips that stay together (speakers, sessions)
"""

from configs import probing
from sslam_jax import audio
from sslam_jax import catalogue
from sslam_jax import checkpoint
from sslam_jax import clips
from sslam_jax import config as config_lib
from sslam_jax import data
from sslam_jax import masking
from sslam_jax import model
from sslam_jax import objectives
from sslam_jax import optim
from sslam_jax import soundscapes
from sslam_jax import state
from sslam_jax import train
from sslam_jax import views

SIZES = ('demo', 'small', 'large')
FLAGS = (*SIZES, *catalogue.FLAGS)
KEYS = (*catalogue.KEYS, *probing.KEYS)
_AUDIOSET = ('manifest', 'data/audioset/train.tsv')


def get_config(arg: str = '') -> train.Config:
  pairs, probes = probing.parted(
      config_lib.options(arg, flags=FLAGS, keys=KEYS)
  )
  flags = [flag for flag in FLAGS if (flag, '') in pairs]
  sizes = [flag for flag in flags if flag in SIZES]
  if len(sizes) > 1:
    raise ValueError(f'configuration argument: want one of '
                     f'{", ".join(SIZES)}, got {sizes}')
  objective, masked = objectives.MaskedLatent(), views.Masked(clones=16)
  config = train.Config(
      workdir='-'.join(['runs/stage1', *flags]),
      objective=objective,
      data=data.Data(source=_source(pairs), views=masked, workers=8),
      optim=optim.Optim(peak_lr=5e-4, warmup_steps=53_333),
      steps=400_000,
      keep=checkpoint.Keep(every=10_000),
      log_every=200,
      pictures_every=10_000,
      evals=probes,
  )
  if 'demo' in flags:
    shrink(config)
    config.optim = optim.Optim(peak_lr=1e-3, warmup_steps=50)
    _shrink_masked(objective, masked)
  if 'small' in flags:
    objective.vit = model.small()
  if 'large' in flags:
    _enlarge(config, objective, masked)
  return config


def shrink(config: train.Config) -> None:
  """Makes a run of minutes on 2 CPU cores out of the published one."""
  config.data.mel = audio.LogMel(frames=256)
  config.data.workers = 0
  config.steps = 400
  config.batch = 16
  config.keep.every = 100
  config.guard.after_steps = 100
  config.log_every = 10
  config.pictures_every = 200


def _shrink_masked(
    objective: objectives.MaskedLatent, masked: views.Masked
) -> None:
  objective.vit = model.Vit(width=128, depth=4, heads=4, dtype='float32')
  objective.decoder = model.Decoder(depth=2)
  # In hundreds of updates 192 would leave time for the class token alone.
  objective.global_weight = 1.0
  # And so short a run needs a teacher that follows within tens.
  objective.ema = state.Ema(start=0.99, end=0.999, anneal_steps=400)
  masked.clones = 4


def _enlarge(
    config: train.Config,
    objective: objectives.MaskedLatent,
    masked: views.Masked,
) -> None:
  """The published EAT-large. Source: EAT config/pretraining_AS2M_large.yaml."""
  objective.vit = model.large()
  objective.decoder = model.Decoder(depth=3, kernel=5)
  objective.ema = state.Ema(anneal_steps=150_000)
  masked.mask = masking.InverseBlock(hide=0.75, adjust=0.1)
  config.optim.peak_lr = 4e-4


def _source(pairs: list[tuple[str, str]]) -> clips.Source:
  """The data that the argument names, or what is trained on without it."""
  is_demo = ('demo', '') in pairs
  words = [pair for pair in pairs if pair[0] not in SIZES]
  if not words:
    words = [('soundscapes', '') if is_demo else _AUDIOSET]
  source = catalogue.build(words)
  if is_demo and isinstance(source, soundscapes.Soundscapes):
    source.length_s = 4.0
  return source
