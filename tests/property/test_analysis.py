"""Analysis A and the corrections of samples, where the truth is known: discs in noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxrec import geometry, invariances

SHAPE = (32, 40)


def noise(seed, count, sigma=1.0):
  white = np.random.default_rng(seed).standard_normal((count, *SHAPE))
  return (ndimage.gaussian_filter(white, (0, 0.6, 0.6)) * sigma).astype(np.float32)


ANATOMY = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(SHAPE), 3).astype(np.float32) * 20
DISC = geometry.soft_disc(SHAPE, (12.3, 20.6), 4.0)
excess = jax.jit(lambda images, reference: invariances.excess_variation(images, reference, scales=(1.0,)))


def test_band_pass_is_that_of_scipy():
  image = ANATOMY + noise(1, 1)[0]
  ours = invariances.band_pass(jnp.asarray(image), 1.6)
  theirs = ndimage.gaussian_filter(image, 1.6, truncate=3.2) - ndimage.gaussian_filter(image, 2.56, truncate=3.1)
  np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max())
  np.testing.assert_allclose(invariances.band_pass(jnp.full(SHAPE, 7.0), 1.0), 0, atol=1e-5)


def test_deviations_are_in_standard_deviations_of_the_reference():
  images, reference = ANATOMY + noise(4, 2), ANATOMY + noise(5, 4)
  found = np.asarray(invariances.deviations(images, reference, scales=(1.0,)))
  seen, base = (np.stack([invariances.band_pass(jnp.asarray(x), 1.0) for x in of]) for of in (images, reference))
  spread = np.sqrt(ndimage.gaussian_filter(base.var(0, ddof=1), 2.0, truncate=3.0))
  np.testing.assert_allclose(found[:, 0], (seen - base.mean(0)) / spread, atol=1e-3)


def test_noise_deviates_by_one():
  z = np.asarray(invariances.deviations(ANATOMY + noise(2, 40), ANATOMY + noise(3, 40), scales=(1.0, 2.0)))
  assert z.shape == (40, 2, *SHAPE)
  np.testing.assert_allclose(np.sqrt((z**2).mean((0, 2, 3))), 1, atol=0.1)


def largest(seed):
  """Over an input without a structure, whose samples are scans."""
  return float(excess(ANATOMY + noise(seed, 20), ANATOMY + noise(seed + 1000, 16)).max())


def test_a_structure_that_samples_lack_is_found_and_only_that():
  threshold = invariances.family_threshold(np.array([largest(100 + i) for i in range(20)]))
  assert np.mean([largest(200 + i) > threshold for i in range(20)]) <= 0.2
  images = ANATOMY + noise(5, 20)
  changing = images + (np.arange(20) % 2)[:, None, None] * 6 * DISC
  reference = ANATOMY + 6 * DISC + noise(6, 16)
  found = invariances.components(excess(changing, reference), threshold)
  assert found and found[0].mask[12, 20] and found[0].size == found[0].mask.sum()
  row, col, height, width = found[0].box
  assert row <= 12 < row + height and col <= 20 < col + width
  # Samples without it come first in the ranking.
  z = np.asarray(invariances.deviations(changing, reference, scales=(1.0,)))
  ranked = invariances.rank_by_component(z, threshold, found[0].mask)
  sizes = [c.size if c else 0 for _, c in ranked]
  assert sizes == sorted(sizes, reverse=True) and sizes[0] > 0
  assert np.mean([i % 2 for i, _ in ranked[:8]]) < 0.3
  assert ranked[0][1].peak < 0


def test_components_are_connected_regions():
  deviation = np.zeros((8, 8))
  deviation[1, 1] = deviation[2, 2] = 5
  deviation[6, 3:7] = -9
  found = invariances.components(deviation, 4)
  assert [(c.size, c.peak, c.box) for c in found] == [(4, -9, (6, 3, 1, 4)), (2, 5, (1, 1, 2, 2))]
  assert invariances.components(deviation, 10) == []


@pytest.mark.parametrize('count', [19, 20, 21, 30, 92, 1000])
@pytest.mark.parametrize('alpha', [0.05, 0.1])
def test_one_more_structure_free_input_crosses_with_the_probability_that_is_asked_for(count, alpha):
  """Each of n + 1 in turn against the others; one place less would be too many."""
  values = np.random.default_rng(0).permutation(count + 1) / count
  crossed = [v > invariances.family_threshold(np.delete(values, i), alpha=alpha) for i, v in enumerate(values)]
  assert alpha - 1 / (count + 1) < np.mean(crossed) <= alpha + 1e-12


def test_a_threshold_needs_enough_inputs():
  with pytest.raises(ValueError, match='needs at least 19 structure-free inputs, there are 3'):
    invariances.family_threshold(np.arange(3.0))


def test_a_correction_that_leads_away_is_not_taken():
  """x' + y - f(x') with f(x) = 2.5 x multiplies the error by -1.5."""
  sampler = invariances.Sampler(
    observe=lambda v, image: 2.5 * image, encode=None, forward=None, latent=4, decode=lambda v, z, y: z[None],
    inverse=lambda v, noise, y: noise, correct=lambda v, image, seen, y: image + y - seen,
  )  # fmt: skip
  found = jax.jit(invariances.sample(sampler, num_samples=4, chunk=2, corrections=3))(
    (), jax.random.key(0), jnp.arange(4.0)[None]
  )
  np.testing.assert_array_equal(found.images, found.drawn)
  np.testing.assert_array_equal(found.outputs, found.drawn_outputs)


def test_corrections_bring_outputs_closer_and_leave_the_rest():
  """A network that halves one half of the image and ignores the other."""

  def output(image):
    return jnp.where(jnp.arange(8) < 4, 0.5 * image, 0)

  sampler = invariances.Sampler(
    observe=lambda v, image: output(image), encode=None, forward=None, latent=8,
    decode=lambda v, z, y: z[None], inverse=lambda v, noise, y: noise,
    correct=lambda v, image, seen, y: image + y - seen,
  )  # fmt: skip
  x = jnp.arange(8.0)[None]
  plain, closer = (
    jax.jit(invariances.sample(sampler, num_samples=5, chunk=2, corrections=c))((), jax.random.key(0), x)
    for c in (0, 6)
  )
  np.testing.assert_array_equal(plain.drawn_outputs, closer.drawn_outputs)
  before, after = (
    jax.vmap(lambda y: invariances.distance(closer.output, y))(x) for x in (closer.drawn_outputs, closer.outputs)
  )
  np.testing.assert_allclose(after, before * 0.5**6, rtol=1e-3)
  np.testing.assert_array_equal(plain.images[..., 4:], closer.images[..., 4:])
  with pytest.raises(ValueError, match='corrections: 1 is negative, or the sampler has no correct'):
    invariances.sample(sampler._replace(correct=None), corrections=1)
