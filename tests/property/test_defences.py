"""Defences and local Lipschitz constants against dense algebra and their own laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrec
from jaxrec import attacks, fourier, models
from jaxrec.data import synthetic
from jaxrec.models import layers


@pytest.fixture(scope='module')
def small():
  return synthetic.scan(1, rows=32, cols=32, coils=1, acceleration=2, center_fraction=0.2)


def test_power_iteration_finds_the_largest_singular_value(small):
  kernels = 0.5 * jax.random.normal(jax.random.key(1), (2, 3, 3, 2, 2))
  variables = None

  def reconstruct(variables, scan):
    """A tiny network: two layers on the zero-filled image and its edges."""
    image = fourier.rss(fourier.ifft2c(jnp.where(scan.mask, scan.kspace, 0)))
    level = jnp.mean(image)
    x = jnp.stack([image, jnp.roll(image, 1, 0) - image], -1)[None] / level
    for kernel in kernels:
      x = layers.instance_norm_leaky_relu(layers.conv2d(x, kernel))
    return image + level * x[0, :, :, 0]

  noise = jaxrec.coil_noise(0.01, per_coil=False)
  found = jax.jit(attacks.local_lipschitz(reconstruct, noise, num_iterations=300))(variables, jax.random.key(0), small)

  def flat(parts):
    change = jnp.where(small.acquired, parts[0] + 1j * parts[1], 0)
    return reconstruct(variables, small.replace(kspace=small.kspace + change)).ravel()

  dense = np.asarray(jax.jit(jax.jacrev(flat))(jnp.zeros((2, 1, 32, 32))))
  largest = np.linalg.svd(dense.reshape(dense.shape[0], -1), compute_uv=False)[0]
  np.testing.assert_allclose(float(found.gain), largest, rtol=1e-3)
  assert np.all(np.diff(found.trace) >= -1e-4 * found.trace[-1])
  # The direction is feasible, and the change of the image is the Jacobian's.
  np.testing.assert_array_equal(noise.project(found.delta, small), found.delta)
  moved = np.einsum(
    'rcpijk,pijk->rc',
    dense.reshape(*small.kspace.shape[1:], *dense.shape[1:]),
    np.stack([found.delta.real, found.delta.imag]),
  )
  np.testing.assert_allclose(moved, found.change, atol=1e-3 * np.abs(moved).max())


def test_amplification_of_a_unitary_transform_is_one(scan):
  def first_coil(variables, scan):
    return fourier.ifft2c(scan.kspace)[0].real

  noise = jaxrec.coil_noise(0.1)
  found = jax.jit(attacks.local_lipschitz(first_coil, noise, num_iterations=60))(None, jax.random.key(0), scan)
  # The real part loses nothing of the best direction; coils that are not seen stay unused.
  assert 0.9 < float(found.gain) < 1.001
  with pytest.raises(ValueError, match='num_iterations: 0'):
    attacks.local_lipschitz(first_coil, noise, num_iterations=0)


def completed(kspace, mask):
  """A network that fills every line that is missing with half of its neighbour, and loses a tenth."""
  return jnp.where(mask, kspace, 0.5 * jnp.roll(kspace, 1, -1)) * 0.9


def shifted_masks(scan, shifts):
  mask, acs, acquired = (np.asarray(x) for x in (scan.mask, scan.acs, scan.acquired))
  return [acs | (np.roll(mask, shift, -1) & acquired) for shift in shifts]


def test_cyclic_consistency_leaves_a_perfect_network_alone(scan):
  """A network that returns the true k-space closes every cycle: nothing is corrected."""

  def complete(variables, seen):
    return jnp.where(scan.acquired, scan.kspace, 0)

  def reconstruct(variables, seen):
    return fourier.rss(fourier.ifft2c(jnp.where(seen.mask, seen.kspace, 0)))

  defended = attacks.cyclic(reconstruct, complete, relative_radius=0.05, num_steps=2, shifts=(1, 2))
  np.testing.assert_allclose(defended(None, scan), reconstruct(None, scan), rtol=1e-6)
  # Noise on the measurement is what the cycle cannot explain: the correction moves towards the truth.
  noise = jaxrec.coil_noise(0.05, start='random', columns='sampled')
  noisy = noise.apply(noise.init(jax.random.key(0), scan), scan)
  cleaned = attacks.cyclic(lambda v, s: s.kspace, complete, relative_radius=0.05, num_steps=4, shifts=(1,))(None, noisy)
  before, after = (np.linalg.norm(np.where(scan.mask, k - scan.kspace, 0)) for k in (noisy.kspace, cleaned))
  assert after < 0.5 * before
  silent = scan.replace(kspace=0 * scan.kspace)
  slope = jax.grad(lambda k: jnp.sum(defended(None, silent.replace(kspace=k))))(silent.kspace)
  assert np.isfinite(slope).all()
  with pytest.raises(ValueError, match='defence.shifts'):
    attacks.cyclic(reconstruct, complete, relative_radius=0.05, shifts=())


def test_the_cycle_measures_again_with_shifted_lines(scan):
  masks = set()

  def complete(variables, seen):
    jax.debug.callback(lambda mask: masks.add(np.asarray(mask).tobytes()), seen.mask)
    return seen.kspace

  defended = attacks.cyclic(lambda v, s: s.kspace, complete, relative_radius=0.05, num_steps=1, shifts=(1, 3))
  jax.block_until_ready(defended(None, scan))
  jax.effects_barrier()
  assert masks == {np.asarray(x).tobytes() for x in (scan.mask, *shifted_masks(scan, (1, 3)))} and len(masks) == 3


@pytest.mark.parametrize('unit', [1.0, 1e-4])
def test_a_cycle_is_judged_by_the_share_of_the_measurement_that_it_misses(unit, scan, monkeypatch):
  """The mean over the masks, in any unit."""
  losses, shifts = [], (1, 2, 5)

  def told(num_steps):
    def search(key, loss, init, project):
      delta = init(key)
      value = loss(delta)
      losses.append(float(value))
      return attacks.SearchResult(delta=delta, loss=value, trace=value[None])

    return search

  monkeypatch.setattr(attacks.defences, 'pgd', told)
  data = scan.replace(kspace=unit * scan.kspace)
  attacks.cyclic(lambda v, s: s.kspace, lambda v, s: completed(s.kspace, s.mask), relative_radius=0.05, shifts=shifts)(
    None, data
  )
  mask = np.asarray(scan.mask)
  measured = np.where(mask, data.kspace, 0)
  missed = [
    np.where(mask, completed(completed(measured, mask), other) - measured, 0) for other in shifted_masks(scan, shifts)
  ]
  shares = [np.linalg.norm(x) ** 2 / np.linalg.norm(measured) ** 2 for x in missed]
  assert -losses[0] == pytest.approx(np.mean(shares), rel=1e-4) and np.ptp(shares) > 0


def test_the_cycle_sees_what_was_measured_only(scan):
  def complete(variables, seen):
    return jnp.where(seen.mask, seen.kspace, 0.5 * jnp.roll(seen.kspace, 1, -1))

  defended = attacks.cyclic(lambda v, s: s.kspace, complete, relative_radius=0.05, num_steps=2, shifts=(1,))
  other = scan.replace(kspace=jnp.where(scan.mask, scan.kspace, 5 * scan.kspace + 1))
  found, again = (np.where(scan.mask, defended(None, s), 0) for s in (scan, other))
  assert np.linalg.norm(found - np.where(scan.mask, scan.kspace, 0)) > 0
  np.testing.assert_array_equal(again, found)


def test_gradients_pass_through_the_cycle(scan):
  def reconstruct(variables, seen):
    return fourier.rss(fourier.ifft2c(jnp.where(seen.mask, seen.kspace, 0)))

  defended = attacks.cyclic(
    reconstruct, lambda v, s: completed(s.kspace, s.mask), relative_radius=0.05, num_steps=2, shifts=(1,)
  )
  loss = jax.jit(lambda k: jnp.sum(defended(None, scan.replace(kspace=k)) ** 2) / jnp.sum(scan.target**2))
  gradient = jax.jit(jax.grad(loss))(scan.kspace)
  assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


def test_expectation_and_surrogate(scan, zero_filled):
  mean = attacks.expectation([zero_filled, lambda v, s: 3 * zero_filled(v, s)])
  np.testing.assert_allclose(mean(None, scan), 2 * zero_filled(None, scan), rtol=1e-6)
  noise, search, objective = jaxrec.coil_noise(0.05), jaxrec.pgd(num_steps=3), jaxrec.region_mse()
  seen = jax.jit(jaxrec.attack(zero_filled, noise, search, objective))(None, jax.random.key(0), scan)
  blind = jax.jit(jaxrec.attack(zero_filled, noise, search, objective, surrogate=lambda v, s: -zero_filled(v, s)))
  other = blind(None, jax.random.key(0), scan)
  # Images and scores are those of the network, whatever the search looked at.
  np.testing.assert_array_equal(seen.clean, other.clean)
  np.testing.assert_allclose(other.adversarial, zero_filled(None, other.sample), rtol=1e-5)
  assert float(seen.loss) > float(other.loss)


def test_smoothing_is_the_network_where_there_is_no_noise():
  scan = synthetic.scan(0, rows=32, cols=32, coils=2)
  sizes = dict(num_cascades=2, chans=2, pools=1, sens_chans=2, sens_pools=1)
  plain = models.build('varnet', **sizes)
  variables = jax.jit(plain.init)(jax.random.key(0), scan.kspace, scan.mask, scan.acs)

  def image(**options):
    return jax.jit(models.bind(models.build('varnet', **sizes, **options)))(variables, scan)

  reference = image()
  np.testing.assert_allclose(image(smoothing_samples=2, smoothing_std=0.0), reference, rtol=1e-4, atol=1e-9)
  # More samples come closer to the expectation.
  few, many, other = (
    image(smoothing_samples=n, smoothing_std=0.1, smoothing_seed=s) for n, s in ((2, 0), (64, 0), (64, 7))
  )
  assert np.linalg.norm(few - other) > 2 * np.linalg.norm(many - other)
  # There is noise: it moves the image by more than rounding, and its seed matters.
  for one, another in ((few, reference), (many, reference), (many, other)):
    assert np.linalg.norm(one - another) > 1e-3 * np.linalg.norm(reference)
  completed = jax.jit(models.bind_complete(plain))(variables, scan)
  np.testing.assert_allclose(fourier.rss(fourier.ifft2c(completed)), reference, rtol=1e-4, atol=1e-9)
  with pytest.raises(ValueError, match='model.name: UNetRecon'):
    models.bind_complete(models.build('unet_recon', chans=2, pools=1))
