"""Random numbers for weights that nobody has trained yet, from generators that compile fast.

Threefry takes XLA:CPU half a minute or more for a network of forty draws, XLA's own
generator four seconds; the one here, a hash of key and position, a second. Training
keeps XLA's, so that its runs repeat.
"""

import math

import jax
import jax.numpy as jnp
from jax.extend import random as extended

from jaxrec.types import Array, Key


def _pcg3d(a: Array, b: Array, c: Array) -> tuple[Array, Array, Array]:
  """Three well mixed words of three.

  Reference:
    Jarzynski and Olano 2020, Hash functions for GPU rendering, https://jcgt.org/published/0009/03/02/.
  """
  a, b, c = (jnp.uint32(x) * jnp.uint32(1664525) + jnp.uint32(1013904223) for x in (a, b, c))
  a, b, c = _round(a, b, c)
  return _round(*(x ^ (x >> 16) for x in (a, b, c)))


def _round(a, b, c):
  a = a + b * c
  b = b + c * a
  return a, b, c + a * b


def _fold_in(key, data):
  return jnp.stack(_pcg3d(data, key[0], key[1])[:2])


def _split(key, shape):
  numbers = jnp.arange(math.prod(shape), dtype=jnp.uint32)
  return jax.vmap(lambda n: _fold_in(key, n))(numbers).reshape(*shape, 2)


def _bits(key, width, shape):
  words = _pcg3d(jnp.arange(math.prod(shape), dtype=jnp.uint32), key[0], key[1])
  if width == 64:
    return (words[0].astype(jnp.uint64) << 32 | words[1]).reshape(shape)
  return words[0].astype(f'uint{width}').reshape(shape)


_PCG = extended.define_prng_impl(
  key_shape=(2,), seed=lambda seed: _fold_in(jnp.zeros(2, jnp.uint32), seed), split=_split, random_bits=_bits,
  fold_in=_fold_in, name='pcg3d', tag='pcg',
)  # fmt: skip


def hardware_key(key: Key) -> Key:
  """The key for XLA's own generator; of another than JAX's own the key itself."""
  return _as(key, 'rbg', lambda data: jnp.concatenate([data, data]))


def quick_key(key: Key) -> Key:
  """The key for a generator that compiles in no time; of another than JAX's own the key itself."""
  return _as(key, _PCG, lambda data: data)


def _as(key, generator, words):
  if jax.random.key_impl(key) != 'threefry2x32':
    return key
  return jax.random.wrap_key_data(words(jax.random.key_data(key)), impl=generator)
