"""The runs of a study and their scores, read from its folders alone."""

import dataclasses
import pathlib
import re
import statistics
from collections.abc import Iterable

from configs.study import design
from sslam_jax import run_folder
from sslam_jax import sweeping
from sslam_jax import train
from tools.sweeping import points as points_lib
from tools.sweeping import scores as scores_lib
from tools.sweeping import standing

FINETUNE = 'finetune-'  # before the name of a task
MAP, ACCURACY = 'map', 'accuracy'
BY_SOURCES = tuple(f'{MAP}_{count}' for count in (1, 2, 3, 4))
MIXED = f'{MAP}_mixed'  # mean of the mAP of clips with 2, 3 and 4 sources
_OF_MIXED = BY_SOURCES[1:]
_PROBED = re.compile(
    rf'(.+?)_({"|".join(design.FEATURES).replace("+", "_")})_'
    rf'({MAP}(?:_\d)?|{ACCURACY})'
)

Column = tuple[str, str]  # task; mAP, mAP of so many sources, or accuracy
Scores = dict[str, dict[int, dict[Column, float]]]  # label -> seed -> column


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """One of a study.

  Attributes:
    part: The sweep it is of.
    name: Its folder's, there.
    label: The same without the seed: an arm.
    seed: Of the run.
    config: None: it was not begun.
    standing: How far it is.
  """

  part: str
  name: str
  label: str
  seed: int
  config: train.Config | None
  standing: standing.Standing

  @property
  def is_done(self) -> bool:
    return self.standing.state == standing.DONE


def read(workdir: pathlib.Path) -> list[Run]:
  """All runs that the sweeps of a study have begun or will begin.

  Raises:
    ValueError: There is none.
  """
  found = [
      _run(folder, name, settings)
      for folder in sorted(path for path in workdir.glob('*') if path.is_dir())
      for name, settings in points_lib.recorded(folder).items()
  ]
  if not found:
    raise ValueError(f'{workdir}: want the folder of a study, got none')
  return found


def probed(
    runs: Iterable[Run], features: str, part: str = design.ARMS_PART
) -> Scores:
  """Scores of linear probes: of arms, stage 1 and random weights.

  Args:
    runs: Of the study.
    features: One of `design.FEATURES`.
    part: The arms.
  """
  scores: Scores = {}
  for run in (run for run in runs if run.part in (part, design.STAGE1)):
    found = {}
    for name, value in _evaluated(run).items():
      match = _PROBED.fullmatch(name)
      if match and match[2] == features.replace('+', '_'):
        found[match[1], match[3]] = value
    _add(scores, run, found)
  return scores


def tuned(runs: Iterable[Run]) -> Scores:
  """Scores of fine-tuning, of clips with several labels mAP."""
  scores: Scores = {}
  for run in (run for run in runs if run.part.startswith(FINETUNE)):
    task = run.part.removeprefix(FINETUNE)
    values = {name.removeprefix('test_'): value
              for name, value in _evaluated(run).items()}
    is_multi = f'{MAP}_1' in values
    if not is_multi and 'top1' in values:
      values = {ACCURACY: values['top1']}
    _add(scores, run, {(task, name): value for name, value in values.items()
                       if name.startswith((MAP, ACCURACY))})
  return scores


def columns(scores: Scores) -> list[Column]:
  """All that some run has, in the order of the tasks."""
  found = {column for seeds in scores.values() for values in seeds.values()
           for column in values}
  tasks = list(design.tasks([]))
  return sorted(found, key=lambda column: (
      [*tasks, column[0]].index(column[0]), column
  ))


def _run(folder: pathlib.Path, name: str, settings: sweeping.Point) -> Run:
  path, seed = folder / 'points' / name, settings.get(sweeping.SEED, 1)
  label = name.removesuffix(f',{sweeping.part(sweeping.SEED, seed)}')
  try:
    config = run_folder.read_config(path)
  except ValueError as error:
    status, reason = standing.ended(folder, name) or (None, str(error))
    now = standing.Standing(
        state=standing.WAITING if status is None else standing.FAILED, step=0,
        steps=0, clips_per_s=None, left_s=None, rows=[], status=status,
        reason=reason,
    )
    config = None
  else:
    config = dataclasses.replace(config, workdir=str(path))
    now = standing.look(folder, points_lib.Point(
        name=name, label=label, settings=settings, config=config
    ))
  return Run(part=folder.name, name=name, label=label, seed=seed,
             config=config, standing=now)


def _evaluated(run: Run) -> dict[str, float]:
  return scores_lib.evaluated(run.standing.rows) if run.is_done else {}


def _add(scores: Scores, run: Run, values: dict[Column, float]) -> None:
  for task in {task for task, _ in values}:
    mixed = [values[task, name] for name in _OF_MIXED if (task, name) in values]
    if len(mixed) == len(_OF_MIXED):
      values[task, MIXED] = statistics.fmean(mixed)
  if values:
    seeds = scores.setdefault(run.label, {})
    seeds[run.seed] = seeds.get(run.seed, {}) | values
