"""Weights that nobody has trained yet, drawn on the host in no time.

A program that draws the weights of a network has a kernel for each shape, which XLA:CPU takes seconds
to compile (threefry half a minute and more). `start` compiles none: it asks the layers how their
parameters start, and draws them by a hash of key, name and position. Training keeps XLA's own generator, so
that its runs repeat.
"""

import contextlib
import math
import zlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.types import Array, Key

_Ranges = dict[tuple[str, ...], tuple[float, float]]
_ranges: ContextVar[_Ranges | None] = ContextVar('ranges', default=None)


def uniform(module: nn.Module, name: str, shape: tuple[int, ...], dtype: Any, bound: float, centre: float = 0) -> Array:
  """A parameter of a layer that starts uniform on `centre` +- `bound`, 0 for a constant.

  Args:
    module: the layer.
    name: of the parameter.
    shape: its shape.
    dtype: float type.
    bound: half the width of the interval.
    centre: its middle.

  Returns:
    The parameter.
  """
  ranges = _ranges.get()
  if ranges is not None:
    ranges[*module.path, name] = centre, bound

  def init(key, shape, dtype):
    if ranges is not None or not bound:
      return jnp.full(shape, centre, dtype)
    return jax.random.uniform(key, shape, dtype, centre - bound, centre + bound)

  return module.param(name, init, shape, dtype)


def noting() -> bool:
  """Whether a network is traced for `noted`, without a draw."""
  return _ranges.get() is not None


@contextlib.contextmanager
def noted() -> Iterator[_Ranges]:
  """Notes `(centre, bound)` of the parameters of layers by their path, and draws none, while a network is traced."""
  ranges: _Ranges = {}
  token = _ranges.set(ranges)
  try:
    yield ranges
  finally:
    _ranges.reset(token)


def draw(key: Key, path: tuple[str, ...], shape: tuple[int, ...], dtype: Any, centre: float, bound: float) -> Array:
  """A parameter by the hash of its path and of its positions.

  Args:
    key: of the network.
    path: of the parameter; another has other numbers.
    shape: its shape.
    dtype: float type.
    centre: middle of the interval.
    bound: half its width.

  Returns:
    An array on the host, or if the key is traced a traced one of the same numbers but for rounding.
  """
  words = jax.random.key_data(key)
  numbers: Any = jnp if isinstance(words, jax.core.Tracer) else np
  words = numbers.asarray(words)
  name = numbers.full(1, zlib.crc32('/'.join(path).encode()), np.uint32)
  first, second, _ = _pcg3d(name, words[:1], words[-1:])
  high, low, _ = _pcg3d(numbers.arange(math.prod(shape), dtype=np.uint32), first, second)
  dtype = np.dtype(dtype)
  unit = (high >> 8).astype(dtype) * dtype.type(2**-24)
  if dtype == np.float64:
    unit = unit + (low >> 3).astype(dtype) * 2**-53
  return (dtype.type(centre) + dtype.type(bound) * (2 * unit - 1)).reshape(shape)


def _pcg3d(a, b, c):
  """Three well mixed words of three, each `[n]` uint32.

  Reference:
    Jarzynski and Olano 2020, Hash functions for GPU rendering, https://jcgt.org/published/0009/03/02/.
  """
  a, b, c = (x * np.uint32(1664525) + np.uint32(1013904223) for x in (a, b, c))
  a, b, c = _round(a, b, c)
  return _round(*(x ^ (x >> 16) for x in (a, b, c)))


def _round(a, b, c):
  a = a + b * c
  b = b + c * a
  return a, b, c + a * b


def hardware_key(key: Key) -> Key:
  """The key for XLA's own generator; of another than JAX's own the key itself."""
  if jax.random.key_impl(key) != 'threefry2x32':
    return key
  data = jax.random.key_data(key)
  return jax.random.wrap_key_data(jnp.concatenate([data, data]), impl='rbg')
