"""Compares this implementation with golden numbers of the official code.

  python tools/parity.py --golden DIR [--only NAME ...] [--verbose]
      [--checkpoint RUN ...]

DIR holds `cases.json` and any of the files that `_CHECKS` names, computed with
the PyTorch code of EAT and SSLAM. Weights and spectrograms are drawn again from
the seeds in `cases.json`; masks and mixed columns are read from the files.
With run folders (of tools/import_torch.py) weights come from there alone: of
every case whose tensors are of their names and shapes; the others are left out.
A run folder that no case takes weights from is an error.
Exit status: 0 all within tolerance, 1 not all, 2 unusable folder.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
import itertools
import pathlib
import sys

import jax

# For a checkout that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from tools.golden import encoder
from tools.golden import finetune
from tools.golden import folder
from tools.golden import front_end
from tools.golden import losses
from tools.golden import masks
from tools.golden import training
from tools.golden import weights

_CHECKS: dict[str, Callable[[folder.Golden], None]] = {
    'fbank': front_end.check_fbank,
    'resample': front_end.check_resample,
    'schedules': training.check,
    'mask_stats': masks.check,
    'stage1_loss': losses.check_stage1,
    'stage2_loss': losses.check_stage2,
    'stage2_loss_terms': losses.check_terms,
    'features': encoder.check,
    'finetune': finetune.check,
    'full_size_loss': losses.check_full_size,
}


def main(argv: list[str] | None = None) -> int:
  """Runs the comparison and prints it; returns the exit status."""
  args = _parse(argv)
  if args.device == 'cpu':
    jax.config.update('jax_platforms', 'cpu')
  try:
    with jax.default_matmul_precision('highest'):
      report = compare(pathlib.Path(args.golden), args.only, args.checkpoint)
  except folder.BadFolderError as error:
    print(f'parity: error: {error}', file=sys.stderr)
    return 2
  failed = sum(not row.ok for row in report.rows)
  _print_table(_lines(report.rows, args.verbose))
  for note in report.notes:
    print(f'not compared: {note}')
  print(f'{len(report.rows) - failed} passed, {failed} failed')
  return 1 if failed else 0


def compare(
    path: pathlib.Path,
    only: list[str] | None,
    runs: Iterable[pathlib.Path] = (),
) -> folder.Report:
  """Compares with the files of a folder that `only` names (None: all).

  Weights are drawn, or those of run folders.

  Raises:
    BadFolderError: The folder or one of its files is unusable, or nothing in
      it could be compared.
  """
  golden = folder.Golden(path, tuple(map(weights.load, runs)))
  names = only or [name for name in _CHECKS if golden.has(name)]
  if missing := [name for name in names if not golden.has(name)]:
    raise folder.BadFolderError(f'{path / missing[0]}.npz: no such file')
  skipped = set()
  for name in names:
    print(f'parity: {name}', file=sys.stderr, flush=True)
    try:
      _CHECKS[name](golden)
    except weights.NoWeightsError as error:
      golden.section(name).skip('*', str(error))
      skipped.add(name)
  report = golden.report
  if unused := [str(run.path) for run in golden.runs if not run.cases]:
    raise folder.BadFolderError(
        f'--checkpoint {unused[0]}: want the weights of a case, got tensors of '
        f'other names or shapes; ' + '; '.join(report.notes))
  if not report.rows:
    why = '; '.join(report.notes) or f'has none of {", ".join(_CHECKS)} (.npz)'
    raise folder.BadFolderError(f'{path}: nothing to compare; {why}')
  for name in (name for name in names if name not in skipped):
    if unused := _collapse(golden.section(name).file.unused):
      report.notes.append(f'{name} {", ".join(unused)}')
  if only is None:
    others = {file.stem for file in path.glob('*.npz')} - set(_CHECKS)
    report.notes += [f'{name}.npz' for name in sorted(others)]
  return report


def _collapse(keys: list[str]) -> list[str]:
  """Keys, those of one parent in one word where they are many."""
  groups: dict[str, list[str]] = {}
  for key in keys:
    groups.setdefault(key.rpartition('/')[0], []).append(key)
  return list(itertools.chain.from_iterable(
      group if len(group) < 3 else [f'{parent}/* ({len(group)} keys)']
      for parent, group in groups.items()))


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--golden', required=True, metavar='DIR',
                      help='folder with cases.json and npz files')
  parser.add_argument('--only', nargs='+', choices=_CHECKS, metavar='NAME',
                      help=f'compare only these of {", ".join(_CHECKS)}')
  parser.add_argument('--checkpoint', nargs='+', action='extend', default=[],
                      type=pathlib.Path, metavar='RUN',
                      help='take weights from these run folders')
  parser.add_argument('--verbose', action='store_true',
                      help='one line for every tensor')
  parser.add_argument('--device', choices=('cpu', 'default'), default='cpu',
                      help="the tolerances hold on cpu; default is JAX's own")
  return parser.parse_args(argv)


def _lines(
    compared: list[folder.Row], verbose: bool
) -> Iterator[tuple[str, folder.Row]]:
  """Rows with their titles; tensors that pass share one if not `verbose`."""
  for quantity, group in itertools.groupby(compared, lambda x: x.quantity):
    alone: list[folder.Row] = []
    together: list[folder.Row] = []
    for row in group:
      is_one_of_many = row.part and row.ok and not verbose
      (together if is_one_of_many else alone).append(row)
    if together:
      worst = max(together, key=lambda row: row.error)
      title = f'{quantity} ({len(together)} tensors; worst: {worst.part})'
      yield title, worst
    yield from ((f'{quantity} {row.part}'.rstrip(), row) for row in alone)


def _print_table(lines: Iterable[tuple[str, folder.Row]]) -> None:
  header = ('quantity', 'ours', 'official', 'error', 'tolerance', 'ok')
  cells = [header] + [
      (title, row.ours, row.official, f'{row.error:.2g}',
       f'{row.tolerance.limit:.2g} {row.tolerance.unit}',
       'yes' if row.ok else 'NO')
      for title, row in lines
  ]
  widths = [max(map(len, column)) for column in zip(*cells)]
  for line in cells:
    print(' | '.join(map(str.ljust, line, widths)).rstrip())


if __name__ == '__main__':
  sys.exit(main())
