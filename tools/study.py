"""Runs the study of docs/study.md: do mixtures and source retention help?

  python tools/study.py [--workdir=runs/study] [--data=../shared/data]
      [--seeds=5] [--jobs=N] [--quick]

Stage 1 once; from it every arm of Table 2 with every seed; then all of them
fine-tuned on each task. Each part is a sweep (docs/sweeps.md) of a file in
configs/study, in a folder of --workdir. The same command goes on where it
stopped, skips what is finished and tries again what failed. What another run
has to come before, and has not, is left out and told. In the end the results
are written to WORKDIR/page.

  python tools/study.py [--workdir=runs/study] [--page=DIR] [--model=DIR2]

At any time: only writes the results to DIR, and the model of SSLAM's first seed
for transformers, with its card, to DIR2.

Exit status: 0 all is done, 1 some runs failed or were left out, 2 something in
the command or a folder cannot work, 3 stopped, 4 a run hung or was stopped from
outside (others may have failed): after both the same command goes on.
"""

import argparse
import datetime
import json
import os
import pathlib
import shlex
import subprocess
import sys

# For a checkout that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

if __name__ == '__main__':
  from sslam_jax import huge_pages

  huge_pages.restart()  # before the imports, which take seconds

import jax

from configs.study import design
from sslam_jax import checkpoint
from sslam_jax import run_folder
from tools import export_torch
from tools import sweep
from tools.studying import page
from tools.studying import runs as runs_lib
from tools.sweeping import points as points_lib

_ROOT = pathlib.Path(__file__).parents[1]
_CONFIGS = _ROOT / 'configs' / 'study'
_MODEL = f'{design.ARMS_PART}/points/sslam,seed=1'
_CACHE = 'JAX_COMPILATION_CACHE_DIR'
_STOPPED = (3, 130)  # exit statuses of a sweep that was told to stop


def main(argv: list[str] | None = None) -> int:
  argv = sys.argv[1:] if argv is None else argv
  args = _parse(argv)
  # The runs' processes need all of the accelerators' memory.
  jax.config.update('jax_platforms', 'cpu')
  try:
    if args.page is not None:
      _write_page(args, args.page)
    if args.model is not None:
      _write_model(args)
    if args.page is not None or args.model is not None:
      return 0
    specs = _chosen(args)
    _check_recordings(args)
  except (OSError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  _note(args.workdir, argv)
  # Points differ in what they start from, not in their programs.
  os.environ.setdefault(_CACHE, os.path.abspath(f'{args.workdir}/compiled'))
  statuses = [0]
  for name, spec in specs.items():
    print(f'{name}: {spec}', flush=True)
    statuses.append(_run(args, name, spec))
    if statuses[-1] in _STOPPED:
      return statuses[-1]
  if (pathlib.Path(args.workdir) / design.STAGE1).exists():
    _write_page(args, f'{args.workdir}/page')
  return max(statuses)


def parts(workdir: str, words: list[str]) -> dict[str, str]:
  """The sweeps of a study, in order: name -> FILE.py:ARGUMENT.

  Args:
    workdir: The study's folder.
    words: Of configs/study/design.py.
  """

  def spec(file: str, *more: str) -> str:
    path = os.path.relpath(_CONFIGS / f'{file}.py')
    return f'{path}:{",".join([*words, *more])}'.rstrip(':')

  stage1 = f'{workdir}/{design.STAGE1}/points/{design.STAGE1}'
  found = {design.STAGE1: spec('stage1'),
           design.ARMS_PART: spec('arms', f'from={stage1}')}
  for name, more in design.VARIANTS.items():
    found[name] = spec('arms', f'from={stage1}', more)
  for task in design.tunings(design.parse(','.join(words))):
    found[f'{runs_lib.FINETUNE}{task}'] = spec(
        'finetune', f'task={task}', f'from={workdir}'
    )
  return found


def _run(args: argparse.Namespace, name: str, spec: str) -> int:
  """Exit status as of tools/sweep.py; of what is left out, 1 at least."""
  folder = pathlib.Path(args.workdir, name)
  try:
    points = points_lib.load(spec, folder)
  except ValueError as error:
    print(f'error: {name}: {error}', file=sys.stderr)
    return 2
  lacks = {point.name: _lack(point.config.init_from) for point in points}
  for point, lack in lacks.items():
    if lack:
      print(f'{name}: {point}: left out: {lack}')
  ready = [point for point, lack in lacks.items() if not lack]
  if not ready:
    return 1
  status = sweep.main([
      f'--config={spec}', f'--workdir={folder}', f'--jobs={args.jobs}',
      '--no-plots',
      *([] if args.devices is None else [f'--devices={args.devices}']),
      *(f'--only={point}' for point in ready),
  ])
  return max(status, int(len(ready) < len(points)))


def _lack(start: str | None) -> str:
  """What is missing of the run that another starts from; '' for nothing."""
  if start is None:
    return ''
  try:
    steps = run_folder.read_config(pathlib.Path(start)).steps
  except ValueError as error:
    return str(error)
  step = checkpoint.latest_step(start) or 0
  return '' if step == steps else (
      f'{start}: want a finished run, got step {step} of {steps}'
  )


def _write_page(args: argparse.Namespace, folder: str) -> None:
  made = page.write(pathlib.Path(args.workdir), pathlib.Path(folder))
  print(f'{folder}: {", ".join(made)}')


def _write_model(args: argparse.Namespace) -> None:
  run = f'{args.workdir}/{_MODEL}'
  if lack := _lack(run):
    raise ValueError(f'--model: {lack}')
  try:
    export_torch.export(run, 'huggingface', args.model)
  except ValueError as error:  # of that tool's options
    raise ValueError(str(error).replace('--out', '--model')) from None
  print(f'{args.model}: {run}, for transformers')


def _note(workdir: str, argv: list[str]) -> None:
  """Keeps what was run, and by which code, for the page."""
  line = {'begun': datetime.datetime.now().isoformat(' ', 'minutes'),
          'commit': _commit(),
          'command': shlex.join(['python', 'tools/study.py', *argv])}
  path = pathlib.Path(workdir, page.COMMANDS)
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('a', encoding='utf-8') as file:
    file.write(json.dumps(line) + '\n')


def _commit() -> str:
  """Of this checkout; with a + where files are not as committed."""
  try:
    said = subprocess.run(
        ['git', 'describe', '--always', '--dirty=+'], cwd=_ROOT,
        capture_output=True, text=True, check=False,
    ).stdout.strip()
  except OSError:  # no git
    said = ''
  return said or 'unknown'


def _chosen(args: argparse.Namespace) -> dict[str, str]:
  words = ['soundscapes'] if args.soundscapes else [f'data={args.data}']
  words += ['quick'] if args.quick else []
  words += [] if args.seeds is None else [f'seeds={args.seeds}']
  specs = parts(args.workdir, words)
  if args.only is None:
    return specs
  if unknown := set(args.only) - specs.keys():
    raise ValueError(f'--only: want some of {", ".join(specs)}; '
                     f'got {", ".join(sorted(unknown))}')
  return {name: spec for name, spec in specs.items() if name in args.only}


def _check_recordings(args: argparse.Namespace) -> None:
  wanted = [*(f'{name}/{part}' for part in ('train', 'test')
              for name in design.PRETRAINING_SETS), 'polyphonic/labels.csv']
  folder = pathlib.Path(args.data)
  missing = [name for name in wanted if not (folder / name).exists()]
  if missing and not args.soundscapes:
    raise ValueError(f'--data={args.data}: want the recordings of '
                     f'docs/study.md, or --soundscapes; got no '
                     f'{", ".join(missing)}')


def _parse(argv: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
      description=__doc__, allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  # The runs keep these paths: with and without a slash they are the same.
  parser.add_argument('--workdir', type=os.path.normpath,
                      default=design.FOLDER, metavar='DIR')
  parser.add_argument('--data', type=os.path.normpath,
                      default=design.RECORDINGS, metavar='DIR',
                      help=f'default: {design.RECORDINGS}')
  parser.add_argument('--soundscapes', action='store_true',
                      help='procedural sounds instead of --data')
  parser.add_argument('--seeds', metavar='N', help='seeds 1 to N (default: 5)')
  parser.add_argument('--quick', action='store_true', help='a hundredth of '
                      'the updates, a tenth of the tasks\' clips, 2 seeds')
  parser.add_argument('--only', type=lambda text: text.split(','),
                      metavar='PART,...',
                      help=', '.join([design.STAGE1, design.ARMS_PART,
                                      *design.VARIANTS, 'finetune-TASK']))
  parser.add_argument('--jobs', type=int, default=1, metavar='N',
                      help='runs at a time (default: 1)')
  parser.add_argument('--devices', metavar='0,1,...',
                      help='one for each of the N (default: those found)')
  parser.add_argument('--page', metavar='DIR',
                      help='only writes results.md and pictures there')
  parser.add_argument('--model', type=pathlib.Path, metavar='DIR',
                      help='only writes the model there, for transformers')
  return parser.parse_args(argv)


if __name__ == '__main__':
  sys.exit(main())
