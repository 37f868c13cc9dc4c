"""The work of a program, counted before it is compiled."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def flops(function: Callable, *arguments: Any) -> float:
  """Floating-point operations of the products, convolutions and FFTs of a function.

  Counted on the traced program, so that loops count as often as they run and
  rematerialisation as often as it recomputes; XLA's own analysis counts the body
  of a loop once, and that for CUDA is empty. Additions and normalisations are
  not counted: memory bounds them. Loops without a fixed number of turns count once,
  and of branches the largest: of a search's last evaluation a gradient that is not taken.

  Args:
    function: any traceable function.
    *arguments: arrays or `jax.ShapeDtypeStruct`s.

  Returns:
    The operations: 2 per multiplication and addition, 5 n log2(n) for a complex
    FFT of n points; a complex product counts as four real ones.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxrec.training.cost import flops
    >>> flops(lambda x: x @ x, jnp.ones((10, 10)))
    2000.0
  """
  return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr):
  return sum(map(_of_equation, jaxpr.eqns), 0.0)


def _of_equation(equation):
  name, parameters = equation.primitive.name, equation.params
  if name == 'cond':
    counts = [_count(branch.jaxpr) for branch in parameters['branches']]
    platforms = parameters.get('branches_platforms')
    # Formulations for one platform do the work of the plain one, and some more.
    return counts[platforms.index(None)] if platforms else max(counts)
  inner = sum((_count(j) for j in inside(parameters)), 0.0)
  if name == 'scan':
    return parameters['length'] * inner
  return inner + own(equation)


def inside(parameters):
  """The programs in the parameters of an equation: bodies of loops, branches, functions."""
  for value in parameters.values():
    for found in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(found, core.ClosedJaxpr):
        yield found.jaxpr
      elif isinstance(found, core.Jaxpr):
        yield found


def own(equation: core.JaxprEqn) -> float:
  """Operations of one equation, without those of programs inside it."""
  name, parameters = equation.primitive.name, equation.params
  if not equation.outvars:
    return 0.0
  # Arrays, which the type of `aval` does not say.
  inputs: list[Any] = [v.aval for v in equation.invars]
  output: Any = equation.outvars[0].aval
  if name == 'dot_general':
    (contracted, _), _ = parameters['dimension_numbers']
    return 2.0 * output.size * math.prod(inputs[0].shape[i] for i in contracted) * _complex(output)
  if name == 'conv_general_dilated':
    kernel = parameters['dimension_numbers'].rhs_spec
    taps = inputs[1].size / inputs[1].shape[kernel[0]]
    return 2.0 * output.size * taps * _complex(output)
  if name == 'fft':
    points = math.prod(parameters['fft_lengths'])
    return 5.0 * max(inputs[0].size, output.size) * math.log2(points)
  return 0.0


def _complex(x):
  return 4 if x.dtype.kind == 'c' else 1
