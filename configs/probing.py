"""Linear probes during pre-training, by words of a configuration's argument.

  probe=animals,probe_folder=DIR,probe=scenes,probe_csv=FILE,probe_label=classes

`probe=NAME` begins a probe, and the words after it say of which clips: those of
configs/finetune.py for your own data, each with `probe_` before it.
"""

from configs import labelled
from sslam_jax import catalogue
from sslam_jax import evaluate

_WORD, _BEFORE = 'probe', 'probe_'
_SETTINGS = ('seconds', 'groups', 'every')
KEYS = (_WORD, *(_BEFORE + key for key in (
    *catalogue.KEYS, *(labelled.TEST + key for key in catalogue.KEYS),
    'folds', 'fold', *_SETTINGS,
)))


def parted(
    pairs: labelled.Pairs
) -> tuple[labelled.Pairs, tuple[evaluate.Probe, ...]]:
  """The words of all else, and the probes that the words name.

  Raises:
    ValueError: A word before the first probe, or a wrong one; the probe is
      named.
  """
  rest = [pair for pair in pairs if pair[0] not in KEYS]
  named: list[tuple[str, labelled.Pairs]] = []
  for word, value in (pair for pair in pairs if pair[0] in KEYS):
    if word == _WORD:
      named.append((value, []))
    elif not named:
      raise ValueError(f'{word}: want probe=NAME before it')
    else:
      named[-1][1].append((word.removeprefix(_BEFORE), value))
  return rest, tuple(_probe(name, words) for name, words in named)


def _probe(name: str, pairs: labelled.Pairs) -> evaluate.Probe:
  words = dict(pairs)
  try:
    train, test = labelled.sources(pairs)
    return evaluate.Probe(
        name=name, train=train, test=test,
        every=labelled.number(words, 'every', 0) or None,
        length_s=_seconds(words.get('seconds')),
        groups=words.get('groups'),
    )
  except ValueError as error:
    raise ValueError(f'probe={name}: {error} (its words: each with '
                     f'{_BEFORE} before it)') from None


def _seconds(text: str | None) -> float | None:
  try:
    return None if text is None else float(text)
  except ValueError:
    raise ValueError(f'seconds: want a number, got {text!r}') from None
