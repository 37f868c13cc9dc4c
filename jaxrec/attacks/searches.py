"""Ways to find the worst perturbation; each is one program without host code.

A search is called as `search(key, loss, init, project)` and keeps the best
point it has evaluated. Steps of gradient searches are Optax transformations
that receive the ascent direction, which `ascending` makes of JAX's gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxrec.attacks.core import Search, SearchResult, ascending, chunked, pick, starts_at_random
from jaxrec.fourier import abs_squared, safe_sqrt
from jaxrec.types import Array, Delta

# Far outside any feasible set, yet squares and sums of it stay finite in float32.
_FAR = 1e15


@dataclass(eq=False)
class _Search:
  run: Callable
  forward_calls: int
  backward_calls: int
  points: Delta = None

  def __call__(self, key, loss, init, project) -> SearchResult:
    return self.run(key, loss, init, project)


class _Here(NamedTuple):
  """Where a climb stands, and what its step may look at."""

  delta: Delta
  value: Array
  direction: Delta
  best: Array
  best_delta: Delta
  memory: Any


@dataclass(eq=False)
class _Climb:
  """A search of gradient steps, one evaluation after the other in one loop.

  Whatever is evaluated without a gradient, such as the last point, passes through the
  same code of the network, without its backward half: a program compiles it once.

  Attributes:
    backward_calls: gradient steps.
    begin: `(start, lowest loss []) -> memory`.
    advance: `(number of the step, _Here, project) -> (delta, memory)`.
    forward_calls: the last point has no step behind it.
  """

  backward_calls: int
  begin: Callable
  advance: Callable
  forward_calls: int = 1

  def __call__(self, key, loss, init, project) -> SearchResult:
    loss = ascending(loss)
    return self.explore(key, lambda delta, _: (loss(delta), ()), init, project)[0]

  def explore(self, key, evaluate, init, project, *, clean=False):
    """See `attacks.core.Exploring`."""
    start = project(init(key))
    # Traced once, although its shapes are asked for first.
    evaluate = jax.jit(evaluate)
    value, shown = jax.eval_shape(evaluate, start, True)

    def step(carry, number):
      delta, best, best_delta, best_shown, _, memory = carry
      perturbed = number <= self.backward_calls
      value, pull, shown = jax.vjp(lambda x: evaluate(x, perturbed), delta, has_aux=True)
      better = perturbed & (value > best)
      best_shown = pick(better | (number == 0), shown, best_shown)
      best, best_delta = pick(better, (value, delta), (best, best_delta))

      def climb():
        (direction,) = pull(jnp.ones_like(value))
        return self.advance(number, _Here(delta, value, direction, best, best_delta, memory), project)

      delta, memory = lax.cond(number < self.backward_calls, climb, lambda: (delta, memory))
      return (delta, best, best_delta, best_shown, shown, memory), value

    low = jnp.array(-jnp.inf, value.dtype)
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shown)
    carry = (start, low, start, blank, blank, self.begin(start, low))
    (_, best, best_delta, best_shown, last_shown, _), trace = lax.scan(
      step, carry, jnp.arange(self.backward_calls + 1 + clean)
    )
    return SearchResult(best_delta, best, trace[: self.backward_calls + 1]), best_shown, last_shown


def _positive(name, value):
  if int(value) != value or value < 1:
    raise ValueError(f'{name}: {value} is not a positive whole number')


def _needs_random_starts(name, count, init):
  if count > 1 and not starts_at_random(init):
    raise ValueError(f"{name}: {count} starts would all be the same; give the perturbation start='random'")


def _leaf_norm(x):
  return safe_sqrt(jnp.sum(abs_squared(x)))


def _unit(x):
  # Scaled first: squares of raw k-space gradients may leave the range of float32.
  largest = jnp.max(jnp.abs(x))
  x = x / jnp.where(largest > 0, largest, 1)
  norm = _leaf_norm(x)
  return x / jnp.where(norm > 0, norm, 1)


def farthest(direction: Delta, project: Callable[[Delta], Delta]) -> Delta:
  """Feasible point farthest along a direction: for balls, the radius times the unit vector.

  Args:
    direction: as delta.
    project: onto the feasible set.

  Returns:
    A delta on the border.
  """
  return project(jax.tree.map(lambda x: _FAR * _unit(x), direction))


def steepest_step(step_size: float = 0.5) -> optax.GradientTransformationExtraArgs:
  """Step of `step_size` times the farthest feasible point along the gradient.

  For `coil_noise` this is `step_size * eta ||k_i|| g_i / ||g_i||` for every
  coil, for a rotation `+-step_size * max_degrees`: the step needs no tuning to
  the scale of data or loss. The larger `step_size`, the nearer to the generalised
  power method; for a number in an interval 2 is large enough. Chain it behind
  `optax.trace(0.9)` for momentum.

  Args:
    step_size: in units of the feasible set's radius.

  Returns:
    An Optax transformation for `pgd`.

  Reference:
    Journee et al. 2010, generalised power method; Madry et al. 2018, PGD.
  """

  def update(direction, state, params=None, *, project, **_):
    del params
    return jax.tree.map(lambda x: step_size * x, farthest(direction, project)), state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def advrec_step(step_size: float = 0.5) -> optax.GradientTransformationExtraArgs:
  """The update of the public AdvRec code, for comparison.

  Noise and gradient are divided by their norms over all coils, added, and only
  then is every coil capped at its bound: with many coils most of the budget
  stays unused. For deltas `[coil, row, col]`.

  Args:
    step_size: weight of the normalised gradient.

  Returns:
    An Optax transformation for `pgd`.

  Reference:
    https://github.com/NikolasMorshuis/AdvRec, `augmentor/kspace_noise.py`.
  """

  def update(direction, state, params=None, *, project, **_):
    def coil_norm(x):
      return safe_sqrt(jnp.sum(abs_squared(x), (-2, -1), keepdims=True))

    radius = coil_norm(farthest(direction, project))
    moved = _unit(params) + step_size * _unit(direction)
    return radius * moved / jnp.maximum(coil_norm(moved), 1) - params, state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def pgd(*, num_steps: int = 10, step: optax.GradientTransformation | None = None) -> Search:
  """Projected gradient ascent that keeps the best iterate.

  `delta <- P(delta + step(gradient))`, `num_steps` times.

  Args:
    num_steps: gradient steps.
    step: an Optax transformation of the ascent direction; `steepest_step(0.5)`
      if `None`. It may take the extra argument `project`. Optax's optimisers descend:
      `optax.chain(optax.adam(0.1), optax.scale(-1))` ascends.

  Returns:
    A search with a trace of `num_steps + 1`.

  Raises:
    ValueError: if `num_steps` is not positive, or the step goes against the direction.

  Reference:
    Madry et al. 2018; Morshuis et al. 2022, section 2.
  """
  _positive('num_steps', num_steps)
  if step is not None and _descends(optax.with_extra_args_support(step)):
    raise ValueError(
      "pgd: its step goes against the direction that it is given, as Optax's optimisers do; chain it with optax.scale(-1)"
    )
  step = optax.with_extra_args_support(step or steepest_step())

  def advance(number, here, project):
    updates, state = step.update(here.direction, here.memory, here.delta, project=project)
    return project(jax.tree.map(jnp.add, here.delta, updates)), state

  return _Climb(num_steps, lambda start, _: step.init(start), advance)


def _descends(step):
  """Whether a step leads down; `False` where that cannot be tried, as for deltas of a shape of their own."""
  up = jnp.ones((1, 1, 1))
  try:
    moved, _ = step.update(up, step.init(0 * up), 0 * up, project=lambda delta: delta)
    return bool(jnp.all(moved < 0))
  except Exception:  # Whatever a step of the user's raises here, it is not this answer.
    return False


def apgd(*, num_steps: int = 20, momentum: float = 0.75) -> Search:
  """Auto-PGD: momentum, and steps that halve when progress stalls.

  Args:
    num_steps: gradient steps.
    momentum: weight of the new point against the last move.

  Returns:
    A search with a trace of `num_steps + 1`.

  Raises:
    ValueError: if an option is out of range.

  Reference:
    Croce and Hein 2020, https://arxiv.org/abs/2003.01690, algorithm 1, with
    steps in units of the feasible set's radius.
  """
  _positive('num_steps', num_steps)
  if not 0 < momentum <= 1:
    raise ValueError(f'momentum: {momentum} is not in (0, 1]')
  checkpoints = _apgd_checkpoints(num_steps)

  def add(a, b, scale):
    return jax.tree.map(lambda x, y: x + scale * y, a, b)

  def begin(start, low):
    size = jnp.array(2.0, low.dtype)
    # The value of the start is no rise.
    return start, size, -low, jnp.int32(0), (size, low)

  def advance(number, here, project):
    previous, size, last_value, rises, old = here.memory
    at_check, length = (jnp.asarray(x)[number] for x in checkpoints)
    rises = rises + (here.value > last_value)
    stalled = (rises < 0.75 * length) | ((size == old[0]) & (here.best == old[1]))
    halve = at_check & stalled
    old = pick(at_check, (size, here.best), old)
    size = jnp.where(halve, size / 2, size)
    rises = jnp.where(at_check, 0, rises)
    restart, previous = pick(halve, (here.best_delta, here.best_delta), (here.delta, previous))
    # After a restart the gradient belongs to the abandoned point; wait one step.
    move = jnp.where(halve, 0, size)
    target = project(add(restart, farthest(here.direction, project), move))
    step = jax.tree.map(lambda x, t, p: x + momentum * (t - x) + (1 - momentum) * (x - p), restart, target, previous)
    return project(step), (restart, size, here.value, rises, old)

  return _Climb(num_steps, begin, advance)


def _apgd_checkpoints(num_steps):
  # In hundredths: sums of 0.06 are rounded up to another step.
  marks, percents = np.zeros(num_steps, bool), [0, 22]
  lengths = np.ones(num_steps, np.float32)
  while percents[-1] < 100:
    here, before = (min(-(-percent * num_steps // 100), num_steps) for percent in (percents[-1], percents[-2]))
    if before < here < num_steps:
      marks[here], lengths[here] = True, here - before
    percents.append(percents[-1] + max(percents[-1] - percents[-2] - 3, 6))
  return marks, lengths


def grid(points: Delta, *, chunk: int = 1) -> Search:
  """Evaluates given points, projected to be feasible.

  Args:
    points: deltas with a leading axis, such as `angle_grid(5.0)`.
    chunk: points computed together.

  Returns:
    A search with a trace of the number of points.

  Raises:
    ValueError: if there are no points.
  """
  counts = {np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(points)}
  if len(counts) != 1 or not min(counts):
    raise ValueError('points: give at least one, along a common leading axis')

  def run(key, loss, init, project):
    del key
    like = jax.eval_shape(init, jax.random.key(0))
    feasible = jax.tree.map(lambda p, d: jnp.asarray(p, d.dtype), points, like)
    return _best_of(jax.vmap(project)(feasible), loss, chunk)

  return _Search(run, forward_calls=counts.pop(), backward_calls=0, points=points)


def random_search(*, num_samples: int, chunk: int = 1) -> Search:
  """Evaluates random feasible points; needs a perturbation with random starts.

  Args:
    num_samples: number of points.
    chunk: points computed together.

  Returns:
    A search with a trace of `num_samples`.

  Raises:
    ValueError: if `num_samples` is not positive, or, when it runs, if every start is the same.
  """
  _positive('num_samples', num_samples)

  def run(key, loss, init, project):
    _needs_random_starts('num_samples', num_samples, init)

    def one(key):
      delta = project(init(key))
      return loss(delta)

    keys = jax.random.split(key, num_samples)
    trace = chunked(one, (keys,), chunk=chunk)
    best = jnp.argmax(_ignore_nan(trace))
    return SearchResult(delta=project(init(keys[best])), loss=trace[best], trace=trace)

  return _Search(run, forward_calls=num_samples, backward_calls=0)


def _best_of(deltas, loss, chunk):
  trace = chunked(loss, (deltas,), chunk=chunk)
  best = jnp.argmax(_ignore_nan(trace))
  return SearchResult(delta=jax.tree.map(lambda x: x[best], deltas), loss=trace[best], trace=trace)


def _ignore_nan(trace):
  return jnp.where(jnp.isnan(trace), -jnp.inf, trace)


def restarts(search: Search, *, num_restarts: int, chunk: int = 1) -> Search:
  """The best of several runs of a search from different random starts.

  Args:
    search: the search to repeat; its perturbation needs `start='random'`.
    num_restarts: number of runs.
    chunk: runs computed together.

  Returns:
    A search whose trace is that of the best run.

  Raises:
    ValueError: if `num_restarts` is not positive, or, when it runs, if every start is the same.
  """
  _positive('num_restarts', num_restarts)

  def run(key, loss, init, project):
    _needs_random_starts('num_restarts', num_restarts, init)
    results = chunked(lambda key: search(key, loss, init, project), (jax.random.split(key, num_restarts),), chunk=chunk)
    best = jnp.argmax(_ignore_nan(results.loss))
    return jax.tree.map(lambda x: x[best], results)

  return _Search(
    run, forward_calls=num_restarts * search.forward_calls, backward_calls=num_restarts * search.backward_calls
  )
