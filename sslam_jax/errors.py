"""What errors of other libraries say, on one line."""


def first_line(error: BaseException) -> str:
  """The first line of its message; its type, if it says nothing."""
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__
