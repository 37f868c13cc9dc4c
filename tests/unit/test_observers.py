"""The observer and the verdict on networks whose answer is known, on small scans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import statistics
from jaxrec.invariances import known, observers, verdict, witness
from jaxrec.workflows import detect, places

SIDE, PATIENTS, SITES, SCANS, FEW = 12, 8, 3, 160, 8
NOISE = known.texture(SIDE)
SIZES, AIMS = (2.0, 5.0), (3.0, 5.0)
KINDS = [
  places.Kind(d, float(c), aim)
  for d, mine in zip(SIZES, known.contrasts(NOISE, SIZES, AIMS))
  for c, aim in zip(mine, AIMS)
]
SIGNALS = np.stack([k.contrast * known.structure(SIDE, k.size) for k in KINDS]).astype(np.float32)


@pytest.fixture(scope='module')
def scans():
  """`[patient, site, scan, row, col]` without structures."""
  rng = np.random.default_rng(0)
  return np.stack(
    [[known.background(rng, SIDE) + known.draw(rng, NOISE, SCANS) for _ in range(SITES)] for _ in range(PATIENTS)]
  )


def seen(network, scans):
  f = jax.jit(network)
  absent = np.asarray(f(scans)).reshape(*scans.shape[:3], -1)
  shown = scans[:, :, None, :FEW] + SIGNALS[:, None]
  present = np.asarray(f(shown)).reshape(*shown.shape[:4], -1)
  patients = [
    observers.statistics_of([observers.site_statistics(a, (p - a[:FEW]).mean(1)) for a, p in zip(*sites)])
    for sites in zip(absent, present)
  ]
  return detect.Seen(absent, observers.Statistics(*(np.stack(x) for x in zip(*patients))))


@pytest.fixture(scope='module')
def before(scans):
  inputs = seen(lambda x: x, scans)
  return inputs, observers.observe(inputs.statistics)


NETWORKS = known.networks(NOISE, 2.0)
LOSSLESS = [name for name, n in NETWORKS.items() if n.keeps]
LOSSY = [name for name, n in NETWORKS.items() if n.linear and not n.keeps]


def test_names_that_options_take_are_those_of_the_networks():
  assert set(known.NAMES) == {*NETWORKS, 'bottleneck'}


def test_noise_has_the_covariance_that_it_claims():
  drawn = known.draw(np.random.default_rng(1), NOISE, 20_000).reshape(20_000, -1)
  k = known.covariance(NOISE)
  np.testing.assert_allclose(np.diag(k), 1, rtol=1e-12)
  assert np.abs(np.cov(drawn.T) - k).max() < 0.06
  np.testing.assert_allclose(np.sort(np.linalg.eigvalsh(k)), np.sort(NOISE.power.ravel()), rtol=1e-9)


def test_input_has_the_detectability_that_was_aimed_at(before):
  found = before[1].detectability()
  np.testing.assert_allclose(found, [k.aim for k in KINDS], rtol=0.03)


@pytest.mark.parametrize('name', LOSSLESS)
def test_networks_that_lose_nothing_retain_everything(name, scans, before):
  after = observers.observe(seen(NETWORKS[name].network, scans).statistics)
  judged = verdict.judge(before[1], after, draws=500)
  for v in judged:
    assert abs(v.retained.value - 1) < 0.02 and not v.ignored
  np.testing.assert_allclose(known.exact(NETWORKS[name].network, NOISE, SIGNALS), [k.aim for k in KINDS], rtol=1e-4)


@pytest.mark.parametrize('name', LOSSY)
def test_linear_networks_that_lose_something_have_the_computed_detectability(name, scans, before):
  after = observers.observe(seen(NETWORKS[name].network, scans).statistics)
  exact = known.exact(NETWORKS[name].network, NOISE, SIGNALS)
  assert (exact < 0.95 * np.array([k.aim for k in KINDS])).any()
  # Both suffer alike from the templates' own errors.
  ratio = after.detectability() / before[1].detectability()
  np.testing.assert_allclose(ratio, exact / [k.aim for k in KINDS], atol=0.05)


def test_projection_is_judged_to_ignore_what_it_removes_and_nothing_else(scans, before):
  after = observers.observe(seen(NETWORKS['removal'].network, scans).statistics)
  judged = verdict.judge(before[1], after, draws=2000)
  assert [v.ignored for v in judged] == [k.size == 2.0 for k in KINDS]


def test_opening_sees_large_structures_better(scans, before):
  found = (
    observers.observe(seen(lambda x: known.opening(x, 3), scans).statistics).detectability() / before[1].detectability()
  )
  assert found[0] < found[2] and found[1] < found[3] and found[1] < 0.5


def test_templates_never_see_the_patients_that_they_judge(before):
  statistics_of = before[0].statistics
  judged = (before[1].fold == 1)[:, None, None]
  changed = statistics_of._replace(
    signals=np.where(judged, 7.0, statistics_of.signals),
    covariances=statistics_of.covariances * np.where(judged, 1e6, 1),
  )
  np.testing.assert_array_equal(observers.observe(changed).templates[1], before[1].templates[1])
  assert np.abs(observers.observe(changed).templates[0] - before[1].templates[0]).max() > 1e-3


@pytest.mark.parametrize('low, expected', [
  (dict(), True), (dict(input=verdict.Estimate(3, 1.9, 4)), False), (dict(retained=verdict.Estimate(0.3, 0.2, 0.51)), False),
  (dict(output=verdict.Estimate(0.9, 0.5, 1.01)), False),
])  # fmt: skip
def test_every_part_of_the_verdict_turns_it_alone(low, expected):
  base = verdict.Verdict(
    verdict.Estimate(3, 2.1, 4), verdict.Estimate(0.8, 0.6, 0.99), verdict.Estimate(0.27, 0.2, 0.49)
  )
  assert base._replace(**low).ignored is expected


@pytest.mark.parametrize('name', ['identity', 'smoothing', 'removal'])
def test_search_finds_witnesses_where_and_only_where_something_is_lost(name, scans, before):
  inputs, seen_input = before
  network = NETWORKS[name].network
  after = seen(network, scans)
  detection = observers.observe(after.statistics)
  run = jax.jit(jax.vmap(witness.search(network, SIDE, num_steps=40)))
  bench = detect.Bench(inputs, after, seen_input, detection)
  tests = [bench.tests(p, 1) for p in range(PATIENTS)]
  tests = jax.tree.map(lambda *x: jnp.asarray(np.stack(x), jnp.float32), *tests)
  images, found = run(tests, jnp.asarray(scans[:, 0, 0] + SIGNALS[1]), jnp.zeros((PATIENTS, 2), int))
  assert float(found.witness.mean()) == (0.0 if NETWORKS[name].keeps else 1.0)
  if name == 'removal':
    # What the search claims, from the images alone and in float64.
    w = seen_input.templates[seen_input.fold, 1]
    away = (scans[:, 0, 0] + SIGNALS[1] - np.asarray(images)).reshape(PATIENTS, -1)
    assert (np.einsum('pi,pi->p', w, away) >= witness.FELL - 1e-3).all()


def test_scans_pass_the_tests_of_plausible_noise_as_often_as_they_should(scans, before):
  inputs, detection = before
  passed, bench = [], detect.Bench(inputs, inputs, detection, detection)
  for p in range(PATIENTS):
    tests = jax.tree.map(jnp.asarray, bench.tests(p, 1))
    flat = jnp.asarray(inputs.absent[p, 0])
    passed.append(jax.vmap(lambda other: witness.examine(tests, flat[0], flat[0], other, other).plausible)(flat))
  assert 0.82 < np.mean(passed) < 0.97


def test_exact_detectability_refuses_what_is_certain():
  with pytest.raises(ValueError, match='without bound'):
    observers.exact_detectability(np.array([0.0, 1.0]), np.diag([1.0, 0.0]))
  assert observers.exact_detectability(np.array([3.0, 0.0]), np.diag([4.0, 0.0])) == pytest.approx(1.5)


@pytest.mark.parametrize('name', ['sharpening', 'smoothing', 'directional'])
def test_few_scans_do_not_make_an_invertible_network_lose_anything(name, scans, before):
  """Just enough to be accepted: 5.2 degrees of freedom per pixel."""
  few = scans[:, :, :43]
  inputs, outputs = (observers.observe(seen(f, few).statistics) for f in (lambda x: x, NETWORKS[name].network))
  np.testing.assert_allclose(outputs.detectability() / inputs.detectability(), 1, atol=1e-3)
  np.testing.assert_allclose(inputs.detectability(), [k.aim for k in KINDS], rtol=0.1)
  with pytest.raises(ValueError, match='scans: 702 for 144 pixels of the region are too few'):
    observers.observe(seen(lambda x: x, scans[:, :, :40]).statistics)


def test_detectability_does_not_depend_on_how_well_the_template_is_learnt():
  """Noise in the differences of a network that is not linear makes the template worse, and must not hide the structure."""
  rng = np.random.default_rng(3)
  pixels, patients, exact = 30, 16, 2.0
  signal = np.zeros(pixels)
  signal[0] = exact
  found = []
  for _ in range(200):
    noisy = signal + 0.5 * rng.standard_normal((patients, 1, pixels))
    scans = rng.standard_normal((patients, 40, pixels))
    away = scans - scans.mean(1, keepdims=True)
    statistics_of = observers.Statistics(noisy, np.einsum('psi,psj->pij', away, away) / 39, np.full(patients, 39))
    found.append(observers.observe(statistics_of).detectability()[0])
  # The signal over the deviation of the evidence would be less than 1.9.
  assert np.std(found) / np.sqrt(200) < 0.02
  assert np.mean(found) == pytest.approx(exact, abs=0.06)


def test_a_network_that_loses_everything_is_blind(scans, before):
  after = seen(lambda x: 0 * x, scans)
  detection = observers.observe(after.statistics)
  assert (detection.detectability() == 0).all() and all(
    v.ignored for v in verdict.judge(before[1], detection, draws=500)
  )
  bench = detect.Bench(before[0], after, before[1], detection)
  tests = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), bench.tests(0, 1))
  run = jax.jit(witness.search(lambda x: 0 * x, SIDE, num_steps=5))
  assert bool(run(tests, jnp.asarray(scans[0, 0, 0] + SIGNALS[1]), jnp.zeros(2, int))[1].witness)


def test_evidence_the_wrong_way_round_is_evidence(before):
  squares = -before[1].squares
  np.testing.assert_array_equal(before[1]._replace(squares=squares).detectability(), before[1].detectability())


def test_folds_need_patients(before):
  few = observers.Statistics(*(x[:3] for x in before[0].statistics))
  with pytest.raises(ValueError, match='folds: 4 for 3 patients'):
    observers.observe(few)


def test_corrected_level_and_roc_area():
  assert statistics.corrected(0.95, 5) == pytest.approx(0.99)
  with pytest.raises(ValueError, match='level'):
    statistics.corrected(0.95, 0)
  assert statistics.roc_area([1, 2, 3, 3], [False, False, True, True]) == 1
  assert statistics.roc_area([1, 1, 2, 0], [False, True, True, False]) == pytest.approx(0.875)
  with pytest.raises(ValueError, match='both'):
    statistics.roc_area([1.0], [True])
