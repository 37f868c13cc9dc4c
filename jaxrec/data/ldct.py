"""Low-dose CT slices with their full-dose pairs: DICOM of TCIA, HDF5, and folders of TIFF or NumPy images.

- TCIA, LDCT-and-Projection-data: `<root>/**/<patient>/<study>/*{Low,Full} Dose Images*/*.dcm`;
  a pair shares its file name.
- HDF5: `<root>/<split>/*.h5`, one patient each, `low_dose` and `full_dose`
  `[slice, row, col]` in HU; optional `twin_low_dose` (the same scan without its
  structures), `repeats` `[slice, repeat, row, col]` (more scans of the twin) and `structures`
  `[n, 5]` (slice, row, col, diameter in mm, contrast in HU); attributes
  `patient_id` and `pixel_mm`.
- Images: `<root>/<split>/low/*.{npy,tif,tiff}` and `<root>/<split>/full/` with the
  same names; one series.
"""

import fnmatch
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrec.data import ct_images, hdf5
from jaxrec.data.annotations import Region, region_mask
from jaxrec.data.chest import Structure
from jaxrec.data.errors import DataError, distinct
from jaxrec.types import Slice

# Stored values of the LDCT data are HU + 1024; mean and deviation over its training images.
OFFSET, MEAN, STD, RANGE = 1024.0, 481.45419786099086, 502.18507379395044, 4095.0
SPLITS = ('train', 'val', 'test')


class Series(NamedTuple):
  """What the index knows of a series of slices.

  `shape` is `[slice, row, col]`, `crop` the size of a sample, `pairs` the files
  of every slice (empty for HDF5; the full dose is '' where there is none),
  `offset` what is to be subtracted for HU, `pixel` in mm.
  """

  path: str
  name: str
  shape: tuple[int, int, int]
  crop: tuple[int, int]
  patient_id: str
  pairs: tuple[tuple[str, str], ...]
  offset: float
  pixel: float
  paired: bool

  @property
  def fully_sampled(self) -> bool:
    return self.paired

  def stamp(self) -> str:
    """Name, shape and size on disk, for fingerprints."""
    files = [f for pair in self.pairs for f in pair if f] or [self.path]
    return f'{self.name} {self.shape} {sum(Path(f).stat().st_size for f in files)}'


class Index(NamedTuple):
  """Usable series, and what is wrong with the others by path."""

  volumes: list[Series]
  bad: dict[str, str]


def index(
  root: str | Path, split: str, *, patients: str | Path | None = None, offset: float = 0.0, patch: int = 0,
  require_pairs: bool = True, every: bool = False,
) -> Index:  # fmt: skip
  """Finds the series of a split.

  Args:
    root: data set.
    split: `train`, `val` or `test`.
    patients: JSON `{split: [patient or pattern, ...]}`; a patient belongs to the
      split whose entry is the longest that fits it.
      For the layout of TCIA, which has no folders of splits.
    offset: subtracted from TIFF and NumPy images to give HU.
    patch: side of the samples in pixels; whole slices if 0.
    require_pairs: refuse series without full-dose images.
    every: take all patients, whatever the split.

  Returns:
    Usable series by name, and one line per bad file.

  Raises:
    DataError: if there is nothing of any layout.
  """
  root = Path(root)
  if not root.is_dir():
    raise DataError(f'{root}: is no folder; set data.root')
  split_by_folder = any((root / s).is_dir() for s in SPLITS)
  wanted = None if every or split_by_folder else _members(patients, split)
  folder = root / split if split_by_folder else root
  found: list[Series] = []
  bad: dict[str, str] = {}
  described = (
    [(p, _describe_h5) for p in sorted(folder.glob('*.h5'))]
    + [(folder, _describe_images)] * (folder / 'low').is_dir()
    + [(p, _describe_dicom) for p in sorted(folder.rglob('*Low Dose Images*')) if p.is_dir()]
  )
  if not described:
    raise DataError(
      f'{root}: holds neither *.h5 in {split}, nor {split}/low and {split}/full, nor folders "... Low Dose Images ..." of DICOM files; set data.root'
    )
  if wanted is None and not every and not split_by_folder:
    raise DataError(
      f'{root}: patients need a split; make folders train and val, or set data.patients to a JSON file, such as configs/ldct_chest.json'
    )
  for path, describe in described:
    try:
      series = describe(path, offset, bad)
      if wanted is not None and not wanted(series.patient_id):
        continue
      if require_pairs and not series.paired:
        raise DataError(f'{path}: has no full-dose images')
      found.append(series._replace(crop=_crop(series, patch)))
    except DataError as error:
      bad[str(path)] = str(error)
  return Index(distinct(found, bad), bad)


def _members(patients, split):
  if not patients:
    return None
  try:
    table = json.loads(Path(patients).read_text())
    entries = [(entry, name) for name, listed in table.items() for entry in listed]
    if not all(
      isinstance(listed, list) and all(isinstance(entry, str) for entry in listed) for listed in table.values()
    ):
      raise ValueError('expected {split: [patient or pattern, ...]}')
  except (OSError, ValueError, AttributeError, TypeError) as error:
    raise DataError(f'{patients}: is no JSON of patients by split ({error})') from None
  if split not in table:
    raise DataError(f'{patients}: has no split {split}; it has {", ".join(table)}')

  def belongs(patient):
    fitting = [(len(entry), name) for entry, name in entries if fnmatch.fnmatchcase(patient, entry)]
    return bool(fitting) and max(fitting)[1] == split

  return belongs


def _crop(series, patch):
  if not patch:
    return series.shape[1:]
  if patch > min(series.shape[1:]):
    raise DataError(
      f'{series.path}: slices of {series.shape[1]} x {series.shape[2]} are smaller than data.patch={patch}'
    )
  return patch, patch


def _describe_h5(path, offset, bad):
  del offset, bad
  with hdf5.open_file(path) as file:
    try:
      return _describe_volume(path, file)
    except (OSError, KeyError, RuntimeError, TypeError) as error:
      raise DataError(f'{path}: damaged ({error}); copy or download it again') from None


def _describe_volume(path, file):
  low = _numbers(file, 'low_dose')
  if low is None:
    raise DataError(f'{path}: has no data set low_dose; it has {", ".join(file) or "nothing"}')
  if low.ndim != 3 or not all(low.shape):
    raise DataError(f'{path}: low_dose has shape {low.shape}; expected [slice, row, col]')
  others = {name: _numbers(file, name) for name in ('full_dose', 'twin_low_dose', 'repeats', 'structures')}
  for name in ('full_dose', 'twin_low_dose'):
    if others[name] is not None and others[name].shape != low.shape:
      raise DataError(f'{path}: {name} has shape {others[name].shape}, low_dose {low.shape}; they must be equal')
  for name, wanted in (('repeats', (low.shape[0], None, *low.shape[1:])), ('structures', (None, 5))):
    shape = wanted if others[name] is None else others[name].shape
    if len(shape) != len(wanted) or any(w is not None and n != w for n, w in zip(shape, wanted)):
      raise DataError(f'{path}: {name} has shape {shape}; expected {str(wanted).replace("None", "n")}')
  structures = np.zeros((0, 5)) if others['structures'] is None else others['structures'][()]
  if not (np.isfinite(structures).all() and (structures[:, 3] > 0).all()):
    raise DataError(f'{path}: structures hold values that are not finite, or diameters that are not positive')
  patient, pixel = hdf5.text(file.attrs.get('patient_id')), file.attrs.get('pixel_mm', 1.0)
  if not isinstance(pixel, (int, float, np.number)) or not pixel > 0:
    raise DataError(f'{path}: pixel_mm is {pixel!r}; expected a positive number')
  return Series(
    str(path),
    Path(path).stem,
    low.shape,
    low.shape[1:],
    patient or Path(path).stem,
    (),
    0.0,
    float(pixel),
    others['full_dose'] is not None,
  )


def _numbers(file, name):
  data = hdf5.dataset(file, name)
  if data is not None and data.dtype.kind not in 'iuf':
    raise DataError(f'{file.filename}: {name} has type {data.dtype}; expected numbers')
  return data


def _describe_images(folder, offset, bad):
  lows = sorted(p for p in (folder / 'low').iterdir() if p.suffix.lower() in ct_images.GREY)
  if not lows:
    raise DataError(f'{folder}/low: holds no .npy, .tif or .tiff images')
  full = folder / 'full' if (folder / 'full').is_dir() else None
  pairs = _pairs(lows, full, bad)
  shape, pixel = ct_images.describe(pairs[0][0])
  return Series(
    str(folder), folder.name, (len(pairs), *shape), shape, folder.name, pairs, offset, pixel, full is not None
  )


def _describe_dicom(folder, offset, bad):
  del offset
  files = sorted(folder.glob('*.dcm'))
  if not files:
    raise DataError(f'{folder}: holds no .dcm files')
  full = next((p for p in sorted(folder.parent.iterdir()) if p.is_dir() and 'Full Dose Images' in p.name), None)
  pairs = _pairs(files, full, bad)
  shape, pixel = ct_images.describe(pairs[0][0])
  patient = folder.parent.parent.name
  return Series(str(folder), patient, (len(pairs), *shape), shape, patient, pairs, 0.0, pixel, full is not None)


def _pairs(lows, full, bad):
  """Files of every slice, low dose and, in the folder `full` if there is one, full dose."""
  pairs = []
  for low in lows:
    other = full / low.name if full else None
    if other is not None and not other.exists():
      bad[str(low)] = f'{low}: has no full-dose pair {other}'
    else:
      pairs.append((str(low), str(other or '')))
  if not pairs:
    raise DataError(f'{lows[0].parent}: no image has a full-dose pair')
  return tuple(pairs)


def read_hu(series: Series, number: int) -> tuple[np.ndarray, np.ndarray | None]:
  """Low- and full-dose slice in HU, `[row, col]` float32; `None` without a pair.

  Raises:
    DataError: naming the file, if it cannot be read, does not fit the series, or
      holds no air (-500 HU or less) or more than 10000 HU.
  """
  if not series.pairs:
    with hdf5.open_file(series.path) as file:
      images = [
        np.asarray(hdf5.read(file, n, number), np.float32) for n in ['low_dose', 'full_dose'][: 1 + series.paired]
      ]
    paths = [series.path] * len(images)
  else:
    paths = [p for p in series.pairs[number] if p]
    images = [ct_images.read_file(p) - np.float32(series.offset) for p in paths]
  for path, image in zip(paths, images):
    if image.shape != series.shape[1:]:
      raise DataError(
        f'{path}: has {image.shape[0]} x {image.shape[1]} pixels, the series {series.shape[1]} x {series.shape[2]}'
      )
    if not series.pairs and not np.isfinite(image).all():
      raise DataError(f'{path}: slice {number} holds values that are not finite')
    where = path if series.pairs else f'{path}: slice {number}'
    grey = path.lower().endswith(ct_images.GREY)
    check_hu(where, image, 'give --offset to verify_data and data.offset to runs' if grey else 'store HU')
  return images[0], images[1] if len(images) > 1 else None


def check_hu(where: str | Path, image: np.ndarray, mend: str) -> None:
  """Refuses values that are no Hounsfield units: without air (-500 HU or less), or above 10000.

  Args:
    where: for the message.
    image: values as they are taken.
    mend: what to do.

  Raises:
    DataError: if they are not.
  """
  if image.min() > -500 or image.max() > 1e4:
    raise DataError(f'{where}: has values from {image.min():g} to {image.max():g}; these are no HU, {mend}')


def normalise(hounsfield: np.ndarray) -> np.ndarray:
  """HU to the networks' units: zero mean and unit deviation over the LDCT training images."""
  return ((hounsfield + OFFSET - MEAN) / STD).astype(np.float32)


def hounsfield(normalised: np.ndarray) -> np.ndarray:
  """The inverse of `normalise`."""
  return normalised * STD + MEAN - OFFSET


def read_slice(series: Series, number: int, *, region: Region | None = None) -> Slice:
  """A slice, or its centre of the series' `crop`, in the networks' units.

  Args:
    series: of the index.
    number: of the slice.
    region: box to look at.

  Returns:
    The sample; without a pair the target is the low-dose image.

  Raises:
    DataError: see `read_hu`.
  """
  low, full = read_hu(series, number)
  return _sample(low, full, tuple((n - c) // 2 for n, c in zip(low.shape, series.crop)), series.crop, region)


def _sample(low, full, corner, crop, region=None):
  cut = tuple(slice(a, a + c) for a, c in zip(corner, crop))
  low = normalise(low[cut])
  target = normalise(full[cut]) if full is not None else low
  return Slice(low, target, region_mask(region, target.shape), np.float32(RANGE / STD))


def read_patch(series: Series, seed: Sequence[int], centre_hu: tuple[float, float] | tuple = ()) -> Slice:
  """A random patch of a random slice: patients, not slices, are drawn alike.

  Args:
    series: of the index.
    seed: slice and corner follow from it and the series.
    centre_hu: range for the mean full-dose value around the patch's centre, such
      as (-950, -600) for lungs; after 50 draws any patch will do.

  Returns:
    The sample.
  """
  rng = np.random.default_rng([zlib.crc32(series.name.encode()), *seed])
  for _ in range(5):
    number = int(rng.integers(series.shape[0]))
    low, full = read_hu(series, number)
    seen = full if full is not None else low
    for _ in range(10):
      # The last offset counts: every pixel can be in a patch.
      corner = tuple(int(rng.integers(n - c + 1)) for n, c in zip(series.shape[1:], series.crop))
      row, col = (a + c // 2 for a, c in zip(corner, series.crop))
      if (
        not centre_hu
        or centre_hu[0] <= seen[max(row - 4, 0) : row + 5, max(col - 4, 0) : col + 5].mean() <= centre_hu[1]
      ):
        return _sample(low, full, corner, series.crop)
  return _sample(low, full, corner, series.crop)


def read_structures(series: Series, number: int) -> tuple[list[Structure], bool]:
  """Known structures of a slice, and whether there is a twin without them."""
  if series.pairs:
    return [], False
  with hdf5.open_file(series.path) as file:
    listed = hdf5.dataset(file, 'structures')
    listed = () if listed is None else listed[()]
    return [Structure(int(s[0]), *(float(v) for v in s[1:])) for s in listed if int(s[0]) == number], hdf5.dataset(
      file, 'twin_low_dose'
    ) is not None


def read_recorded(series: Series, number: int) -> tuple[np.ndarray, np.ndarray | None]:
  """Twin `[row, col]` and repeated low-dose scans `[repeat, row, col]` of a slice, HU; `None` without repeats.

  Raises:
    DataError: naming the file and what is wrong with it.
  """
  with hdf5.open_file(series.path) as file:

    def get(name):
      images = np.asarray(hdf5.read(file, name, number), np.float32)
      if not np.isfinite(images).all():
        raise DataError(f'{series.path}: {name} of slice {number} holds values that are not finite')
      return images

    return get('twin_low_dose'), None if hdf5.dataset(file, 'repeats') is None else get('repeats')
