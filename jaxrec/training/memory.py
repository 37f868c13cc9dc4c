"""How many examples of a batch fit into memory at a time, found by compiling."""

import math
from collections.abc import Callable
from typing import Any

import jax


def divisors(count: int) -> list[int]:
  """The divisors of a positive number, ascending."""
  return [n for n in range(1, count + 1) if count % n == 0]


def largest_that_fits(candidates: list[int], limit: int, needed: Callable[[int], float]) -> int | None:
  """The largest candidate that fits, if a larger one never takes less.

  The largest is tried first, as it mostly fits. Memory is nearly a constant and so
  much per example: what two candidates take says which to try next, and that is
  compiled too, and the one above it, unless it was before.

  Args:
    candidates: ascending.
    limit: bytes that there are.
    needed: bytes that a candidate takes, see `bytes_of`; compiles it.

  Returns:
    The candidate, or `None` if none fits.
  """
  low, high, at = -1, len(candidates), len(candidates) - 1
  known: dict[int, float] = {}
  while high - low > 1:
    known[candidates[at]] = needed(candidates[at])
    if known[candidates[at]] <= limit:
      low = at
    else:
      high = at
    expected = _expected(known, limit)
    at = (low + high) // 2 if expected is None else sum(n <= expected for n in candidates) - 1
    at = min(max(at, low + 1), high - 1)
  return candidates[low] if low >= 0 else None


def _expected(known: dict[int, float], limit: int) -> float | None:
  """How many examples take just the limit, on the line through the two candidates next to it; of one, through none at all."""
  told = sorted(((n, size) for n, size in known.items() if math.isfinite(size)), key=lambda x: abs(x[1] - limit))[:2]
  if not told:
    return None
  (n, size), (m, other) = told if len(told) == 2 else (*told, (0, 0.0))
  return n + (limit - size) * (n - m) / (size - other) if size != other else None


def needed_memory(compiled: Any) -> int:
  """Bytes that a compiled program takes on a device, without what its libraries allocate (cuDNN's workspace)."""
  stats = compiled.memory_analysis()
  return (
    stats.temp_size_in_bytes + stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
  )


def bytes_of(compile: Callable[[], Any]) -> float:
  """Bytes that a program, compiled now, takes on a device; infinite if its compiler says that they are too many."""
  try:
    return needed_memory(compile())
  except jax.errors.JaxRuntimeError as error:
    # The compiler for TPUs refuses what does not fit.
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return math.inf
