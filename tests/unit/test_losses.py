"""Terms of adversarial and variational losses against closed forms and SciPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage, stats

from jaxrec import fourier, models, training
from jaxrec.data import singlecoil, synthetic
from jaxrec.training import gan
from jaxrec.types import Slice

RNG = np.random.default_rng(0)
REAL, MADE = (RNG.standard_normal((3, 8, 9)).astype(np.float32) + shift for shift in (0.5, -0.5))


def batch(target, low):
  return Slice(low, target, np.ones_like(target), np.ones(len(target), np.float32))


def test_the_loss_of_unets_is_in_units_of_their_input():
  rng = np.random.default_rng(1)
  low, target = rng.uniform(1, 3, (2, 12, 12)).astype(np.float32)
  target[0, 0], target[5, 5] = 50.0, -50.0
  image = target + 0.1
  loss = training.tasks.image_loss('normalised_l1')
  for unit in (1.0, 1e-5):
    sample = jax.tree.map(lambda x: np.float32(unit) * x, Slice(low, target, np.ones_like(target), np.float32(50)))
    clipped = np.clip(target, *(low.mean() + sign * 6 * low.std(ddof=1) for sign in (-1, 1)))
    want = np.abs(image - clipped).mean() / low.std(ddof=1)
    assert float(loss(unit * image, sample)) == pytest.approx(want, rel=1e-4)
  # A scan whose field of view is larger than its target: its central part counts.
  scan = synthetic.scan(0, rows=64, cols=36, coils=2)
  seen = singlecoil.zero_filled(scan)
  assert scan.target.shape != scan.kspace.shape[-2:]
  full = np.pad(
    1.1 * scan.target, [((n - c) // 2, n - c - (n - c) // 2) for n, c in zip(scan.kspace.shape[-2:], scan.target.shape)]
  )
  np.testing.assert_allclose(loss(full, scan), loss(1.1 * scan.target, seen), rtol=1e-4)


@pytest.mark.parametrize('unit', [1.0, 1e-5])
def test_plain_losses_are_in_units_of_the_range(unit):
  image, target = np.random.default_rng(2).uniform(1, 3, (2, 12, 12)).astype(np.float32)
  sample = Slice(image, unit * target, np.ones_like(target), np.float32(4 * unit))
  for kind, want in (('l1', np.abs(image - target).mean() / 4), ('mse', ((image - target) ** 2).mean() / 16)):
    assert float(training.image_loss(kind)(unit * image, sample)) == pytest.approx(want, rel=1e-4)


def test_maps_of_the_coils_leave_no_energy_unexplained():
  rng = np.random.default_rng(3)
  maps = rng.standard_normal((4, 12, 10)) + 1j * rng.standard_normal((4, 12, 10))
  maps = (maps / np.sqrt((np.abs(maps) ** 2).sum(0))).astype(np.complex64)
  image = (rng.standard_normal((12, 10)) + 1j * rng.standard_normal((12, 10))).astype(np.complex64)
  kspace = fourier.fft2c(jnp.asarray(maps * image))
  unexplained = training.tasks.unexplained
  turned = maps * np.exp(2j * np.pi * rng.random((12, 10))).astype(np.complex64)
  for right in (maps, turned):
    assert abs(float(unexplained(right, kspace))) < 1e-5
  # Two coils whose images are swapped with opposite sign are at right angles to what they were.
  wrong = np.stack([-maps[1].conj(), maps[0].conj(), -maps[3].conj(), maps[2].conj()])
  assert float(unexplained(wrong, kspace)) == pytest.approx(1, abs=1e-5)
  # Noise of the coils is no image: all but one of four parts are left, whatever the maps.
  noise = rng.standard_normal((200, 4, 12, 10)) + 1j * rng.standard_normal((200, 4, 12, 10))
  left = jax.vmap(lambda k: unexplained(maps, k))(noise.astype(np.complex64))
  assert float(left.mean()) == pytest.approx(0.75, abs=4 * float(left.std()) / np.sqrt(200))
  assert float(unexplained(maps, jnp.zeros_like(kspace))) == 1


def test_only_a_varnet_has_maps_and_its_loss_holds_what_they_leave():
  scan = jax.tree.map(lambda x: x[None], synthetic.scan(0, rows=32, cols=32, coils=2, acceleration=2))
  rule, key = training.optimizer('adam', 1e-3), jax.random.key(0)
  with pytest.raises(ValueError, match='train.task.maps_weight: only a VarNet estimates maps'):
    training.supervised(models.UNetRecon(chans=2, pools=1), rule, maps_weight=1.0)
  net = models.VarNet(num_cascades=1, chans=2, pools=1, sens_chans=2, sens_pools=1)
  plain, with_maps = (training.supervised(net, rule, maps_weight=w) for w in (0.0, 0.5))
  state = plain.init(key, scan)
  (_, a), (after, b) = (jax.jit(task.step)(state, scan, key) for task in (plain, with_maps))
  maps = models.coil_maps(net, state.variables, scan.kspace, scan.mask, scan.acs)[0]
  left = float(training.tasks.unexplained(maps, scan.kspace[0]))
  assert 0 < left < 1 and float(b['unexplained']) == pytest.approx(left, rel=1e-4)
  assert float(b['loss']) == pytest.approx(float(a['loss']) + 0.5 * left, rel=1e-4)
  for _ in range(20):
    after, b = jax.jit(with_maps.step)(after, scan, key)
  assert float(b['unexplained']) < left


class Bias(nn.Module):
  """A denoiser that adds a number."""

  @nn.compact
  def __call__(self, image):
    return image + self.param('bias', nn.initializers.zeros, ())


class Brightness(nn.Module):
  """A critic that likes bright images, times a number that it learns."""

  @nn.compact
  def __call__(self, image, condition=None):
    return self.param('gain', nn.initializers.ones, ()) * jnp.mean(image, (1, 2))


class BrightnessMap(nn.Module):
  """The same with a map; its gain starts at zero."""

  @nn.compact
  def __call__(self, image):
    gain = self.param('gain', nn.initializers.zeros, ())
    return gain * jnp.mean(image, (1, 2)), gain * image


@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
def test_wasserstein_of_a_linear_critic(share):
  w = RNG.standard_normal(REAL.shape[1:]).astype(np.float32) / 10
  loss, apart = gan.wasserstein(
    lambda x: jnp.sum(w * x, (1, 2)), (REAL,), (MADE,), share * np.ones((3, 1, 1), np.float32), 10.0
  )
  distance = (w * (REAL - MADE)).sum((1, 2)).mean()
  np.testing.assert_allclose(apart, distance, rtol=1e-5)
  np.testing.assert_allclose(loss, 10 * (np.linalg.norm(w) - 1) ** 2 - distance, rtol=1e-4)


def test_the_penalty_is_at_the_mixtures():
  """D(x) = |x|^2 / 2 has the slope x."""
  share = np.array([0.1, 0.5, 0.9], np.float32)[:, None, None]
  loss, apart = gan.wasserstein(lambda x: jnp.sum(x**2, (1, 2)) / 2, (REAL,), (MADE,), share, 1.0)
  norms = np.linalg.norm((share * REAL + (1 - share) * MADE).reshape(3, -1), axis=1)
  np.testing.assert_allclose(loss + apart, ((norms - 1) ** 2).mean(), rtol=1e-4)


def test_sobel_is_that_of_scipy():
  slopes = [ndimage.sobel(REAL[0].astype(float), axis, mode='constant') / 4 for axis in (0, 1)]
  np.testing.assert_allclose(gan.sobel(REAL)[0], np.sqrt(slopes[0] ** 2 + slopes[1] ** 2 + 1e-4), rtol=1e-4)


def test_cut_mix_puts_boxes_of_generated_images_into_real_ones():
  shares = []
  for seed in range(200):
    mixed, mask = gan.cut_mix(jax.random.key(seed), REAL, MADE)
    np.testing.assert_array_equal(mixed, np.where(mask == 1, REAL, MADE))
    outside = np.argwhere(np.asarray(mask) == 0)
    if len(outside):
      # What is generated is one full box.
      height, width = outside.max(0) - outside.min(0) + 1
      assert height * width == len(outside)
    shares.append(float(mask.mean()))
  assert min(shares) < 0.3 and max(shares) > 0.95


def test_the_denoiser_pleases_the_critic_and_the_critic_learns_the_difference():
  data = batch(REAL, MADE)
  task = training.wgan_vgg(Bias(), optax.sgd(1.0), Brightness(), optax.sgd(0.01), perceptual=None, penalty=0.0)
  state = task.init(jax.random.key(0), data)
  after, shown = jax.jit(task.step)(state, data, jax.random.key(1))
  np.testing.assert_allclose(shown['wasserstein'], REAL.mean() - MADE.mean(), rtol=1e-5)
  # Real images are brighter, so the critic's gain grows; the denoiser follows it upwards.
  gain = after.critics['image'].variables['params']['gain']
  np.testing.assert_allclose(gain, 1 + 0.01 * (REAL.mean() - MADE.mean()), rtol=1e-5)
  np.testing.assert_allclose(after.generator.variables['params']['bias'], gain, rtol=1e-5)


def test_discriminators_learn_real_from_generated():
  data = batch(REAL, MADE)
  rates = optax.sgd(0.0), optax.sgd(0.05)
  task = training.du_gan(Bias(), rates[0], BrightnessMap(), rates[1], mix_steps=1)
  state = task.init(jax.random.key(0), data)
  step = jax.jit(task.step)
  for i in range(3):
    state, _ = step(state, data, jax.random.key(i))
  # Real is 1 and brighter: the gain must be positive.
  assert state.critics['image'].variables['params']['gain'] > 0.05


def test_divergence_of_the_code_is_that_of_normal_distributions():
  mean, logvar = np.array([[0.3, -1.0], [2.0, 0.0]], np.float32), np.array([[0.5, -2.0], [0.0, 1.0]], np.float32)

  class Fixed(nn.Module):
    def __call__(self, image, condition, key):
      return image, jnp.asarray(mean[: len(image)]), jnp.asarray(logvar[: len(image)])

  data = batch(REAL[:2], MADE[:2])
  task = training.cvae(
    Fixed(),
    optax.sgd(0.0),
    Brightness(),
    optax.sgd(0.0),
    lambda x: x,
    image=lambda b: b.target,
    l1_weight=1.0,
    kl_weight=1.0,
    adversarial_weight=0.0,
  )
  state = training.representation.VAEState(training.TrainState(jnp.int32(0), {}, ()), None)
  found = task.evaluate(state, jax.tree.map(lambda x: x[:1], data))['loss']
  q = stats.norm(mean[0], np.exp(logvar[0] / 2))
  # KL(q | N(0, 1)) = -H(q) - E_q log N(0, 1)
  expected = (-q.entropy() + 0.5 * np.log(2 * np.pi) + 0.5 * (mean[0] ** 2 + np.exp(logvar[0]))).sum()
  np.testing.assert_allclose(found, [expected], rtol=1e-5)
