"""Single images of CT: DICOM, TIFF and NumPy."""

from pathlib import Path

import numpy as np

from jaxrec.data.errors import DataError, check_regular

# More than any CT image; what claims more is damaged or malicious.
_MAX_PIXELS = 1 << 26
GREY = ('.npy', '.tif', '.tiff')
SUFFIXES = ('.dcm', *GREY)


def describe(path: str | Path) -> tuple[tuple[int, int], float]:
  """Rows and columns of an image, and its pixel in mm (1 if the file does not say).

  Raises:
    DataError: naming the file, if it is no image of CT.
  """
  check_regular(path)
  if Path(path).suffix.lower() != '.dcm':
    return _read_grey(path).shape, 1.0
  header = _read_dataset(path, pixels=False)
  return (int(header.Rows), int(header.Columns)), float(header.PixelSpacing[0]) if 'PixelSpacing' in header else 1.0


def read_file(path: str | Path) -> np.ndarray:
  """One DICOM, TIFF or NumPy image, `[row, col]` float32; DICOM in HU, others as stored.

  Raises:
    DataError: naming the file and what is wrong with it.
  """
  check_regular(path)
  image = _read_dicom(path) if Path(path).suffix.lower() == '.dcm' else _read_grey(path)
  if not np.isfinite(image).all():
    raise DataError(f'{path}: holds values that are not finite')
  return image


def _reason(error):
  return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _read_dataset(path, *, pixels):
  try:
    import pydicom
  except ImportError:
    raise DataError(f'{path}: DICOM needs the extra, pip install jaxrec[ct]') from None
  try:
    data = pydicom.dcmread(path, stop_before_pixels=not pixels)
    # Damaged files hold lists and texts where numbers belong.
    modality, rows, cols = data.get('Modality'), int(data.get('Rows') or 0), int(data.get('Columns') or 0)
    frames, samples = int(data.get('NumberOfFrames') or 1), int(data.get('SamplesPerPixel') or 1)
    colours, unit = data.get('PhotometricInterpretation', 'MONOCHROME2'), data.get('RescaleType') or 'HU'
    rescale = [None if x is None else float(x) for x in (data.get('RescaleSlope'), data.get('RescaleIntercept'))]
    if 'PixelSpacing' in data and not data.PixelSpacing[0] > 0:
      raise ValueError(f'pixel spacing {data.PixelSpacing}')
  except Exception as error:  # Parsers of damaged files raise whatever they stumble over.
    raise DataError(f'{path}: cannot be read as DICOM ({_reason(error)})') from None
  if modality != 'CT':
    raise DataError(f'{path}: has modality {modality or "none"}; expected CT')
  if not rows or not cols:
    raise DataError(f'{path}: has no image')
  if frames != 1:
    raise DataError(f'{path}: has {frames} frames; expected one image per file, split it (emf2sf of dcm4che)')
  if samples != 1 or not str(colours).startswith('MONOCHROME'):
    raise DataError(f'{path}: is a colour image ({colours}); expected grey values in HU')
  if rows * cols > _MAX_PIXELS:
    raise DataError(f'{path}: claims {rows} x {cols} pixels; expected at most {_MAX_PIXELS} in all')
  if None in rescale or unit != 'HU':
    said = 'no rescale slope or intercept' if None in rescale else f'rescale type {unit}'
    raise DataError(f'{path}: has {said}, so that its values are not known to be HU; export it again with them')
  return data


def _read_dicom(path):
  data = _read_dataset(path, pixels=True)
  try:
    pixels = data.pixel_array
  except Exception as error:
    syntax = getattr(data.file_meta.get('TransferSyntaxUID'), 'name', 'unknown')
    raise DataError(
      f'{path}: pixels in transfer syntax "{syntax}" cannot be read ({_reason(error)}); '
      'decompress the files (gdcmconv --raw) or install pylibjpeg'
    ) from None
  if pixels.shape != (data.Rows, data.Columns):
    raise DataError(f'{path}: has pixels of shape {pixels.shape}; expected {data.Rows} x {data.Columns}')
  return pixels.astype(np.float32) * float(data.RescaleSlope) + float(data.RescaleIntercept)


def _read_grey(path):
  try:
    image = _map_numpy(path) if Path(path).suffix.lower() == '.npy' else _decode_tiff(path)
  except DataError:
    raise
  except ImportError:
    raise DataError(f'{path}: TIFF needs the extra, pip install jaxrec[ct]') from None
  except Exception as error:  # As above.
    raise DataError(f'{path}: cannot be read as an image ({_reason(error)})') from None
  if image.ndim != 2 or image.dtype.kind not in 'iuf' or not image.size:
    raise DataError(f'{path}: has shape {image.shape} and type {image.dtype}; expected one grey image [row, col]')
  if image.size > _MAX_PIXELS:
    raise DataError(f'{path}: has {image.shape[0]} x {image.shape[1]} pixels; expected at most {_MAX_PIXELS} in all')
  return image.astype(np.float32)


def _map_numpy(path):
  with open(path, 'rb') as stream:
    # `np.load` would open an archive or a pickle under this name too.
    np.lib.format.read_magic(stream)
  # Mapped, not read: a header that claims more than the file holds fails before memory is taken.
  return np.load(path, mmap_mode='r', allow_pickle=False)


def _decode_tiff(path):
  from PIL import Image

  # Of all formats, Pillow would hand PostScript to a program that runs it.
  with Image.open(path, formats=['TIFF']) as file:
    if getattr(file, 'n_frames', 1) != 1:
      raise DataError(f'{path}: has {file.n_frames} pages; expected one image per file')
    if file.mode == 'P':
      raise DataError(f'{path}: has a palette, whose indices are no grey values; expected one grey image')
    if file.width * file.height > _MAX_PIXELS:
      raise DataError(f'{path}: claims {file.height} x {file.width} pixels; expected at most {_MAX_PIXELS} in all')
    return np.asarray(file)


def write_dicom(source: str | Path, target: str | Path, hounsfield: np.ndarray, *, network: str, digest: str) -> None:
  """Writes an image that was made from a DICOM image, as one of a derived series.

  Patient, study and geometry stay; image and series get identifiers of their own,
  which follow from the source's and `digest`, so that a resumed run adds to its
  series and another network never does. Private tags are left out: they may
  describe the source's pixels. Values are rounded to whole HU.

  Args:
    source: the DICOM file it was made from.
    target: file to write.
    hounsfield: `[row, col]` in HU, of the source's size.
    network: what made it, in words.
    digest: of the network's weights.

  Raises:
    DataError: naming the file, if the source cannot be read.
  """
  data = _read_dataset(source, pixels=False)
  from pydicom import Dataset
  from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

  origin = Dataset()
  origin.ReferencedSOPClassUID, origin.ReferencedSOPInstanceUID = (
    data.get('SOPClassUID', CTImageStorage),
    data.get('SOPInstanceUID') or generate_uid(),
  )
  data.remove_private_tags()
  # These speak of the source's pixels or of its making.
  for name in ('SmallestImagePixelValue', 'LargestImagePixelValue', 'PixelPaddingValue', 'PixelPaddingRangeLimit', 'IconImageSequence', 'SmallestPixelValueInSeries', 'LargestPixelValueInSeries', 'RealWorldValueMappingSequence',
               'ModalityLUTSequence', 'InstanceCreationDate', 'InstanceCreationTime', 'InstanceCreatorUID'):  # fmt: skip
    if name in data:
      del data[name]
  data.SOPClassUID = origin.ReferencedSOPClassUID
  data.SOPInstanceUID = generate_uid(entropy_srcs=[str(data.get('SOPInstanceUID') or source), digest, 'image'])
  data.SeriesInstanceUID = generate_uid(
    entropy_srcs=[str(data.get('SeriesInstanceUID') or Path(source).parent), digest, 'series']
  )
  data.SeriesNumber = int(data.get('SeriesNumber') or 0) + 1000
  data.SeriesDescription = f'{data.get("SeriesDescription", "")} denoised'.strip()[-64:]
  data.ImageType = ['DERIVED', 'SECONDARY', *list(data.get('ImageType') or ())[2:]]
  data.DerivationDescription = f'Denoised by {network}, weights {digest}'[:1024]
  data.SourceImageSequence = [origin]
  data.SamplesPerPixel, data.PhotometricInterpretation = 1, data.get('PhotometricInterpretation', 'MONOCHROME2')
  data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
  # Whole HU wherever 16 bits can hold them; metal may need coarser steps.
  slope = max(1.0, float(np.abs(hounsfield).max()) / 32767)
  data.RescaleSlope, data.RescaleIntercept, data.RescaleType = f'{slope:.10g}', '0', 'HU'
  data.add_new(
    'PixelData', 'OW', np.clip(np.round(hounsfield / float(data.RescaleSlope)), -32768, 32767).astype('<i2').tobytes()
  )
  data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
  data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = (
    data.SOPClassUID,
    data.SOPInstanceUID,
  )
  data.save_as(target, enforce_file_format=True)
