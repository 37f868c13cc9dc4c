"""Defences that wrap a reconstructor, and what an attack that sees them looks at."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxrec.attacks.perturbations import coil_noise
from jaxrec.attacks.searches import pgd
from jaxrec.fourier import abs_squared
from jaxrec.types import Array, Reconstructor, Scan, Variables


def expectation(reconstructors: Sequence[Reconstructor]) -> Reconstructor:
  """Mean image of several draws of a randomised network.

  An attack that differentiates the mean sees the randomness in expectation.

  Args:
    reconstructors: the same network with different random seeds.

  Returns:
    A reconstructor.

  Reference:
    Athalye et al. 2018, expectation over transformation.
  """

  def reconstruct(variables, sample):
    return sum(f(variables, sample) for f in reconstructors) / len(reconstructors)

  return reconstruct


def cyclic(
  reconstruct: Reconstructor,
  complete: Callable[[Variables, Scan], Array],
  *,
  relative_radius: float,
  num_steps: int = 5,
  shifts: Sequence[int] = (1, 2),
) -> Reconstructor:
  """Mitigation without training by cyclic measurement consistency.

  The network completes the k-space; other lines of it are taken as if measured
  and completed again; the cycle must return to the measurement. The correction
  `r` with `||r_i|| <= eta ||k_i||` that closes the cycle best is added:
  `min_r sum_D ||M_O c(M_D c(k + r)) - (k + r)||^2 / ||k||^2`. The gradient of an
  attack passes through this search.

  Args:
    reconstruct: the network.
    complete: `(variables, scan) -> [coil, row, col]`, its completed k-space.
    relative_radius: eta of the correction; that of the expected attack.
    num_steps: gradient steps of the correction.
    shifts: columns by which the sampled lines are moved to give other masks.

  Returns:
    A reconstructor of `Scan`.

  Raises:
    ValueError: if an option is out of range.

  Reference:
    Saberi, Alcalar and Akcakaya 2025, Training-free mitigation of adversarial
    attacks on deep learning-based MRI reconstruction.
  """
  if not shifts:
    raise ValueError('defence.shifts: is empty; give at least one')
  noise, search = coil_noise(relative_radius, columns='sampled'), pgd(num_steps=num_steps)

  def run(variables, scan):
    # The bound of the correction, too, knows the measurement only.
    scan = scan.replace(kspace=jnp.where(scan.mask, scan.kspace, 0))
    energy = jnp.sum(abs_squared(scan.kspace))

    def cycle(r):
      measured = noise.apply(r, scan)
      first = complete(variables, measured)
      total = 0
      for shift in shifts:
        other = scan.acs | (jnp.roll(scan.mask, shift, -1) & scan.acquired)
        back = complete(variables, scan.replace(kspace=first, mask=other))
        total += jnp.sum(abs_squared(jnp.where(scan.mask, back - measured.kspace, 0)))
      return -total / (jnp.where(energy > 0, energy, 1) * len(shifts))

    found = search(jax.random.key(0), cycle, lambda key: noise.init(key, scan), lambda r: noise.project(r, scan))
    return reconstruct(variables, noise.apply(found.delta, scan))

  return run
