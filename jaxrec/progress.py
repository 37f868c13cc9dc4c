"""What long work will take, as soon as it can be known."""

import sys
import time

from tqdm import tqdm

# Shorter than this tells little.
_SECONDS = 1.0


class Remaining:
  """Says once, in a line above the bar, what the rest of some work takes.

  What is measured begins after the first unit that was computed, which compiled.
  Nothing is said of work that ends within a second of that.

  Args:
    what: the work, as its bar names it.
    unit: of its steps, in the singular.
    total: steps in all.
    note: what is not counted.
    silent: for all processes but the first.
  """

  def __init__(self, what: str, unit: str, total: int, *, note: str = '', silent: bool = False):
    self._what, self._unit, self._total, self._note = what, unit, total, note
    self._start: tuple[float, int] | None = None
    self._over = silent

  def leave_out(self, seconds: float) -> None:
    """Some time that passed belongs to no step."""
    if self._start is not None:
      self._start = self._start[0] + seconds, self._start[1]

  def step(self, done: int) -> None:
    """To be called after every step that was computed, with the number of steps that are behind."""
    if self._over:
      return
    now = time.perf_counter()
    if self._start is None:
      self._start = now, done
    elif (passed := now - self._start[0]) >= _SECONDS:
      self._over, left = True, self._total - done
      if left > 0:
        seconds = passed / (done - self._start[1]) * left
        units = self._unit if left == 1 else f'{self._unit}s' if self._unit[-1] != 'h' else f'{self._unit}es'
        tqdm.write(f'{self._what}: {left} more {units}: about {duration(seconds)}{self._note}', file=sys.stderr)


def duration(seconds: float) -> str:
  """As people say it: `40 s`, `12 min` or `3.5 h`."""
  if seconds < 100:
    return f'{seconds:.0f} s'
  return f'{seconds / 60:.0f} min' if seconds < 100 * 60 else f'{seconds / 3600:.1f} h'
