"""Where samples come from: one protocol for every format, and what verifies any of them.

`KSpace` reads fastMRI HDF5, ISMRMRD, BART and NumPy volumes, recognised by suffix and
content; `CT` reads low-dose CT. A source of your own has the three methods of
`Source`, and volumes with the attributes that `Source.index` lists.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxrec import masks
from jaxrec.data import bart, fastmri, hdf5, ismrmrd, ldct, npz
from jaxrec.data.annotations import Region
from jaxrec.data.errors import DataError
from jaxrec.data.fastmri import Index, Volume
from jaxrec.types import Sample, Scan, Slice

DrawMask = Callable[[Any], masks.LineMask]


class Source(Protocol):
  """A data set. It is pickled for reading processes: open files where they are read."""

  def index(self, split: str, *, cache: str | Path | None = None) -> Index | ldct.Index:
    """Finds and checks the volumes of a split without reading all of them.

    Args:
      split: `train`, `val` or `test`; empty for all there is.
      cache: JSON file of an earlier index, to read and to write; may be ignored.

    Returns:
      `Index(volumes, bad)`: usable volumes, and one line per unusable file by its
      path. A volume has `name`, `path`, `shape` (`[slice, ...]`), `crop` (size of
      the target), `patient_id`, `fully_sampled` (it has a target) and `stamp()`, a
      line that changes with the data.

    Raises:
      DataError: if there is no data set.
    """
    ...

  def read(self, volume: Any, number: int, draw_mask: DrawMask, region: Region | None = None) -> Sample:
    """One slice.

    Args:
      volume: of the index.
      number: of the slice, from 0.
      draw_mask: the experiment's mask of a volume, `[1, shape[-1]]`; for sources of k-space.
      region: box on the target.

    Returns:
      A `Scan` (`Scan.from_kspace` makes and checks one) or a `Slice` of NumPy arrays.

    Raises:
      DataError: for unusable data, naming file and slice.
    """
    ...

  def verify(self, volume: Any, number: int) -> list[str]:
    """Does what any reading of a slice does.

    Returns:
      Remarks on data that are used nonetheless.

    Raises:
      DataError: as `read`.
    """
    ...


def _is_ismrmrd(path):
  if Path(path).suffix == '.mrd':
    return True
  with hdf5.open_file(path) as file:
    return ismrmrd.holds(file)


def _describe_hdf5(path):
  return (ismrmrd if _is_ismrmrd(path) else fastmri).describe(path)


_READERS = {'.h5': _describe_hdf5, '.mrd': ismrmrd.describe, '.cfl': bart.describe, '.npz': npz.describe}
_RAW = {'fastmri': fastmri.read_raw, 'ismrmrd': ismrmrd.read_raw, 'bart': bart.read_raw, 'npz': npz.read_raw}


class KSpace:
  """k-space volumes in folders `<root>/<challenge>_<split>`, `<root>/<split>` or in the root itself.

  Args:
    root: data set.
    challenge: `multicoil` or `singlecoil`.
  """

  def __init__(self, root: str | Path, challenge: str = 'multicoil'):
    self.root, self.challenge = Path(root), challenge

  def index(self, split: str, *, cache: str | Path | None = None) -> Index:
    if split:
      return fastmri.index(
        fastmri.folder(self.root, split, self.challenge, tuple(_READERS)), cache=cache, readers=_READERS
      )
    folders = sorted({path.parent for path in self.root.rglob('*') if path.suffix.lower() in _READERS})
    if not folders:
      raise DataError(f'{self.root}: holds no {" ".join(_READERS)} volumes')
    found = [fastmri.index(folder, readers=_READERS) for folder in folders]
    return Index([v for f in found for v in f.volumes], {path: line for f in found for path, line in f.bad.items()})

  def read(self, volume: Volume, number: int, draw_mask: DrawMask, region: Region | None = None) -> Scan:
    return fastmri.scan_of(volume, number, _RAW[volume.format](volume, number), draw_mask, region)

  def verify(self, volume: Volume, number: int) -> list[str]:
    scan = self.read(volume, number, _everything)
    notes = []
    dead = np.flatnonzero(~scan.kspace.any((-2, -1)))
    if dead.size:
      notes.append(
        f'{volume.path}: slice {number} has no signal in coil {", ".join(map(str, dead))}; it is used, the coil is ignored'
      )
    if volume.max is None and volume.shape[0] > 1:
      notes.append(f'{volume.path}: does not say its maximum (max), so that the data range of a slice is its own')
    return notes


def _everything(volume):
  return masks.LineMask(*[np.ones((1, volume.shape[-1]), bool)] * 2)


class CT:
  """Low-dose CT, see `data.ldct`.

  Args:
    root: data set.
    patients: see `ldct.index`.
    offset: see there.
    patch: side of the samples, pixels; whole slices if 0.
  """

  def __init__(self, root: str | Path, *, patients: str | Path | None = None, offset: float = 0.0, patch: int = 0):
    self.root, self.patients, self.offset, self.patch = Path(root), patients, offset, patch

  def index(self, split: str, *, cache: str | Path | None = None) -> ldct.Index:
    del cache
    if split:
      return ldct.index(self.root, split, patients=self.patients, offset=self.offset, patch=self.patch)
    splits = [s for s in ldct.SPLITS if (self.root / s).is_dir()] or ['train']
    found = [ldct.index(self.root, s, offset=self.offset, require_pairs=False, every=True) for s in splits]
    return ldct.Index(
      [v for f in found for v in f.volumes], {path: line for f in found for path, line in f.bad.items()}
    )

  def read(
    self, volume: ldct.Series, number: int, draw_mask: DrawMask | None = None, region: Region | None = None
  ) -> Slice:
    return ldct.read_slice(volume, number, region=region)

  def verify(self, volume: ldct.Series, number: int) -> list[str]:
    self.read(volume, number)
    if ldct.read_structures(volume, number)[1]:
      ldct.read_recorded(volume, number)
    first = number == 0 and not volume.paired
    return [f'{volume.path}: has no full-dose images; training and attacks leave it out'] if first else []


def recognised(root: str | Path, *, offset: float = 0.0) -> KSpace | CT:
  """The source of a folder, by what is in it: low-dose CT, or else k-space.

  Args:
    root: data set.
    offset: see `CT`.
  """
  root = Path(root)
  if any(root.rglob('*Low Dose Images*')) or any((root / s / 'low').is_dir() for s in ('.', *ldct.SPLITS)):
    return CT(root, offset=offset)
  first = next(root.rglob('*.h5'), None)
  if first is None:
    return KSpace(root)
  try:
    with hdf5.open_file(first) as file:
      return CT(root, offset=offset) if 'low_dose' in file else KSpace(root)
  except DataError:
    return KSpace(root)
