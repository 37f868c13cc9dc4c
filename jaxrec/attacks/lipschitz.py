"""How far a network can amplify a small change: local Lipschitz constants."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxrec.attacks.core import Perturbation
from jaxrec.attacks.searches import farthest
from jaxrec.fourier import abs_squared, safe_sqrt
from jaxrec.geometry import center_crop
from jaxrec.types import AnyArray, Delta, Key, Reconstructor, Sample, Variables


@struct.dataclass
class Amplification:
  """The change of the measurement that a linearised network amplifies most.

  Attributes:
    gain: `[]` norm of the change of the image over the norm of delta; for a
      single l2 ball the largest singular value of the Jacobian.
    change: `[row, col]` change of the image, to first order, for `delta`.
    delta: the change, on the border of the feasible set.
    trace: `[num_iterations]` norm of the change of the image.
  """

  gain: AnyArray
  change: AnyArray
  delta: Delta
  trace: AnyArray


def local_lipschitz(
  reconstruct: Reconstructor, perturbation: Perturbation, *, num_iterations: int = 20
) -> Callable[[Variables, Key, Sample], Amplification]:
  """Largest first-order change of an image over a feasible set.

  `max_delta ||J delta||_2` with J the Jacobian of the (centre-cropped) image at
  delta = 0, by `delta <- argmax_d <d, J^T J delta>` over the feasible set: power
  iteration for one l2 ball, its generalisation for one ball per coil. J and its
  transpose are applied without being formed.

  Args:
    reconstruct: the network.
    perturbation: its `project` says what may change, such as `coil_noise(0.02)`.
    num_iterations: products with J and with its transpose.

  Returns:
    `(variables, key, sample) -> Amplification`.

  Raises:
    ValueError: if `num_iterations` is not positive.

  Reference:
    Journee et al. 2010, generalised power method.

  Example:
    >>> import jax, jaxrec
    >>> from jaxrec.data import synthetic
    >>> scan = synthetic.scan(0, rows=32, cols=32, coils=2)
    >>> def zero_filled(variables, scan):
    ...   return jaxrec.fourier.rss(jaxrec.fourier.ifft2c(scan.kspace * scan.mask))
    >>> found = jaxrec.attacks.local_lipschitz(zero_filled, jaxrec.coil_noise(0.01))(None, jax.random.key(0), scan)
    >>> bool(found.gain < 1.001)  # an RSS of unitary transforms amplifies nothing
    True
  """
  if num_iterations < 1:
    raise ValueError(f'num_iterations: {num_iterations} is not positive; give at least 1')

  def run(variables, key, sample):
    start = jax.tree.map(jnp.zeros_like, jax.eval_shape(perturbation.init, key, sample))

    def image(delta):
      seen = reconstruct(variables, perturbation.apply(delta, sample))
      return center_crop(perturbation.align(delta, seen), sample.target.shape)

    here, pull = jax.vjp(image, start)
    _, pull_twice = jax.vjp(lambda u: pull(u)[0], here)

    def steepest(u):
      return farthest(jax.tree.map(jnp.conj, pull(u)[0]), lambda d: perturbation.project(d, sample))

    def body(delta, _):
      (change,) = pull_twice(delta)
      return steepest(change), _norm(change)

    first = steepest(jax.random.normal(key, here.shape, here.dtype))
    delta, trace = lax.scan(body, first, None, length=num_iterations)
    (change,) = pull_twice(delta)
    size = safe_sqrt(sum(jnp.sum(abs_squared(leaf)) for leaf in jax.tree.leaves(delta)))
    return Amplification(_norm(change) / jnp.where(size > 0, size, 1), change, delta, trace)

  return run


def _norm(x):
  return safe_sqrt(jnp.sum(x * x))
