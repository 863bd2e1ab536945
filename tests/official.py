"""Checkpoints as the official code saves them, for tests of imports."""

import contextlib
import sys
import types

import torch

from sslam_jax import model
from sslam_jax import torch_io

IMAGE = 'modality_encoders.IMAGE.'
POSITIONS = f'{IMAGE}fixed_positional_encoder.positions'
# Classes that exist while a file is saved, and no more when it is read.
_CLASSES = (
    'omegaconf.dictconfig.DictConfig', 'omegaconf.nodes.AnyNode',
    'omegaconf.base.ContainerMetadata', 'user_dir.tasks.Settings',
)


def tensors_of(params):
  """Official tensors of our parameters, with the table of positions."""
  tensors = torch_io.to_torch(params)
  prefix = 'model.' * ('head' in params)
  return {**tensors, prefix + POSITIONS: positions(
      params['encoder']['clip'].shape[0])}


def positions(width, columns=2):
  return model.positions((768, columns), width)[None]


def fairseq(student, teacher=None, cfg=None, **others):
  """What fairseq saves; `cfg` as omegaconf would hold it."""
  def convert(tensors):
    return {name: torch.as_tensor(x) for name, x in tensors.items()}

  tree = convert(student)
  if teacher is not None:
    tree['_ema'] = convert(teacher)
  return {
      'args': None,
      'cfg': cfg or {},
      'model': tree,
      'optimizer_history': [{'num_updates': 3}, {'num_updates': 402_620}],
      'extra_state': {'train_iterator': {'epoch': 1}},
      'last_optimizer_state': None,
      **others,
  }


@contextlib.contextmanager
def libraries():
  """Yields a function from such a class's name to an object of it."""
  made = {}
  for name in _CLASSES:
    *parents, last = name.split('.')
    for i in range(1, len(parents) + 1):
      path = '.'.join(parents[:i])
      sys.modules.setdefault(path, types.ModuleType(path))
      made[path] = sys.modules[path]
    cls = type(last, (), {'__module__': '.'.join(parents)})
    setattr(sys.modules['.'.join(parents)], last, cls)

  def new(name, **state):
    path, _, last = name.rpartition('.')
    thing = getattr(sys.modules[path], last)()
    thing.__dict__.update(state)
    return thing

  try:
    yield new
  finally:
    for path in made:
      del sys.modules[path]


def omegaconf(new, value, parent=None):
  """Settings as omegaconf pickles them: nodes that know their parents."""
  metadata = new('omegaconf.base.ContainerMetadata', object_type=dict,
                 ref_type=None)
  if not isinstance(value, dict):
    return new('omegaconf.nodes.AnyNode', _val=value, _parent=parent,
               _metadata=metadata)
  content = {}
  node = new('omegaconf.dictconfig.DictConfig', _metadata=metadata,
             _parent=parent, _content=content)
  content.update({k: omegaconf(new, v, node) for k, v in value.items()})
  return node


def save(tree, path, **options):
  torch.save(tree, path, **options)
  return path
