"""The one place that owns convolution, pooling, up-sampling and normalisation.

Every network is built from these, so that a faster formulation is a change of
one file with a test against the plain one. Layout is `[..., row, col,
channel]`, kernels are `[row, col, in, out]`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from jaxrec.models.draws import uniform
from jaxrec.program import sums_keep_order
from jaxrec.types import Array

# Float32 products in float32: Ampere and later would take TF32 by default, TPUs bfloat16.
PRECISION = lax.Precision.HIGHEST
_NHWC: dict[str, Any] = dict(dimension_numbers=('NHWC', 'HWIO', 'NHWC'), precision=PRECISION)
_BLOCK_PIXELS = 6144
# By trial on JAX 0.7, 0.10 and 0.12: up to so many input times output channels, XLA:CPU takes so many pixels together.
_FOLDS = ((81, 4), (256, 2))
_LANES = 128
# XLA:CPU gives a sum of two arrays to one core: of so many parts of the rows each core takes some.
_ROW_PARTS = 4
# Matrix products of XLA:CPU take twice as long before JAX 0.8.
_SLOW_PRODUCTS = jax.__version_info__ < (0, 8)
# By trial on an H100: up to here products of rows are as fast as cuDNN or faster, and parts of more pixels no faster.
_FEW_CHANNELS = 36
_PART_PIXELS = 2**20


def kernel_bound(shape: tuple[int, ...]) -> float:
  """1/sqrt(fan in) of a kernel `[..., in, out]`: where PyTorch's convolutions, and their biases, start."""
  return float(np.prod(shape[:-1]) ** -0.5)


def transposed_kernel_bound(shape: tuple[int, ...]) -> float:
  """As `kernel_bound`, of the kernel `[in, row, col, out]` of a transposed convolution."""
  return float(np.prod(shape[1:]) ** -0.5)


def strided_conv2d(x: Array, kernel: Array, stride: int, padding: int) -> Array:
  """Cross-correlation with stride and explicit zero padding on all sides.

  Args:
    x: `[batch, row, col, in]`.
    kernel: `[row, col, in, out]`.
    stride: step along rows and columns.
    padding: zeros on each side; XLA's `SAME` pads differently with a stride.

  Returns:
    `[batch, (row + 2 padding - size) // stride + 1, ..., out]`.
  """
  pad = ((padding, padding),) * 2
  return lax.conv_general_dilated(x, kernel, (stride, stride), pad, **_NHWC)


@jax.custom_vjp
def conv2d(x: Array, kernel: Array) -> Array:
  """Stride-1 cross-correlation with zero padding that keeps the size.

  Its input gradient is written as a plain convolution with the flipped kernel:
  inside `scan` XLA:CPU runs the transposed layout that autodiff makes about
  three times slower. Second derivatives are those of a plain convolution;
  forward-mode derivatives are obtained by transposing twice.

  Args:
    x: `[batch, row, col, in]`.
    kernel: `[odd, odd, in, out]`.

  Returns:
    `[batch, row, col, out]`.
  """
  return _fast_conv2d(x, kernel)


@jax.jit
def _fast_conv2d(x, kernel):
  cpu, tpu = _narrow_conv2d(x, kernel.shape), _wide_conv2d(x, kernel.shape)
  return lax.platform_dependent(x, kernel, cpu=cpu, tpu=tpu, default=_plain_conv2d)


def _narrow_conv2d(x, shape):
  """For CPUs, whose matrix products are slow with few outputs."""
  fold = next((n for most, n in _FOLDS if shape[2] * shape[3] <= most), 1)
  while x.shape[2] % fold:
    fold //= 2
  return partial(_output_folded_conv2d, fold=fold) if fold > 1 and shape[:2] == (3, 3) else _plain_conv2d


def _wide_conv2d(x, shape):
  """For TPUs, whose convolutions pad channels to the width of a register: pixels fill it up."""
  fold = 8
  while fold > 1 and (fold * max(shape[2:]) > _LANES or x.shape[2] % fold):
    fold //= 2
  return partial(_folded_conv2d, fold=fold) if fold > 1 and shape[1] <= 3 else _plain_conv2d


def _plain_conv2d(x, kernel):
  return lax.conv_general_dilated(x, kernel.astype(x.dtype), (1, 1), 'SAME', **_NHWC)


def _output_folded_conv2d(x, kernel, *, fold):
  """Neighbouring pixels of the output are channels of a convolution that moves on by so many columns."""
  height, width, n_in, n_out = kernel.shape
  moved = [jnp.pad(kernel, ((0, 0), (p, fold - 1 - p), (0, 0), (0, 0))) for p in range(fold)]
  wide = jnp.concatenate(moved, -1).astype(x.dtype)
  y = lax.conv_general_dilated(x, wide, (1, fold), ((height // 2,) * 2, (width // 2,) * 2), **_NHWC)
  return y.reshape(*x.shape[:3], n_out)


def _folded_conv2d(x, kernel, *, fold):
  """Neighbouring pixels become channels, of the input too: its columns stay next to each other."""
  batch, rows, cols, n_in = x.shape
  height, width, _, n_out = kernel.shape
  # Place v of a block has its first tap v inputs further on than place 0: copies of a padded
  # row that are read as if they were shorter by one.
  taps = width * fold
  front = width // 2 * (fold - 1)
  padded = jnp.pad(kernel, ((0, 0), (front, taps + 1 - width - front), (0, 0), (0, 0)))
  copies = jnp.broadcast_to(padded[:, None], (height, fold, taps + 1, n_in, n_out))
  copies = copies.reshape(height, fold * (taps + 1), n_in, n_out)[:, : fold * taps]
  blocks = copies.reshape(height, fold, width, fold, n_in, n_out).transpose(0, 2, 3, 4, 1, 5)
  blocks = blocks.reshape(height, width, fold * n_in, fold * n_out)
  return _plain_conv2d(x.reshape(batch, rows, cols // fold, fold * n_in), blocks).reshape(batch, rows, cols, n_out)


def _conv2d_forward(x, kernel):
  # An attack differentiates no kernel, and then keeps no inputs.
  return _fast_conv2d(x.value, kernel.value), (x.value if kernel.perturbed else None, kernel.value)


def _conv2d_backward(residuals, g):
  x, kernel = residuals
  # Not `conv2d`: second derivatives of a custom rule inside `scan` mix up its arguments (JAX 0.10 to 0.12).
  grad_x = _fast_conv2d(g, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
  if x is None:
    return grad_x, None
  forms = {
    'cpu': partial(_kernel_gradient_by_images if _SLOW_PRODUCTS else _kernel_gradient_by_blocks, shape=kernel.shape),
    'tpu': partial(_kernel_gradient, shape=kernel.shape, convolution=_wide_conv2d(x, kernel.shape)),
  }
  if sums_keep_order() and max(kernel.shape[2:]) <= _FEW_CHANNELS and x.dtype == jnp.float32:
    forms['cuda'] = partial(_kernel_gradient_by_rows, shape=kernel.shape)
  return grad_x, lax.platform_dependent(x, g, **forms, default=partial(_kernel_gradient, shape=kernel.shape))


conv2d.defvjp(_conv2d_forward, _conv2d_backward, symbolic_zeros=True)


def _kernel_gradient(x, g, *, shape, convolution=_plain_conv2d):
  # The copies of a tap in folded kernels are added up in float32.
  kernel = jax.ShapeDtypeStruct(shape, jnp.promote_types(x.dtype, jnp.float32))
  return jax.linear_transpose(partial(convolution, x), kernel)(g)[0].astype(x.dtype)


def _kernel_gradient_by_blocks(x, g, *, shape):
  """Sum of matrix products over blocks of rows, each with its patches gathered.

  XLA:CPU runs the convolution that autodiff makes of this ten times slower. The
  blocks keep the patches in the cache.
  """
  height, width, n_in, n_out = shape
  batch, rows, cols, _ = x.shape
  block = min(max(_BLOCK_PIXELS // cols, 1), rows)
  blocks = -(-rows // block)
  extra = blocks * block - rows
  x = jnp.pad(x, ((0, 0), (height // 2, height // 2 + extra), (width // 2, width // 2), (0, 0)))
  g = jnp.pad(g, ((0, 0), (0, extra), (0, 0), (0, 0)))

  def add_block(total, i):
    at = (i // blocks, i % blocks * block, 0, 0)
    part = lax.dynamic_slice(x, at, (1, block + height - 1, cols + width - 1, n_in))[0]
    patches = [part[r : r + block, c : c + cols] for r in range(height) for c in range(width)]
    patches = jnp.concatenate(patches, -1).reshape(block * cols, height * width * n_in)
    outputs = lax.dynamic_slice(g, at, (1, block, cols, n_out)).reshape(block * cols, n_out)
    product = lax.dot_general(
      outputs, patches, (((0,), (0,)), ((), ())), precision=PRECISION, preferred_element_type=sums
    )
    return total + product, None

  sums = _at_least_float32(x)
  total, _ = lax.scan(add_block, jnp.zeros((n_out, height * width * n_in), sums), jnp.arange(batch * blocks))
  return total.T.reshape(shape).astype(x.dtype)


def _from_fewer_channels(gradient):
  """A `(x, g, *, shape) -> kernel` that is given the side with fewer channels as `x`."""

  def chosen(x, g, *, shape):
    height, width, n_in, n_out = shape
    if n_out >= n_in:
      return gradient(x, g, shape=shape)
    # Of g against x the taps are seen from the other side.
    swapped = gradient(g, x, shape=(height, width, n_out, n_in))
    return jnp.flip(swapped, (0, 1)).swapaxes(2, 3)

  return chosen


@_from_fewer_channels
def _kernel_gradient_by_images(x, g, *, shape):
  """Sum of convolutions whose images are the channels of an input, and whose kernel is an output.

  For the matrix products of `_SLOW_PRODUCTS`, of which it takes half the time of
  `_kernel_gradient_by_blocks`; with those of later releases up to six times as long.
  """
  height, width, n_in, n_out = shape
  sums = _at_least_float32(x)
  padded = jnp.pad(x, ((0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)))

  def add_image(total, pair):
    image, output = pair
    channels, kernel = image.transpose(2, 0, 1)[..., None], output[:, :, None]
    product = lax.conv_general_dilated(channels, kernel, (1, 1), 'VALID', preferred_element_type=sums, **_NHWC)
    return total + product, None

  total, _ = lax.scan(add_image, jnp.zeros((n_in, height, width, n_out), sums), (padded, g))
  return total.transpose(1, 2, 0, 3).astype(x.dtype)


@_from_fewer_channels
def _kernel_gradient_by_rows(x, g, *, shape):
  """Sum of matrix products of rows, for cards that shall add up in a fixed order.

  What cuDNN has for that takes up to five times as long where channels are few
  (`docs/accelerators.md`). Columns are shifted on the side with fewer channels, for a
  part of the images at a time: `x` is `[batch, row, col, in]`, `g` `[batch, row, col, out]`,
  `shape` that of the kernel `[odd, odd, in, out]`.
  """
  height, width, _, _ = shape
  batch, rows, cols, _ = x.shape

  def of_part(x, g):
    padded = jnp.pad(x, ((0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)))
    taps = jnp.concatenate([padded[:, :, c : c + cols] for c in range(width)], -1)
    products = [
      jnp.einsum('brci,brco->brio', taps[:, r : r + rows], g, precision=PRECISION).sum((0, 1)) for r in range(height)
    ]
    return jnp.stack(products).reshape(shape)

  most = max(_PART_PIXELS // (rows * cols), 1)
  size = max(n for n in range(1, batch + 1) if batch % n == 0 and n <= most)
  parts = [t.reshape(batch // size, size, *t.shape[1:]) for t in (x, g)]
  return lax.scan(lambda total, part: (total + of_part(*part), None), jnp.zeros(shape, x.dtype), parts)[0]


def _at_least_float32(x: Array) -> Any:
  """Type of the sums and of the parameters that belong to activations of this type."""
  return jnp.promote_types(x.dtype, jnp.float32)


def spatial_mean(x: Array) -> Array:
  """Mean over rows and columns, `[batch, row, col, c]` to `[batch, 1, 1, c]`.

  Summed rows first: on the CPU one long float32 sum is slower and less exact.
  """
  rows = lax.optimization_barrier(jnp.mean(x, 1, keepdims=True))
  return jnp.mean(rows, 2, keepdims=True)


def spatial_means(a: Array, b: Array) -> list[Array]:
  """`spatial_mean` of two arrays, by XLA:CPU in one pass over both.

  Args:
    a: `[batch, row, col, c]`.
    b: as `a`.

  Returns:
    Two `[batch, 1, 1, c]`.
  """
  return lax.platform_dependent(a, b, cpu=_means_in_one_pass, default=_means_one_by_one)


def _means_one_by_one(*both):
  return [spatial_mean(x) for x in both]


@jax.custom_jvp
def _means_in_one_pass(*both):
  _, rows, cols, _ = both[0].shape

  def summed(arrays):
    zeros = tuple(jnp.zeros((), x.dtype) for x in arrays)
    return lax.reduce(tuple(arrays), zeros, lambda a, b: tuple(x + y for x, y in zip(a, b)), (1,))

  size = -(-rows // _ROW_PARTS)
  parts = [summed([x[:, start : start + size] for x in both]) for start in range(0, rows, size)]
  return [x[:, None, None] / (rows * cols) for x in summed([sum(part) for part in zip(*parts)])]


# Linear, and as sums of their own they have derivatives of any order.
_means_in_one_pass.defjvp(lambda both, tangents: (_means_in_one_pass(*both), _means_one_by_one(*tangents)))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def instance_norm_leaky_relu(x: Array, slope: float = 0.2, epsilon: float = 1e-5) -> Array:
  """Instance normalisation (biased variance, no affine) and leaky ReLU.

  Keeps only its output and 1/std for the backward pass. Statistics are float32 or
  more, whatever the type of `x`.

  Args:
    x: `[batch, row, col, channel]`.
    slope: slope of the leaky ReLU below zero.
    epsilon: added to the variance.

  Returns:
    Same shape as `x`.

  Reference:
    Ulyanov et al. 2016, instance normalisation.
  """
  return _norm_forward(x, slope, epsilon)[0]


def _compiled_once(function: Callable) -> Callable:
  """`function` behind a call that XLA:CPU leaves a call.

  Nothing from outside is fused into it, so that all layers of one shape consist of the same
  kernels, of which XLA compiles each once.
  """
  call = jax.jit(function)

  def called(*arrays):
    with set_xla_metadata(inlineable='false'):
      return call(*arrays)

  return called


@partial(jax.jit, static_argnums=(1, 2))
def _norm_forward(x, slope, epsilon):
  normalise = partial(_normalise, slope=slope, epsilon=epsilon)
  y, inverse = lax.platform_dependent(x, cpu=_compiled_once(normalise), default=normalise)
  return y, (y, inverse)


def _normalise(x, *, slope, epsilon):
  exact = x.astype(_at_least_float32(x))
  centred = exact - spatial_mean(exact)
  inverse = lax.rsqrt(spatial_mean(centred * centred) + epsilon)
  y = centred * inverse
  return _by_sign(y, y, slope * y).astype(x.dtype), inverse


@partial(jax.jit, static_argnums=(0, 1))
def _norm_backward(slope, epsilon, residuals, g):
  del epsilon
  cpu, other = (partial(_normalise_backward, slope=slope, cpu=cpu) for cpu in (True, False))
  return (lax.platform_dependent(*residuals, g, cpu=_compiled_once(cpu), default=other),)


def _normalise_backward(y, inverse, g, *, slope, cpu):
  kind, y, g = y.dtype, y.astype(inverse.dtype), g.astype(inverse.dtype)
  # The slopes cancel in the product with the normalised input.
  means = _means_in_one_pass if cpu else _means_one_by_one
  mean, product = means(_by_sign(y, g, slope * g), g * y)
  if cpu:
    # XLA:CPU computes the branches again after the sums, and does not keep them.
    y, g = lax.optimization_barrier((y, g))
  return ((_by_sign(y, g, slope * g) - mean - _by_sign(y, y, y / slope) * product) * inverse).astype(kind)


def _by_sign(y, positive, negative):
  # `jnp.where` is a jitted function, and would stay a call inside those of `_compiled_once`.
  return lax.select(y >= 0, positive, negative)


instance_norm_leaky_relu.defvjp(_norm_forward, _norm_backward)


@jax.jit
def average_pool(x: Array) -> Array:
  """2x2 average pooling; the last row and column of odd sizes are dropped.

  Args:
    x: `[batch, row, col, channel]`.

  Returns:
    `[batch, row // 2, col // 2, channel]`.
  """
  batch, rows, cols, channels = x.shape
  even = x[:, : rows // 2 * 2, : cols // 2 * 2]
  return jnp.mean(even.reshape(batch, rows // 2, 2, cols // 2, 2, channels), (2, 4))


@jax.jit
def upsample_conv2x2(x: Array, kernel: Array) -> Array:
  """Transposed 2x2 convolution with stride 2: a matrix product and a shuffle.

  Args:
    x: `[batch, row, col, in]`.
    kernel: `[in, 2, 2, out]`.

  Returns:
    `[batch, 2 row, 2 col, out]`.
  """
  batch, rows, cols, _ = x.shape
  blocks = lax.dot_general(x, kernel, (((3,), (0,)), ((), ())), precision=PRECISION)
  return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * rows, 2 * cols, kernel.shape[-1])


def match_size(x: Array, like: Array) -> Array:
  """Reflect-pads one row at the bottom and one column at the right if `like` has more."""
  pad = [(0, 0), (0, like.shape[1] - x.shape[1]), (0, like.shape[2] - x.shape[2]), (0, 0)]
  return jnp.pad(x, pad, mode='reflect') if x.shape[1:3] != like.shape[1:3] else x


class Conv(nn.Module):
  """`conv2d` with parameters `kernel` and, if asked for, `bias`."""

  features: int
  size: int = 3
  use_bias: bool = False

  @nn.compact
  def __call__(self, x):
    shape = (self.size, self.size, x.shape[-1], self.features)
    bound, kind = kernel_bound(shape), _at_least_float32(x)
    y = conv2d(x, uniform(self, 'kernel', shape, kind, bound).astype(x.dtype))
    if not self.use_bias:
      return y
    # Added in the type of the parameter, in which its gradient is summed then.
    return (y + uniform(self, 'bias', (self.features,), kind, bound)).astype(x.dtype)


class NormActivation(nn.Module):
  """Normalisation and activation after a convolution, in either order.

  Attributes:
    norm: `instance` (no affine), or `batch`, whose running averages are used
      where the collection `batch_stats` is not mutable.
    activation: `leaky_relu` (0.2) or `prelu` (one learned slope, from 0.25).
    batch_axis: name of the device axis over which batch norm takes its statistics.
    activation_first: the activation stands before the normalisation.
  """

  norm: str = 'instance'
  activation: str = 'leaky_relu'
  batch_axis: str | None = None
  activation_first: bool = False

  @nn.compact
  def __call__(self, x):
    if self.activation_first:
      return self._normalise(self._activate(x))
    if (self.norm, self.activation) == ('instance', 'leaky_relu'):
      return instance_norm_leaky_relu(x)
    return self._activate(self._normalise(x))

  def _normalise(self, x):
    if self.norm == 'instance':
      return instance_norm_leaky_relu(x, 1.0)
    if self.norm == 'batch':
      running = not self.is_mutable_collection('batch_stats')
      norm = nn.BatchNorm(
        use_running_average=running, momentum=0.9, axis_name=self.batch_axis, dtype=x.dtype, name='batch_norm'
      )
      return norm(x)
    raise ValueError(f'norm: {self.norm!r} is unknown; choose instance or batch')

  def _activate(self, x):
    if self.activation == 'leaky_relu':
      return nn.leaky_relu(x, 0.2)
    if self.activation == 'prelu':
      return nn.PReLU(negative_slope_init=0.25, name='prelu')(x.astype(_at_least_float32(x))).astype(x.dtype)
    raise ValueError(f'activation: {self.activation!r} is unknown; choose leaky_relu or prelu')


class Dense(nn.Module):
  """Linear layer over the last axis, with the start of PyTorch's."""

  features: int
  use_bias: bool = True

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1], self.features)
    bound = kernel_bound(shape)
    y = jnp.dot(x, uniform(self, 'kernel', shape, x.dtype, bound), precision=PRECISION)
    return y + uniform(self, 'bias', (self.features,), x.dtype, bound) if self.use_bias else y


class StridedConv(nn.Module):
  """`strided_conv2d` with parameters `kernel` and, if asked for, `bias`."""

  features: int
  size: int
  stride: int = 1
  padding: int = 0
  use_bias: bool = False

  @nn.compact
  def __call__(self, x):
    shape = (self.size, self.size, x.shape[-1], self.features)
    bound = kernel_bound(shape)
    y = strided_conv2d(x, uniform(self, 'kernel', shape, x.dtype, bound), self.stride, self.padding)
    return y + uniform(self, 'bias', (self.features,), x.dtype, bound) if self.use_bias else y


class ConvBlock(nn.Module):
  """Two 3x3 convolutions, each with normalisation and activation."""

  features: int
  norm: str = 'instance'
  activation: str = 'leaky_relu'
  batch_axis: str | None = None
  activation_first: bool = False

  @nn.compact
  def __call__(self, x):
    for _ in range(2):
      x = NormActivation(self.norm, self.activation, self.batch_axis, self.activation_first)(Conv(self.features)(x))
    return x


class UpBlock(nn.Module):
  """A 2x2 transposed convolution with normalisation and activation."""

  features: int
  norm: str = 'instance'
  activation: str = 'leaky_relu'
  batch_axis: str | None = None
  activation_first: bool = False

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1], 2, 2, self.features)
    kernel = uniform(self, 'kernel', shape, _at_least_float32(x), transposed_kernel_bound(shape))
    return NormActivation(self.norm, self.activation, self.batch_axis, self.activation_first)(
      upsample_conv2x2(x, kernel.astype(x.dtype))
    )


# Which tap of a 4x4 transposed kernel joins an input, one pixel off at most, with an output of either parity.
_FRACTIONAL = np.zeros((3, 2, 4))
_FRACTIONAL[[0, 1, 1, 2], [0, 0, 1, 1], [3, 1, 2, 0]] = 1


class FractionalConv(nn.Module):
  """Transposed 4x4 convolution with stride 2 and padding 1, no bias: doubles the size.

  Written as a 3x3 convolution to four channels per output and a pixel shuffle.
  The parameter `kernel` is `[in, 4, 4, out]`.
  """

  features: int

  @nn.compact
  def __call__(self, x):
    batch, rows, cols, n_in = x.shape
    shape = (n_in, 4, 4, self.features)
    kernel = uniform(self, 'kernel', shape, x.dtype, transposed_kernel_bound(shape))
    taps = _FRACTIONAL.astype(kernel.dtype)
    phases = jnp.einsum('irco,yar,xbc->yxiabo', kernel, taps, taps, precision=PRECISION).reshape(
      3, 3, n_in, 4 * self.features
    )
    blocks = conv2d(x, phases).reshape(batch, rows, cols, 2, 2, self.features)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * rows, 2 * cols, self.features)
