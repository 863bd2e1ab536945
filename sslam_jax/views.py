"""What the model sees of a batch: masked clips and mixtures, or labelled ones.

The data pipeline draws every random number on the host, clip by clip; here the
device turns waveforms into spectrograms and does with them what was drawn.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import flax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sslam_jax import audio
from sslam_jax import augment
from sslam_jax import clips
from sslam_jax import masking
from sslam_jax import mixing

AXIS = 'data'  # of the mesh: clips are spread over it

# A batch as the pipeline yields it, or one clip of it. All have `wave`
# (float32, zero beyond its length), `samples` (int32, that length) and `row`
# (int32, the clip's place in the global batch).
Record = dict[str, Any]


class Kind(Protocol):
  """A way of seeing clips; an instance is also its configuration."""

  @property
  def names(self) -> tuple[str, ...]:
    """The classes that clips are labelled with; none if labels are unused."""

  @property
  def group(self) -> int:
    """Clips in a row that have to lie on one device."""

  def resolved(self, source: clips.Source) -> 'Kind':
    """The same, with what it takes from the source filled in."""

  def check(self, grid: tuple[int, int]) -> None:
    """Raises ValueError where a grid of patches (time, mel) is too small."""

  def draw(self, rng: np.random.Generator, grid: tuple[int, int]) -> Record:
    """All random choices for one clip."""

  def label(self, labels: Sequence[str]) -> Record:
    """What is known of a clip with these labels."""

  def make(self, record: Record, mel: audio.LogMel, patch: int) -> Any:
    """The views of a device's clips; runs under `shard_map`."""


@flax.struct.dataclass
class Mixture:
  """The mixed side of a batch.

  Attributes:
    partners_BxTxF: Log-mels of each clip's partners, one array for each.
    mel_BxTxF: Partial mixtures of each clip with its partners.
    column_BxC: int32 mixed columns, ascending.
  """

  partners_BxTxF: tuple[Array, ...]
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


@dataclasses.dataclass(kw_only=True)
class Masked:
  """Clips with hidden patches, and partial mixtures of them.

  Attributes:
    mask: How patches are hidden.
    clones: Masks per clip, M.
    mix: How clips are mixed; None where the objective needs no mixtures.
  """

  mask: masking.InverseBlock = dataclasses.field(
      default_factory=masking.InverseBlock
  )
  clones: int
  mix: mixing.PartialMix | None = None

  def __post_init__(self) -> None:
    if self.clones < 1:
      raise ValueError(f'clones: want at least 1, got {self.clones}')

  @property
  def names(self) -> tuple[str, ...]:
    return ()

  @property
  def group(self) -> int:
    return self.mix.group if self.mix is not None else 1

  def resolved(self, source: clips.Source) -> 'Masked':
    del source
    return self

  def check(self, grid: tuple[int, int]) -> None:
    self.mask.kept(grid)
    if self.mix is not None:
      self.mix.clean(grid[0])

  def draw(self, rng: np.random.Generator, grid: tuple[int, int]) -> Record:
    hidden_MxN = self.mask.sample(rng, self.clones, grid)
    record = {'keep': masking.kept_indices(hidden_MxN)}
    if self.mix is not None:
      record |= self.mix.draw(rng, grid[0])
    return record

  def label(self, labels: Sequence[str]) -> Record:
    del labels
    return {}

  def make(self, record: Record, mel: audio.LogMel, patch: int) -> Views:
    """`record` has int32 `keep` [B, M, K], and what `mix` draws."""
    mel_BxTxF, mixture = mel(record['wave'], record['samples']), None
    if self.mix is not None:
      mixture = mixture_of(mel_BxTxF, record, self.mix, mel, patch)
    return Views(mel_BxTxF, record['keep'], record['row'], mixture)


@flax.struct.dataclass
class Examples:
  """Labelled clips.

  Attributes:
    mel_BxTxF: Normalised log-mels, augmented.
    label_BxC: float32, 1 where a class is heard; between 0 and 1 of mixtures.
    row_B: Place of each clip in the global batch: seeds what a step draws.
    has_mixup: Whether labels may be of mixtures.
  """

  mel_BxTxF: Array
  label_BxC: Array
  row_B: Array
  has_mixup: bool = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(kw_only=True)
class Labelled:
  """Clips with labels, augmented in the order of the attributes.

  Attributes:
    classes: All labels that are learned, in the order of the model's outputs;
      None takes those of the training data when the run starts.
    wave: Roll and gain of the waveform.
    noise: Noise on the log-mel, and a roll in time.
    mixup: Mixing of clips and labels.
    spec: SpecAugment.
  """

  classes: tuple[str, ...] | None = None
  wave: augment.RollGain | None = None
  noise: augment.Noise | None = None
  mixup: augment.Mixup | None = None
  spec: augment.SpecAugment | None = None

  @property
  def names(self) -> tuple[str, ...]:
    return self.classes or ()

  @property
  def group(self) -> int:
    return 1

  def resolved(self, source: clips.Source) -> 'Labelled':
    """The same with the classes of a source.

    Raises:
      ValueError: It has no labels, or other ones than `classes`.
    """
    classes = source.classes
    if not classes:
      raise ValueError('data.source: want labelled clips, got none with a '
                       'label (of folder= it is the name of the folder that a '
                       'clip is in)')
    if self.classes is None:
      return dataclasses.replace(self, classes=classes)
    if unknown := sorted(set(classes) - set(self.classes)):
      raise ValueError(f'data.views.classes: want all labels of data.source; '
                       f'missing: {", ".join(unknown)}')
    return self

  def check(self, grid: tuple[int, int]) -> None:
    del grid

  def draw(self, rng: np.random.Generator, grid: tuple[int, int]) -> Record:
    del grid
    steps = (self.wave, self.noise, self.mixup, self.spec)
    drawn = [step.draw(rng) for step in steps if step is not None]
    return {name: x for part in drawn for name, x in part.items()}

  def label(self, labels: Sequence[str]) -> Record:
    return {'label': np.isin(self.names, list(labels)).astype(np.float32)}

  def make(self, record: Record, mel: audio.LogMel, patch: int) -> Examples:
    """`record` has float32 `label` [B, C], and what each step drew."""
    del patch
    wave_BxS, label_BxC = record['wave'], record['label']
    if self.wave is not None:
      wave_BxS = self.wave.apply(wave_BxS, record)
    mel_BxTxF = mel(wave_BxS, record['samples'])
    if self.noise is not None:
      mel_BxTxF = self.noise.apply(mel_BxTxF, record)
    if self.mixup is not None:
      mel_BxTxF, label_BxC = self.mixup.apply(
          (mel_BxTxF, label_BxC), record, AXIS
      )
    if self.spec is not None:
      mel_BxTxF = self.spec.apply(mel_BxTxF, record)
    return Examples(mel_BxTxF, label_BxC, record['row'],
                    has_mixup=self.mixup is not None)


def mixture_of(
    mel_BxTxF: Array,
    record: Record,
    mix: mixing.PartialMix,
    front_end: audio.LogMel,
    patch: int,
) -> Mixture:
  """Mixes every clip with those before it in its group.

  `record` has int32 `column` [B, C], and what `mix.together` asks for.
  """
  column_BxC = mix.share(jnp.asarray(record['column']))
  partners_BxTxF = mix.partners(mel_BxTxF)
  together_BxTxF = mix.together(mel_BxTxF, partners_BxTxF, record, front_end)
  mixed_BxTxF = mixing.splice(mel_BxTxF, together_BxTxF, column_BxC, patch)
  return Mixture(partners_BxTxF, mixed_BxTxF, column_BxC)
