"""Trains a configuration for several folds and seeds, and says the mean score.

  python tools/repeat.py --config=configs/finetune.py:esc50,run=RUN
      --folds=1,2,3,4,5 --seeds=1,2,3 [--workdir=DIR] [--config.FIELD=VALUE]

A run for each fold and seed, in DIR/fold1-seed1 and so on: fold K is the
argument fold=K of the configuration, the seed its field. The same command goes
on where it was stopped; what is finished is not trained again. Writes
DIR/scores.json and DIR/table.md. Exit status as of sslam_jax.main.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import sys
from typing import Any

# For a checkout that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

if __name__ == '__main__':
  from sslam_jax import huge_pages

  huge_pages.restart()  # before the imports, which take seconds

from sslam_jax import main as main_lib
from sslam_jax import processes
from sslam_jax import report
from sslam_jax import train
from sslam_jax import watch
from tools.sweeping import scores as scores_lib

_TEST = 'test_'

Scores = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
  args, others = _parse(argv)
  with main_lib.listening():
    status = main_lib.status_of(lambda: _run_all(args, others))
  if status == watch.LOST:
    processes.leave(status)
  return status


def _run_all(args: argparse.Namespace, others: list[str]) -> None:
  runs = list(itertools.product(args.folds or [None], args.seeds))
  configs = [_config(args, others, *run) for run in runs]
  folder = pathlib.Path(configs[0].workdir).parent
  scores = []
  for run, config in zip(runs, configs):
    train.run(config)
    rows = report.read_metrics(config.workdir)
    scores.append({'fold': run[0], 'seed': run[1], 'step': rows[-1]['step'],
                   **scores_lib.evaluated(rows)})
    _write(folder, args.config, scores)
  print(table(scores), end='')
  print(f'{folder}: table.md, scores.json')


def table(scores: list[Scores]) -> str:
  """Markdown: a row for each run, then the means and deviations."""
  names = [name for name in scores[0] if name.startswith(_TEST)]
  lines = [['fold', 'seed', 'step', *names], ['---'] * (3 + len(names))]
  for row in scores:
    lines.append([str(row['fold'] or '-'), str(row['seed']), str(row['step']),
                  *(f'{row[name]:.4f}' for name in names)])
  for title, function in (('mean', _mean), ('deviation over seeds', _spread)):
    values = [function(scores, name) for name in names]
    cells = ['-' if value is None else f'{value:.4f}' for value in values]
    lines.append([title, '', '', *cells])
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def _by_seed(scores: list[Scores], name: str) -> list[float]:
  """The mean over the folds, for each seed."""
  seeds = dict.fromkeys(row['seed'] for row in scores)
  return [statistics.fmean(row[name] for row in scores if row['seed'] == seed)
          for seed in seeds]


def _mean(scores: list[Scores], name: str) -> float:
  return statistics.fmean(_by_seed(scores, name))


def _spread(scores: list[Scores], name: str) -> float | None:
  """Standard deviation over seeds of the mean over folds."""
  return scores_lib.deviation(_by_seed(scores, name))


def _write(folder: pathlib.Path, config: str, scores: list[Scores]) -> None:
  names = [name for name in scores[0] if name.startswith(_TEST)]
  summary = {
      name: {'mean': _mean(scores, name), 'deviation': _spread(scores, name)}
      for name in names
  }
  written = {'config': config, 'summary': summary, 'runs': scores}
  report.write_text(folder / 'scores.json', json.dumps(written, indent=2))
  report.write_text(folder / 'table.md', table(scores))


def _config(
    args: argparse.Namespace, others: list[str], fold: int | None, seed: int
) -> train.Config:
  spec, name = args.config, f'seed{seed}'
  if fold is not None:
    spec += f'{"," if ":" in spec else ":"}fold={fold}'
    name = f'fold{fold}-{name}'
  config = main_lib.parse([f'--config={spec}', f'--config.seed={seed}',
                           *others])
  # Of several folds the configuration's folder may name the first.
  folder = args.workdir or main_lib.parse([f'--config={args.config}']).workdir
  config.workdir = f'{folder}/{name}'
  if not config.evals:
    raise ValueError(f'--config={spec}: want one with test data, got no evals')
  return config


def _parse(
    argv: list[str] | None
) -> tuple[argparse.Namespace, list[str]]:
  parser = argparse.ArgumentParser(
      description=__doc__, allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--config', required=True, metavar='FILE.py[:ARGUMENT]')
  parser.add_argument('--folds', type=_numbers, metavar='1,2,...')
  parser.add_argument('--seeds', type=_numbers, default=[1], metavar='1,2,...')
  parser.add_argument('--workdir', metavar='DIR',
                      help="default: the configuration's")
  return parser.parse_known_args(argv)


def _numbers(text: str) -> list[int]:
  return [int(part) for part in text.split(',')]


if __name__ == '__main__':
  sys.exit(main())
