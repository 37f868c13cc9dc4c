"""Sampling, its corrections and its yardsticks against a few lines of NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import invariances

RNG = np.random.default_rng(0)
W, A, B = (RNG.standard_normal(s).astype(np.float32) for s in ((2, 6), (6, 6), (6, 2)))
SHAPE = (2, 3)


def correct(x, seen, y, step=0.4):
  """A step that is too long for some directions: not every correction comes closer."""
  return x + (step * W.T @ (y - seen)).reshape(SHAPE)


SAMPLER = invariances.Sampler(
  observe=lambda _, x: W @ x.ravel(),
  encode=lambda _, key, x, y: 0.5 * x.ravel() + jax.random.normal(key, (6,)),
  decode=lambda _, z, y: z.reshape(SHAPE) + y[0],
  forward=lambda _, z, y: z,
  inverse=lambda _, v, y: A @ v + B @ y,
  latent=6,
  correct=lambda _, x, seen, y: correct(x, seen, y),
)


def away(y, seen):
  return np.linalg.norm(y - seen) / np.linalg.norm(y)


def drawn(v, y, corrections):
  """The sample that is kept, and the one before any correction."""
  first = (A @ v + B @ y).reshape(SHAPE) + y[0]
  path = [first]
  for _ in range(corrections):
    path.append(correct(path[-1], W @ path[-1].ravel(), y))
  return min(path, key=lambda x: away(y, W @ x.ravel())), first


def close(found, wanted):
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope='module')
def image():
  return np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)


def sampled(image, **options):
  return invariances.sample(SAMPLER, num_samples=7, chunk=3, **options)(None, jax.random.key(0), jnp.asarray(image))


@pytest.mark.parametrize('corrections', [0, 1, 4])
def test_samples_are_the_closest_of_their_corrections(corrections, image):
  found = sampled(image, corrections=corrections)
  y = W @ image.ravel()
  close(found.output, y)
  for i, v in enumerate(np.asarray(found.noise)):
    kept, first = drawn(v, y, corrections)
    close(found.images[i], kept)
    close(found.drawn[i], first)
    close(found.outputs[i], W @ kept.ravel())
    close(found.drawn_outputs[i], W @ first.ravel())


def test_yardsticks_are_relative_distances_of_outputs(image):
  found = sampled(image, corrections=1)
  fresh, others = (
    np.random.default_rng(s).standard_normal((n, *SHAPE)).astype(np.float32) for s, n in ((2, 5), (3, 9))
  )
  measured = invariances.consistency(SAMPLER, chunk=2, corrections=2)
  table = measured(None, jax.random.key(4), jnp.asarray(image), found, jnp.asarray(fresh), jnp.asarray(others))
  y, noise = np.asarray(found.output), np.asarray(found.noise)
  close(table.samples, [away(y, x) for x in np.asarray(found.outputs)])
  close(table.drawn, [away(y, x) for x in np.asarray(found.drawn_outputs)])
  close(table.fresh, [away(y, W @ x.ravel()) for x in fresh])
  # Samples for the outputs of others, with the noise of the samples over and over.
  wanted = [drawn(noise[i % 7], W @ x.ravel(), 2)[0] for i, x in enumerate(others)]
  close(table.mismatched, [away(y, W @ x.ravel()) for x in wanted])
  z = 0.5 * image.ravel() + np.asarray(jax.random.normal(jax.random.key(4), (6,)))
  close(table.reconstruction, away(y, W @ (z + y[0])))


def test_distance_is_over_all_leaves_and_that_of_nothing_is_its_size():
  a, b = ({'x': np.array([3.0, 0.0]), 'y': np.array(4.0)}, {'x': np.array([0.0, 0.0]), 'y': np.array(0.0)})
  close(invariances.distance(a, b), 1)
  close(invariances.distance(a, {'x': np.array([3.0, 5.0]), 'y': np.array(4.0)}), 1)
  close(invariances.distance(b, a), 5)


def test_spread_moments_and_ranks_are_those_of_numpy():
  images = np.random.default_rng(5).standard_normal((6, 2, 3)).astype(np.float32)
  close(invariances.diversity(images), images.std(0, ddof=1))
  order = np.asarray(invariances.rank(images, images[2]))
  assert list(order) == sorted(range(6), key=lambda i: -np.abs(images[i] - images[2]).mean()) and order[-1] == 2
  v = np.random.default_rng(6).standard_normal((40, 3)) @ np.array([[1, 0.5, 0], [0, 1, 0], [0, 0, 2]]) + [0, 1, 2]
  found = invariances.noise_moments(jnp.asarray(v))
  close(found.mean, v.mean(0))
  close(found.std, v.std(0, ddof=1))
  between = np.corrcoef(v.T)[np.triu_indices(3, 1)]
  close(found.correlation, np.sqrt((between**2).mean()))
  close(found.level, 1 / np.sqrt(39))
