"""Low-dose CT denoisers, exposed layer by layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec.models import layers
from jaxrec.types import Array


def _check_layer(layer, count):
  if layer is not None and not 1 <= layer <= count:
    raise ValueError(f'layer: {layer} does not exist; choose 1 to {count}, or none for the output')


class _Plain(nn.Module):
  """A chain of 'same' convolutions with ReLU between them."""

  def _run(self, image, sizes, layer):
    _check_layer(layer, len(sizes))
    lead = image.shape[:-2]
    x = image.reshape(-1, *image.shape[-2:], 1)
    for i, (features, size) in enumerate(sizes, 1):
      x = layers.Conv(features, size=size, use_bias=True, name=f'conv_{i}')(x)
      if i < len(sizes):
        x = nn.relu(x)
      if i == layer:
        return x.reshape(*lead, *x.shape[1:])
    return x.reshape(*lead, *image.shape[-2:])


class CNN10(_Plain):
  """Three convolutions, 9x9, 3x3 and 5x5; 24,513 parameters.

  Reference:
    Chen et al. 2017, Low-dose CT via convolutional neural network.
  """

  @nn.compact
  def __call__(self, image: Array, *, layer: int | None = None) -> Array:
    """`[..., row, col]` to the same, or the activations `[..., row, col, c]` of a layer, from 1."""
    return self._run(image, ((64, 9), (32, 3), (1, 5)), layer)


class WGANVGG(_Plain):
  """Eight 3x3 convolutions of 32 channels; 56,097 parameters.

  Reference:
    Yang et al. 2018, WGAN-VGG, the generator.
  """

  @nn.compact
  def __call__(self, image: Array, *, layer: int | None = None) -> Array:
    """`[..., row, col]` to the same, or the activations `[..., row, col, c]` of a layer, from 1."""
    return self._run(image, ((32, 3),) * 7 + ((1, 3),), layer)


class REDCNN(nn.Module):
  """Residual encoder-decoder without pooling; 1,848,865 parameters at 96 channels.

  Five unpadded 5x5 convolutions and five transposed ones; the input, the second
  and the fourth layer are added on the way back, before the ReLU. There is no
  ReLU at the end. Images need more than 20 rows and columns.

  Attributes:
    chans: channels.

  Reference:
    Chen et al. 2017, RED-CNN; also the generator of Huang et al. 2021, DU-GAN.
  """

  chans: int = 96

  @nn.compact
  def __call__(self, image: Array, *, layer: int | None = None) -> Array:
    """`[..., row, col]` to the same, or the activations `[..., row, col, c]` of a layer, from 1."""
    _check_layer(layer, 10)
    if min(image.shape[-2:]) <= 20:
      raise ValueError(f'REDCNN: an image of {image.shape[-2:]} is too small; it needs more than 20 rows and columns')
    lead = image.shape[:-2]
    x = image.reshape(-1, *image.shape[-2:], 1)
    kept = {0: x}
    for i in range(1, 6):
      x = nn.relu(layers.Conv(self.chans, size=5, use_bias=True, name=f'conv_{i}')(x)[:, 2:-2, 2:-2])
      kept[i] = x
      if i == layer:
        return x.reshape(*lead, *x.shape[1:])
    for i in range(1, 6):
      x = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
      x = layers.Conv(self.chans if i < 5 else 1, size=5, use_bias=True, name=f'transposed_{i}')(x)
      if i in (1, 3, 5):
        x = x + kept[5 - i]
      if i < 5:
        x = nn.relu(x)
      if i + 5 == layer:
        return x.reshape(*lead, *x.shape[1:])
    return x.reshape(*lead, *image.shape[-2:])


class Bottleneck(nn.Module):
  """A network that cannot hold small structures: it pools by 8 to a few numbers, and nothing goes around that.

  Rows and columns must be multiples of 8.

  Attributes:
    chans: channels at full size.
    code: channels of the bottleneck.
  """

  chans: int = 16
  code: int = 2

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """`[..., row, col]` to the same."""
    rows, cols = image.shape[-2:]
    if rows % 8 or cols % 8:
      raise ValueError(f'image: {rows} x {cols} is no multiple of 8')
    x = image.reshape(-1, rows, cols, 1)
    x = nn.relu(layers.Conv(self.chans, size=5, use_bias=True, name='before')(x))
    x = nn.avg_pool(x, (8, 8), (8, 8))
    x = layers.Conv(self.code, size=1, use_bias=True, name='code')(x)
    x = jax.image.resize(x, (x.shape[0], rows, cols, self.code), 'bilinear')
    x = nn.relu(layers.Conv(self.chans, size=3, use_bias=True, name='after')(x))
    return layers.Conv(1, size=3, use_bias=True, name='out')(x).reshape(image.shape)
