"""What an attack is: a perturbation, a search and an objective around a network."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxrec.networks import Network
from jaxrec.types import AnyArray, Delta, Image, Key, Objective, Reconstructor, Sample, Scalar, Variables


def _unknown_budget(delta: Delta, sample: Sample) -> Scalar:
  del delta, sample
  return jnp.float32(jnp.nan)


class Perturbation(NamedTuple):
  """A set of changes of the measurement.

  Attributes:
    init: `(key, sample) -> delta`, a feasible start.
    apply: `(delta, sample) -> sample`, the perturbed measurement, before masking.
    project: `(delta, sample) -> delta`, onto the feasible set; idempotent.
    align: `(delta, image) -> image`, undoes the change on the reconstruction.
    budget: `(delta, sample) -> []`, the share of the allowed strength in use.
  """

  # Of any sample: some take scans alone, others slices.
  init: Callable[[Key, Any], Delta]
  apply: Callable[[Delta, Any], Any]
  project: Callable[[Delta, Any], Delta]
  align: Callable[[Delta, Image], Image]
  budget: Callable[[Delta, Any], Scalar] = _unknown_budget


@struct.dataclass
class SearchResult:
  """Outcome of a search.

  Attributes:
    delta: the best feasible point evaluated.
    loss: `[]` its loss, the maximum of `trace`.
    trace: `[steps + 1]` or `[points]`, the loss of every point evaluated, of several
      runs those of the best.
  """

  delta: Delta
  loss: AnyArray
  trace: AnyArray


@runtime_checkable
class Search(Protocol):
  """Maximises a loss over a feasible set.

  `attack` calls it as `search(key, loss, init, project)`. `jax.grad(loss)` is the
  direction of steepest ascent, for complex deltas too (see `ascending`).

  Attributes:
    forward_calls: evaluations of the loss without gradient.
    backward_calls: evaluations of the loss with its gradient.
  """

  forward_calls: int
  backward_calls: int

  def __call__(
    self,
    key: Key,
    loss: Callable[[Delta], Scalar],
    init: Callable[[Key], Delta],
    project: Callable[[Delta], Delta],
  ) -> SearchResult: ...


@runtime_checkable
class Exploring(Search, Protocol):
  """A search that shows what the loss saw at its best point, so that nothing is evaluated again."""

  def explore(
    self,
    key: Key,
    evaluate: Callable[[Delta, Any], tuple[Scalar, Any]],
    init: Callable[[Key], Delta],
    project: Callable[[Delta], Delta],
    *,
    clean: bool = False,
  ) -> tuple[SearchResult, Any, Any]:
    """Searches.

    Args:
      key: of the start.
      evaluate: `(delta, perturbed []) -> (loss [], seen)`; where `perturbed` is false,
        of the measurement as it is. The gradient of the loss is the direction of
        steepest ascent, as in a call.
      init: as in a call.
      project: as in a call.
      clean: whether the measurement as it is is evaluated too, behind all points.

    Returns:
      The result, what was seen at the best point, and what was seen last.
    """
    ...


@struct.dataclass
class AttackResult:
  """Outcome of an attack on one example.

  Attributes:
    delta: the worst perturbation found (the best iterate, not the last).
    sample: the perturbed sample.
    clean: `[row, col]` reconstruction without perturbation.
    adversarial: `[row, col]` reconstruction of `sample`, aligned.
    clean_loss: `[]` objective of `clean`.
    loss: `[]` objective of `adversarial`.
    trace: `[steps + 1]` or `[points]` objective along the search.
    budget: `[]` share of the allowed strength in use.
  """

  delta: Delta
  sample: Sample
  clean: AnyArray
  adversarial: AnyArray
  clean_loss: AnyArray
  loss: AnyArray
  trace: AnyArray
  budget: AnyArray


def attack(
  reconstruct: Reconstructor,
  perturbation: Perturbation,
  search: Search,
  objective: Objective,
  *,
  surrogate: Reconstructor | Network | None = None,
) -> Callable[[Variables, Key, Sample], AttackResult]:
  """Worst case of a network over a set of perturbations.

  `max_delta objective(align(delta, f(apply(delta, sample))), sample)`.

  The result is a pure function for one example; compose it as
  `jax.jit(jax.vmap(attack(...), in_axes=(None, 0, 0)))`. Strengths are one more
  `vmap`, as perturbations may close over traced scalars. Clean and adversarial
  reconstruction run through the same compiled code, so a perturbation of
  strength zero gives exactly the clean score.

  Args:
    reconstruct: the network, `(variables, sample) -> image`.
    perturbation: what may change, such as `coil_noise(0.02)`.
    search: how the worst case is sought, such as `pgd(num_steps=10)`.
    objective: `(image, sample) -> []`, larger is worse for the network.
    surrogate: what the search looks at, if it is not the network itself: the
      expectation of a randomised defence, as a function of the same variables, or
      for a transfer another `Network`, whose weights become constants of the
      program. Images and losses, but not `trace`, come from `reconstruct`.

  Returns:
    `(variables, key, sample) -> AttackResult`.

  Reference:
    Morshuis et al. 2022, equations (4) and (5).

  Example:
    >>> import jax, jaxrec
    >>> from jaxrec.data import synthetic
    >>> scan = synthetic.scan(0, rows=32, cols=32, coils=2)
    >>> def zero_filled(variables, scan):
    ...   return jaxrec.fourier.rss(jaxrec.fourier.ifft2c(scan.kspace * scan.mask))
    >>> worst = jax.jit(jaxrec.attack(zero_filled, jaxrec.coil_noise(0.05), jaxrec.pgd(num_steps=3),
    ...                               jaxrec.region_mse()))
    >>> result = worst(None, jax.random.key(0), scan)
    >>> bool(result.loss > result.clean_loss)
    True
  """

  worst = seek_image(reconstruct, perturbation, search, objective, surrogate=surrogate, clean=True)

  def run(variables: Variables, key: Key, sample: Sample) -> AttackResult:
    found, adversarial, clean = worst(variables, key, sample)
    images = jnp.stack([clean, adversarial])
    clean_loss, adversarial_loss = lax.map(lambda image: objective(image, sample), images)
    return AttackResult(
      delta=found.delta,
      sample=perturbation.apply(found.delta, sample),
      clean=images[0],
      adversarial=images[1],
      clean_loss=clean_loss,
      loss=adversarial_loss,
      trace=found.trace,
      budget=perturbation.budget(found.delta, sample),
    )

  return run


def seek_image(
  reconstruct: Reconstructor,
  perturbation: Perturbation,
  search: Search,
  objective: Objective,
  *,
  surrogate: Reconstructor | Network | None = None,
  clean: bool = False,
) -> Callable[[Variables, Key, Sample], tuple[SearchResult, Image, Any]]:
  """The search of an `attack`, and the images.

  All images of a program run through the same compiled code.

  Args:
    reconstruct: as in `attack`.
    perturbation: as in `attack`.
    search: as in `attack`.
    objective: as in `attack`.
    surrogate: as in `attack`.
    clean: whether the image without perturbation is wanted.

  Returns:
    `(variables, key, sample) -> (result, adversarial image, clean image)`, the last
    `None` if it is not wanted.
  """

  def run(variables, key, sample):
    if surrogate is None and isinstance(search, Exploring):

      def evaluate(delta, perturbed):
        delta = _upwards(delta)
        given = perturbation.apply(delta, sample)
        image = reconstruct(variables, pick(perturbed, given, sample))
        image = pick(perturbed, perturbation.align(delta, image), image)
        return objective(image, sample), image

      found, adversarial, last = search.explore(key, evaluate, *_bound(perturbation, sample), clean=clean)
      return found, adversarial, last if clean else None
    if isinstance(surrogate, Network):
      found = seek(surrogate.reconstruct, perturbation, search, objective)(surrogate.variables, key, sample)
    else:
      found = seek(surrogate or reconstruct, perturbation, search, objective)(variables, key, sample)
    perturbed = perturbation.apply(found.delta, sample)
    if not clean:
      return found, perturbation.align(found.delta, reconstruct(variables, perturbed)), None
    both = jax.tree.map(lambda *x: jnp.stack(x), sample, perturbed)
    unchanged, attacked = lax.map(lambda s: reconstruct(variables, s), both)
    return found, perturbation.align(found.delta, attacked), unchanged

  return run


def _bound(perturbation, sample):
  return lambda key: perturbation.init(key, sample), lambda delta: perturbation.project(delta, sample)


def pick(condition: AnyArray, new: Any, old: Any) -> Any:
  """Leaves of `new` where the condition holds, else of `old`; what both share stays as it is."""
  return jax.tree.map(lambda a, b: a if a is b else jnp.where(condition, a, b), new, old)


def seek(
  reconstruct: Reconstructor, perturbation: Perturbation, search: Search, objective: Objective
) -> Callable[[Variables, Key, Sample], SearchResult]:
  """The search of an `attack` alone, without the reconstructions before and after.

  Args:
    reconstruct: what the search looks at.
    perturbation: as in `attack`.
    search: as in `attack`.
    objective: as in `attack`.

  Returns:
    `(variables, key, sample) -> SearchResult`.
  """

  def run(variables, key, sample):
    def loss(delta):
      image = reconstruct(variables, perturbation.apply(delta, sample))
      return objective(perturbation.align(delta, image), sample)

    return search(key, ascending(loss), *_bound(perturbation, sample))

  return run


@jax.custom_vjp
def _conjugate_gradient(x):
  return x


_conjugate_gradient.defvjp(lambda x: (x, None), lambda _, g: (jnp.conj(g),))


def _upwards(delta):
  """The same delta, whose gradient is the direction of steepest ascent."""
  return jax.tree.map(_conjugate_gradient, delta)


class _Ascending:
  def __init__(self, loss):
    self._loss = loss

  def __call__(self, delta):
    return self._loss(_upwards(delta))


def ascending(loss: Callable[[Delta], Scalar]) -> Callable[[Delta], Scalar]:
  """The same loss, whose gradient is the direction of steepest ascent.

  JAX's gradient with respect to a complex array is the conjugate of it. Searches
  receive losses of this kind, and need not know. Applied twice it does no more.

  Args:
    loss: of real or complex arrays.

  Returns:
    The loss; forward-mode derivatives of it are not defined.
  """
  return loss if isinstance(loss, _Ascending) else _Ascending(loss)


def starts_at_random(init: Callable[..., Delta], *arguments: Any) -> bool:
  """Whether a start depends on its key.

  Args:
    init: `(key, *arguments) -> delta`.
    *arguments: given to it.

  Returns:
    `False` if every key gives the same delta.
  """
  program = jax.make_jaxpr(init)(jax.random.key(0), *arguments).jaxpr
  used = {v for v in program.outvars if not hasattr(v, 'val')}
  for equation in reversed(program.eqns):
    if used.intersection(equation.outvars):
      used.update(v for v in equation.invars if not hasattr(v, 'val'))
  return program.invars[0] in used


def network_calls(search: Search, *, clean: bool = True) -> dict[str, int]:
  """Forward and backward network calls of `attack` with this search, per example.

  Args:
    search: of the attack, without a surrogate.
    clean: whether the image without perturbation is made too.
  """
  images = clean + (not isinstance(search, Exploring))
  return {'forward': search.forward_calls + search.backward_calls + images, 'backward': search.backward_calls}


def chunked(function: Callable[..., Any], arguments: tuple, *, chunk: int) -> Any:
  """`vmap` over the leading axis, at most `chunk` elements at a time, in one program.

  For the axes of an attack: strengths, angles, restarts, slices, regions.

  Args:
    function: takes one element of each of `arguments`.
    arguments: pytrees with a common leading axis.
    chunk: elements computed together; the memory needed grows with it.

  Returns:
    The stacked results.
  """
  if chunk < 1:
    raise ValueError(f'chunk: {chunk} is not positive; give at least 1')
  return lax.map(lambda args: function(*args), arguments, batch_size=chunk if chunk > 1 else None)


def evaluate(
  reconstruct: Reconstructor, perturbation: Perturbation, score: Callable[[Image, Sample], Any], *, chunk: int = 1
) -> Callable[[Variables, Sample, Delta], Any]:
  """Scores of given perturbations: the sensitivity of a network along a grid.

  Args:
    reconstruct: the network.
    perturbation: its `apply` and `align` are used; the deltas are not projected.
    score: `(aligned image, sample) -> pytree of scalars`.
    chunk: deltas computed together.

  Returns:
    `(variables, sample, deltas) -> scores`, with the leading axis of `deltas`.

  Reference:
    Morshuis et al. 2022, figure 4b.
  """

  def run(variables, sample, deltas):
    def one(delta):
      image = reconstruct(variables, perturbation.apply(delta, sample))
      return score(perturbation.align(delta, image), sample)

    return chunked(one, (deltas,), chunk=chunk)

  return run
