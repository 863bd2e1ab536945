"""Waveforms of different lengths to one batch, as Hugging Face has it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import logging

_LOGGER = logging.get_logger(__name__)


class SslamFeatureExtractor(SequenceFeatureExtractor):
  """Pads waveforms; the model itself computes their log-mels.

  Attributes:
    max_frames: Length of the clips in training, 10 ms each.
  """

  model_input_names = ['input_values', 'attention_mask']

  def __init__(
      self,
      feature_size: int = 1,
      sampling_rate: int = 16_000,
      padding_value: float = 0.0,
      max_frames: int = 1024,
      **kwargs: Any,
  ) -> None:
    """See the class; `kwargs` are those of every feature extractor."""
    super().__init__(feature_size=feature_size, sampling_rate=sampling_rate,
                     padding_value=padding_value, **kwargs)
    if self.padding_side != 'right':
      raise ValueError(f'padding_side: want right, got {self.padding_side}')
    self.max_frames = max_frames

  @property
  def max_samples(self) -> int:
    """Samples that fill `max_frames` frames exactly."""
    hop, window = self.sampling_rate // 100, self.sampling_rate * 25 // 1000
    return (self.max_frames - 1) * hop + window

  def __call__(
      self,
      raw_speech: Any,
      sampling_rate: int | None = None,
      padding: bool | str | None = None,
      max_length: int | None = None,
      truncation: bool = False,
      pad_to_multiple_of: int | None = None,
      return_attention_mask: bool | None = None,
      return_tensors: str | None = None,
  ) -> BatchFeature:
    """`input_values` and `attention_mask`, which is 1 where there is sound.

    Args:
      raw_speech: One waveform, or a list of them: one-dimensional arrays or
        tensors of floats in [-1, 1], or lists of floats. Of two dimensions an
        array or tensor is a batch, [clips, samples], never a clip's channels:
        mix those before, as with `wave.mean(0)` of [channels, samples].
      sampling_rate: Theirs, in hertz; it has to be the model's.
      padding: None pads to `max_length`, and to the longest clip if that is
        longer: so a clip's result does not depend on shorter neighbours.
        True or 'longest' pads to the longest, 'max_length' to `max_length`,
        False not at all.
      max_length: In samples; None: the length in training.
      truncation: Cuts longer clips to `max_length`.
      pad_to_multiple_of: Of samples.
      return_attention_mask: Whether to return it; None: yes.
      return_tensors: 'np' or 'pt'.
    """
    if sampling_rate is None:
      _LOGGER.warning(
          f'sampling_rate: none was given; the waveforms are taken to have '
          f'{self.sampling_rate} Hz. Pass it, so that a wrong one is noticed.'
      )
    elif sampling_rate != self.sampling_rate:
      raise ValueError(f'sampling_rate: want {self.sampling_rate}, as the '
                       f'model was trained on, got {sampling_rate}')
    waves = _waveforms(raw_speech)
    max_length = self.max_samples if max_length is None else max_length
    if padding is None:
      padding = 'max_length'
      if not truncation:
        max_length = max(max_length, *map(len, waves))
    return self.pad(
        BatchFeature({'input_values': waves}),
        padding=padding,
        max_length=max_length,
        truncation=truncation,
        pad_to_multiple_of=pad_to_multiple_of,
        return_attention_mask=return_attention_mask,
        return_tensors=return_tensors,
    )


def _waveforms(raw: Any) -> list[np.ndarray]:
  """The waveforms, float32, each checked."""
  if isinstance(raw, Sequence):
    is_batch = len(raw) > 0 and np.ndim(raw[0]) > 0
  else:
    raw = np.asarray(raw)
    is_batch = raw.ndim == 2 and len(raw) > 0
    if is_batch and raw.shape[0] > raw.shape[1]:
      raise ValueError(f'raw_speech: want [clips, samples], got '
                       f'{list(raw.shape)}, more clips than samples: mix '
                       f'channels first (wave.mean(1)), or pass a list of '
                       f'waveforms')
  waves = [np.asarray(wave) for wave in (raw if is_batch else [raw])]
  for index, wave in enumerate(waves):
    if wave.ndim != 1 or not wave.size or wave.dtype.kind != 'f':
      raise ValueError(f'clip {index}: want a waveform of one dimension, '
                       f'floats in [-1, 1], got {wave.dtype} '
                       f'{list(wave.shape)} (a batch is a list of waveforms, '
                       f'or [clips, samples]; channels have to be mixed)')
    if not np.isfinite(wave).all():
      raise ValueError(f'clip {index}: want finite samples, got NaN or '
                       f'infinity')
  return [wave.astype(np.float32) for wave in waves]
