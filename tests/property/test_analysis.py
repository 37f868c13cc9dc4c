"""The two analyses and the control, where the truth is known: discs in noise."""

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
maxima = jax.jit(lambda key, reference: invariances.noise_maxima(key, reference, scales=(1.0,)))


def test_band_pass_is_that_of_scipy():
  image = ANATOMY + noise(1, 1)[0]
  ours = invariances.band_pass(jnp.asarray(image), 1.6)
  theirs = ndimage.gaussian_filter(image, 1.6, truncate=3.2) - ndimage.gaussian_filter(image, 2.56, truncate=3.1)
  np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max())
  np.testing.assert_allclose(invariances.band_pass(jnp.full(SHAPE, 7.0), 1.0), 0, atol=1e-5)


def test_noise_deviates_by_one():
  z = np.asarray(invariances.deviations(ANATOMY + noise(2, 40), ANATOMY + noise(3, 40), scales=(1.0, 2.0)))
  assert z.shape == (40, 2, *SHAPE)
  np.testing.assert_allclose(np.sqrt((z**2).mean((0, 2, 3))), 1, atol=0.1)


def test_noise_alone_is_flagged_as_often_as_intended():
  null = [maxima(jax.random.key(i), ANATOMY + noise(100 + i, 16)) for i in range(30)]
  threshold = invariances.family_threshold(np.stack(null), alpha=0.1)
  flagged = [float(excess(ANATOMY + noise(200 + i, 30), ANATOMY + noise(300 + i, 16)).max()) > threshold for i in range(60)]
  # Halves are noisier than the whole: conservative, at most 10% and its error.
  assert np.mean(flagged) <= 0.2


def test_a_structure_that_samples_lack_is_found_and_only_that():
  null = [maxima(jax.random.key(i), ANATOMY + noise(100 + i, 16)) for i in range(10)]
  threshold = invariances.family_threshold(np.stack(null))
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


def test_contrast_of_a_disc_is_its_height():
  inside, around = invariances.disc(SHAPE, (12.0, 20.0), 6.0)
  assert inside[12, 20] and not (inside & around).any() and around.sum() >= inside.sum()
  images = 3.0 + np.stack([0 * inside, 5.0 * inside, -2.0 * inside])
  np.testing.assert_allclose(invariances.contrast(images, inside, around), [0, 5, -2], atol=1e-5)
  # The smallest structure is still the pixel of its centre.
  assert invariances.disc(SHAPE, (12.2, 20.4), 0.5)[0].sum() >= 1


def test_intervals_and_thresholds_are_quantiles():
  contrasts = np.random.default_rng(0).permutation(1001) / 1000
  assert invariances.contrast_interval(contrasts) == pytest.approx((0.025, 0.975))
  assert np.mean(contrasts > invariances.presence_threshold(contrasts, alpha=0.05)) <= 0.05
  with pytest.raises(ValueError, match='needs at least 20 maxima under noise, there are 3'):
    invariances.family_threshold(np.arange(3.0))


def test_the_control_measures_moves_in_units_of_noise():
  output, fresh = jnp.zeros(SHAPE), jnp.asarray(noise(8, 9))
  typical = float(jnp.median(jnp.linalg.norm(fresh.reshape(9, -1), axis=1)))
  changed = jnp.zeros(SHAPE).at[3, 4].set(2.0)
  np.testing.assert_allclose(invariances.displacement(output, changed, fresh), 2 / typical, rtol=1e-5)
  largest = float(jnp.max(jnp.linalg.norm(fresh.reshape(9, -1), axis=1)))
  np.testing.assert_allclose(invariances.displacement(output, changed, fresh, level=1.0), 2 / largest, rtol=1e-5)
  np.testing.assert_allclose(invariances.displacement(output, jnp.stack([changed, 2 * changed]), fresh), [2 / typical, 4 / typical], rtol=1e-5)
  mask = jnp.zeros(SHAPE, bool).at[:8, :8].set(True)
  assert invariances.displacement(output, changed, fresh, mask) > invariances.displacement(output, changed, fresh)
  assert invariances.displacement(output, changed, fresh, ~mask) == 0



def test_a_correction_that_leads_away_is_not_taken():
  """x' + y - f(x') with f(x) = 2.5 x multiplies the error by -1.5."""
  sampler = invariances.Sampler(
    observe=lambda v, image: 2.5 * image, encode=None, forward=None, latent=4, decode=lambda v, z, y: z[None],
    inverse=lambda v, noise, y: noise, correct=lambda v, image, seen, y: image + y - seen,
  )  # fmt: skip
  found = jax.jit(invariances.sample(sampler, num_samples=4, chunk=2, corrections=3))((), jax.random.key(0), jnp.arange(4.0)[None])
  np.testing.assert_array_equal(found.images, found.drawn)
  np.testing.assert_allclose(jax.vmap(lambda y: invariances.distance(found.output, y))(found.outputs), found.decoded, rtol=1e-5)


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
    jax.jit(invariances.sample(sampler, num_samples=5, chunk=2, corrections=c))((), jax.random.key(0), x) for c in (0, 6)
  )
  np.testing.assert_array_equal(plain.decoded, closer.decoded)
  after = jax.vmap(lambda y: invariances.distance(closer.output, y))(closer.outputs)
  np.testing.assert_allclose(after, plain.decoded * 0.5**6, rtol=1e-3)
  np.testing.assert_array_equal(plain.images[..., 4:], closer.images[..., 4:])
  with pytest.raises(ValueError, match='corrections: 1 is negative, or the sampler has no correct'):
    invariances.sample(sampler._replace(correct=None), corrections=1)
