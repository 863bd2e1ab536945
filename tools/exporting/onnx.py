"""Front end, encoder and head as one ONNX file, by way of PyTorch."""

import contextlib
import json
import logging
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from sslam_jax import torch_files
from sslam_jax import torch_io
from tools.exporting import settings
from tools.exporting import trained as trained_lib

LIBRARIES = 'torch', 'onnx', 'onnxscript', 'onnxruntime'
_TOLERANCE = 2e-5  # absolute, of tokens, logits and scores
# Clips of the example that is traced, and of those that are compared.
_TRACED = 2, 16_000
_COMPARED = (1, 4_000), (3, 27_001)
_OUTPUTS = 'tokens', 'logits', 'scores'


def write(trained: trained_lib.Trained, path: pathlib.Path) -> None:
  """Writes the file and compares it with PyTorch.

  Raises:
    ValueError: A library is missing, or what was written does not agree.
  """
  torch, _, _, runtime = map(torch_files.library, LIBRARIES)
  module = _module(torch, trained).eval()
  names = _OUTPUTS if trained.is_classifier else _OUTPUTS[:1]
  with _quiet(), torch.no_grad():
    program = torch.onnx.export(
        module, _example(torch, *_TRACED), dynamo=True, verbose=False,
        input_names=['waveform', 'samples'], output_names=list(names),
        dynamic_shapes=({0: 'batch', 1: 'samples'}, {0: 'batch'}),
    )
  program.model.metadata_props.update(_metadata(trained))
  program.save(path)
  _compare(torch, runtime, module, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Without what the exporter says of itself and of libraries it looks for."""
  log = logging.getLogger('torch.onnx')
  level = log.level
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    log.setLevel(logging.ERROR)
    try:
      yield
    finally:
      log.setLevel(level)


def sslam(trained: trained_lib.Trained) -> Any:
  """The PyTorch module that exported folders carry, with these weights."""
  torch = torch_files.library('torch')
  module = torch_files.library('sslam_jax.exported.sslam_torch')
  tensors = torch_io.to_huggingface(trained.encoder())
  model = module.build(settings.model(trained.run),
                       classes=len(trained.run.classes))
  model.load_state_dict({
      name.removeprefix(torch_io.CLASSIFIER): torch.from_numpy(np.array(tensor))
      for name, tensor in tensors.items()
  })
  return model


def _module(torch: Any, trained: trained_lib.Trained) -> Any:
  """(waveform, samples) -> tokens, and of a classifier logits and scores."""
  is_single = trained.is_classifier and trained.run.classifier.is_single
  is_classifier = trained.is_classifier

  class Module(torch.nn.Module):
    """What is exported."""

    def __init__(self) -> None:
      super().__init__()
      self.model = sslam(trained)

    def forward(self, waveform: Any, samples: Any) -> tuple[Any, ...]:
      tokens = self.model(waveform, samples)
      if not is_classifier:
        return (tokens,)
      logits = self.model.logits(tokens)
      scores = logits.softmax(-1) if is_single else logits.sigmoid()
      return tokens, logits, scores

  return Module()


def _metadata(trained: trained_lib.Trained) -> dict[str, str]:
  """What a program that runs the file has to know; values are JSON."""
  mel = trained.config.data.mel
  tree = {
      'sampling_rate': mel.rate_hz,
      'max_frames': mel.frames,
      'patch_size': trained.run.vit.patch,
      'config': settings.model(trained.run),
  }
  if trained.is_classifier:
    tree['classes'] = list(trained.run.classes)
  return {name: json.dumps(value) for name, value in tree.items()}


def _example(torch: Any, batch: int, samples: int) -> tuple[Any, Any]:
  """Noise; the clips are shorter one by one."""
  rng = np.random.default_rng(batch)
  wave_BxS = 0.1 * rng.standard_normal((batch, samples), np.float32)
  samples_B = samples - np.arange(batch) * (samples // 4)
  return torch.from_numpy(wave_BxS), torch.from_numpy(samples_B)


def _compare(
    torch: Any, runtime: Any, module: Any, path: pathlib.Path
) -> None:
  """Raises ValueError where ONNX Runtime disagrees with PyTorch."""
  session = runtime.InferenceSession(
      str(path), providers=['CPUExecutionProvider'])
  for shape in _COMPARED:
    inputs = _example(torch, *shape)
    with torch.no_grad():
      wanted = module(*inputs)
    found = session.run(None, {'waveform': inputs[0].numpy(),
                               'samples': inputs[1].numpy()})
    worst = max(float(np.abs(ours - theirs.numpy()).max())
                for ours, theirs in zip(found, wanted))
    # Not below: not a number either.
    if not worst <= _TOLERANCE:
      raise ValueError(f'{path.name}: want outputs within {_TOLERANCE} of '
                       f'PyTorch, got {worst:.1e} for {shape[0]} clips of '
                       f'{shape[1]} samples')
