"""Digits: float32 products that ask for all of theirs, and bfloat16 networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrec
from configs import common, quickstart
from jaxrec import models, training
from jaxrec.data import loader, synthetic
from jaxrec.experiments import options, run
from jaxrec.invariances import analysis, known, sampling, witness
from jaxrec.models import layers, vgg
from tests.property import test_perturbations, test_searches, test_tasks
from tests.unit import test_ct

NETWORKS = {
  'varnet': dict(name='varnet', num_cascades=2, chans=4, pools=1, sens_chans=2, sens_pools=1, remat=True),
  'U-Net': dict(name='unet_recon', chans=4, pools=1),
  'batch norm and PReLU': dict(
    name='unet_recon', chans=4, pools=1, norm='batch', activation='prelu', upsample='bilinear', activation_first=True
  ),
}


def like(*shape, dtype=np.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def differentiated(module, *inputs):
  """Gradients to weights and inputs."""
  variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  exact = [jnp.issubdtype(x.dtype, jnp.inexact) for x in inputs]

  def loss(params, images, variables):
    given = iter(images)
    outputs = module.apply({**variables, 'params': params}, *(next(given) if e else x for e, x in zip(exact, inputs)))
    return sum(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(outputs))

  return jax.grad(loss, (0, 1)), (variables['params'], [x for e, x in zip(exact, inputs) if e], variables)


def built(name, dtype):
  chosen = dict(NETWORKS[name])
  return models.build(chosen.pop('name'), dtype=dtype, **chosen)


@pytest.fixture(scope='module')
def batch():
  return loader.stack([synthetic.scan(s, rows=32, cols=32, coils=2, acceleration=2) for s in range(2)])


def equations(jaxpr):
  """All operations of a program, those of its inner programs too."""
  for equation in jaxpr.eqns:
    yield equation
    for value in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
    ):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from equations(inner)


def kinds(equation):
  return {v.aval.dtype for v in equation.invars if hasattr(v.aval, 'dtype')}


SUMS = ('reduce_sum', 'cumsum', 'fft', 'sqrt', 'rsqrt', 'log', 'reduce_window_sum')


@pytest.mark.parametrize('name', NETWORKS)
def test_convolutions_alone_are_computed_in_few_digits(name, batch):
  task = training.supervised(built(name, 'bfloat16'), training.optimizer('adam', 1e-3))
  state = jax.eval_shape(task.init, jax.random.key(0), batch)
  assert {leaf.dtype for leaf in jax.tree.leaves((state.variables, state.opt_state))} <= {
    jnp.dtype('float32'),
    jnp.dtype('int32'),
  }
  program = jax.make_jaxpr(task.step)(state, batch, jax.random.key(0))
  assert {v.aval.dtype for v in program.jaxpr.outvars} <= {jnp.dtype('float32'), jnp.dtype('int32')}
  products = 0
  for equation in equations(program.jaxpr):
    if equation.primitive.name == 'conv_general_dilated':
      few = kinds(equation) == {jnp.dtype('bfloat16')}
      # The other convolutions would be those of no network.
      assert few, equation
      products += few
    if equation.primitive.name in SUMS:
      assert jnp.dtype('bfloat16') not in kinds(equation), equation
  assert products > 10


@pytest.mark.parametrize('name', NETWORKS)
def test_float32_is_what_it_was_and_bfloat16_comes_near(name, batch):
  exact, few = (built(name, dtype) for dtype in ('float32', 'bfloat16'))
  variables = models.start(exact, jax.random.key(0), batch)
  jax.tree.map(np.testing.assert_array_equal, variables, models.start(few, jax.random.key(0), batch))
  images = [np.asarray(jax.jit(models.bind(net))(variables, batch)) for net in (exact, few)]
  assert images[1].dtype == np.float32
  apart = np.linalg.norm(images[1] - images[0]) / np.linalg.norm(images[0])
  assert 1e-6 < apart < 2e-2

  def cost(net):
    def of(params):
      image = models.bind_training(net)({**variables, 'params': params}, batch)[0]
      return jnp.mean((image - batch.target) ** 2) / jnp.mean(batch.target**2)

    return jax.tree.leaves(jax.jit(jax.grad(of))(variables['params']))

  a, b = (np.concatenate([np.ravel(x) for x in cost(net)]) for net in (exact, few))
  assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.9


def test_the_environment_changes_no_number_of_a_run(monkeypatch, tmp_path):
  """Of the settings that JAX reads from its variables."""
  others = {'jax_enable_x64': True, 'jax_default_prng_impl': 'rbg', 'jax_threefry_partitionable': False,
            'jax_default_matmul_precision': 'bfloat16', 'jax_numpy_dtype_promotion': 'strict', 'jax_numpy_rank_promotion': 'raise'}  # fmt: skip
  assert others.keys() == run._PINNED.keys()
  before = {name: getattr(jax.config, name) for name in others}
  found = {}
  monkeypatch.setattr(run, '_run', lambda _: found.update({name: getattr(jax.config, name) for name in others}))
  try:
    for name, value in others.items():
      jax.config.update(name, value)
    run.run(quickstart.get_config('smoke'), tmp_path)
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
  assert found == run._PINNED and not set(found.items()) & set(others.items())


def test_norms_count_in_float32():
  """A mean over so many pixels would stand still in bfloat16: 256 + 1 is 256 there."""
  x = 3 + jnp.asarray(np.random.default_rng(0).normal(size=(1, 128, 128, 2)), jnp.bfloat16)
  y = layers.instance_norm_leaky_relu(x, 1.0)
  assert y.dtype == jnp.bfloat16
  exact = layers.instance_norm_leaky_relu(x.astype(jnp.float32), 1.0)
  np.testing.assert_allclose(y.astype(np.float32), exact, atol=2e-2)
  assert abs(float(jnp.mean(y.astype(jnp.float32)))) < 1e-3


def test_kernel_gradients_count_in_float32():
  """All ones: the gradient of a tap is the number of pixels that it meets."""
  x, kernel = jnp.ones((2, 96, 96, 1), jnp.bfloat16), jnp.ones((3, 3, 1, 1), jnp.bfloat16)
  gradient = jax.jit(jax.grad(lambda k: jnp.sum(layers.conv2d(x, k).astype(jnp.float32))))(kernel)
  np.testing.assert_allclose(gradient[1, 1, 0, 0].astype(np.float32), 2 * 96 * 96, rtol=4e-3)


@pytest.mark.parametrize('size, fold', [(3, 8), (3, 4), (1, 8)])
def test_folded_kernels_have_gradients_as_exact_as_plain_ones(size, fold):
  """On TPUs up to eight copies of each tap are added up."""
  x, g = (jax.random.normal(jax.random.key(i), (1, 40, 40, n)).astype(jnp.bfloat16) for i, n in ((0, 2), (1, 9)))
  folded = partial(layers._folded_conv2d, fold=fold)
  want = layers._kernel_gradient(x.astype(jnp.float32), g.astype(jnp.float32), shape=(size, size, 2, 9))
  plain, copies = (
    jnp.linalg.norm(gradient.astype(jnp.float32) - want) / jnp.linalg.norm(want)
    for gradient in (
      layers._kernel_gradient(x, g, shape=want.shape),
      layers._kernel_gradient(x, g, shape=want.shape, convolution=folded),
    )
  )
  assert 0 < copies < 1.5 * plain < 0.01, (plain, copies)


def test_training_goes_down(batch):
  task = training.supervised(built('varnet', 'bfloat16'), optax.adam(3e-3), loss='l1')
  state, losses = task.init(jax.random.key(0), batch), []
  step = jax.jit(task.step)
  for i in range(8):
    state, metrics = step(state, batch, jax.random.key(i))
    losses.append(float(metrics['loss']))
  assert losses[-1] < losses[0]


@pytest.mark.fault
def test_other_types_are_refused(tmp_path):
  config = common.varnet(common.base('x', 'smoke'))
  config.model.dtype = 'float16'
  with pytest.raises(ValueError, match="^model.dtype: 'float16' is unknown; choose one of float32, bfloat16$"):
    options.check(config, tmp_path)
  with pytest.raises(ValueError, match="^model.dtype: 'float16' is unknown; choose one of float32, bfloat16"):
    jax.eval_shape(models.UNet(2, 1, dtype='float16').init, jax.random.key(0), jnp.ones((8, 8, 1)))


def attacked(net, perturbation, search, batch):
  """An attack on one scan."""
  module, scan = built(net, 'float32'), jax.tree.map(lambda x: x[0], batch)
  variables = jax.eval_shape(lambda: models.start(module, jax.random.key(0), batch))
  attack = jaxrec.attack(models.bind(module), perturbation, search, jaxrec.region_ssim())
  return attack, (variables, jax.random.key(0), scan)


def trained(name):
  task, parallel = test_tasks.made(name)
  batch, key = test_tasks.batch(name), jax.random.key(0)
  step = jax.vmap(task.step, in_axes=None, axis_name=parallel.axis, axis_size=1)
  return step, (jax.eval_shape(task.init, key, batch), batch, key)


def looked_for():
  """The search for a witness, of a network with a product of its own."""
  side, modes = 8, 5
  noise = known.texture(side)
  pixel, tests = like(side**2), {name: like() for name in witness.Tests.__dataclass_fields__}
  tests |= {name: pixel for name in ('before', 'after', 'signal', 'absent')}
  tests |= dict(whiten=like(modes, side**2), norms=like(2))
  return witness.search(known.removal(noise, 2.0), side, num_steps=2), (
    witness.Tests(**tests), like(side, side), np.zeros(2, int),
  )  # fmt: skip


PROGRAMS = {
  **{name: lambda _, name=name: differentiated(models.build(name), *test_ct.SIZES[name][0]) for name in test_ct.SIZES},
  'VGG': lambda _: differentiated(vgg.VGG(), like(1, 32, 32)),
  'DCGAN': lambda _: differentiated(models.build('dcgan', size=(32, 32), chans=2, depth=2), like(2, 7)),
  **{f'{name}, training': lambda _, name=name: trained(name) for name in test_tasks.TABLE},
  **{
    f'{name}, search': lambda batch, s=search: attacked('varnet', jaxrec.coil_noise(0.05, start='random'), s, batch)
    for name, search in test_searches.TABLE.items()
  },
  **{
    f'{name}, perturbation': lambda batch, p=make: attacked('U-Net', p(1.0), jaxrec.pgd(num_steps=1), batch)
    for name, make in test_perturbations.TABLE.items()
  },
  'witness': lambda _: looked_for(),
  'moments': lambda _: (sampling.noise_moments, (like(9, 4),)),
  'excess variation': lambda _: (analysis.excess_variation, (like(4, 32, 32), like(5, 32, 32))),
}


@pytest.mark.parametrize('name', PROGRAMS)
def test_float32_products_ask_for_all_their_digits(name, batch):
  """By themselves, whatever `jax_default_matmul_precision` is where the library is called."""
  program, arguments = PROGRAMS[name](batch)
  products = [
    equation
    for equation in equations(jax.make_jaxpr(program)(*arguments).jaxpr)
    if equation.primitive.name in ('dot_general', 'conv_general_dilated')
  ]
  assert products
  for equation in products:
    assert equation.params['precision'] in (layers.PRECISION, (layers.PRECISION,) * 2), equation
