"""Command line of inference: embeddings and tags of files and folders.

  python -m sslam_jax.infer features PATH... --run RUN --out DIR
  python -m sslam_jax.infer tag PATH... --run RUN

Exit status: 0 all done, 1 some recordings could not be read (they are listed),
2 cannot start, 130 stopped by Ctrl-C; what is written stays, and the same
command with the same --out goes on from there.
"""

import argparse
import contextlib
import hashlib
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from sslam_jax import clips
from sslam_jax import inference
from sslam_jax import output
from sslam_jax import pictures
from sslam_jax import recordings
from sslam_jax import timeline

_BAR = ('{percentage:3.0f}%|{bar:20}| {n:.1f} of {total} files '
        '[{elapsed}<{remaining}]')
_SHOWN = 20  # failures that are printed

Watch = Callable[[float], None]


def main(args: list[str]) -> int:
  """Runs a command; for the exit status see above."""
  options = _parser().parse_args(args)
  try:
    return int(options.command(options))
  except BrokenPipeError:  # by `| head`; else Python complains at its end
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except (OSError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('stopped; what is written stays', file=sys.stderr)
    return 130


def _features(options: argparse.Namespace) -> int:
  common, found = recordings.find(options.paths)
  model = _model(options)
  writer = output.opened(
      options.out, options.format, _about_features(options, model, common),
      overwrite=options.overwrite,
  )
  left = _left([recording.name for recording in found], found, writer)
  failed: dict[str, str] = {}
  with _timed(len(left)) as watch:
    try:
      results = model.features(
          recordings.opened(left), options.granularity, watch
      )
      for result in results:
        name = left[result.number].name
        if result.error is not None:
          failed[result.error.clip_id] = result.error.reason
        else:
          writer.write(name, _with_times(model, result.outputs or {}))
    finally:
      writer.close()
      output.write_failed(options.out, failed)
  return _status(failed, options.out)


def _tag(options: argparse.Namespace) -> int:
  _check(options)
  common, found = recordings.find(options.paths)
  model = _model(options)
  _ = model.learned.classifier  # or says why it cannot tag
  table, left = None, found
  if options.out is not None:
    table = output.opened_tags(
        options.out, _about_tags(options, model, common),
        labels=min(options.top, len(model.classes)),
        overwrite=options.overwrite,
    )
    left = _left([recording.path for recording in found], found, table)
  failed: dict[str, str] = {}
  with _timed(len(left)) as watch:
    try:
      for path, score_C, error in _scores(options, model, left, watch):
        if error is not None:
          failed[error.clip_id] = error.reason
          continue
        tags = model.top(score_C, options.top)
        lines = [f'{score:8.3f}  {label}' for label, score in tags]
        tqdm.tqdm.write('\n'.join((path, *lines)), file=sys.stdout)
        if table is not None:
          table.write(path, tags)
    finally:
      if table is not None:
        table.close()
        output.write_failed(options.out, failed)
  return _status(failed, options.out)


def _left(
    names: Sequence[str],
    found: Sequence[recordings.Recording],
    done: Container[str],
) -> list[recordings.Recording]:
  """The recordings whose names are not done."""
  left = [recording for name, recording in zip(names, found)
          if name not in done]
  if len(left) < len(found):
    print(f'{len(found) - len(left)} of {len(found)} files are done already')
  return left


_Scored = Iterator[tuple[str, np.ndarray, clips.BadClip | None]]


def _scores(
    options: argparse.Namespace,
    model: inference.Model,
    found: Sequence[recordings.Recording],
    watch: Watch,
) -> _Scored:
  """(path, scores [C], error) of each recording; writes timelines."""
  nothing = np.zeros(0, np.float32)
  if options.every is None:
    for result in model.scores(recordings.opened(found), watch):
      outputs = result.outputs or {'tag': nothing}
      yield found[result.number].path, outputs['tag'], result.error
    return
  if not pictures.available():
    print('note: no pictures, which need matplotlib: '
          'pip install -r requirements-plot.txt', file=sys.stderr)
  told = timeline.Options(options.every, options.window, options.threshold,
                          options.top)
  for recording, clip in zip(found, recordings.opened(found)):
    try:
      if isinstance(clip, clips.BadClip):
        raise clip
      path = options.out / recording.name
      yield (recording.path, timeline.write(model, clip, path, told, watch),
             None)
    except clips.BadClip as error:
      yield recording.path, nothing, error


@contextlib.contextmanager
def _timed(files: int) -> Iterator[Watch]:
  """A bar on a terminal; at the end, how fast it was."""
  began = time.monotonic()
  # disable=None: no bar where stderr is no terminal.
  with tqdm.tqdm(total=files, disable=None, bar_format=_BAR) as bar:
    yield bar.update
  took_s = time.monotonic() - began
  print(f'{files} files in {took_s:.1f} s, {files / max(took_s, 1e-9):.2f} '
        f'files/s', file=sys.stderr)


def _status(failed: dict[str, str], out: pathlib.Path | None) -> int:
  if not failed:
    return 0
  print(f'{len(failed)} files could not be read:', file=sys.stderr)
  for path, reason in list(failed.items())[:_SHOWN]:
    print(f'  {path}: {reason}', file=sys.stderr)
  if len(failed) > _SHOWN:
    print(f'  and {len(failed) - _SHOWN} more', file=sys.stderr)
  if out is not None:
    print(f'all of them: {out / output.FAILED}', file=sys.stderr)
  return 1


def _with_times(
    model: inference.Model, outputs: inference.Outputs
) -> inference.Outputs:
  """With the middle of each column, where there is a row for each."""
  if 'frame' not in outputs:
    return outputs
  time_s = (np.arange(len(outputs['frame'])) + 0.5) * model.column_s
  return {**outputs, 'time_s': time_s.astype(np.float32)}


def _model(options: argparse.Namespace) -> inference.Model:
  # The window of a timeline is one of its own.
  window_s = None if getattr(options, 'every', None) else options.window
  return inference.load(
      options.run, weights=options.weights, window_s=window_s,
      overlap=options.overlap, pad=options.pad, batch=options.batch,
  )


def _about(
    options: argparse.Namespace, model: inference.Model, common: str
) -> dict[str, Any]:
  """What results depend on; where they are of the same, they may be mixed."""
  return {
      'run': options.run,
      'step': model.learned.step,
      'weights': options.weights,
      'parameters': _fingerprint(model.learned.params),
      'overlap': options.overlap,
      'pad': options.pad,
      'below': common,
  }


def _about_features(
    options: argparse.Namespace, model: inference.Model, common: str
) -> dict[str, Any]:
  return {
      **_about(options, model, common),
      'granularity': options.granularity,
      'window_s': model.plan.frames / 100,
      'column_s': model.column_s,
      'mel_patches': model.plan.mel.mel_bins // model.plan.patch,
      'width': model.learned.vit.width,
  }


def _about_tags(
    options: argparse.Namespace, model: inference.Model, common: str
) -> dict[str, Any]:
  # Paths in the table are as they were given: relative ones to this folder.
  is_whole = all(map(os.path.isabs, options.paths))
  return {
      **_about(options, model, common),
      'window_s': options.window,
      'top': options.top,
      'every_s': options.every,
      'threshold': options.threshold,
      'from': None if is_whole else os.getcwd(),
  }


def _fingerprint(params: Any) -> str:
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(leaf).data)
  return digest.hexdigest()[:16]


def _check(options: argparse.Namespace) -> None:
  """Options of `tag` that ask for one another."""
  if options.top < 1:
    raise ValueError(f'--top: want at least 1, got {options.top}')
  if options.every is not None and options.out is None:
    raise ValueError('--every: want --out too, where the timeline goes')
  if options.every is not None and not 0 < options.every < math.inf:
    raise ValueError(f'--every: want seconds above 0, got {options.every}')
  if options.threshold is None:
    return
  if options.every is None:
    raise ValueError('--threshold: want it with --every')
  if not 0 <= options.threshold <= 1:
    raise ValueError(f'--threshold: want 0 to 1, got {options.threshold}')


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog='python -m sslam_jax.infer', allow_abbrev=False,
      description='Embeds or tags audio files with the model of a run folder.',
  )
  commands = parser.add_subparsers(required=True, metavar='COMMAND')
  features = commands.add_parser('features', help='embeddings')
  features.set_defaults(command=_features)
  _add_common(features, out_required=True)
  features.add_argument(
      '--granularity', choices=inference.GRANULARITIES, default='clip',
      help='class token; patch tokens; their mean over mel for each time; '
      'or class and patch tokens (default: clip)',
  )
  features.add_argument('--format', choices=output.FORMATS, default='npy')
  tag = commands.add_parser('tag', help='labels with scores')
  tag.set_defaults(command=_tag)
  _add_common(tag, out_required=False)
  tag.add_argument('--top', type=int, default=10, metavar='N',
                   help='labels to tell (default: 10)')
  tag.add_argument('--every', type=float, metavar='S',
                   help='also write a timeline in steps of S seconds')
  tag.add_argument('--threshold', type=float, metavar='SCORE',
                   help='of the timeline: all labels from this score on, '
                   'instead of the top ones')
  return parser


def _add_common(
    parser: argparse.ArgumentParser, *, out_required: bool
) -> None:
  parser.add_argument('paths', nargs='+', metavar='PATH',
                      help='audio file, or folder that is searched')
  parser.add_argument('--run', required=True, metavar='RUN',
                      help='run folder of the model')
  parser.add_argument('--out', type=pathlib.Path, required=out_required,
                      metavar='DIR', help='where to write')
  parser.add_argument('--overwrite', action='store_true',
                      help='do again what DIR holds')
  parser.add_argument('--weights', choices=('student', 'teacher'),
                      default='student',
                      help='of a pre-training run (default: student)')
  parser.add_argument('--window', type=float, metavar='S',
                      help="seconds of a window (default: the model's length; "
                      'of a timeline 2.56)')
  parser.add_argument('--overlap', type=float, default=0.0, metavar='SHARE',
                      help='of a window with the next (default: 0)')
  parser.add_argument('--pad', choices=('bucket', 'model'), default='bucket',
                      help='short recordings to the next of a few lengths '
                      '(default), or to the whole window as in training')
  parser.add_argument('--batch', type=int, default=8, metavar='N',
                      help='windows at a time (default: 8)')


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
