"""The `.pt` file of the official fairseq code, with the settings it reads.

`fairseq.checkpoint_utils` reads `args` (None), `cfg`, `task_state`,
`optimizer_history` and `extra_state`; it builds task and model from `cfg` and
loads `model` with `strict=True`. `cfg` is written as fairseq resolves it: plain
values, enums by name. Its values are those of the run, or the published ones
where the run has none:

- The official code has its normalisation constants in its source, where flags
  in `cfg` choose among three: `notes` tells where none is the run's. Ours are
  in `sslam_jax`, a key of ours that fairseq passes over, with the names of the
  classes.
- A flag of the model chooses the loss too. 'bce' of `elements` there is that of
  `positives`; that of `clips` needs mixup, or is 'ce' there.
- `cls_loss` is `global_weight` over the 192 rows of a GPU of the published
  runs, by which their loss is the larger.
- Of a classifier, the pre-training it came from is not known: its settings are
  the published ones in this model's sizes. Paths of data are empty, but that
  of the classes' names, which the official task opens when it is built.
- Stage 2's mixing is in the official model's source: no setting tells it from
  stage 1.

Source: fairseq checkpoint_utils.py, dataclass/utils.py; EAT and SSLAM
models/EAT_pretraining.py, EAT_audio_classification.py, images.py, base.py,
tasks/pretraining_AS2M.py, finetuning.py, config/pretraining_AS2M.yaml,
finetuning.yaml.
"""

import contextlib
import csv
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from sslam_jax import audio
from sslam_jax import objectives
from sslam_jax import output
from sslam_jax import torch_files
from sslam_jax import torch_io
from sslam_jax import torch_settings
from sslam_jax import views as views_lib
from tools.exporting import settings
from tools.exporting import trained as trained_lib

_RATE_HZ, _MEL_BINS, _PATCH = 16_000, 128, 16
_PUBLISHED_ROWS = 192  # clips x clones of a GPU
_POOLING = {'class': 'CLS_TOKEN', 'mean': 'MEAN_POOLING',
            'linear_softmax': 'LIN_SOFTMAX'}
_NO_DROPOUT = {
    'encoder_dropout': 0.0, 'post_mlp_drop': 0.0, 'attention_dropout': 0.0,
    'activation_dropout': 0.0, 'dropout_input': 0.0, 'layerdrop': 0.0,
}
_LOG_KEYS = ['ema_decay', 'target_var', 'pred_var', 'model_norm', 'ema_norm',
             'masked_pct']

Tree = dict[str, Any]


def check(trained: trained_lib.Trained) -> None:
  """Raises ValueError for what the official classes have no setting for."""
  vit, mel = trained.run.vit, trained.config.data.mel
  for name, want, got in (
      ('patch', _PATCH, vit.patch),
      ('mel_bins', _MEL_BINS, mel.mel_bins),
      ('rate_hz', _RATE_HZ, mel.rate_hz),
  ):
    if got != want:
      raise ValueError(f'{name}: want {want} for --format fairseq, as the '
                       f'official classes have no other; got {got}')
  if not trained.is_classifier and (
      trained.teacher is None or 'decoder' not in trained.params
  ):
    raise ValueError(f'{trained.run.path}: want a run with decoder and teacher '
                     f'for --format fairseq, got an encoder alone')


def notes(trained: trained_lib.Trained) -> Iterator[str]:
  """What has to be changed in the official code for this run's outputs."""
  mel = trained.config.data.mel
  flag, _ = _flags(trained) if trained.is_classifier else (None, None)
  theirs = audio.NORMALISATION[torch_settings.NORMS[flag]]
  if theirs != (mel.mean, mel.std):
    yield (f'the official code normalises log-mels by mean {theirs[0]} and '
           f'deviation {theirs[1]}, this run by {mel.mean} and {mel.std}: set '
           f'norm_mean and norm_std to these in its data/raw_audio_dataset.py'
           + (f', where it asks for {flag}' if flag else ''))


def labels_path(path: pathlib.Path) -> pathlib.Path:
  """Where the names of a classifier's classes go."""
  return path.with_name(f'{path.stem}.labels.csv')


def write(trained: trained_lib.Trained, path: pathlib.Path) -> None:
  """Writes the file; of a classifier also the table of its classes."""
  torch = torch_files.library('torch')
  tree = state(trained, path)
  for tensors in (tree['model'], tree['model'].get('_ema', {})):
    for name in tensors.keys() - {'_ema'}:
      tensors[name] = torch.from_numpy(tensors[name].copy())
  with contextlib.ExitStack() as undo:
    with output.replaced(path) as unfinished:
      _save(torch, tree, unfinished)
      if trained.is_classifier:
        labels = labels_path(path)
        with output.replaced(labels) as table:
          _write_labels(trained.run.classes, table)
        undo.callback(labels.unlink)
    undo.pop_all()  # both are there


def _save(torch: Any, tree: Tree, path: pathlib.Path) -> None:
  """torch.save, which makes another error of a full disk: here an OSError."""
  with path.open('wb') as file:
    try:
      torch.save(tree, file)
    except RuntimeError as error:
      reason = error.__context__ or error
      raise OSError(f'{path}: cannot write: {reason}') from None


def state(trained: trained_lib.Trained, path: pathlib.Path) -> Tree:
  """What the file at `path` holds, with NumPy arrays."""
  tensors: Tree = trained.student()
  if trained.teacher is not None:
    tensors['_ema'] = trained_lib.official(trained.teacher, _MEL_BINS)
  config = (_classifier(trained, path) if trained.is_classifier
            else _pretraining(trained))
  return {
      'model': tensors,
      'cfg': config,
      'args': None,
      'optimizer_history': [{
          'criterion_name': 'ModelCriterion',
          'optimizer_name': 'FairseqCompositeOptimizer',
          'lr_scheduler_state': {},
          'num_updates': trained.run.step,
      }],
      'task_state': {},
      'extra_state': {
          'train_iterator': {'epoch': 1, 'iterations_in_epoch': 0},
          'val_loss': None,
      },
      'last_optimizer_state': None,
      'sslam_jax': settings.model(trained.run),
  }


def _pretraining(trained: trained_lib.Trained) -> Tree:
  """`cfg` of pre-training."""
  objective, masked = trained.config.objective, trained.config.data.views
  assert isinstance(objective, objectives.MaskedLatent)
  assert isinstance(masked, views_lib.Masked)
  common = _common(trained, _LOG_KEYS)
  return {
      **common,
      'task': _pretraining_task(trained, masked),
      'model': _network(trained, objective, masked),
  }


def _classifier(trained: trained_lib.Trained, path: pathlib.Path) -> Tree:
  """`cfg` of fine-tuning, with one of pre-training in it."""
  published = objectives.MaskedLatent(
      vit=trained.run.vit, decoder=torch_io.decoder_of(trained.params))
  masked = views_lib.Masked(clones=16)
  before = {
      **_common(trained, _LOG_KEYS),
      'task': _pretraining_task(trained, masked),
      'model': _network(trained, published, masked),
  }
  data = str(path.absolute().parent)
  return {
      **_common(trained, ['_predictions', '_targets']),
      'task': _classification_task(trained, data, labels_path(path).name),
      'model': {**_classification(trained, data),
                'pretrained_model_args': before},
  }


def _common(trained: trained_lib.Trained, log_keys: list[str]) -> Tree:
  """What both kinds have; fine-tuning sets some of it to None, so it is there.
  """
  config, optim = trained.config, trained.config.optim
  return {
      'common': {'seed': config.seed, 'fp16': True, 'user_dir': None},
      'dataset': {'batch_size': config.batch},
      'optimization': {
          'max_update': config.steps,
          'lr': [optim.peak_lr],
          'clip_norm': optim.clip_norm or 0.0,
      },
      'criterion': {'_name': 'model', 'log_keys': log_keys},
      'optimizer': {
          '_name': 'composite',
          'dynamic_groups': True,
          'groups': {'default': {
              'lr_float': optim.peak_lr,
              'optimizer': {
                  '_name': 'adam',
                  'adam_betas': [optim.beta1, optim.beta2],
                  'adam_eps': optim.eps,
                  'weight_decay': optim.weight_decay,
              },
              'lr_scheduler': {
                  '_name': 'cosine',
                  'warmup_updates': optim.warmup_steps,
                  'min_lr': optim.min_lr,
              },
          }},
      },
      'lr_scheduler': 'pass_through',
  }


def _pretraining_task(
    trained: trained_lib.Trained, masked: views_lib.Masked
) -> Tree:
  """Fields that every version of the official task has, and no others.

  Fine-tuning refuses a field that it does not know.
  """
  return {
      '_name': 'mae_image_pretraining',
      'data': '',
      'rebuild_batches': True,
      'key': 'source',
      'precompute_mask_config': {
          'patch_size': _PATCH,
          'mask_prob': masked.mask.hide,
          'mask_prob_adjust': masked.mask.adjust,
          'mask_length': masked.mask.block,
          'inverse_mask': True,
          'mask_dropout': 0.0,
          'clone_batch': masked.clones,
          'expand_adjacent': False,
          'non_overlapping': False,
      },
      'downsr_16hz': True,
      'audio_mae': True,
      'h5_format': False,
      'target_length': trained.config.data.mel.frames,
      'flexible_mask': masked.mask.flexible,
  }


def _network(
    trained: trained_lib.Trained,
    objective: objectives.MaskedLatent,
    masked: views_lib.Masked,
) -> Tree:
  """The encoder, the targets and how the teacher follows."""
  vit, config = objective.vit, trained.config
  return {
      '_name': 'data2vec_multi',
      **_NO_DROPOUT,
      'loss_beta': 0.0,
      'loss_scale': None,
      'depth': vit.depth,
      'embed_dim': vit.width,
      'num_heads': vit.heads,
      'mlp_ratio': float(vit.mlp_ratio),
      'start_drop_path_rate': 0.0,
      'end_drop_path_rate': 0.0,
      'norm_eps': 1e-6,
      'norm_affine': True,
      'layer_norm_first': False,
      'average_top_k_layers': objective.local_layers or vit.depth,
      'end_of_block_targets': False,
      'clone_batch': masked.clones,
      'layer_norm_target_layer': False,
      'batch_norm_target_layer': False,
      'instance_norm_target_layer': True,
      'instance_norm_targets': False,
      'layer_norm_targets': True,
      'ema_decay': objective.ema.start,
      'ema_end_decay': objective.ema.end,
      'ema_anneal_end_step': objective.ema.anneal_steps,
      'ema_same_dtype': True,
      'ema_encoder_only': False,
      'log_norms': True,
      'max_update': config.steps,
      'modalities': {'image': _image(trained, objective, masked)},
      'shared_decoder': None,
      'min_target_var': 0.0,
      'min_pred_var': 0.0,
      'supported_modality': 'IMAGE',
      'mae_init': False,
      'seed': config.seed,
      'skip_ema': False,
      'cls_loss': objective.global_weight / _PUBLISHED_ROWS,
      'recon_loss': 0.0,
      'd2v_loss': 1.0,
      'decoder_group': False,
  }


def _image(
    trained: trained_lib.Trained,
    objective: objectives.MaskedLatent,
    masked: views_lib.Masked,
) -> Tree:
  """Patch embedding, masks and decoder."""
  vit, decoder = objective.vit, objective.decoder
  return {
      'type': 'IMAGE',
      'in_chans': 1,
      'patch_size': _PATCH,
      'embed_dim': vit.width,
      'target_length': trained.config.data.mel.frames,
      'max_length': torch_io.COLUMNS,
      'fixed_positions': True,
      'transformer_decoder': False,
      'enc_dec_transformer': False,
      'prenet_depth': 0,
      'prenet_layerdrop': 0.0,
      'prenet_dropout': 0.0,
      'start_drop_path_rate': 0.0,
      'end_drop_path_rate': 0.0,
      'num_extra_tokens': 1,
      'init_extra_token_zero': False,
      'mask_noise_std': decoder.noise_std,
      'mask_prob_min': None,
      'mask_prob': masked.mask.hide,
      'mask_prob_adjust': masked.mask.adjust,
      'inverse_mask': True,
      'mask_length': masked.mask.block,
      'mask_dropout': 0.0,
      'add_masks': False,
      'remove_masks': False,
      'keep_masked_pct': 0.0,
      'encoder_zero_mask': True,
      'mask_channel_prob': 0.0,
      'mask_channel_length': 64,
      'ema_local_encoder': True,
      'local_grad_mult': 1.0,
      'use_alibi_encoder': False,
      # By name of the outer model there, which in fine-tuning is another.
      'num_alibi_heads': vit.heads,
      'model_depth': vit.depth,
      'decoder': {
          'decoder_dim': vit.width,
          'decoder_groups': decoder.groups,
          'decoder_kernel': decoder.kernel,
          'decoder_layers': decoder.depth,
          'input_dropout': 0.0,
          'add_positions_masked': False,
          'add_positions_all': False,
          'decoder_residual': True,
          'projection_layers': 1,
          'projection_ratio': 2.0,
      },
  }


def _flags(trained: trained_lib.Trained) -> tuple[str | None, str | None]:
  """Which to set in the task, for the normalisation, and in the model."""
  mel, objective = trained.config.data.mel, trained.run.classifier
  wanted = objective.loss_kind, (
      'positives' if objective.is_single else objective.bce_divisor)
  of_model = next((flag for flag, loss in torch_settings.LOSSES.items()
                   if loss == wanted), None)
  if of_model is None:  # with one, the task's validation wants the model's
    return None, None
  exact = [flag for flag, norm in torch_settings.NORMS.items()
           if audio.NORMALISATION[norm] == (mel.mean, mel.std)]
  return (exact or [of_model])[0], of_model


def _set(flag: str | None) -> Tree:
  return {name: name == flag for name in torch_settings.NORMS if name}


def _classification_task(
    trained: trained_lib.Trained, data: str, labels: str
) -> Tree:
  labelled = trained.config.data.views
  assert isinstance(labelled, views_lib.Labelled)
  flag, _ = _flags(trained)
  return {
      '_name': 'mae_image_classification',
      'data': data,
      'label_descriptors': labels,
      'rebuild_batches': True,
      'downsr_16hz': True,
      'audio_mae': True,
      'target_length': trained.config.data.mel.frames,
      'roll_aug': labelled.wave is not None,
      'noise': labelled.noise is not None,
      'h5_format': False,
      'AS2M_finetune': False,
      'spcv1_finetune': False,
      **_set(flag),
  }


def _classification(trained: trained_lib.Trained, data: str) -> Tree:
  objective, labelled = trained.run.classifier, trained.config.data.views
  assert isinstance(labelled, views_lib.Labelled)
  mixup, spec = labelled.mixup, labelled.spec
  _, flag = _flags(trained)
  return {
      '_name': 'mae_image_classification',
      **_NO_DROPOUT,
      'model_path': '',
      'no_pretrained_weights': False,
      'linear_classifier': objective.freeze_encoder,
      'num_classes': len(trained.run.classes),
      'mixup': mixup.alpha if mixup else 0.0,
      'mixup_prob': mixup.probability if mixup else 1.0,
      'cutmix': 0.0,
      'label_smoothing': objective.smoothing,
      'drop_path_rate': objective.drop_path,
      'layer_decay': trained.config.optim.layer_decay or 1.0,
      'data': data,
      'norm_eps': None,
      'remove_alibi': False,
      'prenet_layerdrop': 0.0,
      'prenet_dropout': 0.0,
      'use_fc_norm': objective.head.norm,
      'prediction_mode': _POOLING[objective.head.pooling],
      'no_decay_blocks': True,
      'audio_mae': True,
      **_set(flag),
      'target_length': trained.config.data.mel.frames,
      'specaug': spec is not None,
      'mask_ratio': spec.share if spec else 0.0,
  }


def _write_labels(classes: Sequence[str], path: pathlib.Path) -> None:
  """Rows `index,id,name`, as the official task and inference read them.

  The task looks for the second column without regard to quotes, so that a
  name with a comma may be in the third alone.
  """
  with path.open('w', encoding='utf-8', newline='') as file:
    rows = csv.writer(file, lineterminator='\n')
    for index, name in enumerate(classes):
      rows.writerow([index, f'class_{index}', name])
