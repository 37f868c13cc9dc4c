"""Thermal noise of a scan: estimate it, draw it, and compare attacks with it.

`sigma` is the standard deviation of the real and of the imaginary part of one
coil's k-space samples; the unitary transform gives coil images the same.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Complex, Float

from jaxrec.fourier import abs_squared, ifft2c
from jaxrec.types import Array, Key, Scan

_CORNER = 0.08


def sigma_from_kspace(scan: Scan) -> Float[Array, ' coil']:
  """Noise per coil from the corners of k-space, where there is least signal.

  `sigma_i^2 = mean |k_i|^2 / 2` over the outermost 8% of readout samples and of
  acquired columns on either side.

  Args:
    scan: one slice.

  Returns:
    `[coil]` float32, in units of the k-space.
  """
  rows = scan.kspace.shape[-2]
  band = max(int(round(_CORNER * rows)), 1)
  outer_rows = np.zeros((rows, 1), bool)
  outer_rows[:band] = outer_rows[rows - band :] = True
  order = jnp.cumsum(scan.acquired, -1) - 1
  count = jnp.sum(scan.acquired)
  edge = jnp.maximum(_CORNER * count, 1)
  corner = outer_rows & scan.acquired & ((order < edge) | (order >= count - edge))
  power = jnp.sum(jnp.where(corner, abs_squared(scan.kspace), 0), (-2, -1))
  return jnp.sqrt(power / (2 * jnp.maximum(jnp.sum(corner), 1)))


def sigma_from_background(scan: Scan) -> Float[Array, ' coil']:
  """Noise per coil from the background of the magnitude images.

  In air the magnitude is Rayleigh distributed with mean `sigma sqrt(pi / 2)`.
  The background is the darkest of the four image corners (8% of either side),
  and columns that were not acquired are accounted for.

  Args:
    scan: one slice.

  Returns:
    `[coil]` float32, in units of the k-space.

  Reference:
    Firbank et al. 1999, Phys. Med. Biol. 44 N261.
  """
  magnitude = jnp.abs(ifft2c(jnp.where(scan.acquired, scan.kspace, 0)))
  high, wide = (max(int(round(_CORNER * n)), 1) for n in magnitude.shape[-2:])
  corners = [
    jnp.mean(magnitude[:, r, c], (-2, -1))
    for r in (slice(None, high), slice(-high, None))
    for c in (slice(None, wide), slice(-wide, None))
  ]
  acquired = jnp.mean(scan.acquired.astype(magnitude.dtype))
  return jnp.min(jnp.stack(corners), 0) / jnp.sqrt(jnp.pi / 2 * acquired)


def thermal_eta(sigma: Float[Array, ' coil'], scan: Scan) -> Float[Array, ' coil']:
  """Relative radius at which noise of bounded energy has that of the thermal noise.

  `eta_i = sqrt(2 sigma_i^2 n) / ||k_i||` with n acquired samples: `coil_noise(eta)`
  then moves every coil as far as thermal noise does on average.

  Args:
    sigma: `[coil]` noise per coil.
    scan: the slice it was estimated on.

  Returns:
    `[coil]` float32, 0 for a coil without signal.

  Reference:
    Morshuis et al. 2022, section 3.
  """
  samples = scan.kspace.shape[-2] * jnp.sum(scan.acquired)
  signal = jnp.sum(abs_squared(scan.kspace), (-2, -1))
  return jnp.where(signal > 0, jnp.sqrt(2 * sigma**2 * samples / jnp.where(signal > 0, signal, 1)), 0)


def draw(key: Key, sigma: Float[Array, ' coil'], scan: Scan) -> Complex[Array, 'coil row col']:
  """Draws thermal noise on the acquired samples.

  Args:
    key: random key.
    sigma: `[coil]` noise per coil.
    scan: the slice; its k-space gives shape and dtype.

  Returns:
    `[coil, row, col]` complex.
  """
  # A standard complex normal has variance 1/2 in either part.
  noise = jax.random.normal(key, scan.kspace.shape, scan.kspace.dtype) * jnp.sqrt(2.0)
  return jnp.where(scan.acquired, noise * sigma[:, None, None], 0).astype(scan.kspace.dtype)
