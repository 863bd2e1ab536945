"""The smallest runs that have every part of the real ones."""

import pathlib

from sslam_jax import audio
from sslam_jax import augment
from sslam_jax import checkpoint
from sslam_jax import classify as classify_lib
from sslam_jax import data
from sslam_jax import masking
from sslam_jax import mixing
from sslam_jax import model
from sslam_jax import objectives
from sslam_jax import optim
from sslam_jax import run_folder
from sslam_jax import soundscapes
from sslam_jax import state
from sslam_jax import train
from sslam_jax import views

FRAMES, MEL_BINS = 128, 32  # 8 x 2 patches, 4 of them kept
BATCH, CLONES, GROUP = 8, 2, 2
# Metrics that differ from run to run.
TIMES = ('clips_per_s', 'data_wait', 'host_work')


def stage1(workdir, **changes) -> train.Config:
  fields = {
      'workdir': str(workdir),
      'objective': objectives.MaskedLatent(
          vit=model.Vit(width=32, depth=2, heads=2, dtype='float32'),
          decoder=model.Decoder(depth=1, groups=4),
          ema=state.Ema(start=0.9, end=0.99, anneal_steps=10),
      ),
      'data': data.Data(
          source=soundscapes.Soundscapes(clips=12, length_s=1.5),
          mel=audio.LogMel(frames=FRAMES, mel_bins=MEL_BINS),
          views=views.Masked(
              mask=masking.InverseBlock(hide=0.75, block=2), clones=CLONES
          ),
          threads=2,
      ),
      'optim': optim.Optim(peak_lr=1e-3, warmup_steps=2),
      'steps': 6,
      'batch': BATCH,
      'devices': 1,
      'keep': checkpoint.Keep(every=3),
      'guard': train.Guard(after_steps=1000),
      'log_every': 1,
      'pictures_every': None,
  }
  return train.Config(**{**fields, **changes})


def stage2(workdir, **changes) -> train.Config:
  config = stage1(workdir)
  fields = {**vars(config.objective), 'global_layers': 1}
  config.objective = objectives.SourceRetention(**fields)
  config.data.views.mix = mixing.PartialMix(group=GROUP)
  return train.Config(**{**vars(config), **changes})


def classify(workdir, **changes) -> train.Config:
  """Fine-tuning of `stage1`'s encoder, with all that is random."""
  config = stage1(workdir)
  config.objective = classify_lib.Classify(
      vit=config.objective.vit, drop_path=0.1
  )
  config.data.views = views.Labelled(
      wave=augment.RollGain(), mixup=augment.Mixup(),
      spec=augment.SpecAugment(),
  ).resolved(config.data.source)
  config.optim = optim.Optim(
      peak_lr=1e-3, min_lr=1e-6, warmup_steps=2, clip_norm=None,
      layer_decay=0.65,
  )
  return train.Config(**{**vars(config), **changes})


def save(config, state, step=0) -> None:
  """Writes the folder of a run that has this state, without training it."""
  checkpointer = checkpoint.Checkpointer(config.workdir, config.keep)
  checkpointer.save(step, state, {})
  checkpointer.close()
  run_folder.write_config(pathlib.Path(config.workdir), config)
