"""Single-coil data from multi-coil data, and zero-filled images as samples."""

from collections.abc import Sequence

import numpy as np

from jaxrec.data.errors import DataError
from jaxrec.types import Scan, Slice


def emulate(scan: Scan) -> Scan:
  """A single-coil scan made of a multi-coil one.

  The coils are combined by the complex weights that, in the least-squares sense,
  bring the combined image closest to the root sum of squares:
  `w = argmin ||sum_i w_i x_i - rss(x)||_2`.

  Args:
    scan: multi-coil, NumPy arrays.

  Returns:
    The scan with one coil; its target is the magnitude of the combined image, if
    it has one, and its `scale` the maximum of that image.

  Reference:
    Tygert and Zbontar 2020, Simulating single-coil MRI from the responses of
    multiple coils; Zbontar et al. 2018 (emulated single-coil, ESC).
  """
  coils = scan.kspace.shape[0]
  images = centred_images(scan.kspace)
  flat = images.reshape(coils, -1).astype(np.complex128)
  rss = np.sqrt((np.abs(flat) ** 2).sum(0))
  flat, rss = flat / (rss.max() or 1), rss / (rss.max() or 1)
  # Normal equations of one unknown per coil.
  weights, *_ = np.linalg.lstsq(flat.conj() @ flat.T, flat.conj() @ rss, rcond=None)
  kspace = np.tensordot(weights, scan.kspace, 1)[None].astype(np.complex64)
  image = centre_of(np.abs(centred_images(kspace)[0]), scan.target.shape).astype(np.float32)
  if not image.max() > 0:
    raise DataError('data.emulate_single_coil: the combined image is empty')
  # Of an undersampled scan it is no target.
  target = image if scan.has_target else scan.target
  return scan.replace(kspace=kspace, target=target, scale=np.float32(image.max()))


def zero_filled(scan: Scan, *, relative: bool = False) -> Slice:
  """The magnitude of the zero-filled reconstruction, as input of an image-to-image network.

  Args:
    scan: NumPy arrays.
    relative: images in units of `scan.scale`.

  Returns:
    A slice whose input has the size of the target.

  Reference:
    Huang and Liang 2020, equation (10).
  """
  image = np.sqrt((np.abs(centred_images(np.where(scan.mask, scan.kspace, 0))) ** 2).sum(0))
  low = centre_of(image, scan.target.shape).astype(np.float32)
  if relative:
    return Slice(low / scan.scale, scan.target / scan.scale, scan.region, np.float32(1))
  return Slice(input=low, target=scan.target, region=scan.region, scale=scan.scale)


def centred_images(kspace: np.ndarray) -> np.ndarray:
  """Coil images of k-space with DC in the centre, orthonormal, `[..., row, col]` complex."""
  centred = np.fft.ifftn(np.fft.ifftshift(kspace, (-2, -1)), axes=(-2, -1), norm='ortho')
  return np.fft.fftshift(centred, (-2, -1))


def centred_kspace(images: np.ndarray) -> np.ndarray:
  """The inverse of `centred_images`, `[..., row, col]` complex."""
  centred = np.fft.fftn(np.fft.ifftshift(images, (-2, -1)), axes=(-2, -1), norm='ortho')
  return np.fft.fftshift(centred, (-2, -1))


def centre_of(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
  """The central `shape` of an image `[row, col]`."""
  top, left = ((n - c) // 2 for n, c in zip(image.shape, shape))
  return image[top : top + shape[0], left : left + shape[1]]
