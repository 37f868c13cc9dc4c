"""U-Nets: the plain network, its normalised form and the image-domain reconstructor."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxrec.fourier import ifft2c, rss, safe_sqrt
from jaxrec.geometry import center_crop
from jaxrec.models import layers
from jaxrec.types import Array

DTYPES = ('float32', 'bfloat16')


class UNet(nn.Module):
  """U-Net with average pooling; by default instance norm and leaky ReLU 0.2.

  Attributes:
    chans: channels of the first level; doubled at every pooling.
    pools: number of poolings.
    out_chans: channels of the output.
    norm: `instance` or `batch`.
    activation: `leaky_relu` or `prelu`.
    upsample: `transposed` 2x2 convolutions, or `bilinear` as in the first
      fastMRI baseline: the bottom does not double its channels, the last
      convolutions are a chain of three 1x1.
    activation_first: the activation stands before the normalisation, not after.
    batch_axis: device axis of batch norm, `training.Parallel.axis`.
    dtype: `float32`, or `bfloat16` for convolutions and activations; parameters,
      sums of products, statistics of norms, input and output are float32 in both.

  Reference:
    Ronneberger et al. 2015, in the form of the fastMRI repository; Huang and
    Liang 2020, section 2.4 (`prelu`, `bilinear`, `activation_first`).

  Example:
    >>> import jax, jaxrec
    >>> net = jaxrec.models.UNet(chans=4, pools=2)
    >>> x = jax.numpy.ones((3, 20, 17, 1))
    >>> image, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
    >>> image.shape
    (3, 20, 17, 1)
  """

  chans: int
  pools: int
  out_chans: int = 1
  norm: str = 'instance'
  activation: str = 'leaky_relu'
  upsample: str = 'transposed'
  activation_first: bool = False
  batch_axis: str | None = None
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """`[..., row, col, in]` to `[..., row, col, out_chans]`; sizes of at least `2 ** pools`."""
    lead = x.shape[:-3]
    if min(x.shape[-3:-1]) < 2**self.pools:
      raise ValueError(f'UNet: an image of {x.shape[-3:-1]} is too small for pools={self.pools}')
    if self.upsample not in ('transposed', 'bilinear'):
      raise ValueError(f'upsample: {self.upsample!r} is unknown; choose transposed or bilinear')
    bilinear = self.upsample == 'bilinear'
    style: dict[str, Any] = dict(
      norm=self.norm, activation=self.activation, activation_first=self.activation_first, batch_axis=self.batch_axis
    )
    outside = x.dtype
    x = compute_type(self.dtype, x).reshape(-1, *x.shape[-3:])
    skips = []
    for level in range(self.pools):
      x = layers.ConvBlock(self.chans * 2**level, **style, name=f'down_{level}')(x)
      skips.append(x)
      x = layers.average_pool(x)
    x = layers.ConvBlock(self.chans * 2 ** (self.pools - bilinear), **style, name='bottom')(x)
    for level in reversed(range(self.pools)):
      if bilinear:
        features = self.chans * 2 ** max(level - 1, 0)
        x = jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]), 'bilinear')
      else:
        features = self.chans * 2**level
        x = layers.UpBlock(features, **style, name=f'up_{level}')(x)
      x = jnp.concatenate([layers.match_size(x, skips[level]), skips[level]], -1)
      x = layers.ConvBlock(features, **style, name=f'merge_{level}')(x)
    if bilinear:
      x = layers.Conv(self.chans // 2, size=1, use_bias=True, name='out_0')(x)
      x = layers.Conv(self.out_chans, size=1, use_bias=True, name='out_1')(x)
    x = layers.Conv(self.out_chans, size=1, use_bias=True, name='out')(x)
    return x.reshape(*lead, *x.shape[1:]).astype(outside)


def compute_type(dtype: str, x: Array) -> Array:
  """`x` in the type that a network computes in; `float32` leaves it as it is.

  Raises:
    ValueError: for an unknown type.
  """
  if dtype not in DTYPES:
    raise ValueError(f'model.dtype: {dtype!r} is unknown; choose one of {", ".join(DTYPES)}')
  return x if dtype == 'float32' else x.astype(dtype)


def moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
  """Mean and unbiased standard deviation (0, with gradient 0, for constant input).

  Args:
    x: real array.
    axes: axes to reduce, kept with size 1.

  Returns:
    Mean and standard deviation.
  """
  mean = _stepwise(jnp.mean, x, axes)
  count = 1
  for axis in axes:
    count *= x.shape[axis]
  variance = _stepwise(jnp.mean, (x - mean) ** 2, axes) * (count / (count - 1))
  return mean, safe_sqrt(variance)


def _stepwise(reduce, x, axes):
  # One axis at a time: long float32 sums lose digits on the CPU.
  for axis in axes:
    x = reduce(x, axis, keepdims=True)
  return x


@jax.custom_vjp
def standardise(x: Array) -> tuple[Array, Array, Array]:
  """An image with its mean taken off, in units of its unbiased standard deviation, and both; see `moments`.

  A constant channel becomes 0. Keeps only its first and last result for the backward pass.

  Args:
    x: `[batch, row, col, channel]`, of more than one pixel.

  Returns:
    Array of the same shape, mean and standard deviation `[batch, 1, 1, channel]`.
  """
  mean, std = moments(x, (1, 2))
  return (x - mean) / _or_one(std), mean, std


def _standardise_forward(x):
  y, mean, std = standardise(x)
  return (y, mean, std), (y, std)


def _standardise_backward(residuals, cotangents):
  (y, std), (g, g_mean, g_std) = residuals, cotangents
  count = y.shape[1] * y.shape[2]
  mean, product = layers.spatial_means(g, g * y)
  through_std = jnp.where(std > 0, (g_std - product * (count / _or_one(std))) / (count - 1), 0)
  return ((g - mean) / _or_one(std) + g_mean / count + y * through_std,)


def _or_one(std):
  return jnp.where(std > 0, std, 1)


standardise.defvjp(_standardise_forward, _standardise_backward)


class NormUNet(nn.Module):
  """U-Net on a complex image, normalised per real and imaginary part.

  Pads to multiples of 16 (the smaller half first), normalises with mean and
  unbiased standard deviation, and undoes both.

  Attributes:
    chans: channels of the first level.
    pools: number of poolings.
    dtype: see `UNet`.

  Reference:
    Sriram et al. 2020, E2E-VarNet.
  """

  chans: int
  pools: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """`[..., row, col]` complex to the same."""
    x = jnp.stack([image.real, image.imag], -1)
    x, mean, std = standardise(x.reshape(-1, *x.shape[-3:]))
    pads = [((-n % 16) // 2, (-n % 16 + 1) // 2) for n in image.shape[-2:]]
    x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    x = UNet(self.chans, self.pools, out_chans=2, dtype=self.dtype, name='unet')(x)
    x = x * std + mean
    return center_crop(lax.complex(x[..., 0], x[..., 1]), image.shape[-2:]).reshape(image.shape)


class ImageUNet(nn.Module):
  """U-Net from image to image, such as zero-filled to reconstructed.

  The input is normalised per image (mean, unbiased standard deviation) and
  clipped to +-6, the output is scaled back.

  Attributes:
    chans: channels of the first level.
    pools: number of poolings.
    norm: see `UNet`.
    activation: see `UNet`.
    upsample: see `UNet`.
    activation_first: see `UNet`.
    batch_axis: see `UNet`.
    dtype: see `UNet`.

  Reference:
    Zbontar et al. 2018, the fastMRI U-Net baseline; Huang and Liang 2020.
  """

  chans: int
  pools: int
  norm: str = 'instance'
  activation: str = 'leaky_relu'
  upsample: str = 'transposed'
  activation_first: bool = False
  batch_axis: str | None = None
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """`[..., row, col]` float to the same."""
    return self._restore(image)

  def _restore(self, x):
    mean, std = moments(x, (-2, -1))
    x = jnp.clip((x - mean) / (std + 1e-11), -6, 6)
    style: dict[str, Any] = dict(
      norm=self.norm, activation=self.activation, activation_first=self.activation_first, dtype=self.dtype
    )
    x = UNet(self.chans, self.pools, **style, upsample=self.upsample, batch_axis=self.batch_axis, name='unet')(
      x[..., None]
    )[..., 0]
    return x * std + mean


def zero_filled(kspace: Array, mask: Array) -> Array:
  """RSS of the zero-filled coil images.

  Args:
    kspace: `[..., coil, row, col]` complex, not masked.
    mask: `[..., 1 or row, col]` bool.

  Returns:
    `[..., row, col]` float.
  """
  return rss(ifft2c(jnp.where(mask[..., None, :, :], kspace, 0)))


class UNetRecon(ImageUNet):
  """Image-domain reconstruction: a U-Net on the RSS of the zero-filled coils.

  Attributes:
    crop: `(row, col)` of the central part that the U-Net sees and normalises, as
      fastMRI trains it; outside it the zero-filled image stands, so that a
      rotation can be undone. `None`: the U-Net sees the full field of view.

  Reference:
    Zbontar et al. 2018, the fastMRI U-Net baseline.
  """

  crop: tuple[int, int] | None = None

  @nn.compact
  def __call__(self, kspace: Array, mask: Array, acs: Array | None = None) -> Array:
    """Reconstructs.

    Args:
      kspace: `[..., coil, row, col]` complex, not masked.
      mask: `[..., 1 or row, col]` bool.
      acs: not used.

    Returns:
      `[..., row, col]` float.
    """
    del acs
    x = zero_filled(kspace, mask)
    if self.crop is None:
      return self._restore(x)
    rows, cols = (min(n, size) for n, size in zip(self.crop, x.shape[-2:]))
    top, left = (x.shape[-2] - rows) // 2, (x.shape[-1] - cols) // 2
    return x.at[..., top : top + rows, left : left + cols].set(self._restore(center_crop(x, (rows, cols))))
