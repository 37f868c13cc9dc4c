"""Sites for the observer: places of a patient, scanned repeatedly, with and without structures.

Where a data set has repeated scans of twins without structures (the chest phantom),
they are used. Elsewhere noise is taken from other slices (CT) or drawn thermally
(MR). A round structure is put into the images (CT) or the k-space (MR).
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxrec import noise
from jaxrec.data import chest, ldct
from jaxrec.data.chest import Structure
from jaxrec.data.singlecoil import centred_images, centred_kspace, zero_filled
from jaxrec.geometry import soft_disc
from jaxrec.types import Scan

Rescan = Callable[[np.random.Generator, np.ndarray], np.ndarray]


class Site(NamedTuple):
  """A place of a patient; images are float32, in the networks' units.

  Attributes:
    absent: `[scan, row, col]`, without the structure.
    present: `[class, few, row, col]`, under the noise of the first scans.
    corner: first row and column of what the observer sees.
    target: `[row, col]`, the anatomy without noise.
    added: `[class, row, col]`, what the structures add to it.
    rescan: `(rng, anatomies [..., row, col])` to new scans of them; `None` where
      the scanner is not known.
  """

  absent: np.ndarray
  present: np.ndarray
  corner: tuple[int, int]
  target: np.ndarray
  added: np.ndarray
  rescan: Rescan | None = None


def places_ct(
  volume: ldct.Series, number: int, *, count: int, side: int, centre_hu: Sequence[float], seed: int, apart: float = 8.0
) -> list[tuple[int, int]]:
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
  full = _pair(volume, number)[1]
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


def sites_ct(
  volume: ldct.Series, number: int, places: Sequence[tuple[int, int]], *, added: np.ndarray, repeats: int, few: int, reach: int, seed: int,
  scanner: dict[str, float] | None = None,
) -> Iterator[Site]:  # fmt: skip
  """Sites of a slice; it is read once for all of its places.

  Scans are the recorded repeats of the twin where there are enough; elsewhere the
  full-dose image with the noise of other slices.

  Args:
    volume: a series with pairs.
    number: of the slice.
    places: rows and columns, of `places_ct`.
    added: `[class, side, side]`, structures in the middle of a patch, normalised.
    repeats: scans per site.
    few: of them shown with structures.
    reach: the observer sees `2 reach + 1` rows and columns.
    seed: of the noise.
    scanner: `photons` and `dose` of `chest.rescan`, if known.

  Raises:
    DataError: if the slice cannot be read.
  """
  low, full = _pair(volume, number)
  twin, again = ldct.read_recorded(volume, number) if ldct.read_structures(volume, number)[1] else (None, None)
  # Doses and twins share most of their noise: what the structures add to one dose, they add to the other, up to the noise of thinning.
  anatomy = full if twin is None else full + (twin - low)
  if again is None or len(again) < repeats:
    rng = np.random.default_rng([zlib.crc32(volume.name.encode()), number, seed, 1])
    again = np.stack([full + _other_noise(rng, volume, number) for _ in range(repeats)])
    anatomy = full
  side = added.shape[-1]
  for row, col in places:
    cut = slice(row - side // 2, row - side // 2 + side), slice(col - side // 2, col - side // 2 + side)
    absent = ldct.normalise(again[:repeats, cut[0], cut[1]])
    corner = (side // 2 - reach,) * 2
    yield Site(
      absent,
      absent[None, :few] + added[:, None],
      corner,
      ldct.normalise(anatomy[cut]),
      added,
      _rescan_ct(anatomy, cut, scanner) if scanner else None,
    )


def _pair(volume: ldct.Series, number: int) -> tuple[np.ndarray, np.ndarray]:
  low, full = ldct.read_hu(volume, number)
  assert full is not None, f'{volume.path}: has no pairs'
  return low, full


def _rescan_ct(anatomy, cut, scanner):
  def rescan(rng, patches):
    found = []
    for patch in patches:
      whole = anatomy.copy()
      whole[cut] = ldct.hounsfield(patch)
      found.append(ldct.normalise(chest.rescan(rng, whole, **scanner)[cut]))
    return np.stack(found)

  return rescan


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
  low, full = _pair(volume, int(rng.choice(others)))
  shift = [int(n) for n in rng.integers(-16, 17, 2)]
  return np.roll(low - full, shift, (0, 1))


def sites_mr(
  name: str,
  scan: Scan,
  *,
  structures: Sequence[tuple[float, float]],
  count: int,
  repeats: int,
  few: int,
  reach: int,
  seed: int,
  added_noise: float = 0.0,
) -> Iterator[Site]:
  """Sites of an MR slice, in zero-filled images in units of `scan.scale`.

  A structure is added to every coil's image along the local phase, so that it adds
  its contrast to the root sum of squares, and goes through the sampling with the
  rest. Noise is what `add_noise` adds; without it, thermal noise is added to the
  measured k-space, which already has its own.

  Args:
    name: of the slice; places and noise follow from it and the seed.
    scan: the slice, NumPy arrays.
    structures: diameters in pixels and contrasts as shares of the scan's maximum.
    count: sites; fewer where there is no tissue.
    repeats: scans per site.
    few: of them shown with structures.
    reach: see `sites_ct`.
    seed: of places and noise.
    added_noise: see `add_noise`.
  """
  rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
  level = added_noise * float(scan.scale) if added_noise else np.asarray(noise.sigma_from_kspace(scan))[:, None, None]
  target = (scan.target / scan.scale).astype(np.float32)
  places: list[tuple[int, int]] = []
  for _ in range(8 * count):
    found = place_mr(rng, scan, Structure(0, -1.0, -1.0, 1.0, 1.0), margin=max(reach + 1, 6))
    at = found and (int(found.row), int(found.col))
    if len(places) < count and at and all(np.hypot(at[0] - r, at[1] - c) > 4 for r, c in places):
      places.append(at)
  for row, col in places:
    drawn = [level * _complex_normal(rng, scan) for _ in range(repeats)]
    absent = np.stack([_seen(scan.replace(kspace=scan.kspace + n)) for n in drawn])
    with_it = [insert_mr(scan, [Structure(0, row, col, *s)]) for s in structures]
    present = np.array([[_seen(s.replace(kspace=s.kspace + n)) for n in drawn[:few]] for s in with_it], np.float32)
    added = np.array([s.target / scan.scale - target for s in with_it], np.float32)

    def rescan(rng, anatomies):
      changed = [_added(scan, (a - target) * scan.scale) for a in anatomies]
      return np.stack([_seen(s.replace(kspace=s.kspace + level * _complex_normal(rng, scan))) for s in changed])

    yield Site(absent, present, (row - reach, col - reach), target, added, rescan)


def _seen(scan):
  return zero_filled(scan).input / scan.scale


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


def place_mr(rng: np.random.Generator, scan: Scan, structure: Structure, *, margin: int = 6) -> Structure | None:
  """The structure at a random place in tissue, in pixels of the target, `margin` of them from its edges; `None` where there is no tissue."""
  rows, cols = scan.target.shape
  bright = scan.target > 0.2 * scan.target.max()
  for _ in range(500):
    row, col = rng.integers(margin, rows - margin), rng.integers(margin, cols - margin)
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
  added = np.zeros(scan.target.shape, np.float32)
  for s in structures:
    added += s.contrast * scan.scale * soft_disc(scan.target.shape, (s.row, s.col), s.diameter)
  return _added(scan, added)


def _added(scan, added):
  """A scan whose target has `added` `[row, col]` more."""
  images = centred_images(scan.kspace)
  pad = [((n - c) // 2, n - c - (n - c) // 2) for n, c in zip(images.shape[1:], scan.target.shape)]
  total = np.sqrt((np.abs(images) ** 2).sum(0))
  changed = scan.kspace + centred_kspace(images * np.pad(added, pad) / np.where(total > 0, total, 1))
  kspace = np.where(scan.acquired, changed, 0).astype(scan.kspace.dtype)
  return scan.replace(kspace=kspace, target=(scan.target + added).astype(np.float32))
