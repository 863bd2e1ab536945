"""The command line as a user types it, right and wrong."""

import pathlib
import subprocess
import sys

import pytest

from sslam_jax import main
from sslam_jax import sources

_ROOT = pathlib.Path(__file__).parent.parent
_STAGE1 = f'{_ROOT}/configs/stage1.py'
_STAGE2 = f'{_ROOT}/configs/stage2.py'


def parse(*args):
  return main.parse(list(args))


def test_fields_are_overridden():
  config = parse(
      f'--config={_STAGE2}:demo', '--workdir=here', '--config.seed=7',
      '--config.optim.peak_lr=1e-4',
      '--config.data.views.mix.shared_columns=False',
      '--config.objective.srl_patches=all', '--config.pictures_every=None',
  )
  assert (config.workdir, config.seed) == ('here', 7)
  assert config.optim.peak_lr == 1e-4
  assert config.data.views.mix.shared_columns is False
  assert config.objective.srl_patches == 'all'
  assert config.pictures_every is None


def test_own_folders_take_one_argument():
  config = parse(f'--config={_STAGE1}:demo,folder=a b,folder=c')
  assert config.data.source == sources.Folder(paths=('a b', 'c'))


@pytest.mark.parametrize(('args', 'message'), [
    ([f'--config={_STAGE1}:dmeo'], "'dmeo': want perhaps demo; the docstring"),
    ([f'--config={_STAGE2}:mb_ua,mb_pma'], 'want one arm'),
    ([f'--config={_STAGE1}:folder=a,manifest=b,shares=2'],
     'shares: want 2, one per part'),
    (['--config=none.py'], 'none.py'),
    ([f'--config={_STAGE1}', '--config.optm.peak_lr=1'],
     "no field 'optm'; choices: workdir, objective"),
    ([f'--config={_STAGE1}', '--config.optim.peak=1'],
     "no field 'peak'; choices: peak_lr"),
    ([f'--config={_STAGE1}', '--config.steps=many'],
     "steps: want int, got 'many'"),
    ([f'--config={_STAGE1}', '--config.objective.vit.dtype=float16'],
     "objective.vit.dtype: want one of 'float32', 'bfloat16'"),
    ([f'--config={_STAGE1}', '--config.objective.vit.heads=7'],
     'objective.vit.heads: want a divisor of width 768, got 7'),
    ([f'--config={_STAGE1}', '--config.data.mel.frames=8'],
     'patch: want a divisor of 128 mel bins and at most 8 frames'),
    ([f'--config={_STAGE1}', '--config.optim.warmup_steps=500000'],
     'optim.warmup_steps: want fewer than steps 400000'),
    ([f'--config={_STAGE2}', '--config.data.views.mix=None'],
     'data.views.mix: want how to mix'),
])  # fmt: skip
def test_wrong_command_is_refused_with_the_choices(args, message):
  with pytest.raises(ValueError) as error:
    parse(*args)
  assert message in str(error.value)


@pytest.mark.parametrize('flag', ['--confg=x', '--config.seed', 'extra',
                                  '--process=0'])
def test_unknown_flag_is_refused(flag, capsys):
  with pytest.raises((SystemExit, ValueError)):
    parse(f'--config={_STAGE1}', flag)


def test_error_is_one_line_and_status_2(tmp_path):
  """The documented command, in a process of its own."""
  result = subprocess.run(
      [sys.executable, '-m', 'sslam_jax.main',
       f'--config=configs/stage1.py:demo,folder={tmp_path}',
       f'--workdir={tmp_path}/run'],
      cwd=_ROOT, capture_output=True, text=True, check=False,
  )
  assert result.returncode == 2
  assert result.stderr.startswith(f'error: {tmp_path}')
  assert result.stderr.count('\n') == 1
  assert not (tmp_path / 'run').exists()
