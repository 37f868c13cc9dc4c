"""One table for all searches. A new one is a new row."""

import math
from fractions import Fraction
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrec
from jaxrec import attacks

TABLE = {
  'pgd': jaxrec.pgd(num_steps=6),
  'pgd power': jaxrec.pgd(num_steps=6, step=attacks.steepest_step(2.0)),
  'pgd momentum': jaxrec.pgd(num_steps=6, step=optax.chain(optax.trace(0.9), attacks.steepest_step(0.5))),
  'pgd advrec': jaxrec.pgd(num_steps=6, step=attacks.advrec_step()),
  'pgd plain': jaxrec.pgd(num_steps=6, step=optax.scale(1e-4)),
  'apgd': jaxrec.apgd(num_steps=12),
  'random': jaxrec.random_search(num_samples=6, chunk=4),
  'restarts': jaxrec.restarts(jaxrec.pgd(num_steps=3), num_restarts=2),
}
GRADIENT = ('pgd', 'pgd power', 'pgd momentum', 'apgd', 'restarts')


def run(search, scan, zero_filled, key=0, counter=None):
  noise = jaxrec.coil_noise(0.05, start='random')
  objective = jaxrec.region_mse()

  def reconstruct(variables, scan):
    if counter is not None:
      counter.append(1)
    return zero_filled(variables, scan)

  return jax.jit(jaxrec.attack(reconstruct, noise, search, objective))(None, jax.random.key(key), scan)


@pytest.mark.parametrize('name', TABLE)
def test_best_is_the_maximum_of_the_trace_and_reproduces(name, scan, zero_filled):
  result = run(TABLE[name], scan, zero_filled)
  best = float(jnp.max(result.trace))
  assert best >= float(result.trace[0])
  np.testing.assert_allclose(float(result.loss), best, rtol=1e-4)
  # The reported image is that of the reported perturbation.
  noise = jaxrec.coil_noise(0.05)
  image = zero_filled(None, noise.apply(result.delta, scan))
  np.testing.assert_allclose(float(jaxrec.region_mse()(image, scan)), best, rtol=1e-4)
  np.testing.assert_array_equal(noise.project(result.delta, scan), result.delta)


@pytest.mark.parametrize('name', TABLE)
def test_the_key_decides(name, scan, zero_filled):
  first, second = (run(TABLE[name], scan, zero_filled) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, first, second)
  other = run(TABLE[name], scan, zero_filled, key=1)
  assert not np.array_equal(first.delta, other.delta)


@pytest.mark.parametrize('name', GRADIENT)
def test_gradient_searches_beat_random_search(name, scan, zero_filled):
  blind = run(jaxrec.random_search(num_samples=20), scan, zero_filled)
  clean = float(blind.clean_loss)
  assert float(run(TABLE[name], scan, zero_filled).loss) - clean > 2 * (float(blind.loss) - clean)


@pytest.mark.parametrize('name', TABLE)
def test_length_of_the_trace_is_the_stated_cost(name, scan, zero_filled):
  search = TABLE[name]
  runs = 2 if name == 'restarts' else 1
  assert run(search, scan, zero_filled).trace.shape == ((search.forward_calls + search.backward_calls) // runs,)


class Alone:
  """A search as a caller may write it: without what it saw."""

  def __init__(self, search):
    self.search = search
    self.forward_calls, self.backward_calls = search.forward_calls, search.backward_calls

  def __call__(self, *arguments):
    return self.search(*arguments)


EXPLORING = [name for name, search in TABLE.items() if isinstance(search, attacks.Exploring)]


@pytest.mark.parametrize('name', EXPLORING)
def test_what_a_search_saw_is_what_an_evaluation_of_its_own_shows(name, scan, zero_filled):
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
    *(run(search, scan, zero_filled) for search in (TABLE[name], Alone(TABLE[name]))),
  )


def test_searches_of_gradient_steps_explore():
  assert {'pgd', 'pgd momentum', 'apgd'} <= set(EXPLORING) and 'random' not in EXPLORING


@pytest.mark.parametrize(
  'search', [jaxrec.pgd(num_steps=3), Alone(jaxrec.pgd(num_steps=3))], ids=['exploring', 'alone']
)
def test_a_network_of_nan_is_told_not_hidden(search, scan, zero_filled):
  """Its image at the start stands for the worst case: there is none that is better."""
  result = run(search, scan, lambda variables, scan: zero_filled(variables, scan) * jnp.nan)
  assert np.isnan(result.loss) and np.isnan(result.adversarial).all() and np.isnan(result.trace).all()


@pytest.mark.parametrize('name', TABLE)
def test_network_calls_are_those_that_are_made(name, scan, zero_filled):
  """Counted while the program runs."""
  calls = []

  def counting(variables, scan):
    image = zero_filled(variables, scan)
    jax.debug.callback(lambda _: calls.append(1), image[0, 0])
    return image

  run(TABLE[name], scan, counting)
  jax.effects_barrier()
  assert len(calls) == attacks.network_calls(TABLE[name])['forward']


def test_steps_are_a_loop_in_the_program_not_in_python(scan, zero_filled):
  calls = {}
  for steps in (2, 20):
    counter = []
    run(jaxrec.pgd(num_steps=steps), scan, zero_filled, counter=counter)
    calls[steps] = len(counter)
  assert calls[2] == calls[20]


def test_one_trace_for_many_examples(scan, zero_filled):
  chex.clear_trace_counter()
  attack = jaxrec.attack(zero_filled, jaxrec.coil_noise(0.02), jaxrec.pgd(num_steps=2), jaxrec.region_mse())
  once = jax.jit(chex.assert_max_traces(attack, n=1))
  for key in range(3):
    once(None, jax.random.key(key), scan)


@pytest.mark.parametrize(
  'search', [jaxrec.pgd(num_steps=2, step=attacks.steepest_step(0.9)), jaxrec.apgd(num_steps=2)], ids=['pgd', 'apgd']
)
def test_the_best_point_is_returned_when_the_last_step_overshoots(search):
  def loss(x):
    return -((x - 0.3) ** 2)

  # From -0.5 past the maximum at 0.3, and back past it again.
  found = search(jax.random.key(0), loss, lambda key: jnp.float32(-0.5), lambda x: jnp.clip(x, -1, 1))
  trace = np.asarray(found.trace)
  assert trace.shape == (3,) and trace[1] > trace[0] and trace[1] > trace[2]
  assert float(found.loss) == trace[1]
  np.testing.assert_allclose(float(loss(found.delta)), trace[1], rtol=1e-5)


def auto_pgd(loss, slope, x, steps):
  """Algorithm 1 of Croce and Hein on an interval, with a step of rest after every restart; values of all points."""
  shares = [Fraction(0), Fraction(22, 100)]
  while shares[-1] < 1:
    shares.append(shares[-1] + max(shares[-1] - shares[-2] - Fraction(3, 100), Fraction(6, 100)))
  checks = [math.ceil(share * steps) for share in shares]
  values, size, before, best, rises, seen = [], 2.0, x, x, 0, (2.0, -np.inf)
  for k in range(steps):
    values.append(loss(x))
    rises += k > 0 and values[-1] > values[-2]
    best = max(best, x, key=loss)
    if k in checks[1:]:
      few = rises < 0.75 * (k - checks[checks.index(k) - 1])
      stuck, seen, rises = seen == (size, loss(best)), (size, loss(best)), 0
      if few or stuck:
        size, x, before = size / 2, best, best
        continue
    there = np.clip(x + size * np.sign(slope(x)), -1, 1)
    x, before = np.clip(x + 0.75 * (there - x) + 0.25 * (x - before), -1, 1), x
  return [*values, loss(x)]


@pytest.mark.parametrize(
  'start, steps, height, waves',
  [(start, steps, 0, 1) for start in (-0.5, 0.9) for steps in (12, 20, 40)]
  # Between two checks just three of four steps rise: enough, by the paper.
  + [(-0.5, 20, 0.3, 5), (0.4, 20, 0.3, 9), (0.1, 20, 0.3, 17), (-0.9, 30, 0.3, 17)],
)
def test_apgd_takes_the_steps_of_its_paper(start, steps, height, waves):
  def loss(x, cos=jnp.cos):
    return -((x - 0.3) ** 2) + height * cos(waves * x)

  found = jaxrec.apgd(num_steps=steps)(
    jax.random.key(0), loss, lambda key: jnp.float32(start), lambda x: jnp.clip(x, -1, 1)
  )
  wanted = auto_pgd(lambda x: loss(x, np.cos), lambda x: 0.6 - 2 * x - height * waves * np.sin(waves * x), start, steps)
  np.testing.assert_allclose(found.trace, wanted, atol=1e-5)


@pytest.mark.parametrize('unit', [1e-30, 1e30])
def test_the_farthest_point_does_not_depend_on_the_size_of_the_gradient(unit, scan):
  """Squares of gradients of raw k-space leave the range of float32."""
  noise = jaxrec.coil_noise(0.05)
  direction = jax.random.normal(jax.random.key(0), scan.kspace.shape, scan.kspace.dtype)
  near, far = (attacks.farthest(x, lambda d: noise.project(d, scan)) for x in (direction, unit * direction))
  np.testing.assert_allclose(far, near, atol=1e-4 * np.abs(near).max())
  np.testing.assert_allclose(noise.budget(far, scan), 1, rtol=1e-4)


@pytest.mark.parametrize('step', [optax.sgd(0.1), optax.adam(0.1), optax.scale(-1.0)])
def test_steps_that_descend_are_refused(step):
  with pytest.raises(ValueError, match='its step goes against the direction'):
    jaxrec.pgd(step=step)
  found = jaxrec.pgd(num_steps=30, step=optax.chain(step, optax.scale(-0.5)))(
    jax.random.key(0), lambda x: -((x - 0.3) ** 2), lambda key: jnp.float32(-0.5), lambda x: jnp.clip(x, -1, 1)
  )
  assert float(found.loss) > -0.1


def test_power_method_finds_the_worst_case_of_a_linear_problem():
  # max ||A z|| over ||z|| <= r is the largest singular value times r.
  a = jax.random.normal(jax.random.key(0), (6, 6))
  radius = 0.3

  def project(z):
    norm = jnp.linalg.norm(z)
    return z * jnp.minimum(1, radius / jnp.where(norm > 0, norm, 1))

  def loss(z):
    return jnp.sum((a @ z) ** 2)

  search = jaxrec.pgd(num_steps=200, step=attacks.steepest_step(5.0))
  found = search(jax.random.key(1), loss, lambda key: project(jax.random.normal(key, (6,))), project)
  np.testing.assert_allclose(float(found.loss), (radius * np.linalg.svd(a)[1][0]) ** 2, rtol=1e-3)


def test_complex_ascent_direction_is_conjugated_once():
  target = jnp.array([1 + 2j, -1j])

  def loss(z):
    return -jnp.sum(jnp.abs(z - target) ** 2)

  def project(z):
    norm = jnp.linalg.norm(z)
    return z * jnp.minimum(1, 10 / jnp.where(norm > 0, norm, 1))

  found = jaxrec.pgd(num_steps=50, step=optax.scale(0.2))(
    jax.random.key(0), loss, lambda key: jnp.zeros(2, jnp.complex64), project
  )
  np.testing.assert_allclose(found.delta, target, atol=1e-3)


def test_advrec_leaves_budget_unused_with_many_coils():
  rng = np.random.default_rng(0)
  k = jnp.asarray(rng.standard_normal((15, 8, 8)) + 1j * rng.standard_normal((15, 8, 8)), jnp.complex64)
  ones = jnp.ones((1, 8), bool)
  image = jaxrec.fourier.rss(jaxrec.fourier.ifft2c(k))
  scan = jaxrec.Scan(k, ones, ones, ones, image, jnp.ones((8, 8)), jnp.max(image))
  noise = jaxrec.coil_noise(0.02, start='random')

  def full(variables, scan):
    return jaxrec.fourier.rss(jaxrec.fourier.ifft2c(scan.kspace))

  used = {}
  for name, step in (('advrec', attacks.advrec_step()), ('ours', attacks.steepest_step())):
    attack = jaxrec.attack(full, noise, jaxrec.pgd(step=step), jaxrec.region_mse())
    used[name] = float(jax.jit(attack)(None, jax.random.key(0), scan).budget)
  assert 0.2 < used['advrec'] < 0.4 and used['ours'] > 0.99


@pytest.mark.parametrize('chunk', [1, 3, 7])
def test_grid_is_a_loop_over_its_points(chunk, scan, zero_filled):
  rotation = jaxrec.rotation(2.0)
  angles = attacks.angle_grid(2.0, 1.0)
  attack = jaxrec.attack(zero_filled, rotation, jaxrec.grid(angles, chunk=chunk), jaxrec.region_mse())
  result = jax.jit(attack)(None, jax.random.key(0), scan)
  losses = []
  for angle in angles:
    image = rotation.align(angle, zero_filled(None, rotation.apply(angle, scan)))
    losses.append(float(jaxrec.region_mse()(image, scan)))
  np.testing.assert_allclose(result.trace, losses, rtol=2e-4)
  assert float(result.delta) == angles[int(np.argmax(losses))]
  np.testing.assert_allclose(float(result.trace[2]), float(result.clean_loss), rtol=1e-6)


@pytest.mark.parametrize('name', ['coil_noise', 'rotation'])
def test_zero_strength_is_exactly_the_clean_score(name, scan, zero_filled):
  perturbation = {'coil_noise': jaxrec.coil_noise(0.0), 'rotation': jaxrec.rotation(0.0)}[name]
  result = jax.jit(jaxrec.attack(zero_filled, perturbation, jaxrec.pgd(num_steps=2), jaxrec.region_mse()))(
    None, jax.random.key(0), scan
  )
  assert float(result.loss) == float(result.clean_loss)
  np.testing.assert_array_equal(result.clean, result.adversarial)


def test_a_sweep_over_strengths_is_one_more_vmap(scan, zero_filled):
  def at(eta):
    attack = jaxrec.attack(zero_filled, jaxrec.coil_noise(eta), jaxrec.pgd(num_steps=3), jaxrec.region_mse())
    return attack(None, jax.random.key(0), scan).loss

  etas = jnp.array([0.0, 0.01, 0.02])
  swept = jax.jit(jax.vmap(at))(etas)
  np.testing.assert_allclose(swept, [at(e) for e in etas], rtol=1e-3)
  assert (np.diff(swept) > 0).all()
  np.testing.assert_allclose(attacks.chunked(at, (etas,), chunk=2), swept, rtol=1e-5)


def test_aiming_at_the_box_hurts_it_more(scan, zero_filled):
  attack = jaxrec.attack(zero_filled, jaxrec.coil_noise(0.05), jaxrec.pgd(num_steps=5), jaxrec.region_mse())
  boxed = jax.jit(attack)(None, jax.random.key(0), scan)
  whole = jax.jit(attack)(None, jax.random.key(0), scan.replace(region=np.ones_like(scan.region)))
  box = jaxrec.region_mse()
  assert float(boxed.loss) > float(box(whole.adversarial, scan)) > float(boxed.clean_loss)


@pytest.mark.parametrize(
  'call, words',
  [
    (lambda: jaxrec.pgd(num_steps=0), 'num_steps'),
    (lambda: jaxrec.apgd(momentum=2.0), 'momentum'),
    (lambda: jaxrec.random_search(num_samples=0), 'num_samples'),
    (lambda: jaxrec.restarts(jaxrec.pgd(), num_restarts=0), 'num_restarts'),
    (lambda: jaxrec.grid(np.zeros(0)), 'points'),
    (lambda: jaxrec.grid(3.0), 'points'),
    (lambda: jaxrec.grid((np.zeros(2), np.zeros(3))), 'points'),
    (lambda: jaxrec.attacks.chunked(abs, (np.ones(2),), chunk=0), 'chunk'),
    (lambda: jaxrec.region_mse_ssim(ssim_weight=2.0), 'ssim_weight'),
  ],
)
@pytest.mark.fault
def test_bad_options_are_named(call, words):
  with pytest.raises(ValueError, match=words):
    call()
