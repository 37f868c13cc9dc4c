"""Augmentation of scans by movements of the patient and thermal noise: k-space and target together."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec import noise
from jaxrec.attacks import Perturbation
from jaxrec.fourier import abs_squared, ifft2c, rss
from jaxrec.geometry import center_crop
from jaxrec.training.draws import Place, alone, of_examples
from jaxrec.training.tasks import Task
from jaxrec.types import Array, Key, Scalar, Scan

_BEND = 5.0


def augmented(
  task: Task, perturbation: Perturbation, *, probability: float, num_steps: int, place: Place = alone
) -> Task:
  """A task that moves the patient in a growing share of its training examples.

  In step i of n each example is moved with the probability
  `p (1 - exp(-5 i / n)) / (1 - exp(-5))`. Validation sees the examples as they are.

  Args:
    task: what is trained, on `Scan`s.
    perturbation: whose `init` draws a movement at random: `rotation`,
      `translation` or what `compose` makes of them.
    probability: p, at the end of the training.
    num_steps: n.
    place: see `tasks.supervised`.

  Returns:
    The task, of the same state.

  Reference:
    Fabian et al. 2021, MRAugment, equation (4) with the exponential schedule.
  """

  def change(state, key, scan):
    return move(key, scan, perturbation, probability * ramp(task.steps(state) / num_steps))

  return _changed(task, change, place)


def noisier(task: Task, etas: tuple[float, float], *, place: Place = alone) -> Task:
  """A task that adds thermal noise to its training examples, of a strength drawn anew each time.

  Validation sees the examples as they are.

  Args:
    task: what is trained, on `Scan`s.
    etas: least and largest strength, see `add_noise`.
    place: see `tasks.supervised`.

  Returns:
    The task, of the same state.
  """
  return _changed(task, lambda state, key, scan: add_noise(key, scan, etas), place)


def _changed(task, change, place):
  """A task that trains on `change(state, key, scan)` of its examples."""

  def step(state, batch, key):
    draw, rest = jax.random.split(key)
    keys = of_examples(draw, batch.target.shape[0], place)
    return task.step(state, jax.vmap(partial(change, state))(keys, batch), rest)

  return task._replace(step=step)


def ramp(share: Array | float) -> Array:
  """Share of the final probability after a share of the training: from 0 to 1, steep at first."""
  return (1 - jnp.exp(-_BEND * share)) / (1 - jnp.exp(-_BEND))


def move(key: Key, scan: Scan, perturbation: Perturbation, chance: Scalar | float) -> Scan:
  """A scan of the moved patient with some probability, or the scan as it is.

  The moved k-space is measured in the columns of the scan, and the target is the
  root sum of squares of what is measured then: both tell of one patient.

  Args:
    key: decides whether and how.
    scan: one scan.
    perturbation: whose `init` draws the movement.
    chance: `[]`, in [0, 1].

  Returns:
    A scan of the same shapes; bitwise the same for no movement. The sampling
    masks, the region and the data range are those of the scan.
  """
  whether, where = jax.random.split(key)
  delta = perturbation.init(where, scan)
  kspace = jnp.where(scan.acquired, perturbation.apply(delta, scan).kspace, 0)
  still = jnp.stack([jnp.all(part == 0) for part in jax.tree.leaves(delta)]).all()
  # A target that is not finite stays, so that the loop stops and names its file.
  return _measured_anew(scan, kspace, (jax.random.uniform(whether) < chance) & ~still)


def add_noise(key: Key, scan: Scan, etas: tuple[float, float]) -> Scan:
  """A scan with more thermal noise: white, the same in all coils, measured in all acquired columns.

  Its expected energy is `eta^2 ||k||^2`, of all coils together, as that of adversarial
  noise of radius eta; eta is drawn evenly in its logarithm.

  Args:
    key: decides how much, and draws.
    scan: one scan.
    etas: least and largest eta, both above 0.

  Returns:
    A scan of the same shapes, whose target is the root sum of squares of what is
    measured then; sampling masks, region and data range are those of the scan.
  """
  much, which = jax.random.split(key)
  low, high = jnp.log(jnp.asarray(etas, scan.target.dtype))
  eta = jnp.exp(jax.random.uniform(much, (), scan.target.dtype, low, high))
  coils, rows = scan.kspace.shape[:2]
  samples = coils * rows * jnp.sum(scan.acquired)
  sigma = eta * jnp.sqrt(jnp.sum(abs_squared(scan.kspace)) / (2 * samples))
  return _measured_anew(scan, scan.kspace + noise.draw(which, jnp.full(coils, sigma), scan), True)


def _measured_anew(scan, kspace, where):
  """The scan with another k-space and its target, or as it is."""
  target = center_crop(rss(ifft2c(kspace)), scan.target.shape)
  # A target that is not finite stays, so that the loop stops and names its file.
  where = where & jnp.isfinite(scan.target).all()
  return scan.replace(kspace=_chosen(where, kspace, scan.kspace), target=_chosen(where, target, scan.target))


def _chosen(where: Array, new: Any, old: Any) -> Array:
  return jnp.where(where, new.astype(old.dtype), old)
