"""HDF5 files of others: damaged ones, and ones that point elsewhere, are refused by name."""

import io
import math
import os
import struct
from pathlib import Path

import h5py
import numpy as np

from jaxrec.data.errors import DataError, check_regular

# Ten times the largest slice of fastMRI; a header can claim 10^12 elements in a file of a kilobyte.
_LARGEST = 1 << 30
_MOST_SLICES = 100_000


class _Stream(io.FileIO):
  """The bytes of a file. HDF5 goes through a heap of strings for ever if free space in it has no size (its issue 1707)."""

  lengths = 8

  def readinto(self, buffer):
    start = self.tell()
    count = super().readinto(buffer)
    # HDF5 reads a heap from its start; of a large one the rest comes later, and without its mark.
    if bytes(memoryview(buffer)[:8]) == b'GCOL\1\0\0\0' and count >= 16:
      self._check_heap(start)
    return count

  def _check_heap(self, start):
    # HDF5 file format, III.E: a header, then objects with headers of the same size; number 0 is what is free, header and all.
    length = {2: 'H', 4: 'I', 8: 'Q'}[self.lengths]
    (end,) = struct.unpack_from(f'<8x{length}', os.pread(self.fileno(), 16, start))
    at = 16
    while at + 16 <= end and len(header := os.pread(self.fileno(), 16, start + at)) == 16:
      number, size = struct.unpack_from(f'<H6x{length}', header)
      size = -(-size // 8) * 8 + 16 if number else size
      if not 0 < size <= end - at:
        raise OSError('a heap of strings is damaged')
      at += size


class _File(h5py.File):
  """Closes its stream, and has its name, of which h5py keeps ASCII only."""

  def __init__(self, path):
    self._stream = _Stream(path)
    try:
      super().__init__(self._stream, 'r')
      self._stream.lengths = self.id.get_create_plist().get_sizes()[1]
    except BaseException:
      self._stream.close()
      raise

  @property
  def filename(self):
    return str(self._stream.name)

  def close(self):
    super().close()
    self._stream.close()


def open_file(path: str | Path) -> h5py.File:
  """Opens a file for reading.

  Raises:
    DataError: naming the file, if it is missing or no HDF5 file.
  """
  check_regular(path)
  try:
    return _File(path)
  except OSError as error:
    reason = 'no such file' if not Path(path).exists() else str(error).split('(')[-1].rstrip(')')
    raise DataError(f'{path}: not a readable HDF5 file ({reason}); copy or download it again') from None


def dataset(file: h5py.File, name: str) -> h5py.Dataset | None:
  """A data set that lives in this file, whatever the file claims; `None` if there is none.

  Raises:
    DataError: for links, virtual data sets and external storage, which can point anywhere, and for sizes that no
      scan has.
  """
  try:
    link = file.get(name, getlink=True)
  except KeyError:
    link = None
  if link is None:
    return None
  if not isinstance(link, h5py.HardLink):
    raise DataError(f'{file.filename}: {name} is a link to elsewhere; only data inside the file is read')
  data = file[name]
  if not isinstance(data, h5py.Dataset):
    raise DataError(f'{file.filename}: {name} is a group, not a data set')
  try:
    kind = data.dtype
  except (TypeError, ValueError) as error:
    raise DataError(f'{file.filename}: {name} has a type that NumPy does not have ({error}); write numbers') from None
  if data.shape is None:
    raise DataError(f'{file.filename}: {name} is empty; write its numbers, or leave it out')
  if data.is_virtual or data.external:
    raise DataError(f'{file.filename}: {name} takes its data from other files; only data inside the file is read')
  for what, shape in (('slices', data.shape[1:]), ('chunks', data.chunks or ())):
    if math.prod(shape) * kind.itemsize > _LARGEST:
      raise DataError(
        f'{file.filename}: {name} claims {what} of {shape}, more than {_LARGEST >> 20} MiB each; remove the file'
      )
  if data.ndim > 1 and data.shape[0] > _MOST_SLICES:
    raise DataError(
      f'{file.filename}: {name} claims {data.shape[0]} slices; expected at most {_MOST_SLICES}; remove the file'
    )
  return data


def text(value: object) -> str:
  """An attribute as a text, whether it was written as one or as bytes; empty if there is none."""
  if isinstance(value, bytes):
    value = value.decode('utf-8', 'replace')
  return '' if value is None else str(value)


def read(file: h5py.File, name: str, number: int) -> np.ndarray:
  """One slice of a data set.

  Raises:
    DataError: naming the file, if the slice is missing or damaged.
  """
  data = dataset(file, name)
  if data is None or not 0 <= number < data.shape[0]:
    raise DataError(f'{file.filename}: slice {number} of {name} is missing')
  try:
    return data[number]
  except (OSError, KeyError, RuntimeError) as error:
    raise DataError(f'{file.filename}: {name} slice {number} is damaged ({error})') from None
