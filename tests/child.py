"""The tiny stage-2 run in a process of its own, as tests start it.

  python -m tests.child WORKDIR [--steps=N] [--folder=DIR] [--file_limit=BYTES]
      [--workers=N] [--patience=SECONDS] [--stuck=CLIP] [--slow=SECONDS]
      [--haste=FACTOR] [--coordinator=HOST:PORT --processes=N --process=I]

Exit status as of sslam_jax.main.
"""

import argparse
import importlib
import os
import pathlib
import resource
import socket
import subprocess
import sys
from unittest import mock

_ROOT = pathlib.Path(__file__).parent.parent
# Tiny models: compiling takes far longer than running what is compiled. Without
# the newer emitters of fused loops a step compiles in 1.8 CPU-s instead of 4.3
# (jax 0.10.2; an extra option, as their flag of its own ends jax 0.11).
XLA_FLAGS = (
    '--xla_backend_optimization_level=0 '
    '--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters'
)


def config(workdir, steps, folder=None, workers=0, patience=600.0, **trouble):
  """What the child runs; saves every other step; for `trouble` see there."""
  from sslam_jax import checkpoint
  from sslam_jax import sources
  from tests import tiny
  from tests import trouble as trouble_lib
  run = tiny.stage2(workdir, steps=steps, keep=checkpoint.Keep(every=2),
                    devices=None, patience_s=patience)
  run.data.workers = workers
  if folder is not None:
    run.data.source = sources.Folder(paths=(folder,))
    run.data.max_bad_fraction = 0.1
  if trouble:
    run.data.source = trouble_lib.Trouble(source=run.data.source, **trouble)
  return run


def start(workdir, *args, devices=1, module='tests.child', **environment):
  """Starts it; its errors can be read from `stderr`."""
  return subprocess.Popen(
      [sys.executable, '-m', module, str(workdir), *args], cwd=_ROOT,
      env={**os.environ, 'XLA_FLAGS': XLA_FLAGS,
           'JAX_NUM_CPU_DEVICES': str(devices),
           **environment},
      stderr=subprocess.PIPE, text=True, start_new_session=True,
  )


def by_hand(port, index):
  """Arguments and variables of one of two processes, which are told all."""
  return [f'--coordinator=localhost:{port}', '--processes=2',
          f'--process={index}'], {}


def as_slurm(port, index):
  """The same as `srun` sets them for two tasks on one host."""
  return ['--distributed'], {
      'SLURM_JOB_ID': '4711', 'SLURM_STEP_NODELIST': 'localhost',
      'SLURM_STEP_NUM_NODES': '1', 'SLURM_NTASKS': '2',
      'SLURM_PROCID': str(index), 'SLURM_LOCALID': str(index),
      'JAX_COORDINATOR_PORT': str(port),
  }


def as_open_mpi(port, index):
  """The same as `mpirun -n 2` sets them."""
  return ['--distributed'], {
      'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://127.0.0.1:34911',
      'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': str(index),
      'OMPI_COMM_WORLD_LOCAL_RANK': str(index),
      'JAX_COORDINATOR_PORT': str(port),
  }


def start_two(workdir, *args, launched=by_hand, **options):
  """Starts a job of two processes."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  jobs = []
  for index in range(2):
    flags, variables = launched(port, index)
    jobs.append(start(workdir, *args, *flags, **options, **variables))
  return jobs


def ends_of(jobs, timeout=120):
  """Exit statuses and errors of all."""
  errors = [job.communicate(timeout=timeout)[1] for job in jobs]
  return [job.returncode for job in jobs], errors


def trouble_of(options):
  trouble = {}
  if options.stuck is not None:
    trouble = {'stuck': options.stuck, 'fifo': f'{options.workdir}.fifo'}
  return trouble | ({'slow_s': options.slow} if options.slow else {})


def import_without_torch(name):
  """Imports what would import PyTorch if it is there, which takes seconds."""
  sys.modules['torch'] = None
  importlib.import_module(name)
  del sys.modules['torch']


def hasten(factor):
  """Other processes are watched, and waited for at the end, at that pace."""
  from sslam_jax import processes
  from sslam_jax import watch
  for module, name in ((watch, '_PULSE_S'), (watch, '_LOOK_S'),
                       (watch, '_SURE_S'), (watch, '_SILENT_S'),
                       (processes, '_GRACE_S')):
    setattr(module, name, getattr(module, name) / factor)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('workdir')
  parser.add_argument('--steps', type=int, default=6)
  parser.add_argument('--folder')
  parser.add_argument('--file_limit', type=int)
  parser.add_argument('--workers', type=int, default=0)
  parser.add_argument('--patience', type=float, default=600.0)
  parser.add_argument('--stuck', type=int)
  parser.add_argument('--slow', type=float)
  parser.add_argument('--haste', type=float, default=1.0)
  options, others = parser.parse_known_args()
  import_without_torch('tensorboardX')
  from sslam_jax import main as main_lib
  hasten(options.haste)
  if options.file_limit is not None:
    limit = (options.file_limit, options.file_limit)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
  # The command line as it is, with a configuration that no file holds.
  with mock.patch.object(
      main_lib, '_config',
      lambda *_: config(options.workdir, options.steps, options.folder,
                        options.workers, options.patience,
                        **trouble_of(options)),
  ):
    return main_lib.main(['--config=unused', *others])


if __name__ == '__main__':
  sys.exit(main())
