"""What the tests of exports share: tiny runs of the official front end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sslam_jax import audio
from sslam_jax import model
from sslam_jax import state as state_lib
from tests import tiny

CLASSES = 'bell, big', 'cat', 'dög'


def saved(config, step=7):
  """A run folder with `drawn` parameters."""
  state = drawn(config, step)
  tiny.save(config, state, step)
  return config, state


def drawn(config, step=7):
  """A run's state in which no two parameters have the same value."""
  shape = config.data.mel.frames, config.data.mel.mel_bins
  shapes = jax.eval_shape(lambda: config.objective.init(
      jax.random.key(0), shape, len(config.data.views.names)))
  rng = np.random.default_rng(0)

  def values(tree):
    return jax.tree.map(lambda x: jnp.asarray(
        0.2 * rng.standard_normal(x.shape, np.float32)), tree)

  return state_lib.TrainState(
      step=jnp.int32(step), params=values(shapes),
      teacher=values(config.objective.teacher(shapes)),
      opt_state=jnp.zeros(1), rng=jax.random.key(0),
  )


def official_size(config):
  """With the only front end that the official classes know."""
  config.data.mel.mel_bins = 128
  return config


@pytest.fixture(scope='module')
def stage1(tmp_path_factory):
  config = official_size(tiny.stage1(tmp_path_factory.mktemp('stage1')))
  config.init_from = '/data/secret/before'
  return saved(config)


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
  return saved_classifier(tmp_path_factory.mktemp('classify'), 'ce')


def saved_classifier(workdir, loss_kind):
  """Its moving average is what counts; other settings than the defaults."""
  config = official_size(tiny.classify(workdir))
  config.objective.ema = state_lib.Ema(start=0.9, end=0.99, anneal_steps=4)
  config.objective.head = model.Head(pooling='mean', norm=True)
  config.objective.loss_kind = loss_kind
  config.data.mel.mean, config.data.mel.std = -6.5, 5.25
  config.data.views.classes = CLASSES
  return saved(config)


def waves(batch, samples, seed=0):
  """Noise; later clips are shorter."""
  rng = np.random.default_rng(seed)
  wave_BxS = 0.1 * rng.standard_normal((batch, samples), np.float32)
  return wave_BxS, samples - np.arange(batch) * (samples // 5)


def ours(config, params, wave_BxS, samples_B, columns):
  """Tokens and logits by JAX, of so many columns of patches."""
  mel = audio.LogMel(**{**vars(config.data.mel), 'frames': 16 * columns})

  @jax.jit
  def run(params, wave_BxS, samples_B):
    encoded = model.Encoder(config.objective.vit).apply(
        {'params': params['encoder']}, mel(wave_BxS, samples_B))
    tokens = jnp.concatenate(
        [encoded.clip_RxD[:, None], encoded.patch_RxKxD], 1)
    if 'head' not in params:
      return tokens, None
    head = model.Classifier(config.objective.head, len(CLASSES))
    return tokens, head.apply({'params': params['head']}, encoded)

  return run(params, wave_BxS, samples_B)
