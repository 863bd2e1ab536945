"""Scores the clips of tests/test_evaluate.py in a process of a job of several.

  python -m tests.scoring_child WORKDIR --coordinator=HOST:PORT --processes=N
      --process=I

Each process writes what it found to WORKDIR/I.json.
"""

import argparse
import json
import pathlib
import sys
from unittest import mock


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('workdir', type=pathlib.Path)
  parser.add_argument('--coordinator')
  parser.add_argument('--processes', type=int)
  parser.add_argument('--process', type=int)
  options = parser.parse_args()
  from tests import child
  child.import_without_torch('tensorboardX')
  from sslam_jax import processes
  processes.join(options.coordinator, options.processes, options.process)
  from sslam_jax import classify
  from tests import test_evaluate
  with mock.patch.object(classify.Classify, 'logits',
                         test_evaluate.known_logits):
    found = test_evaluate.found(devices=options.processes)
  (options.workdir / f'{options.process}.json').write_text(json.dumps(found))


if __name__ == '__main__':
  sys.exit(main())
