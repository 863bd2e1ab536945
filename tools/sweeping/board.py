"""The live table: redrawn on a terminal, else a line per change of state."""

import math
import shutil
from collections.abc import Iterator
from typing import TextIO

from tools.sweeping import standing

_TITLES = ['point', 'state', 'step', 'clips/s', 'left', 'loss', 'scores']
_UP, _CLEAR = '\x1b[{}A', '\x1b[J'  # lines up; all from the cursor on
_NAME = 40  # characters of a name that are shown
_SCORES = 4  # of a point that are shown


class Board:
  """Shows standings on a stream."""

  def __init__(self, stream: TextIO) -> None:
    self._stream, self._is_terminal = stream, stream.isatty()
    self._height = 0  # lines that the next table replaces
    self._told: dict[str, str] = {}

  def show(self, standings: dict[str, standing.Standing]) -> None:
    """Replaces the table, or tells what has changed."""
    if self._is_terminal:
      self._redraw(standings)
    else:
      self._tell(standings)
    self._stream.flush()

  def _redraw(self, standings: dict[str, standing.Standing]) -> None:
    columns, height = shutil.get_terminal_size()
    shown = list(lines(standings, height - 2))
    up = _UP.format(self._height) if self._height else ''
    text = '\n'.join(line[: columns - 1] for line in shown)
    self._stream.write(f'{up}\r{_CLEAR}{text}\n')
    self._height = len(shown)

  def _tell(self, standings: dict[str, standing.Standing]) -> None:
    for name, each in standings.items():
      if self._told.get(name, standing.WAITING) != each.state:
        said = _scores(each) if each.state == standing.DONE else each.reason
        status = '' if each.status is None else f' (status {each.status})'
        step = f', step {each.step}/{each.steps}' if each.step else ''
        self._stream.write(f'{name}: {each.state}{status}{step}'
                           f'{": " if said else ""}{said}\n')
    self._told = {name: each.state for name, each in standings.items()}


def lines(
    standings: dict[str, standing.Standing], height: int | None = None
) -> Iterator[str]:
  """The table and its sum; of more points than `height`, the first in work."""
  states = [each.state for each in standings.values()]
  order = [standing.RUNNING, standing.FAILED, standing.INTERRUPTED,
           standing.UNFINISHED, standing.WAITING, standing.DONE]
  shown = list(standings)
  if height is not None and len(shown) + 2 > height:
    shown.sort(key=lambda name: order.index(standings[name].state))
    shown = shown[: max(height - 2, 1)]
  rows = [_TITLES, *(_cells(name, standings[name]) for name in shown)]
  widths = [max(map(len, column)) for column in zip(*rows)]
  for row in rows:
    yield '  '.join(map(str.ljust, row, widths)).rstrip()
  counts = [f'{states.count(state)} {state}' for state in order
            if state in states]
  yield f'{len(standings)} points: {", ".join(counts)}'


def time_left(seconds: float) -> str:
  """Such as 45 s, 12 min, 3.4 h."""
  if seconds < 60:
    return f'{seconds:.0f} s'
  minutes = math.ceil(seconds / 60)
  return f'{minutes} min' if minutes < 100 else f'{seconds / 3600:.1f} h'


def _cells(name: str, each: standing.Standing) -> list[str]:
  loss, is_running = standing.last_loss(each.rows), (
      each.state == standing.RUNNING)
  rate = each.clips_per_s if is_running else None
  left_s = each.left_s if is_running else None
  status = '' if each.status is None else f' ({each.status})'
  said = each.reason if each.status is not None else _scores(each)
  short = name if len(name) <= _NAME else f'{name[: _NAME - 3]}...'
  return [
      short, each.state + status, f'{each.step}/{each.steps}',
      '' if rate is None else f'{rate:.1f}',
      '' if left_s is None else time_left(left_s),
      '' if loss is None else f'{loss:.4g}', said,
  ]


def _scores(each: standing.Standing) -> str:
  found = list(standing.newest_scores(each.rows).items())[:_SCORES]
  return ' '.join(f'{name} {value:.4g}' for name, value in found)
