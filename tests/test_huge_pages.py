"""Pages of 2 MiB: the command starts anew, once, with what it was given."""

import os
import platform
import subprocess
import sys

import pytest

_SCRIPT = """
import os, sys
from sslam_jax import huge_pages
print('begun', os.getpid(), flush=True)
huge_pages.restart()
print(huge_pages.environment().get('GLIBC_TUNABLES'))
print(os.environ.get('GLIBC_TUNABLES'), *sys.argv[1:])
"""


def begun(tunables, **more):
  """How often the script began, and what it printed at last."""
  environment = {name: value for name, value in os.environ.items()
                 if name not in ('GLIBC_TUNABLES', 'SSLAM_JAX_RESTARTED')}
  if tunables is not None:
    environment['GLIBC_TUNABLES'] = tunables
  environment |= more
  said = subprocess.run(
      [sys.executable, '-X', 'utf8', '-c', _SCRIPT, 'a b', '--c'],
      env=environment, capture_output=True, text=True, check=True,
  ).stdout.splitlines()
  *starts, before, last = said
  assert len(set(starts)) == 1  # the same process
  assert before == str(tunables)
  return len(starts), last


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='wants glibc')
@pytest.mark.parametrize(('tunables', 'times', 'then'), [
    (None, 2, 'glibc.malloc.hugetlb=1'),
    ('glibc.malloc.arena_max=2', 2,
     'glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1'),
    ('glibc.malloc.hugetlb=0', 1, 'glibc.malloc.hugetlb=0'),
])
def test_a_command_starts_anew_once_with_what_it_was_given(
    tunables, times, then
):
  assert begun(tunables) == (times, f'{then} a b --c')


def test_no_command_starts_anew_for_ever():
  # As where glibc has dropped its variable on the way.
  assert begun(None, SSLAM_JAX_RESTARTED='') == (1, 'None a b --c')


def test_nothing_starts_anew_without_glibc(monkeypatch):
  from sslam_jax import huge_pages

  for name in ('GLIBC_TUNABLES', 'SSLAM_JAX_RESTARTED'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
  monkeypatch.setattr(os, 'execv', lambda *args: pytest.fail('started'))
  huge_pages.restart()
  assert 'GLIBC_TUNABLES' not in os.environ


_RUN = """
import os, runpy, sys
def execv(path, args):
  assert 'jax' not in sys.modules
  print(*args)
  raise SystemExit
os.execv = execv
runpy.run_path(sys.argv[1], run_name='__main__')
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='wants glibc')
@pytest.mark.parametrize('command', [
    'sslam_jax/main.py', 'tools/benchmark.py', 'tools/sweep.py',
    'tools/study.py', 'tools/repeat.py',
])
def test_commands_that_train_start_anew(command):
  environment = {name: value for name, value in os.environ.items()
                 if name not in ('GLIBC_TUNABLES', 'SSLAM_JAX_RESTARTED')}
  said = subprocess.run(
      [sys.executable, '-c', _RUN, command, '--wrong'], env=environment,
      capture_output=True, text=True, check=True,
  ).stdout
  assert said.endswith(f' {command} --wrong\n')
