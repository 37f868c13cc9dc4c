"""Sampling what a network ignores, where the truth is known: linear networks and Gaussian images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrec
from jaxrec import invariances, models, training

pytestmark = pytest.mark.slow
SHAPE, SEEN = (2, 3), 2
ROOT = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
SIGMA = ROOT @ ROOT.T
NETWORK = np.random.default_rng(1).standard_normal((SEEN, 6)).astype(np.float32)


BLUR = 0.2
GAIN = SIGMA @ NETWORK.T @ np.linalg.inv(NETWORK @ SIGMA @ NETWORK.T)
CONDITIONAL = SIGMA - GAIN @ NETWORK @ SIGMA + BLUR**2 * np.eye(6)


def observe(variables, image):
  return (NETWORK @ image.reshape(-1))[None, :]


def images(key, count):
  return (jax.random.normal(key, (count, 6)) @ ROOT.T).reshape(count, *SHAPE)


def codes(key, batch):
  """The identity stands for the autoencoder, with a posterior of standard deviation `BLUR`."""
  first, second = jax.random.split(key)
  drawn = images(first, batch.shape[0])
  return drawn.reshape(-1, 6) + BLUR * jax.random.normal(second, (batch.shape[0], 6)), jax.vmap(
    lambda x: observe(None, x)
  )(drawn)


@pytest.fixture(scope='module')
def fitted():
  module = models.build('cinn', blocks=3, hidden=32, depth=0, embedding=4)
  task = training.flow(module, training.optimizer('adam', training.schedule(3e-3, 3000, drop_at=0.5)), codes)
  like = jnp.zeros((256,))
  state = task.init(jax.random.key(0), like)

  @jax.jit
  def train(state):
    return jax.lax.scan(lambda s, key: task.step(s, like, key), state, jax.random.split(jax.random.key(1), 2000))

  state, metrics = train(state)
  assert float(metrics['loss'][-100:].mean()) < float(metrics['loss'][:20].mean())
  sampler = invariances.Sampler(
    observe=observe,
    encode=lambda variables, key, image, y: image.reshape(-1),
    decode=lambda variables, z, y: z.reshape(SHAPE),
    forward=lambda variables, z, y: module.apply(variables, z[None], y[None])[0][0],
    inverse=lambda variables, v, y: module.apply(variables, v[None], y[None], reverse=True)[0][0],
    latent=6,
  )
  return module, state.variables, sampler


def test_samples_have_the_conditional_distribution(fitted):
  _, variables, sampler = fitted
  draw = jax.jit(invariances.sample(sampler, num_samples=4000, chunk=500))
  for seed in range(3):
    x = images(jax.random.key(100 + seed), 1)[0]
    found = draw(variables, jax.random.key(seed), x)
    flat = np.asarray(found.images).reshape(-1, 6)
    mean = GAIN @ NETWORK @ np.asarray(x).reshape(-1)
    assert np.linalg.norm(flat.mean(0) - mean) < 0.1 * np.sqrt(np.trace(CONDITIONAL))
    assert np.linalg.norm(np.cov(flat.T) - CONDITIONAL) < 0.15 * np.linalg.norm(CONDITIONAL)


def test_likelihood_beats_a_gaussian_and_needs_its_condition(fitted):
  module, variables, _ = fitted
  z, y = codes(jax.random.key(7), jnp.zeros((4000,)))

  def nll(z, y):
    v, logdet = jax.jit(module.apply)(variables, z, y)
    return float(jnp.mean(0.5 * jnp.sum(v**2, -1) - logdet))

  gaussian, best = (0.5 * np.linalg.slogdet(c)[1] + 3 for c in (SIGMA + BLUR**2 * np.eye(6), CONDITIONAL))
  assert best - 0.1 < nll(z, y) < best + 0.2
  assert nll(z, y) < gaussian - 0.5
  assert nll(z, y[::-1]) > gaussian


def test_noise_of_held_out_images_is_standard_normal(fitted):
  module, variables, _ = fitted
  z, y = codes(jax.random.key(8), jnp.zeros((4000,)))
  found = invariances.noise_moments(jax.jit(module.apply)(variables, z, y)[0])
  assert float(jnp.max(jnp.abs(found.mean))) < 0.15
  assert float(jnp.max(jnp.abs(found.std - 1))) < 0.2
  assert float(found.correlation) < 0.1
  # Codes that were not passed through the flow fail the same checks.
  raw = invariances.noise_moments(z)
  assert float(jnp.max(jnp.abs(raw.std - 1))) > 0.5


def test_samples_share_the_output_and_mismatched_conditions_do_not(fitted):
  _, variables, sampler = fitted
  x, *others = images(jax.random.key(9), 9)
  found = jax.jit(invariances.sample(sampler, num_samples=100, chunk=30))(variables, jax.random.key(0), x)
  fresh = x + jax.random.normal(jax.random.key(2), (20, *SHAPE))
  away = jax.jit(invariances.consistency(sampler, chunk=7))(
    variables, jax.random.key(1), x, found, fresh, jnp.stack(others)
  )
  # Codes are blurred by `BLUR` in every direction, fresh noise has deviation 1.
  assert abs(float(jnp.median(away.samples) / jnp.median(away.fresh)) - BLUR) < 0.1
  assert float(jnp.median(away.mismatched)) > 5 * float(jnp.median(away.samples))
  assert float(away.reconstruction) < 1e-6
  # What the network sees does not vary, what it ignores does.
  spread = invariances.diversity(found.images)
  assert float(jnp.max(spread)) > 0.5
  order = invariances.rank(found.images, x)
  differences = jnp.mean(jnp.abs(found.images - x), (1, 2))[order]
  assert bool(jnp.all(jnp.diff(differences) <= 0))


def test_sampling_is_one_program_whatever_the_chunk(fitted):
  _, variables, sampler = fitted
  x = images(jax.random.key(3), 1)[0]
  first, second = (
    jax.jit(invariances.sample(sampler, num_samples=10, chunk=c))(variables, jax.random.key(0), x) for c in (3, 10)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), first, second)
  # The same key gives the same noise to every network.
  other = sampler._replace(observe=lambda variables, image: image.reshape(-1)[:2][None])
  third = jax.jit(jaxrec.invariances.sample(other, num_samples=10))(variables, jax.random.key(0), x)
  np.testing.assert_array_equal(third.noise, second.noise)
  with pytest.raises(ValueError, match='num_samples, chunk: 0'):
    invariances.sample(sampler, num_samples=0)
