"""The error that every reader raises."""

from pathlib import Path


class DataError(ValueError):
  """Unusable input; the message names the file, what is wrong, and what to do."""


def check_regular(path: str | Path) -> None:
  """Refuses pipes, sockets, devices and folders under the name of a file: reading them may never end.

  Raises:
    DataError: naming the path; what does not exist passes, and fails when it is opened.
  """
  if Path(path).exists() and not Path(path).is_file():
    raise DataError(f'{path}: is no regular file; remove it')
