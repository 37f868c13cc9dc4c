"""Fourier, geometry, masks, metrics and noise against laws and independent oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

import jaxrec
from jaxrec import fourier, geometry, masks, metrics, noise
from jaxrec.audit import program
from jaxrec.data import synthetic

sizes = st.tuples(st.integers(5, 13), st.integers(5, 13))


def draw(shape, seed=0, kind=np.complex64):
  rng = np.random.default_rng(seed)
  x = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
  return x.astype(kind) if np.issubdtype(kind, np.complexfloating) else x.real.astype(kind)


def assert_adjoint(forward, adjoint, x, y):
  np.testing.assert_allclose(np.vdot(forward(x), y), np.vdot(x, adjoint(y)), rtol=2e-4, atol=2e-4)


@settings(max_examples=10, deadline=None)
@given(sizes)
def test_fourier_is_unitary_and_centred(shape):
  x, y = draw(shape), draw(shape, 1)
  k = fourier.fft2c(x)
  np.testing.assert_allclose(np.linalg.norm(k), np.linalg.norm(x), rtol=1e-5)
  np.testing.assert_allclose(fourier.ifft2c(k), x, atol=1e-5)
  assert_adjoint(fourier.fft2c, fourier.ifft2c, x, y)
  # A constant image has all its energy at the centre.
  assert np.argmax(np.abs(fourier.fft2c(np.ones(shape)))) == np.ravel_multi_index([n // 2 for n in shape], shape)
  by_axis = fourier.fft2c(fourier.fft2c(x, (-2,)), (-1,))
  np.testing.assert_allclose(by_axis, k, atol=1e-5)


@pytest.mark.parametrize('axes', [(-1,), (-2,), (-2, -1), (-1, -2), (0, -1), (1,)])
@pytest.mark.parametrize('shape', [(4, 6), (3, 5, 8), (2, 6, 9), (4, 6, 8), (7, 5)])
def test_shifts_are_those_of_numpy_and_so_are_their_adjoints(shape, axes):
  x = np.random.default_rng(0).normal(size=shape)
  for ours, theirs, inverse in [
    (fourier.fftshift, np.fft.fftshift, np.fft.ifftshift),
    (fourier.ifftshift, np.fft.ifftshift, np.fft.fftshift),
  ]:
    shifted, adjoint = jax.vjp(lambda x, shift=ours: shift(x, axes), x)
    np.testing.assert_array_equal(shifted, theirs(x.astype(np.float32), axes))
    np.testing.assert_array_equal(adjoint(shifted)[0], inverse(np.asarray(shifted), axes))
  assert fourier.fftshift(x > 0, axes).dtype == bool


@pytest.mark.parametrize('square, slope, curvature', [(4.0, 0.25, -1 / 32), (0.0, 0.0, 0.0), (1e-30, 5e14, None)])
def test_root_has_no_slope_at_zero(square, slope, curvature):
  square, first = jnp.float32(square), jax.grad(fourier.safe_sqrt)
  np.testing.assert_allclose(fourier.safe_sqrt(square), jnp.sqrt(square), rtol=1e-6)
  np.testing.assert_allclose(first(square), slope, rtol=1e-6)
  np.testing.assert_allclose(jax.jvp(fourier.safe_sqrt, (square,), (jnp.float32(2),))[1], 2 * slope, rtol=1e-6)
  if curvature is not None:
    np.testing.assert_allclose(jax.grad(first)(square), curvature, rtol=1e-6)
  assert fourier.safe_sqrt(jnp.float32(-1)) == 0
  assert np.isnan(fourier.safe_sqrt(jnp.float32(jnp.nan)))


def test_sensitivities_are_adjoint():
  maps, x, y = draw((3, 6, 5)), draw((6, 5), 1), draw((3, 6, 5), 2)
  assert_adjoint(lambda x: fourier.sens_expand(x, maps), lambda y: fourier.sens_reduce(y, maps), x, y)


def test_rss_and_its_gradient_at_zero():
  x = draw((3, 4, 4))
  np.testing.assert_allclose(fourier.rss(x), np.sqrt((np.abs(x) ** 2).sum(0)), rtol=1e-6)
  gradient = jax.grad(lambda x: fourier.rss(x).sum())(jnp.asarray(x).at[:, 1, 2].set(0))
  assert np.isfinite(gradient).all() and not gradient[:, 1, 2].any()


@pytest.mark.parametrize(
  'move, still',
  [
    (geometry.rotate, 0.0),
    (geometry.rotate_kspace, 0.0),
    (geometry.shift, np.zeros(2, np.float32)),
  ],
)
def test_movements_have_derivatives_where_nothing_moves(move, still):
  """The image exactly as it is, and the slope of a small movement."""
  x, step = jnp.asarray(draw((9, 8))), np.full_like(still, 1e-2)
  value, slope = jax.jvp(lambda amount: move(x, amount), (jnp.asarray(still),), (jnp.ones_like(still),))
  np.testing.assert_array_equal(value, x)
  difference = (move(x, still + step) - move(x, still - step)) / (2 * 1e-2)
  assert np.abs(slope).max() > 1e-3
  np.testing.assert_allclose(slope, difference, atol=2e-2 * np.abs(slope).max())
  holes = x.at[2, 3].set(jnp.nan)
  np.testing.assert_array_equal(move(holes, jnp.asarray(still)), holes)
  y = jnp.asarray(draw((9, 8), 1))
  _, pull = jax.vjp(lambda x: move(x, jnp.asarray(still)), x)
  np.testing.assert_allclose(pull(y)[0], y, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(sizes, st.floats(-30, 30))
def test_rotation_is_unitary_with_exact_inverse(shape, degrees):
  x, y = draw(shape), draw(shape, 1)
  np.testing.assert_allclose(geometry.rotate(geometry.rotate(x, degrees), -degrees), x, atol=1e-5)
  assert_adjoint(lambda x: geometry.rotate(x, degrees), lambda y: geometry.rotate(y, -degrees), x, y)
  np.testing.assert_allclose(
    geometry.rotate_kspace(fourier.fft2c(x), degrees), fourier.fft2c(geometry.rotate(x, degrees)), atol=1e-5
  )


def blob(row, col, shape=(65, 64)):
  y, x = np.mgrid[: shape[0], : shape[1]]
  return np.exp(-((y - shape[0] // 2 - row) ** 2 + (x - shape[1] // 2 - col) ** 2) / 18).astype(np.float32)


@pytest.mark.parametrize('turn, tolerance', [(geometry.rotate, 1e-5), (geometry.rotate_resampled, 0.03)])
def test_rotation_moves_structures_where_they_belong(turn, tolerance):
  angle = np.deg2rad(10)
  want = blob(-15 * np.sin(angle), 15 * np.cos(angle))
  np.testing.assert_allclose(turn(jnp.asarray(blob(0, 15)), 10.0), want, atol=tolerance)


def test_public_chain_loses_resolution_where_ours_does_not():
  image = jnp.asarray(synthetic.scan(0, rows=64, cols=64, coils=1).target)
  for turn, keeps in ((geometry.rotate, True), (geometry.rotate_resampled, False)):
    error = float(jnp.linalg.norm(turn(turn(image, 2.0), -2.0) - image) / jnp.linalg.norm(image))
    assert (error < 0.01) == keeps, (turn.__name__, error)


def test_shift_moves_and_inverts():
  x = jnp.asarray(blob(0, 3))
  moved = geometry.shift(x, jnp.array([1.5, -2.25]))
  np.testing.assert_allclose(moved, blob(1.5, 0.75), atol=1e-5)
  np.testing.assert_allclose(
    fourier.ifft2c(geometry.shift_kspace(fourier.fft2c(x), jnp.array([1.5, -2.25]))).real, moved, atol=1e-5
  )
  z = draw((7, 8))
  np.testing.assert_allclose(
    geometry.shift(geometry.shift(z, jnp.array([0.3, 2.7])), jnp.array([-0.3, -2.7])), z, atol=1e-5
  )


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_pad_then_crop_is_the_identity(rows, cols, more_rows, more_cols):
  x = draw((2, rows, cols), kind=np.float32)
  np.testing.assert_array_equal(
    geometry.center_crop(geometry.center_pad(x, (rows + more_rows, cols + more_cols)), (rows, cols)), x
  )


def test_crop_of_too_small_an_image_says_so():
  with pytest.raises(ValueError, match=r'center_crop.*\(5, 2\)'):
    geometry.center_crop(np.zeros((4, 4)), (5, 2))


@settings(max_examples=60, deadline=None)
@given(
  st.sampled_from(masks.KINDS), st.integers(40, 400), st.sampled_from([(0.08, 4), (0.04, 8)]), st.integers(0, 1 << 31)
)
def test_masks_sample_their_centre_and_repeat(kind, cols, setting, seed):
  fraction, acceleration = setting
  options = dict(center_fractions=[fraction], accelerations=[acceleration], seed=seed)
  line = masks.line_mask(kind, cols, **options)
  assert line.mask.shape == line.acs.shape == (1, cols) and line.mask.dtype == bool
  assert (line.acs <= line.mask).all()
  np.testing.assert_array_equal(line.mask, masks.line_mask(kind, cols, **options).mask)
  start = (cols - line.acs.sum() + 1) // 2
  assert np.flatnonzero(line.acs[0])[0] == start


def test_equispaced_lines_start_where_they_are_told_or_anywhere():
  options = dict(center_fractions=[0.05], accelerations=[4])
  for offset in range(4):
    line = masks.line_mask('equispaced', 80, seed=0, offset=offset, **options)
    assert (line.mask[0] == (line.acs[0] | (np.arange(80) % 4 == offset))).all()
  starts = {np.flatnonzero(masks.line_mask('equispaced', 80, seed=s, **options).mask[0])[0] for s in range(40)}
  assert starts == {0, 1, 2, 3}


@pytest.mark.parametrize('kind', ['random', 'equispaced_fraction', 'magic_fraction'])
def test_masks_meet_their_acceleration_on_average(kind):
  options = dict(center_fractions=[0.04], accelerations=[8])
  share = np.mean([masks.line_mask(kind, 368, seed=s, **options).mask.mean() for s in range(60)])
  assert 1 / 9 < share < 1 / 7


@pytest.mark.parametrize(
  'kind, options, words',
  [
    ('spiral', {}, 'spiral.*choose one of random'),
    ('random', dict(accelerations=[4, 8]), 'as many'),
    ('random', dict(accelerations=[0]), 'accelerations >= 1'),
    ('equispaced_fraction', dict(center_fractions=[0.5]), 'lower center_fractions'),
    ('magic_fraction', dict(center_fractions=[0.5]), 'lower center_fractions'),
    ('random', dict(center_fractions=[0.5]), '32 central columns are more than 1/4 of 64'),
    ('equispaced', dict(center_fractions=[0.5]), 'lower center_fractions'),
  ],
)
@pytest.mark.fault
def test_impossible_masks_are_refused(kind, options, words):
  with pytest.raises(ValueError, match=words):
    masks.line_mask(kind, 64, **{**dict(center_fractions=[0.08], accelerations=[4], seed=0), **options})


def test_padding_columns_are_removed_and_something_must_be_left():
  line = masks.line_mask('random', 32, center_fractions=[0.2], accelerations=[4], seed=0)
  acquired = np.zeros((1, 32), bool)
  acquired[:, 8:24] = True
  assert not (masks.restrict(line, acquired).mask & ~acquired).any()
  with pytest.raises(ValueError, match='no sampled column'):
    masks.restrict(masks.LineMask(~acquired, line.acs), acquired)


def test_centre_of_a_given_mask():
  mask = np.zeros((1, 12), bool)
  mask[:, [1, 5, 6, 7, 10]] = True
  np.testing.assert_array_equal(np.flatnonzero(masks.acs_of_mask(mask)[0]), [5, 6])
  # Where everything is sampled, everything is centre.
  assert masks.acs_of_mask(np.ones(12, bool)).all()
  # Of two dimensions, the largest square.
  square = np.random.default_rng(0).uniform(size=(12, 16)) < 0.3
  square[3:9, 5:11] = True
  square[2, 4] = square[3:9, 4] = False
  wanted = np.zeros((12, 16), bool)
  wanted[3:9, 5:11] = True
  np.testing.assert_array_equal(masks.acs_of_mask(square), wanted)


@pytest.mark.parametrize('shape', [(7, 7), (20, 31)])
def test_ssim_is_that_of_scikit_image(shape):
  x, y = draw(shape, 0, np.float32), draw(shape, 1, np.float32)
  want = structural_similarity(y.astype(float), x.astype(float), data_range=3.0, win_size=7)
  np.testing.assert_allclose(metrics.ssim(x, y, jnp.float32(3.0)), want, atol=1e-6)


@pytest.mark.parametrize('shape', [(11, 11), (20, 31)])
def test_dssim_is_that_of_scikit_image(shape):
  x, y = draw(shape, 0, np.float32), draw(shape, 1, np.float32)
  options = dict(data_range=3.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True)
  _, full = structural_similarity(y.astype(float), x.astype(float), **options)
  inner = full[5 : shape[0] - 5, 5 : shape[1] - 5].mean()
  np.testing.assert_allclose(metrics.dssim(x, y, jnp.float32(3.0)), (1 - inner) / 2, atol=1e-6)


def test_ssim_of_a_box_is_that_of_the_cropped_box():
  x, y = draw((30, 33), 0, np.float32), draw((30, 33), 1, np.float32)
  region = np.zeros((30, 33), np.float32)
  region[4:15, 10:22] = 1
  want = structural_similarity(y[4:15, 10:22], x[4:15, 10:22], data_range=3.0, win_size=7)
  np.testing.assert_allclose(metrics.ssim(x, y, jnp.float32(3.0), region), want, atol=1e-5)


@pytest.mark.parametrize(
  'box', [(slice(10, 13), slice(10, 30)), (slice(0, 2), slice(0, 2)), (slice(29, 30), slice(32, 33))]
)
def test_ssim_of_boxes_smaller_than_the_window_is_finite(box):
  x, y = draw((30, 33), 0, np.float32), draw((30, 33), 1, np.float32)
  region = np.zeros((30, 33), np.float32)
  region[box] = 1
  assert np.isfinite(metrics.ssim(x, y, jnp.float32(3.0), region))
  np.testing.assert_allclose(metrics.ssim(y, y, jnp.float32(3.0), region), 1, atol=1e-5)


def test_metrics_of_a_region_are_those_of_its_pixels():
  x, y = draw((9, 10), 0, np.float32), draw((9, 10), 1, np.float32)
  region = np.zeros((9, 10), np.float32)
  region[2:5, 3:7] = 1
  a, b = x[2:5, 3:7].astype(float), y[2:5, 3:7].astype(float)
  np.testing.assert_allclose(metrics.mse(x, y, 1.0, region), ((a - b) ** 2).mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics.nmse(x, y, 1.0, region), ((a - b) ** 2).sum() / (b**2).sum(), rtol=1e-5)
  np.testing.assert_allclose(metrics.psnr(x, y, 3.0, region), 10 * np.log10(9 / ((a - b) ** 2).mean()), rtol=1e-5)
  larger = np.pad(x, ((1, 2), (3, 3)))
  np.testing.assert_allclose(metrics.mse(larger, y, 1.0), metrics.mse(x, y, 1.0), rtol=1e-5)


@pytest.mark.parametrize('unit', [1.0, 1e-5])
def test_objectives_are_those_of_the_region_in_every_unit(unit, scan):
  region = np.zeros(scan.target.shape, np.float32)
  region[4:15, 10:22] = 1
  target = np.asarray(scan.target) / scan.scale
  image = target + 0.1 * draw(target.shape, 3, np.float32)
  a, b = image[4:15, 10:22].astype(float), target[4:15, 10:22].astype(float)
  error, structure = (a - b) ** 2, 1 - structural_similarity(b, a, data_range=1.0, win_size=7)
  wanted = {
    jaxrec.region_mse(): error.mean(),
    jaxrec.region_ssim(): structure,
    jaxrec.region_mse_ssim(ssim_weight=0.3): 0.7 * error.sum() / (b**2).sum() + 0.3 * structure,
  }
  given = scan.replace(target=np.float32(unit) * target, scale=np.float32(unit), region=region)
  for objective, value in wanted.items():
    np.testing.assert_allclose(objective(np.float32(unit) * image, given), value, rtol=1e-4)


@pytest.mark.parametrize('name', ['mse', 'nmse', 'psnr', 'ssim'])
@pytest.mark.parametrize('scale', [1.0, 1e-5])
def test_metrics_are_finite_with_gradient_on_flat_images_of_any_scale(name, scale):
  metric = getattr(metrics, name)
  flat = jnp.full((12, 12), scale)
  for image, target in ((flat, flat), (0 * flat, flat), (flat, 0 * flat), (0 * flat, 0 * flat)):
    value, gradient = jax.value_and_grad(metric)(image, target, jnp.float32(scale))
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_thermal_noise_is_found_again():
  scan = synthetic.scan(1, rows=128, cols=96, coils=3)
  quiet = scan.replace(kspace=np.zeros_like(scan.kspace))
  sigma = jnp.array([1e-5, 2e-5, 3e-5])
  noisy = quiet.replace(kspace=noise.draw(jax.random.key(0), sigma, quiet))
  assert not np.asarray(noisy.kspace)[..., ~scan.acquired[0]].any()
  np.testing.assert_allclose(noise.sigma_from_kspace(noisy), sigma, rtol=0.15)
  np.testing.assert_allclose(noise.sigma_from_background(noisy), sigma, rtol=0.15)
  # Noise alone has, by definition, the energy of noise.
  np.testing.assert_allclose(noise.thermal_eta(sigma, noisy), 1, rtol=0.05)


@pytest.mark.parametrize('seed', [0, 1])
def test_the_background_gives_the_thermal_eta_of_a_phantom_within_a_tenth(seed):
  scan = synthetic.scan(seed, rows=96, cols=96, coils=4)
  quiet = synthetic.volume(seed, slices=1, rows=96, cols=96, coils=4, snr=1e9).kspace[0]
  drawn = (scan.kspace - quiet)[..., scan.acquired[0]]
  sigma = np.sqrt((np.abs(drawn) ** 2).mean((1, 2)) / 2)
  want = float(np.sqrt(np.mean(np.asarray(noise.thermal_eta(sigma, scan)) ** 2)))
  net = jaxrec.network(lambda scan: scan.target)
  _, rows = program.clean(net)(program.weights(net), jax.tree.map(lambda x: x[None], scan))
  assert float(rows['thermal_eta'][0]) == pytest.approx(want, rel=0.1)
  # The corners of a small matrix hold signal.
  assert 1.2 * want < rows['thermal_eta_corners'][0] < 1.4 * want


def test_an_empty_coil_has_no_noise_bound():
  scan = synthetic.scan(1, rows=48, cols=48, coils=2)
  scan = scan.replace(kspace=scan.kspace * np.array([1, 0]).reshape(2, 1, 1))
  eta = noise.thermal_eta(noise.sigma_from_kspace(scan), scan)
  assert np.isfinite(eta).all() and eta[1] == 0 and eta[0] > 0


def test_noise_is_taken_from_the_outermost_columns_and_rows():
  """One sample in the last column and row that belong to the 8%, none further out."""
  empty = synthetic.scan(0, rows=50, cols=50, coils=1)
  acquired = np.ones((1, 50), bool)
  for row, col, share in ((3, 3, 1 / 64), (46, 46, 1 / 64), (4, 3, 0), (3, 4, 0), (45, 46, 0), (46, 45, 0)):
    kspace = np.zeros((1, 50, 50), np.complex64)
    kspace[0, row, col] = 1
    sigma = noise.sigma_from_kspace(empty.replace(kspace=kspace, acquired=acquired))
    np.testing.assert_allclose(sigma, [np.sqrt(share / 2)], rtol=1e-6)
