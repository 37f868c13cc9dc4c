"""Run folders: nothing is lost, nothing is written twice."""

import io
import json

import numpy as np
import pytest

from jaxrec import results, statistics


def row(strength=0.0, **values):
  base = dict(file='a', slice=0, annotation=1, perturbation='coil_noise', attacked='region', strength=strength)
  return {**base, 'ssim_region_adv': 0.5, **values}


def test_rows_survive_torn_lines_and_duplicates(tmp_path):
  run = results.Run(tmp_path)
  run.append([row(0.1), row(0.0)])
  path = tmp_path / 'rows' / '00000.jsonl'
  with open(path, 'ab') as stream:
    stream.write(b'{"file": "torn')
  assert len(run.rows()) == 2
  run.append([row(0.2), row(0.1, ssim_region_adv=9.0)])
  assert [r['strength'] for r in run.rows()] == [0.0, 0.1, 0.2]
  assert run.rows()[1]['ssim_region_adv'] == 0.5
  for line in path.read_text().splitlines():
    json.loads(line)


def test_compaction_is_independent_of_the_order(tmp_path):
  rows = [row(s, file=f, slice=i) for s in (0.02, 0.1) for f in 'ab' for i in (2, 10)]
  texts = []
  for name, order in (('x', rows), ('y', rows[::-1])):
    run = results.Run(tmp_path / name)
    for r in order:
      run.append([r])
      run.save_arrays(f'{r["file"]}/../{r["slice"]}', {'image': np.ones(2)})
    run.compact()
    texts.append(((tmp_path / name / 'results.csv').read_bytes(), (tmp_path / name / 'images.h5').read_bytes()))
  assert texts[0] == texts[1]
  assert texts[0][0].decode().splitlines()[0].split(',') == [
    *results.COLUMNS, 'patient', 'split', 'network', 'reference', 'thermal_eta', 'thermal_eta_corners', 'lipschitz',
  ]  # fmt: skip


def test_names_from_data_do_not_become_paths(tmp_path):
  run = results.Run(tmp_path / 'run')
  run.save_arrays('../../escape', {'x': np.ones(1)})
  assert [p.parent for p in tmp_path.rglob('*.npz')] == [tmp_path / 'run' / 'arrays']
  assert results.safe_name('a/b') != results.safe_name('a_b')


@pytest.mark.fault
def test_a_changed_config_is_refused_by_its_first_difference(tmp_path):
  run = results.Run(tmp_path)
  run.check_config({'seed': 0, 'train': {'loss': 'ssim'}, 'stages': ['train']})
  run.check_config({'seed': 0, 'train': {'loss': 'ssim'}, 'stages': ['report']})
  with pytest.raises(results.RunError, match="train.loss='ssim', now it is 'l1'"):
    run.check_config({'seed': 0, 'train': {'loss': 'l1'}, 'stages': ['train']})


def test_a_full_disk_keeps_earlier_rows(tmp_path, monkeypatch):
  run = results.Run(tmp_path)
  run.append([row(0.0)])

  def full(descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(results.os, 'fsync', full)
  with pytest.raises(results.RunError, match='No space left on device.*same command'):
    run.append([row(0.1)])
  with pytest.raises(results.RunError, match='No space left'):
    run.save_arrays('x', {'x': np.ones(3)})
  monkeypatch.undo()
  assert len(run.rows()) == 1
  run.append([row(0.1)])
  assert len(run.rows()) == 2 and not list((tmp_path / 'arrays').iterdir())


@pytest.mark.fault
def test_what_a_full_disk_cut_is_not_written_once_more(tmp_path, monkeypatch):
  """A disk that takes a part, then nothing, then something again."""
  path, written = tmp_path / 'rows.jsonl', []

  class Filling(io.FileIO):
    def write(self, data):
      written.append(len(data))
      if len(written) == 2:
        raise OSError(28, 'No space left on device')
      return super().write(bytes(data)[:7])

  def filling(path, mode, buffering=-1):
    raw = Filling(path, mode)
    return io.BufferedRandom(raw) if buffering else raw

  results.append_jsonl(path, [{'step': 1}])
  monkeypatch.setattr(results, 'open', filling, raising=False)
  with pytest.raises(results.RunError, match='No space left on device'):
    results.append_jsonl(path, [{'step': 2}])
  monkeypatch.undo()
  assert len(written) == 2 and path.read_text() == '{"step": 1}\n'


def test_metrics_after_the_checkpoint_are_cut(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  results.append_jsonl(path, [{'step': s, 'loss': 1.0} for s in (1, 2, 3)])
  results.cut_metrics(path, 2)
  assert [r['step'] for r in results.read_jsonl(path)] == [1, 2]


@pytest.mark.fault
def test_a_file_as_run_folder_is_refused(tmp_path):
  (tmp_path / 'file').write_text('x')
  with pytest.raises(results.RunError, match='set another workdir'):
    results.Run(tmp_path / 'file')


def test_bootstrap_covers_the_mean_and_narrows_with_patients():
  rng = np.random.default_rng(0)
  widths = []
  for count in (5, 500):
    values = rng.normal(1.0, 0.2, count)
    mean, low, high = statistics.bootstrap(values, [str(i) for i in range(count)])
    assert low < mean < high and mean == pytest.approx(values.mean())
    widths.append(high - low)
  assert widths[1] < widths[0] / 2
  # Ten slices of one patient are one observation.
  mean, low, high = statistics.bootstrap(rng.normal(size=10), ['p'] * 10)
  assert low == high == pytest.approx(mean)


@pytest.mark.parametrize('level', [0.5, 0.9, 0.95])
def test_an_interval_is_central_and_holds_its_level(level):
  low, high = statistics.interval(np.random.default_rng(0).permutation(np.arange(10_001.0)), level)
  assert low == pytest.approx(10_000 * (1 - level) / 2) and high == pytest.approx(10_000 - low)


def test_the_bootstrap_draws_whole_patients():
  """Of two patients with 1 and 3 examples: both, one twice, or the other twice."""
  values, patients = [0.0, 4.0, 4.0, 7.0], ['a', 'b', 'b', 'b']
  mean, low, high = statistics.bootstrap(values, patients, draws=4000, level=0.4)
  # Quantiles .3 and .7: a twice is a quarter of the draws, and b twice another.
  assert (mean, low, high) == pytest.approx((3.75, 3.75, 3.75))
  assert statistics.bootstrap(values, patients, draws=4000, level=0.6) == pytest.approx((3.75, 0.0, 5.0))
  times = statistics.resampled(3, draws=4000)
  assert times.shape == (4000, 3) and (times.sum(1) == 3).all()
  np.testing.assert_allclose(times.mean(0), 1, atol=0.05)
