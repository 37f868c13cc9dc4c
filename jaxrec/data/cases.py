"""Cases for the analysis of invariances: an input, its twin without a structure, and fresh noise on the same anatomy.

Where a data set has twins and repeated scans (the chest phantom), they are used.
Elsewhere a round structure is put into the k-space (MR) or the images (CT), which makes
the original the twin, and noise is taken from other slices (CT) or drawn thermally (MR).
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxrec import noise
from jaxrec.data import fastmri, ldct
from jaxrec.data.chest import Structure
from jaxrec.data.errors import DataError
from jaxrec.data.singlecoil import centred_images, centred_kspace, zero_filled
from jaxrec.geometry import soft_disc
from jaxrec.types import Scan


class Plan(NamedTuple):
  """Which case to make: a slice of a volume and a structure, `inserted` or recorded with the data."""

  name: str
  patient: str
  volume: ldct.Series | fastmri.Volume
  slice: int
  structure: Structure
  inserted: bool


class Case(NamedTuple):
  """A case in the networks' units.

  `image`, `twin` (the same noise, no structures), `removed` (the same noise,
  without this structure alone), `target`, `twin_target` `[row, col]`, `fresh`
  `[repeat, row, col]`, and `noisy`, the same noise on the anatomy without what
  undersampling adds, float32; the structure's `centre` and `diameter` in pixels,
  its `contrast` in the units of the images.
  """

  image: np.ndarray
  twin: np.ndarray
  removed: np.ndarray
  target: np.ndarray
  twin_target: np.ndarray
  fresh: np.ndarray
  noisy: np.ndarray
  centre: tuple[float, float]
  diameter: float
  contrast: float


def plan(
  volumes: Sequence[ldct.Series | fastmri.Volume], *, diameters: Sequence[float], contrasts: Sequence[float], per_slice: int, seed: int
) -> list[Plan]:
  """Recorded structures, and for slices without any `per_slice` structures to insert.

  Args:
    volumes: whose slices to use.
    diameters: of inserted structures, mm (CT) or pixels (MR).
    contrasts: of inserted structures, HU (CT) or shares of the volume's maximum (MR).
    per_slice: structures to insert, one case each.
    seed: of sizes and contrasts; places are chosen when the slice is read.

  Returns:
    Cases by volume and slice.
  """
  found = []
  for volume in volumes:
    for s in range(volume.shape[0]):
      listed, twin = ldct.read_structures(volume, s) if isinstance(volume, ldct.Series) else ([], False)
      inserted = not (listed and twin)
      if inserted:
        rng = np.random.default_rng([zlib.crc32(volume.name.encode()), s, seed])
        listed = [Structure(s, -1.0, -1.0, float(rng.choice(diameters)), float(rng.choice(contrasts))) for _ in range(per_slice)]
      for i, structure in enumerate(listed):
        found.append(Plan(f'{volume.name}-{s:03d}-{i}', volume.patient_id, volume, s, structure, inserted))
  return found


def read_ct(case: Plan, *, repeats: int, centre_hu: Sequence[float], seed: int) -> Case:
  """A CT case: a patch of the series' `crop` with the structure near its middle.

  Args:
    case: of `plan`, of a series with pairs.
    repeats: fresh noise realisations.
    centre_hu: where structures may be inserted, see `ldct.read_patch`.
    seed: of places and noise.

  Returns:
    The case.

  Raises:
    DataError: if the slice cannot be read or has no place for a structure.
  """
  volume, structure = case.volume, case.structure
  rng = np.random.default_rng([zlib.crc32(case.name.encode()), seed])
  low, full = ldct.read_hu(volume, case.slice)
  if case.inserted:
    place = _place(rng, full, volume.crop, centre_hu)
    if place is None:
      raise DataError(f'{case.name}: no place with a mean of {centre_hu[0]:g} to {centre_hu[1]:g} HU was found for a structure')
    structure = structure._replace(row=place[0], col=place[1])
    diameter = structure.diameter / volume.pixel
    added = structure.contrast * soft_disc(low.shape, (structure.row, structure.col), diameter)
    twin, low = low, low + added
    fresh = full + added + np.stack([_other_noise(rng, volume, case.slice) for _ in range(repeats)])
    twin_full, full = full, full + added
  else:
    twin, again = ldct.read_recorded(volume, case.slice)
    # Doses and twins share most of their noise: what the structures add to one dose, they add to the other, up to the noise of thinning.
    twin_full = full + (twin - low)
    if again is not None and len(again) >= repeats:
      # They hold no structures: those of this scan are put in.
      fresh = again[:repeats] + (low - twin)
    else:
      fresh = full + np.stack([_other_noise(rng, volume, case.slice) for _ in range(repeats)])
    diameter = structure.diameter / volume.pixel
  rows, cols = np.ogrid[: low.shape[0], : low.shape[1]]
  around = np.hypot(rows - structure.row, cols - structure.col) <= diameter / 2 + 4
  removed = np.where(around, twin, low)
  # Not always in the middle of the patch: networks with a sense of place must not profit.
  corner = [
    int(np.clip(round(at) - c // 2 + rng.integers(-c // 8, c // 8 + 1), 0, n - c))
    for at, c, n in zip((structure.row, structure.col), volume.crop, low.shape)
  ]
  cut = tuple(slice(a, a + c) for a, c in zip(corner, volume.crop))
  centre = structure.row - corner[0], structure.col - corner[1]
  images = [ldct.normalise(x[(..., *cut)]) for x in (low, twin, removed, full, twin_full, fresh, fresh)]
  return Case(*images, centre, diameter, structure.contrast / ldct.STD)


def places_ct(volume: ldct.Series, number: int, *, count: int, side: int, centre_hu: Sequence[float], seed: int, apart: float = 8.0) -> list[tuple[int, int]]:
  """Places of a slice for structures, with room for a patch of `side` around each.

  Args:
    volume: a series with pairs.
    number: of the slice.
    count: places; fewer where there is no room.
    side: of the patch, pixels.
    centre_hu: where structures may be, see `ldct.read_patch`.
    seed: of the places.
    apart: least distance between places, pixels.

  Returns:
    Rows and columns, pixels.
  """
  rng = np.random.default_rng([zlib.crc32(volume.name.encode()), number, seed])
  full = ldct.read_hu(volume, number)[1]
  inner = tuple(slice(side // 2, n - side + side // 2 + 1) for n in full.shape)
  found: list[tuple[int, int]] = []
  for _ in range(8 * count):
    if len(found) == count:
      break
    at = _place(rng, full[inner], (4, 4), centre_hu)
    at = at and (int(at[0]) + side // 2, int(at[1]) + side // 2)
    if at and all(np.hypot(at[0] - r, at[1] - c) > apart for r, c in found):
      found.append(at)
  return found


def absent_ct(volume: ldct.Series, number: int, places: Sequence[tuple[int, int]], *, repeats: int, side: int, seed: int) -> np.ndarray:
  """Scans without structures around some places, `[place, repeat, side, side]` float32 in the networks' units.

  They are the recorded repeats of the twin where there are enough; elsewhere the
  full-dose image with the noise of other slices.

  Raises:
    DataError: if the slice cannot be read.
  """
  twin, again = ldct.read_recorded(volume, number) if ldct.read_structures(volume, number)[1] else (None, None)
  if again is None or len(again) < repeats:
    rng = np.random.default_rng([zlib.crc32(volume.name.encode()), number, seed, 1])
    full = ldct.read_hu(volume, number)[1]
    again = np.stack([full + _other_noise(rng, volume, number) for _ in range(repeats)])
  low = side // 2
  cut = [again[:repeats, r - low : r - low + side, c - low : c - low + side] for r, c in places]
  return ldct.normalise(np.stack(cut)) if cut else np.zeros((0, repeats, side, side), np.float32)


def _place(rng, image, crop, centre_hu):
  rows, cols = image.shape
  margin = max(min(12, crop[0] // 4), 4)
  for _ in range(500):
    row, col = (rng.integers(margin, n - margin) for n in (rows, cols))
    around = image[row - 4 : row + 5, col - 4 : col + 5]
    if not centre_hu or centre_hu[0] <= around.mean() <= centre_hu[1]:
      return float(row), float(col)
  return None


def _other_noise(rng, volume, number):
  """Low minus full dose of another slice (of this one, shifted, if there is none), HU."""
  others = [s for s in range(volume.shape[0]) if s != number] or [number]
  low, full = ldct.read_hu(volume, int(rng.choice(others)))
  shift = [int(n) for n in rng.integers(-16, 17, 2)]
  return np.roll(low - full, shift, (0, 1))


def read_mr(case: Plan, scan: Scan, *, repeats: int, seed: int, added_noise: float = 0.0) -> Case:
  """An MR case: zero-filled images in units of `scan.scale`.

  The structure is added to every coil's image along the local phase, so that it
  adds its contrast to the root sum of squares, and goes through the sampling with
  the rest. Fresh noise is what `add_noise` adds; without it, thermal noise is added
  to the measured k-space, which already has its own: outputs move by less than
  between two scans.

  Args:
    case: of `plan`, in pixels and shares of the scan's maximum.
    scan: the slice, NumPy arrays.
    repeats: fresh noise realisations.
    seed: of places and noise.
    added_noise: see `add_noise`; the case and its twin have the same.

  Returns:
    The case.
  """
  rng = np.random.default_rng([zlib.crc32(case.name.encode()), seed])
  structure = place_mr(rng, scan, case.structure)
  if structure is None:
    raise DataError(f'{case.name}: no place in tissue was found for a structure')
  with_it = insert_mr(scan, [structure])
  if added_noise:
    own, *fresh = rng.integers(2**32, size=1 + repeats)
    image, twin = (_seen(add_noise(np.random.default_rng(own), s, added_noise)) for s in (with_it, scan))
    noisy = [add_noise(np.random.default_rng(k), with_it, added_noise) for k in fresh]
  else:
    image, twin = _seen(with_it), _seen(scan)
    sigma = np.asarray(noise.sigma_from_kspace(scan))[:, None, None]
    noisy = [with_it.replace(kspace=with_it.kspace + _complex_normal(rng, scan) * sigma) for _ in range(repeats)]
  fresh = np.stack([_seen(s) for s in noisy])
  target, twin_target = with_it.target / scan.scale, scan.target / scan.scale
  # What noise does to the anatomy itself: the mean over the repeats is what undersampling and rectified noise add.
  systematic = fresh.mean(0) - target if added_noise else image - target
  return Case(image, twin, twin, target, twin_target, fresh, fresh - systematic, (structure.row, structure.col), structure.diameter, structure.contrast)


def _seen(scan):
  return zero_filled(scan).low_dose / scan.scale


def _complex_normal(rng, scan):
  """Complex noise of unit deviation in both parts where the scan was acquired, in its precision."""
  drawn = rng.standard_normal((2, *scan.kspace.shape))
  return np.where(scan.acquired, drawn[0] + 1j * drawn[1], 0).astype(scan.kspace.dtype)


def add_noise(rng: np.random.Generator, scan: Scan, level: float) -> Scan:
  """A scan of lower quality, as from a shorter or low-field examination: noise added to the measured k-space.

  Args:
    rng: of the noise.
    scan: NumPy arrays.
    level: deviation of the real and of the imaginary part in a fully sampled
      coil image, as a share of `scan.scale`.

  Returns:
    The scan with its old target.
  """
  return scan.replace(kspace=scan.kspace + (level * float(scan.scale)) * _complex_normal(rng, scan))


def place_mr(rng: np.random.Generator, scan: Scan, structure: Structure) -> Structure | None:
  """The structure at a random place in tissue, in pixels of the target; `None` where there is no tissue."""
  rows, cols = scan.target.shape
  bright = scan.target > 0.2 * scan.target.max()
  for _ in range(500):
    row, col = rng.integers(6, rows - 6), rng.integers(6, cols - 6)
    if bright[row - 3 : row + 4, col - 3 : col + 4].all():
      return structure._replace(row=float(row), col=float(col))
  return None


def insert_mr(scan: Scan, structures: Sequence[Structure]) -> Scan:
  """Round structures put into the measured k-space and into the target.

  Args:
    scan: NumPy arrays.
    structures: centre and diameter in pixels of the target, contrast as a share
      of `scan.scale`.

  Returns:
    The scan; columns that were not acquired stay empty.
  """
  images = centred_images(scan.kspace)
  top, left = ((n - c) // 2 for n, c in zip(images.shape[1:], scan.target.shape))
  added = np.zeros(images.shape[1:], np.float32)
  for s in structures:
    added += s.contrast * scan.scale * soft_disc(images.shape[1:], (s.row + top, s.col + left), s.diameter)
  total = np.sqrt((np.abs(images) ** 2).sum(0))
  changed = scan.kspace + centred_kspace(images * added / np.where(total > 0, total, 1))
  kspace = np.where(scan.acquired, changed, 0).astype(scan.kspace.dtype)
  inside = added[top : top + scan.target.shape[0], left : left + scan.target.shape[1]]
  return scan.replace(kspace=kspace, target=(scan.target + inside).astype(np.float32))
