"""Four virtual CPU devices, no silent rank promotion, compiled code shared.

Environment variables, so that the processes tests start have the same; those
that run the tests (pytest-xdist) have them from the one that started them.
"""

import copy
import os
import tempfile

import pytest

from tests import child  # imports nothing of JAX

if 'PYTEST_XDIST_WORKER' not in os.environ:
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = ' '.join((
      os.environ.get('XLA_FLAGS', ''), child.XLA_FLAGS,
      '--xla_force_host_platform_device_count=4',
  ))
  os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'
  # Several tests train the same tiny run: compile it once.
  _CACHE = tempfile.TemporaryDirectory(prefix='sslam_jax_tests_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE.name
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.5'


# The files that take longest begin first, or one process would wait for them in
# the end: those of several processes spend minutes waiting.
_LONG = ('test_processes', 'test_resumption', 'test_train', 'test_parity',
         'test_configs', 'test_benchmark', 'test_torch_step', 'test_classify')


def pytest_collection_modifyitems(items):
  def rank(item):
    name = item.path.stem
    return _LONG.index(name) if name in _LONG else len(_LONG)

  items.sort(key=rank)  # stable


# What a step does not depend on. (Arrays of another shape are compiled anew.)
_APART = ('workdir', 'data', 'init_from', 'keep', 'guard', 'log_every',
          'pictures_every', 'evals', 'patience_s')


@pytest.fixture(scope='module')
def shared_steps():
  """Runs of a file share what is traced and compiled, where they are alike."""
  from sslam_jax import data
  from sslam_jax import train
  steps, views = {}, {}
  compile_step, compile_views = train.compile_step, data.compile_views

  def step(config, mesh):
    fields = {k: v for k, v in vars(config).items() if k not in _APART}
    key = repr(fields), mesh
    if key not in steps:
      steps[key] = compile_step(copy.deepcopy(config), mesh)
    return steps[key]

  def views_of(config, patch, mesh):
    key = repr((config.views, config.mel)), patch, mesh
    if key not in views:
      views[key] = compile_views(copy.deepcopy(config), patch, mesh)
    return views[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, 'compile_step', step)
    patch.setattr(data, 'compile_views', views_of)
    yield


def pytest_addoption(parser):
  parser.addoption('--kills', type=int, default=3,
                   help='how often tests/test_resumption.py kills its run')


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
  """pytest-xdist cannot pass on what is no UTF-8, such as names of files."""
  del item, call
  report = yield
  report.sections = [
      (title, text.encode(errors='backslashreplace').decode())
      for title, text in report.sections
  ]
  return report
