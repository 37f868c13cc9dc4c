"""Parallel-beam computed tomography: projection, filtered back-projection, low-dose noise.

Images are `[row, col]` of attenuation per length; sinograms `[view, bin]` of
line integrals. The origin is the centre of the image and of the detector, rows
point down, view angles turn from the column axis towards the row axis.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from jaxrec.types import Array, Image, Key, Scalar


class Geometry(NamedTuple):
  """A scan: image side in pixels of `pixel` mm, `views` over pi, `bins` of `bin` mm."""

  pixels: int = 256
  pixel: float = 1.5625
  views: int = 360
  bins: int = 384
  bin: float = 1.2


def angles(geometry: Geometry) -> Float[np.ndarray, ' view']:
  """View angles in radians, `[view]`, evenly over a half turn."""
  return np.arange(geometry.views) * np.pi / geometry.views


def positions(count: int, spacing: float) -> Float[np.ndarray, ' count']:
  """Centres of pixels or bins in mm, symmetric about 0, `[count]`."""
  return (np.arange(count) - (count - 1) / 2) * spacing


def project(image: Image, geometry: Geometry) -> Float[Array, 'view bin']:
  """Line integrals, the adjoint of `back_project` times the pixel's area over a bin's width.

  Every pixel spreads its area over the two bins that its centre falls between.

  Args:
    image: `[row, col]` attenuation per mm.
    geometry: of the scan.

  Returns:
    `[view, bin]`, without units.
  """
  _check(image.shape, (geometry.pixels, geometry.pixels), 'image')
  back = jax.linear_transpose(
    partial(back_project, geometry=geometry), jax.ShapeDtypeStruct((geometry.views, geometry.bins), image.dtype)
  )
  return back(image)[0] * (geometry.pixel**2 / geometry.bin)


def back_project(sinogram: Float[Array, 'view bin'], geometry: Geometry) -> Image:
  """Sum over views of the linearly interpolated sinogram at every pixel.

  Args:
    sinogram: `[view, bin]`.
    geometry: of the scan.

  Returns:
    `[row, col]`.
  """
  _check(sinogram.shape, (geometry.views, geometry.bins), 'sinogram')
  along = positions(geometry.pixels, geometry.pixel / geometry.bin)
  centre = (geometry.bins - 1) / 2
  cosines, sines = (f(angles(geometry)).astype(sinogram.dtype) for f in (np.cos, np.sin))
  x, y = jnp.asarray(along[None, :], sinogram.dtype), jnp.asarray(along[:, None], sinogram.dtype)

  def add(total, view):
    row, cosine, sine = view
    at = x * cosine + y * sine + centre
    low = jnp.floor(at)
    share = at - low
    index = low.astype(jnp.int32)

    def take(i):
      return jnp.where((i >= 0) & (i < geometry.bins), row[jnp.clip(i, 0, geometry.bins - 1)], 0)

    return total + (1 - share) * take(index) + share * take(index + 1), None

  start = jnp.zeros((geometry.pixels, geometry.pixels), sinogram.dtype)
  return lax.scan(add, start, (sinogram, jnp.asarray(cosines), jnp.asarray(sines)))[0]


def ramp_filter(sinogram: Float[Array, 'view bin'], geometry: Geometry) -> Float[Array, 'view bin']:
  """Ram-Lak filter, from its samples in space, so that the mean is right.

  Args:
    sinogram: `[view, bin]`.
    geometry: of the scan.

  Returns:
    `[view, bin]`, per mm.

  Reference:
    Kak and Slaney 1988, chapter 3, equation (61).
  """
  length = 2 ** int(np.ceil(np.log2(2 * geometry.bins)))
  n = np.fft.fftfreq(length, 1 / length).astype(int)
  kernel = np.where(n == 0, 0.25, np.where(n % 2 == 1, -1 / (np.pi * np.where(n == 0, 1, n)) ** 2, 0)) / geometry.bin
  response = np.fft.rfft(kernel).real.astype(sinogram.dtype)
  spectrum = jnp.fft.rfft(sinogram, length, axis=-1) * response
  return jnp.fft.irfft(spectrum, length, axis=-1)[:, : geometry.bins].astype(sinogram.dtype)


def filtered_back_projection(sinogram: Float[Array, 'view bin'], geometry: Geometry) -> Image:
  """Image from line integrals over a half turn.

  Args:
    sinogram: `[view, bin]`.
    geometry: of the scan.

  Returns:
    `[row, col]` attenuation per mm.

  Reference:
    Kak and Slaney 1988, chapter 3.
  """
  return back_project(ramp_filter(sinogram, geometry), geometry) * (np.pi / geometry.views)


def ellipse_sinogram(ellipses: Float[Array, 'n 6'], geometry: Geometry) -> Float[Array, 'view bin']:
  """Exact line integrals of a sum of ellipses.

  `2 v a b sqrt(s^2 - t^2) / s^2` with `s` the half width of the shadow and t the
  distance from the shadow of the centre.

  Args:
    ellipses: `[n, 6]`: row and column of the centre, row and column half axes
      (mm), turn (radians, rows towards columns), attenuation per mm.
    geometry: of the scan.

  Returns:
    `[view, bin]`.

  Reference:
    Kak and Slaney 1988, section 3.1.
  """
  ellipses = jnp.asarray(ellipses)
  theta = jnp.asarray(angles(geometry), ellipses.dtype)[:, None]
  t = jnp.asarray(positions(geometry.bins, geometry.bin), ellipses.dtype)[None, :]

  def one(e):
    row, col, half_row, half_col, turn, value = e
    # In the ellipse's own axes the ray's normal is turned by -turn.
    across = jnp.sqrt((half_col * jnp.cos(theta + turn)) ** 2 + (half_row * jnp.sin(theta + turn)) ** 2)
    distance = t - (col * jnp.cos(theta) + row * jnp.sin(theta))
    return 2 * value * half_row * half_col * jnp.sqrt(jnp.maximum(across**2 - distance**2, 0)) / across**2

  return lax.scan(
    lambda total, e: (total + one(e), None), jnp.zeros((geometry.views, geometry.bins), ellipses.dtype), ellipses
  )[0]


def measure(
  key: Key, sinogram: Float[Array, 'view bin'], photons: Scalar | float, *, electronic: float = 10.0
) -> Float[Array, 'view bin']:
  """Line integrals as measured: Beer-Lambert, Poisson counts, electronic noise, logarithm.

  `N ~ Poisson(I0 exp(-p)) + N(0, s^2)`, `p' = log(I0 / max(N, 1))`.

  Args:
    key: of the noise.
    sinogram: `[view, bin]` line integrals.
    photons: I0, per bin without object.
    electronic: s, in photons.

  Returns:
    `[view, bin]`.

  Reference:
    Zeng et al. 2015, A simple low-dose x-ray CT simulation.
  """
  return line_integrals(counts(key, sinogram, photons, electronic=electronic), photons)


def counts(
  key: Key, sinogram: Float[Array, 'view bin'], photons: Scalar | float, *, electronic: float = 10.0
) -> Float[Array, 'view bin']:
  """Noisy photon counts; see `measure`."""
  quantum, normal, electric = jax.random.split(key, 3)
  expected = photons * jnp.exp(-sinogram)
  # In float32 the rejection of `jax.random.poisson` fails for millions; a skewness of 0.003 is left out here.
  many = expected > 1e5
  drawn = jax.random.poisson(quantum, jnp.where(many, 1, expected), sinogram.shape).astype(sinogram.dtype)
  gaussian = jnp.round(expected + jnp.sqrt(expected) * jax.random.normal(normal, sinogram.shape, sinogram.dtype))
  drawn = jnp.where(many, gaussian, drawn)
  return drawn + electronic * jax.random.normal(electric, sinogram.shape, sinogram.dtype)


def line_integrals(photon_counts: Float[Array, 'view bin'], photons: Scalar | float) -> Float[Array, 'view bin']:
  """`log(I0 / N)` with counts below one taken as one."""
  return jnp.log(photons / jnp.maximum(photon_counts, 1))


def _check(shape, wanted, name):
  if tuple(shape) != tuple(wanted):
    raise ValueError(f'{name}: has shape {tuple(shape)}, the geometry says {tuple(wanted)}')
