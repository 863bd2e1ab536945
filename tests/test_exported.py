"""The PyTorch model and its Hugging Face classes against the JAX model."""

import ast
import functools
import json
import os
import pathlib
import shutil
import sys
import tempfile

# Before transformers, which copies code of folders here, is imported.
_MODULES = tempfile.TemporaryDirectory(prefix='sslam_jax_modules_')
os.environ['HF_MODULES_CACHE'] = _MODULES.name
os.environ['HF_HUB_OFFLINE'] = '1'

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from sslam_jax import audio
from sslam_jax import exported
from sslam_jax import model
from sslam_jax import torch_io
from sslam_jax.exported import sslam_torch

TOLERANCE = 2e-5  # absolute, of tokens and logits
MEL_TOLERANCE = 2e-3  # nats, of float32 where two bins cancel
GRADIENT_TOLERANCE = 1e-4  # of the norm
CLASSES = ('cat', 'dog', 'frog', 'hen', 'owl')
VIT = model.Vit(width=32, depth=2, heads=2, dtype='float32')
MEL = audio.LogMel(frames=112, mel_bins=32, mean=-5.0, std=3.0)
POOLINGS = 'class', 'mean', 'linear_softmax'
LENGTHS = np.array([16_080, 9_999, 399])  # the first fits whole frames
VERSION = tuple(map(int, transformers.__version__.split('.')[:2]))
GOLDEN = pathlib.Path(__file__).parent / 'testdata' / 'golden'
CODE = pathlib.Path(*exported.__path__)


def noise(batch, samples, seed=0):
  """Noise around a tone, not centred."""
  rng = np.random.default_rng(seed)
  tone = 0.1 * np.sin(0.05 * np.arange(samples))
  wave_BxS = 0.1 * rng.standard_normal((batch, samples)) + tone + 0.01
  return wave_BxS.astype(np.float32)


@functools.cache
def parameters(head_norm=True):
  """Values of the golden rules' scale."""
  head = model.Classifier(model.Head(norm=head_norm), len(CLASSES))
  encoder = model.Encoder(VIT)
  shapes = jax.eval_shape(
      encoder.init, jax.random.key(0), jnp.zeros((1, 112, 32)))
  tokens = model.Encoded(jnp.zeros((1, 32)), jnp.zeros((1, 14, 32)), None)
  tree = {'encoder': shapes['params'], 'head': jax.eval_shape(
      head.init, jax.random.key(0), tokens)['params']}
  rng = np.random.default_rng(1)

  def drawn(path, leaf):
    x = rng.standard_normal(leaf.shape).astype(np.float32)
    kind = path[-1].key
    if kind == 'kernel':
      return x / np.float32(leaf.shape[-2] ** 0.5)
    return {'scale': 1 + 0.1 * x, 'bias': 0.02 * x, 'clip': 0.5 * x}[kind]

  return jax.tree_util.tree_map_with_path(drawn, tree)


def tensors(head_norm=True, classes=True):
  """By their Hugging Face names."""
  params = parameters(head_norm)
  if not classes:
    params = {'encoder': params['encoder']}
  named = torch_io.to_huggingface(torch_io.to_torch(params))
  named['model.fixed_positional_encoder.positions'] = model.positions(
      (768, 2), 32)[None]
  return {name: torch.tensor(np.array(x)) for name, x in named.items()}


def ported(pooling='class', head_norm=True):
  """The PyTorch model with the same parameters."""
  ours = sslam_torch.Sslam(
      width=32, depth=2, heads=2, mel_bins=32, mean=-5.0, std=3.0,
      classes=len(CLASSES), pooling=pooling, head_norm=head_norm)
  ours.load_state_dict({name.removeprefix('model.'): x
                        for name, x in tensors(head_norm).items()})
  return ours.eval()


@functools.partial(jax.jit, static_argnames='mel')
def _encode(params, wave_BxS, samples_B, mel):
  mel_BxTxF = audio.LogMel(**dict(mel))(wave_BxS, samples_B)
  return model.Encoder(VIT).apply({'params': params}, mel_BxTxF)


def _logits(params, encoded, pooling, head_norm=True):
  head = model.Head(pooling=pooling, norm=head_norm)
  return model.Classifier(head, len(CLASSES)).apply({'params': params}, encoded)


def by_jax(wave_BxS, samples_B, *, pooling='class', head_norm=True, mel=MEL):
  """Tokens and logits; of one shape, so that it compiles once."""
  batch, samples = wave_BxS.shape
  wave_BxS = np.pad(wave_BxS, ((0, 3 - batch), (0, 18_160 - samples)))
  samples_B = np.pad(np.asarray(samples_B, np.int32), (0, 3 - batch))
  params = parameters(head_norm)
  encoded = _encode(params['encoder'], wave_BxS, samples_B,
                    tuple(vars(mel).items()))
  tokens = np.concatenate([encoded.clip_RxD[:, None], encoded.patch_RxKxD], 1)
  logits = _logits(params['head'], encoded, pooling, head_norm)
  return tokens[:batch], np.asarray(logits)[:batch]


def close(ours, wanted, atol=TOLERANCE):
  ours = ours.detach().float().numpy()
  np.testing.assert_allclose(ours, np.asarray(wanted), rtol=0, atol=atol)


@pytest.mark.parametrize(('file', 'allowed'), [
    ('sslam_torch', {'torch'}),
    ('configuration_sslam', {'transformers'}),
    ('feature_extraction_sslam', {'transformers', 'numpy'}),
    ('modeling_sslam', {'transformers', 'torch', 'configuration_sslam',
                        'sslam_torch'}),
])
def test_files_stand_alone(file, allowed):
  tree = ast.parse((CODE / f'{file}.py').read_text('utf-8'))
  names = {alias.name for node in ast.walk(tree)
           if isinstance(node, ast.Import) for alias in node.names}
  names |= {node.module for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)}
  tops = {name.split('.')[0] for name in names} - set(sys.stdlib_module_names)
  assert tops == allowed


def test_names_and_shapes_are_the_published_ones():
  names = dict(json.loads(
      (GOLDEN / 'names_pretrain_student.json').read_text('utf-8')))
  official = {name: np.empty(shape, np.bool) for name, shape in names.items()
              if 'decoder' not in name}
  wanted = {name.removeprefix('model.'): list(x.shape)
            for name, x in torch_io.to_huggingface(official).items()}
  with torch.device('meta'):
    ours = sslam_torch.Sslam()
  assert {name: list(x.shape) for name, x in ours.state_dict().items()} == (
      wanted)


def test_positions_are_ours_also_without_a_file():
  with torch.no_grad():
    table = sslam_torch.Positions(64, 8).positions
  np.testing.assert_allclose(table[0], model.positions((768, 8), 64), rtol=0,
                             atol=1e-4)  # the sine of up to 767, in float32
  assert table.dtype == torch.float32


@pytest.mark.parametrize(('pooling', 'head_norm'), [
    *((pooling, True) for pooling in POOLINGS), ('mean', False),
])
def test_waveforms_become_the_tokens_and_logits_of_jax(pooling, head_norm):
  wave_BxS, ours = noise(3, 16_080), ported(pooling, head_norm)
  tokens, logits = by_jax(wave_BxS, LENGTHS, pooling=pooling,
                          head_norm=head_norm)
  with torch.no_grad():
    found = ours(torch.tensor(wave_BxS), torch.tensor(LENGTHS))
    assert found.shape == (3, 15, 32)
    close(found, tokens)
    close(ours.logits(found), logits)


@pytest.mark.parametrize(('samples', 'frames'), [
    (1, 16), (399, 16), (400, 16), (2_959, 16), (2_960, 32), (16_080, 112),
    (164_080, 1024), (164_240, 1040),
])
def test_frames_fit_the_samples_up_to_whole_patches(samples, frames):
  assert ported().frames(samples) == frames


def test_left_over_frames_are_dropped():
  wave_BxS, lengths = noise(2, 5_000), [5_000, 2_500]
  mel = audio.LogMel(**{**vars(MEL), 'frames': 23})
  tokens, _ = by_jax(wave_BxS, lengths, mel=mel)
  found = ported()(torch.tensor(wave_BxS), torch.tensor(lengths), 23)
  assert found.shape == (2, 3, 32)
  close(found, tokens)


def test_without_lengths_all_is_sound():
  wave = torch.tensor(noise(2, 5_000))
  ours = ported()
  assert torch.equal(ours(wave), ours(wave, torch.tensor([5_000, 5_000])))


@pytest.mark.parametrize(('rate_hz', 'bins'), [
    (16_000, 128), (8_000, 32), (44_100, 64),
])
def test_the_front_end_is_that_of_jax(rate_hz, bins):
  mel = audio.LogMel(rate_hz=rate_hz, mel_bins=bins, frames=64)
  ours = sslam_torch.Sslam(width=4, depth=0, heads=1, rate_hz=rate_hz,
                           mel_bins=bins)
  wave_BxS = noise(2, rate_hz // 2, seed=3)
  lengths = np.array([rate_hz // 2, rate_hz // 3 + 1])
  wanted = jax.jit(lambda *args: mel(*args))(wave_BxS, lengths)
  found = ours.log_mel(torch.tensor(wave_BxS), torch.tensor(lengths), 64)
  assert found.dtype == torch.float32
  close(found, wanted, MEL_TOLERANCE / (2 * mel.std))


@pytest.mark.parametrize('clip', ['fsdd_7_jackson_32', 'silence_click'])
def test_the_front_end_is_the_official_one(clip):
  ours = sslam_torch.Sslam(width=4, depth=0, heads=1)
  with np.load(GOLDEN / 'fbank.npz') as golden:
    wave, wanted = golden[f'{clip}/wave'], golden[f'{clip}/norm']
  found = ours.log_mel(torch.tensor(wave)[None], frames=len(wanted))[0]
  close(found, wanted, 5e-3 / (2 * ours.std))  # the reference's own noise


@pytest.mark.parametrize('junk', [1e3, np.nan, np.inf])
def test_junk_beyond_a_clip_changes_nothing_and_has_no_gradient(junk):
  ours, lengths = ported(), torch.tensor([5_000, 1_200])
  clean = torch.tensor(noise(2, 5_000))
  dirty = clean.clone()
  dirty[1, 1_200:] = junk
  dirty.requires_grad_()
  tokens = ours(dirty, lengths)
  assert torch.equal(tokens, ours(clean, lengths))
  tokens.square().sum().backward()
  assert dirty.grad.isfinite().all() and dirty.grad[1, :1_200].any()
  assert not dirty.grad[1, 1_200:].any()


def test_gradients_are_those_of_jax():
  """Of the waveforms and of every parameter."""
  wave_BxS, lengths = noise(3, 16_000, 5), np.array([16_000, 9_000, 5_000])
  weight_BxC = np.random.default_rng(6).standard_normal((3, len(CLASSES)))
  weight_BxC = weight_BxC.astype(np.float32)

  def loss(params, wave_BxS):
    encoded = _encode(params['encoder'], wave_BxS, lengths,
                      tuple(vars(MEL).items()))
    return jnp.sum(_logits(params['head'], encoded, 'linear_softmax')
                   * weight_BxC)

  params, wave = jax.jit(jax.grad(loss, (0, 1)))(parameters(), wave_BxS)
  ours, ours_wave = ported('linear_softmax'), torch.tensor(wave_BxS)
  ours_wave.requires_grad_()
  logits = ours.logits(ours(ours_wave, torch.tensor(lengths)))
  (logits * torch.tensor(weight_BxC)).sum().backward()
  named = {f'model.{name}': x.grad.numpy()
           for name, x in ours.named_parameters()}
  found = torch_io.from_torch(torch_io.from_huggingface(named))

  def check(path, ours, wanted):
    scale = np.linalg.norm(wanted)
    assert scale > 0, path
    assert np.linalg.norm(ours - wanted) <= GRADIENT_TOLERANCE * scale, path

  jax.tree_util.tree_map_with_path(check, found, params)
  check('wave', ours_wave.grad.numpy(), np.asarray(wave))


def test_linear_softmax_is_finite_where_sigmoids_are_not():
  x = np.stack([np.full((3, 2), 300.0), np.full((3, 2), -300.0),
                np.array([[0.5, -20.0], [30.0, -25.0], [-2.0, -30.0]])])
  x = x.astype(np.float32)
  weight = np.arange(6, dtype=np.float32).reshape(3, 2) + 1

  @jax.jit
  def run(x):
    wanted, back = jax.vjp(model.linear_softmax, x)
    return wanted, back(weight)[0]

  wanted, gradient = run(x)
  ours = torch.tensor(x, requires_grad=True)
  found = sslam_torch.linear_softmax(ours)
  close(found, wanted, 1e-5)
  found.backward(torch.tensor(weight))
  np.testing.assert_allclose(ours.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_leaves_the_front_end_alone(dtype):
  ours, wave = ported(), torch.tensor(noise(2, 5_000))
  with torch.no_grad():
    mel, tokens = ours.log_mel(wave), ours(wave)
    with torch.autocast('cpu', dtype):
      assert torch.equal(ours.log_mel(wave), mel)
      close(ours(wave), tokens.numpy(), 0.15)
    ours.to(dtype)
    assert torch.equal(ours.log_mel(wave), mel)
    assert ours(wave).dtype == ours.logits(tokens).dtype == dtype
    close(ours(wave), tokens.numpy(), 0.15)
    ours.fixed_positional_encoder.float()  # as where nothing was loaded
    close(ours(wave), tokens.numpy(), 0.15)


def test_export_leaves_batch_and_length_free():
  ours = ported()
  batch = torch.export.Dim('batch')
  samples = torch.export.Dim('samples', min=2_960, max=768 * 2_560)
  program = torch.export.export(
      ours, (torch.tensor(noise(2, 5_000)), torch.tensor([5_000, 1_000])),
      dynamic_shapes=({0: batch, 1: samples}, {0: batch}),
  ).module()
  for shape in ((1, 2_960), (3, 9_999)):
    wave = torch.tensor(noise(*shape))
    lengths = torch.tensor([shape[1] - 1_000 * i for i in range(shape[0])])
    close(program(wave, lengths), ours(wave, lengths).detach(), 1e-6)


def test_compiling_leaves_batch_and_length_free():
  ours = sslam_torch.Sslam(width=32, depth=1, heads=2, mel_bins=32)
  compiled = torch.compile(ours, dynamic=True, backend='eager',
                           fullgraph=True)
  with torch.no_grad():
    for shape in ((2, 5_000), (3, 9_999)):
      wave, lengths = torch.tensor(noise(*shape)), torch.arange(shape[0]) + 900
      close(compiled(wave, lengths), ours(wave, lengths), 1e-6)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning',
                            'ignore:.torch.jit')
def test_so_does_tracing():
  ours, lengths = ported(), torch.tensor([5_000, 1_000])
  traced = torch.jit.trace(ours, (torch.tensor(noise(2, 5_000)), lengths))
  for samples in (300, 9_999):  # fewer than one frame has, and more than before
    wave = torch.tensor(noise(2, samples))
    close(traced(wave, lengths.clamp(max=samples)),
          ours(wave, lengths.clamp(max=samples)).detach(), 1e-6)


@pytest.mark.parametrize(('changes', 'message'), [
    ({'width': 30, 'heads': 3}, 'width: want a multiple of 4, got 30'),
    ({'heads': 5}, 'heads: want a divisor of width 768, got 5'),
    ({'mel_bins': 120}, 'patch: want a divisor of 120 mel bins, got 16'),
    ({'rate_hz': 22_050}, 'rate_hz: want a multiple of 100'),
    ({'pooling': 'max'}, 'pooling: want class, mean, linear_softmax, got max'),
])
def test_impossible_sizes_are_refused(changes, message):
  with pytest.raises(ValueError, match=message), torch.device('meta'):
    sslam_torch.Sslam(**changes)


@pytest.mark.parametrize(('args', 'message'), [
    ((torch.zeros(400),), r'wave_BxS: want floats .*, got .* \[400\]'),
    ((torch.zeros(1, 400, dtype=torch.int16),), 'wave_BxS: want .*int16'),
    ((torch.zeros(2, 400), torch.tensor([400])), 'samples_B: want one .*2 cl'),
    ((torch.zeros(1, 400), None, 15), 'frames: want 16 to 12288.*got 15'),
    ((torch.zeros(1, 400), None, 12_304), 'frames: want 16.*got 12304'),
])
def test_impossible_inputs_are_refused(args, message):
  with pytest.raises(ValueError, match=message):
    ported()(*args)


# The folder of an export.


def config(kind, **changes):
  is_multi = kind == 'multi'
  head = {
      'architectures': ['SslamForAudioClassification'],
      'pooling': 'mean',
      'problem_type': f'{"multi" if is_multi else "single"}'
                      f'_label_classification',
      'id2label': {str(i): name for i, name in enumerate(CLASSES)},
      'label2id': {name: i for i, name in enumerate(CLASSES)},
  }
  tree = {
      'model_type': 'sslam', 'architectures': ['SslamModel'],
      'auto_map': {
          'AutoConfig': 'configuration_sslam.SslamConfig',
          'AutoModel': 'modeling_sslam.SslamModel',
          'AutoModelForAudioClassification':
              'modeling_sslam.SslamForAudioClassification',
      },
      'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2,
      'mlp_ratio': 4, 'patch_size': 16, 'num_mel_bins': 32,
      'sampling_rate': 16_000, 'mel_mean': -5.0, 'mel_std': 3.0,
      'max_frames': 112, 'pooling': 'class', 'head_norm': True,
  }
  return {**tree, **(head if kind != 'encoder' else {}), **changes}


def write(folder, kind):
  """A folder as tools/export_torch.py writes it."""
  folder.mkdir()
  for path in CODE.glob('*.py'):
    if path.name != '__init__.py':
      shutil.copy(path, folder)
  named = tensors(classes=kind != 'encoder')
  safetensors.torch.save_file(named, folder / 'model.safetensors',
                              metadata={'format': 'pt'})
  (folder / 'config.json').write_text(json.dumps(config(kind)))
  (folder / 'preprocessor_config.json').write_text(json.dumps({
      'feature_extractor_type': 'SslamFeatureExtractor',
      'auto_map': {'AutoFeatureExtractor':
                   'feature_extraction_sslam.SslamFeatureExtractor'},
      'sampling_rate': 16_000, 'max_frames': 112, 'feature_size': 1,
      'padding_value': 0.0, 'return_attention_mask': True,
  }))
  return folder


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp('exported')
  return {kind: write(root / kind, kind)
          for kind in ('encoder', 'single', 'multi')}


@pytest.fixture(scope='module')
def extractor(folders):
  return transformers.AutoFeatureExtractor.from_pretrained(
      folders['encoder'], trust_remote_code=True)


def loaded(auto, folder, **options):
  """A model by an Auto class, whose file held all of it and no more."""
  found, info = auto.from_pretrained(
      folder, trust_remote_code=True, output_loading_info=True, **options)
  assert not any(info.values()), info
  return found.eval()


def encoder(folder, **options):
  return loaded(transformers.AutoModel, folder, **options)


def classifier(folder, **options):
  return loaded(transformers.AutoModelForAudioClassification, folder,
                **options)


def clips(*samples):
  return [noise(1, n, seed=n)[0] for n in samples]


def padded(waves, samples=18_160):
  return np.stack([np.pad(wave, (0, samples - len(wave))) for wave in waves])


def test_a_folder_loads_with_torch_alone(folders):
  wave = torch.tensor(noise(2, 5_000))
  ours, wanted = sslam_torch.load(folders['single']).eval(), ported('mean')
  for name, x in wanted.state_dict().items():
    assert torch.equal(ours.state_dict()[name], x), name
  assert torch.equal(ours.logits(ours(wave)), wanted.logits(wanted(wave)))
  assert all(x.requires_grad for x in ours.parameters())
  assert not hasattr(sslam_torch.load(str(folders['encoder'])), 'head')


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_other_types_of_a_file_load(folders, tmp_path, dtype):
  named = {name: x.to(dtype) for name, x in tensors().items()}
  shutil.copy(folders['single'] / 'config.json', tmp_path)
  safetensors.torch.save_file(named, tmp_path / 'model.safetensors')
  for name, x in sslam_torch.load(tmp_path).state_dict().items():
    assert torch.equal(x, named[f'model.{name}']) and x.dtype == dtype


def truncate(path):
  path.write_bytes(path.read_bytes()[:-5])


def cut_header(path):
  path.write_bytes(path.read_bytes()[:100])


def lose_a_tensor(path):
  named = tensors()
  del named['model.blocks.1.attn.qkv.bias']
  safetensors.torch.save_file(named, path)


def change_a_type(path):
  named = {**tensors(), 'model.head.bias': torch.zeros(5, dtype=torch.float64)}
  safetensors.torch.save_file(named, path)


def change_a_shape(path):
  safetensors.torch.save_file(
      {**tensors(), 'model.head.bias': torch.zeros(4)}, path)


@pytest.mark.parametrize(('break_it', 'message'), [
    (truncate, 'want a whole safetensors file'),
    (cut_header, 'want a whole safetensors file'),
    (lambda path: path.write_bytes(b'PK' * 50), 'want a whole safetensors'),
    (lambda path: path.write_bytes(b''), 'want a whole safetensors file'),
    (change_a_type, 'want a whole safetensors file of F32, F16, BF16.*F64'),
    (lose_a_tensor, r'want the tensors of config.*blocks\.1\.attn\.qkv\.b'),
    (change_a_shape, r'want the tensors of config.json.*head\.bias'),
])
def test_a_damaged_file_gets_one_clear_error(
    folders, tmp_path, break_it, message):
  shutil.copytree(folders['single'], tmp_path / 'folder')
  break_it(tmp_path / 'folder' / 'model.safetensors')
  with pytest.raises(ValueError, match=f'model.safetensors: {message}'):
    sslam_torch.load(tmp_path / 'folder')


@pytest.mark.parametrize(('text', 'message'), [
    ('{', 'want JSON'), ('{}', 'want head_norm, hidden_size, .*, got none'),
])
def test_a_damaged_configuration_gets_one_clear_error(
    folders, tmp_path, text, message):
  shutil.copytree(folders['single'], tmp_path / 'folder')
  (tmp_path / 'folder' / 'config.json').write_text(text)
  with pytest.raises(ValueError, match=f'config.json: {message}'):
    sslam_torch.load(tmp_path / 'folder')


def test_auto_model_gives_the_tokens_of_jax(folders, extractor):
  waves, ours = clips(16_000, 9_999), encoder(folders['encoder'])
  tokens, _ = by_jax(padded(waves), [16_000, 9_999])
  inputs = extractor(waves, sampling_rate=16_000, return_tensors='pt')
  found = ours(**inputs, output_hidden_states=True)
  close(found.last_hidden_state, tokens)
  close(found.pooler_output, tokens[:, 0])
  assert len(found.hidden_states) == 3
  assert torch.equal(found.hidden_states[2], found.last_hidden_state)
  close(found.hidden_states[0], ours.model.embed(ours.model.log_mel(
      inputs['input_values'], inputs['attention_mask'].sum(1))).detach())
  kept = ours(**inputs, return_dict=False)
  assert isinstance(kept, tuple) and len(kept) == 2
  assert torch.equal(kept[0], found.last_hidden_state)


def kernels(model, wave):
  with torch.profiler.profile(activities=[
      torch.profiler.ProfilerActivity.CPU]) as profile:
    model(wave)
  return {event.key for event in profile.key_averages()
          if 'dot_product' in event.key}


def test_attention_is_fused_or_eager_as_asked(folders):
  wave, fused = torch.tensor(noise(1, 5_000)), encoder(folders['encoder'])
  eager = encoder(folders['encoder'], attn_implementation='eager')
  plain = 'aten::_scaled_dot_product_attention_math'
  with torch.no_grad():
    assert plain not in kernels(fused, wave)
    assert plain in kernels(eager, wave)
    close(eager(wave).last_hidden_state, fused(wave).last_hidden_state, 1e-6)


@pytest.mark.parametrize('kind', ['encoder', 'single'])
def test_attentions_are_not_kept(folders, kind):
  wave = torch.tensor(noise(1, 5_000))
  ours = {'encoder': encoder, 'single': classifier}[kind](folders[kind])
  assert torch.equal(ours(wave, output_attentions=False)[0], ours(wave)[0])
  with pytest.raises(ValueError, match='output_attentions: want False'):
    ours(wave, output_attentions=True)
  ours.config._attn_implementation = 'eager'  # others refuse the next line
  ours.config.output_attentions = True
  with pytest.raises(ValueError, match='output_attentions: want False'):
    ours(wave)


def test_auto_classifier_gives_the_logits_of_jax(folders, extractor):
  waves, ours = clips(16_000, 9_999), classifier(folders['single'])
  _, logits = by_jax(padded(waves), [16_000, 9_999], pooling='mean')
  inputs = extractor(waves, sampling_rate=16_000, return_tensors='pt')
  found = ours(**inputs, labels=torch.tensor([3, 1]))
  close(found.logits, logits)
  log_p = jax.nn.log_softmax(logits)
  np.testing.assert_allclose(found.loss.item(),
                             -(log_p[0, 3] + log_p[1, 1]) / 2, rtol=1e-5)
  loss, kept = ours(**inputs, labels=torch.tensor([3, 1]), return_dict=False)
  assert torch.equal(loss, found.loss) and torch.equal(kept, found.logits)
  assert ours.config.id2label == dict(enumerate(CLASSES))


def test_clips_of_any_number_of_labels_have_their_loss(folders, extractor):
  ours = classifier(folders['multi'])
  inputs = extractor(clips(9_000, 5_000), sampling_rate=16_000,
                     return_tensors='pt')
  labels = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
  found = ours(**inputs, labels=labels)
  p = found.logits.sigmoid()
  wanted = -torch.where(labels > 0, p.log(), (1 - p).log()).mean()
  torch.testing.assert_close(found.loss, wanted)


@pytest.mark.filterwarnings('ignore:.gradient_checkpointing_enable')
def test_gradients_reach_weights_and_waveforms(folders):
  ours = classifier(folders['single']).train()
  wave = torch.tensor(noise(2, 5_000))
  mask = torch.ones(2, 5_000)
  mask[1, 2_000:] = 0
  labels, plain = torch.tensor([0, 1]), {}
  for checkpointed in (False, True):
    if checkpointed:
      ours.gradient_checkpointing_enable()
    ours.zero_grad()
    wave = wave.detach().requires_grad_()
    ours(wave, mask, labels=labels).loss.backward()
    assert wave.grad[1, :2_000].any() and not wave.grad[1, 2_000:].any()
    grads = {name: x.grad.clone() for name, x in ours.named_parameters()}
    assert all(x.any() for x in grads.values())
    plain = plain or grads
    for name, x in grads.items():
      torch.testing.assert_close(x, plain[name])


def test_a_classifier_s_encoder_loads_alone(folders):
  ours = encoder(folders['single'])
  wave = torch.tensor(noise(1, 5_000))
  close(ours(wave).last_hidden_state, ported()(wave).detach())


def test_an_encoder_gets_a_new_head(folders):
  torch.manual_seed(0)
  auto = transformers.AutoModelForAudioClassification
  ours, info = auto.from_pretrained(
      folders['encoder'], num_labels=7, trust_remote_code=True,
      output_loading_info=True)
  assert set(info['missing_keys']) == {
      'model.head.weight', 'model.head.bias', 'model.fc_norm.weight',
      'model.fc_norm.bias'}
  state = ours.state_dict()
  for name, x in tensors(classes=False).items():
    assert torch.equal(state[name], x), name
  assert not state['model.head.bias'].any()
  assert 0.01 < state['model.head.weight'].std() < 0.03
  assert state['model.head.weight'].shape == (7, 32)
  assert (state['model.fc_norm.weight'] == 1).all()
  loss = ours(torch.tensor(noise(2, 5_000)), labels=torch.tensor([6, 0])).loss
  np.testing.assert_allclose(loss.item(), np.log(7), atol=0.2)


def test_a_model_without_a_file_has_positions_and_initial_values(folders):
  options = transformers.AutoConfig.from_pretrained(
      folders['encoder'], trust_remote_code=True)
  ours = transformers.AutoModel.from_config(options, trust_remote_code=True)
  state = ours.state_dict()
  np.testing.assert_allclose(
      state['model.fixed_positional_encoder.positions'][0],
      model.positions((768, 2), 32), rtol=0, atol=1e-4)
  assert 0.015 < state['model.blocks.0.attn.qkv.weight'].std() < 0.025
  assert 0.3 < state['model.extra_tokens'].std() < 3


def test_saved_again_it_loads_everywhere(folders, extractor, tmp_path):
  ours = classifier(folders['multi'])
  ours.save_pretrained(tmp_path)
  extractor.save_pretrained(tmp_path)
  again, alone = classifier(tmp_path), sslam_torch.load(tmp_path).eval()
  for name, x in ours.state_dict().items():
    assert torch.equal(again.state_dict()[name], x), name
  wave = torch.tensor(noise(1, 5_000))
  close(again(wave).logits, ours(wave).logits.detach(), 0)
  close(alone.logits(alone(wave)), ours(wave).logits.detach(), 0)
  auto = transformers.AutoFeatureExtractor
  kept = auto.from_pretrained(tmp_path, trust_remote_code=True)
  assert kept.max_frames == 112 and kept.max_samples == 18_160


def test_bfloat16_by_the_usual_option(folders):
  ours = encoder(folders['encoder'], torch_dtype=torch.bfloat16)
  assert {x.dtype for x in ours.parameters()} == {torch.bfloat16}
  wave = torch.tensor(noise(1, 5_000))
  close(ours(wave).last_hidden_state, ported()(wave).detach(), 0.15)


@pytest.mark.parametrize('kind', ['single', 'multi'])
def test_the_pipeline_classifies_waveforms(folders, kind):
  folder, options = str(folders[kind]), {}
  if VERSION < (4, 57):  # looked up only for models of their own
    options = {'feature_extractor': folder}
  pipeline = transformers.pipeline(
      'audio-classification', model=folder, trust_remote_code=True, **options)
  waves = clips(16_000, 9_999)
  _, logits = by_jax(padded(waves), [16_000, 9_999], pooling='mean')
  ways = [
      pipeline(waves, top_k=None, batch_size=2),
      [pipeline({'raw': wave, 'sampling_rate': 16_000}, top_k=None)
       for wave in waves],
  ]
  if kind == 'multi':
    ways = [pipeline(waves, top_k=None, function_to_apply='sigmoid')]
  score = {'single': jax.nn.softmax, 'multi': jax.nn.sigmoid}[kind](logits)
  for found in ways:
    table = [{x['label']: x['score'] for x in scores} for scores in found]
    ours = [[scores[name] for name in CLASSES] for scores in table]
    np.testing.assert_allclose(ours, score, rtol=0, atol=TOLERANCE)


# The feature extractor.


def test_a_result_does_not_depend_on_its_neighbours(folders, extractor):
  ours, (short, long) = encoder(folders['encoder']), clips(3_000, 18_160)
  inputs = [extractor(waves, sampling_rate=16_000, return_tensors='pt')
            for waves in (short, [short, long])]
  assert inputs[0]['input_values'].shape == (1, 18_160)
  assert inputs[0]['attention_mask'].sum() == 3_000
  with torch.no_grad():
    alone, together = (ours(**x).last_hidden_state[0] for x in inputs)
  close(alone, together, 1e-6)


def test_longer_clips_are_not_cut(extractor):
  waves = clips(3_000, 20_000)
  inputs = extractor(waves, sampling_rate=16_000, return_tensors='np')
  assert inputs['input_values'].shape == (2, 20_000)
  np.testing.assert_array_equal(inputs['input_values'], padded(waves, 20_000))
  np.testing.assert_array_equal(inputs['attention_mask'].sum(1),
                                [3_000, 20_000])


@pytest.mark.parametrize(('options', 'samples'), [
    ({'padding': True}, 20_000), ({'padding': 'longest'}, 20_000),
    ({'truncation': True}, 18_160),
    ({'truncation': True, 'max_length': 1_000}, 1_000),
    ({'padding': 'max_length', 'max_length': 30_000}, 30_000),
    ({'max_length': 30_000}, 30_000),
    ({'padding': True, 'truncation': True}, 18_160),
])
def test_padding_and_cutting_as_elsewhere(extractor, options, samples):
  inputs = extractor(clips(3_000, 20_000), sampling_rate=16_000,
                     return_tensors='pt', **options)
  assert inputs['input_values'].shape == (2, samples)
  assert inputs['input_values'].dtype == torch.float32
  assert inputs['attention_mask'].sum(1).tolist() == [
      min(3_000, samples), min(20_000, samples)]


def test_arrays_tensors_and_lists_are_waveforms(extractor):
  (wave,) = clips(3_000)
  wanted = extractor(wave, sampling_rate=16_000, return_tensors='np')
  for same in ([wave], torch.tensor(wave), [torch.tensor(wave)],
               wave.tolist(), wave.astype(np.float64)):
    found = extractor(same, sampling_rate=16_000, return_tensors='np')
    np.testing.assert_array_equal(found['input_values'],
                                  wanted['input_values'])


@pytest.mark.parametrize('kind', [np.asarray, torch.tensor, np.ndarray.tolist])
def test_an_array_of_clips_is_a_batch(extractor, kind):
  wave_BxS = noise(3, 5_000)
  found, wanted = (extractor(x, sampling_rate=16_000, return_tensors='np')
                   for x in (kind(wave_BxS), [*wave_BxS]))
  assert found['input_values'].shape == (3, 18_160)
  for name in ('input_values', 'attention_mask'):
    np.testing.assert_array_equal(found[name], wanted[name])


@pytest.mark.parametrize(('raw', 'options', 'message'), [
    (np.zeros(400, np.float32), {'sampling_rate': 44_100},
     'sampling_rate: want 16000, .*got 44100'),
    (np.zeros((3, 2, 400), np.float32), {},
     r'clip 0: want .*got float32 \[3, 2, 400\].*channels have to be mixed'),
    (np.zeros((400, 2), np.float32), {},
     r'raw_speech: .*got \[400, 2\], more clips than samples: mix channels'),
    (np.zeros((0, 400), np.float32), {}, r'clip 0: want .*\[0, 400\]'),
    ([np.zeros((2, 400), np.float32)], {}, r'clip 0: want .*\[2, 400\]'),
    ([np.zeros(400), np.zeros((400, 2))], {}, r'clip 1: want .*\[400, 2\]'),
    (np.zeros(400, np.int16), {}, 'clip 0: want .*floats.*got int16'),
    (np.zeros(0, np.float32), {}, r'clip 0: want .*got float32 \[0\]'),
    ([np.zeros(4), np.full(4, np.nan)], {}, 'clip 1: want finite samples'),
])
def test_other_input_is_refused(extractor, raw, options, message):
  with pytest.raises(ValueError, match=message):
    extractor(raw, **{'sampling_rate': 16_000, **options})


def test_a_missing_rate_is_warned_of(extractor, monkeypatch):
  said = []
  module = __import__(type(extractor).__module__, fromlist=['_LOGGER'])
  monkeypatch.setattr(module._LOGGER, 'warning', said.append)
  extractor(np.zeros(400, np.float32))
  assert len(said) == 1 and '16000' in said[0]
