"""Single images of CT: DICOM, TIFF and NumPy."""

from pathlib import Path

import numpy as np

from jaxrec.data.errors import DataError

GREY = ('.npy', '.tif', '.tiff')
SUFFIXES = ('.dcm', *GREY)


def describe(path: str | Path) -> tuple[tuple[int, int], float]:
  """Rows and columns of an image, and its pixel in mm (1 if the file does not say).

  Raises:
    DataError: naming the file, if it is no image of CT.
  """
  if Path(path).suffix.lower() != '.dcm':
    return _read_grey(path).shape, 1.0
  header = _read_dataset(path, pixels=False)
  return (int(header.Rows), int(header.Columns)), float(header.PixelSpacing[0]) if 'PixelSpacing' in header else 1.0


def read_file(path: str | Path) -> np.ndarray:
  """One DICOM, TIFF or NumPy image, `[row, col]` float32; DICOM in HU, others as stored.

  Raises:
    DataError: naming the file and what is wrong with it.
  """
  image = _read_dicom(path) if Path(path).suffix.lower() == '.dcm' else _read_grey(path)
  if not np.isfinite(image).all():
    raise DataError(f'{path}: holds values that are not finite')
  return image


def _read_dataset(path, *, pixels):
  try:
    import pydicom
  except ImportError:
    raise DataError(f'{path}: DICOM needs the extra, pip install jaxrec[ct]') from None
  try:
    data = pydicom.dcmread(path, stop_before_pixels=not pixels)
  except (pydicom.errors.InvalidDicomError, OSError, EOFError) as error:
    raise DataError(f'{path}: cannot be read as DICOM ({str(error).splitlines()[0][:120]})') from None
  if data.get('Modality') != 'CT':
    raise DataError(f'{path}: has modality {data.get("Modality", "none")}; expected CT')
  if 'Rows' not in data or 'Columns' not in data:
    raise DataError(f'{path}: has no image')
  return data


def _read_dicom(path):
  data = _read_dataset(path, pixels=True)
  try:
    pixels = data.pixel_array
  except Exception as error:
    syntax = getattr(data.file_meta.get('TransferSyntaxUID'), 'name', 'unknown')
    raise DataError(
      f'{path}: pixels in transfer syntax "{syntax}" cannot be read ({str(error).splitlines()[0][:120]}); '
      'decompress the files (gdcmconv --raw) or install pylibjpeg'
    ) from None
  return pixels.astype(np.float32) * float(data.get('RescaleSlope', 1)) + float(data.get('RescaleIntercept', 0))


def _read_grey(path):
  try:
    if Path(path).suffix.lower() == '.npy':
      image = np.load(path, allow_pickle=False)
    else:
      from PIL import Image

      with Image.open(path) as file:
        image = np.asarray(file)
  except ImportError:
    raise DataError(f'{path}: TIFF needs the extra, pip install jaxrec[ct]') from None
  except (OSError, ValueError, EOFError) as error:
    raise DataError(f'{path}: cannot be read as an image ({str(error).splitlines()[0][:120]})') from None
  if image.ndim != 2 or image.dtype.kind not in 'iuf':
    raise DataError(f'{path}: has shape {image.shape} and type {image.dtype}; expected one grey image [row, col]')
  return image.astype(np.float32)
