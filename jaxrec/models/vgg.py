"""VGG features for perceptual losses, from a file that the user supplies."""

from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxrec.models import layers
from jaxrec.models.weights import WeightsError, read_state_dict
from jaxrec.types import Array, Image

_CONVS = {'vgg16': (2, 2, 3, 3, 3), 'vgg19': (2, 2, 4, 4, 4)}
# Yang et al. 2018 take VGG19 conv5_4 before its ReLU; Eulig et al. 2022 four layers of VGG16 after theirs.
TAPS = {'vgg16': ('relu1_2', 'relu2_2', 'relu3_3', 'relu4_3'), 'vgg19': ('conv5_4',)}


class VGG(nn.Module):
  """The convolutions of VGG-16 or VGG-19, up to the last tap.

  Attributes:
    kind: `vgg16` or `vgg19`.
    taps: `convB_L` or `reluB_L`, block and layer from 1.

  Reference:
    Simonyan and Zisserman 2015.
  """

  kind: str = 'vgg16'
  taps: tuple[str, ...] = TAPS['vgg16']

  @nn.compact
  def __call__(self, image: Array) -> list[Array]:
    """`[batch, row, col]`, shown as three equal channels, to the activations of the taps."""
    x = jnp.repeat(image[..., None], 3, -1)
    found = {}
    for block, count in enumerate(_CONVS[self.kind], 1):
      if block > 1:
        x = nn.max_pool(x, (2, 2), (2, 2))
      for layer in range(1, count + 1):
        x = layers.Conv(min(64 * 2 ** (block - 1), 512), use_bias=True, name=f'conv{block}_{layer}')(x)
        found[f'conv{block}_{layer}'] = x
        x = nn.relu(x)
        found[f'relu{block}_{layer}'] = x
        if all(tap in found for tap in self.taps):
          return [found[tap] for tap in self.taps]
    missing = [tap for tap in self.taps if tap not in found]
    raise ValueError(f'taps: {self.kind} has no {missing[0]}')


def load_vgg(path: str | Path, kind: str, *, sha256: str | None = None) -> tuple[VGG, dict]:
  """VGG features with the weights of a torchvision checkpoint.

  Args:
    path: the `.pth` file of torchvision's `vgg16` or `vgg19`, without batch norm.
    kind: `vgg16` or `vgg19`.
    sha256: expected hexadecimal digest of the file.

  Returns:
    The module with the taps of `TAPS`, and its variables.

  Raises:
    WeightsError: for an unknown kind, or a file that does not fit.
  """
  if kind not in _CONVS:
    raise WeightsError(f'kind: {kind!r} is unknown; choose one of {", ".join(_CONVS)}')
  state = read_state_dict(path, sha256=sha256)
  params, number, chans = {}, 0, 3
  for block, count in enumerate(_CONVS[kind], 1):
    for layer in range(1, count + 1):
      names = [f'features.{number}.{part}' for part in ('weight', 'bias')]
      features = min(64 * 2 ** (block - 1), 512)
      for name, shape in zip(names, ((features, chans, 3, 3), (features,))):
        if name not in state or state[name].shape != shape:
          raise WeightsError(f'{path}: {name} is missing or not of shape {shape}; it is no {kind} of torchvision')
      kernel, bias = (state[name].astype(np.float32) for name in names)
      params[f'conv{block}_{layer}'] = {'kernel': np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)), 'bias': bias}
      number, chans = number + 2, features
    number += 1
  module = VGG(kind, TAPS[kind])
  used = {tap.replace('relu', 'conv') for tap in module.taps}
  last = max(used)
  return module, {'params': {name: value for name, value in params.items() if name <= last}}


def perceptual(features: Callable[[Image], list[Array]]) -> Callable[[Image, Image], Array]:
  """Distance of two batches of images in features: the sum over taps of their mean absolute difference.

  Args:
    features: `[batch, row, col]` to a list of `[batch, ...]`.

  Returns:
    `(images, others) -> [batch]`.

  Reference:
    Johnson et al. 2016; Eulig et al. 2022.
  """

  def distance(images, others):
    pairs = zip(features(images), features(others))
    return sum(jnp.mean(jnp.abs(a - b).reshape(a.shape[0], -1), -1) for a, b in pairs)

  return distance
