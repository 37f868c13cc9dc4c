"""Stand-ins for what you have: small networks of other frameworks, and a reconstruction without learning."""

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec.fourier import fft2c, ifft2c


def _scaled(image):
  """Networks see images of unit size, whatever the scanner's units are."""
  size = jnp.max(jnp.abs(image))
  return image / jnp.where(size > 0, size, 1), size


class EquinoxUNet(eqx.Module):
  """One level: `[row, col]` to `[1, row, col]`."""

  down: eqx.nn.Conv2d
  inside: eqx.nn.Conv2d
  up: eqx.nn.ConvTranspose2d
  out: eqx.nn.Conv2d

  def __init__(self, key, chans=8):
    keys = jax.random.split(key, 4)
    self.down = eqx.nn.Conv2d(1, chans, 2, stride=2, key=keys[0])
    self.inside = eqx.nn.Conv2d(chans, chans, 3, padding=1, key=keys[1])
    self.up = eqx.nn.ConvTranspose2d(chans, chans, 2, stride=2, key=keys[2])
    self.out = eqx.nn.Conv2d(chans + 1, 1, 3, padding=1, key=keys[3])

  def __call__(self, image):
    x, size = _scaled(image[None])
    y = self.up(jax.nn.gelu(self.inside(jax.nn.gelu(self.down(x)))))
    return size * (x + 0.1 * self.out(jnp.concatenate([x, y])))


class NnxUNet(nnx.Module):
  """One level: `[row, col]` to `[1, row, col, 1]`."""

  def __init__(self, rngs, chans=8):
    self.down = nnx.Conv(1, chans, (2, 2), strides=2, rngs=rngs)
    self.inside = nnx.Conv(chans, chans, (3, 3), rngs=rngs)
    self.dropout = nnx.Dropout(0.1, rngs=rngs)
    self.up = nnx.ConvTranspose(chans, chans, (2, 2), strides=(2, 2), rngs=rngs)
    self.out = nnx.Conv(chans + 1, 1, (3, 3), rngs=rngs)

  def __call__(self, image):
    x, size = _scaled(image[None, ..., None])
    y = self.up(self.dropout(nnx.gelu(self.inside(nnx.gelu(self.down(x))))))
    return size * (x + 0.1 * self.out(jnp.concatenate([x, y], -1)))


def cg_sense(scan, num_steps=8, weight=1e-2):
  """Regularised least squares, sensitivities from the centre: `(sum_i S_i^H F^H M F S_i + weight) x = b`."""
  low = ifft2c(jnp.where(scan.acs, scan.kspace, 0))
  power = jnp.sum(jnp.abs(low) ** 2, 0)
  maps = low / jnp.sqrt(power + 1e-6 * jnp.max(power))

  def normal(x):
    return jnp.sum(maps.conj() * ifft2c(jnp.where(scan.mask, fft2c(maps * x), 0)), 0) + weight * x

  seen = jnp.sum(maps.conj() * ifft2c(jnp.where(scan.mask, scan.kspace, 0)), 0)
  x = jax.scipy.sparse.linalg.cg(normal, seen, maxiter=num_steps, tol=0.0)[0]
  # `abs` has no gradient at 0, where the background may lie.
  return jnp.sqrt(x.real**2 + x.imag**2 + 1e-12 * power)
