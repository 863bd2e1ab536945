"""Two steps against each other, by turns, so that drift hits both alike."""

from collections.abc import Iterator, Sequence
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np

from sslam_jax import huge_pages
from sslam_jax import train
from tools.benchmarks import training

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_TOOL = 'tools/benchmark.py'
_PAIRS = 6  # at least; the first pair is left out
_ERROR_LINES = 5


def compare_configs(
    this: train.Config, other: train.Config, seconds: float
) -> dict[str, Any]:
  """A step of one and a step of the other by turns, in this process."""
  updates = []
  for config in (this, other):
    mesh = train.make_mesh(config)
    program = training.compile_step(config, mesh)
    updates.append(training.updates(config, mesh, program))
  times: list[list[float]] = [[], []]
  begun = time.perf_counter()
  while (len(times[0]) <= _PAIRS
         or time.perf_counter() < begun + 2 * seconds):
    for seconds_all, update in zip(times, updates):
      began = time.perf_counter()
      jax.block_until_ready(update())
      seconds_all.append(time.perf_counter() - began)
  return _compared(
      [[one] for one in times[0][1:]], [[one] for one in times[1][1:]],
      (this.batch, other.batch),
  )


def compare_commits(
    revision: str,
    this: Sequence[str],
    other: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    root: pathlib.Path = _ROOT,
) -> tuple[tuple[Any, Any], dict[str, Any]]:
  """The checkout as it is against one of its commits, each run by turns.

  Args:
    revision: A commit, as git names them.
    this: Arguments of the tool that say which configuration.
    other: The same for the commit.
    rounds: How often both are run.
    seconds: How long a run measures at least.
    root: The checkout.

  Returns:
    (the reports of the last run of each, the comparison).

  Raises:
    ValueError: There is no such commit, or a run failed.
  """
  with _worktree(root, revision) as folder:
    sides = ((root, _from(root, this)), (folder, _from(root, other)))
    reports: list[list[Any]] = [[], []]
    for _ in range(rounds):
      for done, (checkout, args) in zip(reports, sides):
        done.append(_run(checkout, args, seconds))
  steps = [[report['step'] for report in side] for side in reports]
  times = [[step['step_s_all'] for step in side] for side in steps]
  batches = steps[0][0]['batch'], steps[1][0]['batch']
  compared = _compared(times[0], times[1], batches)
  return (reports[0][-1], reports[1][-1]), compared


def _compared(
    this: Sequence[Sequence[float]],
    other: Sequence[Sequence[float]],
    batches: tuple[int, int],
) -> dict[str, Any]:
  """The rates of two series of runs, and how many times this is the other's.

  Args:
    this: Seconds per step of each of its turns.
    other: The same, taken by turns with it.
    batches: Clips per step of both.
  """
  rates = [
      batch / statistics.median(second for turn in turns for second in turn)
      for turns, batch in zip((this, other), batches)
  ]
  ratios = [
      batches[0] / statistics.median(a) * statistics.median(b) / batches[1]
      for a, b in zip(this, other)
  ]
  return {
      'turns': len(ratios),
      'this_step_s': batches[0] / rates[0],
      'other_step_s': batches[1] / rates[1],
      'this_clips_per_s': rates[0],
      'other_clips_per_s': rates[1],
      'ratio': rates[0] / rates[1],
      'ratio_least': min(ratios),
      'ratio_quartiles': np.quantile(ratios, (0.25, 0.75)).tolist(),
      'ratio_largest': max(ratios),
  }


@contextlib.contextmanager
def _worktree(root: pathlib.Path, revision: str) -> Iterator[pathlib.Path]:
  """A commit, checked out in a temporary folder."""
  commit = _git(root, 'rev-parse', '--verify', '--quiet', '--end-of-options',
                f'{revision}^{{commit}}')
  if commit is None:
    raise ValueError(f'--against-commit: want a commit of the repository in '
                     f'{root}, got {revision!r}')
  with tempfile.TemporaryDirectory(prefix='sslam_jax_') as parent:
    folder = pathlib.Path(parent) / 'checkout'
    try:
      if _git(root, 'worktree', 'add', '--detach', str(folder),
              commit) is None:
        raise ValueError(f'--against-commit: cannot check out {commit} of '
                         f'{root}')
      yield folder
    finally:
      _git(root, 'worktree', 'remove', '--force', str(folder))


def _git(root: pathlib.Path, *args: str) -> str | None:
  """What git prints; None where it fails."""
  try:
    done = subprocess.run(['git', '-C', str(root), *args], capture_output=True,
                          text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()


def _from(root: pathlib.Path, args: Sequence[str]) -> list[str]:
  """The same arguments with the configuration's file as seen from `root`."""
  config, *others = args
  file, colon, argument = config.removeprefix('--config=').partition(':')
  path = pathlib.Path(file).resolve()
  if path.is_relative_to(root):
    path = path.relative_to(root)  # or both would take the same file
  return [f'--config={path}{colon}{argument}', *others]


def _run(
    root: pathlib.Path, args: Sequence[str], seconds: float
) -> dict[str, Any]:
  """The report of a checkout's own tool."""
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / 'report.json'
    command = [sys.executable, _TOOL, *args, '--parts=step',
               f'--seconds={seconds}', f'--json={file}']
    done = subprocess.run(command, cwd=root, env=huge_pages.environment(),
                          capture_output=True, text=True, check=False)
    if done.returncode or not file.exists():
      tail = '\n'.join(done.stderr.strip().splitlines()[-_ERROR_LINES:])
      raise ValueError(f'--against-commit: {root / _TOOL} failed:\n{tail}')
    return json.loads(file.read_text(encoding='utf-8'))
