"""The model card: what the weights are, of what data and recipe, how good."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from sslam_jax import classify
from sslam_jax import config as config_lib
from sslam_jax import objectives
from sslam_jax import report
from sslam_jax import torch_io
from tools.exporting import trained as trained_lib

_SCORES = pathlib.Path('evaluation', 'scores.json')  # of tools/evaluate.py
_FUNCTIONS = {'bce': 'sigmoid', 'ce': 'softmax'}
_OVERALL = {'map': 'mAP', 'auc': 'AUC', 'top1': 'top-1 accuracy'}

Rows = list[tuple[str, str]]


def text(trained: trained_lib.Trained) -> str:
  """The card as Markdown, with the header that the Hugging Face hub reads."""
  sections = [
      _header(trained),
      f'# {_title(trained)}\n\n{_summary(trained)}',
      f'## Use\n\n{_usage(trained)}',
      f'## Training data\n\n{_listed(_data(trained))}',
      f'## Recipe\n\n{_listed(_recipe(trained))}',
      f'## Scores\n\n{_scores(pathlib.Path(trained.run.path), trained)}',
      f'## Licence\n\n{_licence()}',
  ]
  return '\n\n'.join(sections) + '\n'


def _header(trained: trained_lib.Trained) -> str:
  task = ('audio-classification' if trained.is_classifier
          else 'feature-extraction')
  return (f'---\nlibrary_name: transformers\npipeline_tag: {task}\n'
          f'tags:\n- audio\n- sslam\n- self-supervised\n---')


def _title(trained: trained_lib.Trained) -> str:
  vit = trained.run.vit
  kind = 'classifier' if trained.is_classifier else 'encoder'
  return f'SSLAM {kind}, width {vit.width}, depth {vit.depth}'


def _summary(trained: trained_lib.Trained) -> str:
  mel = trained.config.data.mel
  what = (f'Scores of {len(trained.run.classes)} classes'
          if trained.is_classifier else
          'Embeddings: a class token and a token for each patch')
  whose = '' if trained.is_classifier else (
      f' These are the weights of the {trained.weights}.')
  return (f'{what}, from waveforms at {mel.rate_hz:,} Hz; log-mel front end '
          f'included. Trained with sslam_jax, a JAX implementation of SSLAM '
          f'(Self-Supervised Learning from Audio Mixtures, ICLR 2025, arXiv '
          f'2506.12222), on clips of {mel.frames / 100:g} s; other lengths '
          f'work too, up to {_longest_s(trained):.2f} s.{whose}')


def _longest_s(trained: trained_lib.Trained) -> float:
  """By the positions in time that there are."""
  return torch_io.COLUMNS * trained.run.vit.patch / 100


def _usage(trained: trained_lib.Trained) -> str:
  rate_hz = trained.config.data.mel.rate_hz
  if trained.is_classifier:
    # What transformers 5 finds in the configuration, 4.4x wants to be told.
    function = _FUNCTIONS[trained.run.classifier.loss_kind]
    return f"""```python
from transformers import pipeline

classify = pipeline('audio-classification', model='FOLDER',
                    feature_extractor='FOLDER', trust_remote_code=True)
scores = classify({{'raw': wave, 'sampling_rate': {rate_hz}}},
                  function_to_apply='{function}', top_k=5)
print(scores)
```"""
  return f"""```python
from transformers import AutoFeatureExtractor, AutoModel

prepare = AutoFeatureExtractor.from_pretrained('FOLDER', trust_remote_code=True)
model = AutoModel.from_pretrained('FOLDER', trust_remote_code=True)
inputs = prepare(wave, sampling_rate={rate_hz}, return_tensors='pt')
tokens = model(**inputs).last_hidden_state  # class token first
```"""


def _data(trained: trained_lib.Trained) -> Rows:
  """The source, of whose paths only the last parts are told."""
  if trained.is_imported:
    return [('source', 'unknown here: the weights are imported')]
  source: Any = trained.config.data.source
  rows = [('source', type(source).__name__)]
  rows += [(name, _shown(value)) for name, value in config_lib.fields(source)
           if value not in (None, '')]
  return rows


def _recipe(trained: trained_lib.Trained) -> Rows:
  config, optim, mel = (
      trained.config, trained.config.optim, trained.config.data.mel
  )
  form = [
      ('log-mel', f'{mel.mel_bins} bins, {mel.frames} frames of 10 ms, '
                  f'(x - {mel.mean:g}) / (2 * {mel.std:g})'),
      ('encoder', ', '.join(f'{field.name} {getattr(trained.run.vit, name)}'
                            for field in dataclasses.fields(trained.run.vit)
                            if (name := field.name) != 'remat')),
  ]
  if trained.is_imported:
    return [('updates', f'{trained.run.step:,}, by another program'), *form]
  start = 'random weights'
  if config.init_from is not None:
    start = f'the run {pathlib.PurePath(config.init_from).name}'
  clip = optim.clip_norm or 'none'
  return [
      ('objective', _objective(trained)),
      ('started from', start),
      ('updates', f'{trained.run.step:,} of {config.steps:,}'),
      ('clips per update', f'{config.batch}'),
      ('learning rate', f'{optim.peak_lr:g}, cosine to {optim.min_lr:g}, '
                        f'{optim.warmup_steps:,} updates of warm-up'),
      ('AdamW', f'betas {optim.beta1:g} and {optim.beta2:g}, weight decay '
                f'{optim.weight_decay:g}, gradient norm at most {clip}'),
      *form,
  ]


def _objective(trained: trained_lib.Trained) -> str:
  objective = trained.config.objective
  if isinstance(objective, classify.Classify):
    kind = 'linear evaluation' if objective.freeze_encoder else 'fine-tuning'
    average = '' if objective.ema is None else (
        '; these weights are a moving average')
    return (f'{kind}, {objective.loss_kind}, pooling '
            f'{objective.head.pooling}{average}')
  if isinstance(objective, objectives.SourceRetention):
    return 'SSLAM stage 2, from partial mixtures'
  return 'SSLAM stage 1, masked latent bootstrapping (EAT)'


def _scores(run: pathlib.Path, trained: trained_lib.Trained) -> str:
  """Of the evaluations in the run folder: its own, and of tools/evaluate.py.
  """
  rows = [*_logged(run, trained), *_evaluated(run)]
  if not rows:
    return 'None: the run folder has no evaluation.'
  return '\n'.join(['| metric | value | data |', '| --- | --- | --- |',
                    *(f'| {" | ".join(row)} |' for row in rows)])


def _logged(
    run: pathlib.Path, trained: trained_lib.Trained
) -> Iterator[tuple[str, str, str]]:
  """The last values of the run's own evaluations, by the step exported."""
  path = run / report.METRICS
  names = tuple(f'{evaluation.name}_' for evaluation in trained.config.evals)
  last: dict[str, tuple[float, int]] = {}
  lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
  for line in map(json.loads, lines):
    if line['step'] <= trained.run.step and 'loss' not in line:
      last |= {name: (value, line['step']) for name, value in line.items()
               if name.startswith(names)}
  for name, (value, step) in last.items():
    yield name, f'{value:.4g}', f'held out in training, step {step:,}'


def _evaluated(run: pathlib.Path) -> Iterator[tuple[str, str, str]]:
  path = run / _SCORES
  if not path.exists():
    return
  tree = json.loads(path.read_text(encoding='utf-8'))
  data = f'{_shown(tree["data"])}, step {tree["step"]:,}'
  for name, shown in _OVERALL.items():
    found = tree['overall'][name]
    if found['value'] is not None:
      interval = '' if found['low'] is None else (
          f' ({found["low"]:.3f} to {found["high"]:.3f})')
      yield shown, f'{found["value"]:.3f}{interval}', data


def _licence() -> str:
  return ('The code in this folder is licensed under Apache-2.0. Which licence '
          'the weights may be given depends on that of the training data, and '
          'of any weights that training started from: that is for whoever '
          'publishes this folder to find out and to state here.')


def _shown(value: Any) -> str:
  """A value without folders, and on one line: a card is for everyone."""
  if isinstance(value, tuple):
    return ', '.join(map(_shown, value))
  parts = str(value).replace('\n', ' ').split('=')
  return '='.join(pathlib.PurePath(part).name for part in parts)


def _listed(rows: Rows) -> str:
  return '\n'.join(f'- {name}: {value}' for name, value in rows)
