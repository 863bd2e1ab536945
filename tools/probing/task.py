"""What probes are to learn, by the words of a command line."""

import argparse

from sslam_jax import catalogue
from sslam_jax import probing


def read(options: argparse.Namespace) -> probing.Task:
  """The task that --train and --test, or --folds, name.

  Raises:
    ValueError: They contradict, or their labels do.
  """
  given = [x is not None for x in (options.train, options.test, options.folds)]
  is_split = given == [True, True, False]
  if not is_split and given != [False, False, True]:
    raise ValueError('data: want --train and --test, or --folds')
  if is_split:
    words, splits = [options.train, options.test], [([0], 1)]
  else:
    words = options.folds
    count = len(words)
    splits = [([i for i in range(count) if i != k], k) for k in range(count)]
  if len(words) < 2:
    raise ValueError(f'--folds: want at least 2, got {len(words)}')
  return probing.task(
      [catalogue.source(word) for word in words], splits,
      multi_label=options.multi_label, groups=options.groups,
  )
