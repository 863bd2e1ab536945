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
  safetensors = torch_files.library('safetensors.numpy')
  safetensors.save_file(
      trained.student(), path,
      metadata={'format': 'pt', 'config': json.dumps(
          settings.model(trained.run))},
  )
