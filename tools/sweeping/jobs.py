"""Job files that run a sweep's points on a cluster, one task for each.

Each task calls `tools/sweep.py --point=NAME`: numbers change when points are
added. None of the schedulers was tried: see docs/sweeps.md.
"""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Sequence

from sslam_jax import report

KINDS = ('slurm', 'kubernetes', 'xpk')
_SCRIPT = 'tools/sweep.py'
_RESTARTS = 50  # of a point, by preemption or a crash
_GRACE_S = 120  # to save the step under way


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """What a task needs.

  Attributes:
    workdir: The sweep's folder, where all tasks see it.
    points: Their names, which no shell changes.
    arguments: Of tools/sweep.py, without those that say what to do.
    at_once: Points at a time; None: as many as the cluster lets.
    gpus: Of each task.
    time: Limit of a task, as Slurm takes it; None: the cluster's.
    partition: Of Slurm; None: its default.
    image: Container of Kubernetes and XPK, with this checkout as its folder
      (XPK puts that in by itself).
  """

  workdir: pathlib.Path
  points: Sequence[str]
  arguments: Sequence[str]
  at_once: int | None
  gpus: int
  time: str | None
  partition: str | None
  image: str | None

  @property
  def name(self) -> str:
    """As Kubernetes takes it."""
    letters = re.sub(r'[^a-z0-9]+', '-', self.workdir.name.lower())
    return letters.strip('-')[:30].strip('-') or 'sweep'

  def command(
      self, point: str, *, python: str = 'python', script: str = _SCRIPT
  ) -> str:
    """The shell command of a task; `point` is shell code for its name."""
    return f'{shlex.join([python, script, *self.arguments])} --point={point}'


def write(kind: str, job: Job) -> tuple[pathlib.Path, str]:
  """Writes the file of a kind; with the command that hands it in.

  Raises:
    ValueError: An option is missing.
  """
  if kind != 'slurm':
    if job.image is None:
      raise ValueError(f'--image: want the container to run, for {kind}')
    if not job.workdir.is_absolute() or len(job.workdir.parts) < 3:
      raise ValueError(f'--workdir: want such as /data/runs/sweep, on a volume '
                       f'that all tasks mount, for {kind}, got {job.workdir}')
  file, text, start = {
      'slurm': ('slurm.sbatch', _slurm, 'sbatch'),
      'kubernetes': ('kubernetes.yaml', _kubernetes, 'kubectl apply -f'),
      'xpk': ('xpk.sh', _xpk, 'CLUSTER=... DEVICE=... bash'),
  }[kind]
  path = job.workdir / 'jobs' / file
  report.write_text(path, text(job))
  return path, f'{start} {shlex.quote(str(path))}'


def _slurm(job: Job) -> str:
  limit = '' if job.at_once is None else f'%{job.at_once}'
  options = [
      f'--job-name={job.name}',
      f'--array=0-{len(job.points) - 1}{limit}',
      *([f'--gpus={job.gpus}'] if job.gpus else []),
      *([f'--time={job.time}'] if job.time else []),
      *([f'--partition={job.partition}'] if job.partition else []),
      f'--signal=TERM@{_GRACE_S}',
      '--requeue',
      '--open-mode=append',
      f'--output="{job.workdir.absolute() / "logs" / "slurm-%A_%a.out"}"',
  ]
  lines = '\n'.join(f'#SBATCH {option}' for option in options)
  command = job.command(
      '"${points[$SLURM_ARRAY_TASK_ID]}"', python=sys.executable,
      script=str(pathlib.Path(__file__).parents[2] / _SCRIPT),
  )
  return f'''#!/bin/bash
{lines}

{_array(job)}
cd {_here()} || exit 2
srun --ntasks=1 --kill-on-bad-exit=0 \\
    {command}
status=$?
case $status in
  0|1|2) exit $status ;;
esac
# Such as want of memory would come again for ever.
[ "${{SLURM_RESTART_COUNT:-0}}" -lt {_RESTARTS} ] || exit $status
scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
'''


def _kubernetes(job: Job) -> str:
  # Such as /data of /data/runs/sweep.
  mount = f'/{job.workdir.parts[1]}'
  # Without exec the shell would get the signal that is to save the run.
  command = (f'{_array(job)}; exec '
             + job.command('"${points[$JOB_COMPLETION_INDEX]}"'))
  limits = f'{{nvidia.com/gpu: {job.gpus}}}' if job.gpus else '{}'
  at_once = len(job.points) if job.at_once is None else job.at_once
  return f'''apiVersion: batch/v1
kind: Job
metadata: {{name: {json.dumps(job.name)}}}
spec:
  completionMode: Indexed
  completions: {len(job.points)}
  parallelism: {at_once}
  backoffLimitPerIndex: {_RESTARTS}
  podFailurePolicy:
    rules:
    - {{action: Ignore, onPodConditions: [{{type: DisruptionTarget}}]}}
    - {{action: FailIndex, onExitCodes: {{operator: In, values: [1, 2]}}}}
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: {_GRACE_S}
      containers:
      - name: point
        image: {json.dumps(job.image)}
        command: [bash, -c, {json.dumps(command)}]
        resources: {{limits: {limits}}}
        volumeMounts: [{{name: data, mountPath: {json.dumps(mount)}}}]
      volumes:
      - {{name: data, persistentVolumeClaim: {{claimName: data}}}}
'''


def _xpk(job: Job) -> str:
  image = shlex.quote(job.image or '')
  parts = [f'''#!/bin/bash
: "${{CLUSTER:?want the name of the cluster}}"
: "${{DEVICE:?want such as --tpu-type=v5litepod-1 or --device-type=l4-1}}"
cd {_here()} || exit 2
''']
  for number, point in enumerate(job.points):
    parts.append(f'''
xpk workload create --cluster="$CLUSTER" --workload={job.name}-{number} \\
    "$DEVICE" --num-slices=1 --base-docker-image={image} \\
    --script-dir=. --max-restarts={_RESTARTS} --restart-on-user-code-failure \\
    --termination-grace-period-seconds={_GRACE_S} \\
    --command={shlex.quote(job.command(point))}
''')
  return ''.join(parts)


def _array(job: Job) -> str:
  """The shell code of the points' names, of which a task takes one."""
  return f'points=({" ".join(job.points)})'


def _here() -> str:
  """The folder that relative paths of the command start from."""
  return shlex.quote(os.getcwd())
