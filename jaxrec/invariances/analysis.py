"""Where samples change anatomy, for structures that nobody knows beforehand: analysis A.

Band-passed deviations of the samples from the anatomy are larger than anywhere in
samples for structure-free inputs of other patients. Ours; what Eulig et al. 2025 do is
known to us from its abstract only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float
from scipy import ndimage

from jaxrec.types import AnyArray, Array, Image

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
  rows = lax.conv_general_dilated(
    padded[None, None], kernel[None, None, :, None], (1, 1), 'VALID', precision=lax.Precision.HIGHEST
  )
  return lax.conv_general_dilated(rows, kernel[None, None, None, :], (1, 1), 'VALID', precision=lax.Precision.HIGHEST)[
    0, 0
  ]


def deviations(
  images: Float[Array, 'sample row col'], reference: Float[Array, 'repeat row col'], *, scales: Sequence[float] = SCALES
) -> Float[Array, 'sample scale row col']:
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


def excess_variation(
  images: Float[Array, 'sample row col'], reference: Float[Array, 'repeat row col'], *, scales: Sequence[float] = SCALES
) -> Image:
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


def family_threshold(maxima: Float[np.ndarray, ' image'], *, alpha: float = 0.05) -> float:
  """Threshold that one more structure-free input crosses, anywhere and at any scale, with a probability of at most `alpha`.

  Args:
    maxima: largest `excess_variation` of structure-free inputs of other patients.
    alpha: family-wise error per image.

  Returns:
    The threshold.

  Raises:
    ValueError: if there are too few maxima for this `alpha`.

  Reference:
    Nichols and Holmes 2002, nonparametric permutation tests (maximum statistic).
  """
  maxima = np.asarray(maxima, float).ravel()
  if not 0 < alpha < 1 or maxima.size + 1 < 1 / alpha:
    raise ValueError(
      f'alpha: {alpha} needs at least {int(np.ceil(1 / alpha)) - 1 if 0 < alpha < 1 else "a value in (0, 1)"} structure-free inputs, there are {maxima.size}'
    )
  # The new input is one more of the same kind, and might be the largest.
  rank = np.quantile(np.arange(1, maxima.size + 2), 1 - alpha, method='inverted_cdf')
  return float(np.sort(maxima)[int(rank) - 1])


class Component(NamedTuple):
  """A connected region of a map that crosses a threshold.

  `mask` `[row, col]` bool, its `size` in pixels, the signed `peak` deviation,
  and the box `row, col, height, width`.
  """

  mask: np.ndarray
  size: int
  peak: float
  box: tuple[int, int, int, int]


def components(deviation: Float[AnyArray, 'row col'], threshold: float) -> list[Component]:
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
    found.append(
      Component(mask, int(mask.sum()), peak, (rows.start, cols.start, rows.stop - rows.start, cols.stop - cols.start))
    )
  return sorted(found, key=lambda c: (-c.size, -abs(c.peak)))


def rank_by_component(
  z: Float[AnyArray, 'sample scale row col'], threshold: float, within: Bool[AnyArray, 'row col']
) -> list[tuple[int, Component | None]]:
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
