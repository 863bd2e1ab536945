"""Weights out: every value comes back, and every program computes the same."""

import copy
import csv
import dataclasses
import json
import os
import pathlib
import re
import resource
import shutil
import sys
import types

import jax
import numpy as np
import onnxruntime
import pytest
import safetensors
import torch
from safetensors import numpy as safetensors_numpy

from sslam_jax import audio
from sslam_jax import classify
from sslam_jax import evaluate
from sslam_jax import model
from sslam_jax import objectives
from sslam_jax import run_folder
from sslam_jax import sources
from sslam_jax import torch_io
from sslam_jax.exported import sslam_torch
from tests import exports
from tests import tiny
from tools import export_torch
from tools import import_torch
from tools.exporting import fairseq
from tools.exporting import model_card
from tools.exporting import trained as trained_lib

TOLERANCE = 2e-5  # absolute, of tokens, logits and scores
CLASSES = exports.CLASSES
IMAGE = 'modality_encoders.IMAGE.'
POSITIONS = f'{IMAGE}fixed_positional_encoder.positions'
NAMES = {'fairseq': 'x.pt', 'huggingface': 'x', 'onnx': 'x.onnx',
         'state_dict': 'x.safetensors'}
# Fixtures.
stage1, classifier = exports.stage1, exports.classifier
_GOLDEN = pathlib.Path(__file__).parent / 'testdata' / 'golden'


@pytest.fixture(scope='module')
def exported(stage1, classifier, tmp_path_factory):
  """Path of each run, kind and format; written when first asked for."""
  folder, runs, paths = tmp_path_factory.mktemp('out'), {
      'student': stage1, 'teacher': stage1, 'classifier': classifier}, {}

  def write(run, kind):
    if (run, kind) not in paths:
      out = paths[run, kind] = folder / run / NAMES[kind]
      weights = 'teacher' if run == 'teacher' else 'student'
      assert export_torch.main([
          runs[run][0].workdir, f'--format={kind}', f'--out={out}',
          f'--weights={weights}']) == 0
    return paths[run, kind]

  return write


@pytest.fixture(scope='module')
def loaded(stage1):
  return trained_lib.load(stage1[0].workdir, 'student')


def wanted(run, stage1, classifier):
  """The parameters that count."""
  return {'student': stage1[1].params,
          'teacher': {'encoder': stage1[1].teacher},
          'classifier': classifier[1].teacher}[run]


def assert_equal(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, jax.device_get(theirs))


def read_pt(path):
  return torch.load(path, weights_only=True)


def arrays(tensors):
  return {name: tensor.numpy() for name, tensor in tensors.items()
          if name != '_ema'}


def test_fairseq_has_student_decoder_and_teacher(exported, stage1):
  tree = read_pt(exported('student', 'fairseq'))
  _, state = stage1
  assert {*state.params} == {'encoder', 'decoder'}
  assert_equal(torch_io.from_torch(arrays(tree['model'])), state.params)
  teacher = arrays(tree['model']['_ema'])
  assert_equal(torch_io.from_torch(teacher)['encoder'], state.teacher)
  table = model.positions((768, 8), 32)[None]
  np.testing.assert_array_equal(teacher[POSITIONS], table)
  np.testing.assert_array_equal(tree['model'][POSITIONS].numpy(), table)
  assert tree['optimizer_history'][-1]['num_updates'] == 7
  assert 'train_iterator' in tree['extra_state']
  assert tree['args'] is tree['last_optimizer_state'] is None


def test_fairseq_settings_are_this_run_s(exported, stage1):
  tree = read_pt(exported('student', 'fairseq'))
  cfg = json.loads(json.dumps(tree['cfg']))  # plain values alone
  network, image = cfg['model'], cfg['model']['modalities']['image']
  assert (cfg['task']['_name'], network['_name']) == (
      'mae_image_pretraining', 'data2vec_multi')
  assert (network['embed_dim'], network['depth'], network['num_heads']) == (
      32, 2, 2)
  assert image['embed_dim'] == image['decoder']['decoder_dim'] == 32
  assert image['decoder']['decoder_groups'] == 4
  assert image['decoder']['decoder_layers'] == 1
  assert image['target_length'] == cfg['task']['target_length'] == 128
  assert (image['mask_prob'], image['mask_length']) == (0.75, 2)
  assert (network['ema_decay'], network['clone_batch']) == (0.9, 2)
  assert network['cls_loss'] == 1.0
  # The official fine-tuning sets both, and fairseq knows no new names.
  assert {'criterion', 'lr_scheduler'} < {*cfg}
  assert '${' not in json.dumps(cfg)


def test_fairseq_of_a_classifier(exported, classifier):
  path = exported('classifier', 'fairseq')
  tree, (_, state) = read_pt(path), classifier
  assert '_ema' not in tree['model']
  assert_equal(torch_io.from_torch(arrays(tree['model'])), state.teacher)
  cfg = tree['cfg']
  assert cfg['model']['num_classes'] == 3
  assert cfg['model']['prediction_mode'] == 'MEAN_POOLING'
  assert cfg['model']['use_fc_norm'] and cfg['model']['esc50_eval']
  before = cfg['model']['pretrained_model_args']
  assert before['model']['embed_dim'] == 32
  assert before['model']['modalities']['image']['prenet_depth'] == 0
  # The official task opens its classes' names where it is built.
  labels = pathlib.Path(cfg['task']['data'], cfg['task']['label_descriptors'])
  assert labels == path.with_name('x.labels.csv')
  rows = [*csv.reader(labels.open(encoding='utf-8'))]
  assert [row[2] for row in rows] == [*CLASSES]
  lines = labels.read_text(encoding='utf-8').splitlines()
  assert [line.split(',')[0] for line in lines] == ['0', '1', '2']
  assert len({line.split(',')[1] for line in lines}) == 3
  assert tree['sslam_jax']['id2label'] == dict(zip('012', CLASSES))


_ESC50, _SPEECH = 'esc50_eval', 'spcv2_eval'


@pytest.mark.parametrize(('loss', 'norm', 'task', 'network'), [
    (('bce', 'clips'), audio.NORMALISATION['speech_commands'], _SPEECH,
     _SPEECH),
    (('ce', 'clips'), audio.NORMALISATION['esc50'], _ESC50, _ESC50),
    (('ce', 'positives'), audio.NORMALISATION['audioset'], None, _ESC50),
    (('ce', 'positives'), audio.NORMALISATION['speech_commands'], _SPEECH,
     _ESC50),
    (('ce', 'positives'), (-9.48, 4.55), _ESC50, _ESC50),
    (('bce', 'positives'), audio.NORMALISATION['audioset'], None, None),
    (('bce', 'elements'), audio.NORMALISATION['esc50'], None, None),
])
def test_fairseq_flags_choose_the_run_s_normalisation_and_loss(
    loss, norm, task, network, tmp_path
):
  trained = in_memory('classifier', *VITS[0])
  mel, objective = trained.config.data.mel, trained.config.objective
  objective.loss_kind, objective.bce_divisor = loss
  mel.mean, mel.std = norm
  cfg = fairseq.state(trained, tmp_path / 'x.pt')['cfg']
  for flag in (_ESC50, _SPEECH):
    assert cfg['task'][flag] is (flag == task)
    assert cfg['model'][flag] is (flag == network)
  theirs = audio.NORMALISATION[
      {_ESC50: 'esc50', _SPEECH: 'speech_commands', None: 'audioset'}[task]]
  notes = [*fairseq.notes(trained)]
  assert bool(notes) == (theirs != norm)
  for note in notes:
    assert f'mean {theirs[0]} and deviation {theirs[1]}' in note
    assert f'this run by {norm[0]} and {norm[1]}' in note
    assert note.endswith(f', where it asks for {task}') == bool(task)


def test_what_the_official_code_computes_else_is_one_line(
    loaded, classifier, tmp_path, capsys
):
  assert not [*fairseq.notes(loaded)]  # AudioSet's normalisation
  other = copy.deepcopy(loaded)
  other.config.data.mel.mean = -5.0
  (note,) = fairseq.notes(other)
  assert 'mean -4.268 and deviation 4.569, this run by -5.0 and 4.569' in note
  assert export_torch.main([classifier[0].workdir, '--format=fairseq',
                            f'--out={tmp_path}/x.pt']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(':')[0].split()[0] for line in lines] == [
      'wrote', 'wrote', 'note', 'next']
  assert lines[2] == (
      'note: the official code normalises log-mels by mean -6.627 and '
      'deviation 5.359, this run by -6.5 and 5.25: set norm_mean and norm_std '
      'to these in its data/raw_audio_dataset.py, where it asks for esc50_eval')


@pytest.mark.parametrize('run', ['student', 'teacher', 'classifier'])
def test_state_dict_has_every_value(run, exported, stage1, classifier):
  path = exported(run, 'state_dict')
  tensors = safetensors_numpy.load_file(path)
  assert_equal(torch_io.from_torch(tensors), wanted(run, stage1, classifier))
  with safetensors.safe_open(path, framework='numpy') as file:
    metadata = file.metadata()
  config = json.loads(
      (exported(run, 'huggingface') / 'config.json').read_text())
  assert metadata['format'] == 'pt'
  assert json.loads(metadata['config']) == config


@pytest.mark.parametrize('run', ['student', 'teacher', 'classifier'])
def test_huggingface_has_every_value(run, exported, stage1, classifier):
  folder = exported(run, 'huggingface')
  tensors = safetensors_numpy.load_file(folder / 'model.safetensors')
  assert all(name.startswith('model.') for name in tensors)
  modes = {path.stat().st_mode for path in folder.iterdir()}
  assert len(modes) == 1  # the weights are for whom the rest is
  assert 'model.blocks.1.attn.qkv.weight' in tensors
  assert tensors['model.fixed_positional_encoder.positions'].shape == (
      1, 6144, 32)
  params = wanted(run, stage1, classifier)
  parts = {name: params[name] for name in params if name != 'decoder'}
  official = torch_io.from_huggingface(tensors)
  assert_equal(torch_io.from_torch(official), parts)


@pytest.mark.parametrize(('run', 'kind'), [
    ('student', 'fairseq'), ('teacher', 'state_dict'),
    ('classifier', 'huggingface'),
])
def test_import_makes_the_same_run_again(
    run, kind, exported, stage1, classifier, tmp_path
):
  """From which the same file is exported again."""
  path, again = exported(run, kind), tmp_path / 'run'
  assert import_torch.main([str(path), f'--out={again}']) == 0
  config, (before, state) = run_folder.read_config(again), {
      'classifier': classifier}.get(run, stage1)
  assert config.data.mel == before.data.mel
  assert config.data.views.names == before.data.views.names
  for name in ('width', 'depth', 'heads', 'mlp_ratio', 'patch'):
    assert getattr(config.objective.vit, name) == getattr(
        before.objective.vit, name)
  trained = trained_lib.load(str(again), 'student')
  params = wanted(run, stage1, classifier)
  if kind == 'huggingface':
    params = {name: params[name] for name in params if name != 'decoder'}
  assert_equal(trained.params, params)
  if (run, kind) == ('student', 'fairseq'):
    assert_equal(trained.teacher, {'encoder': state.teacher})
    assert trained.run.step == 7
  if run == 'classifier':
    assert config.objective.head == before.objective.head
    assert config.objective.loss_kind == before.objective.loss_kind
  assert trained.is_imported
  assert 'unknown here: the weights are imported' in model_card.text(trained)


VITS = [
    (model.Vit(width=32, depth=2, heads=2), model.Decoder(depth=1, groups=4)),
    (model.Vit(width=48, depth=3, heads=4, mlp_ratio=2),
     model.Decoder(depth=2, groups=8, kernel=5)),
]


def in_memory(run, vit, decoder):
  """What `trained_lib.load` would read of such a run."""
  config = {'classifier': tiny.classify}.get(run, tiny.stage1)('')
  config.objective.vit = vit
  if run == 'classifier':
    config.data.views.classes = CLASSES
    config.objective.bce_divisor = 'clips'
  else:
    config.objective.decoder = decoder
  state = jax.device_get(exports.drawn(exports.official_size(config)))
  params, teacher = state.params, None
  if run != 'classifier':
    teacher = {'encoder': state.teacher}
    params = teacher if run == 'teacher' else params
  kept = {name: params[name] for name in params if name != 'decoder'}
  return trained_lib.Trained(
      run=trained_lib.pretrained.Model(path='', step=7, config=config,
                                       params=kept),
      weights='teacher' if run == 'teacher' else 'student',
      params=params, teacher=teacher, is_imported=False)


@pytest.mark.parametrize(('run', 'kind'), [
    ('student', 'fairseq'), ('classifier', 'fairseq'),
    *((run, kind) for run in ('student', 'teacher', 'classifier')
      for kind in ('state_dict', 'huggingface')),
])
@pytest.mark.parametrize(('vit', 'decoder'), VITS)
def test_every_format_gives_back_every_value_and_size(
    vit, decoder, run, kind, tmp_path
):
  trained = in_memory(run, vit, decoder)
  export_torch._WRITERS[kind](trained, tmp_path / NAMES[kind])
  found = import_torch.convert(import_torch._parser().parse_args(
      [str(tmp_path / NAMES[kind]), '--out=x']))
  params = trained.run.params if kind == 'huggingface' else trained.params
  assert_equal(found.params, params)
  assert not found.guesses
  assert found.config.data.mel == trained.config.data.mel
  ours, theirs = found.config.objective, trained.config.objective
  assert ours.vit == vit
  if run == 'classifier':
    assert ours.bce_divisor == 'clips' and ours.head == theirs.head
    assert found.config.data.views.names == CLASSES
  elif 'decoder' in params:
    assert ours.decoder == decoder
  if (run, kind) == ('student', 'fairseq'):
    assert_equal({'encoder': found.teacher}, trained.teacher)


def test_settings_name_the_classes_and_the_front_end(exported):
  folder = exported('classifier', 'huggingface')
  config = json.loads((folder / 'config.json').read_text())
  assert config['id2label'] == dict(zip('012', CLASSES))
  assert config['label2id'] == {name: i for i, name in enumerate(CLASSES)}
  assert config['problem_type'] == 'single_label_classification'
  assert (config['pooling'], config['head_norm']) == ('mean', True)
  assert (config['mel_mean'], config['mel_std']) == (-6.5, 5.25)
  assert (config['num_attention_heads'], config['max_frames']) == (2, 128)
  prepare = json.loads((folder / 'preprocessor_config.json').read_text())
  assert (prepare['sampling_rate'], prepare['max_frames']) == (16_000, 128)
  encoder = json.loads(
      (exported('student', 'huggingface') / 'config.json').read_text())
  assert encoder['architectures'] == ['SslamModel']
  assert 'id2label' not in encoder and 'problem_type' not in encoder


def test_the_folder_computes_what_jax_does(exported, classifier):
  config, state = classifier
  module = sslam_torch.load(exported('classifier', 'huggingface'))
  wave_BxS, samples_B = exports.waves(2, 20_480)
  with torch.no_grad():
    tokens = module(*map(torch.from_numpy, (wave_BxS, samples_B)))
    logits = module.logits(tokens)
  columns = (tokens.shape[1] - 1) // 8
  expected = exports.ours(config, state.teacher, wave_BxS, samples_B, columns)
  for found, want in zip((tokens, logits), expected):
    np.testing.assert_allclose(found, want, rtol=0, atol=TOLERANCE)


def test_transformers_read_the_folder(exported, classifier, monkeypatch):
  transformers = pytest.importorskip('transformers')
  config, state = classifier
  folder = str(exported('classifier', 'huggingface'))
  wave_BxS, _ = exports.waves(2, 20_480)  # as long as in training: not padded
  scores = transformers.pipeline(
      'audio-classification', model=folder, trust_remote_code=True,
  )([*wave_BxS], batch_size=2, top_k=3)
  _, logit_BxC = exports.ours(config, state.teacher, wave_BxS,
                      np.array([20_480] * 2), 8)
  for row, score_C in zip(scores, jax.nn.softmax(logit_BxC)):
    found = {part['label']: part['score'] for part in row}
    assert [found[name] for name in CLASSES] == pytest.approx(
        score_C.tolist(), abs=TOLERANCE)


def test_the_card_tells_data_recipe_and_scores(stage1, classifier, exported):
  card = (exported('student', 'huggingface') / 'README.md').read_text()
  assert card.startswith('---\nlibrary_name: transformers\npipeline_tag: '
                         'feature-extraction\n')
  assert '- source: Soundscapes\n- clips: 12\n' in card
  assert '- started from: the run before\n' in card
  assert '- updates: 7 of 6\n' in card and '- clips per update: 8\n' in card
  assert 'SSLAM stage 1' in card and '0.001, cosine to 0, 2 updates' in card
  assert '(x - -4.268) / (2 * 4.569)' in card
  assert 'None: the run folder has no evaluation' in card
  assert 'secret' not in card and stage1[0].workdir not in card
  assert 'AutoModel.from_pretrained' in card and 'Apache-2.0' in card
  assert 'weights of the teacher' in (
      exported('teacher', 'huggingface') / 'README.md').read_text()


def test_scores_of_both_evaluations_are_in_the_card(classifier, tmp_path):
  trained = trained_lib.load(classifier[0].workdir, 'student')
  (tmp_path / 'evaluation').mkdir()
  figures = {'value': 0.5, 'low': 0.25, 'high': 0.75}
  none = {'value': None, 'low': None, 'high': None}
  scores = {'data': 'csv=/home/me/test.csv,label=x', 'step': 7, 'overall': {
      'map': figures, 'auc': none, 'top1': {**figures, 'low': None}}}
  (tmp_path / 'evaluation' / 'scores.json').write_text(json.dumps(scores))
  lines = [{'step': 3, 'loss': 2.0}, {'step': 3, 'test_map': 0.25},
           {'step': 6, 'test_map': 0.625}, {'step': 9, 'test_map': 0.75}]
  (tmp_path / 'metrics.jsonl').write_text(
      ''.join(json.dumps(line) + '\n' for line in lines))
  config = copy.copy(trained.config)
  config.evals = (evaluate.Test(source=config.data.source),)
  run = dataclasses.replace(trained.run, path=str(tmp_path), config=config)
  card = model_card.text(dataclasses.replace(trained, run=run))
  assert '| test_map | 0.625 | held out in training, step 6 |\n| mAP |' in card
  assert '| mAP | 0.500 (0.250 to 0.750) | csv=test.csv,label=x, step 7 |' in (
      card)
  assert '| top-1 accuracy | 0.500 |' in card and 'AUC' not in card
  assert "pipeline('audio-classification'" in card
  assert 'fine-tuning, ce, pooling mean; these weights are a moving' in card


def test_a_card_has_names_of_folders_and_not_where_they_are(loaded, tmp_path):
  config = tiny.stage1(tmp_path)
  config.data.source = sources.Folder(paths=('/home/me/a', '/home/me/b'))
  run = dataclasses.replace(loaded.run, config=config)
  card = model_card.text(dataclasses.replace(loaded, run=run))
  assert '- source: Folder\n- paths: a, b\n' in card
  assert '/home' not in card


@pytest.fixture(scope='module')
def session(exported):
  return onnxruntime.InferenceSession(
      str(exported('classifier', 'onnx')), providers=['CPUExecutionProvider'])


@pytest.mark.parametrize(('batch', 'samples'), [
    (1, 16_000), (3, 48_123), (1, 399),
])
def test_onnx_computes_what_jax_does(batch, samples, session, classifier):
  config, state = classifier
  wave_BxS, samples_B = exports.waves(batch, samples)
  tokens, logits, scores = session.run(
      ['tokens', 'logits', 'scores'],
      {'waveform': wave_BxS, 'samples': samples_B})
  columns = (tokens.shape[1] - 1) // 8
  token_BxNxD, logit_BxC = exports.ours(
      config, state.teacher, wave_BxS, samples_B, columns)
  np.testing.assert_allclose(tokens, token_BxNxD, rtol=0, atol=TOLERANCE)
  np.testing.assert_allclose(logits, logit_BxC, rtol=0, atol=TOLERANCE)
  np.testing.assert_allclose(scores, jax.nn.softmax(logit_BxC), rtol=0,
                             atol=TOLERANCE)


def test_onnx_says_what_it_is_of(session):
  metadata = session.get_modelmeta().custom_metadata_map
  assert json.loads(metadata['sampling_rate']) == 16_000
  assert json.loads(metadata['classes']) == [*CLASSES]
  assert json.loads(metadata['config'])['mel_mean'] == -6.5
  assert [(x.name, x.type) for x in session.get_inputs()] == [
      ('waveform', 'tensor(float)'), ('samples', 'tensor(int64)')]
  assert [x.shape for x in session.get_inputs()] == [
      ['batch', 'samples'], ['batch']]


def test_onnx_that_disagrees_is_not_left(
    exported, classifier, tmp_path, capsys, monkeypatch
):
  written, encode = exported('classifier', 'onnx'), sslam_torch.Sslam.encode
  program = types.SimpleNamespace(
      model=types.SimpleNamespace(metadata_props={}),
      save=lambda path: shutil.copyfile(written, path))
  monkeypatch.setattr(torch.onnx, 'export', lambda *_, **__: program)
  monkeypatch.setattr(sslam_torch.Sslam, 'encode',
                      lambda self, mel: encode(self, mel) + 1e-4)
  words = [classifier[0].workdir, '--format=onnx', f'--out={tmp_path}/x.onnx']
  assert export_torch.main(words) == 2
  error = capsys.readouterr().err
  assert re.search('want outputs within 2e-05 of PyTorch, got (1.0|9.9)e-0[45]',
                   error)
  assert not [*tmp_path.iterdir()]
  monkeypatch.setattr(sslam_torch.Sslam, 'encode', encode)
  assert export_torch.main(words) == 0


def names(name):
  return {name: tuple(shape) for name, shape in json.loads(
      (_GOLDEN / f'names_{name}.json').read_text())}


def zeros(objective, classes=0):
  shapes = jax.eval_shape(lambda: objective.init(
      jax.random.key(0), (1024, 128), classes))
  return jax.tree.map(lambda x: np.zeros(x.shape, np.bool_), shapes)


def test_names_and_shapes_are_those_that_strict_loading_wants():
  objective = objectives.MaskedLatent()  # base
  params = zeros(objective)
  student, teacher = (
      {name: x.shape for name, x in trained_lib.official(part, 128).items()}
      for part in (params, {'encoder': params['encoder']}))
  assert student == names('pretrain_student')
  assert teacher == {name: shape for name, shape in student.items()
                     if f'{IMAGE}decoder' not in name}
  head = zeros(classify.Classify(), 50)
  fine_tuned = trained_lib.official(head, 128)
  assert {name: x.shape for name, x in fine_tuned.items()} == {
      **{f'model.{name}': shape for name, shape in teacher.items()},
      'fc_norm.weight': (768,), 'fc_norm.bias': (768,),
      'head.weight': (50, 768), 'head.bias': (50,)}


@pytest.mark.parametrize(('run', 'words', 'match'), [
    ('stage1', ['--format=fairseq', '--out={tmp}/x.bin'],
     '--out: want a name that ends in .pt for --format fairseq, got '),
    ('stage1', ['--format=state_dict', '--out={tmp}/old.safetensors'],
     '--out: want a new file, got {tmp}/old.safetensors, which exists'),
    ('stage1', ['--format=huggingface', '--out={tmp}'],
     '--out: want a new or empty folder, got {tmp}, which exists'),
    ('stage1', ['--format=fairseq', '--out={tmp}/x.pt', '--weights=teacher'],
     '--weights: want student for --format fairseq'),
    ('classifier', ['--format=huggingface', '--out={tmp}/x',
                    '--weights=teacher'],
     'weights: want student, as the run'),
    ('classifier', ['--format=fairseq', '--out={tmp}/old.pt'],
     '--out: want a new file, got {tmp}/old.labels.csv, which exists'),
    ('gone', ['--format=onnx', '--out={tmp}/x.onnx'],
     'gone: want a run folder, got nothing'),
])
def test_wrong_usage_is_one_line_and_writes_nothing(
    run, words, match, request, tmp_path, capsys
):
  (tmp_path / 'old.safetensors').write_text('stays')
  (tmp_path / 'old.labels.csv').write_text('stays')
  path = (str(tmp_path / 'gone') if run == 'gone'
          else request.getfixturevalue(run)[0].workdir)
  words = [word.format(tmp=tmp_path) for word in words]
  assert export_torch.main([path, *words]) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and error.count('\n') == 1
  assert match.format(tmp=tmp_path) in error
  assert {x.name for x in tmp_path.iterdir()} == {
      'old.safetensors', 'old.labels.csv'}
  assert (tmp_path / 'old.safetensors').read_text() == 'stays'


@pytest.fixture
def full_disk():
  """Calls it and no file may be of more bytes; returns what ends that."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)

  def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

  yield limit
  resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize('kind', ['fairseq', 'huggingface', 'state_dict'])
def test_a_failed_write_leaves_nothing_and_can_be_repeated(
    kind, classifier, tmp_path, capsys, monkeypatch, full_disk
):
  out = tmp_path / NAMES[kind]
  words = [classifier[0].workdir, f'--format={kind}', f'--out={out}']
  full_disk(100_000)
  assert export_torch.main(words) == 2
  full_disk(resource.RLIM_INFINITY)
  error = capsys.readouterr().err
  assert 'File too large' in error and error.count('\n') == 1
  assert not [*tmp_path.iterdir()]
  replace = os.replace

  def fail(source, path):
    if path == out:  # the last of them: labels are there by now
      raise OSError('no more inodes')
    replace(source, path)

  monkeypatch.setattr(os, 'replace', fail)
  assert export_torch.main(words) == 2
  assert capsys.readouterr().err == 'error: no more inodes\n'
  assert not [*tmp_path.iterdir()]
  monkeypatch.undo()
  assert export_torch.main(words) == 0


def test_an_unknown_format_is_refused(capsys):
  with pytest.raises(SystemExit, match='2'):
    export_torch.main(['run', '--format=tf', '--out=x'])
  assert "invalid choice: 'tf'" in capsys.readouterr().err


@pytest.mark.parametrize(('kind', 'suffix', 'library'), [
    ('fairseq', '.pt', 'torch'), ('huggingface', '', 'safetensors'),
    ('state_dict', '.safetensors', 'safetensors'),
    ('onnx', '.onnx', 'onnxruntime'),
])
def test_a_missing_library_is_named(
    kind, suffix, library, stage1, tmp_path, capsys, monkeypatch
):
  for name in (library, f'{library}.numpy'):
    monkeypatch.setitem(sys.modules, name, None)
  words = [stage1[0].workdir, f'--format={kind}', f'--out={tmp_path}/x{suffix}']
  assert export_torch.main(words) == 2
  assert f'error: {library}: want it installed: pip install -r ' in (
      capsys.readouterr().err)
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(('change', 'match'), [
    ({'patch': 8}, 'patch: want 16 for --format fairseq'),
    ({'mel_bins': 64}, 'mel_bins: want 128 for'),
    ({'rate_hz': 8000}, 'rate_hz: want 16000 for'),
])
def test_what_official_classes_cannot_express_is_refused(
    change, match, loaded, tmp_path
):
  config = tiny.stage1(tmp_path)
  config.data.mel.mel_bins = 128
  for name, value in change.items():
    owner = config.objective.vit if name == 'patch' else config.data.mel
    setattr(owner, name, value)
  run = trained_lib.pretrained.Model(
      path='here', step=1, config=config, params=loaded.run.params)
  other = dataclasses.replace(loaded, run=run)
  with pytest.raises(ValueError, match=match):
    fairseq.check(other)


def test_an_encoder_alone_is_no_fairseq_model(stage1, tmp_path):
  """Such as an imported Hugging Face model."""
  config, state = stage1
  alone = tiny.stage1(tmp_path / 'run')
  alone.data.mel.mel_bins = 128
  tiny.save(alone, state.replace(
      params={'encoder': state.params['encoder']}, teacher={}), 3)
  with pytest.raises(ValueError, match='want a run with decoder and teacher'):
    export_torch.export(alone.workdir, 'fairseq', tmp_path / 'x.pt')
  out = tmp_path / 'x.safetensors'
  export_torch.export(alone.workdir, 'state_dict', out)
  assert_equal(torch_io.from_torch(safetensors_numpy.load_file(out)),
               {'encoder': state.params['encoder']})
