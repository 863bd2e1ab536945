"""Official PyTorch tensor names and layouts <-> our parameters.

One table of rules serves both directions. Layers are stacked here, numbered
there. A fine-tuned classifier's encoder is named there below `model.`; the
published Hugging Face models have names of their own, but the same layouts.
Source: names and shapes of the fairseq checkpoints of EAT and SSLAM, and of the
Hugging Face models made of them.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import flax
import numpy as np

from sslam_jax import model

_IMAGE = 'modality_encoders.IMAGE.'
# Of the table of positions: its name, and its time patches, 122.88 s.
POSITIONS = f'{_IMAGE}fixed_positional_encoder.positions'
COLUMNS = 768
CLASSIFIER = 'model.'  # prefix of a classifier's encoder
_ROUNDING = 2.5e-3  # of positions: bfloat16 rounds below 1 to within 2e-3
_HEAD_WIDTH = 64  # channels of an attention head, in every published size
_SHOWN = 8  # names of foreign tensors
# Parts that a model may be without, and how their official names begin.
_OPTIONAL = {'decoder': f'{_IMAGE}decoder.', 'head/norm': 'fc_norm.'}


@dataclasses.dataclass(frozen=True)
class _Rule:
  """One kind of tensor.

  Attributes:
    ours: Path of the leaf in our parameters.
    theirs: Official name; {} is the layer, stacked on our first axis.
    shape: Official axes: D width, Q three times that, E width of the MLP, P
      edge of a patch; of the decoder K kernel, I inputs of a group; C classes.
    load: Official layout to ours.
    save: The inverse.
  """

  ours: str
  theirs: str
  shape: str
  load: Callable[[np.ndarray], np.ndarray] = lambda x: x
  save: Callable[[np.ndarray], np.ndarray] = lambda x: x


def _linear(ours: str, theirs: str, shape: str) -> list[_Rule]:
  return [
      _Rule(f'{ours}/kernel', f'{theirs}.weight', shape, np.transpose,
            np.transpose),
      _Rule(f'{ours}/bias', f'{theirs}.bias', shape[0]),
  ]


def _norm(ours: str, theirs: str) -> list[_Rule]:
  return [
      _Rule(f'{ours}/scale', f'{theirs}.weight', 'D'),
      _Rule(f'{ours}/bias', f'{theirs}.bias', 'D'),
  ]


def _patch_kernel(weight_Dx1xPxP: np.ndarray) -> np.ndarray:
  return weight_Dx1xPxP.reshape(len(weight_Dx1xPxP), -1).T


def _patch_weight(kernel_PxD: np.ndarray) -> np.ndarray:
  edge = round(len(kernel_PxD) ** 0.5)
  return kernel_PxD.T.reshape(-1, 1, edge, edge)


_ENCODER = [
    _Rule('encoder/clip', f'{_IMAGE}extra_tokens', '11D',
          lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, -1)),
    _Rule('encoder/patch/kernel', f'{_IMAGE}local_encoder.proj.weight', 'D1PP',
          _patch_kernel, _patch_weight),
    _Rule('encoder/patch/bias', f'{_IMAGE}local_encoder.proj.bias', 'D'),
    *_norm('encoder/pre_norm', f'{_IMAGE}context_encoder.norm'),
    *_linear('encoder/blocks/attention/qkv', 'blocks.{}.attn.qkv', 'QD'),
    *_linear('encoder/blocks/attention/out', 'blocks.{}.attn.proj', 'DD'),
    *_norm('encoder/blocks/norm1', 'blocks.{}.norm1'),
    *_norm('encoder/blocks/norm2', 'blocks.{}.norm2'),
    *_linear('encoder/blocks/mlp1', 'blocks.{}.mlp.fc1', 'ED'),
    *_linear('encoder/blocks/mlp2', 'blocks.{}.mlp.fc2', 'DE'),
]
_PRETRAINING = [
    *_ENCODER,
    _Rule('decoder/layers/kernel', f'{_IMAGE}decoder.blocks.{{}}.0.weight',
          'DIKK',
          lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
    _Rule('decoder/layers/bias', f'{_IMAGE}decoder.blocks.{{}}.0.bias', 'D'),
    *_linear('decoder/out', f'{_IMAGE}decoder.proj', 'DD'),
]
_FINE_TUNED = [
    *[dataclasses.replace(rule, theirs=CLASSIFIER + rule.theirs)
      for rule in _ENCODER],
    *_norm('head/norm', 'fc_norm'),
    *_linear('head/out', 'head', 'CD'),
]
# How official names begin, and those of Hugging Face behind their `model.`.
_HUGGING_FACE = {
    f'{_IMAGE}local_encoder.': 'local_encoder.',
    f'{_IMAGE}extra_tokens': 'extra_tokens',
    f'{_IMAGE}context_encoder.norm.': 'pre_norm.',
    POSITIONS: 'fixed_positional_encoder.positions',
    'blocks.': 'blocks.',
    'fc_norm.': 'fc_norm.',
    'head.': 'head.',
}
_HEAD = ('fc_norm.', 'head.')


def from_torch(tensors: dict[str, np.ndarray]) -> Any:
  """Our parameters from official tensors: student, teacher or classifier.

  Args:
    tensors: By official name. The table of positions is a constant here and
      is only checked; decoder, norm of the head and that table may be absent.

  Raises:
    ValueError: Names no rule knows, missing names, tensors of another shape
      than the rest of the model, or another table of positions.
  """
  is_classifier = any(name.startswith(CLASSIFIER) for name in tensors)
  positions = CLASSIFIER * is_classifier + POSITIONS
  left = {name: x for name, x in tensors.items() if name != positions}
  absent = tuple(ours for ours, theirs in _OPTIONAL.items()
                 if not any(name.startswith(theirs) for name in left))
  rules = [rule for rule in (_FINE_TUNED if is_classifier else _PRETRAINING)
           if not rule.ours.startswith(absent)]
  wanted = {rule: [rule.theirs.format(i) for i in range(_layers(rule, left))]
            for rule in rules}
  width = _check_exact(left, wanted)
  if positions in tensors:
    _check_positions(positions, tensors[positions], width)
  leaves = {}
  for rule, names in wanted.items():
    parts = [rule.load(left[name]) for name in names]
    stacked = np.stack(parts) if '{}' in rule.theirs else parts[0]
    leaves[rule.ours] = np.ascontiguousarray(stacked)
  return flax.traverse_util.unflatten_dict(leaves, sep='/')


def to_torch(params: Any) -> dict[str, np.ndarray]:
  """The inverse of `from_torch`, without the table of positions."""
  leaves = flax.traverse_util.flatten_dict(params, sep='/')
  rules = {rule.ours: rule
           for rule in (_FINE_TUNED if 'head' in params else _PRETRAINING)}
  if unknown := sorted(set(leaves) - set(rules)):
    raise ValueError(f'parameters without an official name: {unknown}')
  tensors = {}
  for path, leaf in leaves.items():
    rule = rules[path]
    layers = np.asarray(leaf) if '{}' in rule.theirs else np.asarray(leaf)[None]
    for index, layer in enumerate(layers):
      name = rule.theirs.format(index)
      tensors[name] = np.ascontiguousarray(rule.save(layer))
  return tensors


def to_huggingface(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The same tensors by the names of the published Hugging Face models.

  Raises:
    ValueError: There is no such name, as for a decoder's.
  """
  renamed = {}
  for name, tensor in tensors.items():
    bare = name.removeprefix(CLASSIFIER)
    start = next(filter(bare.startswith, _HUGGING_FACE), None)
    if start is None:
      raise ValueError(f'{name}: want a tensor of encoder or head, which have '
                       f'Hugging Face names; got another')
    rest = bare.removeprefix(start)
    renamed[f'{CLASSIFIER}{_HUGGING_FACE[start]}{rest}'] = tensor
  return renamed


def from_huggingface(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The inverse: official names.

  Raises:
    ValueError: Other names, which are listed.
  """
  theirs = {CLASSIFIER + name: start for start, name in _HUGGING_FACE.items()}
  heads = tuple(CLASSIFIER + name for name in _HEAD)
  is_classifier = any(name.startswith(heads) for name in tensors)
  renamed, unknown = {}, []
  for name, tensor in tensors.items():
    start = next(filter(name.startswith, theirs), None)
    if start is None:
      unknown.append(name)
      continue
    official = theirs[start] + name.removeprefix(start)
    is_encoder = is_classifier and not official.startswith(_HEAD)
    renamed[CLASSIFIER * is_encoder + official] = tensor
  if unknown:
    raise ValueError(f'Hugging Face tensors: unknown names {sorted(unknown)}')
  return renamed


def is_huggingface(names: Iterable[str]) -> bool:
  """Whether these are names of a Hugging Face model."""
  first = next(iter(_HUGGING_FACE.values()))
  return any(name.startswith(CLASSIFIER + first) for name in names)


def check_known(names: Iterable[str]) -> None:
  """Raises ValueError where none of the names is of EAT or SSLAM."""
  found = [*names]
  if not is_huggingface(found) and not any(_IMAGE in name for name in found):
    shown = ', '.join(found[:_SHOWN]) + ', ...' * (len(found) > _SHOWN)
    raise ValueError(
        f'want tensors of EAT or SSLAM, such as {_IMAGE}extra_tokens or '
        f'model.extra_tokens, got {len(found)} others ({shown})')


def vit_of(params: Any, heads: int | None = None) -> model.Vit:
  """The configuration that parameters belong to.

  Args:
    params: Have an `encoder`.
    heads: Attention heads, of which parameters tell nothing. None: one for 64
      channels, as in every published size.

  Raises:
    ValueError: The width is no multiple of 64, or of `heads`.
  """
  encoder = params['encoder']
  depth, width, hidden = encoder['blocks']['mlp1']['kernel'].shape
  if heads is None and width % _HEAD_WIDTH:
    raise ValueError(f'heads: want their number, as a width of {width} is none '
                     f'of the published ones (a multiple of {_HEAD_WIDTH}); '
                     f'got none')
  return model.Vit(
      width=width,
      depth=depth,
      heads=heads or width // _HEAD_WIDTH,
      mlp_ratio=hidden // width,
      patch=math.isqrt(len(encoder['patch']['kernel'])),
  )


def decoder_of(params: Any) -> model.Decoder:
  """The same for their `decoder`; where there is none, as published."""
  if 'decoder' not in params:
    width = len(params['encoder']['clip'])
    return model.Decoder(groups=math.gcd(width, model.Decoder.groups))
  kernel = params['decoder']['layers']['kernel']
  depth, edge, _, inputs, width = kernel.shape
  return model.Decoder(depth=depth, groups=width // inputs, kernel=edge)


def mel_bins_of(tensors: dict[str, np.ndarray]) -> int | None:
  """Mel bins of official tensors, by their positions; None without these."""
  for name, table in tensors.items():
    if name.removeprefix(CLASSIFIER) == POSITIONS:
      weight = name.replace(POSITIONS, f'{_IMAGE}local_encoder.proj.weight')
      return table.shape[1] // COLUMNS * tensors[weight].shape[-1]
  return None


def _check_exact(
    tensors: dict[str, np.ndarray], wanted: dict[_Rule, list[str]]
) -> int:
  """Raises ValueError unless all is there and fits; returns the width."""
  names = [name for group in wanted.values() for name in group]
  missing = [name for name in names if name not in tensors]
  unknown = sorted(set(tensors) - set(names))
  misshapen = _misshapen(tensors, wanted)
  if unknown or missing or misshapen:
    raise ValueError(f'official tensors: unknown names {unknown}, '
                     f'missing names {missing}, misshapen {misshapen}')
  sizes = _sizes(tensors, wanted)
  for letter, unit in (('E', sizes['D']), ('D', sizes.get('I', 1))):
    if sizes[letter] % unit:
      raise ValueError(f'official tensors: width of MLP or decoder: want a '
                       f'multiple of {unit}, got {sizes[letter]}')
  return sizes['D']


def _misshapen(
    tensors: dict[str, np.ndarray], wanted: dict[_Rule, list[str]]
) -> list[str]:
  """Tensors of another shape than the majority asks for."""
  sizes = _sizes(tensors, wanted)
  return [
      f'{name}: want {want}, got {[*tensors[name].shape]}'
      for rule, names in wanted.items()
      if (want := [sizes.get(letter) for letter in rule.shape])
      for name in names
      if name in tensors and [*tensors[name].shape] != want
  ]


def _sizes(
    tensors: dict[str, np.ndarray], wanted: dict[_Rule, list[str]]
) -> dict[str, int]:
  """What each letter of the rules' shapes stands for, in most tensors."""
  votes: dict[str, collections.Counter[int]] = {}
  for rule, names in wanted.items():
    for name in names:
      shape = tensors[name].shape if name in tensors else ()
      if len(shape) == len(rule.shape):
        for letter, size in zip(rule.shape, shape):
          votes.setdefault(letter, collections.Counter())[size] += 1
  sizes = {letter: count.most_common(1)[0][0]
           for letter, count in votes.items()}
  return sizes | {'1': 1, 'Q': 3 * sizes.get('D', 0)}


def _check_positions(name: str, table: np.ndarray, width: int) -> None:
  """Raises ValueError for another table than ours, which is a constant."""
  rows = table.shape[1] if table.ndim == 3 else 0
  columns = max(1, rows // COLUMNS)
  want = model.positions((COLUMNS, columns), width)[None]
  if table.shape != want.shape:
    raise ValueError(f'official tensors: {name}: want [1, {COLUMNS} * mel '
                     f'patches, {width}], got {[*table.shape]}')
  error = float(np.abs(table - want).max())
  if not error <= _ROUNDING:
    raise ValueError(f'official tensors: {name}: want the fixed sin-cos '
                     f'positions of EAT and SSLAM, got values that differ from '
                     f'them by up to {error:.2g}')


def _layers(rule: _Rule, names: Iterable[str]) -> int:
  """How many layers the rule's stack has: by the largest number in it.

  But no more than there are names, which would be no stack.
  """
  stack, numbered, _ = rule.theirs.partition('{}')
  if not numbered:
    return 1
  regex = re.compile(re.escape(stack) + r'(\d{1,9})\.')
  found = [*map(regex.match, names)]
  largest = max((int(m[1]) + 1 for m in found if m), default=1)
  return min(largest, max(1, len(found)))
