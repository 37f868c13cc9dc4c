"""Image quality of one example: MSE, NMSE, PSNR, SSIM and DSSIM, over an image or a region.

Every function takes `(image, target, scale, region=None)`, returns a scalar,
is differentiable in `image` and finite on flat images. An image larger than
the target is centre-cropped to it first. `region` is `[row, col]`, 1 inside
the region of interest.
"""

import chex
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from jaxrec.geometry import center_crop
from jaxrec.types import Array, Image, Sample, Scalar

_WINDOW = 7


def mse(image: Float[Array, 'high wide'], target: Image, scale: Scalar | float, region: Image | None = None) -> Scalar:
  """Mean squared error, `sum(S (x - t)^2) / sum(S)`; `scale` is not used.

  Args:
    image: `[row, col]` float, not smaller than the target.
    target: `[row, col]` float.
    scale: `[]` data range.
    region: `[row, col]` weights, or `None` for the whole image.

  Returns:
    `[]`, in squared image units.
  """
  del scale
  error = center_crop(image, target.shape) - target
  return _mean(error * error, region)


def nmse(image: Float[Array, 'high wide'], target: Image, scale: Scalar | float, region: Image | None = None) -> Scalar:
  """Normalised mean squared error, `sum(S (x - t)^2) / sum(S t^2)`.

  Args and Returns: as `mse`, without units.

  Reference:
    Zbontar et al. 2018, fastMRI.
  """
  tiny = jnp.finfo(target.dtype).tiny
  return mse(image, target, scale, region) / jnp.maximum(_mean(target * target, region), tiny)


def psnr(image: Float[Array, 'high wide'], target: Image, scale: Scalar | float, region: Image | None = None) -> Scalar:
  """Peak signal-to-noise ratio, `10 log10(scale^2 / mse)`.

  Capped where the error is below the floating-point resolution of `scale`.

  Args and Returns: as `mse`, in decibels.
  """
  unit = jnp.where(scale > 0, scale, 1)
  error = mse(image / unit, target / unit, scale, region)
  return -10 * jnp.log10(jnp.maximum(error, jnp.finfo(target.dtype).eps ** 2))


def ssim(image: Float[Array, 'high wide'], target: Image, scale: Scalar | float, region: Image | None = None) -> Scalar:
  """Structural similarity with a uniform 7x7 window and sample covariance.

  Over a region it is the mean over the windows that lie inside the region,
  which for a box equals the SSIM of the cropped box. A region too small to
  hold a window is scored by the windows centred in it, and one within three
  pixels of the border by the windows that touch it.

  Args:
    image: `[row, col]` float, not smaller than the target.
    target: `[row, col]` float, at least 7x7.
    scale: `[]` data range of the images.
    region: `[row, col]` of 0 and 1, or `None` for the whole image.

  Returns:
    `[]`, at most 1.

  Reference:
    Wang et al. 2004, with the window of fastMRI and scikit-image.

  Example:
    >>> import jax.numpy as jnp, jaxrec
    >>> x = jnp.arange(100.0).reshape(10, 10)
    >>> float(jaxrec.metrics.ssim(x, x, jnp.float32(99)))
    1.0
  """
  values = ssim_map(center_crop(image, target.shape), target, scale)
  if region is None:
    return _mean(values, None)
  overlap = _box_mean(region.astype(values.dtype))
  inside = (overlap > 1 - 0.5 / _WINDOW**2).astype(values.dtype)
  margin = _WINDOW // 2
  centred = region[margin : region.shape[0] - margin, margin : region.shape[1] - margin].astype(values.dtype)
  touching = (overlap > 0).astype(values.dtype)
  weights = jnp.where(jnp.any(inside > 0), inside, jnp.where(jnp.any(centred > 0), centred, touching))
  return _mean(values, weights)


def dssim(image: Float[Array, 'high wide'], target: Image, scale: Scalar | float) -> Scalar:
  """Structural dissimilarity, `(1 - SSIM) / 2` with the 11x11 Gaussian window of Wang et al.

  Args:
    image: `[row, col]` float, not smaller than the target.
    target: `[row, col]` float, at least 11x11.
    scale: `[]` data range of the images.

  Returns:
    `[]`, in [0, 1].

  Reference:
    Wang et al. 2004; Huang and Liang 2020, equation (8).
  """
  return (1 - _mean(ssim_map(center_crop(image, target.shape), target, scale, window='gaussian'), None)) / 2


def ssim_map(
  image: Image, target: Image, scale: Scalar | float, *, window: str = 'uniform'
) -> Float[Array, 'row_windows col_windows']:
  """SSIM of every window.

  Args:
    image: `[row, col]` float.
    target: `[row, col]` float, the same shape.
    scale: `[]` data range.
    window: `uniform` 7x7 with sample covariance, or `gaussian` 11x11 of
      standard deviation 1.5.

  Returns:
    `[row - 6, col - 6]`, or `[row - 10, col - 10]`.
  """
  chex.assert_equal_shape((image, target))
  size, local_mean, sample = _WINDOWS[window]
  if min(target.shape) < size:
    raise ValueError(f'ssim: images of {target.shape} are smaller than its {size}x{size} window')
  c1, c2 = 0.01**2, 0.03**2
  # In units of the data range: raw k-space units of 1e-5 would underflow in the gradient.
  unit = jnp.where(scale > 0, scale, 1)
  image, target = image / unit, target / unit
  mean_x, mean_y = local_mean(image), local_mean(target)
  # Second moments about a common level lose fewer digits than about zero.
  level = _mean(target, None)
  x, y = image - level, target - level
  dx, dy = mean_x - level, mean_y - level
  var_x = sample * (local_mean(x * x) - dx * dx)
  var_y = sample * (local_mean(y * y) - dy * dy)
  cov = sample * (local_mean(x * y) - dx * dy)
  numerator = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
  return numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))


def own_reference(image: Image, sample: Sample) -> Sample:
  """A sample without a target is compared with the network's own clean output.

  Scores of the clean output are then perfect, and those of an attacked one say how
  far it deviates from it. The gradient of every such score is zero where nothing is
  perturbed yet: a search has to start elsewhere (`coil_noise(..., start='random')`).

  Args:
    image: `[row, col]`, the network's reconstruction of the sample, unperturbed.
    sample: its target is NaN where there is none.

  Returns:
    The sample with every target that is NaN replaced by the image, centre-cropped.
  """
  missing = jnp.any(jnp.isnan(sample.target))
  return sample.replace(target=jnp.where(missing, center_crop(image, sample.target.shape), sample.target))


def _box_mean(x: Array) -> Array:
  for axis in (0, 1):
    window = [1, 1]
    window[axis] = _WINDOW
    x = lax.reduce_window(x, np.zeros((), x.dtype), lax.add, tuple(window), (1, 1), 'valid') / _WINDOW
  return x


def _gaussian_mean(x: Array) -> Array:
  weights = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
  kernel = (weights / weights.sum()).astype(x.dtype)
  x = x[None, :, :, None]
  for shape in ((11, 1, 1, 1), (1, 11, 1, 1)):
    x = lax.conv_general_dilated(
      x,
      kernel.reshape(shape),
      (1, 1),
      'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      precision=lax.Precision.HIGHEST,
    )
  return x[0, :, :, 0]


# Side, local mean, and the factor of its covariance.
_WINDOWS = {'uniform': (_WINDOW, _box_mean, _WINDOW**2 / (_WINDOW**2 - 1)), 'gaussian': (11, _gaussian_mean, 1.0)}


def _mean(x: Array, weights: Array | None) -> Scalar:
  if weights is None:
    return _sum(x) / x.size
  return _sum(x * weights) / jnp.maximum(_sum(weights), 1)


def _sum(x: Array) -> Scalar:
  # Rows first: one long float32 sum is less exact on the CPU, and rounds by what stands around it in a program.
  return jnp.sum(lax.optimization_barrier(jnp.sum(x, 0)))
