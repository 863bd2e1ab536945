"""Runs one model by JAX, PyTorch, transformers and ONNX on the same sounds.

  python tools/compare_exports.py RUN AUDIO... [--seconds 1,5,10,60]

The files of AUDIO (files or folders) are joined; the first S seconds are a
clip. Exports RUN to a temporary folder and prints, for each S, the largest
absolute difference from the JAX model in float32: of the class token, of the
patch tokens, of a classifier's logits.
Exit status: 0 all within 2e-5, 1 not all, 2 for wrong usage.
"""

import argparse
import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# For a checkout that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from sslam_jax import clips
from sslam_jax import model as model_lib
from sslam_jax import pretrained
from sslam_jax import recordings
from sslam_jax import resampling
from sslam_jax import torch_files
from tools import export_torch

TOLERANCE = 2e-5  # absolute; sums in another order, in float32
_LIBRARIES = 'torch', 'transformers', 'onnxruntime'

# From a waveform [S] to arrays by name: clip [D], patch [N, D], logits [C].
Outputs = dict[str, np.ndarray]
Program = Callable[[np.ndarray], Outputs]


def main(args: list[str]) -> int:
  """Prints the table."""
  options = _parser().parse_args(args)
  try:
    lines = compare(options.run, options.audio, options.seconds)
    worst = 0.0
    for line, error in lines:
      print(line, flush=True)
      worst = max(worst, error)
  except (OSError, ValueError, clips.BadClip) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(f'largest: {worst:.1e}, tolerance {TOLERANCE:.0e}')
  return 0 if worst <= TOLERANCE else 1


def compare(
    run: str, paths: Sequence[str], seconds: Sequence[float]
) -> Iterator[tuple[str, float]]:
  """Yields the lines of a Markdown table, each with its largest difference.

  Raises:
    ValueError: No run folder, no or too little audio, or a library is missing.
  """
  for name in _LIBRARIES:
    torch_files.library(name)
  learned = pretrained.load(run)
  rate_hz = learned.config.data.mel.rate_hz
  wave_S = _joined(paths, rate_hz, round(max(seconds) * rate_hz))
  ours = _by_jax(learned)
  with tempfile.TemporaryDirectory() as folder:
    programs = dict(_exported(learned, pathlib.Path(folder)))
    names = 'clip', 'patch', *(['logits'] if 'head' in learned.params else [])
    yield f'| seconds | program | {" | ".join(names)} |', 0.0
    yield '|' + '---|' * (2 + len(names)), 0.0
    for length_s in seconds:
      part_S = wave_S[: round(length_s * rate_hz)]
      wanted = ours(part_S)
      for title, program in programs.items():
        found = program(part_S)
        errors = [_difference(found[name], wanted[name]) for name in names]
        cells = ' | '.join(f'{error:.1e}' for error in errors)
        yield f'| {length_s:g} | {title} | {cells} |', max(errors)


def _difference(found: np.ndarray, wanted: np.ndarray) -> float:
  """Largest absolute one; infinite where shapes differ or a value is none."""
  if found.shape != wanted.shape:
    return np.inf
  error = float(np.abs(found - wanted).max())
  return error if np.isfinite(error) else np.inf


def _joined(paths: Sequence[str], rate_hz: int, samples: int) -> np.ndarray:
  _, found = recordings.find(paths)
  waves, left = [], samples
  for clip in recordings.opened(found):
    if isinstance(clip, clips.BadClip):
      raise clip
    wave_S = resampling.resample(clip.read(0, clip.samples), clip.rate_hz,
                                 rate_hz)
    waves.append(wave_S[:left])
    left -= len(waves[-1])
    if not left:
      return np.concatenate(waves)
  wanted, got = (x / rate_hz for x in (samples, samples - left))
  raise ValueError(f'{", ".join(paths)}: want {wanted:g} s of audio, '
                   f'got {got:.2f} s')


def _by_jax(learned: pretrained.Model) -> Program:
  vit = dataclasses.replace(learned.vit, dtype='float32')
  mel, params = learned.config.data.mel, jax.device_put(learned.params)

  def forward(params: Any, wave_BxS: jax.Array, frames: int) -> dict[str, Any]:
    front_end = dataclasses.replace(mel, frames=frames)
    samples_B = jnp.full(len(wave_BxS), wave_BxS.shape[1])
    encoded: Any = model_lib.Encoder(vit).apply(
        {'params': params['encoder']}, front_end(wave_BxS, samples_B))
    outputs = {'clip': encoded.clip_RxD, 'patch': encoded.patch_RxKxD}
    if 'head' in params:
      head = model_lib.Classifier(learned.classifier.head, len(learned.classes))
      outputs['logits'] = head.apply({'params': params['head']}, encoded)
    return outputs

  jitted = jax.jit(forward, static_argnames='frames')

  def program(wave_S: np.ndarray) -> Outputs:
    whole = max(len(wave_S) - mel.window, 0) // (mel.hop * vit.patch)
    outputs = jitted(params, wave_S[None], frames=(whole + 1) * vit.patch)
    return {name: np.asarray(x[0]) for name, x in outputs.items()}

  return program


def _exported(
    learned: pretrained.Model, folder: pathlib.Path
) -> Iterator[tuple[str, Program]]:
  """The other programs, by name."""
  export_torch.export(learned.path, 'huggingface', folder / 'model')
  export_torch.export(learned.path, 'onnx', folder / 'model.onnx')
  is_classifier = 'head' in learned.params
  yield 'PyTorch', _by_torch(folder / 'model', is_classifier)
  yield 'transformers', _by_transformers(
      folder / 'model', is_classifier, learned.config.data.mel.rate_hz)
  yield 'ONNX Runtime', _by_onnx(folder / 'model.onnx')


def _by_torch(folder: pathlib.Path, is_classifier: bool) -> Program:
  torch = torch_files.library('torch')
  module = torch_files.library('sslam_jax.exported.sslam_torch').load(folder)

  def program(wave_S: np.ndarray) -> Outputs:
    with torch.no_grad():
      tokens = module(torch.from_numpy(wave_S)[None])
      logits = module.logits(tokens) if is_classifier else None
    return _named(tokens, logits)

  return program


def _by_transformers(
    folder: pathlib.Path, is_classifier: bool, rate_hz: int
) -> Program:
  torch, transformers = map(torch_files.library, ('torch', 'transformers'))
  options: Any = {'trust_remote_code': True}
  encode = transformers.AutoModel.from_pretrained(folder, **options).eval()
  prepare = transformers.AutoFeatureExtractor.from_pretrained(folder, **options)
  classify = None
  if is_classifier:
    classify = transformers.AutoModelForAudioClassification.from_pretrained(
        folder, **options).eval()

  def program(wave_S: np.ndarray) -> Outputs:
    inputs = prepare(wave_S, sampling_rate=rate_hz, return_tensors='pt',
                     padding=False)
    with torch.no_grad():
      tokens = encode(**inputs).last_hidden_state
      logits = classify(**inputs).logits if classify else None
    return _named(tokens, logits)

  return program


def _by_onnx(path: pathlib.Path) -> Program:
  runtime = torch_files.library('onnxruntime')
  session = runtime.InferenceSession(
      str(path), providers=['CPUExecutionProvider'])

  def program(wave_S: np.ndarray) -> Outputs:
    tokens, *scores = session.run(None, {
        'waveform': wave_S[None], 'samples': np.array([len(wave_S)])})
    return _named(tokens, scores[0] if scores else None)

  return program


def _named(tokens_1xNxD: Any, logits_1xC: Any | None) -> Outputs:
  tokens_NxD = np.asarray(tokens_1xNxD)[0]
  outputs = {'clip': tokens_NxD[0], 'patch': tokens_NxD[1:]}
  if logits_1xC is not None:
    outputs['logits'] = np.asarray(logits_1xC)[0]
  return outputs


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('run', metavar='RUN', help='folder of a run')
  parser.add_argument('audio', nargs='+', metavar='AUDIO',
                      help='audio files or folders')
  parser.add_argument('--seconds', type=_lengths, default=(1.0, 5.0, 10.0),
                      metavar='S,S', help='lengths of clips (default: 1,5,10)')
  return parser


def _lengths(text: str) -> tuple[float, ...]:
  try:
    lengths = tuple(map(float, text.split(',')))
  except ValueError:
    lengths = ()
  if not lengths or not all(0 < length < np.inf for length in lengths):
    raise argparse.ArgumentTypeError(
        f'want positive numbers such as 1,5,10, got {text!r}')
  return lengths


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
