"""What a family of perturbations says about itself, once, where it is defined."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from jaxrec.attacks.core import Perturbation


class Family(NamedTuple):
  """How a family of perturbations is scaled and called.

  Attributes:
    strength: the factory's argument that scales the perturbation.
    unit: of the strength; `relative` is a share of the measurement, shown in per cent.
    title: heading of its part of a report.
    axis: what the strength is, for the axis of a curve.
  """

  strength: str
  unit: str
  title: str
  axis: str


def family(strength: str, *, unit: str, title: str, axis: str = 'strength') -> Callable[[Callable], Callable]:
  """Declares a factory of perturbations as a family over its strengths.

  Args:
    strength: name of the factory's argument that scales the perturbation.
    unit: `relative` for shares of the measurement, or a word, such as `degrees`.
    title: heading of its part of a report.
    axis: what the strength is, for the axis of a curve.

  Returns:
    A decorator that leaves the factory as it is.

  Example:
    >>> import jaxrec
    >>> @jaxrec.family('max_gain', unit='relative', title='Worst-case gain of the coils', axis='gain error')
    ... def gain_error(max_gain):
    ...   ...
    >>> jaxrec.attacks.family_of(gain_error).unit
    'relative'
  """

  def declare(factory):
    factory.family = Family(strength, unit, title, axis)
    return factory

  return declare


def family_of(factory: Callable[..., Perturbation]) -> Family:
  """The declaration of a factory, or of what `functools.partial` made of it.

  Args:
    factory: decorated by `family`.

  Returns:
    The declaration.

  Raises:
    ValueError: if there is none.
  """
  inner = factory
  while isinstance(inner, functools.partial):
    inner = inner.func
  found = getattr(inner, 'family', None)
  if not isinstance(found, Family):
    name = getattr(inner, '__name__', type(inner).__name__)
    raise ValueError(
      f'{name}: declares no strength; put @jaxrec.family(ARGUMENT, unit=..., title=...) before its definition'
    )
  return found


def strength_text(strength: float, unit: str) -> str:
  """A strength as readers see it, `2.5%` or `3 degrees`."""
  return f'{100 * strength:.4g}%' if unit == 'relative' else f'{strength:g} {unit}'
