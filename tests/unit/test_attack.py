"""The attack stage: what its program computes, and what it is given to attack."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import jaxrec
from jaxrec.attacks.core import Perturbation
from jaxrec.data import loader
from jaxrec.workflows import attack


@pytest.fixture
def config():
  return ml_collections.ConfigDict({
    'attack': {'chunk': 1, 'lipschitz_iterations': 0}, 'objective': {'name': 'region_mse'}, 'seed': 0, 'label': '',
    'model': {'name': 'varnet'},
  })  # fmt: skip


@pytest.fixture(scope='module')
def boxed(scan):
  """The phantom slice with a box that is not the whole image."""
  region = np.zeros_like(scan.region)
  region[8:16, 10:20] = 1
  return scan.replace(region=region)


def outputs_of(plan, config, reconstruct, scan, regions):
  program = jax.jit(attack._program(reconstruct, reconstruct, None, {'generator': (None, None), **plan}, config))
  for region in regions:
    found, _ = program((None, None), jax.random.key(0)[None], loader.stack([scan]), region[None])
    yield jax.tree.map(lambda x: np.asarray(x[0]), found)


def cropped_rss(kspace, shape):
  coils = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(np.asarray(kspace), (-2, -1)), norm='ortho'), (-2, -1))
  image = np.sqrt(np.sum(np.abs(coils) ** 2, 0))
  top, left = ((n - m) // 2 for n, m in zip(image.shape, shape))
  return image[top : top + shape[0], left : left + shape[1]]


def assert_aimed(found, scan, region):
  """The objective is that of the region."""
  error = ((found['adversarial'][0] - scan.target) / scan.scale) ** 2
  np.testing.assert_allclose(found['objective_adv'][0], np.sum(region * error) / np.sum(region), rtol=1e-3)


def test_the_control_image_is_fully_sampled_and_the_aim_is_the_given_region(config, boxed, zero_filled):
  rng = np.random.default_rng(0)
  noise = 0.1 * np.abs(boxed.kspace).mean() * (rng.standard_normal(boxed.kspace.shape) + 1j * rng.standard_normal(boxed.kspace.shape))
  noise = np.where(boxed.acquired, noise, 0).astype(np.complex64)
  fixed = Perturbation(
    init=lambda key, scan: jnp.float32(1),
    apply=lambda delta, scan: scan.replace(kspace=scan.kspace + delta * noise),
    project=lambda delta, scan: delta,
    align=lambda delta, image: image,
  )
  plan = dict(make=lambda value: fixed, strengths=(1.0,), search=jaxrec.random_search(num_samples=1), unit='relative')
  regions = boxed.region, np.ones_like(boxed.region)
  want = cropped_rss(boxed.kspace + noise, boxed.target.shape)
  for region, found in zip(regions, outputs_of(plan, config, zero_filled, boxed, regions)):
    np.testing.assert_allclose(found['control'][0], want, atol=1e-4 * want.max())
    assert_aimed(found, boxed, region)


def test_the_control_image_of_a_rotation_is_fully_sampled_and_the_aim_is_the_given_region(config, boxed, zero_filled):
  plan = dict(make=jaxrec.rotation, strengths=(3.0,), points=np.float32([-3, 0, 3]), unit='degrees')
  regions = boxed.region, np.ones_like(boxed.region)
  for region, found in zip(regions, outputs_of(plan, config, zero_filled, boxed, regions)):
    # Turned and turned back, the fully sampled image is the target.
    error = np.linalg.norm(found['control'][0] - boxed.target) / np.linalg.norm(boxed.target)
    assert abs(found['delta'][0]) == 3 and error < 0.03
    assert_aimed(found, boxed, region)


@pytest.mark.parametrize('aim', attack.AIMS)
def test_the_whole_image_is_attacked_where_it_is_the_aim(aim, config, boxed, monkeypatch):
  given = []

  def program(variables, keys, scans, regions):
    given.append(regions)
    return {}, {}

  monkeypatch.setattr(attack.datasets, 'accelerations', lambda *_, **__: (3,))
  volume = SimpleNamespace(name='a', patient_id='p')
  plan = dict(
    name='coil_noise', unit='relative', strengths=(0.05,), generator=(None, None), pictured=set(), split_of={'a': 'val'},
    calls={'forward': 1, 'backward': 1},
  )  # fmt: skip
  example = SimpleNamespace(volume=volume, slice=0, region=None)
  attack._attack_batch(config, None, plan, program, (None, None), [example], [boxed], aim, 2)
  want = boxed.region if aim == 'region' else np.ones_like(boxed.region)
  np.testing.assert_array_equal(given, [np.stack([want, want])])
