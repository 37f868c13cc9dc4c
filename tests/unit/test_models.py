"""Layers against plain formulations, networks against laws, weights against bad files."""

import re
import subprocess
import sys
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import stats

import jaxrec
from jaxrec.data import synthetic
from jaxrec.models import draws, layers, weights
from jaxrec.models.unet import moments, standardise, zero_filled
from jaxrec.models.varnet import Sensitivities


def normal(shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def plain_conv(x, kernel):
  numbers = ('NHWC', 'HWIO', 'NHWC')
  return lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=numbers, precision='highest')


@pytest.mark.parametrize(
  'shape, kernel',
  [
    ((2, 9, 7, 3), (3, 3, 3, 4)),
    ((1, 90, 80, 2), (3, 3, 2, 3)),
    ((1, 6, 8, 4), (3, 3, 4, 16)),
    ((3, 6, 5, 4), (1, 1, 4, 2)),
    ((2, 11, 8, 1), (5, 5, 1, 2)),
  ],
)
def test_convolution_and_its_gradients_equal_the_plain_one(shape, kernel):
  x, k = normal(shape), normal(kernel, 1)
  g = normal((*shape[:3], kernel[-1]), 2)
  want, plain = jax.vjp(plain_conv, x, k)
  got, ours = jax.vjp(layers.conv2d, x, k)
  np.testing.assert_allclose(got, want, atol=1e-5)
  for a, b in zip(ours(g), plain(g)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))
  general = layers._kernel_gradient(x, g, shape=kernel)
  np.testing.assert_allclose(general, plain(g)[1], rtol=1e-4, atol=1e-3)


def test_only_who_differentiates_kernels_traces_their_gradient():
  x, k = normal((1, 6, 8, 2)), normal((3, 3, 2, 3), 1)

  def sums(argument):
    return 'scan' in str(jax.make_jaxpr(jax.grad(lambda x, k: jnp.sum(layers.conv2d(x, k) ** 2), argument))(x, k))

  assert (sums(0), sums(1)) == (False, True)


@pytest.mark.parametrize('size, fold', [(3, 2), (3, 8), (3, 16), (1, 8)])
def test_pixels_as_channels_change_no_convolution(size, fold):
  x, k, g = normal((2, 5, 16, 3)), normal((size, size, 3, 4), 1), normal((2, 5, 16, 4), 2)
  folded = partial(layers._folded_conv2d, fold=fold)
  np.testing.assert_allclose(folded(x, k), plain_conv(x, k), atol=1e-5)
  want = jax.vjp(lambda k: plain_conv(x, k), k)[1](g)[0]
  np.testing.assert_allclose(layers._kernel_gradient(x, g, shape=k.shape, convolution=folded), want, atol=1e-4)


@pytest.mark.parametrize('size, fold', [((3, 3), 2), ((3, 3), 4), ((5, 5), 2), ((1, 3), 4)])
def test_pixels_taken_together_change_no_convolution(size, fold, x64):
  x, k, g = (jnp.asarray(normal(s, i), float) for i, s in enumerate([(2, 5, 8, 3), (*size, 3, 4), (2, 5, 8, 4)]))
  got, ours = jax.vjp(partial(layers._output_folded_conv2d, fold=fold), x, k)
  want, plain = jax.vjp(plain_conv, x, k)
  np.testing.assert_allclose(got, want, atol=1e-12)
  for a, b in zip(ours(g), plain(g)):
    np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize(
  'cols, n_in, n_out, size, fold',
  [(368, 9, 9, 3, 4), (46, 9, 9, 3, 2), (45, 9, 9, 3, 1), (368, 18, 9, 3, 2), (368, 9, 18, 3, 2), (184, 18, 18, 3, 1), (368, 6, 2, 1, 1)],
)  # fmt: skip
def test_on_cpus_few_channels_take_pixels_together(cols, n_in, n_out, size, fold):
  chosen = layers._narrow_conv2d(jnp.zeros((1, 8, cols, n_in)), (size, size, n_in, n_out))
  assert getattr(chosen, 'keywords', {}).get('fold', 1) == fold


@pytest.mark.parametrize('size', [(3, 3), (1, 1), (5, 5), (3, 5)])
@pytest.mark.parametrize('n_in, n_out', [(3, 4), (4, 3), (2, 2)])
@pytest.mark.parametrize('form', [layers._kernel_gradient_by_images, layers._kernel_gradient_by_blocks])
def test_kernel_gradients_on_cpus_are_those_of_the_convolution(form, size, n_in, n_out, x64):
  x, k, g = (
    jnp.asarray(normal(s, i), float) for i, s in enumerate([(3, 5, 7, n_in), (*size, n_in, n_out), (3, 5, 7, n_out)])
  )
  want = jax.vjp(lambda k: plain_conv(x, k), k)[1](g)[0]
  np.testing.assert_allclose(form(x, g, shape=k.shape), want, atol=1e-12)
  few = form(x.astype(jnp.bfloat16), g.astype(jnp.bfloat16), shape=k.shape)
  assert few.dtype == jnp.bfloat16
  np.testing.assert_allclose(few.astype(float), want, atol=0.1 * float(jnp.abs(want).max()))


@pytest.mark.parametrize('slow', [True, False])
def test_kernel_gradients_of_old_releases_are_convolutions(slow, monkeypatch):
  monkeypatch.setattr(layers, '_SLOW_PRODUCTS', slow)
  x, k = normal((2, 6, 8, 2)), normal((3, 3, 2, 3), 1)
  gradient = jax.jit(lambda x, k: jax.grad(lambda k: jnp.sum(layers.conv2d(x, k) ** 2))(k))
  lowered = gradient.trace(x, k).lower(lowering_platforms=('cpu',)).as_text()
  assert ('stablehlo.dot_general' in lowered) == (not slow)
  np.testing.assert_allclose(gradient(x, k), jax.grad(lambda k: jnp.sum(plain_conv(x, k) ** 2))(k), rtol=1e-4)


@pytest.mark.parametrize('size', [(3, 3), (1, 1), (5, 5), (3, 5)])
@pytest.mark.parametrize('n_in, n_out', [(3, 4), (4, 3), (2, 2)])
def test_kernel_gradients_by_rows_are_those_of_the_convolution(size, n_in, n_out, monkeypatch):
  monkeypatch.setattr(layers, '_PART_PIXELS', 2 * 5 * 7)  # Of four images two at a time.
  x, k, g = normal((4, 5, 7, n_in)), normal((*size, n_in, n_out), 1), normal((4, 5, 7, n_out), 2)
  want = jax.vjp(lambda k: plain_conv(x, k), k)[1](g)[0]
  np.testing.assert_allclose(layers._kernel_gradient_by_rows(x, g, shape=k.shape), want, atol=1e-4)
  few = jax.vjp(lambda k: plain_conv(x[:3], k), k)[1](g[:3])[0]
  np.testing.assert_allclose(layers._kernel_gradient_by_rows(x[:3], g[:3], shape=k.shape), few, atol=1e-4)


@pytest.mark.parametrize(
  'flags, chans, dtype, products',
  [
    ('--xla_gpu_deterministic_ops=true', 9, 'float32', True),
    ('--xla_gpu_autotune_level=0 --xla_gpu_deterministic_ops', 9, 'float32', True),
    ('--xla_gpu_deterministic_ops=false --xla_gpu_deterministic_ops=True', 9, 'float32', True),
    ('--xla_gpu_deterministic_ops=true --xla_gpu_deterministic_ops=0', 9, 'float32', False),
    ('--xla_gpu_deterministic_ops=false', 9, 'float32', False),
    ('', 9, 'float32', False),
    ('--xla_gpu_deterministic_ops=true', 72, 'float32', False),
    ('--xla_gpu_deterministic_ops=true', 9, 'bfloat16', False),
  ],
)
def test_on_cards_that_sum_in_order_kernel_gradients_of_few_channels_are_products(
  flags, chans, dtype, products, monkeypatch
):
  monkeypatch.setenv('XLA_FLAGS', flags)
  x, k = jnp.zeros((1, 8, 8, chans), dtype), jnp.zeros((3, 3, chans, chans), dtype)
  gradient = jax.jit(lambda x, k: jax.grad(lambda k: jnp.sum(layers.conv2d(x, k) ** 2))(k))
  lowered = gradient.trace(x, k).lower(lowering_platforms=('cuda',)).as_text()
  assert ('stablehlo.dot_general' in lowered) == products
  assert lowered.count('stablehlo.convolution') == (1 if products else 2)


@pytest.mark.parametrize(
  'cols, n_in, n_out, fold',
  [(368, 6, 6, 8), (368, 18, 9, 4), (184, 18, 18, 4), (92, 36, 36, 2), (46, 9, 9, 2), (45, 9, 9, 1), (368, 72, 72, 1)],
)
def test_on_tpus_pixels_fill_the_channels_that_a_register_has(cols, n_in, n_out, fold):
  chosen = layers._wide_conv2d(jnp.zeros((1, 8, cols, n_in)), (3, 3, n_in, n_out))
  assert getattr(chosen, 'keywords', {}).get('fold', 1) == fold


def test_normalisation_and_its_gradient_equal_the_plain_one():
  def plain(x):
    y = (x - x.mean((1, 2), keepdims=True)) / jnp.sqrt(x.var((1, 2), keepdims=True) + 1e-5)
    return jax.nn.leaky_relu(y, 0.2)

  x, g = normal((2, 6, 5, 3)) * 2 + 1, normal((2, 6, 5, 3), 1)
  want, pull = jax.vjp(plain, x)
  got, ours = jax.vjp(layers.instance_norm_leaky_relu, x)
  np.testing.assert_allclose(got, want, atol=1e-5)
  np.testing.assert_allclose(ours(g)[0], pull(g)[0], atol=1e-5)


@pytest.mark.parametrize('rows', [1, 3, 5, 8])
@pytest.mark.parametrize('order', [0, 1, 2])
def test_means_of_two_arrays_and_their_derivatives_are_those_of_plain_ones(order, rows, x64):
  def value(means_of):
    def of(x):
      first, second = means_of(x, jnp.sin(x))
      return jnp.sum(jnp.cos(first) * second**2)

    return of

  ours = value(layers.spatial_means)
  want = value(lambda *both: [x.mean((1, 2), keepdims=True) for x in both])
  x = jnp.asarray(normal((2, rows, 4, 2)), float)
  for _ in range(order):
    ours, want = (jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x)))) for f in (ours, want))
  np.testing.assert_allclose(jax.jit(ours)(x), jax.jit(want)(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('order', [0, 1, 2])
def test_standardised_images_and_their_derivatives_are_those_of_plain_ones(order, x64):
  def plain(x):
    mean, std = moments(x, (1, 2))
    return (x - mean) / jnp.where(std > 0, std, 1), mean, std

  def value(of_image):
    def of(x):
      y, mean, std = of_image(x)
      return jnp.sum(jnp.sin(y) * weight * (std + 0.3) + y**3 * mean + 3 * std)

    return of

  x, weight = jnp.asarray(normal((2, 5, 4, 3)), float).at[..., 2].set(0.5), jnp.asarray(normal((2, 5, 4, 3), 1), float)
  ours, want = value(standardise), value(plain)
  for _ in range(order):
    ours, want = (jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x)))) for f in (ours, want))
  np.testing.assert_allclose(jax.jit(ours)(x), jax.jit(want)(x), rtol=1e-9, atol=1e-12)


def test_norms_stay_calls_on_the_cpu_so_that_those_of_one_shape_are_compiled_once():
  def value(x):
    for _ in range(3):
      x = layers.instance_norm_leaky_relu(jnp.sin(x))
    return jnp.sum(x**2)

  with jax.default_device(jax.devices('cpu')[0]):
    compiled = jax.jit(jax.grad(value)).lower(jnp.zeros((2, 6, 6, 4))).compile().as_text()
  calls = re.findall(r' call\(.*op_name="[^"]*/jit\(_normalise(_backward)?\)"', compiled)
  assert sorted(calls) == ['', '', '', '_backward', '_backward', '_backward']


def test_gradients_of_gradients_exist():
  x, k = normal((1, 6, 6, 2)), normal((3, 3, 2, 2), 1)

  def penalty(k):
    return jnp.sum(jax.grad(lambda x: jnp.sum(layers.instance_norm_leaky_relu(layers.conv2d(x, k)) ** 3))(x) ** 2)

  step = 1e-2
  along = normal(k.shape, 2)
  numeric = (penalty(k + step * along) - penalty(k - step * along)) / (2 * step)
  np.testing.assert_allclose(jnp.vdot(jax.grad(penalty)(k), along), numeric, rtol=0.03)


def test_second_derivatives_inside_scan_are_those_of_the_plain_convolution():
  x, kernels = normal((2, 8, 8, 2)), normal((2, 3, 3, 2, 2), 1)

  def plain(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  def second(conv):
    def network(x):
      return lax.scan(lambda c, k: (jnp.tanh(conv(c, k)), None), x, kernels)[0]

    def after_descent(z):
      start = jnp.zeros_like(x)
      step = lambda r, _: (r - 0.01 * jax.grad(lambda r: jnp.sum(network(r + z) ** 2))(r), None)  # noqa: E731
      return jnp.sum(jnp.sin(network(z + lax.scan(step, start, None, length=2)[0])))

    return jax.jit(jax.grad(after_descent))(x)

  np.testing.assert_allclose(second(layers.conv2d), second(plain), rtol=1e-4, atol=1e-4)


def test_fractional_convolution_spreads_each_input_over_its_window():
  """Transposed convolution by its definition: every input adds its 4x4 kernel, shifted by two."""
  module = layers.FractionalConv(3)
  x = normal((1, 3, 2, 2))
  kernel = normal((2, 4, 4, 3), 1)
  want = np.zeros((1, 3 * 2 + 2, 2 * 2 + 2, 3))
  for row in range(3):
    for col in range(2):
      want[0, 2 * row : 2 * row + 4, 2 * col : 2 * col + 4] += np.tensordot(x[0, row, col], kernel, 1)
  np.testing.assert_allclose(module.apply({'params': {'kernel': kernel}}, x), want[:, 1:-1, 1:-1], atol=1e-5)


def test_generators_fill_their_size_and_their_mask(scan):
  image = jaxrec.models.build('dcgan', size=(21, 34), chans=2, depth=2)
  variables = jax.jit(image.init)(jax.random.key(0), jnp.ones((2, 7)))
  out, changed = jax.jit(lambda v, x: image.apply(v, x, mutable=['batch_stats']))(variables, normal((4, 7)))
  assert out.shape == (4, 21, 34) and float(jnp.max(jnp.abs(out))) <= 1
  assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(changed), jax.tree.leaves(variables['batch_stats'])))
  noise = jaxrec.models.build('kspace_generator', chans=2, pools=1)
  variables = jax.jit(noise.init)(jax.random.key(0), scan.kspace, scan.mask)
  delta = jax.jit(noise.apply)(variables, scan.kspace, scan.mask)
  assert delta.shape == scan.kspace.shape and not np.any(np.where(scan.mask, 0, delta)) and np.any(delta)
  # Nothing of what was not measured gets in.
  changed = np.where(scan.mask, scan.kspace, 7)
  np.testing.assert_array_equal(delta, jax.jit(noise.apply)(variables, changed, scan.mask))


@pytest.mark.parametrize(
  'style', [dict(activation='prelu', upsample='bilinear'), dict(norm='batch', activation='prelu'), dict(norm='batch')]
)
def test_unet_styles_learn_and_evaluate(style):
  module = jaxrec.models.build('unet_image', chans=2, pools=1, **style)
  x = normal((3, 9, 6)) + 5
  variables = jax.jit(module.init)(jax.random.key(0), x)
  trained, changed = jax.eval_shape(lambda v, x: module.apply(v, x, mutable=['batch_stats']), variables, x)
  assert trained.shape == x.shape and ('batch_stats' in changed) == ('norm' in style)
  gradient = jax.jit(jax.grad(lambda p: jnp.sum(module.apply({**variables, 'params': p}, x) ** 2)))(variables['params'])
  assert all(np.any(g != 0) for g in jax.tree.leaves(gradient))
  with pytest.raises(ValueError, match='norm|activation|upsample'):
    jax.eval_shape(
      jaxrec.models.build('unet_image', chans=2, pools=1, **{k: 'x' for k in style}).init, jax.random.key(0), x
    )


def test_small_layers_against_numpy():
  x = np.asarray(normal((1, 5, 7, 2)))
  pooled = np.asarray(layers.average_pool(x))
  np.testing.assert_allclose(pooled[0, 1, 2], x[0, 2:4, 4:6].mean((0, 1)), rtol=1e-5)
  assert pooled.shape == (1, 2, 3, 2)
  kernel = np.asarray(normal((2, 2, 2, 3), 1))
  up = np.asarray(layers.upsample_conv2x2(x, kernel))
  np.testing.assert_allclose(up[0, 7, 4], x[0, 3, 2] @ kernel[:, 1, 0], rtol=1e-4)
  np.testing.assert_array_equal(
    layers.match_size(x, np.zeros((1, 6, 8, 2))), np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), mode='reflect')
  )


def test_moments_are_unbiased_and_safe():
  x = np.asarray(normal((4, 5)))
  mean, std = moments(x, (-2, -1))
  np.testing.assert_allclose([mean[0, 0], std[0, 0]], [x.mean(), x.std(ddof=1)], rtol=1e-5)
  assert np.isfinite(jax.grad(lambda x: moments(x, (-2, -1))[1].sum())(jnp.ones((3, 3)))).all()


NETWORKS = {
  'varnet': dict(num_cascades=2, chans=2, pools=1, sens_chans=2, sens_pools=1),
  'unet_recon': dict(chans=2, pools=1),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_networks_take_batches_odd_sizes_and_empty_coils(name):
  module = jaxrec.models.build(name, **NETWORKS[name])
  scans = [synthetic.scan(s, rows=33, cols=34, coils=2, acceleration=2) for s in range(2)]
  empty = scans[0].replace(kspace=scans[0].kspace * np.array([1, 0]).reshape(2, 1, 1))
  batch = jax.tree.map(lambda *x: np.stack(x), *scans, empty)
  first = scans[0]
  variables = jax.jit(module.init)(jax.random.key(0), first.kspace, first.mask, first.acs)
  reconstruct = jaxrec.models.bind(module)
  together = jax.jit(reconstruct)(variables, batch)
  assert together.shape == (3, 33, 34) and together.dtype == jnp.float32
  alone = jax.jit(reconstruct)(variables, first)
  np.testing.assert_allclose(together[0], alone, atol=1e-4 * float(alone.max()))
  gradient = jax.jit(jax.grad(lambda k: jnp.mean(reconstruct(variables, empty.replace(kspace=k)) ** 2) * 1e9))(
    jnp.asarray(empty.kspace)
  )
  assert np.isfinite(gradient).all() and gradient[0].any()


def test_a_mask_over_rows_gives_the_same_as_its_columns():
  # The same mask written per row takes the two-dimensional path.
  module = jaxrec.models.build('varnet', **NETWORKS['varnet'])
  scan = synthetic.scan(0, rows=32, cols=36, coils=2, acceleration=2)
  variables = jax.jit(module.init)(jax.random.key(0), scan.kspace, scan.mask, scan.acs)
  tall = [np.broadcast_to(m, (32, 36)) for m in (scan.mask, scan.acs)]
  a = jax.jit(module.apply)(variables, scan.kspace, scan.mask, scan.acs)
  b = jax.jit(module.apply)(variables, scan.kspace, *tall)
  np.testing.assert_allclose(a, b, atol=1e-4 * float(a.max()))


def test_coil_maps_are_those_that_the_network_works_with():
  module = jaxrec.models.build('varnet', **NETWORKS['varnet'])
  scan = synthetic.scan(0, rows=32, cols=36, coils=2, acceleration=2)
  given = scan.kspace, scan.mask, scan.acs
  variables = jax.jit(module.init)(jax.random.key(0), *given)
  # Operation by operation: two programs round each in its way.
  with jax.disable_jit():
    _, kept = module.apply(variables, *given, capture_intermediates=lambda m, _: isinstance(m, Sensitivities))
    maps = jaxrec.models.coil_maps(module, variables, *given)
  (inside,) = jax.tree.leaves(kept)
  np.testing.assert_array_equal(maps, inside)
  np.testing.assert_allclose(np.sum(np.abs(maps) ** 2, 0), 1, rtol=1e-5)
  # Of what is measured: another line that the mask leaves out changes nothing.
  other = np.where(scan.mask, scan.kspace, 7)
  program = jax.jit(partial(jaxrec.models.coil_maps, module))
  np.testing.assert_array_equal(program(variables, other, *given[1:]), program(variables, *given))


def test_rematerialisation_changes_nothing():
  scan = synthetic.scan(0, rows=32, cols=32, coils=2, acceleration=2)
  plain = jaxrec.models.build('varnet', **NETWORKS['varnet'])
  variables = jax.jit(plain.init)(jax.random.key(0), scan.kspace, scan.mask, scan.acs)

  def gradient(module):
    return jax.jit(jax.grad(lambda v: jnp.mean(module.apply(v, scan.kspace, scan.mask, scan.acs)) * 1e4))(variables)

  again = gradient(jaxrec.models.build('varnet', remat=True, **NETWORKS['varnet']))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4), again, gradient(plain))


def test_an_exported_network_runs_without_jaxrec(tmp_path):
  pytest.importorskip('flatbuffers')
  scan = synthetic.scan(0, rows=32, cols=32, coils=2, acceleration=2)
  module = jaxrec.models.build('unet_recon', **NETWORKS['unet_recon'])
  variables = jax.jit(module.init)(jax.random.key(0), scan.kspace, scan.mask, scan.acs)
  (tmp_path / 'network').write_bytes(jaxrec.models.export(module, variables, scan))
  arrays = dict(kspace=scan.kspace, mask=scan.mask, acs=scan.acs)
  np.savez(tmp_path / 'scan.npz', image=jax.jit(module.apply)(variables, *arrays.values()), **arrays)
  code = f"""
import sys
sys.modules['jaxrec'] = sys.modules['flax'] = None
import jax.export, numpy as np
network, scan = jax.export.deserialize(bytearray(open('{tmp_path}/network', 'rb').read())), np.load('{tmp_path}/scan.npz')
image = network.call(scan['kspace'], scan['mask'], scan['acs'])
np.testing.assert_allclose(image, scan['image'], rtol=1e-5, atol=1e-5 * float(image.max()))
print(*network.platforms)"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.returncode == 0 and done.stdout.split() == ['cpu', 'cuda', 'tpu'], done.stderr


def test_cropped_unet_sees_the_centre_and_keeps_the_field():
  module = jaxrec.models.UNetRecon(chans=2, pools=1, crop=(16, 16))
  scan = synthetic.scan(0, rows=32, cols=32, coils=2, acceleration=2)
  variables = module.init(jax.random.key(0), scan.kspace, scan.mask)
  image = np.array(module.apply(variables, scan.kspace, scan.mask))
  seen = np.array(zero_filled(scan.kspace, scan.mask))
  inner = jaxrec.models.build('unet_image', chans=2, pools=1).apply(variables, seen[8:24, 8:24])
  np.testing.assert_allclose(image[8:24, 8:24], inner, atol=1e-5 * seen.max())
  assert np.abs(image - seen)[8:24, 8:24].max() > 1e-2 * seen.max()
  image[8:24, 8:24] = seen[8:24, 8:24]
  np.testing.assert_allclose(image, seen, atol=1e-5 * seen.max())
  # A field of view that is smaller than the crop is taken as it is.
  whole = [module.clone(crop=crop).apply(variables, scan.kspace, scan.mask) for crop in ((320, 320), None)]
  np.testing.assert_allclose(*whole, atol=1e-5 * seen.max())


@pytest.mark.parametrize('norm, activation', [('instance', 'leaky_relu'), ('instance', 'prelu'), ('batch', 'prelu')])
def test_activation_before_or_after_the_normalisation(norm, activation):
  x = np.asarray(normal((3, 8, 9, 2))) + 0.5
  axes = (1, 2) if norm == 'instance' else (0, 1, 2)

  def normalise(x):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)

  def activate(x):
    return np.where(x > 0, x, (0.2 if activation == 'leaky_relu' else 0.25) * x)

  for first, want in ((False, activate(normalise(x))), (True, normalise(activate(x)))):
    module = layers.NormActivation(norm, activation, activation_first=first)
    got, _ = module.apply(module.init(jax.random.key(0), x), x, mutable=['batch_stats'])
    np.testing.assert_allclose(got, want, atol=2e-4)


def test_a_unet_with_the_activation_first_has_the_same_parameters_and_another_output():
  x = normal((1, 16, 16))
  net = jaxrec.models.build('unet_image', chans=4, pools=2, activation='prelu', upsample='bilinear')
  variables = net.init(jax.random.key(0), x)
  other = net.clone(activation_first=True)
  jax.tree.map(np.testing.assert_array_equal, variables, other.init(jax.random.key(0), x))
  assert np.abs(net.apply(variables, x) - other.apply(variables, x)).max() > 1e-3


def test_unknown_networks_and_options_are_named():
  with pytest.raises(ValueError, match='model.name.*choose one of'):
    jaxrec.models.build('transformer')
  with pytest.raises(ValueError, match='model.depth.*it takes num_cascades'):
    jaxrec.models.build('varnet', depth=3)
  with pytest.raises(ValueError, match='too small for pools=4'):
    net = jaxrec.models.UNet(chans=2, pools=4)
    net.init(jax.random.key(0), jnp.zeros((8, 8, 1)))


class Evil:
  def __reduce__(self):
    return (print, ('executed',))


@pytest.mark.fault
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, capsys):
  import io
  import pickle
  import zipfile

  path = tmp_path / 'evil.pt'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', pickle.dumps({'a': Evil()}, protocol=2))
  with pytest.raises(weights.WeightsError, match='evil.pt.*builtin.*print'):
    weights.read_state_dict(path)
  path.write_bytes(pickle.dumps(Evil(), protocol=2))
  with pytest.raises(weights.WeightsError, match='evil.pt'):
    weights.read_state_dict(path)
  path.write_bytes(io.BytesIO(b'PK\x03\x04 truncated').getvalue())
  with pytest.raises(weights.WeightsError, match='not a PyTorch state dict'):
    weights.read_state_dict(path)
  assert 'executed' not in capsys.readouterr().out


@pytest.mark.fault
def test_missing_files_and_kinds_are_named(tmp_path):
  with pytest.raises(weights.WeightsError, match='none.pt.*cannot be read'):
    jaxrec.models.load_fastmri(tmp_path / 'none.pt', 'varnet')
  with pytest.raises(ValueError, match='choose varnet or unet'):
    jaxrec.models.load_fastmri(tmp_path / 'none.pt', 'resnet')
  (tmp_path / 'x.pt').write_bytes(b'x')
  with pytest.raises(weights.WeightsError, match='SHA-256'):
    jaxrec.models.load_fastmri(tmp_path / 'x.pt', 'varnet', sha256='00')


def test_weights_to_start_from_are_uniform_and_unlike_each_other(scan):
  net = jaxrec.models.VarNet(num_cascades=2, chans=16, pools=2, sens_chans=16, sens_pools=2)
  first, again, other = (jaxrec.models.start(net, jax.random.key(seed), scan) for seed in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  drawn = {}
  for n, variables in enumerate((first, other)):
    params = variables['params']
    found = [params['sens'], *(jax.tree.map(lambda x, c=c: x[c], params['cascades']) for c in range(2))]
    for part, tree in enumerate(found):
      for path, kernel in jax.tree.flatten_with_path(tree)[0]:
        if kernel.ndim == 4 and kernel.size > 1000:
          # Shares of the bound, from -1 to 1.
          taps = kernel.shape[1:] if 'up_' in str(path) else kernel.shape[:-1]
          drawn[n, part, str(path)] = np.ravel(kernel) * np.sqrt(np.prod(taps))
  assert len(drawn) > 30
  for name, values in drawn.items():
    assert stats.kstest(values, 'uniform', args=(-1, 2)).pvalue > 1e-4, name
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 5 / np.sqrt(values.size), name
  least = min(v.size for v in drawn.values())
  between = np.corrcoef([v[:least] for v in drawn.values()]) - np.eye(len(drawn))
  assert np.abs(between).max() < 5 / np.sqrt(least)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_draws_use_all_bits_of_their_type(x64, dtype):
  digits = np.finfo(dtype).nmant + 1
  drawn = draws.draw(jax.random.key(0), ('params', 'kernel'), (5000,), dtype, 0.5, 0.5)
  assert drawn.dtype == dtype and drawn.min() >= 0 and drawn.max() < 1
  whole = np.ldexp(drawn.astype('float64'), digits).astype('uint64')
  ones = [np.mean(whole >> np.uint64(n) & np.uint64(1)) for n in range(digits)]
  assert np.abs(np.array(ones) - 0.5).max() < 0.04


IMAGE_UNET = jaxrec.models.ImageUNet(chans=2, pools=1, norm='batch', activation='prelu')


@pytest.mark.parametrize(
  'module, drawn',
  [
    (jaxrec.models.VarNet(**NETWORKS['varnet']), True),
    (jaxrec.models.VarNet(**NETWORKS['varnet'], remat=True), True),
    (jaxrec.models.UNetRecon(**NETWORKS['unet_recon']), True),
    (jaxrec.models.CNN10(), True),
    (IMAGE_UNET, False),
  ],
)
def test_weights_to_start_from_have_the_shapes_and_ranges_of_init(module, drawn, scan, caplog):
  sample = (
    scan if isinstance(module, jaxrec.models.VarNet | jaxrec.models.UNetRecon) else jaxrec.Slice(*4 * [scan.target])
  )
  key = jax.random.key(0)
  with jax.log_compiles():
    first = jaxrec.models.start(module, key, sample)
    assert ('XLA compilation' in caplog.text) != drawn
  plain = jax.jit(module.init)(key, *jaxrec.models.registry.inputs(sample))
  traced = jax.jit(lambda key: jaxrec.models.start(module, key, sample))(key)
  jax.tree.map(np.testing.assert_array_equal, first, jaxrec.models.start(module, key, sample))
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), first, traced)
  chex.assert_trees_all_equal_shapes_and_dtypes(first, plain)
  for (path, x), y in zip(jax.tree.leaves_with_path(first), jax.tree.leaves(plain), strict=True):
    assert isinstance(x, jax.Array)
    if y.size > 50:
      np.testing.assert_allclose(np.abs(x).max(), np.abs(y).max(), rtol=0.1, err_msg=str(path))
    elif not np.ptp(y):
      # Constants, and single numbers.
      np.testing.assert_allclose(x, y, atol=0.0 if y.size > 1 else 1.0, err_msg=str(path))


@pytest.mark.parametrize('module', [jaxrec.models.UNetRecon(**NETWORKS['unet_recon']), IMAGE_UNET])
def test_keys_of_every_kind_start_weights_of_their_own(module, scan):
  sample = scan if isinstance(module, jaxrec.models.UNetRecon) else jaxrec.Slice(*4 * [scan.target])
  keys = [jax.random.key(0), jax.random.key(1), jax.random.key(4, impl='rbg'), jax.random.PRNGKey(2)]
  found = [jaxrec.models.start(module, key, sample) for key in keys]
  found += [jax.tree.map(lambda x, i=i: x[i], jax.vmap(lambda k: jaxrec.models.start(module, k, sample))(
    jax.random.split(jax.random.key(3), 2))) for i in range(2)]  # fmt: skip
  flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(v['params'])]) for v in found]
  for i, a in enumerate(flat):
    for b in flat[:i]:
      assert np.mean(np.abs(a - b)) > 0.1 * np.mean(np.abs(a))


def test_training_starts_from_the_weights_of_init_and_not_from_those_of_start(scan):
  module, key = jaxrec.models.VarNet(**NETWORKS['varnet']), jax.random.key(0)
  task = jaxrec.training.supervised(module, jaxrec.training.optimizer('adam', 1e-3))
  trained = task.init(key, jax.tree.map(lambda x: x[None], scan)).variables
  one = jax.tree.map(lambda x: x[None], scan)
  want = jax.jit(module.init)(draws.hardware_key(key), one.kspace, one.mask, one.acs)
  jax.tree.map(np.testing.assert_array_equal, trained, want)
