"""Which samples change anatomy: two analyses, and a control that needs no generative model.

- A, excess variation: where band-passed deviations of the samples from the anatomy
  are larger than new noise on the same anatomy makes them anywhere.
- B, structure-conditioned search: the contrast of a known structure over the samples.
- Control: the structure is put in or taken out of the input, and the output's move
  compared with that under new noise, and with the input's own move.

Both analyses are ours; what Eulig et al. 2025 do is known to us from its abstract only.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import ndimage

from jaxrec.types import Array, Image, Key

SCALES = (1.0, 1.6, 2.5)


def band_pass(image: Image, scale: float) -> Image:
  """Difference of Gaussians of `scale` and 1.6 `scale` pixels, close to the Laplacian of a Gaussian.

  Edges are extended by reflection.

  Args:
    image: `[row, col]`.
    scale: pixels.

  Returns:
    `[row, col]`.

  Reference:
    Marr and Hildreth 1980.
  """
  return _smooth(image, scale) - _smooth(image, 1.6 * scale)


def _smooth(image, sigma):
  reach = int(np.ceil(3 * sigma))
  kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
  kernel = jnp.asarray(kernel / kernel.sum(), image.dtype)
  padded = jnp.pad(image, reach, mode='symmetric')
  rows = lax.conv_general_dilated(padded[None, None], kernel[None, None, :, None], (1, 1), 'VALID', precision=lax.Precision.HIGHEST)
  return lax.conv_general_dilated(rows, kernel[None, None, None, :], (1, 1), 'VALID', precision=lax.Precision.HIGHEST)[0, 0]


def deviations(images: Array, reference: Array, *, scales: Sequence[float] = SCALES) -> Array:
  """Band-passed deviations from the mean of a reference, in its standard deviations.

  `z = (B x' - mean_j B r_j) / s`, with the variance `s^2` over the reference
  averaged over a neighbourhood of twice the scale: few repeats tell little about
  one pixel, and noise changes quickly near edges.

  Args:
    images: `[sample, row, col]`.
    reference: `[repeat, row, col]`, the same anatomy under new noise.
    scales: of the band-pass, pixels.

  Returns:
    `[sample, scale, row, col]`.
  """

  def at(scale):
    seen = jax.vmap(lambda x: band_pass(x, scale))
    base = seen(reference)
    level = jnp.sqrt(jnp.maximum(_smooth(jnp.var(base, 0, ddof=1), 2 * scale), 1e-20))
    return (seen(images) - jnp.mean(base, 0)) / level

  return jnp.stack([at(s) for s in scales], 1)


def excess_variation(images: Array, reference: Array, *, scales: Sequence[float] = SCALES) -> Array:
  """How far samples are from the anatomy, in units of the noise: the map of analysis A.

  `sqrt(mean_i z_i^2)` over samples, the largest over scales, with z of
  `deviations`; about 1 where samples vary as noise does.

  Args:
    images: `[sample, row, col]`.
    reference: `[repeat, row, col]`, the same anatomy under new noise.
    scales: pixels.

  Returns:
    `[row, col]`.
  """
  z = deviations(images, reference, scales=scales)
  return jnp.max(jnp.sqrt(jnp.mean(z**2, 0)), 0)


def noise_maxima(key: Key, reference: Array, *, splits: int = 8, scales: Sequence[float] = SCALES) -> Array:
  """Largest excess variation that noise alone gives: one half of the repeats as samples, the other as reference.

  Halves are noisier than the full number of repeats and samples, so that a
  threshold from these maxima is conservative.

  Args:
    key: of the halves.
    reference: `[repeat, row, col]`.
    splits: random halves.
    scales: see `deviations`.

  Returns:
    `[splits]`.
  """
  half = reference.shape[0] // 2

  def one(k):
    mixed = jax.random.permutation(k, reference)
    return jnp.max(excess_variation(mixed[:half], mixed[half:], scales=scales))

  return lax.map(one, jax.random.split(key, splits))


def family_threshold(maxima: np.ndarray, *, alpha: float = 0.05) -> float:
  """Threshold that a share `alpha` of images under noise alone crosses anywhere, at any scale.

  Args:
    maxima: of `noise_maxima`, pooled over images.
    alpha: family-wise error per image.

  Returns:
    The threshold.

  Raises:
    ValueError: if there are too few maxima for this `alpha`.

  Reference:
    Nichols and Holmes 2002, nonparametric permutation tests (maximum statistic).
  """
  maxima = np.asarray(maxima, float).ravel()
  if not 0 < alpha < 1 or maxima.size < 1 / alpha:
    raise ValueError(f'alpha: {alpha} needs at least {int(np.ceil(1 / alpha)) if 0 < alpha < 1 else "a value in (0, 1)"} maxima under noise, there are {maxima.size}')
  return float(np.quantile(maxima, 1 - alpha, method='higher'))


class Component(NamedTuple):
  """A connected region of a map that crosses a threshold.

  `mask` `[row, col]` bool, its `size` in pixels, the signed `peak` deviation,
  and the box `row, col, height, width`.
  """

  mask: np.ndarray
  size: int
  peak: float
  box: tuple[int, int, int, int]


def components(deviation: np.ndarray, threshold: float) -> list[Component]:
  """Connected regions of a map that cross a threshold, the largest first.

  Args:
    deviation: `[row, col]`, of `excess_variation` or of one sample.
    threshold: of `family_threshold`.

  Returns:
    The regions; neighbours across corners belong together.
  """
  deviation = np.asarray(deviation)
  labels, _ = ndimage.label(np.abs(deviation) > threshold, structure=np.ones((3, 3)))
  found = []
  for k, (rows, cols) in enumerate(ndimage.find_objects(labels), 1):
    mask = labels == k
    peak = float(deviation[mask][np.abs(deviation[mask]).argmax()])
    found.append(Component(mask, int(mask.sum()), peak, (rows.start, cols.start, rows.stop - rows.start, cols.stop - cols.start)))
  return sorted(found, key=lambda c: (-c.size, -abs(c.peak)))


def rank_by_component(z: np.ndarray, threshold: float, within: np.ndarray) -> list[tuple[int, Component | None]]:
  """Samples by their largest change of anatomy.

  Args:
    z: of `deviations`, `[sample, scale, row, col]`.
    threshold: of one sample's deviation.
    within: `[row, col]` bool, where the samples vary in excess of noise.

  Returns:
    `(sample, largest component)`, the largest first; `None` for none.
  """
  largest = []
  for i, maps in enumerate(np.asarray(z)):
    strongest = np.take_along_axis(maps, np.abs(maps).argmax(0)[None], 0)[0]
    regions = components(np.where(within, strongest, 0), threshold)
    largest.append((i, regions[0] if regions else None))
  return sorted(largest, key=lambda f: (-(f[1].size if f[1] else 0), f[0]))


def disc(shape: tuple[int, int], centre: tuple[float, float], diameter: float) -> tuple[np.ndarray, np.ndarray]:
  """Masks of a round structure and of its surroundings.

  The surroundings are a ring of the same area or more, two pixels away.

  Args:
    shape: `(row, col)`.
    centre: row and column, pixels.
    diameter: pixels; at least the pixel that holds the centre is inside.

  Returns:
    Two `[row, col]` bool masks.
  """
  rows, cols = np.ogrid[: shape[0], : shape[1]]
  away = np.hypot(rows - centre[0], cols - centre[1])
  radius = max(diameter / 2, 0.71)
  return away <= radius, (away > radius + 2) & (away <= max(1.8 * radius, radius + 3.5) + 1)


def contrast(images: Array, inside: Array, around: Array) -> Array:
  """Mean inside a structure minus mean around it, `[..., row, col]` to `[...]`."""

  def mean(mask):
    return jnp.sum(jnp.where(mask, images, 0), (-2, -1)) / jnp.sum(mask)

  return mean(inside) - mean(around)


def contrast_interval(contrasts: np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
  """Contrasts that the network cannot tell apart: the central share of those of the samples.

  Args:
    contrasts: `[sample]`.
    level: share.

  Returns:
    Lower and upper end.
  """
  return tuple(float(q) for q in np.quantile(contrasts, [(1 - level) / 2, (1 + level) / 2]))


def presence_threshold(absent: np.ndarray, *, alpha: float = 0.05) -> float:
  """Contrast above which a structure counts as present.

  Args:
    absent: contrasts of samples at places without a structure.
    alpha: share of them that may lie above.

  Returns:
    The threshold, in the units of the contrast.
  """
  return float(np.quantile(np.asarray(absent, float).ravel(), 1 - alpha, method='higher'))


def displacement(output: Any, changed: Any, fresh: Any, mask: Array | None = None, *, level: float = 0.5) -> Array:
  """How far the output moves if the input is changed, over how far new noise moves it.

  `||f(x) - f(x_changed)|| / quantile_j ||f(x) - f(x_j)||`; below 1 the change is
  smaller than what a share `1 - level` of new scans make.

  Args:
    output: f(x), `[row, col]`.
    changed: f of the input with or without a structure, `[..., row, col]`.
    fresh: f of the same anatomy under new noise, `[repeat, row, col]`.
    mask: `[row, col]`, where to look; everywhere if `None`.
    level: of the quantile; the median if .5.

  Returns:
    `[...]`.
  """
  weight = jnp.ones_like(output) if mask is None else jnp.asarray(mask, output.dtype)

  def norm(x):
    return jnp.sqrt(jnp.sum(weight * x**2, (-2, -1)))

  return norm(changed - output) / jnp.quantile(norm(fresh - output), level)
