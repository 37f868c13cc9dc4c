"""The XLA programs of an audit: one per network and sweep, and what a slice needs once."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrec import attacks, metrics, noise
from jaxrec.audit.plan import Sweep
from jaxrec.fourier import abs_squared, ifft2c, rss
from jaxrec.geometry import center_crop
from jaxrec.networks import Network
from jaxrec.types import AnyArray, Array, Delta, Image, Key, Reconstructor, Sample, Scan, Slice, Variables

_FEASIBLE = 1e-5  # Above what projections leave between a point and the border.


class Weights(NamedTuple):
  """Arguments of a program that are the same for all slices: variables of network, surrogate and start."""

  network: Variables
  surrogate: Variables
  start: Variables


def weights(network: Network, sweep: Sweep | None = None) -> Weights:
  """The weights that programs of a network and a sweep take."""
  surrogate = network.surrogate.variables if network.surrogate else None
  return Weights(network.variables, surrogate, sweep.start.variables if sweep and sweep.start else None)


def shapes(network: Network, sweep: Sweep, sample: Sample, count: int, places: int = 2) -> tuple[Any, ...]:
  """Shapes of the arguments of the program of a sweep, for memory and work that are asked for before it runs.

  Args:
    network: whom it attacks; its variables may be shapes.
    sweep: the attack.
    sample: of one slice, or its shapes.
    count: slices, or places of a search, together.
    places: of a slice, for a grid.
  """

  def lead(tree, *axes):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*axes, *np.shape(x)), x.dtype), tree)

  given, samples = lead(weights(network, sweep)), lead(sample, count)
  images = lead(jax.eval_shape(network.reconstruct, network.variables, lead(sample)), count)
  if sweep.is_grid:
    regions = lead(sample.region, count, places)
    return given, samples, regions, regions, images
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
  return given, keys, samples, samples.region, samples.region, images


@struct.dataclass
class Outcome:
  """What one sweep found at one place.

  Attributes:
    columns: of the rows, `[strengths]` each.
    adversarial: `[out_row, out_col]` at the largest strength, as is `control`.
    control: the fully sampled image under the same attack.
    trace: objective along the search at the largest strength, or of all points.
    curve: SSIM in the box of all points of a grid; else `None`.
    feasible: `[strengths]`, whether a grid has a point that is allowed; else `None`.
  """

  columns: dict[str, AnyArray]
  adversarial: AnyArray
  control: AnyArray
  trace: AnyArray
  curve: AnyArray | None = None
  feasible: AnyArray | None = None


def clean(network: Network) -> Callable[[Weights, Sample], tuple[Image, dict[str, Array]]]:
  """Program of a batch of slices: clean reconstructions, and columns that no attack changes."""

  def one(given, sample):
    extra = {}
    if isinstance(sample, Scan):
      # The corners of k-space hold signal of small matrices: there they say too much.
      for name, sigma in (('', noise.sigma_from_background), ('_corners', noise.sigma_from_kspace)):
        extra[f'thermal_eta{name}'] = jnp.sqrt(jnp.mean(noise.thermal_eta(sigma(sample), sample) ** 2))
    return network.reconstruct(given.network, sample), extra

  return jax.vmap(one, (None, 0))


def by_search(
  network: Network, sweep: Sweep, chunk: int
) -> Callable[[Weights, Key, Sample, Array, Array, Image], Outcome]:
  """Program of a batch of places: every strength is searched on its own.

  Args:
    network: whom it attacks.
    sweep: the attack.
    chunk: strengths computed together.

  Returns:
    `(weights, keys, samples, regions, boxes, clean images) -> Outcome`, with a
    leading axis of places.
  """

  def seen(given):
    return network.surrogate and dataclasses.replace(network.surrogate, variables=given.surrogate)

  def one(given, key, sample, region, box, image):
    sample = metrics.own_reference(image, sample).replace(region=box)
    aimed = sample.replace(region=region)

    def at(strength):
      perturbation = _started(sweep, strength, given.start)
      found, attacked, _ = attacks.seek_image(
        network.reconstruct, perturbation, sweep.search, sweep.objective, surrogate=seen(given)
      )(given.network, key, aimed)
      perturbed = perturbation.apply(found.delta, aimed)
      change = _change(perturbed, sample)
      # Another program made the clean image: what is not perturbed shall not differ by a rounding.
      attacked = jnp.where(_changed(perturbed, aimed, change > 0), attacked, image)
      relative = _relative(change, sample)
      columns = _scores(image, sample, 'clean') | _scores(attacked, sample, 'adv')
      columns |= {
        'objective_clean': sweep.objective(image, aimed),
        'objective_adv': sweep.objective(attacked, aimed),
        'delta': relative if sweep.declared.unit == 'relative' else _largest(found.delta),
        'budget_used': perturbation.budget(found.delta, aimed),
      }
      control = _control(perturbation, found.delta, perturbed, sample)
      return columns, center_crop(attacked, sample.target.shape), control, found.trace

    columns, attacked, control, trace = attacks.chunked(
      at, (jnp.asarray(sweep.strengths, sample.scale.dtype),), chunk=chunk
    )
    return Outcome(columns, attacked[-1], control[-1], trace[-1])

  return jax.vmap(one, (None, 0, 0, 0, 0, 0))


def by_grid(network: Network, sweep: Sweep, chunk: int) -> Callable[[Weights, Sample, Array, Array, Image], Outcome]:
  """Program of a batch of slices: the points of a grid, evaluated once for all places and strengths.

  Args:
    network: whom it attacks.
    sweep: with a `grid` as search.
    chunk: points computed together.

  Returns:
    `(weights, samples, regions, boxes, clean images) -> Outcome`, regions and
    boxes `[slice, place, row, col]`, outcomes with leading axes of slices and places.
  """

  def one(given, sample, regions, boxes, image):
    sample = metrics.own_reference(image, sample)
    points = jax.tree.map(jnp.asarray, sweep.points)
    widest = sweep.at(sweep.strengths[-1])

    def score(image, region, box):
      aimed = sample.replace(region=region)
      return _scores(image, sample.replace(region=box), '') | {'objective': sweep.objective(image, aimed)}

    everywhere = jax.vmap(score, (None, 0, 0))

    def at(point):
      perturbed = widest.apply(point, sample)
      attacked = widest.align(point, network.reconstruct(given.network, perturbed))
      scores = everywhere(attacked, regions, boxes)
      seen = scores['objective']
      if network.surrogate:
        other = widest.align(point, network.surrogate.reconstruct(given.surrogate, perturbed))
        seen = everywhere(other, regions, boxes)['objective']
      return scores, seen, center_crop(attacked, sample.target.shape)

    along, seen, images = attacks.chunked(at, (points,), chunk=chunk)
    clean = (
      {k: v[zero] for k, v in along.items()}
      if (zero := _zero_of(sweep.points)) is not None
      else everywhere(image, regions, boxes)
    )
    allowed = jnp.stack([_feasible(sweep.at(s), points, sample) for s in sweep.strengths])

    def place(along, seen, clean):
      worst = jnp.argmax(jnp.where(allowed & ~jnp.isnan(seen), seen, -jnp.inf), 1)
      found = jax.tree.map(lambda x: x[worst], points)
      columns = {f'{k}_adv': v[worst] for k, v in along.items()}
      columns |= {f'{k}_clean': jnp.broadcast_to(v, worst.shape) for k, v in clean.items()}
      amounts = numbers(found)
      if amounts is not None:
        columns['delta'] = amounts
      elif sweep.declared.unit == 'relative':
        columns['delta'] = jax.vmap(lambda p: _relative(_change(widest.apply(p, sample), sample), sample))(found)
      else:
        columns['delta'] = jax.vmap(_largest)(found)
      columns['budget_used'] = jnp.stack(
        [sweep.at(s).budget(jax.tree.map(lambda x: x[i], found), sample) for i, s in enumerate(sweep.strengths)]
      )
      most = jax.tree.map(lambda x: x[-1], found)
      control = _control(widest, most, widest.apply(most, sample), sample)
      return Outcome(columns, images[worst[-1]], control, along['objective'], along['ssim_region'], jnp.any(allowed, 1))

    return jax.vmap(place, (1, 1, 0))(along, seen, clean)

  return jax.vmap(one, (None, 0, 0, 0, 0))


def amplification(
  reconstruct: Reconstructor, sweep: Sweep, iterations: int
) -> Callable[[Weights, Key, Sample, Image], Array]:
  """Program of a batch of slices: relative change of the image per relative change of the measurement.

  Args:
    reconstruct: the network without its defence.
    sweep: its smallest strength says what may change.
    iterations: of `attacks.local_lipschitz`.

  Returns:
    `(weights, keys, samples, clean images) -> [slice]`.
  """
  smallest = sweep.strengths[0]
  amplify = attacks.local_lipschitz(reconstruct, sweep.at(smallest), num_iterations=iterations)

  def one(given, key, sample, image):
    sample = metrics.own_reference(image, sample)
    return amplify(given.network, key, sample).trace[-1] / (smallest * jnp.linalg.norm(sample.target))

  return jax.vmap(one, (None, 0, 0, 0))


def _started(sweep, strength, variables):
  perturbation = sweep.at(strength)
  if sweep.start is None:
    return perturbation
  return perturbation._replace(init=lambda key, sample: sweep.start.draw(variables, key, sample))


def _scores(image, sample, suffix):
  given = (image, sample.target, sample.scale)
  end = f'_{suffix}' if suffix else ''
  names = ('ssim', 'psnr', 'nmse')
  whole = {f'{name}_image{end}': getattr(metrics, name)(*given) for name in names}
  return whole | {f'{name}_region{end}': getattr(metrics, name)(*given, sample.region) for name in names}


def _measurement(sample):
  return sample.input if isinstance(sample, Slice) else sample.kspace


def _changed(perturbed, sample, change):
  """Whether there is a change, of the measurement or of anything else; what a perturbation leaves alone it hands on as it is."""
  for new, old in zip(jax.tree.leaves(perturbed), jax.tree.leaves(sample)):
    if new is not old and new is not _measurement(perturbed):
      change |= jnp.any(new != old)
  return change


def _change(perturbed, sample):
  """Energy of the change of the measurement."""
  return jnp.sum(abs_squared(_measurement(perturbed) - _measurement(sample)))


def _relative(change, sample):
  """Size of a change of this energy, as a share of the measurement."""
  return jnp.sqrt(change / jnp.sum(abs_squared(_measurement(sample))))


def _control(perturbation, delta, perturbed, sample):
  """The attacked but fully sampled image, aligned and cropped; of a slice, its target with the same change."""
  if isinstance(sample, Slice):
    return sample.target + perturbation.align(delta, perturbed.input) - sample.input
  image = rss(ifft2c(jnp.where(perturbed.acquired, perturbed.kspace, 0)))
  return center_crop(perturbation.align(delta, image), sample.target.shape)


def numbers(points: Delta) -> AnyArray | None:
  """Points that are one number each, `[point]`; `None` if they are more."""
  leaves = jax.tree.leaves(points)
  return leaves[0] if len(leaves) == 1 and np.ndim(leaves[0]) == 1 else None


def _largest(delta):
  return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(delta)]))


def _zero_of(points) -> int | None:
  sizes = sum(np.abs(np.asarray(leaf)).reshape(len(leaf), -1).sum(1) for leaf in jax.tree.leaves(points))
  return int(np.argmin(sizes)) if np.min(sizes) == 0 else None


def _feasible(perturbation, points, sample) -> Any:
  projected = jax.vmap(perturbation.project, (0, None))(points, sample)

  def unmoved(a, b):
    apart, size = (jnp.max(jnp.abs(x).reshape(len(a), -1), 1) for x in (a - b, a))
    return apart <= _FEASIBLE * size

  return jnp.all(jnp.stack(jax.tree.leaves(jax.tree.map(unmoved, points, projected))), 0)
