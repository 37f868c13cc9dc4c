"""Signatures of the public functions name the axes of arrays, and the hook of `conftest.py` holds calls to them."""

import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import jaxrec
from jaxrec import fourier, geometry, masks, metrics, noise, tomography
from jaxrec.invariances import analysis, observers, witness
from jaxrec.types import Array, Scan
from tests.conftest import CHECKED

X, K, FLAT = np.ones((8, 9), np.float32), np.ones((2, 8, 9), np.complex64), np.ones(9, np.float32)
ONE, SCAN = np.float32(1), tomography.Geometry(pixels=8, views=5, bins=9)

WRONG = {
  'a line is no image': lambda: fourier.fft2c(FLAT),
  'maps of other coils': lambda: fourier.sens_reduce(K, K[:1]),
  'maps of another size': lambda: fourier.sens_expand(K[0], K[:, 1:]),
  'coils of integers': lambda: fourier.rss(np.ones((2, 8, 9), int)),
  'a mask of weights': lambda: masks.has_gaps(X),
  'a target of another size than the region': lambda: metrics.mse(X, X, ONE, X[1:]),
  'a complex image': lambda: metrics.ssim(K[0], X, ONE),
  'a batch of images': lambda: metrics.nmse(X[None], X[None], ONE),
  'a scale per row': lambda: metrics.psnr(X, X, FLAT),
  'k-space of real numbers': lambda: geometry.rotate_kspace(X, ONE),
  'an angle per coil': lambda: geometry.rotate(K, FLAT[:2]),
  'a shift of three numbers': lambda: geometry.shift(X, FLAT[:3]),
  'noise per pixel': lambda: noise.thermal_eta(X, Scan(K, *[X] * 6)),
  'a sinogram of another rank': lambda: tomography.ramp_filter(FLAT, SCAN),
  'ellipses of five numbers': lambda: tomography.ellipse_sinogram(np.ones((2, 5), np.float32), SCAN),
  'integers as a key': lambda: tomography.counts(0, X, 1e5),
  'a reference of another size': lambda: analysis.excess_variation(np.ones((2, 8, 9)), np.ones((3, 8, 8))),
  'a signal of other pixels': lambda: observers.site_statistics(X, X[:, 1:]),
  'a corner of three numbers': lambda: witness.cut(X, np.arange(3), 2),
}  # fmt: skip


@pytest.mark.parametrize('name', WRONG)
def test_wrong_axes_are_refused(name):
  with pytest.raises(TypeCheckError):
    WRONG[name]()


def test_right_axes_are_not_also_under_transformations():
  np.testing.assert_allclose(fourier.ifft2c(fourier.fft2c(jnp.asarray(K))), K, atol=1e-6)
  each = jax.jit(jax.vmap(jax.grad(metrics.nmse), (0, None, None)))(np.stack([X, 2 * X]), X, ONE)
  assert each.shape == (2, 8, 9)
  assert geometry.center_crop(K[None], (4, 5)).shape == (1, 2, 4, 5)


def test_public_functions_name_the_axes_of_their_arrays():
  found = 0
  for module in pkgutil.walk_packages(jaxrec.__path__, 'jaxrec.'):
    if not any(f'{module.name}.'.startswith(f'{package}.') for package in CHECKED):
      continue
    for label, function in inspect.getmembers(importlib.import_module(module.name), inspect.isfunction):
      if function.__module__ != module.name or label.startswith('_'):
        continue
      found += 1
      signature = inspect.signature(function)
      given = {name: p.annotation for name, p in signature.parameters.items()} | {'': signature.return_annotation}
      for name, kind in given.items():
        assert kind is not inspect.Signature.empty, f'{module.name}.{label}: {name} has no type'
        assert kind not in (Array, jax.Array, np.ndarray), f'{module.name}.{label}: {name} does not name its axes'
  assert found > 80
