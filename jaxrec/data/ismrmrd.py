"""ISMRMRD raw data, 2-D Cartesian: `.h5` or `.mrd` files with the group `dataset`, one volume each.

Needs the package `ismrmrd` (`pip install 'jaxrec[ismrmrd]'`). Averages are averaged;
lines of noise, navigators and separate calibration are left out. Samples of a line go
where `center_sample` says, lines where the encoding limits say, as in fastMRI.

Reference:
  Inati et al. 2017, ISMRM Raw data format; ismrmrd.github.io.
"""

from pathlib import Path

import h5py
import numpy as np

from jaxrec.data import fastmri, hdf5
from jaxrec.data.errors import DataError
from jaxrec.data.fastmri import Raw, Volume

# Bytes of the header of a line; what is compressed can take a thousandth.
_HEAD = 340
_ONE = ('kspace_encode_step_2', 'contrast', 'phase', 'repetition', 'set')


def holds(file: h5py.File) -> bool:
  """Whether an HDF5 file has the group of ISMRMRD's raw data and no k-space of fastMRI's."""
  return 'kspace' not in file and isinstance(file.get('dataset', getlink=True), h5py.HardLink)


def describe(path: str | Path) -> Volume:
  """Checks one volume, reading its middle slice.

  Args:
    path: the file.

  Returns:
    Its description; the target is to be derived.

  Raises:
    DataError: naming the file, what is wrong or not supported, and what to do.
  """
  path = Path(path)
  with hdf5.open_file(path) as file:
    (rows, cols), recon, _, heads, lines = _read_header(path, file)
    slices = int(heads['idx']['slice'][lines].max()) + 1
    coils = int(heads['active_channels'][lines[0]])
    shape = slices, coils, rows, cols
    if slices * coils * rows * cols > 1 << 34:
      raise DataError(f'{path}: says that it has {slices} slices of {coils} x {rows} x {cols}; copy or export it again')
    middle = _assemble(path, file, shape, slices // 2)
  crop = tuple(min(a, b) for a, b in zip(recon, (rows, cols)))
  fastmri.check_size(path, crop)
  return Volume(
    str(path), path.stem, shape, crop, None, fastmri.derived_target(middle), None, None, path.stem, '', 'ismrmrd'
  )


def read_raw(volume: Volume, slice_index: int) -> Raw:
  """k-space of one slice.

  Raises:
    DataError: for a damaged file.
  """
  with hdf5.open_file(volume.path) as file:
    return Raw(_assemble(volume.path, file, volume.shape, slice_index))


def _package():
  try:
    import ismrmrd
  except ImportError:
    raise DataError("ISMRMRD raw data need the package ismrmrd; pip install 'jaxrec[ismrmrd]'") from None
  return ismrmrd


def _read_header(path, file):
  """Encoded and reconstructed size, first column, headers of all lines, and which are of the image."""
  package = _package()
  if not holds(file):
    raise DataError(f'{path}: has no group dataset; it is no ISMRMRD file')
  text, data = hdf5.dataset(file, 'dataset/xml'), hdf5.dataset(file, 'dataset/data')
  if text is None or data is None or text.shape != (1,) or data.ndim != 1 or 'head' not in (data.dtype.names or ()):
    raise DataError(f'{path}: dataset/xml or dataset/data is missing; it is no ISMRMRD raw data')
  stored = data.id.get_storage_size()
  if data.shape[0] * _HEAD > 1000 * stored:
    raise DataError(f'{path}: claims {data.shape[0]} lines in {stored} bytes; copy or export it again')
  try:
    text, heads = text[0], data.fields('head')[()]
    # Numbers, shapes and trajectory are those of the first encoding.
    encoded, recon, first, _ = fastmri.parse_header(path, text)
    flags = heads['flags']
    apart = [getattr(package, f'ACQ_IS_{name}') for name in (
      'NOISE_MEASUREMENT', 'NAVIGATION_DATA', 'HPFEEDBACK_DATA', 'DUMMYSCAN_DATA', 'RTFEEDBACK_DATA', 'SURFACECOILCORRECTIONSCAN_DATA',
      'PHASE_STABILIZATION_REFERENCE', 'PHASE_STABILIZATION',
    )]  # fmt: skip
    used = (flags & np.uint64(sum(1 << (flag - 1) for flag in apart))) == 0
    calibration = np.uint64(1 << (package.ACQ_IS_PARALLEL_CALIBRATION - 1))
    used &= ((flags & calibration) == 0) & (heads['encoding_space_ref'] == 0)
    lines = np.flatnonzero(used)
    echo_planar = np.uint64((1 << (package.ACQ_IS_REVERSE - 1)) | (1 << (package.ACQ_IS_PHASECORR_DATA - 1)))
    several = [name for name in _ONE if lines.size and heads['idx'][name][lines].max() > 0]
  except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
    if isinstance(error, DataError):
      raise
    raise DataError(f'{path}: damaged ({error}); copy it again') from None
  if not lines.size or len(set(heads['active_channels'][lines])) > 1 or not heads['active_channels'][lines[0]]:
    raise DataError(f'{path}: has no image lines, no coils, or lines with different numbers of coils; export it again')
  if (flags[lines] & echo_planar).any() or heads['trajectory_dimensions'][lines].max() > 0 or several:
    what = f'more than one {several[0]}' if several else 'an echo-planar or non-Cartesian readout'
    raise DataError(
      f'{path}: has {what}; export one 2-D Cartesian image series, such as one contrast after a transform along partitions'
    )
  return encoded, recon, first, heads, lines


def _assemble(path, file, shape, slice_index):
  """k-space `[coil, row, col]` complex64 of one slice."""
  (rows, cols), _, first, heads, lines = _read_header(path, file)
  kspace, count = np.zeros(shape[1:], np.complex64), np.zeros(cols, int)
  acquisitions = _package().file.Acquisitions(file['dataset/data'])
  try:
    for i in lines[heads['idx']['slice'][lines] == slice_index]:
      line = acquisitions[int(i)]
      start, col = rows // 2 - line.center_sample, first + line.idx.kspace_encode_step_1
      samples = np.array(line.data)[:, line.discard_pre : line.number_of_samples - line.discard_post]
      start += line.discard_pre
      if start < 0 or start + samples.shape[1] > rows or not 0 <= col < cols:
        raise ValueError(f'line {i} is outside the matrix of {rows} x {cols}')
      kspace[:, start : start + samples.shape[1], col] += samples
      count[col] += 1
  except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
    raise DataError(f'{path}: damaged ({error}); copy or export it again') from None
  return kspace / np.maximum(count, 1).astype(np.float32)
