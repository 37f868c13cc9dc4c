"""Crops, pads, sub-pixel shifts and rotations of images and of k-space.

Shifts and rotations are band-limited: shifts are phase ramps in k-space and a
rotation is three shears, each a shift of rows or columns. All of them are
unitary on complex images (periodic at the border), so the inverse is the
adjoint. Angles and shifts may be traced. The pixel at index `n // 2` is the
centre; pixels are taken as square.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Complex, Float, Inexact, Real, Shaped

from jaxrec.fourier import fftshift, ifftshift
from jaxrec.types import Array, Scalar


def center_crop(x: Shaped[Array, '*lead row col'], shape: Sequence[int]) -> Shaped[Array, '*lead _ _']:
  """Central part of the last two axes, as fastMRI crops.

  Args:
    x: `[..., row, col]`.
    shape: rows and columns to keep.

  Returns:
    `[..., *shape]`.

  Raises:
    ValueError: if `shape` is larger than the image.
  """
  rows, cols = x.shape[-2:]
  if shape[0] > rows or shape[1] > cols:
    raise ValueError(f'center_crop: cannot crop {tuple(shape)} from an image of {(rows, cols)}')
  top, left = (rows - shape[0]) // 2, (cols - shape[1]) // 2
  return x[..., top : top + shape[0], left : left + shape[1]]


def center_pad(x: Shaped[Array, '*lead row col'], shape: Sequence[int]) -> Shaped[Array, '*lead _ _']:
  """Zero-pads the last two axes so that `center_crop` undoes it.

  Args:
    x: `[..., row, col]`.
    shape: rows and columns of the result.

  Returns:
    `[..., *shape]`.
  """
  rows, cols = x.shape[-2:]
  if shape[0] < rows or shape[1] < cols:
    raise ValueError(f'center_pad: cannot pad an image of {(rows, cols)} to {tuple(shape)}')
  top, left = (shape[0] - rows) // 2, (shape[1] - cols) // 2
  width = [(0, 0)] * (x.ndim - 2) + [(top, shape[0] - rows - top), (left, shape[1] - cols - left)]
  return jnp.pad(x, width)


def rotate(image: Inexact[Array, '*lead row col'], degrees: Scalar | float) -> Inexact[Array, '*lead row col']:
  """Rotates images about their centre by three Fourier shears.

  `R(a) = Sx(-tan(a/2)) Sy(sin a) Sx(-tan(a/2))`. Positive angles turn the
  image counter-clockwise as displayed with row 0 at the top. For complex
  images `R(-a)` is both the inverse and the adjoint of `R(a)`; real images
  lose only the Nyquist frequency of even axes.

  Args:
    image: `[..., row, col]` real or complex.
    degrees: `[]` angle in degrees, within +-90.

  Returns:
    `[..., row, col]`, the dtype of `image`; bitwise `image` at 0 degrees.

  Reference:
    Unser, Thevenaz and Yaroslavsky 1995, convolution-based interpolation for
    rotation; equation (5) of Morshuis et al. 2022 for its use.

  Example:
    >>> import jax, jax.numpy as jnp, jaxrec
    >>> x = jax.random.normal(jax.random.key(0), (31, 31)) + 0j
    >>> y = jaxrec.geometry.rotate(jaxrec.geometry.rotate(x, 3.0), -3.0)
    >>> bool(jnp.allclose(x, y, atol=1e-5))
    True
  """
  spectrum = jnp.fft.fft(ifftshift(image))
  rotated = jnp.fft.ifft(_shear_three(spectrum, image.shape[-2:], degrees))
  return _finish(image, fftshift(rotated), degrees)


def rotate_kspace(kspace: Complex[Array, '*lead row col'], degrees: Scalar | float) -> Complex[Array, '*lead row col']:
  """k-space of the rotated image, `F R(a) F^-1 k`, with six 1-D transforms.

  Args:
    kspace: `[..., row, col]` complex, centred.
    degrees: `[]` angle in degrees, within +-90.

  Returns:
    `[..., row, col]` complex; bitwise `kspace` at 0 degrees.
  """
  spectrum = jnp.fft.ifft(ifftshift(kspace), axis=-2)
  rotated = jnp.fft.fft(_shear_three(spectrum, kspace.shape[-2:], degrees), axis=-2)
  return _finish(kspace, fftshift(rotated), degrees)


def shift(image: Inexact[Array, '*lead row col'], pixels: Real[Array, '2']) -> Inexact[Array, '*lead row col']:
  """Moves images by a sub-pixel amount (periodic, band-limited).

  Args:
    image: `[..., row, col]` real or complex.
    pixels: `[2]` rows down and columns to the right, in pixels.

  Returns:
    `[..., row, col]`, the dtype of `image`; bitwise `image` for no shift.
  """
  spectrum = fftshift(jnp.fft.fft2(ifftshift(image)))
  moved = fftshift(jnp.fft.ifft2(ifftshift(spectrum * _ramp(image.shape[-2:], pixels))))
  return _finish(image, moved, jnp.any(pixels != 0))


def shift_kspace(kspace: Complex[Array, '*lead row col'], pixels: Real[Array, '2']) -> Complex[Array, '*lead row col']:
  """k-space of the shifted image: a phase ramp.

  Args:
    kspace: `[..., row, col]` complex, centred.
    pixels: `[2]` rows down and columns to the right, in pixels.

  Returns:
    `[..., row, col]` complex.
  """
  return (kspace * _ramp(kspace.shape[-2:], pixels)).astype(kspace.dtype)


def rotate_resampled(image: Inexact[Array, 'row col'], degrees: Scalar | float) -> Inexact[Array, 'row col']:
  """Rotation by interpolation, the chain of the public AdvRec code.

  Doubles the size (cubic), rotates bilinearly with mirrored borders and halves
  the size again (cubic). For comparison only: `-degrees` is no inverse, and the
  image loses resolution even at 0 degrees.

  Args:
    image: `[row, col]` real or complex.
    degrees: `[]` angle in degrees, counter-clockwise.

  Returns:
    `[row, col]`, the dtype of `image`.

  Reference:
    https://github.com/NikolasMorshuis/AdvRec, `augmentor/adv_rotation.py`.
  """
  rows, cols = image.shape
  fine = jax.image.resize(image, (2 * rows, 2 * cols), 'cubic')
  radians = jnp.deg2rad(degrees)
  r = jnp.arange(2 * rows)[:, None] - (rows - 0.5)
  c = jnp.arange(2 * cols) - (cols - 0.5)
  source = (
    jnp.cos(radians) * r + jnp.sin(radians) * c + (rows - 0.5),
    -jnp.sin(radians) * r + jnp.cos(radians) * c + (cols - 0.5),
  )
  turned = jax.scipy.ndimage.map_coordinates(fine, source, order=1, mode='mirror')
  return jax.image.resize(turned, (rows, cols), 'cubic').astype(image.dtype)


def _coordinates(n: int) -> np.ndarray:
  return np.fft.ifftshift(np.arange(n) - n // 2).astype(np.float32)


def _shear_three(spectrum, shape, degrees):
  """Three shears of [row, column frequency], both uncentred, to the same."""
  rows, cols = (_coordinates(n) for n in shape)
  radians = jnp.deg2rad(degrees)
  across = _phase(rows[:, None] * (cols / shape[1]), -jnp.tan(radians / 2))
  down = _phase(cols[None, :] * (rows / shape[0])[:, None], jnp.sin(radians))
  image = jnp.fft.ifft(spectrum * across)
  image = jnp.fft.ifft(jnp.fft.fft(image, axis=-2) * down, axis=-2)
  return jnp.fft.fft(image) * across


def _phase(turns_per_unit, amount):
  return jnp.exp(2j * jnp.pi * turns_per_unit * amount)


def _ramp(shape, pixels):
  rows, cols = ((jnp.arange(n) - n // 2) / n for n in shape)
  return jnp.exp(-2j * jnp.pi * (rows[:, None] * pixels[0] + cols * pixels[1]))


def _finish(original, moved, amount):
  if not jnp.iscomplexobj(original):
    moved = moved.real
  moved = moved.astype(original.dtype)
  # Exactly the original where nothing moves, with the derivatives of the movement.
  slope = moved - lax.stop_gradient(moved)  # Zero; of an image that is not finite somewhere NaN everywhere.
  still = lax.stop_gradient(original) + jnp.where(jnp.isfinite(slope), slope, 0)
  return jnp.where(amount == 0, still, moved)


def soft_disc(shape: Sequence[int], centre: tuple[float, float], diameter: float) -> Float[np.ndarray, 'row col']:
  """A disc with the edges of pixels that it partly covers, `[row, col]` in [0, 1]."""
  fine = 5
  within = (np.arange(fine) + 0.5) / fine - 0.5
  # Only the pixels around the disc: images are large, discs are not.
  box = tuple(slice(max(int(c - diameter / 2) - 1, 0), max(int(c + diameter / 2) + 3, 0)) for c in centre)
  rows, cols = (((np.arange(n)[b, None] + within - c) ** 2).reshape(-1) for n, b, c in zip(shape, box, centre))
  inside = rows[:, None] + cols[None, :] <= (diameter / 2) ** 2
  disc = np.zeros(shape, np.float32)
  disc[box] = inside.reshape(rows.size // fine, fine, cols.size // fine, fine).mean((1, 3))
  return disc
