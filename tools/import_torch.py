"""Makes a run folder of an official EAT or SSLAM checkpoint, or one of ours.

  python tools/import_torch.py CHECKPOINT --out DIR

CHECKPOINT is a fairseq `.pt` of pre-training (student, decoder, teacher) or of
fine-tuning, a Hugging Face folder, or tensors alone by either kind of names.
Stage 2 goes on from DIR, fine-tuning starts from it, inference runs with it.
Nothing in the file is executed. Every tensor is used, or nothing is written.
Exit status: 0, 2 for wrong usage or a bad file, 130 if stopped.
"""

import argparse
import csv
import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Iterator
from typing import Any

import jax

# For a checkout that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from configs import finetune
from configs import stage1
from configs import stage2
from sslam_jax import audio
from sslam_jax import checkpoint
from sslam_jax import classify
from sslam_jax import config as config_lib
from sslam_jax import model
from sslam_jax import objectives
from sslam_jax import output
from sslam_jax import run_folder
from sslam_jax import state
from sslam_jax import torch_files
from sslam_jax import torch_io
from sslam_jax import torch_settings
from sslam_jax import train
from sslam_jax import views

_SIZES = {'small': model.small(), 'large': model.large()}
_LAYOUTS = {
    'fairseq': 'fairseq checkpoint',
    'state_dict': 'tensors by official names',
    'huggingface': 'Hugging Face model',
}
# Recipes that a classifier's configuration is made of, by its loss.
_RECIPES = {'bce': 'as20k', 'ce': 'esc50'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
  """What a checkpoint has become.

  Attributes:
    read: The checkpoint.
    config: Of the run folder.
    params: The student's, or a classifier's.
    teacher: The teacher's encoder, or None.
    guesses: What is not in the checkpoint, and was taken instead.
  """

  read: torch_files.Checkpoint
  config: train.Config
  params: state.Params = dataclasses.field(repr=False)
  teacher: state.Params | None = dataclasses.field(repr=False)
  guesses: tuple[str, ...]


def main(args: list[str]) -> int:
  """For the exit status see above."""
  options = _parser().parse_args(args)
  try:
    _check_out(options.out)
    imported = convert(options)
    write(imported, options.out)
  except (OSError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('stopped', file=sys.stderr)
    return 130
  print('\n'.join(_told(imported, options.out)))
  return 0


def convert(options: argparse.Namespace) -> Imported:
  """Reads and checks the checkpoint that the options name.

  Raises:
    ValueError: It is none of EAT or SSLAM, or is not whole; or an option
      contradicts it.
  """
  read = torch_files.read(options.checkpoint)
  with torch_files.about(read.path):
    params = torch_io.from_torch(read.student)
    teacher = _teacher(read)
    facts = _with_options(torch_settings.of(read), options)
    vit = torch_io.vit_of(params, facts.heads)
    facts.check(vit)
    mel = _mel(read, facts)
    if 'head' in params:
      labels = _labels(options.classes, facts.labels, params)
      config = _classifier(params, facts, vit, mel, labels)
    else:
      _check_no_head(options)
      config = _pretraining(params, vit, mel)
    config.workdir = str(options.out)
    config = config_lib.checked(config)
  return Imported(
      read=read, config=config, params=params, teacher=teacher,
      guesses=tuple(_guesses(read, facts, config, options)),
  )


def write(imported: Imported, out: pathlib.Path) -> None:
  """Writes the run folder, whole or not at all."""
  with output.new_folder(out) as unfinished:
    checkpoint.save_weights(
        str(unfinished), imported.read.updates or 0, imported.params,
        imported.teacher,
    )
    run_folder.write_config(unfinished, imported.config)


def _teacher(read: torch_files.Checkpoint) -> state.Params | None:
  """The teacher's encoder, of the student's size."""
  if read.teacher is None:
    return None
  with torch_files.about('_ema'):
    parts = torch_io.from_torch(read.teacher)
    if {*parts} != {'encoder'}:
      raise ValueError(f'want an encoder, got {", ".join(parts)}')
    theirs = {name: x.shape for name, x in read.teacher.items()}
    ours = {name: read.student[name].shape if name in read.student else None
            for name in theirs}
    count = sum('decoder' not in name for name in read.student)
    if theirs != ours or len(theirs) != count:
      differ = [name for name in theirs if theirs[name] != ours[name]]
      raise ValueError(f"want the {count} tensors of the student's encoder, "
                       f'got {len(theirs)}, of which others: {differ}')
  return parts['encoder']


def _with_options(
    facts: torch_settings.Settings, options: argparse.Namespace
) -> torch_settings.Settings:
  """The facts, where no option says otherwise."""
  given = {'heads': options.heads, 'frames': options.frames,
           'mean': options.mel_mean, 'std': options.mel_std,
           'loss_kind': options.loss}
  changes = {k: v for k, v in given.items() if v is not None}
  return dataclasses.replace(facts, **changes)


def _mel(
    read: torch_files.Checkpoint, facts: torch_settings.Settings
) -> audio.LogMel:
  """The front end; what is not known is AudioSet's."""
  bins = torch_io.mel_bins_of(read.student)
  if bins and facts.mel_bins not in (None, bins):
    raise ValueError(f'mel_bins: want {facts.mel_bins}, as the settings say, '
                     f'got {bins} by the table of positions')
  known: dict[str, Any] = {
      'mel_bins': bins or facts.mel_bins, 'rate_hz': facts.rate_hz,
      'frames': facts.frames, 'mean': facts.mean, 'std': facts.std,
  }
  return audio.LogMel(**{k: v for k, v in known.items() if v is not None})


def _pretraining(
    params: state.Params, vit: model.Vit, mel: audio.LogMel
) -> train.Config:
  """Stage 1 with this encoder, and its decoder if there is one."""
  config = stage1.get_config(_size(vit))
  objective = config.objective
  assert isinstance(objective, objectives.MaskedLatent)
  objective.vit = vit
  objective.decoder = torch_io.decoder_of(params)
  config.data.mel = mel
  return config


def _classifier(
    params: state.Params,
    facts: torch_settings.Settings,
    vit: model.Vit,
    mel: audio.LogMel,
    labels: tuple[str, ...],
) -> train.Config:
  """Fine-tuning to these classes."""
  kind: Any = facts.loss_kind or 'bce'
  divisor: Any = facts.bce_divisor or 'positives'
  pooling: Any = facts.pooling or 'class'
  config = finetune.get_config(f'{_RECIPES[kind]},run=none')
  head = model.Head(pooling=pooling, norm='norm' in params['head'])
  config.objective = classify.Classify(
      vit=vit, head=head, loss_kind=kind, bce_divisor=divisor,
  )
  config.data.views = views.Labelled(classes=labels)
  config.data.mel = mel
  config.evals = ()
  return config


def _labels(
    file: pathlib.Path | None,
    known: tuple[str, ...] | None,
    params: state.Params,
) -> tuple[str, ...]:
  """Names of the classes: of a file, of the checkpoint, or numbers."""
  count = len(params['head']['out']['bias'])
  labels = known if file is None else _read_labels(file)
  if labels is None:
    return tuple(f'class {i}' for i in range(count))
  where = 'id2label' if file is None else file
  if len(labels) != count or len({*labels}) != count:
    raise ValueError(f'{where}: want {count} different classes, got '
                     f'{len(labels)}, {len({*labels})} of them different')
  return labels


def _read_labels(file: pathlib.Path) -> tuple[str, ...]:
  """One label a line; or of a .csv, index,label or index,id,label."""
  try:
    lines = file.read_text(encoding='utf-8-sig').splitlines()
  except UnicodeDecodeError as error:
    raise ValueError(f'{file}: want UTF-8, got {error}') from None
  if file.suffix != '.csv':
    return tuple(filter(None, map(str.strip, lines)))
  rows = [row for row in csv.reader(lines) if row]
  if rows and not rows[0][0].isdecimal():
    rows = rows[1:]  # a header
  for number, row in enumerate(rows):
    if len(row) < 2 or row[0].strip() != str(number):
      raise ValueError(f'{file}: want rows index,label or index,id,label with '
                       f'indices 0, 1, 2, ...; got {",".join(row)}')
  return tuple(row[min(2, len(row) - 1)].strip() for row in rows)


def _check_no_head(options: argparse.Namespace) -> None:
  for name in ('classes', 'loss'):
    if getattr(options, name) is not None:
      raise ValueError(f'--{name}: want it with a classifier, got a checkpoint '
                       f'without a head')


def _check_out(out: pathlib.Path) -> None:
  if out.exists() and not (out.is_dir() and not any(out.iterdir())):
    raise ValueError(f'--out: want a new or empty folder, got {out}, which is '
                     f'there')


def _size(vit: model.Vit) -> str:
  """The word of configs/ for an encoder; '' for the base one and others."""
  return next((word for word, size in _SIZES.items() if size == vit), '')


def _guesses(
    read: torch_files.Checkpoint,
    facts: torch_settings.Settings,
    config: train.Config,
    options: argparse.Namespace,
) -> Iterator[str]:
  vit, mel = config.objective.vit, config.data.mel
  if facts.heads is None:
    yield f'{vit.heads} heads, one for 64 channels (--heads)'
  if facts.frames is None:
    yield f'clips of {mel.frames} frames (--frames)'
  if facts.mean is None or facts.std is None:
    yield f'mean {mel.mean} and deviation {mel.std} (--mel_mean, --mel_std)'
  if torch_io.mel_bins_of(read.student) is None and facts.mel_bins is None:
    yield f'{mel.mel_bins} mel bins'
  if isinstance(config.objective, classify.Classify):
    if facts.loss_kind is None:
      yield f'loss {config.objective.loss_kind} (--loss)'
    if facts.pooling is None:
      yield f'pooling {config.objective.head.pooling}'
    if facts.labels is None and options.classes is None:
      yield 'names of classes, which are their numbers (--classes)'


def _told(imported: Imported, out: pathlib.Path) -> Iterator[str]:
  """What was found, and what can be done with it."""
  read, config, params = imported.read, imported.config, imported.params
  vit, mel = config.objective.vit, config.data.mel
  is_classifier = 'head' in params
  kind = 'classifier' if is_classifier else 'pre-training'
  parts = [*params, *(['teacher'] if imported.teacher else [])]
  count = len(read.student) + len(read.teacher or {})
  values = sum(x.size for x in jax.tree.leaves((params, imported.teacher)))
  step = 'unknown' if read.updates is None else read.updates
  yield f'{read.path}: {_LAYOUTS[read.layout]}, {kind}: {", ".join(parts)}'
  yield f'tensors: {count}, all used, {values:,} parameters; updates: {step}'
  yield (f'encoder: width {vit.width}, depth {vit.depth}, heads {vit.heads}, '
         f'patch {vit.patch}')
  yield (f'front end: {mel.rate_hz} Hz, {mel.mel_bins} mel bins, {mel.frames} '
         f'frames, mean {mel.mean}, deviation {mel.std}')
  if is_classifier:
    objective = config.objective
    assert isinstance(objective, classify.Classify)
    names = config.data.views.names
    shown = ', '.join(names[:3]) + ', ...' * (len(names) > 3)
    yield (f'classes: {len(names)} ({shown}), pooling '
           f'{objective.head.pooling}, loss {objective.loss_kind}')
  for guess in imported.guesses:
    yield f'not in the checkpoint, taken instead: {guess}'
  yield f'written: {out}'
  yield 'next:'
  for command in _next(imported, shlex.quote(str(out))):
    yield f'  {command}'


def _next(imported: Imported, out: str) -> Iterator[str]:
  main_command = 'python -m sslam_jax.main --config=configs'
  if 'head' in imported.params:
    yield f'python -m sslam_jax.infer tag FILE --run {out}'
    yield f'python tools/evaluate.py {out} --data csv=FILE'
    return
  if 'decoder' in imported.params and imported.teacher is not None:
    word, changes = _stage2_changes(imported.config)
    yield (f'{main_command}/stage2.py{word and f":{word}"} '
           f'--config.init_from={out}{"".join(changes)}')
  yield f'{main_command}/finetune.py:esc50,run={out}'
  yield f'python -m sslam_jax.infer features FILE --run {out} --out features'


def _stage2_changes(config: train.Config) -> tuple[str, list[str]]:
  """What configs/stage2.py has to be told to continue this run."""
  word = _size(config.objective.vit)
  usual = stage2.get_config(word)
  changes = []
  for part in ('objective.vit', 'objective.decoder', 'data.mel'):
    owner, name = part.split('.')
    before = getattr(getattr(usual, owner), name)
    after = getattr(getattr(config, owner), name)
    differ = config_lib.differences(before, after)
    changes += [f' --config.{part}.{k}={v}' for k, (_, v) in differ.items()]
  return word, changes


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('checkpoint', type=pathlib.Path, metavar='CHECKPOINT')
  parser.add_argument('--out', type=pathlib.Path, required=True, metavar='DIR',
                      help='the run folder, new or empty')
  parser.add_argument('--classes', type=pathlib.Path, metavar='FILE',
                      help="a classifier's: one a line, or .csv with index,"
                      'label or index,id,label (class_labels_indices.csv)')
  parser.add_argument('--loss', choices=tuple(_RECIPES),
                      help='of a classifier: bce, any number of labels; ce, '
                      'one')
  parser.add_argument('--mel_mean', type=float, metavar='NATS',
                      help="of the data's log-mels")
  parser.add_argument('--mel_std', type=float, metavar='NATS',
                      help='their standard deviation')
  parser.add_argument('--frames', type=int, metavar='N',
                      help='length of the clips in training, 10 ms each')
  parser.add_argument('--heads', type=int, metavar='N',
                      help='of attention')
  return parser


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
