"""Libraries that only exports need, imported where they are used."""

import importlib
from typing import Any

_REQUIREMENTS = 'requirements-torch.txt'


def load(name: str) -> Any:
  """The module `name`.

  Raises:
    ValueError: Its library is missing; how to install it is said.
  """
  try:
    return importlib.import_module(name)
  except ImportError:
    library = name.partition('.')[0]
    raise ValueError(f'{library}: want it installed: pip install -r '
                     f'{_REQUIREMENTS}; got no such library') from None
