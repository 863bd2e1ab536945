"""results.md of a study and its pictures: whatever is there so far."""

import functools
import json
import math
import pathlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from configs.study import design
from sslam_jax import pictures
from sslam_jax import report
from sslam_jax import sources
from sslam_jax import train
from sslam_jax import views as views_lib
from tools.studying import comparing
from tools.studying import drawing
from tools.studying import runs as runs_lib
from tools.sweeping import scores as scores_lib

RESULTS, COMMANDS = 'results.md', 'commands.jsonl'
_ARMS = (design.ARMS_PART, *design.VARIANTS)
_COMPARED = [arm for arm in design.ARMS if arm != comparing.BASELINE]
_MIXED = [name for name, task in design.tasks([]).items() if task.is_mixed]
_METRICS = {runs_lib.MAP: 'mAP', runs_lib.ACCURACY: 'accuracy'}

Runs = Sequence[runs_lib.Run]


def write(workdir: pathlib.Path, folder: pathlib.Path) -> list[str]:
  """Writes the page and its pictures; their names.

  Raises:
    ValueError: There is no study in `workdir`.
  """
  runs = runs_lib.read(workdir)
  drawn = _draw(folder, runs) if pictures.available() else []
  lines = [*_head(workdir), *_model(workdir, runs), *_linear(runs, drawn),
           *_tuned(runs, drawn), *_unfinished(runs)]
  report.write_text(folder / RESULTS, '\n'.join(lines) + '\n')
  return [RESULTS, *drawn]


def _head(workdir: pathlib.Path) -> Iterator[str]:
  yield '# Results of the study'
  yield ''
  yield (f'Written from the run folders in `{workdir}` by `tools/study.py '
         f'--page`; the [study](../study.md) says what they are. Not to be '
         f'edited.')
  yield ''
  yield ('Means are ± standard deviation over n seeds. Arms are compared with '
         'MB-UA seed by seed; the interval is Student\'s t of the differences. '
         'It is of seeds alone: of the same stage 1 and the same test clips. '
         'Where nothing differs, one interval in 20 is beyond 0.')


def _model(workdir: pathlib.Path, runs: Runs) -> Iterator[str]:
  """What was trained."""
  stage1 = [run for run in runs if run.label == design.STAGE1
            and run.part == design.STAGE1]
  arms = {part: [run for run in runs if run.part == part] for part in _ARMS}
  begun = {title: found for title, part in {'stage 1': stage1, **arms}.items()
           if (found := [run for run in part if run.config])}
  yield from ('', '## The model', '')
  yield _row('', *begun)
  yield _rule(len(begun) + 1)
  facts = [_facts(found) for found in begun.values()]
  for name in facts[0] if facts else ():
    yield _row(name, *(fact[name] for fact in facts))
  if (commands := workdir / COMMANDS).exists():
    yield from ('', '| begun | commit | command |', _rule(3))
    for text in commands.read_text(encoding='utf-8').splitlines():
      line = json.loads(text)
      yield _row(line['begun'], line['commit'], f'`{line["command"]}`')


def _facts(runs: Runs) -> dict[str, str]:
  """Of runs that differ in their arm alone."""
  config = runs[0].config
  assert config is not None
  objective, views, mel = config.objective, config.data.views, config.data.mel
  assert isinstance(views, views_lib.Masked)
  encoder, whole = _parameters(config)
  clips = config.steps * config.batch
  window_s, vit = mel.frames / 100, objective.vit
  ema, optim, hours = objective.ema, config.optim, _hours(runs)
  source = config.data.source
  where = (', '.join(source.paths) if isinstance(source, sources.Folder)
           else type(source).__name__)
  return {
      'encoder': f'width {vit.width}, {vit.depth} blocks, {vit.heads} heads',
      'parameters': f'{encoder:,} of the encoder, {whole:,} with the decoder',
      'data': f'{where}: {_clips(source)}',
      'window': f'{window_s:g} s, shorter clips: {config.data.short}',
      'updates': f'{config.steps:,} of {config.batch} clips x {views.clones} '
                 f'masks',
      'clips heard': f'{clips:,} ({clips * window_s / 3600:.1f} hours)',
      'learning rate': f'{optim.peak_lr:g}, warm-up {optim.warmup_steps}',
      "teacher's decay": '' if ema is None else
                         f'{ema.start:g} to {ema.end:g} in {ema.anneal_steps}',
      'runs done': f'{sum(run.is_done for run in runs)} of {len(runs)} begun',
      'hours of training': hours,
  }


def _clips(source: Any) -> str:
  try:
    return f'{len(source)} clips'
  except ValueError:  # the page may be written where the recordings are not
    return 'not at hand here'


def _parameters(config: train.Config) -> tuple[int, int]:
  """Of the encoder, and of all that is trained."""
  mel = config.data.mel
  params = jax.eval_shape(lambda: config.objective.init(
      jax.random.key(0), (mel.frames, mel.mel_bins), 0
  ))
  encoder, whole = (sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
                    for tree in (params['encoder'], params))
  return encoder, whole


def _hours(runs: Runs) -> str:
  """Mean of each arm's, by the speed that its runs logged last."""
  found: dict[str, list[float]] = {}
  for run in runs:
    rate = run.standing.clips_per_s
    if run.is_done and run.config and rate:
      found.setdefault(run.label, []).append(
          run.config.steps * run.config.batch / rate / 3600
      )
  return ', '.join(
      f'{statistics.fmean(hours):.2f} ({design.title(label)})'
      for label, hours in found.items())


def _linear(runs: Runs, drawn: Sequence[str]) -> Iterator[str]:
  yield from ('', '## Linear evaluation')
  begun = [part for part in _ARMS if any(run.part == part for run in runs)]
  for part in begun or _ARMS[:1]:
    if _picture(part) in drawn:
      yield from ('', f'![Losses of {part}]({_picture(part)})')
    if _picture(f'{part}-linear') in drawn:
      yield from ('', '![Differences by number of sources, linear evaluation '
                  f'of {part}]({_picture(f"{part}-linear")})')
    for features in design.FEATURES:
      yield from ('', f'### {part}: features `{features}`')
      yield from _compared(runs_lib.probed(runs, features, part))


def _tuned(runs: Runs, drawn: Sequence[str]) -> Iterator[str]:
  yield from ('', '## Fine-tuning')
  yield from _compared(runs_lib.tuned(runs))
  if _picture('finetune') in drawn:
    yield from ('', '![Differences by number of sources, fine-tuning]'
                f'({_picture("finetune")})')


def _compared(scores: runs_lib.Scores) -> Iterator[str]:
  """Means, and what arms have more than the baseline."""
  columns = runs_lib.columns(scores)
  if not columns:
    yield from ('', 'Nothing is done yet.')
    return
  yield ''
  yield _row('', 'n', *map(_title, columns))
  yield _rule(len(columns) + 2)
  for label in sorted(scores, key=_order):
    seeds = scores[label]
    yield _row(design.title(label), str(len(seeds)), *(
        scores_lib.cell(
            [values[column] for values in seeds.values() if column in values],
            len(seeds), mean='.4f', spread='.4f',
        ) for column in columns))
  yield from ('', f'Differences from {design.title(comparing.BASELINE)}, seed '
              f'by seed:', '')
  yield _row('arm', 'score', 'n', 'difference', '95 % interval', 'ahead',
                  'beyond 0?')
  yield _rule(7)
  for label in _COMPARED:
    for column in columns:
      if values := comparing.paired(scores, label, column):
        yield _row(design.title(label), _title(column),
                        *_difference(comparing.difference(values)))


def _order(label: str) -> tuple[int, str]:
  """As in `design.TITLES`, then what is not there."""
  return [*design.TITLES, label].index(label), label


def _difference(found: comparing.Difference) -> list[str]:
  low_high = '' if found.spread is None else (
      f'{found.mean - found.spread:+.4f} to {found.mean + found.spread:+.4f}'
  )
  is_beyond = {None: '', True: 'yes', False: 'no'}[found.is_beyond_0]
  return [str(found.count), f'{found.mean:+.4f}', low_high,
          f'{found.ahead} of {found.count}', is_beyond]


def _unfinished(runs: Runs) -> Iterator[str]:
  rest = [run for run in runs if not run.is_done]
  yield from ('', '## Not done', '')
  if not rest:
    yield f'All {len(runs)} runs are done.'
    return
  yield _row('part', 'run', 'state', 'status', 'step', 'reason')
  yield _rule(6)
  for run in rest:
    now = run.standing
    yield _row(run.part, run.name, now.state,
                    '' if now.status is None else str(now.status),
                    f'{now.step}/{now.steps}' if run.config else '',
                    now.reason.replace('|', '\\|'))


def _draw(folder: pathlib.Path, runs: Runs) -> list[str]:
  """Names of the pictures for which there is something."""
  folder.mkdir(parents=True, exist_ok=True)
  todo: dict[str, Callable[[pathlib.Path], None]] = {}
  scored = {}
  for part in _ARMS:
    if arms := [run for run in runs if run.part == part and run.is_done]:
      todo[part] = functools.partial(drawing.draw_losses, runs=arms)
    scored[f'{part}-linear'] = {
        f'linear, {features}': runs_lib.probed(runs, features, part)
        for features in design.FEATURES
    }
  scored['finetune'] = {'fine-tuning': runs_lib.tuned(runs)}
  for name, found in scored.items():
    panels = {f'{task}, {title}': (scores, task)
              for title, scores in found.items() for task in _MIXED
              if any(comparing.paired(scores, label, (task, metric))
                     for label in _COMPARED for metric in runs_lib.BY_SOURCES)}
    if panels:
      todo[name] = functools.partial(
          drawing.draw_differences, panels=panels, labels=_COMPARED,
      )
  for name, draw in todo.items():
    draw(folder / _picture(name))
  return [_picture(name) for name in todo]


def _picture(name: str) -> str:
  return f'{name}.png'


def _title(column: runs_lib.Column) -> str:
  task, metric = column
  kind, _, count = metric.partition('_')
  if column[1] == runs_lib.MIXED:
    count = 'mean of 2 to 4'
  of = f', {count} source{"s" * (count != "1")}' if count else ''
  return f'{task} {_METRICS[kind]}{of}'


def _row(*cells: str) -> str:
  return f'| {" | ".join(cells)} |'


def _rule(count: int) -> str:
  return '|' + '---|' * count
