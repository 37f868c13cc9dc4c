"""Data structures and function types that every other part of jaxrec shares.

Signatures name the axes of arrays (jaxtyping). The tests check them at every call;
elsewhere they only tell. Fields of structures say them in words: a structure may
hold a batch, shapes or whatever else `jax.tree.map` makes of it.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
from flax import struct
from jaxtyping import Float, PRNGKeyArray

from jaxrec import masks

if TYPE_CHECKING:
  Array: TypeAlias = jax.Array
else:
  # What JAX takes, it takes from NumPy too.
  Array = jax.Array | np.ndarray | np.generic
# NumPy on the host, JAX inside a program; each lacks what the other is used for.
AnyArray: TypeAlias = Any
Key: TypeAlias = PRNGKeyArray
Scalar: TypeAlias = Float[Array, '']
Image: TypeAlias = Float[Array, 'row col']
Delta: TypeAlias = Any
Variables: TypeAlias = Any

# The window of SSIM.
_SMALLEST = 7


class Scan(struct.PyTreeNode):
  """One MR slice as acquired; the k-space is never pre-masked.

  Attributes:
    kspace: `[coil, row, col]` complex64, DC in the centre, columns are the
      phase-encoding axis.
    mask: `[1 or row, col]` bool, the sampling mask.
    acs: `[1 or row, col]` bool, the fully sampled centre.
    acquired: `[1, col]` bool, columns that were really measured.
    target: `[out_row, out_col]` float32, root sum of squares of the full
      k-space, centre-cropped. NaN where there is none (prospective data), see
      `metrics.own_reference`.
    region: `[out_row, out_col]` float32, 1 inside the annotated box (all ones:
      the whole image).
    scale: `[]` float32, data range used by PSNR and SSIM.
  """

  kspace: AnyArray
  mask: AnyArray
  acs: AnyArray
  acquired: AnyArray
  target: AnyArray
  region: AnyArray
  scale: AnyArray

  @property
  def has_target(self) -> bool:
    """Whether there is an image to compare with; not for traced scans."""
    return not bool(np.isnan(self.target).any())

  @classmethod
  def from_kspace(
    cls,
    kspace: AnyArray,
    mask: AnyArray | None = None,
    *,
    target: AnyArray | None = None,
    box: Sequence[int] | None = None,
    acquired: AnyArray | None = None,
    acs: AnyArray | None = None,
    crop: tuple[int, int] | None = None,
    scale: float | None = None,
  ) -> 'Scan':
    """A scan of NumPy arrays from k-space, with all that can be derived from it.

    Args:
      kspace: `[coil, row, col]` complex, or `[row, col]` of one coil; DC in the
        centre, columns are the phase encodings, zero where nothing was measured.
        Not pre-masked, unless there is no more (prospective data).
      mask: `[col]`, `[1, col]` or `[row, col]` of 0 and 1, what the network is
        given; everything that was measured if `None`.
      target: `[out_row, out_col]` real, in the units of the orthonormal inverse
        FFT. If `None`, the root sum of squares of the coil images, where the
        k-space is fully sampled; NaN where it is not.
      box: row, column, height and width of the region on the target, pixels from
        its upper left corner; the whole image if `None`.
      acquired: `[col]` or `[1, col]` of 0 and 1; columns that are not zero if `None`.
      acs: as `mask`; the fully sampled centre of the mask if `None`.
      crop: size of a target that is derived; that of the k-space if `None`.
      scale: data range; the maximum of the target if `None`, or without a target
        that of the zero-filled image.

    Returns:
      The scan. The k-space is fully sampled if its samples that are not zero
      have no gaps (`masks.has_gaps`).

    Raises:
      ValueError: naming the argument, for a wrong shape, type or unit.

    Example:
      >>> import numpy as np, jaxrec
      >>> k = np.asarray(jaxrec.fourier.fft2c(np.random.default_rng(0).uniform(size=(2, 32, 32))))
      >>> scan = jaxrec.Scan.from_kspace(k, np.arange(32) % 4 == 0, box=(4, 4, 8, 8))
      >>> scan.target.shape, int(scan.mask.sum()), int(scan.region.sum())
      ((32, 32), 8, 64)
    """
    kspace = _kspace(kspace)
    shape = kspace.shape[1:]
    measured = kspace.any(0)
    rows, cols = measured.any(1), measured.any(0)
    acquired = cols[None] if acquired is None else _zeros_and_ones('acquired', acquired, [(1, shape[1])])
    if mask is None:
      given = cols[None] if (measured == rows[:, None] & cols).all() else measured
    else:
      given = _zeros_and_ones('mask', mask, [(1, shape[1]), shape])
    acs = masks.acs_of_mask(given) & given if acs is None else _zeros_and_ones('acs', acs, [(1, shape[1]), shape])
    if (acs & ~given).any():
      raise ValueError('acs: holds samples that the mask leaves out; it is to be a part of the mask')
    line = masks.restrict(masks.LineMask(given, acs), acquired)
    full = not masks.has_gaps(measured)
    if crop is not None and (np.shape(crop) != (2,) or not all(isinstance(n, (int, np.integer)) for n in crop)):
      raise ValueError(f'crop: is {crop!r}; give two whole numbers, rows and columns')
    size = np.shape(target) if target is not None else crop or shape
    if len(size) == 2 and (size[0] > shape[0] or size[1] > shape[1] or min(size) < _SMALLEST):
      raise ValueError(
        f'target: is to have {_by(size)} pixels; at least {_SMALLEST} x {_SMALLEST}, and at most the {_by(shape)} of the k-space'
      )
    if target is not None:
      target = seen = _target(target, kspace)
    else:
      seen = _root_sum_of_squares(kspace if full else np.where(line.mask, kspace, 0), size)
      target = seen if full else np.full_like(seen, np.nan)
    scale = np.max(seen, initial=0) if scale is None else scale
    if np.asarray(scale).dtype.kind not in 'iuf' or not (np.isfinite(scale) and scale > 0):
      raise ValueError(f'scale: is {scale}; give a positive data range, or a target that is not empty')
    return cls(kspace, line.mask, line.acs, acquired, target, _region(box, target.shape), np.float32(scale))


class Slice(struct.PyTreeNode):
  """One slice of a network that takes images: CT in normalised Hounsfield units, or the zero-filled image of a scan.

  Attributes:
    input: `[row, col]` float32, what the network takes: the low-dose or the zero-filled image.
    target: `[row, col]` float32, the full-dose or fully sampled image.
    region: `[row, col]` float32, 1 inside the annotated box.
    scale: `[]` float32, data range used by PSNR and SSIM.
  """

  input: AnyArray
  target: AnyArray
  region: AnyArray
  scale: AnyArray


Sample: TypeAlias = Scan | Slice
Reconstructor: TypeAlias = Callable[[Variables, Sample], Image]
Objective: TypeAlias = Callable[[Image, Sample], Scalar]


def _by(shape):
  return ' x '.join(map(str, shape))


def _kspace(kspace):
  kspace = np.asarray(kspace)
  if kspace.ndim == 2:
    kspace = kspace[None]
  if kspace.ndim != 3 or 0 in kspace.shape:
    raise ValueError(f'kspace: has shape {kspace.shape}; expected [coil, row, col] or [row, col] without zeros')
  if kspace.dtype.kind != 'c':
    raise ValueError(f'kspace: has type {kspace.dtype}; expected complex (an image is no k-space)')
  kspace = np.ascontiguousarray(kspace, np.complex64)
  if not np.isfinite(kspace.view(np.float32)).all():
    raise ValueError('kspace: holds NaN or infinity')
  if not kspace.any():
    raise ValueError('kspace: is all zero')
  power = (np.abs(kspace) ** 2).sum(0)
  middle = tuple(slice(n // 2 - n // 8, n // 2 + n // 8 + 1) for n in power.shape)
  # Nothing that is shifted as asked comes near: the centre holds most of the energy of any image.
  if np.fft.fftshift(power)[middle].sum() > 10 * power[middle].sum():
    raise ValueError('kspace: its energy is in the corners; apply np.fft.fftshift, so that DC is in the centre')
  return kspace


def _zeros_and_ones(name, array, shapes):
  array = np.asarray(array)
  array = array[None] if array.ndim == 1 else array
  if array.shape not in shapes:
    raise ValueError(f'{name}: has shape {array.shape}; expected {" or ".join(str(list(s)) for s in shapes)}')
  if not np.isin(array, (0, 1)).all():
    raise ValueError(f'{name}: holds other values than 0 and 1')
  return array.astype(bool)


def _root_sum_of_squares(kspace, size):
  axes = (-2, -1)
  images = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(kspace, axes), axes=axes, norm='ortho'), axes)
  image = np.sqrt((np.abs(images) ** 2).sum(0)).astype(np.float32)
  top, left = ((n - c) // 2 for n, c in zip(image.shape, size))
  return image[top : top + size[0], left : left + size[1]]


def _target(target, kspace):
  target = np.asarray(target)
  if target.ndim != 2 or target.dtype.kind not in 'fiu':
    raise ValueError(f'target: has shape {target.shape} and type {target.dtype}; expected [row, col] real')
  target = target.astype(np.float32)
  if not np.isfinite(target).all():
    raise ValueError('target: holds NaN or infinity')
  ratio = np.linalg.norm(target) / np.linalg.norm(kspace)
  if not 0.1 < ratio < 10:
    raise ValueError(
      f'target: is in other units than the k-space, its norm is {ratio:.3g} times as large; '
      'scale it to the orthonormal inverse FFT of the k-space, or leave it out'
    )
  return target


def _region(box, shape):
  region = np.ones(shape, np.float32)
  if box is None:
    return region
  if np.shape(box) != (4,):
    raise ValueError(f'box: is {box!r}; give (row, col, height, width)')
  row, col, height, width = (int(n) for n in box)
  if row < 0 or col < 0 or height < 1 or width < 1 or row + height > shape[0] or col + width > shape[1]:
    raise ValueError(
      f'box: (row, col, height, width) is {(row, col, height, width)}; it is not inside the target of {_by(shape)}'
    )
  region[:] = 0
  region[row : row + height, col : col + width] = 1
  return region
