"""Every shipped configuration: built, shrunk and trained; every field read."""

import dataclasses
import importlib
import itertools
import pathlib
import re

import numpy as np
import pytest

from sslam_jax import audio
from sslam_jax import augment
from sslam_jax import config as config_lib
from sslam_jax import evaluate
from sslam_jax import masking
from sslam_jax import mixing
from sslam_jax import model
from sslam_jax import report
from sslam_jax import run_folder
from sslam_jax import sampling
from sslam_jax import soundscapes
from sslam_jax import sources
from sslam_jax import tfds_source
from sslam_jax import train
from configs import stage2
from configs.sweeps import clones
from tools.benchmarks import projection

_ROOT = pathlib.Path(__file__).parent.parent
_ARMS = ['', 'mb_ua', 'mb_pma', 'mb_ua_pma']
STAGE1 = [f'{_ROOT}/configs/stage1.py:{a}' for a in
          ('', 'demo', 'small', 'large', 'folder=x', 'csv=x', 'soundscapes',
           'demo,probe=a,probe_folder=x,probe_test_folder=y,probe=b,probe_csv=z')]
STAGE2 = [f'{_ROOT}/configs/stage2.py:{a}' for a in
          ('demo', 'small', 'large', *_ARMS, 'demo,mb_ua')]


_TASKS = ['as20k', 'as2m', 'esc50,fold=3', 'speech_commands_v1',
          'speech_commands_v2', 'spass_market', 'spass_waterfront', 'urbansed',
          'idmt_desed_fl', 'demo', 'folder=x,test_folder=y',
          'csv=x,multi_label', 'folder=x,folds=4,fold=2', 'as20k,large,ema']
FINETUNE = [f'{_ROOT}/configs/finetune.py:{a}' for a in _TASKS]
SWEEPS = sorted(path.stem for path in (_ROOT / 'configs/sweeps').glob('*.py')
                if path.stem != '__init__')
STUDY = [f'{_ROOT}/configs/study/{a}' for a in
         ('stage1.py', 'stage1.py:soundscapes', 'stage1.py:quick', 'arms.py',
          'arms.py:soundscapes,quick', 'finetune.py:task=polyphonic',
          'finetune.py:task=animals', 'finetune.py:task=digits,quick',
          'finetune.py:task=polyphonic,soundscapes')]
LINEAR = [f'{_ROOT}/configs/linear.py:{a}' for a in _TASKS]


def shrunk_task(spec, workdir):
  """The same of a configuration with labels."""
  config = config_lib.load(spec)
  config.workdir, config.init_from = str(workdir), None
  config.objective.vit = model.Vit(width=16, depth=2, heads=2)
  most = 1 if config.objective.is_single else 4
  config.data.source = soundscapes.Soundscapes(
      clips=4, length_s=1.5, max_events=most
  )
  config.data.mel = audio.LogMel(frames=64, mel_bins=32)
  config.data.workers = 0
  config.steps, config.batch, config.devices = 2, 2, 1
  config.optim.warmup_steps = min(config.optim.warmup_steps, 1)
  config.pictures_every = 1
  config.evals = (evaluate.Test(source=config.data.source, batch=3),)
  return config_lib.checked(config)


def shrunk(spec, workdir):
  """The configuration with its structure, at the smallest size."""
  config = config_lib.load(spec)
  config.workdir, config.init_from = str(workdir), None
  kernel = config.objective.decoder.kernel
  config.objective.vit = model.Vit(width=16, depth=2, heads=2)
  config.objective.decoder = model.Decoder(depth=1, groups=2, kernel=kernel)
  config.data.source = soundscapes.Soundscapes(clips=4, length_s=1.5)
  config.data.mel = audio.LogMel(frames=64, mel_bins=32)
  config.data.views.mask = masking.InverseBlock(hide=0.5, block=1)
  config.data.views.clones, config.data.workers = 1, 0
  if config.data.views.mix is not None:
    config.data.views.mix = mixing.PartialMix(group=2, clean_share=0.25)
  config.steps, config.batch, config.devices = 2, 2, 1
  config.optim.warmup_steps = 1
  config.pictures_every, config.guard.after_steps = 1, 0
  return config_lib.checked(config)


@pytest.mark.parametrize('spec', STAGE1 + STAGE2 + FINETUNE + LINEAR + STUDY)
def test_shipped_configuration_is_valid_and_survives_json(spec):
  config = config_lib.checked(config_lib.load(spec))
  assert config_lib.from_json(config_lib.to_json(config)) == config


# The other arms differ in the loss alone: tests/test_objectives.py.
@pytest.mark.parametrize('spec', [STAGE1[3], STAGE2[3]])
def test_shipped_configuration_trains(spec, tmp_path):
  config = shrunk(spec, tmp_path)
  train.run(config)
  metrics = report.read_metrics(str(tmp_path))
  assert [line['step'] for line in metrics] == [1, 2]
  pictures = {p.name for p in (tmp_path / 'pictures').iterdir()}
  assert pictures == {'step_0000001.png', 'step_0000002.png', 'losses.png'}


def at(config, point):
  """The configuration at a point of a sweep."""
  for name, value in point.items():
    *parents, field = name.split('.')
    owner = config
    for parent in parents:
      owner = getattr(owner, parent)
    assert hasattr(owner, field), name
    setattr(owner, field, value)
  return config_lib.checked(config)


def points_of(sweep, arg=''):
  """The configurations of a sweep, by name."""
  module = importlib.import_module(f'configs.sweeps.{sweep}')
  points = [*module.sweep(arg)]
  configs = {point.pop('name'): at(module.get_config(arg), point)
             for point in points}
  assert len(configs) == len(points)
  return configs


@pytest.mark.parametrize('arg', ['', 'demo'])
@pytest.mark.parametrize('sweep', SWEEPS)
def test_every_point_of_a_sweep_is_a_configuration_of_its_own(sweep, arg):
  configs = points_of(sweep, arg)
  assert len(configs) >= 2
  for name, config in configs.items():
    assert re.fullmatch(r'[a-z0-9_.-]+', name)  # of a folder
    assert config_lib.from_json(config_lib.to_json(config)) == config
    assert config.batch % config.data.views.group == 0
  for one, other in itertools.combinations(configs.values(), 2):
    assert config_lib.differences(one, other)
  # What is published is one of them.
  assert stage2.get_config(arg) in configs.values()


def test_sweeps_are_those_of_the_issue():
  assert SWEEPS == [
      'clean_share', 'clones', 'columns', 'mixing_domain', 'mixing_length',
      'retention_patches', 'retention_weight', 'sources', 'table2',
      'target_layers',
  ]


def test_arms_of_table_2_are_those_of_the_configuration():
  for name, config in points_of('table2', 'demo').items():
    words = 'demo' if name == 'sslam' else f'demo,{name}'
    arm = stage2.get_config(words)
    arm.workdir = config.workdir
    assert config == arm


@pytest.mark.parametrize(('assignment', 'message'), [
    ('sources=5', r'sources: want 2 to 4 \(group\), got 5'),
    ('snr_db=0,3', "snr_db: want None, or how='wave'; got how='max'"),
    ('how=sum', "how: want one of 'max', 'log_mean', 'power', 'wave'"),
])
def test_wrong_mixtures_are_refused_by_name(assignment, message):
  with pytest.raises(ValueError, match=f'^data.views.mix.{message}'):
    config_lib.override(stage2.get_config('demo'),
                        [f'data.views.mix.{assignment}'])


def test_source_retention_has_to_be_there_to_sweep_its_patches():
  with pytest.raises(ValueError, match="want SSLAM, .* got 'demo,mb_ua_pma'"):
    points_of('retention_patches', 'demo,mb_ua_pma')


def test_runs_of_any_number_of_clones_have_the_same_arithmetic():
  """By the traced programs, which the counts do not see."""
  configs = points_of('clones', 'demo')
  base = stage2.get_config('demo')
  budget = base.steps * projection.clip_flops(base)
  for name in ('clones_1', 'clones_8'):
    config = configs[name]
    flops = projection.clip_flops(config)
    np.testing.assert_allclose(clones.clip_flops(config), flops, rtol=0.005)
    np.testing.assert_allclose(config.steps * flops, budget, rtol=0.01)
    assert config.batch == base.batch
    for part, whole in ((config.optim.warmup_steps, 30),
                        (config.objective.ema.anneal_steps, 400)):
      assert abs(part / config.steps - whole / 200) < 1 / config.steps
  assert configs['clones_2'] == base
  # Method.md, section 11: about 1.2 TFLOP per clip and update.
  assert round(clones.clip_flops(stage2.get_config()) / 1e12, 2) == 1.23


def test_arithmetic_of_arms_and_sources_is_that_of_the_traced_program():
  pma = stage2.get_config('demo,mb_pma')
  three = stage2.get_config('demo')
  three.data.views.mix.sources = 3
  for config in (pma, three):
    np.testing.assert_allclose(clones.clip_flops(config),
                               projection.clip_flops(config), rtol=0.005)


@pytest.mark.parametrize('changes', [
    # The step of these is compiled already, for the shipped configuration.
    {'how': 'log_mean'},
    {'how': 'power'},
    {'how': 'wave', 'snr_db': (-5.0, 5.0), 'sources': 3, 'group': 3,
     'clean_share': 0.0},
])
def test_other_mixtures_train(changes, tmp_path):
  config = shrunk(STAGE2[3], tmp_path)
  mix = config.data.views.mix = dataclasses.replace(
      config.data.views.mix, **changes
  )
  config.batch = mix.group
  train.run(config)
  metrics = report.read_metrics(str(tmp_path))
  assert [line['step'] for line in metrics] == [1, 2]
  assert all(np.isfinite([*line.values()]).all() for line in metrics)
  assert all(line['retention'] > 0 for line in metrics)
  assert (tmp_path / 'pictures/step_0000002.png').exists()


@pytest.mark.parametrize('spec', [FINETUNE[4], LINEAR[2]])
def test_shipped_task_trains_and_is_scored(spec, tmp_path):
  config = shrunk_task(spec, tmp_path)
  train.run(config)
  *steps, test = report.read_metrics(str(tmp_path))
  assert [line['step'] for line in steps] == [1, 2]
  assert test.keys() == {'step', 'test_map', 'test_auc', 'test_top1'}
  assert run_folder.read_config(tmp_path).data.views.classes == (
      config.data.source.classes)
  pictures = {p.name for p in (tmp_path / 'pictures').iterdir()}
  assert 'step_0000001.png' in pictures


# Of method.md, section 9: frames, batch, steps, warm-up, learning rate, mixup,
# SpecAugment, loss.
PUBLISHED = {
    'as20k': (1024, 48, 40_000, 4_000, 5e-5, 0.8, 0.2, 'bce', 'positives'),
    'as2m': (1024, 96, 300_000, 30_000, 5e-5, 0.8, 0.2, 'bce', 'positives'),
    'esc50': (512, 48, 4_000, 400, 5e-5, None, 0.4, 'ce', None),
    'speech_commands_v2': (128, 256, 40_000, 4_000, 2e-4, 0.8, 0.2, 'bce',
                           'clips'),
    # 50 epochs of 3,750 clips
    'spass_park': (1024, 48, 3_906, 390, 5e-5, 0.8, 0.2, 'bce', 'positives'),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_recipes_of_fine_tuning(name):
  config = config_lib.load(f'{_ROOT}/configs/finetune.py:{name}')
  frames, batch, steps, warmup, lr, mixup, spec, loss, divisor = PUBLISHED[name]
  views, optim, objective = config.data.views, config.optim, config.objective
  assert (config.data.mel.frames, config.batch, config.steps) == (
      frames, batch, steps)
  assert (optim.warmup_steps, optim.peak_lr, optim.min_lr) == (warmup, lr, 1e-6)
  assert (optim.layer_decay, optim.layer_decay_scope) == (0.65, 'blocks')
  assert optim.clip_norm is None
  assert (views.mixup and views.mixup.alpha) == mixup
  assert views.spec.share == spec
  assert views.wave == augment.RollGain(roll=True, gain=True)
  assert (views.noise is not None) == (name == 'speech_commands_v2')
  assert objective.loss_kind == loss
  assert divisor in (None, objective.bce_divisor)
  assert (objective.smoothing, objective.drop_path) == (
      0.1 if name == 'esc50' else 0.0, 0.1)
  assert not objective.freeze_encoder
  norm = {'esc50': 'esc50', 'speech_commands_v2': 'speech_commands'}
  assert (config.data.mel.mean, config.data.mel.std) == (
      audio.NORMALISATION[norm.get(name, 'audioset')])


def test_linear_evaluation_is_fine_tuning_with_a_frozen_encoder():
  fine = config_lib.load(f'{_ROOT}/configs/finetune.py:as20k')
  linear = config_lib.load(f'{_ROOT}/configs/linear.py:as20k')
  changes = {name: new for name, (_, new)
             in config_lib.differences(fine, linear).items()}
  assert changes == {
      'workdir': 'runs/linear-as20k', 'objective.freeze_encoder': True,
      'objective.drop_path': 0.0, 'optim.peak_lr': 1e-3,
      'optim.warmup_steps': 0, 'optim.layer_decay': None,
  }


def test_esc50_is_tested_on_one_fold_and_trained_on_the_others():
  config = config_lib.load(f'{_ROOT}/configs/finetune.py:esc50,fold=2,data=D')
  assert [part.split for part in config.data.source.parts] == [
      'fold1', 'fold3', 'fold4', 'fold5']
  test, = config.evals
  assert (test.source.path, test.source.split) == ('D/esc50', 'fold2')


@pytest.mark.parametrize(('argument', 'message'), [
    ('as20k,esc50', 'want one data set'),
    ('folder=x', 'test data: want test_folder=DIR'),
    ('folder=x,test_folder=y,folds=3', 'folds: want it without test data'),
    ('folder=x,folds=3,fold=4', 'fold: want 1 to 3'),
    ('esc50,run=nowhere', 'run=nowhere: want a run folder, or run=none'),
    ('as20k,folder=x', 'folder: want it with data of your own, got as20k too'),
    ('as20k,multi_label', 'multi_label: want it with data of your own'),
    ('as20k,fold=3', 'fold: want it with esc50, or with folds=K'),
    ('folder=x,test_folder=y,data=z', 'data: want it with the name of'),
    ('demo,small', 'small: want it without demo and run=RUN'),
    ('as30k', "'as30k': want perhaps as20k; .*finetune.py has all words"),
])
def test_wrong_words_are_refused(argument, message):
  with pytest.raises(ValueError, match=message):
    config_lib.load(f'{_ROOT}/configs/finetune.py:{argument}')


def test_words_name_the_probes_of_both_stages(tmp_path):
  for part in ('train', 'test'):
    (tmp_path / part).mkdir()
  words = (f'folder=x,probe=calls,probe_folder={tmp_path},probe_every=7,'
           f'probe_groups=g.csv:s,demo,probe=scenes,probe_csv=z.csv,'
           f'probe_label=c,probe_seconds=5,probe=other,probe_folder=x,'
           f'probe_test_csv=y,probe=parts,probe_tfds=x,probe_folds=4,'
           f'probe_fold=2')
  folder = sources.Folder
  csv = {'path': 'z.csv', 'label_column': 'c'}
  tfds = tfds_source.Tfds(name='x')
  expected = (
      evaluate.Probe(
          name='calls', train=folder(paths=(f'{tmp_path}/train',)), every=7,
          test=folder(paths=(f'{tmp_path}/test',)), groups='g.csv:s'),
      evaluate.Probe(
          name='scenes', train=sources.Csv(**csv, split='train'),
          test=sources.Csv(**csv, split='test'), length_s=5.0),
      evaluate.Probe(name='other', train=folder(paths=('x',)),
                     test=sources.Csv(path='y')),
      evaluate.Probe(name='parts', **{
          name: sampling.Fold(source=tfds, folds=4, fold=2, held_out=is_test)
          for name, is_test in (('train', False), ('test', True))}),
  )
  for stage in ('stage1', 'stage2'):
    config, plain = (config_lib.load(f'{_ROOT}/configs/{stage}.py:{arg}')
                     for arg in (words, 'demo,folder=x'))
    assert config.evals == expected
    plain.evals = expected
    assert config == plain


@pytest.mark.parametrize(('words', 'message'), [
    ('probe_folder=x,probe=a', 'probe_folder: want probe=NAME before it'),
    ('probe=a', 'probe=a: data source: want folder=..., .*; got none'),
    ('probe=a,probe_folder=x', 'probe=a: test data: want test_folder=DIR'),
    ('probe=a,probe_csv=x,probe_every=z', "probe=a: every: want a number, got"),
    ('probe=a,probe_csv=x,probe_seconds=z', "probe=a: seconds: want a number"),
    ('probe=a b,probe_csv=x', "probe=a b: name: want letters"),
    ('probe=a,probe_lable=x', "'probe_lable=x': want perhaps probe_label=..."),
    ('probe=a,probe_csv=x,probe=a,probe_csv=y', 'evals: want a name of its'),
])
def test_wrong_words_of_a_probe_are_refused(words, message):
  with pytest.raises(ValueError, match=message):
    config_lib.checked(config_lib.load(f'{_ROOT}/configs/stage2.py:{words}'))


def test_each_pre_training_run_has_a_run_folder_of_its_own(tmp_path):
  run_folder.write_config(tmp_path, shrunk(STAGE1[0], tmp_path))
  folders = {
      config_lib.load(f'{_ROOT}/configs/finetune.py:esc50{words}').workdir
      for words in ('', ',fold=2', ',run=none', f',run={tmp_path}')
  }
  assert len(folders) == 4


def test_encoder_and_front_end_are_those_of_the_run(tmp_path):
  before = shrunk(STAGE1[0], tmp_path)
  run_folder.write_config(tmp_path, before)
  own = config_lib.load(f'{_ROOT}/configs/finetune.py:folder=x,test_folder=y,'
                        f'run={tmp_path}')
  assert own.objective.vit == before.objective.vit
  assert own.data.mel == before.data.mel
  task = config_lib.load(f'{_ROOT}/configs/finetune.py:esc50,run={tmp_path}')
  assert task.data.mel.mel_bins == before.data.mel.mel_bins
  assert task.data.mel.frames == 512


def test_published_numbers():
  """Method.md, sections 5, 6 and 8."""
  one = config_lib.load(STAGE1[0])
  two = config_lib.load(f'{_ROOT}/configs/stage2.py')
  assert (one.batch, one.steps, one.data.views.clones) == (48, 400_000, 16)
  assert (one.optim.peak_lr, one.optim.warmup_steps) == (5e-4, 53_333)
  assert (two.batch, two.steps, two.data.views.clones) == (48, 200_000, 8)
  assert (two.optim.peak_lr, two.optim.warmup_steps) == (5e-5, 25_000)
  for config in (one, two):
    assert config.objective.global_weight == 192
    assert config.optim.clip_norm == 4
    assert config.objective.vit == model.base()
    grid = config.objective.vit.grid(1024, 128)
    assert config.data.views.mask.kept(grid) == 102
  assert one.objective.global_layers is None
  assert two.objective.global_layers == 1
  assert two.objective.srl_patches == 'mixed'
  assert two.data.views.mix.group == 12
  assert two.init_from == one.workdir
  assert two.data.views.mix.clean(64) == 15


@pytest.mark.parametrize(('words', 'clips', 'length_s'), [
    ('demo', 4096, 4.0), ('demo,soundscapes', 4096, 4.0),
    ('demo,soundscapes=100', 100, 4.0), ('soundscapes=100', 100, 10.0),
])
def test_scenes_are_short_in_a_demo(words, clips, length_s):
  config = config_lib.load(f'{_ROOT}/configs/stage1.py:{words}')
  want = soundscapes.Soundscapes(clips=clips, length_s=length_s)
  assert config.data.source == want


def test_stage2_of_every_size_starts_where_its_stage1_ends():
  for size in ('demo', 'small', 'large'):
    one = config_lib.load(f'{_ROOT}/configs/stage1.py:{size}')
    two = config_lib.load(f'{_ROOT}/configs/stage2.py:{size}')
    assert two.init_from == one.workdir
    assert two.objective.vit == one.objective.vit
    assert two.objective.decoder == one.objective.decoder


def reads_of(config, function):
  """Dotted names of the fields that `function` reads."""
  seen = set()

  def watch(owner, path):
    names = {f.name for f in dataclasses.fields(owner)}
    cls = type(owner)

    class Watched(cls):
      def __getattribute__(self, name):
        if name in names:
          seen.add(f'{path}{name}')
        return super().__getattribute__(name)

    for name in names:
      value = getattr(owner, name)
      if dataclasses.is_dataclass(value):
        watch(value, f'{path}{name}.')
    owner.__class__ = Watched

  all_fields = {name for name, _ in config_lib.fields(config)}
  watch(config, '')
  function()
  return seen, all_fields


def test_every_field_is_read_by_a_run(tmp_path, monkeypatch):
  """A field that nothing reads would be a setting without effect."""
  config = shrunk(f'{_ROOT}/configs/stage2.py', tmp_path)
  config.init_from = None
  # Writing the configuration reads all of it: that does not count.
  monkeypatch.setattr(config_lib, 'to_json', lambda _: '{}')
  seen, all_fields = reads_of(config, lambda: train.run(config))
  assert not all_fields - seen
