"""Generators of perturbations for adversarial training."""

import flax.linen as nn
import jax.numpy as jnp

from jaxrec.fourier import abs_squared, safe_sqrt
from jaxrec.geometry import center_crop
from jaxrec.models import layers
from jaxrec.models.draws import uniform
from jaxrec.models.unet import UNet
from jaxrec.types import Array


class DCGAN(nn.Module):
  """Transposed convolutions from a latent vector to an image in [-1, 1].

  A transposed convolution makes the first feature map; `depth` more, 4x4 with
  stride 2, double it. All but the last have batch norm and PReLU, the last has
  tanh. The paper's is `DCGAN((320, 320))`: seven layers, 5x5x2048 first. Sizes
  that are no multiple of `2 ** depth` are cropped from the next larger one.

  Attributes:
    size: `(row, col)` of the output.
    chans: channels before the last layer; doubled towards the latent vector.
    depth: doublings of the size.
    batch_axis: device axis of batch norm, `training.Parallel.axis`.

  Reference:
    Radford et al. 2016; Huang and Liang 2020, section 2.4 and figure 3.

  Example:
    >>> import jax, jaxrec
    >>> net = jaxrec.models.DCGAN((40, 36), chans=4, depth=2)
    >>> image, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), jax.numpy.ones((3, 100)))
    >>> image.shape
    (3, 40, 36)
  """

  size: tuple[int, int]
  chans: int = 64
  depth: int = 6
  batch_axis: str | None = None

  @nn.compact
  def __call__(self, latent: Array) -> Array:
    """`[batch, latent]` to `[batch, row, col]`."""
    start = [-(-n // 2**self.depth) for n in self.size]
    features = self.chans * 2 ** (self.depth - 1)
    shape = (latent.shape[-1], *start, features)
    kernel = uniform(self, 'kernel', shape, latent.dtype, layers.transposed_kernel_bound(shape))
    x = layers.NormActivation('batch', 'prelu', self.batch_axis)(
      jnp.tensordot(latent, kernel, 1, precision=layers.PRECISION)
    )
    for level in reversed(range(self.depth)):
      x = layers.FractionalConv(self.chans * 2 ** (level - 1) if level else 1)(x)
      if level:
        x = layers.NormActivation('batch', 'prelu', self.batch_axis)(x)
    return center_crop(jnp.tanh(x[..., 0]), self.size)


class KspaceGenerator(nn.Module):
  """Perturbation of the sampled k-space, conditioned on the measured k-space.

  A U-Net over the k-space of each coil, its real and imaginary part as two
  channels in and out; magnitudes are compressed logarithmically on the way in.

  Attributes:
    chans: channels of the first level.
    pools: number of poolings.

  Reference:
    Huang and Liang 2020, section 5 and algorithm 2.
  """

  chans: int
  pools: int

  @nn.compact
  def __call__(self, kspace: Array, mask: Array) -> Array:
    """`[..., coil, row, col]` k-space and its mask `[..., 1 or row, col]` to noise.

    The noise is zero outside the mask, and of the order of `1 / sqrt(n)` of a
    coil's norm at each of its n sampled entries.
    """
    mask = jnp.broadcast_to(mask[..., None, :, :], kspace.shape)
    kspace = jnp.where(mask, kspace, 0)
    count = jnp.maximum(jnp.sum(mask, (-2, -1), keepdims=True), 1)
    level = safe_sqrt(jnp.sum(abs_squared(kspace), (-2, -1), keepdims=True) / count)
    x = kspace / jnp.where(level > 0, level, 1)
    size = safe_sqrt(abs_squared(x))
    x = x * jnp.where(size > 0, jnp.log1p(size) / jnp.where(size > 0, size, 1), 1)
    x = UNet(self.chans, self.pools, out_chans=2, name='unet')(jnp.stack([x.real, x.imag], -1))
    return jnp.where(mask, (x[..., 0] + 1j * x[..., 1]) * level, 0)
