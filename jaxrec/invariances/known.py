"""Scans and networks whose answer is known: what a verdict has to get right before it is believed of others.

Scans are a smooth background plus stationary Gaussian noise of a known spectrum,
on a torus; structures are round and at the centre. So signal D and covariance K
are known exactly, and for a linear network A so are A D and A K A^T.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from jaxrec.geometry import soft_disc
from jaxrec.invariances.observers import exact_detectability
from jaxrec.invariances.witness import product
from jaxrec.types import Array, Image

_Images: TypeAlias = Float[Array, '*lead row col']


class Texture(NamedTuple):
  """Noise of unit deviation on a torus: `side` in pixels, and the power of every Fourier mode, of mean 1."""

  side: int
  power: np.ndarray


def texture(side: int) -> Texture:
  """Noise as filtered back-projection leaves it: a ramp that the kernel takes down again, over a white floor.

  Args:
    side: pixels; even.

  Returns:
    The texture, whose pixels have variance 1.

  Raises:
    ValueError: for odd or very small sides.

  Reference:
    Riederer, Pelc and Chesler 1978, the noise power spectrum in CT.
  """
  if side < 8 or side % 2:
    raise ValueError(f'side: {side} is odd or below 8')
  f = np.fft.fftfreq(side)
  radius = np.hypot(f[:, None], f[None, :])
  power = 0.2 + 4 * radius * np.exp(-((radius / 0.3) ** 2))
  return Texture(side, power / power.mean())


def covariance(noise: Texture) -> Float[np.ndarray, 'pixel pixel']:
  """K, `[pixel, pixel]`: circulant, with the texture's power as its eigenvalues."""
  n = noise.side
  row = np.fft.ifft2(noise.power).real
  index = np.arange(n)
  shift = (index[:, None] - index[None, :]) % n
  return row[shift[:, None, :, None], shift[None, :, None, :]].reshape(n * n, n * n)


def draw(rng: np.random.Generator, noise: Texture, count: int) -> Float[np.ndarray, 'count side side']:
  """Noise images, `[count, side, side]` float32."""
  white = rng.standard_normal((count, noise.side, noise.side))
  return np.fft.ifft2(np.fft.fft2(white) * np.sqrt(noise.power)).real.astype(np.float32)


def background(rng: np.random.Generator, side: int) -> Float[np.ndarray, 'side side']:
  """A smooth anatomy, a few times the noise, `[side, side]` float32."""
  f = np.fft.fftfreq(side)
  smooth = np.exp(-0.5 * (np.hypot(f[:, None], f[None, :]) * side / 1.5) ** 2)
  image = np.fft.ifft2(np.fft.fft2(rng.standard_normal((side, side))) * smooth).real
  return (3 * image / image.std()).astype(np.float32)


def structure(side: int, diameter: float) -> Float[np.ndarray, 'side side']:
  """A round structure of unit contrast at the centre, `[side, side]`; `diameter` in pixels."""
  return soft_disc((side, side), (side / 2, side / 2), diameter)


def contrasts(noise: Texture, diameters: Sequence[float], aims: Sequence[float]) -> Float[np.ndarray, 'diameter aim']:
  """Contrasts that give structures the detectabilities `aims` in the input, `[diameter, aim]`."""
  units = exact_detectability(np.stack([structure(noise.side, d).ravel() for d in diameters]), covariance(noise))
  return np.asarray(aims) / units[:, None]


# Of `networks`, and of the one that a run trains.
NAMES = (
  'identity', 'smoothing', 'sharpening', 'directional', 'haar', 'constant', 'low_pass', 'removal', 'opening_7', 'opening_9', 'bottleneck',
)  # fmt: skip


class Known(NamedTuple):
  """A network whose answer is known.

  Attributes:
    label: name in reports.
    network: `[..., row, col]` to the same.
    linear: whether `exact` holds the answer.
    keeps: whether it loses nothing: r = 1, never ignored.
  """

  label: str
  network: Callable[[Image], Image]
  linear: bool
  keeps: bool


def networks(noise: Texture, removed: float) -> dict[str, Known]:
  """All networks with a known answer that need no training.

  Args:
    noise: of the scans.
    removed: diameter up to which the projection removes structures.
  """
  lossless = {
    'identity': ('identity', lambda x: x),
    'smoothing': ('invertible, gain 2 to .1', lambda x: filtered(x, 1.05, 0.2375, 0.2375)),
    'sharpening': ('invertible, gain .1 to 2', lambda x: filtered(x, 1.05, -0.2375, -0.2375)),
    'directional': ('invertible along rows', lambda x: filtered(x, 1.05, 0.475, 0.0)),
    'haar': ('Haar transform', haar),
    'constant': ('adds a constant', lambda x: x + 3.0),
  }
  found = {name: Known(label, f, True, True) for name, (label, f) in lossless.items()}
  found['low_pass'] = Known('exact low-pass', low_pass, True, False)
  found['removal'] = Known(f'removes up to {removed:g} pixels', removal(noise, removed), True, False)
  # Windows whose known answer at d' = 5 is yes for structures of 2 pixels and no for those of 10.
  found['opening_7'] = Known('opening by 7', lambda x: opening(x, 7), False, False)
  found['opening_9'] = Known('opening by 9', lambda x: opening(x, 9), False, False)
  return found


def filtered(image: _Images, centre: float, row: float, col: float) -> _Images:
  """Circular convolution with a cross: gain `centre + 2 row cos(2 pi f) + 2 col cos(2 pi g)`."""
  rows = jnp.roll(image, 1, -2) + jnp.roll(image, -1, -2)
  cols = jnp.roll(image, 1, -1) + jnp.roll(image, -1, -1)
  return centre * image + row * rows + col * cols


def haar(image: _Images) -> _Images:
  """One level of the orthonormal Haar transform, its four bands side by side."""
  a, b = image[..., ::2, :], image[..., 1::2, :]
  rows = jnp.concatenate([a + b, a - b], -2)
  c, d = rows[..., ::2], rows[..., 1::2]
  return jnp.concatenate([c + d, c - d], -1) / 2


def low_pass(image: _Images, cutoff: float = 0.2) -> _Images:
  """Keeps the frequencies up to `cutoff` cycles per pixel, and nothing of the others."""
  f = np.fft.fftfreq(image.shape[-1])
  kept = np.hypot(f[:, None], f[None, :]) <= cutoff
  return jnp.fft.ifft2(jnp.fft.fft2(image) * kept).real


def removal(noise: Texture, largest: float) -> Callable[[Image], Image]:
  """Takes out of an image all that the observer uses for structures up to a diameter.

  `x - D (D^T K^-1 D)^-1 D^T K^-1 x` over structures of 1, 1.5, 2, ... pixels: their
  evidence is exactly 0 in every output.
  """
  sizes = np.arange(1, largest + 0.25, 0.5)
  shapes = np.stack([structure(noise.side, d).ravel() for d in sizes], 1)
  # Neighbouring sizes are nearly the same shape: an orthonormal basis of what they span, in the whitened space.
  values, vectors = np.linalg.eigh(covariance(noise))
  whitened = (vectors / np.sqrt(values)).T @ shapes
  left, strength, _ = np.linalg.svd(whitened, full_matrices=False)
  basis = left[:, strength > 1e-6 * strength[0]]
  out, into = (vectors * np.sqrt(values)) @ basis, basis.T @ (vectors / np.sqrt(values)).T
  out, into = jnp.asarray(out, jnp.float32), jnp.asarray(into, jnp.float32)

  def remove(image):
    flat = image.reshape(*image.shape[:-2], -1)
    # Once more for what float32 left.
    for _ in range(2):
      flat = flat - product(product(flat, into.T), out.T)
    return flat.reshape(image.shape)

  return remove


def opening(image: _Images, size: int) -> _Images:
  """Grey opening by a square: bright structures narrower than `size` pixels disappear.

  Reference:
    Serra 1982, Image Analysis and Mathematical Morphology.
  """
  reach = size // 2
  window = (1,) * (image.ndim - 2) + (size, size)
  pad = [(0, 0)] * (image.ndim - 2) + [(reach, reach)] * 2

  def sweep(x, start, pick):
    return lax.reduce_window(jnp.pad(x, pad, mode='wrap'), start, pick, window, (1,) * image.ndim, 'VALID')

  return sweep(sweep(image, jnp.inf, lax.min), -jnp.inf, lax.max)


def matrix(network: Callable[[Image], Image], side: int) -> Float[np.ndarray, 'pixel pixel']:
  """The matrix `[pixel, pixel]` of a network that is linear up to a constant."""
  basis = jnp.eye(side * side).reshape(-1, side, side)
  columns = network(basis) - network(jnp.zeros((1, side, side)))
  return np.asarray(columns, float).reshape(side * side, -1).T


def exact(
  network: Callable[[Image], Image], noise: Texture, signals: Float[np.ndarray, 'kind side side']
) -> Float[np.ndarray, ' kind']:
  """d'_out of a linear network, `[class]`, for structures `[class, side, side]`."""
  a = matrix(network, noise.side)
  seen = signals.reshape(len(signals), -1) @ a.T
  # Without any signal there is nothing to tell, up to the network's rounding.
  kept = np.linalg.norm(seen, axis=-1) > 1e-5 * np.abs(signals).max((1, 2))
  found = np.zeros(len(signals))
  if kept.any():
    found[kept] = exact_detectability(seen[kept], a @ covariance(noise) @ a.T)
  return found
