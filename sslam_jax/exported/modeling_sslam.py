"""An exported model as Hugging Face's Auto classes load it.

The model itself, with names of tensors and front end, is in `sslam_torch`.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    SequenceClassifierOutput,
)
from transformers.utils import ModelOutput

# In this form, or Hugging Face does not find the files to copy.
from .configuration_sslam import SslamConfig
from .sslam_torch import Positions, Sslam, build

_SINGLE, _MULTI = 'single_label_classification', 'multi_label_classification'
_LINEAR_STD = 0.02


class SslamPreTrainedModel(PreTrainedModel):
  """What the two models share: `model`, the `Sslam`."""

  config_class = SslamConfig
  main_input_name = 'input_values'
  supports_gradient_checkpointing = True
  _no_split_modules = ['Block']
  _supports_sdpa = True

  model: Sslam
  gradient_checkpointing = False

  def get_input_embeddings(self) -> nn.Module:
    return self.model.local_encoder

  def _states(
      self, input_values: Tensor, attention_mask: Tensor | None
  ) -> Iterator[Tensor]:
    """What the first block sees, then what each block returns."""
    samples_B = None if attention_mask is None else attention_mask.sum(1)
    x_BxNxD = self.model.embed(self.model.log_mel(input_values, samples_B))
    yield x_BxNxD
    for block in self.model.blocks:
      if self.gradient_checkpointing and self.training:
        x_BxNxD = self._gradient_checkpointing_func(self._run, block, x_BxNxD)
      else:
        x_BxNxD = self._run(block, x_BxNxD)
      yield x_BxNxD

  def _run(self, block: nn.Module, x_BxNxD: Tensor) -> Tensor:
    """A block, with attention computed as the configuration says."""
    if self.config._attn_implementation != 'eager':
      return block(x_BxNxD)
    with sdpa_kernel(SDPBackend.MATH):  # products and softmax, one by one
      return block(x_BxNxD)

  def _tokens(
      self,
      input_values: Tensor,
      attention_mask: Tensor | None,
      output_attentions: bool | None,
      output_hidden_states: bool | None,
  ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """The last state, and all of them if wanted."""
    if output_attentions is None:
      output_attentions = self.config.output_attentions
    if output_attentions:
      raise ValueError('output_attentions: want False, as attention is '
                       'computed without its weights being kept; got True')
    states = self._states(input_values, attention_mask)
    if output_hidden_states is None:
      output_hidden_states = self.config.output_hidden_states
    if output_hidden_states:
      kept = tuple(states)
      return kept[-1], kept
    for state in states:
      last = state
    return last, None

  def _formed(
      self, output: ModelOutput, return_dict: bool | None
  ) -> Any:
    if return_dict is None:
      return_dict = self.config.return_dict
    return output if return_dict else output.to_tuple()

  @torch.no_grad()
  def _init_weights(self, module: nn.Module) -> None:
    """Initial values of what a file does not hold, such as a new head."""
    if isinstance(module, nn.Linear):
      nn.init.trunc_normal_(module.weight, std=_LINEAR_STD)
      nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
      nn.init.ones_(module.weight)
      nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):  # Xavier's, of a map of each patch
      inputs = module.weight[0].numel()
      limit = (6 / (inputs + module.out_channels)) ** 0.5
      weight, bias = module.parameters()
      nn.init.uniform_(weight, -limit, limit)
      nn.init.uniform_(bias, -(inputs**-0.5), inputs**-0.5)
    elif isinstance(module, Positions):
      module.get_buffer('positions').copy_(module.table())
    elif isinstance(module, Sslam):
      nn.init.normal_(module.extra_tokens)


class SslamModel(SslamPreTrainedModel):
  """The encoder with its front end."""

  # So that a classifier's encoder loads without a warning.
  _keys_to_ignore_on_load_unexpected = [r'model\.(head|fc_norm)\.']

  def __init__(self, config: SslamConfig) -> None:
    super().__init__(config)
    self.model = build(config.to_dict(), classes=0)
    self.post_init()

  def forward(
      self,
      input_values: Tensor,
      attention_mask: Tensor | None = None,
      output_attentions: bool | None = None,
      output_hidden_states: bool | None = None,
      return_dict: bool | None = None,
  ) -> BaseModelOutputWithPooling | tuple[Tensor, ...]:
    """Tokens of waveforms.

    Args:
      input_values: Waveforms in [-1, 1], [clips, samples].
      attention_mask: 1 where there is sound, then 0; None: 1 everywhere.
      output_attentions: Only False, as attentions are not kept.
      output_hidden_states: Return the states before and after each block.
      return_dict: False returns a tuple.

    Returns:
      `last_hidden_state` [clips, 1 + patches, width]: the class token, then
      patches, mel by mel and then time; `pooler_output`: the class token.
    """
    tokens, states = self._tokens(input_values, attention_mask,
                                  output_attentions, output_hidden_states)
    output = BaseModelOutputWithPooling(
        last_hidden_state=tokens,
        pooler_output=tokens[:, 0],
        hidden_states=states,
    )
    return self._formed(output, return_dict)


class SslamForAudioClassification(SslamPreTrainedModel):
  """The encoder with its front end and a head."""

  def __init__(self, config: SslamConfig) -> None:
    super().__init__(config)
    self.model = build(config.to_dict(), classes=config.num_labels or 0)
    self.post_init()

  def forward(
      self,
      input_values: Tensor,
      attention_mask: Tensor | None = None,
      labels: Tensor | None = None,
      output_attentions: bool | None = None,
      output_hidden_states: bool | None = None,
      return_dict: bool | None = None,
  ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
    """Logits of waveforms, and the mean loss if there are labels.

    Args:
      input_values: Waveforms in [-1, 1], [clips, samples].
      attention_mask: 1 where there is sound, then 0; None: 1 everywhere.
      labels: Numbers of classes [clips]; or where clips have any number of
        labels, 1 for those they have, [clips, classes].
      output_attentions: Only False, as attentions are not kept.
      output_hidden_states: Return the states before and after each block.
      return_dict: False returns a tuple.
    """
    tokens, states = self._tokens(input_values, attention_mask,
                                  output_attentions, output_hidden_states)
    logits = self.model.logits(tokens)
    output = SequenceClassifierOutput(
        loss=None if labels is None else self._loss(logits.float(), labels),
        logits=logits,
        hidden_states=states,
    )
    return self._formed(output, return_dict)

  def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
    problem: str | None = self.config.problem_type
    if problem is None:  # as Hugging Face's own models decide
      problem = _MULTI if labels.is_floating_point() else _SINGLE
    if problem == _SINGLE:
      return F.cross_entropy(logits, labels)
    if problem == _MULTI:
      return F.binary_cross_entropy_with_logits(logits, labels.float())
    raise ValueError(f'problem_type: want {_SINGLE} or {_MULTI}, got {problem}')


# Then `save_pretrained` copies these files too, in every version.
SslamModel.register_for_auto_class('AutoModel')
SslamForAudioClassification.register_for_auto_class(
    'AutoModelForAudioClassification'
)
