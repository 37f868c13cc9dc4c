"""Centred orthonormal Fourier transforms and coil combination.

Conventions: k-space and images have DC and the image centre at index `n // 2`
of each axis; all transforms are unitary.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Complex, Float, Inexact, Num, Shaped

from jaxrec.types import Array

_IMAGE_AXES = (-2, -1)


def fft2c(image: Num[Array, '*lead row col'], axes: tuple[int, ...] = _IMAGE_AXES) -> Complex[Array, '*lead row col']:
  """Centred orthonormal FFT from image space to k-space.

  `k = fftshift(F(ifftshift(x))) / sqrt(n)`.

  Args:
    image: `[..., row, col]` real or complex.
    axes: axes to transform; `(-1,)` transforms the columns only.

  Returns:
    `[..., row, col]` complex, same shape as `image`.

  Example:
    >>> import jax.numpy as jnp, jaxrec
    >>> k = jaxrec.fourier.fft2c(jnp.ones((4, 4)))
    >>> float(k[2, 2].real)
    4.0
  """
  return fftshift(jnp.fft.fftn(ifftshift(image, axes), axes=axes, norm='ortho'), axes)


def ifft2c(kspace: Num[Array, '*lead row col'], axes: tuple[int, ...] = _IMAGE_AXES) -> Complex[Array, '*lead row col']:
  """Centred orthonormal inverse FFT; the inverse and the adjoint of `fft2c`.

  Args:
    kspace: `[..., row, col]` complex.
    axes: axes to transform.

  Returns:
    `[..., row, col]` complex, same shape as `kspace`.
  """
  return fftshift(jnp.fft.ifftn(ifftshift(kspace, axes), axes=axes, norm='ortho'), axes)


def fftshift(x: Shaped[Array, '*lead row col'], axes: tuple[int, ...] = _IMAGE_AXES) -> Shaped[Array, '*lead row col']:
  """Moves index 0 of each axis to the centre, as `numpy.fft.fftshift`.

  If all of them are even their halves are swapped in one pass, which is its own
  inverse and its own adjoint; otherwise they are rolled one by one.

  Args:
    x: `[..., row, col]` of any type.
    axes: axes to shift.

  Returns:
    Array of the same shape and type.
  """
  return _shift(x, axes, jnp.fft.fftshift)


def ifftshift(x: Shaped[Array, '*lead row col'], axes: tuple[int, ...] = _IMAGE_AXES) -> Shaped[Array, '*lead row col']:
  """The inverse of `fftshift`, as `numpy.fft.ifftshift`.

  Args:
    x: `[..., row, col]` of any type.
    axes: axes to shift.

  Returns:
    Array of the same shape and type.
  """
  return _shift(x, axes, jnp.fft.ifftshift)


def _shift(x, axes, roll):
  if any(x.shape[axis] % 2 for axis in axes):
    return roll(x, axes)
  axes = {axis % x.ndim for axis in axes}
  shape, halves = [], []
  for axis, size in enumerate(x.shape):
    if axis in axes:
      halves.append(len(shape))
    shape += (2, size // 2) if axis in axes else (size,)
  return lax.rev(x.reshape(shape), halves).reshape(x.shape)


@jax.custom_jvp
def safe_sqrt(square: Float[Array, '*shape']) -> Float[Array, '*shape']:
  """Square root whose gradient is 0, not infinite, where `square` is 0; 0 below 0, NaN of NaN."""
  return jnp.sqrt(jnp.maximum(square, 0))


@safe_sqrt.defjvp
def _safe_sqrt_jvp(primals, tangents):
  root = safe_sqrt(*primals)
  positive = root > 0
  return root, jnp.where(positive, 0.5 / jnp.where(positive, root, 1), 0) * tangents[0]


def abs_squared(x: Inexact[Array, '*shape']) -> Float[Array, '*shape']:
  """`|x|^2` without the square root, real-valued, smooth at 0."""
  return jnp.real(x) ** 2 + jnp.imag(x) ** 2


def rss(images: Inexact[Array, '*lead coil row col'], axis: int = -3) -> Float[Array, '*rest']:
  """Root sum of squares over coils, `X = sqrt(sum_i |x_i|^2)`.

  The gradient is 0 where all coils vanish.

  Args:
    images: `[..., coil, row, col]` complex coil images.
    axis: the coil axis.

  Returns:
    `[..., row, col]` real.

  Reference:
    Roemer et al. 1990; Morshuis et al. 2022, equation (3).
  """
  return safe_sqrt(jnp.sum(abs_squared(images), axis))


def sens_expand(
  image: Complex[Array, '*lead row col'], maps: Complex[Array, '*lead coil row col']
) -> Complex[Array, '*lead coil row col']:
  """Coil images `S_i x` of an image.

  Args:
    image: `[..., row, col]` complex.
    maps: `[..., coil, row, col]` complex sensitivities.

  Returns:
    `[..., coil, row, col]` complex.
  """
  return image[..., None, :, :] * maps


def sens_reduce(
  images: Complex[Array, '*lead coil row col'], maps: Complex[Array, '*lead coil row col']
) -> Complex[Array, '*lead row col']:
  """Combined image `sum_i conj(S_i) x_i`; the adjoint of `sens_expand`.

  Args:
    images: `[..., coil, row, col]` complex coil images.
    maps: `[..., coil, row, col]` complex sensitivities.

  Returns:
    `[..., row, col]` complex.
  """
  return jnp.sum(images * jnp.conj(maps), -3)
