"""Volumes in NumPy archives: `kspace`, and where they are known `target`, `mask`, `max` and `patient_id`.

`kspace` is `[slice, coil, row, col]` or `[coil, row, col]` complex, `target` `[slice,
row, col]` or `[row, col]`, `mask` `[col]` or `[row, col]` of what was measured. Every
slice is read with its whole volume: large data belong in HDF5.
"""

import zipfile
from pathlib import Path

import numpy as np

from jaxrec.data import fastmri
from jaxrec.data.errors import DataError, check_regular
from jaxrec.data.fastmri import Raw, Volume

_LIMIT = 1 << 34


def describe(path: str | Path) -> Volume:
  """Checks one volume.

  Args:
    path: the `.npz` file.

  Returns:
    Its description.

  Raises:
    DataError: naming the file, the array, and what is wrong with it.
  """
  path = Path(path)
  arrays = _load(path)
  kspace, target = arrays['kspace'], arrays.get('target')
  crop = kspace.shape[2:] if target is None else target.shape[1:]
  fastmri.check_size(path, crop)
  if target is None:
    kind = 'none' if 'mask' in arrays else fastmri.derived_target(kspace[kspace.shape[0] // 2])
  elif target.shape[0] != kspace.shape[0] or any(a > b for a, b in zip(crop, kspace.shape[2:])):
    raise DataError(f'{path}: target has shape {target.shape}, which does not fit kspace {kspace.shape}')
  else:
    kind = 'target'
  if target is not None and target.dtype.kind not in 'iuf':
    raise DataError(f'{path}: target has type {target.dtype}; expected real numbers')
  maximum = fastmri.positive(path, 'max', arrays.get('max'))
  if maximum is None and target is not None and np.isfinite(target).all() and target.max() > 0:
    maximum = float(target.max())
  return Volume(
    str(path),
    path.stem,
    kspace.shape,
    crop,
    None,
    kind,
    maximum,
    None,
    str(arrays.get('patient_id', path.stem)),
    '',
    'npz',
  )


def read_raw(volume: Volume, slice_index: int) -> Raw:
  """What the file holds of one slice.

  Raises:
    DataError: if the file cannot be read, or has changed since it was described.
  """
  arrays = _load(Path(volume.path))
  if arrays['kspace'].shape != volume.shape:
    raise DataError(f'{volume.path}: has another shape than before; delete the index of the run')
  target = arrays.get('target')
  return Raw(arrays['kspace'][slice_index], arrays.get('mask'), None if target is None else target[slice_index])


def _load(path):
  check_regular(path)
  try:
    with zipfile.ZipFile(path) as archive:
      if sum(member.file_size for member in archive.infolist()) > _LIMIT:
        raise DataError(f'{path}: unpacks to more than {_LIMIT >> 30} GiB; store it as HDF5')
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in ('kspace', 'target', 'mask', 'max', 'patient_id') if name in file}
  except DataError:
    raise
  except Exception as error:  # Damaged archives raise whatever they stumble over.
    raise DataError(
      f'{path}: is no readable .npz file ({error}); copy it again, and store arrays, no objects'
    ) from None
  if 'kspace' not in arrays:
    raise DataError(f'{path}: has no array kspace')
  for name, rank in (('kspace', 4), ('target', 3)):
    array = arrays.get(name)
    if array is not None:
      arrays[name] = array = array[None] if array.ndim == rank - 1 else array
      if array.ndim != rank or 0 in array.shape:
        raise DataError(
          f'{path}: {name} has shape {array.shape}; expected [slice, {"coil, " * (rank - 3)}row, col] without zeros'
        )
  return arrays
