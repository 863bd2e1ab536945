"""tools/import_torch.py: checkpoints become run folders, exactly."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import soundfile
import torch

from sslam_jax import audio
from sslam_jax import checkpoint
from sslam_jax import classify
from sslam_jax import config as config_lib
from sslam_jax import infer
from sslam_jax import model
from sslam_jax import objectives
from sslam_jax import pretrained
from sslam_jax import run_folder
from sslam_jax import state as state_lib
from sslam_jax import torch_io
from sslam_jax import train
from tests import official
from tests import tiny
from tools import import_torch
from tools import parity
from tools.golden import weights

_GOLDEN = pathlib.Path(__file__).parent / 'testdata' / 'golden'
_CFG = {
    'model': {'_name': 'data2vec_multi', 'num_heads': 2, 'depth': 2,
              'embed_dim': 32, 'modalities': {'image': {'patch_size': 16}}},
    'task': {'target_length': 128},
}
_FINE_TUNED = {
    'model': {'_name': 'mae_image_classification', 'num_classes': 3,
              'prediction_mode': 'MEAN_POOLING', 'target_length': 128,
              'esc50_eval': True, 'pretrained_model_args': _CFG},
    'task': {'target_length': 128, 'esc50_eval': True},
}
# As tools/export_torch.py writes it.
_OURS = {
    'model_type': 'sslam', 'hidden_size': 32, 'num_hidden_layers': 2,
    'num_attention_heads': 2, 'mlp_ratio': 4, 'patch_size': 16,
    'num_mel_bins': 32, 'sampling_rate': 8000, 'mel_mean': -5.5,
    'mel_std': 3.25, 'max_frames': 96, 'pooling': 'linear_softmax',
    'head_norm': True, 'problem_type': 'single_label_classification',
    'id2label': {'0': 'a, b', '2': 'c', '1': 'ü'},
}


def drawn(objective, classes=0, seed=0):
  """Parameters of which no two have the same values."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(lambda: objective.init(
      jax.random.key(0), (tiny.FRAMES, tiny.MEL_BINS), classes))
  return jax.tree.map(
      lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)


@pytest.fixture(scope='module')
def stage1():
  """Student and teacher."""
  objective = tiny.stage1('').objective
  return drawn(objective), drawn(objective, seed=1)['encoder']


@pytest.fixture(scope='module')
def fine_tuned():
  return drawn(tiny.classify('').objective, classes=3)


def pretraining(stage1, path, **others):
  params, teacher = stage1
  with official.libraries() as new:
    tree = official.fairseq(
        official.tensors_of(params), official.tensors_of({'encoder': teacher}),
        official.omegaconf(new, _CFG), **others)
    return official.save(tree, path)


def huggingface(params, folder, **changes):
  tensors = torch_io.to_huggingface(official.tensors_of(params))
  safetensors_numpy.save_file(tensors, folder / 'model.safetensors')
  (folder / 'config.json').write_text(json.dumps(_OURS | changes))
  return folder


def run(*args):
  return import_torch.main([str(arg) for arg in args])


def started(config, params):
  """The state that a run starts with, which would be these parameters."""
  fresh = state_lib.TrainState(
      step=jnp.int32(0), params=params, rng=jax.random.key(0),
      teacher=config.objective.teacher(params), opt_state=())
  return train._start_from(config.init_from, fresh, config.objective)


def loaded(out, params, item='params'):
  """What a run folder holds, in the form of `params`."""
  load = {'params': checkpoint.load_params, 'teacher': checkpoint.load_teacher}
  return load[item](str(out), like=params)


def assert_equal(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope='module')
def imported(stage1, tmp_path_factory):
  folder = tmp_path_factory.mktemp('imported')
  assert run(pretraining(stage1, folder / 'x.pt'), '--out', folder / 'run') == 0
  return folder / 'run'


def test_a_pre_training_checkpoint_is_student_teacher_and_decoder(
    imported, stage1
):
  params, teacher = stage1
  assert_equal(loaded(imported, params), params)
  assert_equal(loaded(imported, teacher, 'teacher'), teacher)
  assert checkpoint.latest_step(str(imported)) == 402_620
  config = run_folder.read_config(imported)
  assert config.objective == objectives.MaskedLatent(
      vit=model.Vit(width=32, depth=2, heads=2),
      decoder=model.Decoder(depth=1, groups=4),
  )
  assert config.data.mel == audio.LogMel(frames=128, mel_bins=32)
  assert config.workdir == str(imported)
  assert sorted(x.name for x in imported.parent.iterdir()) == ['run', 'x.pt']


def test_stage_2_goes_on_from_it(imported, stage1):
  config = tiny.stage2('', init_from=str(imported))
  state = started(config, drawn(config.objective, seed=2))
  assert_equal(state.params, stage1[0])
  assert_equal(state.teacher, stage1[1])


def test_fine_tuning_takes_its_encoder(imported, stage1):
  config = config_lib.load(f'configs/finetune.py:soundscapes,run={imported}')
  assert config.objective.vit == model.Vit(width=32, depth=2, heads=2)
  assert config.data.mel == audio.LogMel(frames=128, mel_bins=32)
  state = started(config, drawn(config.objective, classes=5, seed=2))
  assert_equal(state.params['encoder'], stage1[0]['encoder'])


def test_training_does_not_go_on_in_it(imported):
  config = run_folder.read_config(imported)
  config.data.source = tiny.stage1('').data.source
  with pytest.raises(ValueError, match='got imported weights: they are for '
                     f'--config.init_from={imported}'):
    train.run(config)


def test_either_encoder_extracts_features(imported, stage1):
  for which, encoder in (('student', stage1[0]['encoder']),
                         ('teacher', stage1[1])):
    learned = pretrained.load(str(imported), weights=which)
    assert_equal(learned.params, {'encoder': encoder})


def test_it_tells_what_it_found_and_what_comes_next(stage1, tmp_path, capsys):
  out = tmp_path / 'run'
  run(pretraining(stage1, tmp_path / 'x.pt'), '--out', out)
  told = capsys.readouterr().out
  assert 'fairseq checkpoint, pre-training: encoder, decoder, teacher' in told
  assert 'tensors: 64, all used, ' in told
  assert 'updates: 402620' in told
  assert 'width 32, depth 2, heads 2, patch 16' in told
  assert 'taken instead' not in told
  stage2 = next(line for line in told.splitlines() if 'stage2.py' in line)
  changes = [word.removeprefix('--config.') for word in stage2.split()[4:]]
  config = config_lib.override(config_lib.load('configs/stage2.py'), changes)
  assert config.init_from == str(out)
  assert config.objective.vit == model.Vit(width=32, depth=2, heads=2)
  assert config.objective.decoder == model.Decoder(depth=1, groups=4)
  assert config.data.mel == audio.LogMel(frames=128, mel_bins=32)


def test_a_classifier_of_fairseq_tags(fine_tuned, tmp_path, capsys):
  tree = official.fairseq(official.tensors_of(fine_tuned), None, _FINE_TUNED)
  path, out = official.save(tree, tmp_path / 'x.pt'), tmp_path / 'run'
  (tmp_path / 'names.txt').write_text('cat\n\nbig dog\n bird \n')
  assert run(path, '--out', out, '--classes', tmp_path / 'names.txt') == 0
  learned = pretrained.load(str(out))
  assert_equal(learned.params, fine_tuned)
  assert learned.classes == ('cat', 'big dog', 'bird')
  mean, std = audio.NORMALISATION['esc50']
  assert learned.config.data.mel == audio.LogMel(
      frames=128, mel_bins=32, mean=mean, std=std)
  assert learned.classifier == classify.Classify(
      vit=model.Vit(width=32, depth=2, heads=2), loss_kind='ce',
      head=model.Head(pooling='mean', norm=True))
  noise = np.random.default_rng(0).standard_normal(16_000)
  soundfile.write(tmp_path / 'x.wav', 0.1 * noise, 16_000)
  capsys.readouterr()
  assert infer.main(['tag', str(tmp_path / 'x.wav'), '--run', str(out)]) == 0
  assert 'big dog' in capsys.readouterr().out


def test_our_own_hugging_face_folder_says_all(fine_tuned, tmp_path):
  folder = tmp_path / 'folder'
  folder.mkdir()
  huggingface(fine_tuned, folder)
  assert run(folder, '--out', tmp_path / 'run') == 0
  learned = pretrained.load(str(tmp_path / 'run'))
  assert_equal(learned.params, fine_tuned)
  assert learned.classes == ('a, b', 'ü', 'c')
  assert learned.classifier.is_single
  assert learned.classifier.head == model.Head(pooling='linear_softmax')
  assert learned.config.data.mel == audio.LogMel(
      rate_hz=8000, mel_bins=32, frames=96, mean=-5.5, std=3.25)


def test_so_does_the_metadata_of_safetensors(fine_tuned, tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors_numpy.save_file(official.tensors_of(fine_tuned), path, metadata={
      'config': json.dumps(_OURS | {'problem_type': None})})
  assert run(path, '--out', tmp_path / 'run', '--loss', 'ce') == 0
  learned = pretrained.load(str(tmp_path / 'run'))
  assert learned.classes == ('a, b', 'ü', 'c')
  assert learned.classifier.is_single


def test_an_encoder_alone_is_none_for_stage_2(stage1, tmp_path, capsys):
  folder, out = tmp_path / 'folder', tmp_path / 'run'
  folder.mkdir()
  huggingface({'encoder': stage1[0]['encoder']}, folder, max_frames=128)
  assert run(folder, '--out', out) == 0
  told = capsys.readouterr().out
  assert 'stage2.py' not in told
  assert f'finetune.py:esc50,run={out}' in told
  assert_equal(pretrained.load(str(out)).params,
               {'encoder': stage1[0]['encoder']})
  config = tiny.stage2('', init_from=str(out))
  with pytest.raises(ValueError, match='init_from: .*want decoder, encoder, '
                     'got encoder alone'):
    started(config, stage1[0])
  with pytest.raises(ValueError, match='want student and teacher, got encoder'):
    pretrained.load(str(out), weights='teacher')


def test_what_is_not_there_is_told(stage1, tmp_path, capsys):
  tensors = torch_io.to_torch(stage1[0])
  path = official.save({k: torch.as_tensor(x) for k, x in tensors.items()},
                       tmp_path / 'x.pt')
  out = tmp_path / 'run'
  assert run(path, '--out', out) == 2
  assert 'x.pt: heads: want their number' in capsys.readouterr().err
  assert run(path, '--out', out, '--heads', 4, '--frames', 640,
             '--mel_mean', -3, '--mel_std', 2) == 0
  told = capsys.readouterr().out
  assert told.count('taken instead') == 1
  assert 'taken instead: 128 mel bins' in told
  config = run_folder.read_config(out)
  assert config.objective.vit.heads == 4
  assert config.data.mel == audio.LogMel(frames=640, mean=-3.0, std=2.0)


_AUDIOSET = ('not in the checkpoint, taken instead: mean -4.268 and deviation '
             '4.569 (--mel_mean, --mel_std)\n')


def test_a_normalisation_that_is_not_in_the_file_is_told(
    stage1, tmp_path, capsys
):
  tree = official.fairseq(official.tensors_of(stage1[0]))  # without cfg
  for name, saved in (('plain', tree['model']), ('no_cfg', tree)):
    path = official.save(saved, tmp_path / f'{name}.pt')
    assert run(path, '--out', tmp_path / name, '--heads', 2) == 0
    told = capsys.readouterr().out
    assert _AUDIOSET in told
    assert told.count('taken instead') == 2  # and the length of the clips


def test_so_is_a_loss(fine_tuned, tmp_path, capsys):
  path = official.save(official.fairseq(official.tensors_of(fine_tuned)),
                       tmp_path / 'x.pt')
  assert run(path, '--out', tmp_path / 'run', '--heads', 2) == 0
  told = capsys.readouterr().out
  assert _AUDIOSET in told
  assert 'taken instead: loss bce (--loss)\n' in told
  assert 'taken instead: pooling class\n' in told
  assert '\nclasses: 3 (class 0, class 1, class 2), pooling ' in told


@pytest.mark.parametrize(('text', 'names'), [
    ('index,mid,display_name\n0,/m/1,"Speech, male"\n1,/m/2,Dog\n2,/m/3,C\n',
     ('Speech, male', 'Dog', 'C')),
    ('0,a\n1,b\n2,c\n', ('a', 'b', 'c')),
])
def test_classes_of_a_table(tmp_path, text, names):
  (tmp_path / 'x.csv').write_text(text)
  assert import_torch._read_labels(tmp_path / 'x.csv') == names


def broken(kind, stage1, fine_tuned, folder):
  """A file with one thing wrong."""
  tensors = official.tensors_of(stage1[0])
  teacher = official.tensors_of({'encoder': stage1[1]})
  cfg, path = _CFG, folder / 'x.pt'
  if kind == 'block':
    del tensors['blocks.1.mlp.fc2.bias']
  elif kind == 'shape':
    tensors['blocks.1.norm1.bias'] = np.zeros(31, np.float32)
  elif kind == 'positions':
    tensors[official.POSITIONS] = official.positions(32)[:, ::-1].copy()
  elif kind == 'teacher':
    teacher = {name: x for name, x in teacher.items() if 'blocks.1' not in name}
  elif kind == 'teacher decoder':
    teacher = tensors
  elif kind == 'depth':
    cfg = {**_CFG, 'model': {**_CFG['model'], 'depth': 3}}
  elif kind == 'heads':
    cfg = {**_CFG, 'model': {**_CFG['model'], 'num_heads': 3}}
  elif kind == 'resnet':
    tensors, teacher = {'layer1.0.conv1.weight': np.zeros(3, np.float32)}, None
  elif kind == 'head':
    tensors, teacher = official.tensors_of(fine_tuned), None
    del tensors['head.bias']
  official.save(official.fairseq(tensors, teacher, cfg), path)
  if kind == 'cut':
    path.write_bytes(path.read_bytes()[:-5000])
  return path


@pytest.mark.parametrize(('kind', 'message'), [
    ('block', "unknown names [], missing names ['blocks.1.mlp.fc2.bias']"),
    ('shape', "misshapen ['blocks.1.norm1.bias: want [32], got [31]']"),
    ('positions', 'positions: want the fixed sin-cos positions'),
    ('teacher', '_ema: want the 30 tensors of the student\'s encoder, got 18'),
    ('teacher decoder', '_ema: want an encoder, got encoder, decoder'),
    ('depth', 'depth: want 3, as the settings say, got 2 in the tensors'),
    ('heads', 'heads: want a divisor of width 32, got 3'),
    ('resnet', 'want tensors of EAT or SSLAM, such as '),
    ('head', "missing names ['head.bias']"),
    ('cut', 'one that is cut short'),
])
def test_a_broken_file_is_one_error_and_nothing_is_written(
    kind, message, stage1, fine_tuned, tmp_path, capsys
):
  path = broken(kind, stage1, fine_tuned, tmp_path)
  assert run(path, '--out', tmp_path / 'runs' / 'x') == 2
  told = capsys.readouterr()
  assert told.out == ''
  assert told.err.startswith(f'error: {path}: ')
  assert told.err.count('\n') == 1
  assert message in told.err
  assert [x.name for x in tmp_path.iterdir()] == ['x.pt']


@pytest.mark.parametrize(('flags', 'message'), [
    (['--classes', 'two.txt'], 'two.txt: want 3 different classes, got 2'),
    (['--classes', 'same.txt'], 'want 3 different classes, got 3, 2 of them'),
    (['--classes', 'bad.csv'], 'bad.csv: want rows index,label'),
    (['--heads', 3], 'heads: want a divisor of width 32'),
    (['--mel_std', 0], 'std: want a positive number'),
    (['--frames', 8], 'patch: want a divisor of 32 mel bins and at most 8'),
])
def test_options_that_do_not_fit_are_told(
    flags, message, fine_tuned, tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('folder').mkdir()
  folder = huggingface(fine_tuned, pathlib.Path('folder'))
  for name, text in (('two.txt', 'a\nb'), ('same.txt', 'a\nb\na'),
                     ('bad.csv', '1,a\n0,b\n2,c\n')):
    pathlib.Path(name).write_text(text)
  assert run(folder, '--out', 'run', *flags) == 2
  assert message in capsys.readouterr().err
  assert not pathlib.Path('run').exists()


def test_a_folder_that_holds_something_stays(stage1, tmp_path, capsys):
  path = pretraining(stage1, tmp_path / 'x.pt')
  assert run(path, '--out', tmp_path) == 2
  assert '--out: want a new or empty folder' in capsys.readouterr().err
  assert run(path, '--out', path) == 2
  (tmp_path / 'empty').mkdir()
  assert run(path, '--out', tmp_path / 'empty') == 0


def test_classes_are_for_classifiers(stage1, tmp_path, capsys):
  path = pretraining(stage1, tmp_path / 'x.pt')
  assert run(path, '--out', tmp_path / 'run', '--loss', 'ce') == 2
  assert '--loss: want it with a classifier' in capsys.readouterr().err


def test_a_failed_write_leaves_nothing(stage1, tmp_path, monkeypatch, capsys):
  path = pretraining(stage1, tmp_path / 'x.pt')

  def fail(*_):
    raise OSError('disk full')

  monkeypatch.setattr(run_folder, 'write_config', fail)
  assert run(path, '--out', tmp_path / 'run') == 2
  assert 'disk full' in capsys.readouterr().err
  assert [x.name for x in tmp_path.iterdir()] == ['x.pt']


@pytest.fixture(scope='module')
def golden_run(tmp_path_factory):
  """The run of an official layout with the golden weights."""
  folder = tmp_path_factory.mktemp('golden')

  def tensors(seed, file):
    names = json.loads((_GOLDEN / file).read_text())
    rng = np.random.Generator(np.random.PCG64(seed))
    return {
        name: official.positions(768, 8) if name == official.POSITIONS
        else weights._scaled(name, rng.standard_normal(shape))
        for name, shape in sorted(names)
    }

  student = tensors(101, 'names_pretrain_student_depth2.json')
  teacher = tensors(202, 'names_pretrain_teacher_ema_depth2.json')
  with official.libraries() as new:
    cfg = official.omegaconf(new, {'model': {'num_heads': 12}})
    path = official.save(official.fairseq(student, teacher, cfg),
                         folder / 'x.pt')
  assert run(path, '--out', folder / 'run') == 0
  return folder / 'run'


def test_imported_weights_have_the_golden_numbers(
    golden_run, tmp_path, capsys
):
  """Checksums of both networks, a loss and a gradient of stage 2."""
  golden = tmp_path / 'golden'
  shutil.copytree(_GOLDEN, golden)
  terms = golden / 'stage2_loss_terms.npz'
  with np.load(terms) as file:  # tests/test_parity.py compares all of it
    kept = {name: file[name] for name in file.files
            if not name.startswith(('eat_patch_loss', 'mix_patch_loss'))}
  np.savez(terms, **kept)
  args = ['--golden', str(golden), '--only', 'stage2_loss_terms', 'features',
          '--checkpoint', str(golden_run)]
  capsys.readouterr()
  assert parity.main(args) == 0
  told = capsys.readouterr().out
  assert 'weights_checksums 101:names_pretrain_student_depth2.json l2' in told
  assert 'weights_checksums 202:names_pretrain_teacher_ema_depth2.' in told
  assert '\nstage2_loss_terms A/mix_patch_loss/sum' in told
  assert '\nstage2_loss_terms eat_cls_loss/grad_l2 (35 tensors' in told
  assert ('not compared: features *: no --checkpoint has the tensors of '
          'names_pretrain_student.json') in told
