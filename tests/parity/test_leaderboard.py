"""Scores and files of whole volumes against `fastmri.evaluate`, which reads both from the disk."""

import statistics
import sys
import types

import h5py
import numpy as np
import pytest

from jaxrec.data import leaderboard
from jaxrec.workflows import evaluate

VOLUMES = {
  # name: acquisition, acceleration, shape of its images, units
  'file1': ('CORPD_FBK', 4, (3, 32, 32), 1e-4),
  'file2': ('CORPD_FBK', 4, (5, 32, 32), 3e-5),
  'file3': ('CORPDFS_FBK', 4, (4, 40, 28), 1.0),
  'file4': ('CORPDFS_FBK', 4, (2, 33, 31), 700.0),
  'file5': ('CORPDFS_FBK', 8, (2, 32, 32), 1e-4),
}


class Statistics:
  """What the package asks of `runstats`, which is not installed."""

  def __init__(self):
    self.values = []

  def push(self, value):
    self.values.append(float(np.squeeze(value)))

  def mean(self):
    return statistics.mean(self.values)

  def stddev(self):
    return statistics.stdev(self.values)


@pytest.fixture
def theirs(monkeypatch):
  monkeypatch.setitem(sys.modules, 'runstats', types.SimpleNamespace(Statistics=Statistics))
  monkeypatch.delitem(sys.modules, 'fastmri.evaluate', raising=False)
  from fastmri import evaluate as package

  yield package
  sys.modules.pop('fastmri.evaluate', None)


@pytest.fixture
def written(tmp_path):
  """Targets as in the data set, reconstructions of ours, and our rows."""
  rng, rows = np.random.default_rng(0), []
  (tmp_path / 'targets').mkdir()
  for name, (acquisition, acceleration, shape, unit) in VOLUMES.items():
    y, x = (np.linspace(-1, 1, n) for n in shape[1:])
    target = (unit * (1 + np.arange(shape[0])[:, None, None] / 3) * np.exp(-2 * (y[:, None] ** 2 + x**2))).astype(
      np.float32
    )
    image = target + rng.normal(size=shape).astype(np.float32) * np.float32(0.05 * unit)
    with h5py.File(tmp_path / 'targets' / f'{name}.h5', 'w') as file:
      file.create_dataset('reconstruction_rss', data=target)
      file.attrs.update(acquisition=acquisition, acceleration=acceleration)
    leaderboard.write(tmp_path / 'reconstructions', name, image)
    rows.append(
      {'file': name, 'acquisition': acquisition, 'acceleration': acceleration} | leaderboard.scores(image, target)
    )
  return tmp_path, rows


@pytest.mark.parametrize('acceleration, acquisition', [(4, 'CORPD_FBK'), (4, 'CORPDFS_FBK'), (4, None), (8, None)])
def test_scores_by_acquisition(acceleration, acquisition, theirs, written):
  folder, rows = written
  found = theirs.evaluate(
    types.SimpleNamespace(
      target_path=folder / 'targets',
      predictions_path=folder / 'reconstructions',
      acquisition=acquisition,
      acceleration=acceleration,
    ),
    'reconstruction_rss',
  )
  line = next(
    x for x in evaluate.by_acquisition(rows)
    if x['acceleration'] == acceleration and x['acquisition'] == (acquisition or 'all')
  )  # fmt: skip
  means = found.means()
  np.testing.assert_allclose(
    [line[s] for s in leaderboard.SCORES], [means[s.upper()] for s in leaderboard.SCORES], rtol=2e-5
  )
  if line['volumes'] > 1:
    deviations = found.stddevs()
    np.testing.assert_allclose(
      [line[f'{s}_std'] for s in leaderboard.SCORES], [deviations[s.upper()] for s in leaderboard.SCORES], rtol=2e-3
    )


def test_names_from_data_do_not_become_paths(tmp_path):
  image = np.zeros((1, 8, 8), np.float32)
  made = [leaderboard.write(tmp_path / 'in', name, image) for name in ('../a', 'a', 'b/a')]
  assert [p.parent for p in made] == [tmp_path / 'in'] * 3 and len(set(made)) == 3 and made[1].name == 'a.h5'


def test_the_file_is_that_of_the_package(theirs, written, tmp_path):
  """`fastmri.save_reconstructions` and ours hold the same."""
  import fastmri

  image = np.random.default_rng(1).normal(size=(2, 8, 8)).astype(np.float32)
  fastmri.save_reconstructions({'file.h5': image}, tmp_path / 'theirs')
  ours = leaderboard.write(tmp_path / 'ours', 'file', image)
  with h5py.File(tmp_path / 'theirs' / 'file.h5') as a, h5py.File(ours) as b:
    assert ours.name == 'file.h5' and list(a) == list(b) == ['reconstruction']
    assert (
      a['reconstruction'].dtype == b['reconstruction'].dtype and a['reconstruction'].shape == b['reconstruction'].shape
    )
    np.testing.assert_array_equal(a['reconstruction'][()], b['reconstruction'][()])
