"""Writes a run's inference function for programs with jax and flatbuffers.

  python tools/export_jax.py RUN --out FILE.npz [--seconds S]

The file holds the function as StableHLO, for any number of clips, on CPU, GPU
and TPU, and its parameters. This is all that a program needs:

  import jax, numpy as np
  from jax import export

  file = dict(np.load('FILE.npz'))
  function = export.deserialize(bytearray(file.pop('function')))
  settings = file.pop('settings')  # JSON
  params = jax.device_put(file)
  outputs = function.call(params, wave, samples)

`wave` is float32 [clips, S] at the sampling rate in `settings`, whose
`samples` is S; `samples` is int32 [clips], how many of them are real. Outputs
are `clip` [clips, D], `patch` [clips, N, D], both float32, and of a classifier
`scores` [clips, classes]. Parameters are arguments of the function: inside it
they would be constants, which every program compiles anew.
Exit status: 0, or 2 for wrong usage.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
from typing import Any, get_args

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax import export as jax_export

# For a checkout that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from sslam_jax import audio
from sslam_jax import model as model_lib
from sslam_jax import output
from sslam_jax import pretrained
from sslam_jax import torch_files
from tools.exporting import settings

PLATFORMS = 'cpu', 'cuda', 'tpu'


def main(args: list[str]) -> int:
  """Prints what was written; for the exit status see above."""
  options = _parser().parse_args(args)
  try:
    written = export(options.run, options.out, weights=options.weights,
                     seconds=options.seconds)
  except (OSError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('stopped', file=sys.stderr)
    return 130
  size = options.out.stat().st_size
  print(f'wrote {options.out} ({size / 1e6:.1f} MB) for clips of '
        f'{written["samples"]} samples at {written["sampling_rate"]} Hz')
  print('next: see the beginning of tools/export_jax.py')
  return 0


def export(
    run: str,
    out: pathlib.Path,
    *,
    weights: pretrained.Weights = 'student',
    seconds: float | None = None,
) -> dict[str, Any]:
  """Writes the function of a run's model; returns its settings.

  Args:
    run: The folder.
    out: A new file, .npz.
    weights: Of a pre-training run, the student's or the teacher's.
    seconds: Length of the clips; None: that of the training's.

  Raises:
    ValueError: One of these cannot be, or a library is missing.
  """
  if out.suffix != '.npz':
    raise ValueError(f'--out: want a name that ends in .npz, got {out}')
  if out.exists() or out.is_symlink():
    raise ValueError(f'--out: want a new file, got {out}, which exists')
  # jax.export needs it and does not require it.
  torch_files.library('flatbuffers')
  learned = pretrained.load(run, weights=weights)
  mel = _front_end(learned, seconds)
  params = flax.traverse_util.flatten_dict(learned.params, sep='/')
  exported = _exported(learned, mel, params)
  told = {
      **settings.model(learned),
      'max_frames': mel.frames,
      'samples': mel.samples,
      'outputs': sorted(_names(learned)),
  }
  out.parent.mkdir(parents=True, exist_ok=True)
  with output.replaced(out) as unfinished:
    np.savez(
        unfinished,
        function=np.frombuffer(exported.serialize(), np.uint8),
        settings=np.array(json.dumps(told)),
        **jax.device_get(params),
    )
  return told


def function(learned: pretrained.Model, mel: audio.LogMel) -> Any:
  """(parameters by path, waves, valid samples) -> arrays of each clip."""

  def run(
      flat: dict[str, Array], wave_BxS: Array, samples_B: Array
  ) -> dict[str, Array]:
    params = flax.traverse_util.unflatten_dict(flat, sep='/')
    encoded: Any = model_lib.Encoder(learned.vit).apply(
        {'params': params['encoder']}, mel(wave_BxS, samples_B)
    )
    outputs = {'clip': encoded.clip_RxD, 'patch': encoded.patch_RxKxD}
    if 'head' in params:
      objective = learned.classifier
      head = model_lib.Classifier(objective.head, len(learned.classes))
      logit_BxC: Any = head.apply({'params': params['head']}, encoded)
      outputs['scores'] = objective.probabilities(logit_BxC)
    return {name: x.astype(jnp.float32) for name, x in outputs.items()}

  return run


def _exported(
    learned: pretrained.Model, mel: audio.LogMel, params: dict[str, Array]
) -> jax_export.Exported:
  (batch,) = jax_export.symbolic_shape('b')
  return jax_export.export(
      jax.jit(function(learned, mel)), platforms=PLATFORMS
  )(
      jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params),
      jax.ShapeDtypeStruct((batch, mel.samples), jnp.float32),
      jax.ShapeDtypeStruct((batch,), jnp.int32),
  )


def _front_end(
    learned: pretrained.Model, seconds: float | None
) -> audio.LogMel:
  """That of the run, for clips of another length: whole patches."""
  mel, patch = learned.config.data.mel, learned.vit.patch
  if seconds is None:
    return mel
  if not math.isfinite(seconds) or round(seconds * 100) < patch:
    raise ValueError(f'--seconds: want at least {patch / 100:g}, a patch, '
                     f'got {seconds}')
  columns = round(seconds * 100) // patch
  return dataclasses.replace(mel, frames=columns * patch)


def _names(learned: pretrained.Model) -> tuple[str, ...]:
  return 'clip', 'patch', *(['scores'] if 'head' in learned.params else [])


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('run', metavar='RUN', help='folder of a run')
  parser.add_argument('--out', required=True, type=pathlib.Path,
                      metavar='FILE', help='new file, .npz')
  parser.add_argument('--weights', choices=get_args(pretrained.Weights),
                      default='student',
                      help='of a pre-training run (default: student)')
  parser.add_argument('--seconds', type=float, metavar='S',
                      help="length of the clips (default: the training's)")
  return parser


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
