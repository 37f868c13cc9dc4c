"""k-space of the BART toolbox: pairs of files `NAME.cfl` and `NAME.hdr`, one volume each.

Of BART's 16 dimensions, column-major complex64, READ, PHS1 and PHS2 (0 to 2) give
rows and columns, one of them being 1; COIL (3) and SLICE (13) may be larger than 1.
As in BART, zeros are samples that were not measured. Images have the size of the
k-space: remove readout oversampling before (`bart resize -c`, in image space).

Reference:
  Uecker et al. 2015, Berkeley Advanced Reconstruction Toolbox; mrirecon.github.io/bart.
"""

from pathlib import Path

import numpy as np

from jaxrec.data import fastmri
from jaxrec.data.errors import DataError, check_regular
from jaxrec.data.fastmri import Raw, Volume

_COIL, _SLICE = 3, 13


def describe(path: str | Path) -> Volume:
  """Checks one volume, reading its middle slice.

  Args:
    path: the `.cfl` file.

  Returns:
    Its description; the target is to be derived.

  Raises:
    DataError: naming the file and what is wrong with it.
  """
  path = Path(path)
  kspace = _open(path)
  slices, *shape = kspace.shape
  fastmri.check_size(path, shape[1:])
  return Volume(
    str(path), path.stem, kspace.shape, tuple(shape[1:]), None, fastmri.derived_target(np.asarray(kspace[slices // 2])),
    None, None, path.stem, '', 'bart',
  )  # fmt: skip


def read_raw(volume: Volume, slice_index: int) -> Raw:
  """k-space of one slice.

  Raises:
    DataError: if the file has changed since it was described.
  """
  kspace = _open(Path(volume.path))
  if kspace.shape != volume.shape:
    raise DataError(f'{volume.path}: has other dimensions than before; delete the index of the run')
  return Raw(np.ascontiguousarray(kspace[slice_index]))


def _open(path):
  """`[slice, coil, row, col]`, on the disk."""
  header = path.with_suffix('.hdr')
  for file in (header, path):
    check_regular(file)
  try:
    with open(header) as stream:
      lines = stream.read(1 << 16).splitlines()
    dims = [int(n) for n in lines[lines.index('# Dimensions') + 1].split()]
  except (OSError, ValueError, IndexError) as error:
    raise DataError(
      f'{header}: has no line of dimensions after "# Dimensions" ({error}); copy both files of BART'
    ) from None
  dims += [1] * (16 - len(dims))
  plane = [n for n in dims[:3] if n != 1]
  if len(plane) != 2 or min(dims) < 1 or any(n != 1 for i, n in enumerate(dims) if i not in (0, 1, 2, _COIL, _SLICE)):
    raise DataError(
      f'{header}: has dimensions {" ".join(map(str, dims))}; expected two of the first three, coils in dimension 3 and slices in 13: '
      'transform partitions with bart fft -u -i and move them with bart transpose, choose one echo or frame with bart slice'
    )
  shape = (*plane, dims[_COIL], dims[_SLICE])
  try:
    size = path.stat().st_size
    if size != 8 * np.prod(shape, dtype=object):
      raise DataError(
        f'{path}: has {size} bytes, its header says {8 * np.prod(shape, dtype=object)}; copy both files of BART'
      )
    return np.memmap(path, np.complex64, 'r', shape=shape, order='F').transpose(3, 2, 0, 1)
  except (OSError, ValueError) as error:
    if isinstance(error, DataError):
      raise
    raise DataError(f'{path}: cannot be read ({error}); copy both files of BART') from None
