"""How many examples of a batch fit into memory at a time, found by compiling."""

from collections.abc import Callable
from typing import Any

import jax


def divisors(count: int) -> list[int]:
  """The divisors of a positive number, ascending."""
  return [n for n in range(1, count + 1) if count % n == 0]


def largest_that_fits(candidates: list[int], fits: Callable[[int], bool]) -> int | None:
  """The largest candidate that fits, if all that are smaller than one that fits do so too.

  The largest is tried first, as it mostly fits; then half of those that are left
  fall away with every trial.

  Args:
    candidates: ascending.
    fits: compiles and compares, see `takes_at_most`.

  Returns:
    The candidate, or `None` if none fits.
  """
  low, high = -1, len(candidates)
  middle = high - 1
  while high - low > 1:
    if fits(candidates[middle]):
      low = middle
    else:
      high = middle
    middle = (low + high) // 2
  return candidates[low] if low >= 0 else None


def needed_memory(compiled: Any) -> int:
  """Bytes that a compiled program takes on a device, without what its libraries allocate (cuDNN's workspace)."""
  stats = compiled.memory_analysis()
  return (
    stats.temp_size_in_bytes + stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
  )


def takes_at_most(limit: int, compile: Callable[[], Any]) -> bool:
  """Whether a program, compiled now, takes at most so many bytes on a device."""
  try:
    return needed_memory(compile()) <= limit
  except jax.errors.JaxRuntimeError as error:
    # The compiler for TPUs refuses what does not fit.
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return False
