"""What was passed over: counted, listed once, and limited."""

import pytest

from sslam_jax import skips


def new(path, clips=100, max_fraction=0.01, writes=True):
  return skips.Skips(str(path), clips=clips, max_fraction=max_fraction,
                     writes=writes)


def test_each_clip_is_listed_once_and_counted_each_time(tmp_path, caplog):
  ours = new(tmp_path)
  ours.resume(0, 0)
  assert not (tmp_path / 'skipped.tsv').exists()
  ours.add(2, 1, [('a b.wav', 'cut')])
  ours.add(5, 2, [('a b.wav', 'cut'), ('\udcff.wav', 'empty')])
  ours.add(6, 1, [('a b.wav', 'cut')])
  assert ours.count == 4
  assert (tmp_path / 'skipped.tsv').read_bytes().splitlines() == [
      b'2\ta b.wav\tcut', b'5\t\xff.wav\tempty'
  ]
  assert caplog.text.count('passed over a b.wav: cut') == 1


def test_resuming_forgets_what_came_later_and_a_line_cut_off(tmp_path):
  ours = new(tmp_path)
  ours.add(2, 1, [('a', 'cut')])
  ours.add(5, 1, [('b', 'cut')])
  with (tmp_path / 'skipped.tsv').open('a') as file:
    file.write('6\tc')
  again = new(tmp_path)
  again.resume(4, 1)
  assert again.count == 1
  again.add(6, 2, [('a', 'cut'), ('b', 'cut')])
  assert (tmp_path / 'skipped.tsv').read_text().split('\n') == [
      '2\ta\tcut', '6\tb\tcut', ''
  ]


def test_only_one_process_writes(tmp_path, caplog):
  other = new(tmp_path, writes=False)
  other.resume(0, 0)
  other.add(1, 1, [('a', 'cut')])
  assert other.count == 1
  assert not list(tmp_path.iterdir())
  assert not caplog.text


@pytest.mark.parametrize(('clips', 'count', 'drawn', 'stops'), [
    (24, 1, 8, True),  # 1 of 24 is more than 1 %
    (100, 1, 150, False),  # exactly 1 % of 100
    (100, 2, 150, False),  # its one damaged clip in the second pass
    (100, 2, 60, True),  # 2 of 100
    (2_000_000, 100, 0, False),  # 1 % of 10,000
    (2_000_000, 102, 0, True),
    (2_000_000, 1111, 100_000, False),
    (2_000_000, 1112, 100_000, True),
])  # fmt: skip
def test_limit_is_over_all_drawn_and_one_pass(tmp_path, clips, count, drawn,
                                              stops):
  ours = new(tmp_path, clips)
  ours.add(1, count, [('a', 'cut')])
  assert (ours.excess(drawn) is not None) == stops


def test_excess_names_the_limit_and_the_first_twenty(tmp_path):
  ours = new(tmp_path, max_fraction=0.0)
  assert ours.excess(10) is None
  ours.add(1, 25, [(f'{i:02d}.wav', 'cut') for i in range(25)])
  lines = ours.excess(40).splitlines()
  assert lines[0] == ('data.max_bad_fraction: want at most 0.00% of all clips '
                      'damaged, got 25 of 65 tried')
  assert lines[1] == '  00.wav: cut'
  assert lines[20] == '  19.wav: cut'
  assert lines[21] == f'  and 5 more: {tmp_path}/skipped.tsv'
