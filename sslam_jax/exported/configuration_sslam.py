"""The configuration of an exported model, as Hugging Face has it."""

from typing import Any

from transformers import PretrainedConfig


class SslamConfig(PretrainedConfig):
  """Sizes of the encoder, its front end and its head.

  Attributes:
    hidden_size: Channels.
    num_hidden_layers: Number of blocks.
    num_attention_heads: Attention heads; divides `hidden_size`.
    mlp_ratio: Width of a block's MLP, relative to `hidden_size`.
    patch_size: Edge of the square patches, in frames and mel bins.
    num_mel_bins: Number of mel filters, 20 Hz to half of `sampling_rate`.
    sampling_rate: Of the waveforms, in hertz.
    mel_mean: Mean of the data set's log-mels, in nats.
    mel_std: Their standard deviation.
    max_frames: Length of the clips in training, 10 ms each.
    pooling: What the head sees of a clip: its 'class' token, or of its patch
      tokens the 'mean' or the 'linear_softmax'.
    head_norm: The head begins with a norm.
  """

  model_type = 'sslam'

  def __init__(
      self,
      hidden_size: int = 768,
      num_hidden_layers: int = 12,
      num_attention_heads: int = 12,
      mlp_ratio: int = 4,
      patch_size: int = 16,
      num_mel_bins: int = 128,
      sampling_rate: int = 16_000,
      mel_mean: float = -4.268,
      mel_std: float = 4.569,
      max_frames: int = 1024,
      pooling: str = 'class',
      head_norm: bool = True,
      **kwargs: Any,
  ) -> None:
    """See the class; `kwargs` are those of every configuration."""
    self.hidden_size = hidden_size
    self.num_hidden_layers = num_hidden_layers
    self.num_attention_heads = num_attention_heads
    self.mlp_ratio = mlp_ratio
    self.patch_size = patch_size
    self.num_mel_bins = num_mel_bins
    self.sampling_rate = sampling_rate
    self.mel_mean = mel_mean
    self.mel_std = mel_std
    self.max_frames = max_frames
    self.pooling = pooling
    self.head_norm = head_norm
    super().__init__(**kwargs)
