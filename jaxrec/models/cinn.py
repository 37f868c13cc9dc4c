"""Conditional invertible network: what a representation leaves open, as noise."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxrec.models import layers
from jaxrec.models.draws import uniform
from jaxrec.types import Array


class ActNorm(nn.Module):
  """Affine normalisation of features; the first batch sets it to zero mean and unit deviation.

  `y = scale (x + loc)`, over all axes but the last. Initialise the module on a
  real batch: that is the data-dependent start.

  Reference:
    Kingma and Dhariwal 2018, Glow, section 3.1.
  """

  @nn.compact
  def __call__(self, x: Array, *, reverse: bool = False) -> tuple[Array, Array]:
    """`[..., c]` to the same, and the log-determinant per position, `[]`."""
    axes = tuple(range(x.ndim - 1))
    loc = self.param('loc', lambda key: -jnp.mean(x, axes))
    scale = self.param('scale', lambda key: 1 / (jnp.std(x, axes, ddof=1) + 1e-6))
    logdet = jnp.sum(jnp.log(jnp.abs(scale)))
    return (x / scale - loc, -logdet) if reverse else (scale * (x + loc), logdet)


class _Net(nn.Module):
  """Four dense layers with leaky ReLU 0.01."""

  hidden: int
  features: int
  bounded: bool = False

  @nn.compact
  def __call__(self, x):
    for _ in range(3):
      x = nn.leaky_relu(layers.Dense(self.hidden)(x), 0.01)
    x = layers.Dense(self.features)(x)
    return jnp.tanh(x) if self.bounded else x


class FlowBlock(nn.Module):
  """ActNorm, leaky ReLU 0.9, two affine couplings with the halves swapped between, a fixed permutation.

  Attributes:
    hidden: width of the coupling networks.
    seed: of the permutation.
    reference: report 0 as the log-determinant of the leaky ReLU, as the public
      code does; the true one is log 0.9 for every negative entry.
  """

  hidden: int
  seed: int
  reference: bool = False

  @nn.compact
  def __call__(self, x: Array, condition: Array, *, reverse: bool = False) -> tuple[Array, Array]:
    """`[..., c]` and `[..., d]` to `[..., c]` and the log-determinant `[...]`."""
    features = x.shape[-1]
    order = np.random.default_rng(self.seed).permutation(features)
    half = features // 2
    norm = ActNorm(name='norm')
    scales = [_Net(self.hidden, half if i else features - half, bounded=True, name=f's_{i}') for i in (0, 1)]
    shifts = [_Net(self.hidden, half if i else features - half, name=f't_{i}') for i in (0, 1)]

    def couple(keep, change, i):
      seen = jnp.concatenate([keep, condition], -1)
      s, t = scales[i](seen), shifts[i](seen)
      return ((change - t) * jnp.exp(-s), -jnp.sum(s, -1)) if reverse else (change * jnp.exp(s) + t, jnp.sum(s, -1))

    def bend(x):
      slope = jnp.where(x >= 0, 1.0, 0.9).astype(x.dtype)
      total = jnp.zeros(x.shape[:-1], x.dtype) if self.reference else jnp.sum(jnp.log(slope), -1)
      return (x / slope, -total) if reverse else (x * slope, total)

    if not reverse:
      x, first = norm(x)
      x, second = bend(x)
      a, b = x[..., :half], x[..., half:]
      b, third = couple(a, b, 0)
      a, fourth = couple(b, a, 1)
      return jnp.concatenate([b, a], -1)[..., order], first + second + third + fourth
    x = x[..., np.argsort(order)]
    b, a = x[..., : features - half], x[..., features - half :]
    a, fourth = couple(b, a, 1)
    b, third = couple(a, b, 0)
    x, second = bend(jnp.concatenate([a, b], -1))
    x, first = norm(x, reverse=True)
    return x, first + second + third + fourth


class Embedder(nn.Module):
  """Strided convolutions from the condition, an image or activations, to a vector.

  Attributes:
    chans: channels of the first layer, doubled at each of `depth` layers.
    depth: halvings of the size.
    features: length of the vector.
  """

  chans: int = 64
  depth: int = 4
  features: int = 256

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """`[batch, row, col, c]` to `[batch, features]`."""
    for level in range(self.depth):
      x = layers.StridedConv(self.chans * 2**level, 4, 2, 1)(x)
      x, _ = ActNorm()(x)
      x = nn.leaky_relu(x, 0.2)
    shape = (*x.shape[1:], self.features)
    bound = layers.kernel_bound(shape)
    kernel = uniform(self, 'kernel', shape, x.dtype, bound)
    bias = uniform(self, 'bias', (self.features,), x.dtype, bound)
    return jnp.tensordot(x, kernel, 3, precision=layers.PRECISION) + bias


class CINN(nn.Module):
  """Conditional normalising flow t between a latent code z and noise v, given a representation y.

  `v = t(z | y)` is standard normal if the flow is fitted; `z = t^-1(v | y)`
  samples the codes that share the representation. Initialise it on a real
  batch: its normalisations start from the data.

  Attributes:
    blocks: flow blocks.
    hidden: width of the coupling networks.
    chans: channels of the embedder's first layer.
    depth: halvings of the condition's size by the embedder.
    embedding: length of the embedded condition.
    reference: see `FlowBlock`.

  Reference:
    Rombach et al. 2020, Making sense of CNNs: interpreting deep representations
    and their invariances with INNs; Eulig et al. 2022.

  Example:
    >>> import jax, jaxrec
    >>> flow = jaxrec.models.CINN(blocks=2, hidden=8, chans=2, depth=2, embedding=4)
    >>> z, y = jax.numpy.ones((5, 6)), jax.numpy.ones((5, 16, 16))
    >>> (v, logdet), variables = jax.eval_shape(flow.init_with_output, jax.random.key(0), z, y)
    >>> v.shape, logdet.shape
    ((5, 6), (5,))
  """

  blocks: int = 12
  hidden: int = 1024
  chans: int = 64
  depth: int = 4
  embedding: int = 256
  reference: bool = False

  @nn.compact
  def __call__(self, x: Array, condition: Array, *, reverse: bool = False) -> tuple[Array, Array]:
    """Runs the flow.

    Args:
      x: `[batch, c]` codes z, or noise v if `reverse`.
      condition: `[batch, row, col]` or `[batch, row, col, channel]`.
      reverse: from noise to codes.

    Returns:
      `[batch, c]` noise or codes, and `[batch]` the log-determinant of the map.
    """
    if condition.ndim == x.ndim + 1:
      condition = condition[..., None]
    embedded = Embedder(self.chans, self.depth, self.embedding, name='embedder')(condition)
    total = jnp.zeros(x.shape[:-1], x.dtype)
    flow = [FlowBlock(self.hidden, i, self.reference, name=f'block_{i}') for i in range(self.blocks)]
    for block in reversed(flow) if reverse else flow:
      x, logdet = block(x, embedded, reverse=reverse)
      total = total + logdet
    return x, total
