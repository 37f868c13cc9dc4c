"""fastMRI HDF5 volumes: index, safety checks, and slices as scans.

Layout: `<root>/<challenge>_<split>/*.h5` or any folder of volumes. A volume
has `kspace` `[slice, coil, row, col]` (single-coil: `[slice, row, col]`),
`ismrmrd_header`, and `reconstruction_rss` or `reconstruction_esc`; test
volumes have a `mask` and no reconstruction.
"""

import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrec import masks
from jaxrec.data import hdf5
from jaxrec.data.annotations import SMALLEST, Region, region_mask
from jaxrec.data.errors import DataError
from jaxrec.data.singlecoil import centre_of, centred_images
from jaxrec.types import Scan

_HEADER_LIMIT = 1 << 20
_NAMESPACE = '{http://www.ismrm.org/ISMRMRD}'
_INDEX_VERSION = 1
_ATTRIBUTES = ('max', 'norm', 'patient_id', 'acquisition')


class Volume(NamedTuple):
  """What the index knows of a volume.

  `shape` is `[slice, coil, row, col]`, `crop` the size of the target,
  `acquired` the half-open range of measured columns, `target` the data set with
  the reconstruction (empty: from the k-space; `none`: a test volume).
  """

  path: str
  name: str
  shape: tuple[int, int, int, int]
  crop: tuple[int, int]
  acquired: tuple[int, int]
  target: str
  max: float | None
  norm: float | None
  patient_id: str
  acquisition: str

  @property
  def fully_sampled(self) -> bool:
    return self.target != 'none'

  def stamp(self) -> str:
    """Name, shape and size on disk, for fingerprints."""
    return f'{self.name} {self.shape} {self.crop} {self.acquired} {os.path.getsize(self.path)}'


class Index(NamedTuple):
  """Usable volumes, and what is wrong with the others by path."""

  volumes: list[Volume]
  bad: dict[str, str]


class Example(NamedTuple):
  """One slice of one volume, with the box to look at (`None`: whole image)."""

  volume: Volume
  slice: int
  region: Region | None


def folder(root: str | Path, split: str, challenge: str = 'multicoil') -> Path:
  """Folder of a split: `<root>/<challenge>_<split>`, `<root>/<split>` or `<root>`.

  Raises:
    DataError: if there is no such folder.
  """
  root = Path(root)
  for candidate in (root / f'{challenge}_{split}', root / split, root):
    if candidate.is_dir() and any(candidate.glob('*.h5')):
      return candidate
  raise DataError(f'{root}: no .h5 volumes in {challenge}_{split}, {split} or the folder itself; set data.root')


def index(path: str | Path, *, cache: str | Path | None = None) -> Index:
  """Checks every volume of a folder; unchanged files are taken from the cache.

  Args:
    path: folder of `.h5` files.
    cache: JSON file to read and to write; not written if that fails.

  Returns:
    Usable volumes by name, and one line per bad file.
  """
  path = Path(path)
  known = _load_cache(cache)
  entries = {}
  for file in sorted(path.glob('*.h5')):
    try:
      stat = file.stat()
      stamp = [stat.st_size, stat.st_mtime_ns]
    except OSError as error:
      entries[str(file)] = {'stamp': None, 'bad': f'{file}: cannot be read ({error.strerror})'}
      continue
    entry = known.get(str(file))
    if entry is None or entry['stamp'] != stamp:
      try:
        entry = {'stamp': stamp, 'volume': describe(file)._asdict()}
      except DataError as error:
        entry = {'stamp': stamp, 'bad': str(error)}
    entries[str(file)] = entry
  _save_cache(cache, entries)
  volumes = [_volume(e['volume']) for e in entries.values() if 'volume' in e]
  return Index(volumes, {file: e['bad'] for file, e in entries.items() if 'bad' in e})


def _volume(fields):
  fields = dict(fields)
  for key in ('shape', 'crop', 'acquired'):
    fields[key] = tuple(fields[key])
  return Volume(**fields)


def _load_cache(cache):
  try:
    stored = json.loads(Path(cache).read_text())
    return stored['files'] if stored['version'] == _INDEX_VERSION else {}
  except (TypeError, OSError, ValueError, KeyError):
    return {}


def _save_cache(cache, entries):
  if cache is None:
    return
  try:
    temporary = Path(f'{cache}.{os.getpid()}')
    temporary.write_text(json.dumps({'version': _INDEX_VERSION, 'files': entries}))
    temporary.replace(cache)
  except OSError:
    pass


def describe(path: str | Path) -> Volume:
  """Checks one volume without reading its k-space.

  Args:
    path: the `.h5` file.

  Returns:
    Its description.

  Raises:
    DataError: naming the file, the field, and what to do.
  """
  path = Path(path)
  with hdf5.open_file(path) as file:
    try:
      return _describe(path, file)
    except (OSError, KeyError, RuntimeError, UnicodeDecodeError) as error:
      raise DataError(f'{path}: damaged ({error}); copy or download it again') from None


def _describe(path, file):
  kspace = hdf5.dataset(file, 'kspace')
  if kspace is None:
    raise DataError(f'{path}: data set kspace is missing; it is no fastMRI volume')
  if kspace.ndim not in (3, 4) or 0 in kspace.shape:
    raise DataError(f'{path}: kspace has shape {kspace.shape}; expected [slice, coil, row, col] without zeros')
  if kspace.dtype.kind != 'c':
    raise DataError(f'{path}: kspace has type {kspace.dtype}; expected complex')
  if min(kspace.shape[-2:]) < SMALLEST:
    raise DataError(f'{path}: kspace has shape {kspace.shape}; SSIM needs {SMALLEST} rows and columns or more')
  shape = kspace.shape if kspace.ndim == 4 else (kspace.shape[0], 1, *kspace.shape[1:])
  target = _find_target(path, file, kspace.ndim)
  left, right, recon = _header(path, file, shape)
  crop = recon if target in ('', 'none') else file[target].shape[1:]
  crop = tuple(min(a, b) for a, b in zip(crop, shape[2:]))
  if target not in ('', 'none') and (file[target].shape[0] != shape[0] or file[target].shape[1:] != crop):
    raise DataError(f'{path}: {target} has shape {file[target].shape}, which does not fit kspace {kspace.shape}')
  if min(crop) < SMALLEST:
    raise DataError(f'{path}: the target has shape {crop}; SSIM needs {SMALLEST} rows and columns or more')
  attributes = {name: file.attrs.get(name) for name in _ATTRIBUTES}
  numbers = {name: _number(path, name, attributes[name]) for name in ('max', 'norm')}
  return Volume(
    path=str(path),
    name=path.stem,
    shape=tuple(int(n) for n in shape),
    crop=tuple(int(n) for n in crop),
    acquired=(left, right),
    target=target,
    patient_id=_text(attributes['patient_id']) or path.stem,
    acquisition=_text(attributes['acquisition']),
    **numbers,
  )


def _find_target(path, file, ndim):
  names = ('reconstruction_rss', 'reconstruction_esc') if ndim == 4 else ('reconstruction_esc', 'reconstruction_rss')
  for name in names:
    data = hdf5.dataset(file, name)
    if data is not None:
      if data.ndim != 3 or data.dtype.kind != 'f':
        raise DataError(f'{path}: {name} has shape {data.shape} and type {data.dtype}; expected [slice, row, col] float')
      return name
  return 'none' if hdf5.dataset(file, 'mask') is not None else ''


def _text(value):
  if isinstance(value, bytes):
    value = value.decode('utf-8', 'replace')
  return '' if value is None else str(value)


def _number(path, name, value):
  if value is None:
    return None
  try:
    number = float(value)
  except (TypeError, ValueError):
    raise DataError(f'{path}: attribute {name} is not a number') from None
  if not np.isfinite(number) or number <= 0:
    raise DataError(f'{path}: attribute {name} is {number}; expected a positive number')
  return number


def _header(path, file, shape):
  data = hdf5.dataset(file, 'ismrmrd_header')
  if data is None:
    raise DataError(f'{path}: ismrmrd_header is missing; without it the measured columns are unknown')
  if data.shape not in ((), (1,)) or data.dtype.itemsize > _HEADER_LIMIT:
    raise DataError(f'{path}: ismrmrd_header is no text of at most 1 MiB')
  text = data[()] if data.shape == () else data[0]
  if isinstance(text, bytes):
    text = text.rstrip(b'\0').decode('utf-8', 'replace')
  if not isinstance(text, str) or len(text) > _HEADER_LIMIT or '<!DOCTYPE' in text or '<!ENTITY' in text:
    raise DataError(f'{path}: ismrmrd_header is no plain XML of at most 1 MiB')
  try:
    encoding = ElementTree.fromstring(re.sub(r'^\s*<\?xml[^>]*\?>', '', text)).find(f'{_NAMESPACE}encoding')
    if encoding is None:
      raise ValueError('no encoding')

    def number(*names):
      element = encoding.find('/'.join(_NAMESPACE + n for n in names))
      if element is None or element.text is None:
        raise ValueError(f'no {"/".join(names)}')
      value = int(float(element.text))
      if not 0 <= value <= 1 << 20:
        raise ValueError(f'{"/".join(names)} is {value}')
      return value

    encoded = number('encodedSpace', 'matrixSize', 'y')
    recon = tuple(number('reconSpace', 'matrixSize', axis) for axis in 'xy')
    limits = ('encodingLimits', 'kspace_encoding_step_1')
    left = encoded // 2 - number(*limits, 'center')
    right = left + number(*limits, 'maximum') + 1
  except (ElementTree.ParseError, ValueError, OverflowError) as error:
    raise DataError(f'{path}: ismrmrd_header is malformed ({error}); copy or download the file again') from None
  left, right = max(left, 0), min(right, shape[-1])
  if right <= left:
    raise DataError(f'{path}: ismrmrd_header says that no column of {shape[-1]} was measured')
  if 0 in recon:
    raise DataError(f'{path}: ismrmrd_header gives an empty reconSpace {recon}')
  return left, right, recon


def read_kspace(volume: Volume, slice_index: int) -> np.ndarray:
  """k-space of one slice, `[coil, row, col]` complex64, checked for values.

  Raises:
    DataError: for NaN, an all-zero slice or a damaged file.
  """
  with hdf5.open_file(volume.path) as file:
    kspace = hdf5.read(file, 'kspace', slice_index)
  kspace = np.asarray(kspace, np.complex64).reshape(volume.shape[1:])
  where = f'{volume.path}: slice {slice_index}'
  if not np.isfinite(kspace.view(np.float32)).all():
    raise DataError(f'{where} of kspace holds NaN or infinity; remove the file or the slice')
  if not kspace.any():
    raise DataError(f'{where} of kspace is all zero; remove the file or the slice')
  return kspace


def read_scan(
  volume: Volume, slice_index: int, draw_mask: Callable[[Volume], masks.LineMask], region: Region | None = None
) -> Scan:
  """One slice as a `Scan` of NumPy arrays.

  A test volume has no fully sampled target; it gets its own mask, and the
  zero-filled image as target, fit for reconstruction but not for scores.

  Args:
    volume: from the index.
    slice_index: counted from 0.
    draw_mask: gives the sampling mask of a volume, such as `mask_drawer(...)`.
    region: box on the target; `None` for the whole image.

  Returns:
    The scan. `scale` is the attribute `max`, or else the target's maximum.

  Raises:
    DataError: for unusable data.
  """
  kspace = read_kspace(volume, slice_index)
  acquired = np.zeros((1, volume.shape[-1]), bool)
  acquired[:, volume.acquired[0] : volume.acquired[1]] = True
  if volume.fully_sampled:
    line = draw_mask(volume)
  else:
    with hdf5.open_file(volume.path) as file:
      stored = hdf5.dataset(file, 'mask')
      if stored.size != acquired.size:
        raise DataError(f'{volume.path}: mask has {stored.size} columns, kspace has {acquired.size}')
      stored = np.asarray(stored[()]).astype(bool).reshape(1, -1)
    line = masks.LineMask(stored, masks.acs_of_mask(stored))
  try:
    line = masks.restrict(line, acquired)
  except ValueError as error:
    raise DataError(f'{volume.path}: {error}') from None
  if volume.target in ('', 'none'):
    target = _rss_target(kspace, volume.crop)
  else:
    with hdf5.open_file(volume.path) as file:
      target = np.asarray(hdf5.read(file, volume.target, slice_index), np.float32)
    if not np.isfinite(target).all():
      raise DataError(f'{volume.path}: slice {slice_index} of {volume.target} holds NaN or infinity')
  scale = volume.max or float(target.max())
  if not scale > 0:
    raise DataError(f'{volume.path}: slice {slice_index} has an empty target')
  return Scan(
    kspace=kspace,
    mask=line.mask,
    acs=line.acs,
    acquired=acquired,
    target=target,
    region=region_mask(region, target.shape),
    scale=np.float32(scale),
  )


def _rss_target(kspace, crop):
  image = np.sqrt((np.abs(centred_images(kspace)) ** 2).sum(0)).astype(np.float32)
  return centre_of(image, crop)


def mask_drawer(
  *,
  kind: str,
  center_fractions: Sequence[float],
  accelerations: Sequence[int],
  seed: int = 0,
  offset: int | None = None,
) -> Callable[[Volume], masks.LineMask]:
  """Masks per volume: all its slices share one, seeded by its file name.

  Args:
    kind: see `masks.line_mask`.
    center_fractions: see there.
    accelerations: see there.
    seed: 0 gives the masks of fastMRI's validation; others give other draws.
    offset: see there.

  Returns:
    A function from a volume to its mask.
  """

  def draw(volume: Volume) -> masks.LineMask:
    letters = tuple(map(ord, Path(volume.path).name))
    return masks.line_mask(
      kind,
      volume.shape[-1],
      center_fractions=center_fractions,
      accelerations=accelerations,
      seed=(*letters, seed) if seed else letters,
      offset=offset,
    )

  return draw
