"""A built-in chest phantom for low-dose CT, with nodules, repeated scans and twins without nodules.

Every slice is a sum of ellipses (body, lungs, heart, spine, ribs, vessels, nodules)
whose sinogram is exact. Photon counts are nested: the low dose keeps a share of
the photons of the full dose, and the slice with nodules keeps of the photons of
its twin those that the nodules let pass. So both doses, and both twins, show the
same noise wherever they measured the same.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxrec import tomography
from jaxrec.data import files, synthetic
from jaxrec.tomography import Geometry

WATER = 0.0192
DIAMETERS = (2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
CONTRASTS = (200.0, 400.0, 800.0)
_ELECTRONIC = 10.0


class Structure(NamedTuple):
  """A round structure: slice, centre in pixels, diameter in mm, contrast to its surroundings in HU."""

  slice: int
  row: float
  col: float
  diameter: float
  contrast: float


class ChestVolume(NamedTuple):
  """Slices of one patient in HU, int16.

  `low_dose`, `full_dose` and `twin_low_dose` (without nodules, same noise) are
  `[slice, row, col]`; `repeats` `[slice, repeat, row, col]` are low-dose scans of
  the twin, with new noise.
  """

  low_dose: np.ndarray
  full_dose: np.ndarray
  twin_low_dose: np.ndarray
  repeats: np.ndarray
  structures: list[Structure]


def volume(
  seed: int | Sequence[int], *, slices: int = 2, repeats: int = 0, nodules: int = 8, pixels: int = 256, photons: float = 2.4e4,
  dose: float = 0.1, diameters: Sequence[float] = DIAMETERS, contrasts: Sequence[float] = CONTRASTS,
) -> ChestVolume:  # fmt: skip
  """Draws the slices of one patient and scans them.

  Args:
    seed: anatomy, nodules and noise follow from it.
    slices: slices, 8 mm apart in shape.
    repeats: further low-dose scans of the twin of every slice.
    nodules: nodules per slice.
    pixels: rows and columns of 400 mm; detector and views go with it.
    photons: I0 of the full dose per detector bin; 2.4e4 gives low-dose images
      the PSNR of the real chest data, 18.1 dB of images cut to the lung window
      (-1350 to 150 HU), as ldct-benchmark measures it.
    dose: low dose over full dose.
    diameters: of nodules, mm.
    contrasts: of nodules to the lung, HU.

  Returns:
    The patient.

  Raises:
    ValueError: for sizes that leave no room.
  """
  if slices < 1 or repeats < 0 or nodules < 0 or pixels < 32 or not 0 < dose <= 1 or photons <= 0:
    raise ValueError('phantom: needs at least one slice, 32 pixels, photons above 0 and a dose in (0, 1]')
  rng = np.random.default_rng(seed)
  geometry = geometry_of(pixels)
  body, lungs = _Body(rng), []
  low, full, twin, again, structures = [], [], [], [], []
  for s in range(slices):
    shapes, lungs = body.draw(8.0 * s, rng)
    found = _nodules(rng, lungs, nodules, diameters, contrasts)
    middle = (pixels - 1) / 2
    structures += [
      Structure(s, row / geometry.pixel + middle, col / geometry.pixel + middle, 2 * radius, contrast)
      for row, col, radius, contrast in found
    ]
    without = np.asarray(_sinogram(_padded(shapes), geometry), np.float64)
    added = [(r, c, a, a, 0.0, WATER * h / 1000) for r, c, a, h in found] or [(0, 0, 1, 1, 0, 0.0)]
    nodule = np.asarray(_sinogram(_padded(np.array(added)), geometry), np.float64)
    counts = rng.poisson(photons * np.exp(-without))
    kept = rng.binomial(counts, dose)
    survive = np.exp(-nodule)
    kept_with = rng.binomial(kept, survive)
    rest_with = rng.binomial(counts - kept, survive)
    electronic = _ELECTRONIC * rng.standard_normal((2, *without.shape))
    fresh = [
      rng.poisson(photons * dose * np.exp(-without)) + _ELECTRONIC * rng.standard_normal(without.shape)
      for _ in range(repeats)
    ]
    measured = [kept_with + electronic[0], kept + electronic[0], *fresh]
    sinograms = [np.log(photons * dose / np.maximum(m, 1)) for m in measured]
    sinograms.append(np.log(photons / np.maximum(kept_with + rest_with + electronic[1], 1)))
    images = [np.asarray(_reconstruct(p.astype(np.float32), geometry)) for p in sinograms]
    low.append(images[0])
    twin.append(images[1])
    again.append(np.reshape(images[2:-1], (repeats, pixels, pixels)))
    full.append(images[-1])
  low_dose, full_dose, twin_low_dose, recorded = (_hounsfield(np.stack(x)) for x in (low, full, twin, again))
  return ChestVolume(low_dose, full_dose, twin_low_dose, recorded, structures)


def rescan(rng: np.random.Generator, image: np.ndarray, *, photons: float, dose: float) -> np.ndarray:
  """A new low-dose scan of an image: `R^-1 P R y`, projected, measured with fresh noise and reconstructed.

  Args:
    rng: of the noise.
    image: `[row, col]` HU.
    photons: I0 of the full dose per detector bin.
    dose: of the scan over full dose.

  Returns:
    `[row, col]` HU, int16.

  Reference:
    Eulig et al. 2022, slides on sampling in the target domain.
  """
  geometry = geometry_of(len(image))
  lines = np.asarray(_project((WATER * (1 + np.asarray(image, np.float32) / 1000)), geometry), np.float64)
  counts = rng.poisson(photons * dose * np.exp(-lines)) + _ELECTRONIC * rng.standard_normal(lines.shape)
  sinogram = np.log(photons * dose / np.maximum(counts, 1)).astype(np.float32)
  return _hounsfield(np.asarray(_reconstruct(sinogram, geometry)))


def geometry_of(pixels: int) -> Geometry:
  """The scan of a phantom of this matrix: 256 pixels of 1.5625 mm, 360 views, 384 bins of 1.2 mm, or in proportion."""
  return Geometry(pixels, 400 / pixels, round(360 * pixels / 256), round(384 * pixels / 256), 1.2 * 256 / pixels)


def write_dataset(
  root: str | Path, *, train: int, val: int, slices: int = 2, repeats: int = 8, seed: int = 0, **options: Any
) -> Path:
  """Writes patients in the HDF5 layout of `ldct`; only validation has repeats and twins.

  Files that exist are kept, so an interrupted call is continued by the next.

  Args:
    root: folder for `train` and `val`.
    train: patients to train on.
    val: patients to validate and analyse.
    slices: slices per patient.
    repeats: further low-dose scans of the twins of `val`.
    seed: every patient is drawn from `(seed, split, number)`: seeds and splits share none.
    **options: of `volume`.

  Returns:
    The folder.
  """
  root = Path(root)
  work = [(split, i) for split, count in (('train', train), ('val', val)) for i in range(count)]
  for split, number in tqdm(work, desc='phantom', unit='patient'):
    path = root / split / f'chest-{seed}-{split}-{number:04d}.h5'
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
      continue
    drawn = volume(
      synthetic.entropy(seed, split, number), slices=slices, repeats=repeats if split == 'val' else 0, **options
    )
    with files.new_hdf5(path) as file:
      file['low_dose'], file['full_dose'] = drawn.low_dose, drawn.full_dose
      file['structures'] = np.array(drawn.structures, np.float32).reshape(-1, 5)
      if split == 'val':
        file['twin_low_dose'], file['repeats'] = drawn.twin_low_dose, drawn.repeats
      file.attrs.update(patient_id=path.stem, pixel_mm=400 / drawn.low_dose.shape[-1])
  return root


_sinogram = partial(jax.jit, static_argnums=1)(tomography.ellipse_sinogram)
_project = partial(jax.jit, static_argnums=1)(tomography.project)
_reconstruct = partial(jax.jit, static_argnums=1)(tomography.filtered_back_projection)


def _padded(ellipses):
  """A multiple of 64 ellipses, so that few programs are compiled."""
  ellipses = np.asarray(ellipses, np.float32)
  empty = np.tile(np.array([[0, 0, 1, 1, 0, 0]], np.float32), (-len(ellipses) % 64, 1))
  return np.concatenate([ellipses, empty])


def _hounsfield(attenuation):
  return np.clip(np.round(1000 * (attenuation / WATER - 1)), -1024, 3071).astype(np.int16)


def _nodules(rng, lungs, count, diameters, contrasts):
  """`(row, col, radius, contrast)` in mm and HU, inside the lungs and apart from each other."""
  found = []
  for _ in range(40 * count):
    if len(found) == count:
      break
    at = _place(rng, lungs[rng.integers(len(lungs))], 0.8, 0.64)
    if at is not None and all(np.hypot(at[0] - r, at[1] - c) > 24 for r, c, *_ in found):
      found.append((*at, rng.choice(diameters) / 2, rng.choice(contrasts)))
  return found


def _place(rng, lung, reach, limit):
  """A random point of a lung, mm; `None` if it falls outside the share `limit` of its half axes, squared."""
  row, col, half_row, half_col, turn, _ = lung
  across, along = rng.uniform(-reach, reach, 2)
  if across**2 + along**2 > limit:
    return None
  down, right = along * half_row, across * half_col
  return row + down * np.cos(turn) + right * np.sin(turn), col + right * np.cos(turn) - down * np.sin(turn)


class _Body:
  """One patient's proportions; `draw` gives the ellipses of a slice and its lungs."""

  def __init__(self, rng):
    u = rng.uniform
    self.half = u(108, 122), u(150, 168)
    self.lungs = [(u(-12, -2), side * u(66, 74), u(70, 80), u(46, 54), side * u(-0.16, -0.06)) for side in (-1, 1)]
    self.heart = u(8, 22), u(10, 24), u(34, 42), u(36, 46)
    self.spine = u(70, 78), u(-3, 3), u(15, 18)
    self.turn = u(-0.3, 0.3)

  def draw(self, height, rng):
    soft, lung = 1.04 * WATER, rng.uniform(-0.9, -0.84) * WATER
    swell = 1 - 0.002 * height
    fat = 0.92 * WATER
    shapes = [(0, 0, *self.half, 0, fat), (0, 0, self.half[0] - 10, self.half[1] - 10, 0, soft - fat)]
    lungs = [(r, c, a * swell, b * swell, t, lung) for r, c, a, b, t in self.lungs]
    shapes += lungs
    # The heart covers part of a lung: it fills what the lung took away.
    row, col, a, b = self.heart
    shapes.append((row, col * 0.2, a, 0.5 * b, 0.0, 0.02 * WATER))
    row, col, radius = self.spine
    shapes += [
      (row, col, radius, 1.2 * radius, 0, 0.55 * WATER),
      (row, col, 0.72 * radius, 0.86 * radius, 0, -0.25 * WATER),
    ]
    for k in range(10):
      angle = 2 * np.pi * (k + 0.5) / 10 + self.turn + 0.01 * height
      at = (self.half[0] - 16) * np.sin(angle), (self.half[1] - 16) * np.cos(angle)
      shapes.append((*at, 4.5, 11, np.arctan2(at[1] * self.half[0], at[0] * self.half[1]) * -1, 0.5 * WATER))
    for lung_at in lungs:
      shapes += self._vessels(rng, lung_at)
    return np.array(shapes), lungs

  def _vessels(self, rng, lung):
    """Cross-sections and lengths of vessels, thicker towards the middle of the chest."""
    vessels = []
    for _ in range(45):
      at = _place(rng, lung, 0.88, 0.74)
      if at is None:
        continue
      inward = 1 - np.abs(at[1]) / 125
      diameter = np.clip(0.8 + 3.2 * inward * rng.uniform(0.4, 1.6), 0.8, 4.0)
      length = diameter * (1 + rng.exponential(3.0))
      vessels.append((*at, diameter / 2, length / 2, rng.uniform(0, np.pi), 0.85 * WATER))
    return vessels
