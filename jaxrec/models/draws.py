"""Weights that nobody has trained yet, drawn on the host.

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

Ranges = dict[tuple[str, ...], tuple[float, float]]
_ranges: ContextVar[Ranges | None] = ContextVar('ranges', default=None)


def uniform(module: nn.Module, name: str, shape: tuple[int, ...], dtype: Any, bound: float, centre: float = 0) -> Array:
  """A parameter of a layer that starts uniform on `centre` +- `bound`, 0 for a constant.

  Args:
    module: the layer.
    name: of the parameter.
    shape: of the parameter, as in the layer, without the axis of a scan around it.
    dtype: float type.
    bound: half the width of the interval.
    centre: its middle.

  Returns:
    The parameter, of this shape and type.
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
def noted() -> Iterator[Ranges]:
  """Notes `(centre, bound)` of the parameters of layers by their path, and draws none, while a network is traced."""
  ranges: Ranges = {}
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
    shape: of the parameter, the axes of scans around its layer included.
    dtype: float type.
    centre: middle of the interval.
    bound: half its width.

  Returns:
    `shape`, on the host, or if the key is traced a traced array of the same numbers but for rounding.
  """
  words = jax.random.key_data(key)
  numbers: Any = jnp if isinstance(words, jax.core.Tracer) else np
  words = numbers.asarray(words)
  name = numbers.full(1, zlib.crc32('/'.join(path).encode()), np.uint32)
  first, second, _ = _pcg3d(name, words[:1], words[-1:])
  count, double = math.prod(shape), np.dtype(dtype) == np.float64
  thirds = numbers.arange(-(-(1 + double) * count // 3), dtype=np.uint32)
  words = numbers.concatenate(_pcg3d(thirds, first, second))
  kind: Any = np.float64 if double else np.float32
  # From 0 to 2**24, with all digits that the type has.
  whole = (words[:count] >> 8).astype(kind)
  if double:
    whole = whole + (words[count : 2 * count] >> 3).astype(kind) * kind(2**-29)
  return (whole * kind(bound * 2**-23) + kind(centre - bound)).astype(dtype).reshape(shape)


def _pcg3d(a, b, c):
  """Three well mixed words of three: uint32, `[n]` or `[1]`.

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
