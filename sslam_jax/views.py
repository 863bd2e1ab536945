"""What the model sees of a batch: clean and partially mixed spectrograms.

The data pipeline draws every random number on the host; here the device turns
waveforms into spectrograms and mixes them.
"""

import flax
import jax.numpy as jnp
from jax import Array

from sslam_jax import audio
from sslam_jax import masking
from sslam_jax import mixing


@flax.struct.dataclass
class Batch:
  """A batch as the pipeline yields it.

  Attributes:
    wave_BxS: float32 waveforms, zero beyond their length.
    samples_B: int32 valid lengths.
    keep_BxMxK: int32 kept patches of each clone, ascending.
    row_B: int32 place of each clip in the global batch.
    column_BxC: int32 mixed columns each clip drew, or None without mixing.
  """

  wave_BxS: Array
  samples_B: Array
  keep_BxMxK: Array
  row_B: Array
  column_BxC: Array | None


@flax.struct.dataclass
class Mixture:
  """The mixed side of a batch.

  Attributes:
    partner_BxTxF: Log-mels of each clip's partner.
    mel_BxTxF: Partial mixtures of each clip with its partner.
    column_BxC: int32 mixed columns, ascending.
  """

  partner_BxTxF: Array
  mel_BxTxF: Array
  column_BxC: Array


@flax.struct.dataclass
class Views:
  """All that an objective needs to know of a batch.

  Attributes:
    mel_BxTxF: Normalised log-mels of the clips.
    keep_BxMxK: Kept patches of each clone; mixed and clean clips share them.
    row_B: Place of each clip in the global batch: seeds its noise, so that
      nothing depends on the number of devices.
    mixture: The mixed side, or None.
  """

  mel_BxTxF: Array
  keep_BxMxK: Array
  row_B: Array
  mixture: Mixture | None

  def hidden_BxMxN(self, patches: int) -> Array:
    """bool, True where a patch is hidden from the student."""
    return masking.hidden(self.keep_BxMxK, patches)


def make(
    batch: Batch, mel: audio.LogMel, mix: mixing.PartialMix | None, patch: int
) -> Views:
  """Computes the views of a device's clips; `patch` is a column's frames."""
  mel_BxTxF = mel(batch.wave_BxS, batch.samples_B)
  mixture = None
  if mix is not None:
    assert batch.column_BxC is not None
    mixture = mixture_of(mel_BxTxF, mix.share(batch.column_BxC), mix.group,
                         patch)
  return Views(mel_BxTxF, batch.keep_BxMxK, batch.row_B, mixture)


def mixture_of(
    mel_BxTxF: Array, column_BxC: Array, group: int, patch: int
) -> Mixture:
  """Mixes every clip with the one before it in its group."""
  partner_BxTxF = mixing.partner(mel_BxTxF, group)
  mixed_BxTxF = mixing.mix(mel_BxTxF, partner_BxTxF, column_BxC, patch)
  return Mixture(partner_BxTxF, mixed_BxTxF, jnp.asarray(column_BxC))
