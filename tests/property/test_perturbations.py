"""One table for all perturbations. A new one is a new row."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxrec
from jaxrec.types import Slice

# The README's example of a perturbation of one's own is in the table that the README sends it to.
README = (Path(jaxrec.__file__).parents[1] / 'README.md').read_text()
EXAMPLE: dict = {'jax': jax, 'jaxrec': jaxrec}
exec(re.search(r'```python\n(def gain_error.*?)```', README, re.DOTALL)[1], EXAMPLE)

# name: strength -> perturbation
TABLE = {
  'coil_noise': lambda s: jaxrec.coil_noise(0.05 * s, start='random'),
  'coil_noise from zero': lambda s: jaxrec.coil_noise(0.05 * s),
  'coil_noise all coils': lambda s: jaxrec.coil_noise(0.05 * s, per_coil=False, start='random'),
  'coil_noise linf': lambda s: jaxrec.coil_noise(0.05 * s, norm='linf', start='random'),
  'coil_noise sampled': lambda s: jaxrec.coil_noise(0.05 * s, columns='sampled', start='random'),
  'image_noise': lambda s: jaxrec.image_noise(0.05 * s, start='random'),
  'image_noise linf': lambda s: jaxrec.image_noise(0.05 * s, norm='linf', start='random'),
  'rotation': lambda s: jaxrec.rotation(4.0 * s),
  'rotation resampled': lambda s: jaxrec.rotation(4.0 * s, method='resampled'),
  'gain error of the README': lambda s: EXAMPLE['gain_error'](0.1 * s),
  'translation': lambda s: jaxrec.translation(2.0 * s),
  'compose': lambda s: jaxrec.compose(jaxrec.rotation(3.0 * s), jaxrec.coil_noise(0.02 * s, start='random')),
}
EXACT_AT_ZERO = [name for name in TABLE if 'resampled' not in name]


@pytest.fixture(params=TABLE)
def make(request):
  return TABLE[request.param]


def wild(delta, key):
  """A point far outside the feasible set."""
  leaves, treedef = jax.tree.flatten(delta)
  keys = jax.random.split(key, len(leaves))
  return jax.tree.unflatten(treedef, [50 * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves)])


def test_start_is_feasible(make, scan):
  p = make(1.0)
  start = p.init(jax.random.key(0), scan)
  jax.tree.map(np.testing.assert_array_equal, p.project(start, scan), start)
  assert float(p.budget(start, scan)) <= 1


def test_projection_is_feasible_and_idempotent(make, scan):
  p = make(1.0)
  once = p.project(wild(p.init(jax.random.key(0), scan), jax.random.key(1)), scan)
  jax.tree.map(np.testing.assert_array_equal, p.project(once, scan), once)
  assert 0.5 < float(p.budget(once, scan)) <= 1


def test_deltas_have_the_shapes_of_their_docstrings(scan):
  shapes = {'coil_noise': scan.kspace.shape, 'rotation': (), 'rotation resampled': (), 'translation': (2,)}
  for name, shape in shapes.items():
    assert TABLE[name](1.0).init(jax.random.key(0), scan).shape == shape


@pytest.mark.parametrize('degrees', [0.5, 1.0, 4.0])
def test_the_budget_of_a_turn_is_its_share_of_the_largest(degrees, scan):
  turn = jaxrec.rotation(degrees)
  assert [float(turn.budget(jnp.float32(share * degrees), scan)) for share in (0.0, -0.5, 1.0)] == [0, 0.5, 1]
  assert float(jaxrec.rotation(0.0).budget(jnp.float32(0), scan)) == 0


@pytest.mark.parametrize('name', EXACT_AT_ZERO)
def test_zero_strength_is_the_identity(name, scan):
  p = TABLE[name](0.0)
  delta = p.project(wild(p.init(jax.random.key(0), scan), jax.random.key(1)), scan)
  np.testing.assert_array_equal(p.apply(delta, scan).kspace, scan.kspace)
  np.testing.assert_array_equal(p.align(delta, scan.target), scan.target)


@pytest.mark.parametrize('name', TABLE)
def test_align_undoes_apply_near_the_identity(name, scan):
  # On the fully sampled image, whose energy sits away from the border.
  p = TABLE[name](0.02)
  delta = p.init(jax.random.key(0), scan)
  image = jaxrec.fourier.rss(jaxrec.fourier.ifft2c(p.apply(delta, scan).kspace))
  back = p.align(delta, image)
  want = jaxrec.fourier.rss(jaxrec.fourier.ifft2c(jnp.asarray(scan.kspace)))
  assert float(jnp.linalg.norm(back - want) / jnp.linalg.norm(want)) < (0.01 if name in EXACT_AT_ZERO else 0.1)


def test_vmap_equals_loop_and_jit_equals_eager(make, scan):
  p = make(1.0)

  def run(key):
    delta = p.project(wild(p.init(key, scan), key), scan)
    return p.apply(delta, scan).kspace, p.align(delta, jnp.asarray(scan.target))

  keys = jax.random.split(jax.random.key(2), 3)
  batched = jax.jit(jax.vmap(run))(keys)
  looped = jax.tree.map(lambda *x: jnp.stack(x), *[run(k) for k in keys])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max()), batched, looped)


def test_gradients_are_finite_even_with_an_empty_coil(make, scan):
  p = make(1.0)
  scan = scan.replace(kspace=np.where(np.arange(3)[:, None, None] == 1, 0, scan.kspace))
  delta = p.init(jax.random.key(0), scan)
  flat, unravel = ravel_pytree(delta)

  def loss(flat):
    delta = p.project(unravel(flat), scan)
    image = jaxrec.fourier.rss(jaxrec.fourier.ifft2c(jnp.where(scan.mask, p.apply(delta, scan).kspace, 0)))
    return jnp.sum(p.align(delta, image) ** 2) / jnp.sum(scan.target**2)

  assert np.isfinite(jax.grad(loss)(flat)).all()


def test_strength_may_be_traced(make, scan):
  def size(s):
    p = make(s)
    return p.budget(p.project(wild(p.init(jax.random.key(0), scan), jax.random.key(1)), scan), scan)

  assert (np.asarray(jax.jit(jax.vmap(size))(jnp.array([0.5, 1.0]))) > 0.5).all()


def test_every_coil_stays_within_its_bound(scan):
  noise = jaxrec.coil_noise(0.03)
  z = np.asarray(noise.project(wild(jnp.zeros_like(scan.kspace), jax.random.key(0)), scan), np.complex128)
  bound = 0.03 * np.linalg.norm(np.asarray(scan.kspace, np.complex128), axis=(1, 2))
  used = np.linalg.norm(z, axis=(1, 2)) / bound
  assert (used <= 1).all() and (used > 1 - 1e-5).all()
  assert not z[:, :, ~scan.acquired[0]].any()


# name: perturbation, the domain of its bound, axes of one norm, norm
BOUNDS = {
  'coil l2': (lambda **o: jaxrec.coil_noise(0.05, **o), 'kspace', (1, 2), 'l2'),
  'coil l2, all coils': (lambda **o: jaxrec.coil_noise(0.05, per_coil=False, **o), 'kspace', (0, 1, 2), 'l2'),
  'coil linf': (lambda **o: jaxrec.coil_noise(0.05, norm='linf', **o), 'kspace', (1, 2), 'linf'),
  'coil linf, all coils': (
    lambda **o: jaxrec.coil_noise(0.05, per_coil=False, norm='linf', **o),
    'kspace',
    (0, 1, 2),
    'linf',
  ),
  'image l2': (lambda **o: jaxrec.image_noise(0.05, **o), 'image', (1, 2), 'l2'),
  'image linf': (lambda **o: jaxrec.image_noise(0.05, norm='linf', **o), 'image', (1, 2), 'linf'),
}


@pytest.mark.parametrize('name', BOUNDS)
def test_the_change_of_the_measurement_reaches_its_bound_and_not_more(name, scan):
  make, domain, axes, norm = BOUNDS[name]
  far, start = make(), make(start='random')
  kspace = np.asarray(scan.kspace, np.complex128)
  bound = 0.05 * np.sqrt(np.sum(np.abs(kspace) ** 2, axes))
  if norm == 'linf':
    # Entries that may change: acquired columns of the k-space, or all pixels.
    entries = 40 * np.sum(scan.acquired) if domain == 'kspace' else 40 * 36
    bound = bound / np.sqrt(entries * (3 if len(axes) == 3 else 1))
  deltas = far.project(wild(jnp.zeros_like(scan.kspace), jax.random.key(0)), scan), start.init(jax.random.key(1), scan)
  for p, delta in zip((far, start), deltas):
    change = np.asarray(p.apply(delta, scan).kspace, np.complex128) - kspace
    if domain == 'image':
      change = np.asarray(jaxrec.fourier.ifft2c(change))
    size = np.max(np.abs(change), axes) if norm == 'linf' else np.sqrt(np.sum(np.abs(change) ** 2, axes))
    used = size / bound
    assert np.all(used < 1 + 1e-3) and np.all(used > 1 - 1e-3)
    if norm == 'linf' and p is start:
      # Not one entry alone: all that are drawn.
      entries = np.abs(change) / bound.reshape(*bound.shape, *(1,) * len(axes))
      assert np.all((entries < 1e-3) | (entries > 1 - 2e-3))


def test_linf_lies_inside_l2(scan):
  z = jaxrec.coil_noise(0.03, norm='linf').project(wild(jnp.zeros_like(scan.kspace), jax.random.key(0)), scan)
  np.testing.assert_array_equal(jaxrec.coil_noise(0.03 * (1 + 1e-6)).project(z, scan), z)


def test_image_noise_on_a_ct_slice():
  image = jax.random.normal(jax.random.key(0), (12, 12))
  sample = Slice(image, image, jnp.ones_like(image), jnp.float32(4))
  p = jaxrec.image_noise(0.1, start='random')
  delta = p.init(jax.random.key(1), sample)
  assert delta.dtype == image.dtype
  np.testing.assert_allclose(jnp.linalg.norm(delta), 0.1 * jnp.linalg.norm(image), rtol=1e-5)
  np.testing.assert_array_equal(p.apply(delta, sample).input, image + delta)
  # n eta^2 is the bound of the squared norm in units of the variance, whatever the mean.
  p = jaxrec.image_noise(0.1, start='random', reference='deviation')
  for level in (0, 100):
    bright = sample.replace(input=image + level)
    delta = p.project(100 * delta, bright)
    np.testing.assert_allclose(jnp.sum(delta**2), 144 * 0.1**2 * jnp.var(image), rtol=1e-3)


@pytest.mark.parametrize(
  'call, words',
  [
    (lambda: jaxrec.coil_noise(-0.1), 'relative_radius: -0.1'),
    (lambda: jaxrec.coil_noise(float('nan')), 'relative_radius'),
    (lambda: jaxrec.coil_noise(0.1, norm='l1'), 'norm: .*l2, linf'),
    (lambda: jaxrec.coil_noise(0.1, columns='all'), 'columns: .*acquired, sampled'),
    (lambda: jaxrec.image_noise(0.1, reference='max'), 'reference: .*norm, deviation'),
    (lambda: jaxrec.rotation(-1.0), 'max_degrees'),
    (lambda: jaxrec.rotation(1.0, method='spline'), 'method: .*fourier'),
    (lambda: jaxrec.translation(-1.0), 'max_pixels'),
    (lambda: jaxrec.compose(), 'at least one'),
    (lambda: jaxrec.attacks.angle_grid(5.0, 0.0), 'step_degrees'),
    (lambda: jaxrec.attacks.angle_grid(91.0), 'max_degrees: 91.0 is above 90'),
    (lambda: jaxrec.rotation(120.0), 'max_degrees: 120.0 is above 90'),
  ],
)
@pytest.mark.fault
def test_bad_options_are_named(call, words):
  with pytest.raises(ValueError, match=words):
    call()


def test_angle_grid_has_both_ends_and_zero():
  grid = jaxrec.attacks.angle_grid(5.0, 0.1)
  assert len(grid) == 101 and grid[0] == -5 and grid[-1] == 5 and grid[50] == 0
  np.testing.assert_allclose(jaxrec.attacks.angle_grid(1.0, 0.4), [-1, -0.8, -0.4, 0, 0.4, 0.8, 1], atol=1e-6)
  np.testing.assert_array_equal(jaxrec.attacks.angle_grid(0.0), [0])
