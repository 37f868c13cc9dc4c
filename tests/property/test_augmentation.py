"""Augmented examples tell of one patient: laws of k-space and target, and of the averaged weights that come of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrec
from jaxrec import training
from jaxrec.data import loader, synthetic
from jaxrec.fourier import ifft2c, rss
from jaxrec.training import augmentation

MOVES = {
  'rotation': jaxrec.rotation(20.0),
  'translation': jaxrec.translation(4.0),
  'both': jaxrec.compose(jaxrec.rotation(20.0), jaxrec.translation(4.0)),
}
STILL = {
  'rotation': jaxrec.rotation(0.0),
  'translation': jaxrec.translation(0.0),
  'both': jaxrec.compose(jaxrec.rotation(0.0), jaxrec.translation(0.0)),
}


def phantom(seed=0, *, edge=0):
  scan = synthetic.scan(seed, rows=40, cols=36, coils=3, acceleration=3, center_fraction=0.2)
  if edge:
    acquired = np.array(scan.acquired)
    acquired[:, :edge] = acquired[:, -edge:] = False
    scan = scan.replace(kspace=np.where(acquired, scan.kspace, 0), acquired=acquired, mask=scan.mask & acquired)
  return scan


move = jax.jit(augmentation.move, static_argnums=2)


@pytest.mark.parametrize('name', MOVES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), chance=st.sampled_from([0.0, 1.0]))
def test_nothing_changes_without_strength_or_chance(name, seed, chance):
  scan = phantom()
  for moves in (STILL[name], MOVES[name]):
    if moves is MOVES[name] and chance:
      continue
    moved = move(jax.random.key(seed), scan, moves, chance)
    jax.tree.map(np.testing.assert_array_equal, moved, scan)


def assert_one_measurement(new, scan):
  """The target is the image of a k-space that lies where the scan is acquired; nothing else is changed."""
  assert not np.any(new.kspace[:, :, ~scan.acquired[0]])
  full = np.sqrt((np.abs(np.asarray(ifft2c(new.kspace))) ** 2).sum(0))
  np.testing.assert_allclose(
    new.target, jaxrec.geometry.center_crop(full, scan.target.shape), rtol=1e-4, atol=1e-4 * full.max()
  )
  for field in ('mask', 'acs', 'acquired', 'region', 'scale'):
    np.testing.assert_array_equal(getattr(new, field), getattr(scan, field))


@pytest.mark.parametrize('edge', [0, 5])
@pytest.mark.parametrize('name', MOVES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_the_target_is_the_image_of_what_is_measured(name, edge, seed):
  scan = phantom(edge=edge)
  key = jax.random.key(seed)
  moved = move(key, scan, MOVES[name], 1.0)
  assert not np.array_equal(moved.kspace, scan.kspace)
  assert_one_measurement(moved, scan)
  # Movements are unitary; what they carry into columns that are not measured is lost.
  before, after = (np.linalg.norm(np.asarray(s.kspace)) for s in (scan, moved))
  assert after <= before * (1 + 1e-5) and after > before * (0.5 if edge else 0.999)
  jax.tree.map(np.testing.assert_array_equal, move(key, scan, MOVES[name], 1.0), moved)
  assert not np.array_equal(move(jax.random.fold_in(key, 1), scan, MOVES[name], 1.0).kspace, moved.kspace)


def test_a_shift_by_whole_pixels_rolls_the_target():
  scan = phantom()
  shift = jaxrec.Perturbation(
    lambda key, scan: jnp.array([3.0, -2.0]),
    jaxrec.translation(4.0).apply,
    lambda d, s: d,
    lambda d, i: i,
    lambda d, s: 0.0,
  )
  own = scan.replace(target=np.asarray(rss(ifft2c(scan.kspace))), region=np.ones((40, 36), np.float32))
  moved = move(jax.random.key(0), own, shift, 1.0)
  np.testing.assert_allclose(moved.target, np.roll(own.target, (3, -2), (0, 1)), atol=1e-5 * own.target.max())


def test_the_share_of_moved_examples_grows_to_its_probability():
  shares = np.asarray(augmentation.ramp(np.linspace(0, 1, 9)))
  assert shares[0] == 0 and np.all(np.diff(shares) > 0)
  np.testing.assert_allclose(shares[[4, 8]], [(1 - np.exp(-2.5)) / (1 - np.exp(-5)), 1], rtol=1e-5)
  scan, keys = phantom(), jax.random.split(jax.random.key(0), 400)
  share = np.mean(jax.vmap(lambda key: jnp.any(move(key, scan, MOVES['rotation'], 0.3).kspace != scan.kspace))(keys))
  assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 400)


noised = jax.jit(augmentation.add_noise, static_argnums=2)


@pytest.mark.parametrize('edge', [0, 5])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_noise_is_measured_where_the_scan_is_and_the_target_shows_it(edge, seed):
  scan, key = phantom(edge=edge), jax.random.key(seed)
  out = noised(key, scan, (0.05, 0.4))
  assert_one_measurement(out, scan)
  jax.tree.map(np.testing.assert_array_equal, noised(key, scan, (0.05, 0.4)), out)
  relative = np.linalg.norm(out.kspace - scan.kspace) / np.linalg.norm(scan.kspace)
  assert 0.04 < relative < 0.45


@pytest.mark.parametrize('eta', [0.02, 0.3])
def test_noise_has_the_energy_that_is_asked_for_and_is_the_same_in_all_coils(eta):
  scan, keys = phantom(edge=5), jax.random.split(jax.random.key(0), 200)
  added = np.asarray(jax.vmap(lambda key: noised(key, scan, (eta, eta)).kspace - scan.kspace)(keys))
  energy = (np.abs(added) ** 2).sum((-2, -1))  # [draw, coil]
  expected = eta**2 * (np.abs(scan.kspace) ** 2).sum()
  # A sum of n squares of normal numbers varies by sqrt(2/n).
  n = 2 * added[0].size * scan.acquired.mean()
  assert abs(energy.sum(1).mean() / expected - 1) < 4 * np.sqrt(2 / (n * len(keys)))
  np.testing.assert_allclose(energy.mean(0), expected / len(scan.kspace), rtol=4 * np.sqrt(2 * 3 / (n * len(keys))))
  white = np.fft.fft2(added[:, :, :, scan.acquired[0]], norm='ortho')
  np.testing.assert_allclose(white.real.var(), white.imag.var(), rtol=0.02)


def test_noise_is_spread_evenly_in_its_logarithm():
  scan, keys = phantom(), jax.random.split(jax.random.key(0), 400)

  def eta(key):
    return jnp.linalg.norm(noised(key, scan, (0.01, 1.0)).kspace - scan.kspace) / jnp.linalg.norm(scan.kspace)

  found = np.log10(np.asarray(jax.vmap(eta)(keys)))
  assert -2.05 < found.min() < -1.9 and -0.1 < found.max() < 0.05
  assert abs(found.mean() + 1) < 4 * 2 / np.sqrt(12 * 400)


def test_a_target_that_is_not_finite_stays():
  scan = phantom()
  bad = scan.replace(target=np.full_like(scan.target, np.nan))
  assert np.isnan(noised(jax.random.key(0), bad, (0.1, 0.1)).target).all()
  assert np.isnan(move(jax.random.key(0), bad, MOVES['rotation'], 1.0).target).all()


class Level(nn.Module):
  """One number over the zero-filled image."""

  @nn.compact
  def __call__(self, kspace, mask, acs=None):
    weight = self.param('weight', lambda key, shape: jnp.full(shape, 0.5), ())
    return weight * rss(ifft2c(jnp.where(mask[..., None, :, :], kspace, 0)))


@pytest.mark.parametrize('decay', [0.3, 0.9])
def test_the_average_is_that_of_its_iterates(decay):
  plain = training.supervised(Level(), optax.sgd(0.05), loss='mse')
  task = training.averaged(plain, decay)
  batch = loader.stack([phantom(0), phantom(1)])
  state, iterates = task.init(jax.random.key(0), batch), []
  step = jax.jit(task.step)
  for i in range(12):
    state, _ = step(state, batch, jax.random.key(i))
    iterates.append(float(state.state.variables['params']['weight']))
  expected = iterates[0]
  for n, value in enumerate(iterates[1:], 2):
    expected += max(1 - decay, 1 / n) * (value - expected)
  found = task.variables(state)
  np.testing.assert_allclose(float(found['params']['weight']), expected, rtol=1e-5)
  if decay == 0.9:
    # As long as the decay reaches back to the start, the plain mean.
    np.testing.assert_allclose(np.mean(iterates[:10]), _mean_after(task, batch, 10), rtol=1e-5)
  # Validation sees the average, the training goes on from the newest.
  scores = task.evaluate(state, batch)
  jax.tree.map(np.testing.assert_array_equal, scores, plain.evaluate(plain.with_variables(state.state, found), batch))
  assert np.any(scores['loss'] != plain.evaluate(state.state, batch)['loss'])
  assert abs(expected - iterates[-1]) > 1e-4


def _mean_after(task, batch, steps):
  state = task.init(jax.random.key(0), batch)
  for i in range(steps):
    state, _ = jax.jit(task.step)(state, batch, jax.random.key(i))
  return float(task.variables(state)['params']['weight'])


def test_the_iterates_are_those_without_an_average():
  batch = loader.stack([phantom(0), phantom(1)])
  plain = training.supervised(Level(), optax.sgd(0.05), loss='mse')
  states = []
  for task in (plain, training.averaged(plain, 0.9)):
    state = task.init(jax.random.key(0), batch)
    for i in range(3):
      state, _ = jax.jit(task.step)(state, batch, jax.random.key(i))
    states.append(state)
  np.testing.assert_allclose(
    states[1].state.variables['params']['weight'], states[0].variables['params']['weight'], rtol=1e-6
  )
