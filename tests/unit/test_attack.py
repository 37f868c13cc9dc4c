"""Audits: what their programs compute, what they are given to attack, and what they never compute twice."""

import dataclasses
import functools
import json
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrec
from jaxrec import attacks, results
from jaxrec.attacks.core import Perturbation
from jaxrec.audit import engine, program, public
from jaxrec.audit.plan import Case, Place, Settings
from jaxrec.training import data_parallel

SCORES = (
  'ssim_region_adv',
  'psnr_image_adv',
  'nmse_region_adv',
  'nmse_image_clean',
  'objective_adv',
  'objective_clean',
)


@pytest.fixture(scope='module')
def boxed(scan):
  """The phantom slice with a box that is not the whole image."""
  region = np.zeros_like(scan.region)
  region[8:16, 10:20] = 1
  return scan.replace(region=region)


@pytest.fixture(scope='module')
def net(zero_filled):
  return jaxrec.network(functools.partial(zero_filled, None), name='zero-filled')


def outcomes(net, sweep, scan, regions):
  """One outcome per region."""
  clean = np.asarray(net(scan))
  if sweep.is_grid:
    run = jax.jit(program.by_grid(net, sweep, 1))
    batch = jax.tree.map(lambda x: np.asarray(x)[None], scan)
    found = run(
      program.weights(net, sweep), batch, np.stack(regions)[None], np.stack([scan.region] * 2)[None], clean[None]
    )
    return [jax.tree.map(lambda x, i=i: np.asarray(x[0, i]), found) for i in range(len(regions))]
  run = jax.jit(program.by_search(net, sweep, 1))
  two = jax.tree.map(lambda x: np.stack([x] * len(regions)), scan)
  keys = jax.random.split(jax.random.key(0), len(regions))
  found = run(program.weights(net, sweep), keys, two, np.stack(regions), two.region, np.stack([clean] * len(regions)))
  return [jax.tree.map(lambda x, i=i: np.asarray(x[i]), found) for i in range(len(regions))]


def cropped_rss(kspace, shape):
  coils = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(np.asarray(kspace), (-2, -1)), norm='ortho'), (-2, -1))
  image = np.sqrt(np.sum(np.abs(coils) ** 2, 0))
  top, left = ((n - m) // 2 for n, m in zip(image.shape, shape))
  return image[top : top + shape[0], left : left + shape[1]]


def assert_aimed(found, scan, region):
  """The objective is that of the region."""
  error = ((found.adversarial - scan.target) / scan.scale) ** 2
  np.testing.assert_allclose(found.columns['objective_adv'][-1], np.sum(region * error) / np.sum(region), rtol=1e-3)


SEARCHES = {
  'a start': ((0.3, 0.6, 1.0), jaxrec.random_search(num_samples=1)),
  'a grid, largest strength': ((0.5, 1.0), jaxrec.grid(np.float32([0, 0.5, 1]))),
}


@pytest.mark.parametrize('name', SEARCHES)
def test_the_control_image_is_fully_sampled_and_the_aim_is_the_given_region(name, boxed, net):
  rng = np.random.default_rng(0)
  noise = (
    0.3
    * np.abs(boxed.kspace).mean()
    * (rng.standard_normal(boxed.kspace.shape) + 1j * rng.standard_normal(boxed.kspace.shape))
  )
  noise = np.where(boxed.acquired, noise, 0).astype(np.complex64)

  @jaxrec.family('size', unit='relative', title='Fixed noise')
  def fixed(size):
    return Perturbation(
      init=lambda key, scan: jnp.float32(size),
      apply=lambda delta, scan: scan.replace(kspace=scan.kspace + delta * noise),
      project=lambda delta, scan: jnp.clip(delta, 0, size),
      align=lambda delta, image: image,
    )

  sweep = jaxrec.Sweep(fixed, *SEARCHES[name])
  regions = boxed.region, np.ones_like(boxed.region)
  for region, found in zip(regions, outcomes(net, sweep, boxed, regions)):
    if sweep.is_grid:
      assert found.columns['delta'][0] < found.columns['delta'][1] == 1
    want = cropped_rss(boxed.kspace + noise, boxed.target.shape)
    np.testing.assert_allclose(found.control, want, atol=1e-4 * want.max())
    assert_aimed(found, boxed, region)
    # Without a surrogate the search has seen what is reported, of the largest strength.
    np.testing.assert_allclose(found.trace.max(), found.columns['objective_adv'][-1], rtol=1e-4)


def test_the_control_image_of_a_rotation_is_fully_sampled_and_the_aim_is_the_given_region(boxed, net):
  sweep = jaxrec.Sweep(jaxrec.rotation, (3.0,), jaxrec.grid(np.float32([-3, 0, 3])))
  regions = boxed.region, np.ones_like(boxed.region)
  for region, found in zip(regions, outcomes(net, sweep, boxed, regions)):
    # Turned and turned back, the fully sampled image is the target.
    error = np.linalg.norm(found.control - boxed.target) / np.linalg.norm(boxed.target)
    assert abs(found.columns['delta'][0]) == 3 and error < 0.03
    assert_aimed(found, boxed, region)


NOISE = jaxrec.Sweep(jaxrec.coil_noise, (0.02, 0.05), jaxrec.pgd(num_steps=2))
TURN = jaxrec.Sweep(jaxrec.rotation, (1.0, 2.0), jaxrec.grid(attacks.angle_grid(2.0, 1.0)))


@pytest.fixture(scope='module')
def rows(boxed, net):
  plain = boxed.replace(region=np.ones_like(boxed.region))
  return jaxrec.audit({'a': net}, {'boxed': boxed, 'plain': plain}, {'noise': NOISE, 'turn': TURN})


def test_rows_are_those_of_attack_one_by_one(rows, boxed, net):
  """Shared grids, clean images and programs change no number."""

  @functools.partial(jax.jit, static_argnums=0)
  def alone(name, strength, aimed):
    sweep = {'noise': NOISE, 'turn': TURN}[name]
    # Angles that are too large are projected, onto points of the grid.
    return jaxrec.attack(net.reconstruct, sweep.at(strength), sweep.search, sweep.objective)(
      None, jax.random.key(0), aimed
    )

  for aim, region in (('region', boxed.region), ('image', np.ones_like(boxed.region))):
    for row in rows:
      if (row['file'], row['attacked']) != ('boxed', aim) or not row['strength']:
        continue
      found = alone(row['perturbation'], row['strength'], boxed.replace(region=region))
      assert row['objective_adv'] == pytest.approx(float(found.loss), rel=1e-4)
      assert row['budget_used'] == pytest.approx(float(found.budget), abs=1e-4)
      assert row['nmse_region_adv'] == pytest.approx(
        float(jaxrec.metrics.nmse(found.adversarial, boxed.target, boxed.scale, boxed.region)), rel=1e-4
      )
      assert row['steps'] == (2 if row['perturbation'] == 'noise' else 5)
      change = np.linalg.norm(found.sample.kspace - boxed.kspace) / np.linalg.norm(boxed.kspace)
      assert row['delta'] == pytest.approx(change if row['perturbation'] == 'noise' else float(found.delta), rel=1e-3)


def test_without_a_box_there_is_one_aim_and_every_strength_is_a_row(rows):
  keys = [(r['file'], r['attacked'], r['perturbation'], r['strength']) for r in rows]
  want = {
    (file, aim, name, s)
    for file, aims in (('boxed', ('region', 'image')), ('plain', ('image',))) for aim in aims
    for name, sweep in (('noise', NOISE), ('turn', TURN)) for s in (0.0, *sweep.strengths)
  }  # fmt: skip
  assert len(keys) == len(want) and set(keys) == want
  for row in rows:
    assert row['objective_adv'] >= row['objective_clean'] and (
      row['strength'] > 0 or row['objective_adv'] == row['objective_clean']
    )


class Counted:
  """A lazy source that counts what is read."""

  def __init__(self, samples):
    self.samples, self.read = samples, []

  def __len__(self):
    return len(self.samples)

  def __getitem__(self, i):
    self.read.append(i)
    return self.samples[i]


def test_nothing_is_computed_twice(boxed):
  """A grid is one pass for all boxes and aims, the clean image one call per slice."""
  calls = []

  def reconstruct(scan):
    image = jaxrec.networks.zero_filled(scan)[0]
    jax.debug.callback(lambda: calls.append(1))
    return image

  source = Counted([boxed])
  jaxrec.audit({'a': reconstruct}, source, {'turn': TURN})
  jax.effects_barrier()
  assert source.read == [0] and len(calls) == 5 + 1


class Interrupted(Exception):
  pass


def test_a_folder_goes_on_where_it_was_and_belongs_to_one_audit(boxed, net, tmp_path):
  """Interrupted between slices; then nothing is read or computed again that is there."""
  samples = {'one': boxed, 'two': boxed, 'three': boxed}

  class Stops(dict):
    def __getitem__(self, name):
      if name == 'three' and not (tmp_path / 'go').exists():
        raise Interrupted
      return super().__getitem__(name)

  run = functools.partial(
    jaxrec.audit, {'a': net}, Stops(samples), {'noise': NOISE}, folder=tmp_path / 'run', pictures=1
  )
  with pytest.raises(Interrupted):
    run()
  stored = tmp_path / 'run' / 'a' / 'rows' / '00000.jsonl'
  before = stored.read_bytes()
  assert len(before.splitlines()) == 12
  (tmp_path / 'go').touch()
  rows = run()
  assert stored.read_bytes().startswith(before) and len(rows) == 18
  whole = jaxrec.audit({'a': net}, samples, {'noise': NOISE})
  by_key = {(r['file'], r['attacked'], r['strength']): r for r in whole}
  for row in rows:
    want = by_key[row['file'], row['attacked'], row['strength']]
    assert {k: row[k] for k in SCORES} == {k: want[k] for k in SCORES}
  with results.open_images(tmp_path / 'run' / 'a') as pictures:
    assert {name.split('.')[0] for name in pictures} == {'one-000-0'}
  page = jaxrec.report(tmp_path / 'run', draws=10)
  text = page.read_text()
  assert 'Worst-case k-space noise' in text and '>5%<' in text and text.count('<img') == 4
  with pytest.raises(ValueError, match='was made with attacks.noise.strengths'):
    jaxrec.audit({'a': net}, samples, {'noise': dataclasses.replace(NOISE, strengths=(0.01,))}, folder=tmp_path / 'run')
  with pytest.raises(ValueError, match='was made with data.digest'):
    jaxrec.audit(
      {'a': net}, {**samples, 'two': boxed.replace(kspace=2 * boxed.kspace)}, {'noise': NOISE}, folder=tmp_path / 'run'
    )
  assert json.loads((tmp_path / 'run' / 'a' / 'provenance.json').read_text())['one_program'] is True


def test_without_a_target_the_deviation_from_the_own_output_is_measured(boxed):
  net = jaxrec.network(lambda scan: jaxrec.networks.zero_filled(scan)[0])
  blind = boxed.replace(target=np.full_like(boxed.target, np.nan))
  with pytest.raises(ValueError, match="noise: blind has no target.*start='random'"):
    jaxrec.audit({'a': net}, {'blind': blind}, {'noise': NOISE})
  noise = dataclasses.replace(NOISE, family=functools.partial(jaxrec.coil_noise, start='random'))
  own = boxed.replace(target=cropped(np.asarray(net(boxed)), boxed))
  rows = jaxrec.audit({'a': net}, [blind, own], {'noise': noise}, aims=('image',), batch_size=2)
  assert [r['nmse_image_clean'] for r in rows] == pytest.approx([0] * 6, abs=1e-9)
  blind, own = ([r['nmse_image_adv'] for r in rows if r['file'] == f'sample-000{i}' and r['strength']] for i in (0, 1))
  assert blind == pytest.approx(own, rel=0.1) and min(blind) > 1e-5


def cropped(image, scan):
  top, left = ((n - m) // 2 for n, m in zip(image.shape, scan.target.shape))
  return image[top : top + scan.target.shape[0], left : left + scan.target.shape[1]]


def test_the_search_looks_at_the_surrogate(boxed, zero_filled):
  """A grid, too: the angle is the surrogate's worst one, the score is the network's."""
  mine = jaxrec.network(functools.partial(zero_filled, None))
  other = jaxrec.network(lambda scan: 2 * scan.scale - zero_filled(None, scan))
  nets = {'other': other, 'transfer': dataclasses.replace(mine, surrogate=other)}
  sweep = dataclasses.replace(TURN, objective=lambda image, sample: jnp.mean(image[8:13, 8:13]))
  other, transfer = (r for r in jaxrec.audit(nets, [boxed], {'turn': sweep}, aims=('image',)) if r['strength'] == 2)
  assert transfer['delta'] == other['delta']
  assert transfer['objective_adv'] + other['objective_adv'] == pytest.approx(2 * float(boxed.scale), rel=1e-5)
  assert other['objective_adv'] > other['objective_clean'] and transfer['objective_adv'] < transfer['objective_clean']


@pytest.mark.parametrize('factor, words', [(1e3, r'\d{3} times'), (1e-3, r'0\.000\d+ times'), (1.0, '')])
def test_images_in_other_units_are_told(factor, words, boxed, zero_filled):
  with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter('always')
    jaxrec.audit({'a': lambda scan: factor * zero_filled(None, scan)}, [boxed], {'turn': TURN}, aims=('image',))
  told = [str(w.message) for w in told if w.category is UserWarning and 'as large as the target' in str(w.message)]
  assert bool(told) == bool(words) and all(re.match(f'a: its image of sample-0000 is {words}', w) for w in told), told


MISTAKES = {
  'aim': (dict(aims=('foot',)), "'foot' is unknown"),
  'patients': (dict(patients=('a', 'b')), '2 names for 1 samples'),
  'nothing': (dict(networks={}), 'at least one network'),
  'strength': (dict(strengths=(2.0,)), '2.0 is above 1.*0.02 is 2%'),
  'no strength': (dict(strengths=(0.0,)), 'at least one strength above 0'),
  'undeclared': (dict(family=lambda size: None), 'declares no strength'),
  'restarts': (
    dict(search=jaxrec.restarts(jaxrec.pgd(), num_restarts=2)),
    "num_restarts: 2 starts would all be the same.*start='random'",
  ),
  'random': (dict(search=jaxrec.random_search(num_samples=3)), 'num_samples: 3 starts would all be the same'),
}


@pytest.mark.parametrize('kind', MISTAKES)
def test_mistakes_are_named(kind, boxed, net):
  options, words = MISTAKES[kind]
  options = dict(options)
  with pytest.raises(ValueError, match=words):
    sweep = jaxrec.Sweep(
      options.pop('family', jaxrec.coil_noise),
      options.pop('strengths', (0.1,)),
      options.pop('search', jaxrec.pgd(num_steps=1)),
    )
    jaxrec.audit(options.pop('networks', {'a': net}), [boxed], {'noise': sweep}, **options)


def test_slices_of_different_shapes_share_a_batch_size(boxed, net):
  small = jaxrec.Scan.from_kspace(np.asarray(boxed.kspace)[:, 4:-4])
  rows = jaxrec.audit({'a': net}, [boxed, small, boxed], {'turn': TURN}, batch_size=2, aims=('image',))
  (clean,) = {r['objective_clean'] for r in rows if r['file'] == 'sample-0001'}
  assert clean == pytest.approx(float(jaxrec.region_mse()(net(small), small)), rel=1e-4)
  assert [r['objective_adv'] for r in rows if r['file'] == 'sample-0000'] == [
    r['objective_adv'] for r in rows if r['file'] == 'sample-0002'
  ]


def test_a_case_with_several_boxes_has_a_place_for_each(boxed):
  regions = tuple(jaxrec.data.annotations.Region(r, 2, 8, 8, f'box {r}', r + 1) for r in (0, 9))
  case = Case('f', 0, 'p', read=lambda: boxed, boxes=regions, boxed=True)
  places = case.places(boxed, ('region', 'image'))
  assert [(p.annotation, p.aim) for p in places] == [(1, 'region'), (1, 'image'), (10, 'region'), (10, 'image')]
  assert all(p.box[p.annotation - 1, 2] == 1 and p.box.sum() == 64 for p in places)
  assert [p.region.sum() for p in places] == [64, boxed.region.size] * 2


def test_pictures_of_angles_have_their_curve(boxed, net):
  regions = boxed.region, np.ones_like(boxed.region)
  for sweep in (TURN, NOISE):
    for region, found in zip(regions, outcomes(net, sweep, boxed, regions)):
      place = Place(0, '', 'region', region, np.asarray(boxed.region))
      arrays = engine._pictures(boxed, np.asarray(net(boxed)), place, found, sweep)
      assert arrays['strength'] == np.float32(max(sweep.strengths))
      assert ('curve' in arrays) == ('angles' in arrays) == (sweep is TURN)
      if sweep is TURN:
        np.testing.assert_array_equal(arrays['angles'], sweep.points)
        assert len(arrays['curve']) == len(sweep.points)
      else:
        # The search ends near the border.
        assert arrays['delta'] == pytest.approx(0.05, rel=0.02)


def test_what_is_changed_beside_the_measurement_counts_too(boxed, net):
  """A perturbation of the mask, found by a search as on a grid."""
  numbers = np.arange(boxed.mask.shape[-1])

  @jaxrec.family('columns', unit='columns', title='Lost columns', axis='columns')
  def lost(columns):
    return Perturbation(
      init=lambda key, scan: jnp.float32(0),
      apply=lambda d, scan: scan.replace(mask=scan.mask & (numbers >= d)),
      project=lambda d, scan: jnp.clip(d, 0, columns),
      align=lambda d, image: image,
      budget=lambda d, scan: d / columns,
    )

  points = np.float32([0, 20])
  rows = [
    jaxrec.audit({'a': net}, [boxed], {'lost': jaxrec.Sweep(lost, (20.0,), search)}, aims=('image',))[-1]
    for search in (jaxrec.grid(points), jaxrec.restarts(jaxrec.grid(points), num_restarts=1))
  ]
  for name in (*SCORES, 'delta'):
    assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-4)
  assert rows[0]['delta'] == 20 and rows[0]['objective_adv'] > 1.1 * rows[0]['objective_clean']


def test_the_delta_of_relative_points_is_the_share_that_changes(boxed, net):
  noise = jaxrec.coil_noise(0.02, start='random')
  keys = jax.random.split(jax.random.key(0), 3)
  points = jax.vmap(lambda key: noise.project(1e3 * noise.init(key, boxed), boxed))(keys)
  sweep = jaxrec.Sweep(jaxrec.coil_noise, (0.02,), jaxrec.grid(points))
  row = jaxrec.audit({'a': net}, [boxed], {'noise': sweep}, aims=('image',))[-1]
  assert row['delta'] == pytest.approx(0.02, rel=1e-3) and row['budget_used'] == pytest.approx(1, rel=1e-3)


@pytest.mark.fault
@pytest.mark.parametrize('changes, words', [
  (dict(batch_size=0), 'batch_size: 0 is not positive'), (dict(chunk=0), 'chunk: 0 is not positive'),
  (dict(aims=()), 'aims: () is empty'), (dict(aims=('image', 'image')), 'names one twice'),
  (dict(samples=lambda scan: {1: scan, '1': scan}), 'two samples have one name'),
  (dict(samples=lambda scan: [scan.replace(region=np.zeros_like(scan.region))]), 'sample-0000: its region is empty'),
  (dict(networks=lambda scan: (jnp.ones((32, 32)),)), 'its output is a tuple'),
])  # fmt: skip
def test_what_an_audit_cannot_take_is_named(changes, words, boxed, net):
  options = dict(networks=net, samples=[boxed], attacks={'noise': NOISE}, aims=('image',))
  if 'samples' in changes:
    changes = {'samples': changes['samples'](boxed)}
  with pytest.raises(ValueError, match=re.escape(words)) as found:
    jaxrec.audit(**{**options, **changes})
  assert '\n' not in str(found.value)


@pytest.mark.fault
def test_angles_that_are_no_rotation_are_refused_before_anything_runs():
  with pytest.raises(ValueError, match='120'):
    jaxrec.Sweep(jaxrec.rotation, (5.0, 120.0))


def test_one_network_and_one_sample_need_no_list(boxed, zero_filled):
  rows = jaxrec.audit(functools.partial(zero_filled, None), boxed, TURN, aims=('image',))
  assert {row['file'] for row in rows} == {'sample-0000'}


class Labelled(list):
  """Asked for by a label and not by a place, as a series of pandas is after sorting."""

  def __getitem__(self, label):
    return super().__getitem__([2, 0, 1][label])


def test_patients_are_taken_in_their_order(boxed, net):
  rows = jaxrec.audit(net, [boxed] * 3, TURN, aims=('image',), patients=Labelled('ABC'))
  assert [row['patient'] for row in rows if row['strength'] == 0] == ['A', 'B', 'C']


@pytest.mark.fault
def test_a_folder_takes_no_networks_of_other_samples_and_no_other_iterations(boxed, net, tmp_path):
  def run(name, sample, **options):
    return jaxrec.audit({name: net}, [sample], {'noise': NOISE}, folder=tmp_path, aims=('image',), **options)

  run('a', boxed)
  with pytest.raises(results.RunError, match='a: was made with other samples or patients; set another folder'):
    run('b', boxed.replace(kspace=2 * boxed.kspace))
  with pytest.raises(results.RunError, match='was made with lipschitz_iterations=0, now it is 2'):
    run('a', boxed, lipschitz_iterations=2)


def test_pictures_of_samples_of_any_name_are_in_the_report(boxed, net, tmp_path):
  jaxrec.audit({'a': net}, {'case 1/ü': boxed}, {'my noise': NOISE}, folder=tmp_path, aims=('image',))
  jaxrec.report(tmp_path, draws=10)
  assert list((tmp_path / 'figures').glob('my_noise-panel-image*'))


def test_networks_are_functions_that_can_be_compiled(boxed):
  net = jaxrec.network(lambda v, scan: v['a'] * scan.target, {'a': jnp.float32(2)})
  np.testing.assert_array_equal(jax.jit(net)(boxed), 2 * boxed.target)


def test_pictures_have_the_size_of_the_target(boxed, net):
  """Of images that are larger than it the centre, whatever the sides."""
  rows, cols = 12, 20
  image = np.arange(16 * 30.0).reshape(16, 30)
  small = boxed.replace(target=np.zeros((rows, cols), np.float32))
  (found,) = outcomes(net, NOISE, boxed, [boxed.region])
  arrays = engine._pictures(small, image, Place(0, '', 'region', boxed.region, boxed.region), found, NOISE)
  np.testing.assert_array_equal(arrays['clean'], image[2:14, 5:25])


@pytest.mark.parametrize(
  'family, points, strengths, words',
  [
    (jaxrec.rotation, np.float32([-3, 3]), (1.0, 3.0), 'turn: no point of its grid lies within max_degrees 1;'),
    (jaxrec.translation, np.float32([[1e-8, 0]]), (1e-9,), 'turn: no point of its grid lies within max_pixels 1e-09;'),
  ],
)
def test_a_strength_that_a_grid_has_no_point_for_is_refused(family, points, strengths, words, boxed, net):
  with pytest.raises(ValueError, match=words):
    jaxrec.audit({'a': net}, [boxed], {'turn': jaxrec.Sweep(family, strengths, jaxrec.grid(points))}, aims=('image',))


def test_points_on_the_border_of_a_ball_are_allowed(boxed):
  rng = np.random.default_rng(0)
  points = rng.normal(size=(40, *boxed.kspace.shape)) + 1j * rng.normal(size=(40, *boxed.kspace.shape))
  points *= np.asarray(jaxrec.coil_noise(0.02).project(np.ones_like(boxed.kspace), boxed)) != 0
  points *= 0.02 * (np.linalg.norm(boxed.kspace, axis=(1, 2)) / np.linalg.norm(points, axis=(2, 3)))[..., None, None]
  points = np.complex64(points)
  assert program._feasible(jaxrec.coil_noise(0.02), points, boxed).all()
  assert not program._feasible(jaxrec.coil_noise(0.0199), points, boxed).any()


def test_a_grid_may_have_points_of_several_parts(boxed, net):
  """A turn and a shift together."""

  @jaxrec.family('size', unit='pixels', title='Movement')
  def moved(size):
    return jaxrec.compose(jaxrec.rotation(size), jaxrec.translation(size))

  points = (np.float32([0, 1, 2]), np.float32([[0, 0], [0, 1], [1, 1]]))
  # Of this phantom a moved image has the smaller error.
  sweep = jaxrec.Sweep(
    moved, (1.0, 2.0), jaxrec.grid(points), lambda image, sample: -jaxrec.region_mse()(image, sample)
  )
  rows = jaxrec.audit({'a': net}, [boxed], {'m': sweep}, aims=('image',))
  assert [r['delta'] for r in rows] == [0.0, 1.0, 2.0] and rows[2]['objective_adv'] > rows[0]['objective_adv']


def test_a_grid_without_zero_is_compared_with_the_clean_image(rows, boxed, net):
  """No point of it stands for the measurement as it is."""
  sweep = dataclasses.replace(TURN, search=jaxrec.grid(np.float32([-2, -1, 1, 2])))
  found = jaxrec.audit({'a': net}, {'boxed': boxed}, {'turn': sweep})
  wanted = [row for row in rows if row['perturbation'] == 'turn' and row['file'] == 'boxed']
  assert len(found) == len(wanted)
  for row, other in zip(found, wanted):
    for name in ('objective_clean', 'ssim_region_clean', 'psnr_image_clean', 'objective_adv'):
      assert row[name] == pytest.approx(other[name], rel=1e-5), name


@pytest.mark.parametrize('family, told', [(jaxrec.coil_noise, True), (jaxrec.rotation, False)])
def test_the_amplification_is_that_of_shares(family, told, boxed, net):
  sweep = jaxrec.Sweep(family, (0.1,), jaxrec.pgd(num_steps=1))
  rows = jaxrec.audit({'a': net}, [boxed], {'a': sweep}, aims=('image',), lipschitz_iterations=2)
  assert all(('lipschitz' in row) == told for row in rows)


def test_processes_with_other_devices_share_out_the_same_batches(boxed, net):
  """Eight at a time in one process and four in the other: no slice is left out."""
  cases = [Case(f'f{i}', 0, 'p', read=lambda: boxed, boxed=True) for i in range(21)]
  here, seen = data_parallel(1), []
  for part, at_once in enumerate((8, 4)):
    other = here._replace(part=part, parts=2, total=lambda x: np.array([8, 4]) + 0 * x)
    made = engine.Engine(
      net, {'turn': TURN}, Settings(batch_size=at_once), public._Memory(), other, engine.Labels('a', 'a')
    )
    made._attack = lambda cases, *_: seen.extend(case.file for case in cases)
    made.run(cases)
  assert sorted(seen) == sorted(case.file for case in cases)
