"""Which accelerator each process of a sweep gets.

They are found without JAX: it would take their memory in this process.
"""

import pathlib
import subprocess

# Each process sees its chips as a whole slice, and may load libtpu beside
# others. As jax/_src/test_multiprocess.py of JAX sets them.
_ONE_CHIP = {'TPU_CHIPS_PER_PROCESS_BOUNDS': '1,1,1',
             'TPU_PROCESS_BOUNDS': '1,1,1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}


def places(
    given: str | None, jobs: int, environment: dict[str, str]
) -> list[dict[str, str]]:
  """The environment variables of each of the processes at a time.

  Args:
    given: Numbers of devices, joined by commas; None: those that are found.
    jobs: How many processes run at a time.
    environment: Of this process.

  Raises:
    ValueError: There are fewer devices than processes.
  """
  gpus, chips = _gpus(environment), _chips(environment)
  if environment.get('JAX_PLATFORMS', '').split(',')[0] == 'cpu':
    gpus, chips = [], []
  numbers = gpus or chips
  if given is not None:
    numbers = given.split(',')
    if not all(numbers):
      raise ValueError(f'--devices: want such as 0,1,2, got {given!r}')
  elif jobs == 1:
    numbers = []  # it may use all of them
  if not numbers:
    return [{} for _ in range(jobs)]
  if len(numbers) < jobs:
    raise ValueError(f'--jobs: want at most one for each device '
                     f'({",".join(numbers)}), got {jobs}; --devices may name '
                     f'one twice')
  if chips and not gpus:
    return [{'TPU_VISIBLE_CHIPS': number, **_ONE_CHIP}
            for number in numbers[:jobs]]
  return [{'CUDA_VISIBLE_DEVICES': number} for number in numbers[:jobs]]


def _gpus(environment: dict[str, str]) -> list[str]:
  if (visible := environment.get('CUDA_VISIBLE_DEVICES')) is not None:
    return [number for number in visible.split(',') if number not in ('', '-1')]
  try:
    listed = subprocess.run(
        ['nvidia-smi', '-L'], env=environment, capture_output=True, text=True,
        check=False, timeout=60,
    ).stdout.splitlines()
  except (OSError, subprocess.TimeoutExpired):
    return []
  count = sum(line.startswith('GPU ') for line in listed)
  return [str(number) for number in range(count)]


def _chips(environment: dict[str, str]) -> list[str]:
  if (visible := environment.get('TPU_VISIBLE_CHIPS')) is not None:
    return [number for number in visible.split(',') if number]
  count = len(list(pathlib.Path('/dev').glob('accel[0-9]*')))
  return [str(number) for number in range(count)]
