"""The verdict on networks whose answer is known, as users ask for it: a run, its files, its report, and going on."""

import pytest

from configs import invariances_known
from jaxrec import reports, results
from jaxrec.experiments.run import run
from jaxrec.workflows import detect


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  config = invariances_known.get_config('smoke')
  config.known.num_steps = 0
  config.known.sampled = ()
  return config, run(config, tmp_path_factory.mktemp('known') / 'run')


def test_rows_hold_what_is_known(finished):
  config, folder = finished
  rows = results.read_csv(folder / 'detectability.csv')
  classes = len(config.known.diameters) * len(config.known.aims)
  assert len(rows) == 11 * classes
  for r in rows:
    if r['linear'] == '1':
      assert float(r['retained']) == pytest.approx(float(r['exact']) / float(r['aim']), abs=0.05)
    if r['keeps'] == '1':
      assert float(r['exact']) == pytest.approx(float(r['aim']), rel=1e-4) and r['ignored'] == r['truth'] == 'no'
    # Input and output are means over the same patients: their ratio is r.
    assert float(r['retained']) == pytest.approx(float(r['output']) / float(r['input']), rel=1e-9)
    assert float(r['input_low']) <= float(r['input']) <= float(r['input_high'])
  removed = [r for r in rows if r['network'].startswith('removes')]
  assert [r['truth'] for r in removed] == [
    'yes' if float(r['size']) <= 3 and float(r['aim']) > 2 else 'no' for r in removed
  ]


def test_report_counts_what_the_rows_say(finished):
  _, folder = finished
  page = (folder / 'report.html').read_text()
  rows = results.read_csv(folder / 'detectability.csv')
  assert (
    f'{sum(r["ignored"] == "yes" for r in rows)} are judged as ignored, {sum(r["truth"] == "yes" for r in rows)} are'
    in page
  )
  assert (folder / 'figures' / 'retained.png').exists()
  with pytest.raises(results.RunError, match='has no rows to report'):
    reports.known.run(folder / 'figures')


def test_a_lost_patient_is_measured_again_and_no_other(finished):
  config, folder = finished
  before = (folder / 'detectability.csv').read_bytes()
  files = sorted((folder / 'detections').glob('*.npz'))
  assert len(files) == config.known.patients
  stamps = {f: f.stat().st_mtime_ns for f in files}
  files[2].unlink()
  run(config, folder)
  assert (folder / 'detectability.csv').read_bytes() == before
  assert [f for f in files if f.stat().st_mtime_ns != stamps[f]] == [files[2]]


@pytest.mark.fault
def test_a_damaged_patient_is_named(finished):
  config, folder = finished
  path = sorted((folder / 'detections').glob('*.npz'))[0]
  whole = path.read_bytes()
  path.write_bytes(whole[:1000])
  with pytest.raises(results.RunError, match=f'{path.name}: cannot be read .*remove it and run again'):
    detect.gathered(results.Run(folder), [f'{i:03d}' for i in range(config.known.patients)], detect.INPUT)
  path.write_bytes(whole)


@pytest.mark.slow
def test_samples_are_beside_the_search(tmp_path):
  config = invariances_known.get_config('smoke')
  folder = run(config, tmp_path / 'run')
  rows = results.read_csv(folder / 'invariances.csv')
  assert {r['network'] for r in rows} == {'bottleneck'} and len(rows) == config.known.patients * (
    1 + len(config.known.diameters)
  )
  assert 'What the samples show' in (folder / 'report.html').read_text()
