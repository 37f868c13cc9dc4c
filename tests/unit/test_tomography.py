"""Projection, reconstruction and noise of the CT simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import tomography as ct

SCAN = ct.Geometry(pixels=96, pixel=2.0, views=180, bins=150, bin=1.5)
BODY = np.array([[5.0, -8.0, 60.0, 40.0, 0.3, 0.02], [-20.0, 10.0, 8.0, 12.0, -0.4, 0.01]])


def drawn_image(geometry, ellipses, fine=8):
  """Ellipses by their definition, averaged over `fine` x `fine` points per pixel."""
  n = geometry.pixels * fine
  along = ct.positions(n, geometry.pixel / fine)
  row, col = along[:, None], along[None, :]
  image = np.zeros((n, n))
  for r, c, half_row, half_col, turn, value in ellipses:
    dy, dx = row - r, col - c
    along_col, along_row = dx * np.cos(turn) - dy * np.sin(turn), dy * np.cos(turn) + dx * np.sin(turn)
    image += value * ((along_row / half_row) ** 2 + (along_col / half_col) ** 2 <= 1)
  return image.reshape(geometry.pixels, fine, geometry.pixels, fine).mean((1, 3)).astype(np.float32)


def test_projection_is_the_adjoint_of_back_projection():
  x = jax.random.normal(jax.random.key(0), (96, 96))
  p = jax.random.normal(jax.random.key(1), (180, 150))
  left = jnp.vdot(ct.project(x, SCAN), p)
  right = jnp.vdot(x, ct.back_project(p, SCAN)) * SCAN.pixel**2 / SCAN.bin
  np.testing.assert_allclose(left, right, rtol=1e-4, atol=0.1)


def test_exact_sinogram_is_that_of_the_drawn_ellipses():
  exact = np.asarray(ct.ellipse_sinogram(BODY, SCAN))
  numeric = np.asarray(jax.jit(ct.project, static_argnums=1)(drawn_image(SCAN, BODY), SCAN))
  assert np.linalg.norm(exact - numeric) < 0.04 * np.linalg.norm(exact)
  # Every view holds the whole mass.
  mass = np.pi * BODY[:, 2] @ (BODY[:, 3] * BODY[:, 5])
  np.testing.assert_allclose(exact.sum(1) * SCAN.bin, mass, rtol=5e-3)


def test_filtered_back_projection_returns_the_image():
  exact = jnp.asarray(ct.ellipse_sinogram(BODY, SCAN))
  image = np.asarray(jax.jit(ct.filtered_back_projection, static_argnums=1)(exact, SCAN))
  want = drawn_image(SCAN, BODY)
  # Where the attenuation is flat it is right; at edges it rings.
  flat = np.abs(want - 0.02) < 1e-6
  assert flat.sum() > 500
  np.testing.assert_allclose(image[flat].mean(), 0.02, rtol=0.01)
  assert np.linalg.norm(image - want) < 0.15 * np.linalg.norm(want)


def test_noise_has_the_variance_of_its_photons():
  line = jnp.full((200, 500), 2.0)
  for photons, electronic in ((1e5, 0.0), (1e4, 10.0)):
    got = np.asarray(ct.measure(jax.random.key(0), line, photons, electronic=electronic))
    expected = photons * np.exp(-2.0)
    np.testing.assert_allclose(got.var(), (expected + electronic**2) / expected**2, rtol=0.03)
    np.testing.assert_allclose(got.mean(), 2.0, atol=1e-3)
  # No photon left is no infinity.
  assert np.isfinite(ct.measure(jax.random.key(0), jnp.full((4, 4), 50.0), 1e4)).all()


@pytest.mark.parametrize('expected', [9e4, 1.1e5, 1e7, 1e9])
def test_many_photons_are_as_few(expected):
  """Variance 1 and kurtosis 3, in units of the expectation; digits of float32 end at 1.7e7."""
  got = np.asarray(ct.counts(jax.random.key(1), jnp.zeros((400, 500)), expected, electronic=0.0), float)
  deviation = (got - expected) / np.sqrt(expected)
  np.testing.assert_allclose([deviation.mean(), deviation.var(), (deviation**4).mean()], [0, 1, 3], atol=0.1)
  np.testing.assert_allclose(deviation.var(), 1, atol=0.015)


def test_shapes_are_checked():
  with pytest.raises(ValueError, match='image: has shape'):
    ct.project(jnp.zeros((3, 3)), SCAN)
  with pytest.raises(ValueError, match='sinogram: has shape'):
    ct.back_project(jnp.zeros((3, 3)), SCAN)
