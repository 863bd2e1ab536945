"""Writes a run's weights for PyTorch, Hugging Face or ONNX Runtime.

  python tools/export_torch.py RUN --format huggingface --out DIR
  python tools/export_torch.py RUN --format fairseq --out FILE.pt
  python tools/export_torch.py RUN --format state_dict --out FILE.safetensors
  python tools/export_torch.py RUN --format onnx --out FILE.onnx

Of a pre-training run these are the student's weights or the teacher's; of a
classifier with a moving average, that average. fairseq holds student, decoder
and teacher; state_dict the student with its decoder, or the teacher; the others
have an encoder with its head, if there is one. What is written appears whole
or not at all. Exit status: 0, or 2 for wrong usage.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable
from typing import Literal, get_args

# For a checkout that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from sslam_jax import output
from sslam_jax import pretrained
from sslam_jax import torch_files
from tools.exporting import fairseq
from tools.exporting import huggingface
from tools.exporting import onnx
from tools.exporting import state_dict
from tools.exporting import trained as trained_lib

Format = Literal['fairseq', 'huggingface', 'state_dict', 'onnx']

_SUFFIXES: dict[Format, str | None] = {
    'fairseq': '.pt', 'huggingface': None, 'state_dict': '.safetensors',
    'onnx': '.onnx',
}
_LIBRARIES: dict[Format, tuple[str, ...]] = {
    'fairseq': ('torch',), 'huggingface': ('safetensors',),
    'state_dict': ('safetensors',), 'onnx': onnx.LIBRARIES,
}
_IMPORT = 'python tools/import_torch.py {out} --out RUN'
_NEXT: dict[Format, str] = {
    'fairseq': _IMPORT,
    'huggingface': "AutoModel.from_pretrained('{out}', trust_remote_code=True)",
    'state_dict': _IMPORT,
    'onnx': "onnxruntime.InferenceSession('{out}')",
}


def main(args: list[str]) -> int:
  """Prints what was written; for the exit status see above."""
  options = _parser().parse_args(args)
  try:
    files, notes = export(options.run, options.format, options.out,
                          weights=options.weights)
  except (OSError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('stopped', file=sys.stderr)
    return 130
  for path in files:
    print(f'wrote {path} ({_size(path)})')
  for note in notes:
    print(f'note: {note}')
  print(f'next: {_NEXT[options.format].format(out=options.out)}')
  return 0


def export(
    run: str,
    kind: Format,
    out: pathlib.Path,
    *,
    weights: pretrained.Weights = 'student',
) -> tuple[list[pathlib.Path], list[str]]:
  """Writes the weights of a run; returns the files, and what to know of them.

  Raises:
    ValueError: No run folder, or `out` is taken, or the format cannot hold
      this model, or a library is missing. Nothing is written then.
  """
  for library in _LIBRARIES[kind]:
    torch_files.library(library)
  _check_new(out, kind)
  if kind == 'fairseq' and weights != 'student':
    raise ValueError(f'--weights: want student for --format fairseq, whose '
                     f'file holds the teacher too; got {weights}')
  trained = trained_lib.load(run, weights)
  if kind == 'fairseq':
    fairseq.check(trained)
  out.parent.mkdir(parents=True, exist_ok=True)
  _WRITERS[kind](trained, out)
  if kind != 'fairseq':
    return sorted(out.iterdir()) if out.is_dir() else [out], []
  files = [out, fairseq.labels_path(out)][:1 + trained.is_classifier]
  return files, [*fairseq.notes(trained)]


def _check_new(out: pathlib.Path, kind: Format) -> None:
  """Raises ValueError where nothing of this kind can be written to `out`."""
  suffix = _SUFFIXES[kind]
  if suffix is not None and out.suffix != suffix:
    raise ValueError(f'--out: want a name that ends in {suffix} for --format '
                     f'{kind}, got {out}')
  if kind == 'huggingface' and out.is_dir() and not any(out.iterdir()):
    return
  new = 'a new or empty folder' if kind == 'huggingface' else 'a new file'
  # fairseq writes the classes of a classifier beside it.
  beside = [fairseq.labels_path(out)] if kind == 'fairseq' else []
  for path in (out, *beside):
    if path.exists() or path.is_symlink():
      raise ValueError(f'--out: want {new}, got {path}, which exists')


def _write_folder(trained: trained_lib.Trained, out: pathlib.Path) -> None:
  with output.new_folder(out) as unfinished:
    huggingface.write(trained, unfinished)


def _write_state_dict(trained: trained_lib.Trained, out: pathlib.Path) -> None:
  with output.replaced(out) as unfinished:
    state_dict.write(trained, unfinished)


def _write_onnx(trained: trained_lib.Trained, out: pathlib.Path) -> None:
  with output.replaced(out) as unfinished:
    onnx.write(trained, unfinished)


_WRITERS: dict[
    Format, Callable[[trained_lib.Trained, pathlib.Path], None]
] = {
    'fairseq': fairseq.write, 'huggingface': _write_folder,
    'state_dict': _write_state_dict, 'onnx': _write_onnx,
}


def _size(path: pathlib.Path) -> str:
  size = path.stat().st_size
  return f'{size / 1e6:.1f} MB' if size >= 1e5 else f'{size:,} bytes'


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('run', metavar='RUN', help='folder of a run')
  parser.add_argument('--format', required=True, choices=get_args(Format),
                      help='what reads it')
  parser.add_argument('--out', required=True, type=pathlib.Path,
                      metavar='PATH', help='new file, or folder of huggingface')
  parser.add_argument('--weights', choices=get_args(pretrained.Weights),
                      default='student',
                      help='of a pre-training run (default: student)')
  return parser


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
