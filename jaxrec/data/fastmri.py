"""fastMRI HDF5 volumes: index, safety checks, and slices as scans.

Layout: `<root>/<challenge>_<split>/*.h5` or any folder of volumes. A volume
has `kspace` `[slice, coil, row, col]` (single-coil: `[slice, row, col]`),
`ismrmrd_header`, and `reconstruction_rss` or `reconstruction_esc`; test
volumes have a `mask` and no reconstruction. Without a header the measured columns
are those that are not zero. `Volume` and `Raw` serve the other formats, too.
"""

import json
import os
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrec import masks
from jaxrec.data import hdf5
from jaxrec.data.annotations import SMALLEST, Region
from jaxrec.data.errors import DataError, distinct
from jaxrec.types import Scan

_HEADER_LIMIT = 1 << 20
_NAMESPACE = '{http://www.ismrm.org/ISMRMRD}'
_INDEX_VERSION = 2
_ATTRIBUTES = ('max', 'norm', 'patient_id', 'acquisition')


class Volume(NamedTuple):
  """What the index knows of a volume.

  `shape` is `[slice, coil, row, col]`, `crop` the size of the target,
  `acquired` the half-open range of measured columns (`None`: those that are not
  zero), `target` the data set with the reconstruction (empty: from the k-space;
  `none`: undersampled, there is none), `format` the reader's name.
  """

  path: str
  name: str
  shape: tuple[int, int, int, int]
  crop: tuple[int, int]
  acquired: tuple[int, int] | None
  target: str
  max: float | None
  norm: float | None
  patient_id: str
  acquisition: str
  format: str = 'fastmri'

  @property
  def fully_sampled(self) -> bool:
    return self.target != 'none'

  def stamp(self) -> str:
    """Name, shape and size on disk, for fingerprints."""
    return f'{self.name} {self.shape} {self.crop} {self.acquired} {os.path.getsize(self.path)}'


class Raw(NamedTuple):
  """What a file holds of a slice: k-space `[coil, row, col]`, and mask and target where it has them."""

  kspace: np.ndarray
  mask: np.ndarray | None = None
  target: np.ndarray | None = None


class Index(NamedTuple):
  """Usable volumes, and what is wrong with the others by path."""

  volumes: list[Volume]
  bad: dict[str, str]


class Example(NamedTuple):
  """One slice of one volume, with the box to look at (`None`: whole image)."""

  # Of whatever source: `Volume`, `ldct.Series` or its own.
  volume: Any
  slice: int
  region: Region | None


def folder(root: str | Path, split: str, challenge: str = 'multicoil', suffixes: Sequence[str] = ('.h5',)) -> Path:
  """Folder of a split: `<root>/<challenge>_<split>`, `<root>/<split>` or `<root>`.

  Args:
    root: data set.
    split: `train`, `val` or `test`.
    challenge: `multicoil` or `singlecoil`.
    suffixes: of volumes.

  Raises:
    DataError: if there is no such folder.
  """
  root = Path(root)
  for candidate in (root / f'{challenge}_{split}', root / split, root):
    if candidate.is_dir() and any(p.suffix.lower() in suffixes for p in candidate.iterdir()):
      return candidate
  raise DataError(
    f'{root}: no {" ".join(suffixes)} volumes in {challenge}_{split}, {split} or the folder itself; set data.root'
  )


def index(
  path: str | Path, *, cache: str | Path | None = None, readers: Mapping[str, Callable[[Path], Volume]] | None = None
) -> Index:
  """Checks every volume of a folder; unchanged files are taken from the cache.

  Args:
    path: folder of volumes.
    cache: JSON file to read and to write; not written if that fails.
    readers: what describes files, by suffix; `describe` for `.h5` if `None`.

  Returns:
    Usable volumes by name, and one line per bad file.
  """
  path = Path(path)
  readers = readers or {'.h5': describe}
  known = _load_cache(cache)
  entries: dict[str, dict[str, Any]] = {}
  for file in sorted(p for p in path.iterdir() if p.suffix.lower() in readers):
    try:
      stat = file.stat()
      stamp = [stat.st_size, stat.st_mtime_ns]
    except OSError as error:
      entries[str(file)] = {'stamp': None, 'bad': f'{file}: cannot be read ({error.strerror})'}
      continue
    entry = known.get(str(file))
    # What was bad may be so no longer, though the file is the same: its second file, a package or a permission was missing.
    if entry is None or entry['stamp'] != stamp or 'bad' in entry:
      try:
        entry = {'stamp': stamp, 'volume': readers[file.suffix.lower()](file)._asdict()}
      except DataError as error:
        entry = {'stamp': stamp, 'bad': str(error)}
    entries[str(file)] = entry
  _save_cache(cache, entries)
  bad = {file: e['bad'] for file, e in entries.items() if 'bad' in e}
  volumes = distinct([_volume(e['volume']) for e in entries.values() if 'volume' in e], bad)
  bare = [v for v in volumes if v.format == 'fastmri' and v.acquired is None]
  if bare:
    warnings.warn(
      f'{path}: {len(bare)} volumes have no ismrmrd_header; their measured columns are those that are not zero',
      stacklevel=2,
    )
  return Index(volumes, bad)


def _volume(fields):
  return Volume(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


def _load_cache(cache):
  try:
    stored = json.loads(Path(cache).read_text())
    if stored['version'] != _INDEX_VERSION:
      return {}
    for entry in stored['files'].values():
      if entry['stamp'] and 'volume' in entry:
        _volume(entry['volume'])
      else:
        str(entry['bad'])
    return stored['files']
  except (TypeError, OSError, ValueError, KeyError, AttributeError):
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
    except (OSError, KeyError, RuntimeError, TypeError, UnicodeDecodeError) as error:
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
  acquired, recon = _header(path, file, shape)
  if not target:
    target = derived_target(np.asarray(kspace[shape[0] // 2]))
  crop = recon if target in ('', 'none') else file[target].shape[1:]
  crop = tuple(min(a, b) for a, b in zip(crop, shape[2:]))
  check_size(path, crop)
  if target not in ('', 'none') and (file[target].shape[0] != shape[0] or file[target].shape[1:] != crop):
    raise DataError(f'{path}: {target} has shape {file[target].shape}, which does not fit kspace {kspace.shape}')
  attributes = {name: file.attrs.get(name) for name in _ATTRIBUTES}
  numbers = {name: positive(path, name, attributes[name]) for name in ('max', 'norm')}
  return Volume(
    path=str(path),
    name=path.stem,
    shape=tuple(int(n) for n in shape),
    crop=tuple(int(n) for n in crop),
    acquired=acquired,
    target=target,
    patient_id=hdf5.text(attributes['patient_id']) or path.stem,
    acquisition=hdf5.text(attributes['acquisition']),
    **numbers,
  )


def _find_target(path, file, ndim):
  names = ('reconstruction_rss', 'reconstruction_esc') if ndim == 4 else ('reconstruction_esc', 'reconstruction_rss')
  for name in names:
    data = hdf5.dataset(file, name)
    if data is not None:
      if data.ndim != 3 or data.dtype.kind != 'f':
        raise DataError(
          f'{path}: {name} has shape {data.shape} and type {data.dtype}; expected [slice, row, col] float'
        )
      return name
  return 'none' if hdf5.dataset(file, 'mask') is not None else ''


def derived_target(kspace: np.ndarray) -> str:
  """`Volume.target` of k-space `[..., row, col]` without a reconstruction: empty, or `none` where it is undersampled."""
  measured = (kspace != 0).reshape(-1, *kspace.shape[-2:]).any(0)
  return 'none' if masks.has_gaps(measured) else ''


def check_size(path: str | Path, crop: Sequence[int]) -> None:
  """Refuses images that are smaller than the window of SSIM.

  Raises:
    DataError: naming the file.
  """
  if min(crop) < SMALLEST:
    raise DataError(f'{path}: the target has shape {tuple(crop)}; SSIM needs {SMALLEST} rows and columns or more')


def positive(path: str | Path, name: str, value) -> float | None:
  """An attribute as a positive number, `None` if there is none.

  Raises:
    DataError: naming file and attribute.
  """
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
    return None, shape[2:]
  if data.shape not in ((), (1,)) or data.dtype.itemsize > _HEADER_LIMIT:
    raise DataError(f'{path}: ismrmrd_header is no text of at most 1 MiB')
  encoded, recon, left, right = parse_header(path, data[()] if data.shape == () else data[0])
  left, right = max(left, 0), min(right, shape[-1])
  if right <= left:
    raise DataError(f'{path}: ismrmrd_header says that no column of {shape[-1]} was measured')
  return (left, right), recon


def parse_header(path: str | Path, text: bytes | str) -> tuple[tuple[int, int], tuple[int, int], int, int]:
  """Sizes in an ISMRMRD header.

  Args:
    path: for messages.
    text: XML.

  Returns:
    Encoded matrix and reconstructed one, rows and columns, the first measured
    column, and the one after the last.

  Raises:
    DataError: for XML with entities, or without these numbers.
  """
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

    encoded = tuple(number('encodedSpace', 'matrixSize', axis) for axis in 'xy')
    recon = tuple(number('reconSpace', 'matrixSize', axis) for axis in 'xy')
    limits = ('encodingLimits', 'kspace_encoding_step_1')
    left = encoded[1] // 2 - number(*limits, 'center')
    right = left + number(*limits, 'maximum') + 1
  except (ElementTree.ParseError, ValueError, OverflowError) as error:
    raise DataError(f'{path}: ismrmrd_header is malformed ({error}); copy or download the file again') from None
  if 0 in recon:
    raise DataError(f'{path}: ismrmrd_header gives an empty reconSpace {recon}')
  return encoded, recon, left, right


def read_raw(volume: Volume, slice_index: int) -> Raw:
  """What the file holds of one slice.

  Raises:
    DataError: for a damaged file.
  """
  with hdf5.open_file(volume.path) as file:
    kspace = np.asarray(hdf5.read(file, 'kspace', slice_index)).reshape(volume.shape[1:])
    target = hdf5.read(file, volume.target, slice_index) if volume.target not in ('', 'none') else None
    mask = hdf5.dataset(file, 'mask')
    if mask is not None and mask.size not in (volume.shape[-1], volume.shape[-2] * volume.shape[-1]):
      raise DataError(f'{volume.path}: mask has {mask.size} columns, kspace has {volume.shape[-1]}')
    try:
      return Raw(kspace, None if mask is None else mask[()], target)
    except (OSError, RuntimeError) as error:
      raise DataError(f'{volume.path}: mask is damaged ({error}); copy or download the file again') from None


def read_scan(
  volume: Volume, slice_index: int, draw_mask: Callable[[Volume], masks.LineMask], region: Region | None = None
) -> Scan:
  """One slice as a `Scan` of NumPy arrays.

  An undersampled volume has no target; it keeps its own mask.

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
  return scan_of(volume, slice_index, read_raw(volume, slice_index), draw_mask, region)


def scan_of(
  volume: Volume,
  slice_index: int,
  raw: Raw,
  draw_mask: Callable[[Volume], masks.LineMask],
  region: Region | None = None,
) -> Scan:
  """The scan of what a file holds of a slice, checked.

  Args:
    volume: from the index.
    slice_index: counted from 0.
    raw: k-space, and what else the file holds.
    draw_mask: see `read_scan`.
    region: see there.

  Returns:
    As `read_scan`.

  Raises:
    DataError: naming file and slice.
  """
  acquired = None
  if volume.acquired is not None:
    acquired = np.zeros(volume.shape[-1], bool)
    acquired[volume.acquired[0] : volume.acquired[1]] = True
  mask, acs = draw_mask(volume) if volume.fully_sampled else (raw.mask, None)
  try:
    if raw.target is not None:
      _check_full(raw, volume.shape[2:])
    scan = Scan.from_kspace(
      raw.kspace,
      mask,
      acs=acs,
      acquired=acquired,
      target=raw.target,
      crop=volume.crop,
      scale=volume.max,
      box=region and region[:4],
    )
    if volume.fully_sampled and not scan.has_target:
      raise ValueError('kspace: has gaps, unlike the middle slice')
  except ValueError as error:
    name, _, fault = str(error).partition(': ')
    where = f' of {name}' if name in ('kspace', 'target') else f': {name}:'
    raise DataError(f'{volume.path}: slice {slice_index}{where} {fault}; mend the file, or remove it') from None
  return scan


def _check_full(raw, shape):
  """Masks are drawn for what has a target: it has to be fully sampled."""
  measured = raw.kspace.any(0)
  if raw.mask is not None:
    mask = np.asarray(raw.mask)
    if mask.size not in (shape[1], shape[0] * shape[1]):
      raise ValueError(f'mask: has {mask.size} columns, kspace has {shape[1]}')
    measured &= mask.reshape(-1, shape[1]) != 0
  if masks.has_gaps(measured):
    raise ValueError(
      'target: belongs to undersampled k-space, on which masks would be drawn once more; '
      'leave the target out, and the volume keeps its own mask'
    )


def mask_drawer(
  *,
  kind: str,
  center_fractions: Sequence[float],
  accelerations: Sequence[int],
  seed: int = 0,
  offset: int | None = None,
) -> Callable[[Any], masks.LineMask]:
  """Masks per volume: all its slices share one, seeded by its file name, with the suffix `.h5` in all formats.

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
    letters = tuple(map(ord, f'{volume.name}.h5'))
    return masks.line_mask(
      kind,
      volume.shape[-1],
      center_fractions=center_fractions,
      accelerations=accelerations,
      seed=(*letters, seed) if seed else letters,
      offset=offset,
    )

  return draw
