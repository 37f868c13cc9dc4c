"""The error that every reader raises, and what all formats refuse."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any


class DataError(ValueError):
  """Unusable input; the message names the file, what is wrong, and what to do."""


def check_regular(path: str | Path) -> None:
  """Refuses pipes, sockets, devices and folders under the name of a file: reading them may never end.

  Raises:
    DataError: naming the path; what does not exist passes, and fails when it is opened.
  """
  if Path(path).exists() and not Path(path).is_file():
    raise DataError(f'{path}: is no regular file; remove it')


def distinct(volumes: Iterable[Any], bad: dict[str, str]) -> list[Any]:
  """Leaves out volumes whose name an earlier one has: rows, masks and reconstructions go by names.

  Args:
    volumes: of one split.
    bad: what is wrong with files, by path; added to.

  Returns:
    The others.
  """
  paths: dict[str, str] = {}
  kept = []
  for volume in volumes:
    path = str(volume.path)
    other = paths.setdefault(volume.name, path)
    if other == path:
      kept.append(volume)
    else:
      bad[path] = f'{path}: has the name of {other}; rename one of them, or leave it out'
  return kept
