"""Pages of 2 MiB for the arrays of a process, where glibc can.

XLA allocates its buffers anew in every step on a CPU, and glibc takes large
ones from the system and returns them each time: hundreds of thousands of pages
to touch in a step of the base model, a few thousand of the large ones. How much
less time a step takes is in docs/benchmarks.md.
"""

import os
import platform
import sys

_VARIABLE, _TUNABLE = 'GLIBC_TUNABLES', 'glibc.malloc.hugetlb'
# What the first had before; glibc drops its own for some programs.
_RESTARTED = 'SSLAM_JAX_RESTARTED'


def restart() -> None:
  """Starts the command of this process anew with such pages, unless it has.

  glibc decides as a process starts; the process keeps its number. To be called
  first of all: what is imported before is imported twice, and what is in
  memory is lost. It does nothing where there is no glibc, under a debugger, and
  where GLIBC_TUNABLES has `glibc.malloc.hugetlb` (0: no such pages) already.
  """
  tunables = os.environ.get(_VARIABLE, '')
  if (_TUNABLE in tunables or _RESTARTED in os.environ or sys.gettrace()
      or platform.libc_ver()[0] != 'glibc' or not sys.executable):
    return
  os.environ[_RESTARTED] = tunables
  os.environ[_VARIABLE] = ':'.join(filter(None, [tunables, f'{_TUNABLE}=1']))
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def environment() -> dict[str, str]:
  """Variables as before `restart`: for a command that is to decide anew."""
  found = dict(os.environ)
  if (before := found.pop(_RESTARTED, None)) is not None:
    found.pop(_VARIABLE, None)
    if before:
      found[_VARIABLE] = before
  return found
