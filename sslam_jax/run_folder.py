"""The folder of a run: its configuration, and the one job that may write."""

import contextlib
import datetime
import errno
import fcntl
import os
import pathlib
import re
import socket
from collections.abc import Iterator
from typing import Any

from sslam_jax import config as config_lib
from sslam_jax import report

_CONFIG = 'config.json'
_LOCK = 'run.lock'
# Fields that may change when a run is resumed: they leave its numbers alone,
# up to rounding. Sources may move, see `moved`.
_FREE = re.compile(
    r'workdir|devices|shard_optimizer|accumulate|log_every|pictures_every'
    r'|patience_s|objective\.vit\.remat|data\.(workers|threads|max_bad_fraction)'
    r'|keep\..+|guard\..+|evals.*'
)
_PLACE = re.compile(r'data\.source\.(.+\.)?(path|paths|root|data_dir)')


def check(workdir: pathlib.Path, config: Any) -> None:
  """Raises ValueError for a file, or a folder of another run's.

  Fields that leave a run's numbers alone may differ; the others that do are
  named with both values.
  """
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f'workdir: want a folder, got the file {workdir}')
  changed = [
      f'{name} was {was!r}, now {now!r}'
      for name, (was, now) in _changed(workdir, config).items()
      if not _FREE.fullmatch(name) and not _PLACE.fullmatch(name)
  ]
  if changed:
    raise ValueError(f'{workdir}: holds a run with another configuration; '
                     f'take another --workdir. ' + '; '.join(changed))


def moved(workdir: pathlib.Path, config: Any) -> tuple[str, ...]:
  """Fields by which the data is elsewhere than when the run was started."""
  return tuple(filter(_PLACE.fullmatch, _changed(workdir, config)))


def _changed(
    workdir: pathlib.Path, config: Any
) -> dict[str, tuple[Any, Any]]:
  if not (workdir / _CONFIG).exists():
    return {}
  return config_lib.differences(read_config(workdir), config)


def read_config(workdir: pathlib.Path) -> Any:
  """The configuration of the run in a folder.

  Raises:
    ValueError: It is no run folder, or one of another version.
  """
  saved = workdir / _CONFIG
  if not saved.exists():
    exists = workdir.is_dir()
    got = f'a folder without {_CONFIG}' if exists else 'nothing: there is none'
    raise ValueError(f'{workdir}: want a run folder, got {got}')
  try:
    return config_lib.from_json(saved.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{saved}: of another version? {error}') from None


def write_config(workdir: pathlib.Path, config: Any) -> None:
  """Keeps the configuration for `check` and for readers of the folder."""
  report.write_text(workdir / _CONFIG, config_lib.to_json(config))


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Keeps other jobs out; the system frees the folder when this one ends.

  Raises:
    ValueError: Another job is running in it; its host and process are named.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / _LOCK).open('a+', encoding='utf-8') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno not in (errno.EAGAIN, errno.EACCES):
        raise
      file.seek(0)
      raise ValueError(f'{workdir}: want a folder that no other job writes '
                       f'to, got one in use by {file.read().strip()}') from None
    file.truncate(0)
    now = datetime.datetime.now().isoformat(' ', 'seconds')
    file.write(f'process {os.getpid()} on {socket.gethostname()} since {now}')
    file.flush()
    yield
