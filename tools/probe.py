"""Probes: how well frozen features of runs tell classes apart.

  python tools/probe.py RUN random logmel --train folder=DIR1 --test folder=DIR2
  python tools/probe.py RUN --folds csv=F1 csv=F2 csv=F3 csv=F4 csv=F5

Of several RUNs each is a row of the table; `random` is the network of the
first one with fresh weights, `logmel` the mean and deviation of its log-mels.
A score is the mean over folds, then over seeds; its deviation is over seeds, or
of a single seed over folds. The interval is a bootstrap of that mean over the
clips of each fold.
Writes probe.json, table.md and, where clips cannot be read, damaged.tsv.
Exit status: 0, 1 some clips are damaged and were left out, 2 for wrong usage,
130 if stopped.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import statistics
import sys
from collections.abc import Iterable

import jax
import numpy as np
import tqdm

# For a checkout that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from sslam_jax import catalogue
from sslam_jax import features
from sslam_jax import metrics
from sslam_jax import pretrained
from sslam_jax import probes
from sslam_jax import probing
from tools.probing import table
from tools.probing import task as task_lib

_RANDOM, _LOGMEL = 'random', 'logmel'
_LOGMEL_FEATURES = 'mean+std'
_PROBES = ('linear', 'knn', 'attentive')


def main(args: list[str]) -> int:
  """Prints the table; for the exit status see above."""
  options = _parser().parse_args(args)
  try:
    return _probed(options)
  except (OSError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('stopped; the same command goes on', file=sys.stderr)
    return 130


def _probed(options: argparse.Namespace) -> int:
  specs = _checked(options)
  named = [name for name in options.runs if name not in (_RANDOM, _LOGMEL)]
  if not named:
    raise ValueError('RUN: want at least one run folder, whose network and '
                     'front end random and logmel take; got none')
  models = {name: pretrained.load(name, weights=options.weights)
            for name in named}
  first = models[named[0]]
  task = task_lib.read(options)
  out = options.out or pathlib.Path(named[0]) / 'probe'
  out.mkdir(parents=True, exist_ok=True)
  cache = options.cache or pathlib.Path(named[0]) / 'features'
  rows: list[table.Row] = []
  damaged: dict[str, str] = {}
  for name in options.runs:
    found = _networks(name, models.get(name, first), options.seeds)
    parts = [_features(network, name, task, specs, options, cache)
             for network in found]
    for part in (part for seed in parts for part in seed):
      damaged.update(part.damaged)
    by_seed = parts if len(parts) > 1 else parts * options.seeds
    for probe in options.probes:
      for spec in _specs_of(probe, name, specs):
        rows += [_row(name, probe, spec, by_seed, task, options.resamples)]
        print(table.line(rows[-1]), file=sys.stderr)
  notes = list(table.notes(parts[0], task))
  text = ''.join(f'{line}\n' for line in table.lines(rows, task.is_single))
  text += ''.join(f'\nnote: {note}\n' for note in notes)
  _write(out, rows, text, task, options)
  print(text, end='')
  return _report_damaged(out, damaged)


def _checked(options: argparse.Namespace) -> list[str]:
  """The features asked for; ValueError where words contradict."""
  for name, least in (('seeds', 1), ('batch', 1), ('resamples', 0)):
    if getattr(options, name) < least:
      raise ValueError(f'--{name}: want at least {least}, '
                       f'got {getattr(options, name)}')
  unknown = [probe for probe in options.probes if probe not in _PROBES]
  if unknown:
    raise ValueError(f'--probes: want some of {", ".join(_PROBES)}, '
                     f'got {unknown[0]!r}')
  for spec in options.features:
    probing.kinds(spec)
  if options.seconds is not None and not 0 < options.seconds < 1e5:
    raise ValueError(f'--seconds: want a length above 0, '
                     f'got {options.seconds}')
  return list(dict.fromkeys(options.features))


def _networks(
    name: str, model: pretrained.Model, seeds: int
) -> list[features.Network]:
  """One, or of `random` one for each seed."""
  data = model.config.data
  make = functools.partial(
      features.Network, mel=data.mel, resampler=data.resampler
  )
  if name == _LOGMEL:
    return [make(vit=None, params={})]
  if name != _RANDOM:
    return [make(vit=model.vit, params=model.params['encoder'])]
  shape = data.mel.frames, data.mel.mel_bins
  classes = len(model.classes)
  init = jax.jit(lambda rng: model.config.objective.init(rng, shape, classes))
  return [
      make(vit=model.vit, params=init(jax.random.key(seed))['encoder'])
      for seed in range(seeds)
  ]


def _features(
    network: features.Network,
    name: str,
    task: probing.Task,
    specs: list[str],
    options: argparse.Namespace,
    cache: pathlib.Path,
) -> list[features.Features]:
  """Of each source."""
  kinds = {kind for probe in options.probes
           for spec in _specs_of(probe, name, specs)
           for kind in spec.split('+')}
  if 'patch' in kinds:
    total = sum(map(len, task.sources))
    size = features.size(network, kinds, options.seconds, total)
    print(f'{name}: patch tokens and other features of {total} clips take '
          f'{size / 1e9:.2f} GB', file=sys.stderr)
  found = []
  for number, source in enumerate(task.sources, start=1):

    def watch(stream: Iterable, number: int = number,
              total: int = len(source)) -> Iterable:
      title = f'{name} {number}/{len(task.sources)}'
      # disable=None: no bar where the output is no terminal.
      return tqdm.tqdm(stream, title, total, unit='clip', disable=None)

    found.append(features.extracted(
        network, source, sorted(kinds), cache, length_s=options.seconds,
        batch=options.batch, watch=watch,
    ))
  return found


def _specs_of(probe: str, name: str, specs: list[str]) -> list[str]:
  if name == _LOGMEL:
    return [] if probe == 'attentive' else [_LOGMEL_FEATURES]
  return ['patch'] if probe == 'attentive' else specs


def _row(
    name: str,
    probe: str,
    spec: str,
    by_seed: list[list[features.Features]],
    task: probing.Task,
    resamples: int,
) -> table.Row:
  runs: list[list[metrics.Scored]] = []
  strengths: list[float] = []
  for seed, parts in enumerate(by_seed):
    runs.append([])
    for training, test in task.splits:
      train = [parts[number] for number in training]
      score_MxC, strength = _scores(probe, spec, train, parts[test], task, seed)
      strengths += [] if strength is None else [strength]
      runs[-1].append(probing.scored(score_MxC, parts[test], task))
  kind = {'single_label': task.is_single}
  summaries = [[metrics.summary(part, **kind, resamples=0) for part in run]
               for run in runs]
  values = [[probing.value(x.overall, task) for x in run]
            for run in summaries]
  mean = metrics.averaged(runs, **kind, resamples=resamples)
  assert mean.value is not None  # or there would be no summaries
  return table.Row(
      network=name, probe=probe, features=spec, values=values,
      mean=mean.value, deviation=table.deviation(values),
      interval=None if mean.low is None or mean.high is None else (
          mean.low, mean.high),
      by_sources={} if task.is_single else _by_sources(summaries),
      strengths=strengths,
  )


def _scores(
    probe: str,
    spec: str,
    train: list[features.Features],
    test: features.Features,
    task: probing.Task,
    seed: int,
) -> tuple[np.ndarray, float | None]:
  if probe == 'attentive':
    label_NxC = np.concatenate([probing.labels(x, task.classes)
                                for x in train])
    names = 'patch', features.VALID
    tokens = probes.Tokens(*(
        _joined([x.arrays[name] for x in train]) for name in names))
    tested = probes.Tokens(*(test.arrays[name] for name in names))
    return probes.attentive(
        tokens, label_NxC, tested, is_single=task.is_single, seed=seed
    ), None
  labelled = probing.labelled(train, spec, task)
  x_MxD = probing.vectors(test, spec)
  if probe == 'knn':
    return probes.knn(labelled, x_MxD), None
  return probes.linear(labelled, x_MxD, is_single=task.is_single, seed=seed)


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
  """One array stays the memory map that it is."""
  return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _by_sources(summaries: list[list[metrics.Summary]]) -> dict[str, float]:
  """Of the folds that have such clips, as many in each seed."""
  found: dict[str, list[float]] = {}
  for part in (part for run in summaries for part in run):
    for name, figures in part.by_sources.items():
      found.setdefault(name, []).append(figures.map.value or 0.0)
  return {name: statistics.fmean(found[name]) for name in sorted(found)}


def _write(
    out: pathlib.Path,
    rows: list[table.Row],
    text: str,
    task: probing.Task,
    options: argparse.Namespace,
) -> None:
  tree = {
      'options': {name: str(value) if isinstance(value, pathlib.Path)
                  else value for name, value in vars(options).items()},
      'metric': 'accuracy' if task.is_single else 'mAP',
      'clips': [len(source) for source in task.sources],
      'classes': task.classes,
      'rows': list(map(dataclasses.asdict, rows)),
  }
  (out / 'probe.json').write_text(json.dumps(tree, indent=1) + '\n',
                                  encoding='utf-8')
  (out / 'table.md').write_text(text, encoding='utf-8')


def _report_damaged(out: pathlib.Path, damaged: dict[str, str]) -> int:
  path = out / 'damaged.tsv'
  path.unlink(missing_ok=True)
  if not damaged:
    return 0
  path.write_text(''.join(f'{name}\t{reason}\n'
                          for name, reason in damaged.items()),
                  encoding='utf-8')
  print(f'note: damaged clips, left out: {len(damaged)} ({path})')
  return 1


def _words(text: str) -> list[str]:
  return text.split(',')


def _parser() -> argparse.ArgumentParser:
  kinds = '\n'.join(f'  {name:<10} {what}'
                    for name, what in features.KINDS.items()
                    if name != 'patch')
  parser = argparse.ArgumentParser(
      description=__doc__.splitlines()[0],
      epilog=f'FEATURES, with + between those that are joined:\n{kinds}\n'
             f'WORDS, with commas between them:\n{catalogue.HELP}',
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('runs', nargs='+', metavar='RUN', help='run folder, random or logmel')
  add('--train', metavar='WORDS', help='labelled clips, see below')
  add('--test', metavar='WORDS', help='others of the same classes')
  add('--folds', nargs='+', metavar='WORDS',
      help='instead: each is tested with what is learned of all others')
  add('--probes', type=_words, default=['linear'], metavar='NAME,...',
      help=f'of {", ".join(_PROBES)} (default: linear)')
  add('--features', type=_words, default=['mean+std', 'rows+rows_std'],
      metavar='FEATURES,...',
      help='for linear and knn (default: mean+std,rows+rows_std)')
  add('--seconds', type=float, metavar='S',
      help='heard of a clip (default: as in training); more is cut into '
           'windows of that length')
  add('--multi-label', action='store_true',
      help='also where every clip has exactly one label')
  add('--groups', metavar='FILE.csv:COLUMN',
      help='clips that stay together where the strength of linear is chosen, '
           'by the column path')
  add('--seeds', type=int, default=3, metavar='N',
      help='of fresh weights, of inner folds and of attentive (default: 3)')
  add('--weights', choices=('student', 'teacher'), default='student',
      help='of a pre-training run (default: student)')
  add('--resamples', type=int, default=1000, metavar='N',
      help='of the 95 %% intervals, 0: none (default: 1000)')
  add('--batch', type=int, default=32, metavar='N',
      help='clips at a time (default: 32)')
  add('--cache', type=pathlib.Path, metavar='DIR',
      help='where features are kept (default: features/ of the first run)')
  add('--out', type=pathlib.Path, metavar='DIR',
      help='where to write (default: probe/ of the first run)')
  return parser


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
