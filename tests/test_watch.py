"""Who keeps a job waiting: hand-sized cases; real jobs in test_processes."""

import time

import pytest

from sslam_jax import watch

PATIENCE_S = 100.0


def pulse(passed=5, since_s=0.0, is_done=False, reason=None, status=1):
  return watch.Pulse(number=1, host='h', passed=passed, step=9,
                     place='saving', since_s=since_s, is_done=is_done,
                     reason=reason, status=status)


def judged(*pulses_and_ages, unanswered_s=0.0, patience_s=PATIENCE_S,
           is_sure=False):
  seen = {index: watch.Seen(*one) for index, one in enumerate(pulses_and_ages)}
  return watch.judge(seen, unanswered_s=unanswered_s, patience_s=patience_s,
                     is_sure=is_sure)


FRESH = pulse(), 1.0
STUCK_S = PATIENCE_S + 10


@pytest.mark.parametrize('second', [
    FRESH,
    (pulse(since_s=1000), 1),  # all are at the same place: they evaluate
    (pulse(passed=4, since_s=PATIENCE_S - 1), 1),
    (pulse(passed=0, since_s=1000), 1),  # has not begun
    (pulse(passed=4, since_s=1000, is_done=True), 1000),
    (pulse(), 15),
    (pulse(is_done=True, reason='full disk'), 3),
])
def test_nobody_is_accused(second):
  first = (pulse(since_s=1000), 1) if second[0].since_s == 1000 else FRESH
  assert judged(first, second) is None


@pytest.mark.parametrize(('second', 'options', 'expected'), [
    ((pulse(), 21), {}, (1, 'silent for 21 s', 4)),
    ((pulse(), 8), {'is_sure': True}, (1, 'silent for 8 s', 4)),
    ((pulse(), 21), {'unanswered_s': 22}, (0, 'silent for 22 s', 4)),
    ((pulse(passed=4, since_s=STUCK_S), 1), {},
     (1, 'has been saving at step 9 for 110 s', 4)),
    ((pulse(is_done=True, reason='full disk'), 8), {}, (1, 'full disk', 1)),
    ((pulse(is_done=True, reason='no data', status=4), 1), {'is_sure': True},
     (1, 'no data', 4)),
])
def test_one_is_named_with_its_reason(second, options, expected):
  verdict = judged(FRESH, second, **options)
  assert (verdict.process, verdict.status) == (expected[0], expected[2])
  assert expected[1] in verdict.reason


def test_no_patience_limit_is_for_ever():
  stuck = pulse(passed=4, since_s=1e6), 1
  assert judged(FRESH, stuck, patience_s=None) is None


def test_the_first_step_may_take_any_time():
  one = watch.Watch(1.0)
  passed = []
  for step in (7, 7, 8, 7, 9):
    one.at(step, 'a')
    passed.append(one._at[0])
  assert passed == [0, 0, 1, 1, 2]


def test_time_is_counted_where_it_was_spent():
  with watch.Watch(None) as one:
    for place, seconds in (('a', 0.02), ('b', 0.05), ('a', 0.03), ('c', 0)):
      one.at(1, place)
      time.sleep(seconds)
    assert 0.05 <= one.take_spent('a') < 0.5
    assert 0.05 <= one.take_spent('b') < 0.5
    assert one.take_spent('a') == 0
