"""Conditional variational autoencoder of low-dose images, given what a network made of them."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec.models import layers
from jaxrec.models.cinn import ActNorm
from jaxrec.models.critics import SpectralConv, SpectralNorm
from jaxrec.models.draws import uniform
from jaxrec.types import Array, Key


class _BatchNorm(nn.Module):
  """Batch norm whose running averages serve where `batch_stats` is not mutable."""

  epsilon: float = 1e-5
  affine: bool = True
  zero_scale: bool = False
  batch_axis: str | None = None

  @nn.compact
  def __call__(self, x):
    return nn.BatchNorm(
      axis_name=self.batch_axis,
      use_running_average=not self.is_mutable_collection('batch_stats'), momentum=0.9, epsilon=self.epsilon,
      use_bias=self.affine, use_scale=self.affine, scale_init=nn.initializers.zeros if self.zero_scale else nn.initializers.ones,
    )(x)  # fmt: skip


class Bottleneck(nn.Module):
  """Residual block of ResNet-50 v1.5: 1x1, 3x3 (with the stride), 1x1 to four times the width."""

  width: int
  stride: int
  batch_axis: str | None = None

  @nn.compact
  def __call__(self, x):
    norm = functools.partial(_BatchNorm, batch_axis=self.batch_axis)
    y = nn.relu(norm()(layers.Conv(self.width, size=1)(x)))
    y = nn.relu(norm()(layers.StridedConv(self.width, 3, self.stride, 1)(y)))
    y = norm(zero_scale=True)(layers.Conv(4 * self.width, size=1)(y))
    if x.shape != y.shape:
      x = norm()(layers.StridedConv(4 * self.width, 1, self.stride)(x))
    return nn.relu(x + y)


class Encoder(nn.Module):
  """ResNet from an image (and its condition) to mean and log-variance of the latent code."""

  width: int
  stages: Sequence[int]
  latent: int
  batch_axis: str | None = None

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    """`[batch, row, col, 1 or 2]` to `[batch, latent]` twice; the log-variance lies in [-30, 10]."""
    x = nn.relu(_BatchNorm(batch_axis=self.batch_axis)(layers.StridedConv(self.width, 7, 2, 3)(x)))
    x = nn.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf), (3, 3), (2, 2), 'VALID')
    for i, count in enumerate(self.stages):
      for j in range(count):
        x = Bottleneck(self.width * 2**i, 2 if i and not j else 1, self.batch_axis)(x)
    x = layers.Dense(2 * self.latent, name='moments')(jnp.mean(x, (1, 2)))
    mean, logvar = jnp.split(x, 2, -1)
    return mean, jnp.clip(logvar, -30, 10)


class _SpectralDense(nn.Module):
  features: int
  use_bias: bool = True

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1], self.features)
    bound = layers.kernel_bound(shape)
    kernel = SpectralNorm(name='norm')(uniform(self, 'kernel', shape, x.dtype, bound))
    y = jnp.dot(x, kernel, precision=layers.PRECISION)
    return y + uniform(self, 'bias', (self.features,), x.dtype, bound) if self.use_bias else y


class _ConditionalNorm(nn.Module):
  """Batch norm without affine, then a scale and a shift from the latent code."""

  batch_axis: str | None = None

  @nn.compact
  def __call__(self, x, code):
    scale, shift = (
      _SpectralDense(x.shape[-1], use_bias=False, name=n)(code)[:, None, None] for n in ('scale', 'shift')
    )
    return _BatchNorm(epsilon=1e-4, affine=False, batch_axis=self.batch_axis)(x) * (1 + scale) + shift


class GeneratorBlock(nn.Module):
  """Residual block of BigGAN that doubles the size."""

  features: int
  batch_axis: str | None = None

  @nn.compact
  def __call__(self, x, code):
    y = _double(nn.relu(_ConditionalNorm(self.batch_axis, name='norm_1')(x, code)))
    y = SpectralConv(self.features, 3, padding=1, name='conv_1')(y)
    y = nn.relu(_ConditionalNorm(self.batch_axis, name='norm_2')(y, code))
    y = SpectralConv(self.features, 3, padding=1, name='conv_2')(y)
    return y + SpectralConv(self.features, 1, name='skip')(_double(x))


def _double(x):
  return jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)


class SelfAttention(nn.Module):
  """Self-attention over pixels, keys and values max-pooled; starts as the identity.

  Reference:
    Zhang et al. 2019, SAGAN, in the form of BigGAN (no scaling by the dimension).
  """

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """`[batch, row, col, c]` to the same."""
    batch, rows, cols, chans = x.shape
    query, key = (SpectralConv(chans // 8, 1, use_bias=False, name=n)(x) for n in ('query', 'key'))
    value = SpectralConv(chans // 2, 1, use_bias=False, name='value')(x)
    key, value = (nn.max_pool(t, (2, 2), (2, 2)).reshape(batch, -1, t.shape[-1]) for t in (key, value))
    weights = jax.nn.softmax(jnp.einsum('brcd,bkd->brck', query, key, precision=layers.PRECISION), -1)
    out = SpectralConv(chans, 1, use_bias=False, name='out')(
      jnp.einsum('brck,bkd->brcd', weights, value, precision=layers.PRECISION)
    )
    return x + self.param('gamma', nn.initializers.zeros, (), x.dtype) * out


class Decoder(nn.Module):
  """BigGAN generator from a latent code (and its condition) to an image."""

  size: tuple[int, int]
  width: int
  blocks: int
  chunk: int
  classes: int
  class_hidden: int
  embedding: int
  batch_axis: str | None = None

  @nn.compact
  def __call__(self, z: Array, condition: Array | None) -> Array:
    """`[batch, latent]` and `[batch, row, col]` (or nothing) to `[batch, row, col]`."""
    x = z
    for i in range(3):
      x = nn.leaky_relu(layers.Dense(self.class_hidden, name=f'class_{i}')(x), 0.01)
    label = jax.nn.softmax(layers.Dense(self.classes, name='class_3')(x), -1)
    label = layers.Dense(self.embedding, use_bias=False, name='embedding')(label)
    first = z.shape[-1] - self.blocks * self.chunk
    if first < 1:
      raise ValueError(f'latent: {z.shape[-1]} is too short for {self.blocks} blocks of chunk={self.chunk}')
    parts = [z[:, first + i * self.chunk : first + (i + 1) * self.chunk] for i in range(self.blocks)]
    widths = [self.width * 2**i for i in range(self.blocks)]
    widths.append(widths[-1])
    start = tuple(n // 2**self.blocks for n in self.size)
    x = _SpectralDense(start[0] * start[1] * widths[-1], name='start')(z[:, :first]).reshape(-1, *start, widths[-1])
    for i, part in enumerate(parts):
      if i == self.blocks - 1:
        x = SelfAttention(name='attention')(x)
      x = GeneratorBlock(widths[-2 - i], self.batch_axis, name=f'block_{i}')(
        self._with(x, condition), jnp.concatenate([part, label], -1)
      )
    x, _ = ActNorm(name='norm')(x)
    return layers.Conv(1, use_bias=True, name='out')(self._with(x, condition))[..., 0]

  def _with(self, x, condition):
    if condition is None:
      return x
    step = condition.shape[1] // x.shape[1], condition.shape[2] // x.shape[2]
    return jnp.concatenate([x, condition[:, :: step[0], :: step[1], None]], -1)


class TextureEncoder(nn.Module):
  """Convolutions from an image and its condition to mean and log-variance of a code per pixel.

  Starts as the difference of the two, with a deviation of a quarter.
  """

  width: int

  @nn.compact
  def __call__(self, image: Array, condition: Array) -> tuple[Array, Array]:
    """`[batch, row, col]` twice to `[batch, row * col]` twice; the log-variance lies in [-30, 10]."""
    x = jnp.stack([image, condition], -1)
    seen = nn.leaky_relu(layers.Conv(self.width, size=5, use_bias=True)(x), 0.01)
    seen = nn.leaky_relu(layers.Conv(self.width, size=5, use_bias=True)(seen), 0.01)
    both = nn.Conv(2, (5, 5), precision=layers.PRECISION, kernel_init=nn.initializers.zeros, name='moments')(
      jnp.concatenate([seen, x], -1)
    )
    mean, logvar = both[..., 0] + image - condition, both[..., 1] + 2 * jnp.log(0.25)
    return mean.reshape(len(image), -1), jnp.clip(logvar, -30, 10).reshape(len(image), -1)


class TextureDecoder(nn.Module):
  """What the condition says of the image, plus filtered noise with gains that the condition says as well.

  `y + h(y) + sum_k (1 + g_k(y)) (w_k * z)`: where y says much, the gains fall, and y
  itself remains. Starts as y + z.

  Attributes:
    width: channels of the networks h and g.
    size: of the filters w_k, pixels.
    filters: number of them.
  """

  width: int
  size: int
  filters: int = 2

  @nn.compact
  def __call__(self, code: Array, condition: Array) -> Array:
    """`[batch, row * col]` and `[batch, row, col]` to `[batch, row, col]`."""
    x = condition[..., None]
    seen = nn.leaky_relu(layers.Conv(self.width, size=5, use_bias=True)(x), 0.01)
    seen = jnp.concatenate([nn.leaky_relu(layers.Conv(self.width, size=5, use_bias=True)(seen), 0.01), x], -1)
    said = nn.Conv(
      1 + self.filters, (5, 5), precision=layers.PRECISION, kernel_init=nn.initializers.zeros, name='said'
    )(seen)
    textures = nn.Conv(
      self.filters,
      (self.size, self.size),
      precision=layers.PRECISION,
      use_bias=False,
      kernel_init=_impulse,
      name='filters',
    )(code.reshape(x.shape))
    return condition + said[..., 0] + jnp.sum((1 + said[..., 1:]) * textures, -1)


def _impulse(key, shape, dtype=jnp.float32):
  """Filters that together leave an image as it is, each a little different."""
  start = 0.01 * jax.random.normal(key, shape, dtype)
  return start.at[shape[0] // 2, shape[1] // 2].add(1 / shape[-1])


class CVAE(nn.Module):
  """Variational autoencoder of an image x given a network's output y = f(x).

  108,976,095 parameters in the published size, which is the default. The published
  code describes the whole image, and small networks cannot put its noise into it;
  with `texture` the code has an entry per pixel besides, from which noise is made.

  Attributes:
    size: `(row, col)` of the images, multiples of `2 ** blocks`.
    latent: length of the code z.
    width: channels of the decoder's last block, doubled towards the code.
    blocks: doublings of the decoder.
    chunk: entries of the code that every block receives.
    classes: soft classes of the decoder.
    class_hidden: width of the network that makes them.
    embedding: length of their embedding.
    encoder_width: channels of the encoder's first layer.
    stages: residual blocks of the encoder per scale.
    conditional: `False` models images without a condition.
    texture: side of the filters that make noise out of a code per pixel; 0, as
      published, has no such code.
    texture_width: channels of its networks.
    texture_scale: unit of that code, in those of the images; about three times the
      deviation of their noise, as the code starts with a deviation of a quarter.
    batch_axis: device axis of batch norm, `training.Parallel.axis`.

  Reference:
    Eulig et al. 2022, Reconstructing invariances of CT image denoising networks;
    Brock et al. 2019, BigGAN; Kingma and Welling 2014.
  """

  size: tuple[int, int] = (128, 128)
  latent: int = 256
  width: int = 96
  blocks: int = 5
  chunk: int = 20
  classes: int = 1000
  class_hidden: int = 2000
  embedding: int = 128
  encoder_width: int = 64
  stages: Sequence[int] = (3, 4, 6, 3)
  conditional: bool = True
  texture: int = 0
  texture_width: int = 16
  texture_scale: float = 1.0
  batch_axis: str | None = None

  def setup(self):
    if any(n % 2**self.blocks for n in self.size):
      raise ValueError(f'size: {self.size} is no multiple of 2^{self.blocks}; change size or blocks')
    self.encoder = Encoder(self.encoder_width, tuple(self.stages), self.latent, self.batch_axis)
    self.decoder = Decoder(
      tuple(self.size),
      self.width,
      self.blocks,
      self.chunk,
      self.classes,
      self.class_hidden,
      self.embedding,
      self.batch_axis,
    )
    if self.texture:
      self.texture_encoder = TextureEncoder(self.texture_width)
      self.texture_decoder = TextureDecoder(self.texture_width, self.texture)

  @property
  def code(self) -> int:
    """Length of the whole code."""
    return self.latent + (self.size[0] * self.size[1] if self.texture else 0)

  def encode(self, image: Array, condition: Array) -> tuple[Array, Array]:
    """`[batch, row, col]` twice to mean and log-variance `[batch, code]`."""
    moments = self.encoder(jnp.stack([image, condition], -1) if self.conditional else image[..., None])
    if not self.texture:
      return moments
    texture = self.texture_encoder(image / self.texture_scale, condition / self.texture_scale)
    mean, log_variance = (jnp.concatenate(parts, -1) for parts in zip(moments, texture))
    return mean, log_variance

  def decode(self, z: Array, condition: Array) -> Array:
    """`[batch, code]` and `[batch, row, col]` to images `[batch, row, col]`."""
    image = self.decoder(z[:, : self.latent], condition if self.conditional else None)
    if not self.texture:
      return image
    scale = self.texture_scale
    return image + scale * self.texture_decoder(z[:, self.latent :], condition / scale)

  def __call__(self, image: Array, condition: Array, key: Key) -> tuple[Array, Array, Array]:
    """Reconstruction from one posterior sample, mean and log-variance."""
    mean, logvar = self.encode(image, condition)
    z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype)
    return self.decode(z, condition), mean, logvar
