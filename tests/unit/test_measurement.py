"""What the invariances stage measures on a case, with toy networks whose answers are known."""

import functools
import types

import ml_collections
import numpy as np
import pytest

from jaxrec import invariances as inv
from jaxrec import geometry
from jaxrec.data import cases
from jaxrec.data.errors import DataError
from jaxrec.workflows import invariances

SHAPE, SIZE = (32, 36), 4.0
PLAN = cases.Plan('p-000-0', 'p', None, 0, cases.Structure(0, 15.0, 17.0, SIZE, 2.0), True)


def noise(seed, count):
  return 0.2 * np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)


@pytest.fixture(scope='module')
def case():
  """A disc on an anatomy that has a bright vessel at the same place."""
  rows, cols = np.ogrid[: SHAPE[0], : SHAPE[1]]
  vessel = (np.abs(rows - cols + 2) < 1.5) * 1.0
  anatomy = (np.sin(rows / 5) + vessel).astype(np.float32)
  disc = 2 * geometry.soft_disc(SHAPE, (15, 17), SIZE)
  own, fresh = noise(0, 1)[0], noise(1, 24)
  full = anatomy + disc
  return cases.Case(full + own, anatomy + own, anatomy + own, full, anatomy, full + fresh, full + fresh, (15.0, 17.0), SIZE, 2.0)


def test_sides_of_a_case_differ_by_the_structure(case):
  disc = case.target - case.twin_target
  image, target, fresh, _, changed = invariances._side(case, 1)
  np.testing.assert_allclose(image - changed, disc, atol=1e-6)
  np.testing.assert_allclose(fresh.mean(0), target, atol=0.25)
  image, target, fresh, noisy, changed = invariances._side(case, 0)
  np.testing.assert_allclose(changed - image, disc, atol=1e-6)
  for repeats in (fresh, noisy):
    # Nothing of the disc, of height 2, is left in the twin's reference.
    np.testing.assert_allclose(repeats.mean(0), target, atol=0.25)


def test_contrasts_are_those_of_the_structure_alone(case):
  inside, around = inv.disc(SHAPE, case.centre, SIZE)
  found = invariances._contrasts(PLAN, case, [SIZE, 8.0], {'with': case.target, 'without': case.twin_target, 'both': np.stack([case.target, case.twin_target])})
  np.testing.assert_allclose(found['with']['4.0'], inv.contrast(case.target - case.twin_target, inside, around), atol=1e-4)
  assert found['with']['4.0'][0] > 1.5 and set(found['with']) == {'4.0', '8.0'}
  assert found['without'] == {'4.0': [0], '8.0': [0]}
  assert found['both']['4.0'] == [*found['with']['4.0'], 0]
  # Aliasing, the same in every repeat, is no structure of the input; it is one of an output.
  artefact = 3 * case.target
  shifted = case._replace(image=case.image + artefact, twin=case.twin + artefact, fresh=case.fresh + artefact)
  before, after = (invariances._contrasts(PLAN, c, [SIZE], {'input': c.image, 'output': c.image}) for c in (case, shifted))
  np.testing.assert_allclose(after['input']['4.0'], before['input']['4.0'], atol=1e-3)
  assert after['output']['4.0'][0] > before['output']['4.0'][0] + 1
  # In mm where the series knows its pixels.
  series = PLAN._replace(volume=type('Series', (), {'pixel': 2.0})())
  assert invariances._contrasts(series, case, [8.0], {'with': case.target})['with']['8.0'] == found['with']['4.0']


class Identity:
  """f(x) = x."""

  def apply(self, variables, image):
    return image


class Drawing:
  """An autoencoder that draws the anatomy in its variables whatever the code."""

  latent = 3

  def apply(self, variables, first, second, method):
    zeros = np.zeros((1, self.latent), np.float32)
    return (zeros, zeros - 20) if method == 'encode' else variables['anatomy'][None]


class Shift:
  """A flow that adds one."""

  def apply(self, variables, z, condition, reverse=False):
    return z - 1 if reverse else z + 1, 0.0


@functools.cache
def tap_of(corrections):
  options = dict(alpha=0.05, network='net', autoencoder='vae', num_samples=5, max_moments=2, chunk=2, corrections=corrections, scales=(1.0,), flows=('flow',))
  runs = {'flow': {'train': {'task': {'layer': 0}}}, 'vae': {'train': {'task': {'image': 'target'}}}}
  config = ml_collections.ConfigDict(dict(seed=0, label='toy', experiments=runs, invariances=options))
  parts = {'net': (Identity(), {}), 'vae': (Drawing(), {}), 'flow': (Shift(), {})}
  return config, invariances.Tap(config, parts.__getitem__, 'flow')


def measured(case, anatomy, *, corrections=1, structure=1):
  config, tap = tap_of(corrections)
  tap.variables['vae'] = {'anatomy': anatomy}
  found = tap(config, PLAN.name, case, structure, noise(3, 2) + 5)
  return found, invariances._row(config, PLAN, case, tap, structure, found, [SIZE])


def test_samples_that_lack_a_structure_give_it_to_the_noise(case):
  found, row = measured(case, case.twin_target)
  # The network is the identity: one correction gives back the input, so the noise must hold the disc.
  np.testing.assert_allclose(found['anatomies'], np.broadcast_to(case.twin_target, found['anatomies'].shape), atol=1e-5)
  np.testing.assert_allclose(found['outputs'], np.broadcast_to(case.image, found['outputs'].shape), atol=1e-5)
  assert row['gap'] < 1e-3 < row['gap_decoded'] and row['gap_near'] < 1e-3 and len(row['gaps_near']) == 5 and max(row['gaps_near']) < 1e-3
  np.testing.assert_allclose(row['contrasts']['samples']['4.0'], 0, atol=1e-4)
  assert row['contrast_true'] > 1.5 and row['contrasts']['input']['4.0'][0] > 1
  assert min(row['noise_near']) > 2 * row['noise_near_input']['4.0']
  # Samples lack the disc there, and only there do they differ from new noise.
  rows, cols = np.unravel_index(found['excess'].argmax(), SHAPE)
  assert np.hypot(rows - 15, cols - 17) < 3 and row['excess_near'] == found['excess'].max()
  assert row['moved_near'] > row['moved']
  # The identity shows the disc as well as the input does.
  assert row['moved_beyond'] == 1
  # Mismatched samples are made of images of another mean.
  assert row['distance_mismatched'] > row['distance_fresh']


def test_samples_that_show_a_structure_need_no_other_noise(case):
  found, row = measured(case, case.target)
  np.testing.assert_allclose(row['noise_near'], row['noise_near_input']['4.0'], rtol=1e-4)
  np.testing.assert_allclose(row['contrasts']['samples']['4.0'], row['contrast_true'], atol=1e-3)
  assert row['gap_decoded'] < 1e-3 and row['distance_reconstruction'] < 1e-3
  # Where corrections are off the noise stays that of the input, and the gap shows what is missing.
  found, row = measured(case, case.twin_target, corrections=0)
  np.testing.assert_allclose(row['noise_near'], row['noise_near_input']['4.0'], rtol=1e-4)
  assert row['gap'] == row['gap_decoded'] > 0.2 and min(row['gaps_near']) > 1 and row['gap_near'] == pytest.approx(np.median(row['gaps_near']), abs=1e-3)


def test_a_twin_is_measured_like_its_case(case):
  _, row = measured(case, case.twin_target, structure=0)
  assert row['structure'] == 0 and row['contrast_true'] == 0
  np.testing.assert_allclose(row['contrasts']['samples']['4.0'], 0, atol=1e-4)
  assert row['excess_near'] < 2


def test_if_no_image_can_be_read_for_the_moments_it_is_said(monkeypatch):
  def read(example, epoch):
    raise DataError(f'{example.volume.name}: slice {example.slice} is damaged')

  examples = [types.SimpleNamespace(volume=types.SimpleNamespace(name='v'), slice=i) for i in range(2)]
  monkeypatch.setattr(invariances.datasets, 'training_examples', lambda config, volumes: examples)
  data, bad = types.SimpleNamespace(val=types.SimpleNamespace(volumes=[]), read=read), {'index': 'another file'}
  config, tap = tap_of(0)
  with pytest.raises(DataError, match='no held-out image can be read; the last: v: slice 1 is damaged'):
    tap.moments(config, data, bad)
  assert set(bad) == {'index', 'v-000', 'v-001'}
