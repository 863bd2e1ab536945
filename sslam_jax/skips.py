"""Damaged clips that training passed over: counted, told once, limited."""

import csv
import logging
import pathlib
from collections.abc import Iterable
from typing import IO

FILE = 'skipped.tsv'  # rows of step, clip, reason
# The limit is over so many clips at least, or over one pass.
_PASS = 10_000
_SHOWN = 20

_logger = logging.getLogger('sslam_jax')


class Skips:
  """What was passed over since the start of a run.

  Attributes:
    count: How often; a clip counts each time that it is drawn.
  """

  def __init__(
      self, workdir: str, *, clips: int, max_fraction: float, writes: bool
  ) -> None:
    """A run's list, empty until `resume`.

    Args:
      workdir: Run folder.
      clips: How many the source holds.
      max_fraction: See `Data.max_bad_fraction`.
      writes: Whether this process writes list and log.
    """
    self.count = 0
    self._path = pathlib.Path(workdir) / FILE
    self._clips, self._max_fraction = clips, max_fraction
    self._writes = writes
    self._reasons: dict[str, str] = {}

  def resume(self, step: int, count: int) -> None:
    """Goes on after `step`; what was listed later is forgotten."""
    self.count = count
    rows = [row for row in self._read() if int(row[0]) <= step]
    self._reasons = {clip: reason for _, clip, reason in rows}
    if self._writes and self._path.exists():
      # A kill leaves the old list or the new one.
      new = self._path.with_suffix('.new')
      _write(new, rows, 'w')
      new.replace(self._path)

  def add(
      self, step: int, count: int, skipped: Iterable[tuple[str, str]]
  ) -> None:
    """Notes what a step passed over; clips that are new are logged."""
    self.count += count
    new = {clip: reason for clip, reason in skipped
           if clip not in self._reasons}
    self._reasons |= new
    if new and self._writes:
      _write(self._path, [(str(step), *row) for row in new.items()], 'a')
      for clip, reason in new.items():
        _logger.warning('step %d: passed over %s: %s', step, clip, reason)

  def excess(self, drawn: int) -> str | None:
    """What is wrong where too many were passed over for `drawn` good ones."""
    tried = drawn + self.count
    if self.count <= self._max_fraction * (tried + min(self._clips, _PASS)):
      return None
    lines = [f'{clip}: {reason}' for clip, reason in self._reasons.items()]
    if (more := len(lines) - _SHOWN) > 0:
      lines[_SHOWN:] = [f'and {more} more: {self._path}']
    return (f'data.max_bad_fraction: want at most {self._max_fraction:.2%} of '
            f'all clips damaged, got {self.count} of {tried} tried\n  '
            + '\n  '.join(lines))

  def _read(self) -> list[tuple[str, str, str]]:
    if not self._path.exists():
      return []
    with _open(self._path, 'r') as file:
      rows = list(csv.reader(file, csv.excel_tab))
    # The last line of a killed run may be cut off.
    return [(step, clip, reason) for step, clip, reason in
            (row for row in rows if len(row) == 3)]


def _write(
    path: pathlib.Path, rows: list[tuple[str, str, str]], mode: str
) -> None:
  with _open(path, mode) as file:
    csv.writer(file, csv.excel_tab, lineterminator='\n').writerows(rows)


def _open(path: pathlib.Path, mode: str) -> IO[str]:
  # File names may be in another encoding than UTF-8.
  return path.open(mode, encoding='utf-8', errors='surrogateescape', newline='')
