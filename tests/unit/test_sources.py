"""Scans from arrays."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrec
from jaxrec import Scan, fourier, masks, metrics
from jaxrec.data import synthetic


def assert_same(found, want, **tolerance):
  for name, a in vars(want).items():
    b = getattr(found, name)
    assert type(b) is type(a) and b.shape == a.shape and b.dtype == a.dtype, name
    np.testing.assert_allclose(b, a, err_msg=name, **tolerance)


def test_what_a_fully_sampled_scan_leaves_out_is_derived(scan):
  row, col = (int(n[0]) for n in np.nonzero(scan.region))
  height, width = (int(np.ptp(n)) + 1 for n in np.nonzero(scan.region))
  box = (row, col, height, width)
  assert_same(Scan.from_kspace(scan.kspace, scan.mask, acs=scan.acs, box=box, crop=scan.target.shape), scan, rtol=1e-5, atol=1e-9)
  whole = Scan.from_kspace(scan.kspace.astype(np.complex128), scan.mask[0].astype(int), target=scan.target)
  np.testing.assert_array_equal(whole.region, np.ones_like(scan.target))
  np.testing.assert_array_equal(whole.acs, masks.acs_of_mask(scan.mask))
  assert whole.kspace.dtype == np.complex64 and whole.has_target
  # Without a mask the network is given all that was measured.
  np.testing.assert_array_equal(Scan.from_kspace(scan.kspace).mask, scan.acquired)
  single = Scan.from_kspace(scan.kspace[0])
  image = np.abs(fourier.ifft2c(scan.kspace[0]))
  np.testing.assert_allclose(single.target, image, atol=1e-5 * image.max())


@pytest.mark.parametrize('pattern', ['lines', 'samples'])
def test_prospective_scans_have_no_target_but_a_scale(scan, pattern):
  if pattern == 'lines':
    mask = scan.mask
  else:
    mask = (np.random.default_rng(0).uniform(size=scan.kspace.shape[1:]) < 0.4) & scan.acquired
    mask[17:23, 15:21] = True
  sparse = np.where(mask, scan.kspace, 0)
  found = Scan.from_kspace(sparse)
  np.testing.assert_array_equal(found.mask, mask)
  np.testing.assert_array_equal(found.acs, masks.acs_of_mask(mask) & mask)
  assert found.acs.sum() >= (36 if pattern == 'samples' else 4)
  assert not found.has_target and np.isnan(found.target).all()
  image = fourier.rss(fourier.ifft2c(sparse))
  assert found.scale == pytest.approx(float(image.max()), rel=1e-5)
  # The same k-space with more samples than the mask has a target.
  assert Scan.from_kspace(scan.kspace, mask).has_target


def test_a_scan_without_target_is_compared_with_the_networks_own_output(scan):
  prospective = Scan.from_kspace(np.where(scan.mask, scan.kspace, 0))

  def zero_filled(_, sample):
    return fourier.rss(fourier.ifft2c(jnp.where(sample.mask, sample.kspace, 0)))

  @jax.jit
  def worst(sample):
    sample = metrics.own_reference(zero_filled(None, sample), sample)
    noise = jaxrec.coil_noise(0.05, start='random')
    return sample, jaxrec.attack(zero_filled, noise, jaxrec.pgd(num_steps=2), jaxrec.region_mse())(None, jax.random.key(0), sample)

  sample, found = worst(prospective)
  assert found.clean_loss == 0 and found.loss > 0
  deviation = metrics.mse(found.adversarial, found.clean, sample.scale) / sample.scale**2
  assert float(found.loss) == pytest.approx(float(deviation), rel=1e-4)
  kept = metrics.own_reference(jnp.zeros_like(scan.target), scan)
  np.testing.assert_array_equal(kept.target, scan.target)


K = synthetic.scan(3, rows=40, cols=36, coils=3).kspace
WRONG = {
  'rank': (dict(kspace=K[0, 0]), 'kspace: has shape (36,)'),
  'image': (dict(kspace=np.abs(K)), 'kspace: has type float32; expected complex'),
  'nan': (dict(kspace=K * np.nan), 'kspace: holds NaN'),
  'empty': (dict(kspace=0 * K), 'kspace: is all zero'),
  'not centred': (dict(kspace=np.fft.ifftshift(K, (-2, -1))), 'kspace: its energy is in the corners; apply np.fft.fftshift'),
  'mask size': (dict(mask=np.ones(35)), 'mask: has shape (1, 35); expected [1, 36] or [40, 36]'),
  'mask weights': (dict(mask=np.full(36, 0.5)), 'mask: holds other values than 0 and 1'),
  'mask empty': (dict(mask=np.zeros(36)), 'mask: no sampled column'),
  'acs': (dict(mask=np.arange(36) % 2, acs=np.ones(36)), 'acs: holds samples that the mask leaves out'),
  'acquired': (dict(acquired=np.ones((40, 36))), 'acquired: has shape (40, 36); expected [1, 36]'),
  'target rank': (dict(target=np.ones((1, 40, 36))), 'target: has shape (1, 40, 36)'),
  'target complex': (dict(target=K[0]), 'target: has shape (40, 36) and type complex64; expected [row, col] real'),
  'target units': (dict(target=np.ones((40, 36))), 'target: is in other units than the k-space'),
  'target nan': (dict(target=np.full((40, 36), np.nan)), 'target: holds NaN'),
  'target size': (dict(target=np.ones((41, 36))), 'target: is to have 41 x 36 pixels, the k-space has 40 x 36'),
  'crop': (dict(crop=(40, 40)), 'target: is to have 40 x 40 pixels'),
  'box': (dict(box=(30, 30, 12, 4)), 'box: (row, col, height, width) is (30, 30, 12, 4); it is not inside'),
  'scale': (dict(scale=0), 'scale: is 0'),
}  # fmt: skip


@pytest.mark.parametrize('case', WRONG)
def test_wrong_arrays_are_named_in_one_line(case):
  arguments, words = WRONG[case]
  with pytest.raises(ValueError, match=re.escape(words)) as found:
    Scan.from_kspace(**{'kspace': K, **arguments})
  assert '\n' not in str(found.value)
