"""Witnesses: inputs that a scan could be, in which a structure came or went, and whose output hardly tells.

The attack engine turned round: instead of a small change of the input that moves
the output, a large change of the evidence in the input that leaves the output.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import lax
from jaxtyping import Float, Int

from jaxrec.types import AnyArray, Array, Image, Scalar

# Fixed before any network was judged by them: units are deviations of the evidence over scans.
FELL = 2.0
MOVED = 0.5

_Region: TypeAlias = Float[Array, ' pixel']
# In float32: cards and TPUs would take fewer digits, of which a test of half a unit needs some.
product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


@struct.dataclass
class Tests:
  """What decides about a sample x' of the input x, learnt from other patients but for the anatomy of the site.

  Attributes:
    before: `[pixel]`, template of the input; evidence of unit deviation.
    after: `[pixel]`, template of the output.
    absent: `[pixel]`, mean of the scans of this site without the structure.
    signal: `[pixel]`, the structure in the input.
    whiten: `[mode, pixel]`, `K^-1/2`: eigenvectors of the covariance of scans over their deviations.
    norms: `[2]`, between which the root mean square of whitened noise lies in 95% of scans.
    mode: `[]`, below which its largest mode lies in 95% of scans.
    spread: `[]`, below which 95% of the distances between outputs of two scans lie.
  """

  before: AnyArray
  after: AnyArray
  absent: AnyArray
  signal: AnyArray
  whiten: AnyArray
  norms: AnyArray
  mode: AnyArray
  spread: AnyArray


class Findings(NamedTuple):
  """Tests of one sample, `[]` each.

  `fell`: by how much the input evidence fell; `moved`: by how much the output
  evidence moved either way; `norm`, `mode`: of the sample's whitened noise;
  `away`: distance of f(x') from f(x) over that of two scans; `plausible`: the
  noise is one that scans have; `witness`: all of it together.
  """

  fell: Scalar
  moved: Scalar
  norm: Scalar
  mode: Scalar
  away: Scalar
  plausible: Array
  witness: Array


def examine(tests: Tests, x: _Region, seen: _Region, other: _Region, other_seen: _Region) -> Findings:
  """Judges a sample.

  The sample's noise is what it has beside the anatomy and the share of the
  structure, between none and all, that its own evidence says.

  Args:
    tests: see `Tests`.
    x: `[pixel]`, region of the input.
    seen: `[pixel]`, region of f(x).
    other: `[pixel]`, region of the sample x'.
    other_seen: `[pixel]`, region of f(x').

  Returns:
    The findings.
  """
  fell = product(tests.before, x - other)
  moved = jnp.abs(product(tests.after, other_seen - seen))
  rest = other - tests.absent
  share = jnp.clip(product(tests.before, rest) / product(tests.before, tests.signal), 0, 1)
  modes = product(tests.whiten, rest - share * tests.signal)
  norm, mode = jnp.sqrt(jnp.mean(modes**2)), jnp.max(jnp.abs(modes))
  # A network whose outputs never differ gives 1.
  away = jnp.sqrt(jnp.sum((other_seen - seen) ** 2) + 1e-20) / (tests.spread + 1e-10)
  plausible = (norm >= tests.norms[0]) & (norm <= tests.norms[1]) & (mode <= tests.mode)
  return Findings(fell, moved, norm, mode, away, plausible, (fell >= FELL) & (moved <= MOVED) & plausible & (away <= 1))


def search(
  network: Callable[[Image], Image], side: int, *, num_steps: int = 150, learning_rate: float = 0.05
) -> Callable[[Tests, Image, Array], tuple[Image, Findings]]:
  """Looks for a witness by gradient: the third way, which needs no generative model.

  Adam on the change in whitened units, from the input itself and from the input
  without the structure; what violates a test is penalised by its square, and every
  iterate that a gradient is taken at is judged by `examine`. A witness shows that the
  linear evidence in the output hardly moves, not that nothing else in it does; none
  found proves nothing.

  Args:
    network: f, `[row, col]` to the same.
    side: rows and columns that the observer sees and the search may change.
    num_steps: steps from each start.
    learning_rate: of Adam, in deviations of a mode.

  Returns:
    `(tests, x, corner) -> (x', findings)` with the first row and column of the region: the first witness, or else the sample with the
    smallest violation. One program; `2 num_steps` backward and `2 num_steps + 3` forward calls of f.

  Raises:
    ValueError: if there are no steps.
  """
  if num_steps < 1:
    raise ValueError(f'num_steps: {num_steps} is not positive')
  rule = optax.adam(learning_rate)

  def run(tests, x, corner):
    flat = cut(x, corner, side)
    seen = cut(network(x), corner, side)
    # The columns are the modes, each as large as in scans: the rows of `whiten` are orthogonal.
    colour = (tests.whiten / jnp.sum(tests.whiten**2, 1, keepdims=True)).T

    def put(region):
      return lax.dynamic_update_slice(x, region.reshape(side, side), tuple(corner))

    def examined(change):
      other = flat + product(colour, change)
      found = examine(tests, flat, seen, other, cut(network(put(other)), corner, side))
      over = jnp.stack([
        jax.nn.relu(FELL * 1.05 - found.fell), jax.nn.relu(found.moved - 0.9 * MOVED), jax.nn.relu(found.away - 0.98),
        10 * jax.nn.relu(found.norm - (tests.norms[1] - 0.005)), 10 * jax.nn.relu(tests.norms[0] + 0.005 - found.norm),
        jax.nn.relu(found.mode - 0.98 * tests.mode),
      ])  # fmt: skip
      return jnp.sum(over**2), found

    def step(state, _):
      change, moments, best = state
      (cost, found), gradient = jax.value_and_grad(examined, has_aux=True)(change)
      cost = jnp.where(found.witness, -1.0, cost)
      best = jax.tree.map(lambda new, old: jnp.where(cost < best[0], new, old), (cost, change, found), best)
      updates, moments = rule.update(gradient, moments)
      return (optax.apply_updates(change, updates), moments, best), None

    def start(change):
      cost, found = examined(change)
      best = jnp.where(found.witness, -1.0, cost), change, found
      return lax.scan(step, (change, rule.init(change), best), length=num_steps)[0][2]

    nothing = jnp.zeros(tests.whiten.shape[0], flat.dtype)
    first, second = start(nothing), start(-product(tests.whiten, tests.signal))
    _, change, found = jax.tree.map(lambda a, b: jnp.where(second[0] < first[0], b, a), first, second)
    return put(flat + product(colour, change)), found

  return run


def cut(image: Image, corner: Int[Array, '2'], side: int) -> _Region:
  """A square of an image `[row, col]` from `corner` on, `[pixel]`."""
  return lax.dynamic_slice(image, tuple(corner), (side, side)).ravel()


def limits(
  modes: Float[np.ndarray, 'scan mode'], outputs: Float[np.ndarray, 'site repeat pixel'], rng: np.random.Generator
) -> dict[str, np.ndarray]:
  """What 95% of scans pass, for `Tests`.

  Args:
    modes: `[scan, mode]`, whitened noise of scans of other patients.
    outputs: `[site, scan, pixel]`, outputs of scans of other patients.
    rng: of the pairs of scans.

  Returns:
    `norms`, `mode` and `spread`.
  """
  norms = np.sqrt(np.mean(modes**2, -1))
  count = outputs.shape[1]
  pairs = [
    (outputs[i, a], outputs[i, b])
    for i in range(len(outputs))
    for a, b in rng.permutation(count)[: count // 2 * 2].reshape(-1, 2)
  ]
  return dict(
    norms=np.quantile(norms, (0.025, 0.975)),
    mode=np.quantile(np.abs(modes).max(-1), 0.95),
    spread=np.quantile([np.linalg.norm(a - b) for a, b in pairs], 0.95),
  )
