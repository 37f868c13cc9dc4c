"""One network in every framework: the same images, the same attacks, its own weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrec
from jaxrec import networks

KERNEL = np.random.default_rng(0).normal(0, 0.3, (3, 3)).astype(np.float32)


class Linen(nn.Module):
  @nn.compact
  def __call__(self, kspace, mask, acs):
    image = networks.zero_filled(jaxrec.Scan(kspace, mask, acs, acs, None, None, None))[0]
    return nn.Conv(1, (3, 3), use_bias=False, padding='SAME')(image[..., None])[..., 0]


class Nnx(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.conv = nnx.Conv(1, 1, (3, 3), use_bias=False, rngs=rngs)
    self.conv.kernel[...] = KERNEL[..., None, None]
    self.dropout = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, image):
    return self.dropout(self.conv(image[None, ..., None]))


def equinox():
  eqx = pytest.importorskip('equinox')
  conv = eqx.nn.Conv2d(1, 1, 3, padding=1, use_bias=False, key=jax.random.key(0))
  conv = eqx.tree_at(lambda c: c.weight, conv, jnp.asarray(KERNEL[None, None]))
  return jaxrec.network(conv, inputs=lambda scan: (networks.zero_filled(scan)[0][None],))


def torch():
  """From the complex k-space, so that its gradient is complex too."""
  torch = pytest.importorskip('torch')

  class Torch(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.conv = torch.nn.Conv2d(1, 1, 3, padding=1, bias=False)
      self.conv.weight.data = torch.from_numpy(KERNEL[None, None])
      self.dropout = torch.nn.Dropout()

    def forward(self, kspace, mask):
      k = torch.fft.ifftshift(torch.where(mask, kspace, 0), (-2, -1))
      coils = torch.fft.fftshift(torch.fft.ifft2(k, norm='ortho'), (-2, -1))
      return self.dropout(self.conv(coils.abs().square().sum(0).sqrt()[None, None]))

  return jaxrec.torch_network(Torch(), inputs=lambda scan: (scan.kspace, scan.mask))


MAKE = {
  'linen': lambda: jaxrec.network(Linen(), {'params': {'Conv_0': {'kernel': jnp.asarray(KERNEL[..., None, None])}}}),
  'nnx': lambda: jaxrec.network(Nnx(), inputs=networks.zero_filled),
  'equinox': equinox,
  'torch': torch,
}


def convolved(kernel, scan):
  return jax.scipy.signal.convolve2d(networks.zero_filled(scan)[0], kernel[::-1, ::-1], mode='same')


def attacked(net, scan, **options):
  worst = jaxrec.attack(
    net.reconstruct, jaxrec.coil_noise(0.05), jaxrec.pgd(num_steps=3), jaxrec.region_mse(), **options
  )
  batch = jax.tree.map(lambda x: jnp.stack([x, x]), scan)
  return jax.jit(jax.vmap(worst, (None, None, 0)))(net.variables, jax.random.key(0), batch)


@pytest.fixture(scope='module')
def expected(scan):
  return attacked(jaxrec.network(convolved, jnp.asarray(KERNEL)), scan)


@pytest.mark.parametrize('framework', MAKE)
def test_a_network_is_attacked_alike_in_every_framework(framework, scan, expected):
  net = MAKE[framework]()
  np.testing.assert_allclose(net(scan), convolved(KERNEL, scan), rtol=1e-4, atol=1e-5 * float(scan.scale))
  found = attacked(net, scan)
  np.testing.assert_allclose(found.trace, expected.trace, rtol=1e-4)
  size = float(jnp.abs(expected.delta).max())
  np.testing.assert_allclose(found.delta, expected.delta, atol=1e-3 * size)
  assert net.one_program == (framework != 'torch')


def test_a_surrogate_has_weights_of_its_own(scan):
  mine = jaxrec.network(convolved, jnp.asarray(KERNEL))
  other = jaxrec.network(convolved, jnp.asarray(KERNEL[::-1]))
  transferred = attacked(mine, scan, surrogate=other)
  np.testing.assert_array_equal(transferred.delta, attacked(other, scan).delta)
  seen = jax.vmap(mine.reconstruct, (None, 0))(mine.variables, transferred.sample)
  np.testing.assert_allclose(transferred.adversarial, seen, rtol=1e-4, atol=1e-6 * float(scan.scale))


MISTAKES = {
  'no weights': (lambda: jaxrec.network(Linen()), 'give its variables'),
  'two sets of weights': (lambda: jaxrec.network(Nnx(), {}), 'leave variables out'),
  'no network': (lambda: jaxrec.network(3), 'cannot be called'),
  'inputs of a function': (lambda: jaxrec.network(convolved, inputs=networks.measured), 'leave inputs out'),
  'no torch module': (lambda: jaxrec.torch_network(convolved, inputs=networks.measured), 'use jaxrec.network'),
}


@pytest.mark.parametrize('kind', MISTAKES)
def test_mistakes_are_named(kind):
  make, words = MISTAKES[kind]
  with pytest.raises(ValueError, match=words):
    make()


def test_what_is_no_image_is_named(scan):
  for wrong in (lambda scan: scan.kspace, lambda scan: scan.kspace[0]):
    with pytest.raises(ValueError, match=r'must be a float image \[row, col\]'):
      jaxrec.network(wrong)(scan)


def test_weights_are_drawn_as_their_layer_says(scan):
  """Kernels and biases are uniform on +-1/sqrt(fan in), whatever generator draws them, and none repeats another."""
  module = jaxrec.models.UNetRecon(chans=8, pools=2)

  def draw(seed):
    return jaxrec.models.start(module, jax.random.key(seed), scan)

  variables = draw(0)
  fans = {'/'.join(k.key for k in path): x for path, x in jax.tree.flatten_with_path(variables['params'])[0]}
  large = {name: np.ravel(x) for name, x in fans.items() if x.size > 500 and 'transposed' not in name.lower()}
  assert len(large) > 4
  for name, x in large.items():
    bound = np.abs(x).max()
    assert abs(x.mean()) < 4 * bound / np.sqrt(3 * x.size) and abs(x.std() - bound / np.sqrt(3)) < 0.06 * bound, name
    fan_in = np.prod(fans[name].shape[:-1])
    assert bound == pytest.approx(fan_in**-0.5, rel=0.02) or bound == pytest.approx(
      np.prod(fans[name].shape[1:]) ** -0.5, rel=0.02
    ), name
  heads = [tuple(np.round(x[:3] * np.abs(x).max() ** -1, 4)) for x in large.values()]
  assert len(set(heads)) == len(heads)
  jax.tree.map(np.testing.assert_array_equal, variables, draw(0))
  assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(draw(1))))
