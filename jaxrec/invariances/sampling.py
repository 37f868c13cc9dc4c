"""Inputs that share an output: drawing them, and checking that they do."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Float, Int

from jaxrec.invariances.witness import product
from jaxrec.types import AnyArray, Array, Image, Key, Scalar, Variables


class Sampler(NamedTuple):
  """The functions that sampling needs, each for one example.

  Attributes:
    observe: `(variables, image) -> y`, the network's output or a tapped layer.
    encode: `(variables, key, image, y) -> z`, a posterior sample.
    decode: `(variables, z, y) -> image`.
    forward: `(variables, z, y) -> v`, the flow.
    inverse: `(variables, v, y) -> z`.
    latent: length of z and v.
    correct: `(variables, image, seen, y) -> image`, a step that brings the image's
      output from `seen` closer to y; `image + y - seen` for denoisers.
  """

  observe: Callable[[Variables, Image], Any]
  encode: Callable[[Variables, Key, Image, Any], Array]
  decode: Callable[[Variables, Array, Any], Image]
  forward: Callable[[Variables, Array, Any], Array]
  inverse: Callable[[Variables, Array, Any], Array]
  latent: int
  correct: Callable[[Variables, Image, Any, Any], Image] | None = None


@struct.dataclass
class Invariances:
  """Samples of the inputs that share an output.

  Attributes:
    images: `[sample, row, col]`.
    outputs: `[sample, ...]`, y of every image.
    drawn: `[sample, row, col]`, the same before any correction, as in the papers.
    drawn_outputs: `[sample, ...]`, y of those.
    noise: `[sample, latent]`, the v of every image.
    output: y of the input.
  """

  images: AnyArray
  outputs: Any
  drawn: AnyArray
  drawn_outputs: Any
  noise: AnyArray
  output: Any


def sample(
  sampler: Sampler, *, num_samples: int = 250, chunk: int = 25, corrections: int = 0
) -> Callable[[Variables, Key, Image], Invariances]:
  """Samples inputs with the same output as an image.

  The same key gives the same noise for every layer and network, so that their
  samples can be compared one by one.

  Args:
    sampler: autoencoder, flow and network.
    num_samples: images to draw.
    chunk: images computed together; the memory needed grows with it.
    corrections: steps `x' <- x' + f(x) - f(x')` after decoding, of which the
      closest image is kept (van Cittert's iteration; not in the papers). They change
      the whole input, which is then judged as a whole.

  Returns:
    `(variables, key, image) -> Invariances`, one program without host code.

  Raises:
    ValueError: if an option is not positive.

  Reference:
    Rombach et al. 2020, equation (6); Eulig et al. 2022.
  """
  if num_samples < 1 or chunk < 1:
    raise ValueError(f'num_samples, chunk: {num_samples}, {chunk} are not both positive')
  draw = _drawer(sampler, corrections)

  def run(variables, key, image):
    output = sampler.observe(variables, image)
    noise = jax.random.normal(key, (num_samples, sampler.latent), image.dtype)
    return Invariances(*lax.map(lambda v: draw(variables, v, output), noise, batch_size=chunk), noise, output)

  return run


def _drawer(sampler, corrections):
  if corrections < 0 or (corrections and sampler.correct is None):
    raise ValueError(f'corrections: {corrections} is negative, or the sampler has no correct')

  def draw(variables, v, output):
    drawn = sampler.decode(variables, sampler.inverse(variables, v, output), output)
    first = sampler.observe(variables, drawn)

    def closer(state, _):
      (image, seen), best = state
      image = sampler.correct(variables, image, seen, output)
      seen = sampler.observe(variables, image)
      away = distance(output, seen)
      best = jax.tree.map(lambda new, old: jnp.where(away < best[2], new, old), (image, seen, away), best)
      return ((image, seen), best), None

    image, seen = drawn, first
    if corrections:
      (_, (image, seen, _)), _ = lax.scan(
        closer, ((drawn, first), (drawn, first, distance(output, first))), length=corrections
      )
    return image, seen, drawn, first

  return draw


@struct.dataclass
class Consistency:
  """How far outputs are from the output of the input, `[...]` each, relative to its size.

  Attributes:
    samples: `[sample]`, the sampled inputs; their median over that of `fresh` is the invariance gap.
    drawn: `[sample]`, the same before any correction.
    fresh: `[repeat]`, new noise on the same anatomy.
    mismatched: `[other]`, samples made for other images' outputs.
    reconstruction: `[]`, the autoencoder's own reconstruction of the input.
  """

  samples: AnyArray
  drawn: AnyArray
  fresh: AnyArray
  mismatched: AnyArray
  reconstruction: AnyArray


def distance(output: Any, other: Any) -> Scalar:
  """`||a - b|| / ||a||` over all leaves, `[]`."""
  top = sum(jnp.sum((a - b) ** 2) for a, b in zip(jax.tree.leaves(output), jax.tree.leaves(other)))
  bottom = sum(jnp.sum(a**2) for a in jax.tree.leaves(output))
  return jnp.sqrt(top / jnp.where(bottom > 0, bottom, 1))


def consistency(
  sampler: Sampler, *, chunk: int = 25, corrections: int = 0
) -> Callable[[Variables, Key, Image, Invariances, Array, Array], Consistency]:
  """Whether the samples of an image really share its output, against three yardsticks.

  Args:
    sampler: autoencoder, flow and network.
    chunk: images computed together.
    corrections: of mismatched samples, towards the outputs they are made for.

  Returns:
    `(variables, key, image, invariances, fresh, others) -> Consistency` with
    `fresh` `[repeat, row, col]`, the same anatomy under new noise, and `others`
    `[other, row, col]`, images of other anatomy.
  """
  draw = _drawer(sampler, corrections)

  def run(variables, key, image, found, fresh, others):
    def observe(x):
      return sampler.observe(variables, x)

    def away(y):
      return distance(found.output, y)

    def mismatched(pair):
      v, x = pair
      return distance(found.output, draw(variables, v, observe(x))[1])

    noise = found.noise[jnp.arange(others.shape[0]) % found.noise.shape[0]]
    z = sampler.encode(variables, key, image, found.output)
    return Consistency(
      samples=jax.vmap(away)(found.outputs),
      drawn=jax.vmap(away)(found.drawn_outputs),
      fresh=lax.map(lambda x: away(observe(x)), fresh, batch_size=chunk),
      mismatched=lax.map(mismatched, (noise, others), batch_size=chunk),
      reconstruction=away(observe(sampler.decode(variables, z, found.output))),
    )

  return run


def diversity(images: Float[Array, 'sample ...']) -> Float[Array, '...']:
  """Standard deviation over samples, `[sample, ...]` to `[...]`."""
  return jnp.std(images, axis=0, ddof=1)


@struct.dataclass
class Moments:
  """Whether noise is standard normal: over examples, per entry of v.

  Attributes:
    mean: `[latent]`.
    std: `[latent]`.
    correlation: `[]`, root mean square of the correlations between entries.
    level: `[]`, what that is for independent entries and this many examples.
  """

  mean: AnyArray
  std: AnyArray
  correlation: AnyArray
  level: AnyArray


def noise_moments(v: Float[Array, 'example latent']) -> Moments:
  """Moments of `t(z | f(x))` over held-out examples, `[example, latent]`.

  A fitted flow gives mean 0, standard deviation 1 and no correlation.
  """
  count, latent = v.shape
  mean, std = jnp.mean(v, 0), jnp.std(v, 0, ddof=1)
  unit = (v - mean) / jnp.where(std > 0, std, 1)
  correlations = product(unit.T, unit) / (count - 1)
  away = correlations - jnp.diag(jnp.diag(correlations))
  return Moments(
    mean, std, jnp.sqrt(jnp.sum(away**2) / (latent * (latent - 1))), jnp.sqrt(1 / jnp.asarray(count - 1, v.dtype))
  )


def rank(images: Float[Array, 'sample row col'], reference: Image) -> Int[Array, ' sample']:
  """Samples by their mean absolute difference from a reference, largest first.

  Args:
    images: `[sample, row, col]`.
    reference: `[row, col]`.

  Returns:
    `[sample]` indices.

  Reference:
    Eulig et al. 2022, pixel-wise mean absolute difference.
  """
  return jnp.argsort(-jnp.mean(jnp.abs(images - reference), (1, 2)))
