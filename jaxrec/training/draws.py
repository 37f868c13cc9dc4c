"""Randomness that follows an example's place in the global batch, not the device that has it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrec.types import Array, Key

Place = Callable[[int], tuple[Array | int, int]]


class Draws(NamedTuple):
  """Keys of a step for some examples of a batch.

  Attributes:
    common: the same for all examples of the global batch.
    each: `[example]`, of its place in the global batch.
  """

  common: Key
  each: Key


def alone(count: int) -> tuple[int, int]:
  """The `Place` of a device that has the whole batch."""
  return 0, count


def of_examples(key: Key, count: int, place: Place = alone) -> Key:
  """Keys of the examples of a device.

  Args:
    key: the same on all devices.
    count: examples of the device.
    place: `count -> (number of its first one in the global batch, size of the global batch)`.

  Returns:
    `[count]`; of a device that has the whole batch, those of `jax.random.split`.
  """
  first, _ = place(count)
  return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(count))


def of_batch(draw: Callable[[int], Array], count: int, place: Place = alone) -> Array:
  """Rows of a draw for the whole batch.

  Args:
    draw: `size -> [size, ...]`, the same on all devices.
    count: see `of_examples`.
    place: see `of_examples`.

  Returns:
    `[count, ...]`.
  """
  first, size = place(count)
  return draw(count) if size == count else lax.dynamic_slice_in_dim(draw(size), first, count)


def of_device(key: Key, count: int, place: Place = alone) -> Key:
  """Another key on every device, for draws that know no examples; on the first one it is `key`."""
  first, size = place(count)
  return key if size == count else jnp.where(first == 0, key, jax.random.fold_in(key, first))
