"""A built-in phantom: knee-like volumes with lesions, in the fastMRI layout.

Every volume is drawn from its seed: bones with marrow texture, cartilage,
menisci, ligaments, striated muscle, fat and skin, smooth coil sensitivities and
image phase, readout oversampling, zero-padded columns, thermal noise, and small
lesions with boxes. The files are read by the one real loader. For training there
are volumes of no anatomy, too: overlapping shapes of all sizes.
"""

import csv
import io
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from jaxrec import masks
from jaxrec.data import files
from jaxrec.data.annotations import COLUMNS, Region, region_mask
from jaxrec.data.singlecoil import centred_images, centred_kspace
from jaxrec.types import Scan

# Raw fastMRI k-space has magnitudes of this order.
_SCALE = 1e-4
_LESION_LABELS = (
  'Cartilage - Partial Thickness loss/defect',
  'Bone- Subchondral edema',
  'Ligament - ACL Low Grade sprain',
)


class PhantomVolume(NamedTuple):
  """A drawn volume.

  `kspace` `[slice, coil, row, col]` complex64, `target` `[slice, out_row,
  out_col]` float32, `regions` per slice, `acquired` half-open column range.
  """

  kspace: np.ndarray
  target: np.ndarray
  regions: list[list[Region]]
  acquired: tuple[int, int]


def output_shape(rows: int, cols: int) -> tuple[int, int]:
  """Size of the target of a phantom of this matrix: readout oversampling removed, square."""
  side = min(rows // 2 if rows > cols * 1.4 else rows, cols)
  return side - side % 2, side - side % 2


def entropy(seed: int, split: str, number: int) -> tuple[int, int, int]:
  """What a phantom's patient is drawn from: two seeds, splits or numbers never share a patient."""
  return seed, zlib.crc32(split.encode()), number


def volume(
  seed: int | Sequence[int],
  *,
  slices: int = 2,
  rows: int = 96,
  cols: int = 96,
  coils: int = 4,
  snr: float = 40.0,
  padding: float = 0.06,
  anatomy: str = 'knee',
) -> PhantomVolume:
  """Draws a volume.

  Args:
    seed: anatomy, coils, phase, noise and lesions follow from it.
    slices: number of slices.
    rows: readout samples; more than 1.4 `cols` means readout oversampling.
    cols: phase encodings.
    coils: receiver coils.
    snr: mean signal over the standard deviation of the noise in a coil image.
    padding: share of the columns that is zero padding.
    anatomy: `knee`, or `shapes`: what overlaps in a picture without knowing what it
      is, of all sizes, textures and contrasts, and without lesions.

  Returns:
    The volume.

  Raises:
    ValueError: for sizes that leave no room, or an unknown anatomy.

  Reference:
    Lee, Mumford and Huang 2001, occlusion models for natural images, section 4;
    Achddou et al. 2021, training image restoration on such images.
  """
  if anatomy not in _ANATOMIES:
    raise ValueError(f'phantom: anatomy {anatomy!r} is unknown; choose {" or ".join(_ANATOMIES)}')
  if slices < 1 or coils < 1 or rows < 32 or cols < 32:
    raise ValueError('phantom: needs at least one slice and one coil, 32 rows and 32 columns')
  rng = np.random.default_rng(seed)
  crop = output_shape(rows, cols)
  drawn = _ANATOMIES[anatomy](rng)
  y, x = _coordinates(rows, cols, crop)
  coil_maps = _coil_maps(rng, coils, y, x)
  phase = _phase(rng, y, x)
  pad = int(round(cols * padding / 2))
  acquired = (pad, cols - pad)
  kspace = np.empty((slices, coils, rows, cols), np.complex64)
  regions = []
  for s in range(slices):
    z = 0.0 if slices == 1 else 1.6 * s / (slices - 1) - 0.8
    image, found = drawn.draw(y, x, z, crop, rng)
    regions.append(found)
    k = centred_kspace(image * phase * coil_maps)
    sigma = np.abs(image * coil_maps[0]).mean() / snr * np.sqrt(2)
    k += sigma / np.sqrt(2) * (rng.standard_normal(k.shape) + 1j * rng.standard_normal(k.shape))
    k[..., : acquired[0]] = 0
    k[..., acquired[1] :] = 0
    kspace[s] = k * _SCALE
  return PhantomVolume(kspace, _target(kspace, crop), regions, acquired)


def scan(
  seed: int,
  *,
  rows: int = 96,
  cols: int = 96,
  coils: int = 4,
  kind: str = 'random',
  center_fraction: float = 0.08,
  acceleration: int = 4,
) -> Scan:
  """One phantom slice as a `Scan`, for notebooks and tests.

  Args:
    seed: anatomy and mask follow from it.
    rows: readout samples.
    cols: phase encodings.
    coils: receiver coils.
    kind: mask kind, see `masks.line_mask`.
    center_fraction: share of fully sampled columns.
    acceleration: acceleration factor.

  Returns:
    A scan of NumPy arrays, with the first lesion as region.
  """
  drawn = volume(seed, slices=1, rows=rows, cols=cols, coils=coils)
  acquired = np.zeros((1, cols), bool)
  acquired[:, drawn.acquired[0] : drawn.acquired[1]] = True
  line = masks.line_mask(kind, cols, center_fractions=[center_fraction], accelerations=[acceleration], seed=seed)
  line = masks.restrict(line, acquired)
  target = drawn.target[0]
  return Scan(
    kspace=drawn.kspace[0],
    mask=line.mask,
    acs=line.acs,
    acquired=acquired,
    target=target,
    region=region_mask(drawn.regions[0][0], target.shape),
    scale=np.float32(target.max()),
  )


def write_dataset(
  root: str | Path,
  *,
  train: int,
  val: int,
  slices: int = 4,
  rows: int = 96,
  cols: int = 96,
  coils: int = 4,
  snr: float = 40.0,
  seed: int = 0,
  shapes: float = 0.0,
) -> Path:
  """Writes volumes and their annotations as fastMRI and fastMRI+ do.

  Files that exist are kept, so an interrupted call is continued by the next.

  Args:
    root: folder for `multicoil_train`, `multicoil_val` and `annotations.csv`.
    train: number of training volumes.
    val: number of validation volumes.
    slices: slices per volume.
    rows: readout samples.
    cols: phase encodings.
    coils: receiver coils.
    snr: see `volume`.
    seed: every volume is drawn from `(seed, split, number)`: seeds and splits share none.
    shapes: share of the training volumes, spread evenly over them, that show shapes
      instead of knees.

  Returns:
    The path of the annotation file.
  """
  root = Path(root)
  table = []
  for split, count in (('train', train), ('val', val)):
    folder = root / f'multicoil_{split}'
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
      anatomy = 'shapes' if split == 'train' and int((i + 1) * shapes) > int(i * shapes) else 'knee'
      drawn = volume(
        entropy(seed, split, i), slices=slices, rows=rows, cols=cols, coils=coils, snr=snr, anatomy=anatomy
      )
      name = f'phantom-{seed}-{split}-{i:04d}'
      _write_volume(folder / f'{name}.h5', drawn, name)
      table += [
        (name, s, 'No', *_drawn(r, drawn.target.shape[1]), r.label) for s, rs in enumerate(drawn.regions) for r in rs
      ]
  path = root / 'annotations.csv'
  stream = io.StringIO(newline='')
  writer = csv.writer(stream)
  writer.writerow(COLUMNS)
  writer.writerows(table)
  files.replace(path, stream.getvalue().encode())
  return path


def _drawn(region, rows):
  return region.col, rows - region.row - region.height, region.width, region.height


def _write_volume(path, drawn, name):
  if path.exists():
    return
  slices, coils, rows, cols = drawn.kspace.shape
  out_rows, out_cols = drawn.target.shape[1:]
  header = _HEADER.format(
    coils=coils,
    rows=rows,
    cols=cols,
    out_rows=out_rows,
    out_cols=out_cols,
    maximum=drawn.acquired[1] - drawn.acquired[0] - 1,
    center=cols // 2 - drawn.acquired[0],
  )
  with files.new_hdf5(path) as file:
    file['kspace'] = drawn.kspace
    file['reconstruction_rss'] = drawn.target
    file['ismrmrd_header'] = header.encode()
    file.attrs.update(
      max=float(drawn.target.max()), norm=float(np.linalg.norm(drawn.target)), patient_id=name, acquisition='PHANTOM_PD'
    )


_HEADER = """<?xml version="1.0" encoding="utf-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<acquisitionSystemInformation><receiverChannels>{coils}</receiverChannels></acquisitionSystemInformation>
<encoding>
<encodedSpace><matrixSize><x>{rows}</x><y>{cols}</y><z>1</z></matrixSize></encodedSpace>
<reconSpace><matrixSize><x>{out_rows}</x><y>{out_cols}</y><z>1</z></matrixSize></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{maximum}</maximum><center>{center}</center></kspace_encoding_step_1></encodingLimits>
<trajectory>cartesian</trajectory>
</encoding>
</ismrmrdHeader>
"""


def _target(kspace, crop):
  combined = np.sqrt((np.abs(centred_images(kspace)) ** 2).sum(1)).astype(np.float32)
  top, left = ((n - c) // 2 for n, c in zip(combined.shape[1:], crop))
  return combined[:, top : top + crop[0], left : left + crop[1]]


def _coordinates(rows, cols, crop):
  """Image coordinates in units of half the target's side, row axis downwards."""
  half = crop[0] / 2
  return (np.arange(rows)[:, None] - rows // 2) / half, (np.arange(cols)[None, :] - cols // 2) / half


def _coil_maps(rng, coils, y, x):
  angles = 2 * np.pi * (np.arange(coils) + rng.uniform()) / coils
  maps = []
  for a in angles:
    reach = rng.uniform(1.2, 1.5)
    dy, dx = y - reach * np.sin(a), x - reach * np.cos(a)
    strength = 1 / (0.35 + dy**2 + dx**2)
    turn = a + rng.uniform(0.3, 0.9) * (dx * np.cos(a) + dy * np.sin(a)) + 0.4 * dx * dy
    maps.append(strength * np.exp(1j * turn))
  maps = np.stack(maps)
  return maps / np.sqrt((np.abs(maps) ** 2).sum(0)).max()


def _phase(rng, y, x):
  c = rng.uniform(-0.8, 0.8, 5)
  return np.exp(1j * (c[0] * y + c[1] * x + c[2] * y * x + c[3] * y * y + c[4] * x * x))


def _texture(rng, shape, sigma):
  # Wavelength in units of the field, so that every matrix size shows the same anatomy.
  noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode='wrap')
  return noise / noise.std()


class _Anatomy:
  """Shapes of one knee; `draw` renders a slice at height z in [-1, 1]."""

  def __init__(self, rng):
    u = rng.uniform
    self.tilt = u(-0.12, 0.12)
    self.body = (u(0.82, 0.9), u(0.68, 0.76))
    self.femur = dict(centre=(u(-0.36, -0.3), u(-0.04, 0.04)), axes=(u(0.27, 0.31), u(0.36, 0.42)))
    self.tibia = dict(centre=(u(0.34, 0.4), u(-0.04, 0.04)), axes=(u(0.26, 0.3), u(0.35, 0.4)))
    self.patella = dict(centre=(u(-0.34, -0.26), u(0.5, 0.54)), axes=(u(0.14, 0.17), u(0.06, 0.08)))
    self.shade = {
      name: value * u(0.93, 1.07)
      for name, value in dict(fat=0.8, muscle=0.38, marrow=0.62, cartilage=0.95, dark=0.1, fluid=1.1).items()
    }
    self.stripes = (u(14, 20), u(0, np.pi))
    self.textures = rng.integers(1 << 31)

  def draw(self, y, x, z, crop, rng):
    shape = np.broadcast_shapes(y.shape, x.shape)
    soft = 1.2 * 2 / crop[0]
    pixels = crop[0] / 2
    y, x = y * np.cos(self.tilt) - x * np.sin(self.tilt), x * np.cos(self.tilt) + y * np.sin(self.tilt)
    swell = 1 - 0.12 * z * z

    def ellipse(centre, axes, turn=0.0, power=2.0):
      return _soft(y - centre[0], x - centre[1], axes, turn, power, soft)

    texture = np.random.default_rng(self.textures + int(1000 * (z + 1)))
    fine, coarse = _texture(texture, shape, 0.012 * pixels), _texture(texture, shape, 0.06 * pixels)
    s = self.shade
    image = np.zeros(shape)

    def paint(mask, value):
      nonlocal image
      image = image * (1 - mask) + mask * value

    body = [swell * a for a in self.body]
    paint(ellipse((0, 0), body, power=2.6), 0.25)
    paint(ellipse((0, 0), [a - 0.02 for a in body], power=2.6), s['fat'] * (1 + 0.05 * coarse + 0.03 * fine))
    stripes = np.sin(self.stripes[0] * np.pi * (0.8 * x + 0.35 * y) + self.stripes[1] + 0.5 * coarse)
    paint(ellipse((0, 0), [a - 0.1 for a in body], power=2.6), s['muscle'] * (1 + 0.1 * stripes + 0.06 * fine))
    for bone in (self.femur, self.tibia, self.patella):
      axes = [swell * a for a in bone['axes']]
      margin = 0.35 if bone is self.patella else 0.13
      paint(
        ellipse(bone['centre'], [a + margin * min(axes) for a in axes], power=2.4), s['cartilage'] * (1 + 0.03 * fine)
      )
      paint(ellipse(bone['centre'], axes, power=2.4), s['dark'])
      inner = [a - 0.02 for a in axes]
      paint(ellipse(bone['centre'], inner, power=2.4), s['marrow'] * (1 + 0.05 * coarse + 0.05 * fine))
    gap = (self.femur['centre'][0] + self.tibia['centre'][0]) / 2
    for side in (-1, 1):
      paint(ellipse((gap, side * (0.3 - 0.05 * z)), (0.05, 0.11), 0.12 * side), s['dark'] * 1.3)
    paint(ellipse((gap, 0.0), (0.035, 0.17)), s['fluid'])
    paint(ellipse((gap - 0.01, 0.02 * z), (0.028, 0.24), 0.75 + 0.1 * z), s['dark'] * 1.8)
    paint(ellipse((0.05, 0.5), (0.36, 0.03), 0.06), s['dark'] * 1.5)
    regions = self._lesions(rng, gap, crop, ellipse, paint, s)
    return np.maximum(image, 0), regions

  def _lesions(self, rng, gap, crop, ellipse, paint, s):
    """One or two lesions, painted, with boxes a little larger than they are."""
    places = [
      (
        _LESION_LABELS[0],
        (self.femur['centre'][0] + self.femur['axes'][0], rng.uniform(-0.2, 0.2)),
        (0.04, 0.06),
        s['muscle'],
      ),
      (
        _LESION_LABELS[1],
        (self.tibia['centre'][0] + rng.uniform(-0.12, 0.05), rng.uniform(-0.2, 0.2)),
        (0.06, 0.08),
        s['fluid'],
      ),
      (_LESION_LABELS[2], (gap - 0.02, rng.uniform(-0.06, 0.06)), (0.03, 0.07), s['muscle'] * 1.5),
    ]
    regions = []
    for which in rng.permutation(3)[: rng.integers(1, 3)]:
      label, centre, axes, value = places[which]
      axes = [a * rng.uniform(0.8, 1.2) for a in axes]
      paint(ellipse(centre, axes, rng.uniform(-0.4, 0.4)), value)
      at = (
        centre[0] * np.cos(self.tilt) + centre[1] * np.sin(self.tilt),
        centre[1] * np.cos(self.tilt) - centre[0] * np.sin(self.tilt),
      )
      half = [max(int(np.ceil(2.0 * max(axes) * crop[0] / 2)), 6)] * 2
      top, left = (int(round(a * crop[0] / 2)) + crop[0] // 2 - h for a, h in zip(at, half))
      top, left = (min(max(p, 0), crop[0] - 2 * h) for p, h in zip((top, left), half))
      regions.append(Region(top, left, 2 * half[0], 2 * half[1], label, 0))
    return regions


class _Shapes:
  """Ellipses and boxes that cover each other, with the density of sizes `r^-3` that looks the same at all scales."""

  _COUNT = 400
  _SMALLEST, _LARGEST = 0.02, 0.8

  def __init__(self, rng):
    self.body = (rng.uniform(0.7, 0.92), rng.uniform(0.6, 0.92), rng.uniform(0, np.pi))

  def draw(self, y, x, z, crop, rng):
    del z  # Slices share nothing but the outline.
    shape, pixels = np.broadcast_shapes(y.shape, x.shape), crop[0] / 2
    image = np.full(shape, rng.uniform(0.1, 0.9))
    low, high = self._SMALLEST**-2, self._LARGEST**-2
    for _ in range(self._COUNT):
      size = (low + rng.uniform() * (high - low)) ** -0.5
      aspect = rng.uniform(0.3, 1) ** 0.5
      mask = _soft(
        y - rng.uniform(-1, 1), x - rng.uniform(-1, 1), (size * aspect, size / aspect), rng.uniform(0, np.pi),
        rng.uniform(1.2, 6), rng.uniform(0.8, 3) / pixels,
      )  # fmt: skip
      image = image * (1 - mask) + mask * self._filling(rng, y, x, shape, size, pixels)
    height, width, turn = self.body
    return np.maximum(image * _soft(y, x, (height, width), turn, 2.2, 2 / pixels), 0), []

  def _filling(self, rng, y, x, shape, size, pixels):
    """One level of grey; in larger shapes with a slope, and stripes or grain."""
    level = rng.uniform(0.03, 1.1)
    if size < 0.08:
      return level
    slope = rng.normal(0, 0.15, 2)
    filling = level * (1 + slope[0] * y + slope[1] * x)
    kind = rng.integers(3)
    if kind == 0:
      turn, waves = rng.uniform(0, np.pi), rng.uniform(4, 0.35 * pixels)
      filling = filling * (1 + rng.uniform(0, 0.25) * np.sin(np.pi * waves * (y * np.sin(turn) + x * np.cos(turn))))
    elif kind == 1:
      filling = filling * (1 + rng.uniform(0, 0.2) * _texture(rng, shape, pixels * rng.uniform(0.01, 0.08)))
    return filling


def _soft(y, x, axes, turn, power, width):
  """A superellipse, 1 inside and 0 outside, with an edge of some width."""
  y, x = y * np.cos(turn) - x * np.sin(turn), x * np.cos(turn) + y * np.sin(turn)
  r = (np.abs(y / axes[0]) ** power + np.abs(x / axes[1]) ** power) ** (1 / power)
  return 1 / (1 + np.exp(np.clip((r - 1) * min(axes) / width * 4, -60, 60)))


_ANATOMIES: dict[str, Callable[..., Any]] = {'knee': _Anatomy, 'shapes': _Shapes}
