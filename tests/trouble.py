"""A source of which one clip is never read, or which is slow in one process."""

import dataclasses
import threading
import time

import jax

from sslam_jax import clips

_LOCK = threading.Lock()


@dataclasses.dataclass(kw_only=True)
class Trouble:
  """The clips of `source`, with trouble.

  Attributes:
    source: Whose.
    fifo: A named pipe, which nobody writes to.
    stuck: The clip that is to come from it.
    slow_s: How long one process of a job sleeps over each clip.
    slow_process: Which.
  """

  source: clips.Source
  fifo: str = ''
  stuck: int | None = None
  slow_s: float = 0.0
  slow_process: int = 1

  def __len__(self):
    return len(self.source)

  @property
  def classes(self):
    return self.source.classes

  def labels(self, index):
    return self.source.labels(index)

  def __getitem__(self, index):
    clip = self.source[index]
    if threading.current_thread() is threading.main_thread():
      return clip  # at the start, when clips are counted and compared
    if self.slow_s and jax.process_index() == self.slow_process:
      with _LOCK:  # as a disk that serves one after another
        time.sleep(self.slow_s)
    if index == self.stuck:
      with open(self.fifo, 'rb'):
        pass
    return clip
