"""Which clip a thread is on, as another one sees it."""

import re
import threading
import time

from sslam_jax import reading


def test_threads_are_named_with_their_clips_while_they_read():
  slate, on, go_on = reading.Slate(), threading.Event(), threading.Event()

  def read():
    with slate.reading(7):
      reading.note('a/\udcff b.wav')  # a name that is no UTF-8
      on.set()
      go_on.wait()

  thread = threading.Thread(target=read)
  thread.start()
  on.wait()
  try:
    time.sleep(0.05)
    assert re.fullmatch(r'the run \(pid \d+\) on a/\\udcff b.wav for 0 s',
                        slate.describe(0.05))
    assert slate.describe(10) == 'no thread was on a clip all the while'
  finally:
    go_on.set()
    thread.join()
  assert slate.describe(0) == 'no thread was on a clip all the while'
  reading.note('outside of any clip')
  slate.remove()
  with slate.reading(1):  # of a thread that goes on a little longer
    pass


def test_the_longest_are_shown_first_and_only_a_few():
  slate, barrier, end = reading.Slate(), threading.Barrier(7), threading.Event()

  def read(index):
    time.sleep(0.02 * index)
    with slate.reading(index):
      barrier.wait()
      end.wait()

  threads = [threading.Thread(target=read, args=(i,)) for i in range(6)]
  for thread in threads:
    thread.start()
  barrier.wait()
  text = slate.describe(0)
  end.set()
  for thread in threads:
    thread.join()
  slate.remove()
  assert re.findall(r'clip (\d) of', text) == ['0', '1', '2', '3']
  assert text.endswith('; and 2 more')
