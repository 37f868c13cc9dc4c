"""Augmentation of scans by movements of the patient: k-space and target together."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.attacks import Perturbation
from jaxrec.fourier import ifft2c, rss
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

  def step(state, batch, key):
    draw, rest = jax.random.split(key)
    chance = probability * ramp(task.steps(state) / num_steps)
    keys = of_examples(draw, batch.target.shape[0], place)
    moved = jax.vmap(lambda key, scan: move(key, scan, perturbation, chance))(keys, batch)
    return task.step(state, moved, rest)

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
  target = center_crop(rss(ifft2c(kspace)), scan.target.shape)
  still = jnp.stack([jnp.all(part == 0) for part in jax.tree.leaves(delta)]).all()
  # A target that is not finite stays, so that the loop stops and names its file.
  moves = (jax.random.uniform(whether) < chance) & ~still & jnp.isfinite(scan.target).all()
  return scan.replace(kspace=_chosen(moves, kspace, scan.kspace), target=_chosen(moves, target, scan.target))


def _chosen(moves: Array, new: Any, old: Any) -> Array:
  return jnp.where(moves, new.astype(old.dtype), old)
