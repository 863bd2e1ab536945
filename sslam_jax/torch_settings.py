"""What the settings in a PyTorch or Hugging Face checkpoint say of its model.

Tensors tell sizes, but not the heads of attention, the front end, the pooling
or the classes. Source: EAT config/, models/EAT_audio_classification.py,
data/raw_audio_dataset.py (normalisation is constants there, chosen by flags);
config.json of the published Hugging Face models.
"""

import dataclasses
import math
from collections.abc import Collection
from typing import Any

from sslam_jax import audio
from sslam_jax import model as model_lib
from sslam_jax import torch_files

# Official names of poolings, and the numbers of their enum.
_POOLINGS = {
    'MEAN_POOLING': 'mean', 'CLS_TOKEN': 'class', 'LIN_SOFTMAX':
    'linear_softmax', '1': 'mean', '2': 'class', '3': 'linear_softmax',
}
_PROBLEMS = {
    'multi_label_classification': 'bce', 'single_label_classification': 'ce',
}
_DIVISORS = 'positives', 'clips', 'elements'
# What the official code makes of its flags; None: of neither. In fine-tuning
# its task chooses the normalisation and its model the loss, each by its own,
# and of both the first of these counts. Pre-training has AudioSet's.
NORMS: dict[str | None, str] = {
    'spcv2_eval': 'speech_commands', 'esc50_eval': 'esc50',
    None: 'audioset',
}
LOSSES: dict[str | None, tuple[str, str]] = {
    'spcv2_eval': ('bce', 'clips'), 'esc50_eval': ('ce', 'positives'),
    None: ('bce', 'positives'),
}
_SIZES = ('width', 'depth', 'mlp_ratio', 'patch')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Facts that tensors do not tell; None where the settings do not either.

  Attributes:
    heads: Of attention.
    frames: Length of the clips.
    rate_hz: Sampling rate of the waveforms.
    mel_bins: Number of mel filters.
    mean: Of the log-mels.
    std: Their standard deviation.
    pooling: What a classifier sees of a clip.
    loss_kind: How it was trained.
    bce_divisor: The same.
    labels: Its classes, in order.
    width: Channels, which tensors tell too: to be compared.
    depth: Blocks, the same.
    mlp_ratio: Width of their MLP, the same.
    patch: Edge of a patch, the same.
  """

  heads: int | None = None
  frames: int | None = None
  rate_hz: int | None = None
  mel_bins: int | None = None
  mean: float | None = None
  std: float | None = None
  pooling: str | None = None
  loss_kind: str | None = None
  bce_divisor: str | None = None
  labels: tuple[str, ...] | None = None
  width: int | None = None
  depth: int | None = None
  mlp_ratio: int | None = None
  patch: int | None = None

  def check(self, vit: model_lib.Vit) -> None:
    """Raises ValueError where the tensors are of another encoder."""
    for name in _SIZES:
      said, found = getattr(self, name), getattr(vit, name)
      if said not in (None, found):
        raise ValueError(f'{name}: want {said}, as the settings say, got '
                         f'{found} in the tensors')


def of(checkpoint: torch_files.Checkpoint) -> Settings:
  """The settings of a checkpoint; those of our own exports say all.

  Raises:
    ValueError: A value is not of the kind that it should be.
  """
  if checkpoint.huggingface:
    return _of_huggingface(checkpoint.huggingface)
  return _of_fairseq(checkpoint.fairseq)


def _of_huggingface(tree: dict[str, Any]) -> Settings:
  problem = _choice(tree, 'problem_type', _PROBLEMS)
  published = _value(tree, list, 'img_size') or []  # frames, mel bins
  return Settings(
      heads=_value(tree, int, 'num_attention_heads', 'num_heads'),
      frames=_value(tree | {'img_size': next(iter(published), None)}, int,
                    'max_frames', 'img_size'),
      rate_hz=_value(tree, int, 'sampling_rate'),
      mel_bins=_value(tree, int, 'num_mel_bins', 'mel_bins'),
      mean=_value(tree, float, 'mel_mean'),
      std=_value(tree, float, 'mel_std'),
      pooling=_choice(tree, 'pooling', dict.fromkeys(_POOLINGS.values())),
      loss_kind=None if problem is None else _PROBLEMS[problem],
      bce_divisor=_choice(tree, 'bce_divisor', _DIVISORS),
      labels=_labels(_value(tree, dict, 'id2label')),
      width=_value(tree, int, 'hidden_size', 'embed_dim'),
      depth=_value(tree, int, 'num_hidden_layers', 'depth'),
      mlp_ratio=_value(tree, int, 'mlp_ratio'),
      patch=_value(tree, int, 'patch_size'),
  )


def _choice(
    tree: dict[str, Any], name: str, choices: Collection[str]
) -> str | None:
  value = _value(tree, str, name)
  if value not in (None, *choices):
    raise ValueError(f'{name}: want one of {", ".join(choices)}, got {value}')
  return value


def _labels(names: dict[str, Any] | None) -> tuple[str, ...] | None:
  """The classes of a config.json, in the order of their numbers."""
  if names is None:
    return None
  order = [str(i) for i in range(len(names))]
  if {*names} != {*order}:
    raise ValueError(f'id2label: want the numbers 0 to {len(names) - 1}, got '
                     f'{", ".join(names)}')
  return tuple(str(names[i]) for i in order)


def _of_fairseq(tree: dict[str, Any]) -> Settings:
  """Fine-tuning keeps the settings of pre-training among its model's."""
  model, task = _part(tree, 'model'), _part(tree, 'task')
  before = _part(model, 'pretrained_model_args')
  network = _part(before, 'model') or model
  image = _part(_part(network, 'modalities'), 'image')
  if not model and not task:
    return Settings()
  mean, std = audio.NORMALISATION[NORMS[_flag(task, model)]]
  loss_kind, divisor = LOSSES[_flag(model, task)]
  frames = (part.get('target_length') for part in (task, model, image))
  mode = str(model.get('prediction_mode')).rpartition('.')[2]
  return Settings(
      heads=_whole(network.get('num_heads')),
      frames=next(filter(None, map(_whole, frames)), None),
      mean=mean,
      std=std,
      pooling=_POOLINGS.get(mode),
      loss_kind=loss_kind,
      bce_divisor=divisor,
      width=_whole(network.get('embed_dim')),
      depth=_whole(network.get('depth')),
      mlp_ratio=_whole(network.get('mlp_ratio')),
      patch=_whole(image.get('patch_size')),
  )


def _flag(*parts: dict[str, Any]) -> str | None:
  """Which is set in the first of these that has any."""
  flags = next((x for x in parts if not NORMS.keys().isdisjoint(x)), {})
  return next((x for x in NORMS if x and flags.get(x) is True), None)


def _part(tree: dict[str, Any], name: str) -> dict[str, Any]:
  part = tree.get(name)
  return part if isinstance(part, dict) else {}


def _whole(value: Any) -> int | None:
  """A number; None for what fairseq writes of a value it has elsewhere."""
  if type(value) is float and value.is_integer():
    value = int(value)
  return value if type(value) is int and value > 0 else None


def _value(tree: dict[str, Any], kind: type, *names: str) -> Any:
  """The first of these fields that is there, or None."""
  name = next((x for x in names if tree.get(x) is not None), None)
  if name is None:
    return None
  value, what = tree[name], kind.__name__
  if kind is int:
    value, what = _whole(value), 'a positive whole number'
  elif kind is float:
    is_number = type(value) in (int, float) and math.isfinite(value)
    value, what = float(value) if is_number else None, 'a number'
  elif type(value) is not kind:
    value = None
  if value is None:
    raise ValueError(f'{name}: want {what}, got {tree[name]!r}')
  return value
