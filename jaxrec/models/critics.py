"""Critics and discriminators of the adversarially trained denoisers and of the conditional VAE."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxrec.models import layers
from jaxrec.models.draws import uniform
from jaxrec.types import Array


class SpectralNorm(nn.Module):
  """Divides a kernel by its largest singular value, estimated by power iteration.

  One step per call from the vector kept in the collection `spectral`, which
  moves on where that collection is mutable. Not differentiated through the
  vectors.

  Reference:
    Miyato et al. 2018, Spectral normalization for GANs.
  """

  @nn.compact
  def __call__(self, kernel: Array) -> Array:
    """`[..., in, out]` to the same."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    kept = self.variable(
      'spectral', 'u', lambda: _unit(jax.random.normal(self.make_rng('params'), matrix.shape[-1:], matrix.dtype))
    )
    fixed = lax.stop_gradient(matrix)
    v = _unit(_product(fixed, kept.value))
    u = _unit(_product(v, fixed))
    if self.is_mutable_collection('spectral') and not self.is_initializing():
      kept.value = u
    return kernel / _product(_product(v, matrix), u)


def _product(a, b):
  return jnp.matmul(a, b, precision=layers.PRECISION)


def _unit(x):
  return x / (jnp.linalg.norm(x) + 1e-12)


class SpectralConv(nn.Module):
  """Convolution with spectral norm and bias.

  Attributes:
    features: output channels.
    size: of the kernel.
    stride: step.
    padding: zeros around the image.
    use_bias: add a bias.
    spectral: `False` leaves the kernel as it is.
  """

  features: int
  size: int
  stride: int = 1
  padding: int = 0
  use_bias: bool = True
  spectral: bool = True

  @nn.compact
  def __call__(self, x):
    shape = (self.size, self.size, x.shape[-1], self.features)
    bound = layers.kernel_bound(shape)
    kernel = uniform(self, 'kernel', shape, x.dtype, bound)
    if self.spectral:
      kernel = SpectralNorm(name='norm')(kernel)
    if self.stride == 1 and 2 * self.padding + 1 == self.size:
      y = layers.conv2d(x, kernel)
    else:
      y = layers.strided_conv2d(x, kernel, self.stride, self.padding)
    return y + uniform(self, 'bias', (self.features,), x.dtype, bound) if self.use_bias else y


class WGANVGGCritic(nn.Module):
  """Critic of WGAN-VGG: six unpadded 3x3 convolutions, every other with stride 2, and two dense layers.

  13,991,361 parameters at 77x77 pixels, 45,448,641 at 128x128.

  Attributes:
    chans: channels of the first two convolutions, doubled for the next two and again for the last.
    hidden: width of the first dense layer.

  Reference:
    Yang et al. 2018, WGAN-VGG.
  """

  chans: int = 64
  hidden: int = 1024

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """`[batch, row, col]` to scores `[batch]`."""
    x = image[..., None]
    for i in range(6):
      x = layers.StridedConv(self.chans * 2 ** (i // 2), 3, 1 + i % 2, use_bias=True, name=f'conv_{i + 1}')(x)
      x = nn.leaky_relu(x, 0.01)
    x = nn.leaky_relu(layers.Dense(self.hidden, name='dense_1')(x.reshape(x.shape[0], -1)), 0.01)
    return layers.Dense(1, name='dense_2')(x)[..., 0]


class DUGANDiscriminator(nn.Module):
  """U-Net discriminator with one score per image and one per pixel; 57,213,839 parameters.

  Spectral norm on all convolutions but those from at most 4 or to 1 channel.

  Attributes:
    chans: channels of the first level, doubled below up to 512.
    depth: halvings of the size.

  Reference:
    Huang et al. 2021, DU-GAN.
  """

  chans: int = 64
  depth: int = 6

  @nn.compact
  def __call__(self, image: Array) -> tuple[Array, Array]:
    """`[batch, row, col]` to scores `[batch]` and `[batch, row, col]`."""
    widths = [1] + [min(self.chans * 2**i, 512) for i in range(self.depth)]
    widths.append(widths[-1])
    x, skips = image[..., None], []
    for level, width in enumerate(widths[1:]):
      down = level < self.depth
      residual = self._conv(x, width, 1, 2 if down else 1, name=f'down_{level}_residual')
      x = self._double(x, width, f'down_{level}')
      skips.append(x)
      if down:
        x = self._conv(x, width, 4, 2, 1, name=f'down_{level}_stride')
      x = _match(x, residual) + residual
    bottom = self._double(x, widths[-1], 'bottom') + x
    x = bottom
    for level in reversed(range(self.depth)):
      x = jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]), 'bilinear')
      x = _match(x, skips[level])
      merged = self._double(jnp.concatenate([x, skips[level]], -1), widths[level], f'up_{level}')
      x = merged + self._conv(x, widths[level], 1, name=f'up_{level}_shortcut')
    pixels = self._conv(x, 1, 1, name='out')[..., 0]
    pooled = jnp.mean(nn.leaky_relu(bottom, 0.2), (1, 2))
    return layers.Dense(1, name='score')(pooled)[..., 0], pixels

  def _conv(self, x, features, size, stride=1, padding=0, *, name):
    spectral = x.shape[-1] > 4 and features != 1
    return SpectralConv(features, size, stride, padding, spectral=spectral, name=name)(x)

  def _double(self, x, features, name):
    for i in (1, 2):
      x = nn.leaky_relu(self._conv(x, features, 3, padding=1, name=f'{name}_{i}'), 0.2)
    return x


def _match(x, like):
  """Pads rows and columns with zeros to the size of another; the smaller half first."""
  missing = [b - a for a, b in zip(x.shape[1:3], like.shape[1:3])]
  return jnp.pad(x, ((0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0))) if any(missing) else x


class CVAECritic(nn.Module):
  """Patch critic of the conditional VAE; 9,310,674 parameters at 128x128.

  Attributes:
    chans: channels of the first layer; at most `8 * chans` below.
    depth: halvings of the size.

  Reference:
    Isola et al. 2017; Rombach et al. 2020, for images of the VAE.
  """

  chans: int = 64
  depth: int = 5

  @nn.compact
  def __call__(self, image: Array, condition: Array) -> Array:
    """`[batch, row, col]` images and conditions to scores `[batch]`."""
    x = jnp.stack([image, condition], -1)
    for level in range(self.depth):
      x = layers.StridedConv(self.chans * 2 ** min(level, 3), 4, 2, 1, use_bias=True, name=f'conv_{level}')(x)
      x = _normalise(x)
    x = _normalise(layers.Conv(self.chans * 2 ** min(self.depth - 1, 3), use_bias=True, name='last')(x))
    x = layers.Conv(1, size=1, use_bias=True, name='patch')(x)
    return layers.Dense(1, name='score')(x.reshape(x.shape[0], -1))[..., 0]


def _normalise(x):
  return layers.instance_norm_leaky_relu(x, 0.2)
