"""Files that are written whole or not at all."""

import contextlib
import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import h5py

from jaxrec.data.errors import DataError


def replace(path: str | Path, content: bytes | memoryview) -> None:
  """Writes a file whole or not at all, even if the power fails, and removes what killed processes of this machine left of it.

  Raises:
    DataError: naming the file, if it cannot be written; an earlier one is intact.
  """
  path = Path(path)
  host = socket.gethostname()
  temporary = path.with_name(f'{path.name}.{host}.{os.getpid()}.tmp')
  try:
    for left in path.parent.glob(f'{path.name}.{host}.*.tmp'):
      if not runs(int(left.name.split('.')[-2])):
        left.unlink(missing_ok=True)
    with open(temporary, 'wb') as stream:
      stream.write(content)
      stream.flush()
      os.fsync(stream.fileno())
    temporary.replace(path)
  except OSError as error:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise DataError(
      f'{path}: cannot be written ({error.strerror}); free the disk, then run the same command to go on'
    ) from None


@contextlib.contextmanager
def new_hdf5(path: str | Path) -> Iterator[h5py.File]:
  """An HDF5 file to fill, written when the context ends; see `replace`."""
  # In memory first: HDF5 does not survive a disk that fills while it writes.
  stream = io.BytesIO()
  with h5py.File(stream, 'w') as file:
    yield file
  replace(path, stream.getbuffer())


def runs(pid: int) -> bool:
  """Whether a process of this machine exists."""
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return True
