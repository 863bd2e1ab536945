"""A Hugging Face folder: weights, settings, model card and our own code."""

import json
import pathlib
import shutil
from typing import Any

from sslam_jax import exported
from sslam_jax import torch_io
from tools.exporting import model_card
from tools.exporting import settings
from tools.exporting import state_dict
from tools.exporting import trained as trained_lib

# What `trust_remote_code=True` runs; they import nothing of this package.
_CODE = ('sslam_torch.py', 'configuration_sslam.py',
         'feature_extraction_sslam.py', 'modeling_sslam.py')


def write(trained: trained_lib.Trained, folder: pathlib.Path) -> None:
  """Writes all files into a folder that exists."""
  state_dict.save(torch_io.to_huggingface(trained.encoder()),
                  folder / 'model.safetensors')
  _write_json(folder / 'config.json', settings.model(trained.run))
  _write_json(folder / 'preprocessor_config.json',
              settings.preprocessor(trained.run))
  card = model_card.text(trained)
  (folder / 'README.md').write_text(card, encoding='utf-8')
  code = pathlib.Path(*exported.__path__)
  for name in _CODE:
    shutil.copyfile(code / name, folder / name)


def _write_json(path: pathlib.Path, tree: dict[str, Any]) -> None:
  path.write_text(json.dumps(tree, indent=2) + '\n', encoding='utf-8')
