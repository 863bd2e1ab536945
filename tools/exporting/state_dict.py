"""One safetensors file with the official names, and settings beside them."""

import json
import pathlib

from sslam_jax import torch_files
from tools.exporting import settings
from tools.exporting import trained as trained_lib


def write(trained: trained_lib.Trained, path: pathlib.Path) -> None:
  """Writes the student with its decoder, the teacher, or a classifier.

  Its metadata are `format`, as PyTorch's own files have it, and `config`: the
  JSON of `settings`.
  """
  save(trained.student(), path, config=json.dumps(settings.model(trained.run)))


def save(
    tensors: trained_lib.Tensors, path: pathlib.Path, **metadata: str
) -> None:
  """Writes a safetensors file that PyTorch reads.

  Not by their own function, whose file only its owner may read and which makes
  another error of a full disk.
  """
  library = torch_files.library('safetensors.numpy')
  path.write_bytes(library.save(tensors, {'format': 'pt', **metadata}))
