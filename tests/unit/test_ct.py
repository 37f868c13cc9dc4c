"""Networks of the CT part: their sizes, and the laws of the flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import models, training

IMAGE = jax.ShapeDtypeStruct((1, 128, 128), np.float32)
SIZES = {
  'cnn10': ((IMAGE,), 24_513),
  'redcnn': ((IMAGE,), 1_848_865),
  'dugan': ((IMAGE,), 1_848_865),
  'wganvgg': ((IMAGE,), 56_097),
  'wganvgg_critic': ((IMAGE,), 45_448_641),
  'dugan_discriminator': ((IMAGE,), 57_213_839),
  'cvae': ((IMAGE, IMAGE, jax.random.key(0)), 108_878_827),
  'cvae_critic': ((IMAGE, IMAGE), 9_310_674),
  'cinn': ((jax.ShapeDtypeStruct((1, 256), np.float32), IMAGE), 137_133_184),
}


def count(tree):
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize('name', SIZES)
def test_parameters_are_those_of_the_papers(name):
  inputs, expected = SIZES[name]
  variables = jax.eval_shape(models.build(name).init, jax.random.key(0), *inputs)
  assert count(variables['params']) == expected


def test_parts_of_the_conditional_vae():
  parts = jax.eval_shape(models.build('cvae').init, jax.random.key(0), IMAGE, IMAGE, jax.random.key(0))['params']
  assert count(parts['encoder']) == 24_553_984 and count(parts['decoder']) == 84_324_843
  blocks = [count(parts['decoder'][f'block_{i}']) for i in range(5)]
  assert blocks == [45_756_200, 17_797_160, 4_622_504, 1_242_344, 354_056]
  flow = jax.eval_shape(models.build('cinn').init, jax.random.key(0), *SIZES['cinn'][0])['params']
  assert count(flow['embedder']) == 11_144_320 and count(flow['block_0']) == 10_499_072


FLOW = dict(blocks=2, hidden=8, chans=2, depth=1, embedding=3)


def drawn(dtype=np.float32, features=6):
  rng = np.random.default_rng(0)
  z = (rng.standard_normal((32, features)) @ rng.standard_normal((features, features)) + 3).astype(dtype)
  return z, rng.standard_normal((32, 4, 4)).astype(dtype)


@pytest.mark.parametrize(
  'bits, tolerance, features', [pytest.param(32, 1e-4, 6, marks=pytest.mark.slow), (64, 1e-10, 7)]
)
def test_the_flow_inverts_and_knows_its_determinant(bits, tolerance, features, request):
  if bits == 64:
    request.getfixturevalue('x64')
  dtype = np.dtype(f'float{bits}')
  z, y = drawn(dtype, features)
  module = models.build('cinn', **FLOW)
  variables = jax.tree.map(lambda x: x.astype(dtype), jax.jit(module.init)(jax.random.key(0), z, y))
  v, logdet = jax.jit(module.apply)(variables, z, y)
  back, minus = jax.jit(lambda v, y: module.apply(variables, v, y, reverse=True))(v, y)
  assert float(jnp.max(jnp.abs(back - z))) < tolerance
  np.testing.assert_allclose(minus, -logdet, rtol=1e-3 if bits == 32 else 1e-8)
  if bits == 64:
    jacobian = jax.jit(jax.jacobian(lambda x, y: module.apply(variables, x[None], y[None])[0][0]))
    for i in range(3):
      np.testing.assert_allclose(
        logdet[i], np.linalg.slogdet(jacobian(jnp.asarray(z[i]), y[i]))[1], rtol=1e-8, atol=1e-8
      )


@pytest.mark.slow
def test_the_public_determinant_differs_by_the_leaky_relu(x64):
  z, y = drawn(np.float64)
  true, public = (models.build('cinn', **FLOW, reference=r) for r in (False, True))
  variables = jax.jit(true.init)(jax.random.key(0), z, y)
  (v, logdet), (same, less) = (jax.jit(m.apply)(variables, z, y) for m in (true, public))
  np.testing.assert_array_equal(v, same)
  missing = (logdet - less) / np.log(0.9)
  # A whole number of negative entries, about half of them.
  np.testing.assert_allclose(missing, np.round(missing), atol=1e-8)
  assert 0.2 < np.mean(missing) / (2 * 6) < 0.8


def test_normalisation_starts_from_the_data_and_survives_a_reload(tmp_path):
  z, y = drawn()
  module = models.build('cinn', **FLOW)
  variables = jax.jit(module.init)(jax.random.key(0), z, y)
  first = variables['params']['block_0']['norm']
  normalised = first['scale'] * (z + first['loc'])
  np.testing.assert_allclose(normalised.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(normalised.std(0, ddof=1), 1, atol=1e-4)
  checkpointer = training.Checkpointer(tmp_path)
  checkpointer.save_last(1, variables)
  checkpointer.close()
  again = training.Checkpointer(tmp_path)
  # Shapes from another batch: the start must not come from it.
  like = jax.eval_shape(module.init, jax.random.key(1), z[:3], y[:3])
  restored = again.restore(like)
  again.close()
  jax.tree.map(np.testing.assert_array_equal, restored, variables)
  np.testing.assert_array_equal(module.apply(restored, z[:3], y[:3])[0], module.apply(variables, z[:3], y[:3])[0])


def test_spectral_norm_converges_to_the_largest_singular_value():
  from jaxrec.models.critics import SpectralNorm

  kernel = jax.random.normal(jax.random.key(0), (3, 3, 5, 7))
  module = SpectralNorm()
  variables = module.init(jax.random.key(1), kernel)
  for _ in range(200):
    out, variables = module.apply(variables, kernel, mutable=['spectral'])
  assert abs(np.linalg.norm(out.reshape(-1, 7), 2) - 1) < 1e-3
  # Without a mutable collection nothing moves, and every call gives the same.
  np.testing.assert_array_equal(module.apply(variables, kernel), module.apply(variables, kernel))


def test_vae_without_condition_ignores_it():
  sizes = dict(
    size=(16, 16),
    latent=8,
    width=8,
    blocks=2,
    chunk=2,
    classes=3,
    class_hidden=4,
    embedding=2,
    encoder_width=2,
    stages=(1, 1),
  )
  module = models.build('cvae', **sizes, conditional=False)
  x = jnp.ones((2, 16, 16))
  shapes = jax.eval_shape(module.init, jax.random.key(0), x, x, jax.random.key(1))
  # Nothing as condition is enough.
  image, mean, _ = jax.eval_shape(module.apply, shapes, x, None, jax.random.key(2))
  assert image.shape == x.shape and mean.shape == (2, 8)
  for option, words in (
    (dict(size=(18, 16)), 'size: .* no multiple of 2\\^2'),
    (dict(latent=4), 'latent: 4 is too short'),
  ):
    with pytest.raises(ValueError, match=words):
      jax.eval_shape(models.build('cvae', **{**sizes, **option}).init, jax.random.key(0), x, x, jax.random.key(1))


def test_texture_code_works_in_its_unit():
  sizes = dict(size=(16, 16), latent=6, width=8, blocks=2, chunk=2, classes=2, class_hidden=2, embedding=2, encoder_width=2, stages=(1,), texture=3)  # fmt: skip
  x, y = jax.random.normal(jax.random.key(2), (2, 3, 16, 16))
  first, second = (models.build('cvae', **sizes, texture_scale=s) for s in (1.0, 0.125))
  variables = first.init(jax.random.key(0), x, y, jax.random.key(1))
  code = first.apply(variables, x, y, method='encode')[0].at[:, :6].set(0)
  smaller = second.apply(variables, x / 8, y / 8, method='encode')[0]
  np.testing.assert_allclose(code[:, 6:], (x - y).reshape(3, -1), atol=1e-6)
  np.testing.assert_allclose(code[:, 6:], smaller[:, 6:], rtol=1e-6)

  def added(module, condition):
    images = [module.apply(variables, z, condition, method='decode') for z in (code, jnp.zeros_like(code))]
    return images[0] - images[1]

  np.testing.assert_allclose(added(first, y), 8 * added(second, y / 8), rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(added(first, y), x - y, atol=0.4)
