"""Samples judged by the observer: linear networks and Gaussian scans, where autoencoder and flow have closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import invariances, results
from jaxrec.data.sites import Site
from jaxrec.invariances import known
from jaxrec.reports import samples
from jaxrec.workflows import detect, places, sampling
from jaxrec.workflows.experiment import Invariances

SIDE, PATIENTS, SITES, SCANS, FEW = 10, 8, 3, 80, 4
NOISE = known.texture(SIDE)
K = known.covariance(NOISE)
KINDS = [places.Kind(d, c, 5.0) for d, (c,) in zip((2.0, 5.0), known.contrasts(NOISE, (2.0, 5.0), (5.0,)))]
ADDED = np.stack([k.contrast * known.structure(SIDE, k.size) for k in KINDS]).astype(np.float32)
NETWORKS = {
  'identity': lambda x: x,
  'sharpening': known.networks(NOISE, 2.0)['sharpening'].network,
  'removal': known.removal(NOISE, 2.0),
}
OPTIONS = Invariances(
  num_samples=12, chunk=6, corrections=0, sites=2, others=2, scales=(1.0,), alpha=0.1, scans=3, pictures=0, shown=0
)


def sites(patient):
  rng = np.random.default_rng([3, patient])
  for _ in range(SITES):
    absent = known.draw(rng, NOISE, SCANS)
    yield Site(
      absent,
      absent[None, :FEW] + ADDED[:, None],
      (0, 0),
      np.zeros((SIDE, SIDE), np.float32),
      ADDED,
      lambda r, a: a + known.draw(r, NOISE, len(a)),
    )


ASKED = places.Question(KINDS, {f'p{i}': (lambda i=i: sites(i)) for i in range(PATIENTS)}, SIDE, 1.0, [])


def closed_form(network):
  """`x | f(x)` of Gaussian scans: mean G y, and what f drops as v."""
  a = known.matrix(network, SIDE)
  gain = np.linalg.lstsq(a @ K @ a.T, a @ K, rcond=1e-6)[0].T
  values, vectors = np.linalg.eigh(K - gain @ a @ K)
  root = jnp.asarray(vectors * np.sqrt(np.maximum(values, 0)), jnp.float32)
  gain = jnp.asarray(gain, jnp.float32)
  return invariances.Sampler(
    observe=lambda _, x: {'output': network(x), 'tap': network(x)},
    encode=lambda _, key, x, y: x.ravel() - gain @ y['output'].ravel(),
    decode=lambda _, z, y: (gain @ y['output'].ravel() + z).reshape(SIDE, SIDE),
    forward=lambda _, z, y: z,
    inverse=lambda _, v, y: root @ v,
    latent=SIDE * SIDE,
    correct=lambda _, x, seen, y: x + y['output'] - seen['output'],
  )


def prior(value):
  """Anatomies that are always this one."""
  return invariances.Sampler(
    observe=lambda _, x: x,
    encode=None,
    forward=None,
    inverse=lambda _, v, y: v,
    latent=1,
    decode=lambda _, z, y: jnp.broadcast_to(jnp.asarray(value), (SIDE, SIDE)),
  )


@pytest.fixture(scope='module')
def sampled(tmp_path_factory):
  folder = results.Run(tmp_path_factory.mktemp('sampled'))
  detect.measure(folder, NETWORKS, ASKED, chunk=40)
  taps = [
    sampling.Tap(name, 'output', closed_form(f), {}, (prior(0.0), {}) if name == 'removal' else None)
    for name, f in NETWORKS.items()
  ]
  work = sampling.Sampling(folder, taps, ASKED, (0, 1), OPTIONS, folds=4, seed=0)
  work.measure()
  return folder, work, sampling.measured(folder.folder)


def of(rows, network, kind):
  return [r for r in rows if r['network'] == network and r['kind'] == kind]


def test_rows_are_those_of_sites_and_classes(sampled):
  _, _, rows = sampled
  assert len(rows) == 3 * PATIENTS * (2 + 2) == len({tuple(r[k] for k in sampling.KEY) for r in rows})


@pytest.mark.parametrize('name', ['identity', 'sharpening'])
def test_samples_of_what_loses_nothing_are_the_input(name, sampled):
  _, _, rows = sampled
  for kind in (results.NO_STRUCTURE, 0, 1):
    for r in of(rows, name, kind):
      assert r['witnesses'] == r['plausible_witnesses'] == 0 and abs(r['fell']) < 0.1
      assert r['deviation'] < 0.05 * r['noise'] and r['distance_samples'] < 0.05 * r['distance_fresh']


def test_samples_of_what_drops_a_structure_are_witnesses(sampled):
  """Its evidence is drawn anew, from the noise alone: it falls by 5 - N(0, 1)."""
  _, _, rows = sampled
  removed = of(rows, 'removal', 0)
  assert np.mean([r['witnesses'] for r in removed]) > 0.9
  assert np.mean([r['fell'] for r in removed]) == pytest.approx(5, abs=1)
  assert np.mean([r['plausible'] for r in removed]) > 0.6
  # A larger one stays in the output for the most part, and so in the samples.
  assert np.mean([r['fell'] for r in of(rows, 'removal', 1)]) < 4


def test_anatomies_scanned_anew_are_judged_beside_the_true_one(sampled):
  _, _, rows = sampled
  for r in of(rows, 'removal', 0) + of(rows, 'removal', results.NO_STRUCTURE):
    assert 0.7 < r['gap_rescanned'] < 1.4 and 0.7 < r['gap_rescanned_target'] < 1.4
  # The output moves with the noise: no more than a share of the scans leaves it.
  assert 0 < np.mean([r['witnesses_rescanned'] for r in of(rows, 'removal', 0)]) <= 1
  assert all('gap_rescanned' not in r for r in of(rows, 'identity', 0))


def test_excess_is_judged_by_structure_free_inputs_of_other_patients(sampled):
  _, _, rows = sampled
  judged = sampling.judged(rows, 0.1)
  for name in NETWORKS:
    nothing = of(judged, name, results.NO_STRUCTURE)
    assert np.mean([r['altered'] for r in nothing]) <= 0.3
    for r in nothing:
      others = [x['excess'] for x in nothing if x['patient'] != r['patient']]
      assert np.mean(np.array(others) > r['limit']) <= 0.1
  # Samples that lack the structure deviate from scans that have it; those of the identity are scans.
  excess = {name: np.mean([r['excess'] for r in of(judged, name, 0)]) for name in NETWORKS}
  assert excess['removal'] > excess['identity'] + 0.8 and excess['sharpening'] == pytest.approx(
    excess['identity'], rel=0.01
  )
  with pytest.raises(ValueError, match='alpha: 0.01 needs at least 99 structure-free inputs, there are 14'):
    sampling.judged(rows, 0.01)


def test_a_lost_row_is_sampled_again_and_equal(sampled):
  folder, work, rows = sampled
  path = next((folder.folder / 'rows').glob('*.jsonl'))
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(lines[:-1]) + lines[-1][:30])
  work.measure()
  without = [
    [{k: v for k, v in r.items() if k != 'seconds'} for r in x] for x in (sampling.measured(folder.folder), rows)
  ]
  assert without[0] == without[1]


def test_noise_of_the_flow_is_judged_over_scans(sampled):
  _, work, _ = sampled
  moments = work.moments(2)
  assert moments['scans'] == 3 * PATIENTS and moments['mean_rms'] < 1


def test_report_tables_are_means_over_patients(sampled):
  _, _, rows = sampled
  shown = [{**{k: str(v) for k, v in r.items()}, 'size': '2', 'aim': '5'} for r in sampling.judged(rows, 0.1)]
  head, lines = samples.classes(shown, 'mm', 50)
  found = {(line[0], i): dict(zip(head, line)) for i, line in enumerate(lines)}
  mean = np.mean([r['witnesses'] for r in of(rows, 'removal', 0)])
  assert any(n == 'removal' and cell['witnesses'].startswith(f'{mean:.2f} (') for (n, _), cell in found.items())
  head, lines = samples.diversity(shown, 2.0, 50)
  cells = {line[0]: dict(zip(head, line)) for line in lines}
  assert cells['identity']['over noise'].startswith('0.0') and float(cells['removal']['over noise'].split()[0]) > 0.02
  head, lines = samples.consistency(shown, 50)
  assert {line[0] for line in lines} == set(NETWORKS)


def test_output_moves_with_the_noise_as_the_network_lets_it(sampled):
  first = [next(iter(read())) for read in ASKED.patients.values()]
  same, half = (np.array(detect.moved_by_noise(f, first, SIDE)) for f in (lambda x: x, lambda x: 0.5 * x))
  np.testing.assert_allclose(same[:, 0], 1, rtol=1e-5)
  np.testing.assert_allclose(half[:, 0], 0.5, rtol=1e-5)
  # Half of the noise, and as much again: |s - 1| over the root of two.
  names = detect.noise_columns()
  for dose in detect.DOSES:
    expected = abs(1 / np.sqrt(dose) - 1) / np.sqrt(2)
    for table in (same, half):
      np.testing.assert_allclose(table[:, names.index(f'dose_{dose:g}_output')].mean(), expected, rtol=0.1)
