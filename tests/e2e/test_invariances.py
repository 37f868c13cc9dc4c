"""What networks ignore, as users ask for it: training, sampling, analysis, report, and real slices."""

import csv
import json
import shutil

import numpy as np
import pytest

from configs import (
  adversarial_unet,
  cnn10,
  defences,
  dugan,
  invariances_cnn10,
  invariances_mr_unet,
  invariances_networks,
  invariances_wganvgg,
  quickstart,
  redcnn,
  wganvgg,
)
from jaxrec import geometry, models, reports, training
from jaxrec.data import ldct, singlecoil, sites, synthetic
from jaxrec.experiments import build, denoise, verify_data
from jaxrec.workflows import factory
from tests.e2e.test_main import launch


@pytest.fixture(scope='module')
def analysed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'cnn10'
  done = launch(workdir, config='configs/invariances_cnn10.py:smoke')
  assert done.returncode == 0, done.stderr
  return workdir, done


def read(workdir, name='invariances.csv'):
  with open(workdir / name) as stream:
    return list(csv.DictReader(stream))


def test_a_report_of_two_analyses_keeps_the_tables_of_both(analysed, tmp_path):
  workdir, _ = analysed
  other = shutil.copytree(workdir, tmp_path / 'other')
  page = reports.samples.run(tmp_path, [workdir, other], draws=10).read_text()
  for name in ('verdicts', 'noise', 'classes'):
    assert read(tmp_path, f'{name}.csv') == read(tmp_path, f'other-1-{name}.csv') != []
  assert page.count('What the samples show') == 2


def test_samples_are_judged_and_reported(analysed):
  workdir, done = analysed
  assert 'images' in done.stdout and 'report:' in done.stdout
  rows = read(workdir)
  # Three patients: two sites without structures each, and one class at the first.
  assert len(rows) == len({(r['patient'], r['site'], r['kind']) for r in rows}) == 3 * (2 + 1)
  for r in rows:
    assert float(r['distance_samples']) <= float(r['distance_drawn']) * 1.01 + 1e-6
    assert 0 <= float(r['plausible_witnesses']) <= min(float(r['witnesses']), float(r['plausible'])) <= 1
  stored = json.loads((workdir / 'sampling.json').read_text())
  assert stored['alpha'] == 0.25 and stored['moments']['CNN-10, output']['scans'] == 6
  text = (workdir / 'report.html').read_text()
  assert text.count('<img') >= 4 and 'built-in phantom' in text and 'features of the run independent' in text
  ranks = read(workdir, 'mean_differences.csv')
  for name in {r['input'] for r in ranks}:
    mine = [float(r['mean_absolute_difference']) for r in ranks if r['input'] == name]
    assert mine == sorted(mine, reverse=True)
  assert {
    'detectability.csv',
    'noise.csv',
    'moved_by_noise.csv',
    'differences.csv',
    'classes.csv',
    'consistency.csv',
    'diversity.csv',
  } <= {p.name for p in workdir.iterdir()}
  for r in read(workdir, 'moved_by_noise.csv'):
    assert float(r['dose_0.25_input']) == pytest.approx(1 / np.sqrt(2), rel=0.3) and float(r['realisation']) > 0


@pytest.mark.fault
@pytest.mark.parametrize('kind', ['detections', 'rows'])
def test_results_of_other_networks_are_refused(kind, analysed):
  workdir, _ = analysed
  path = workdir / 'weights.json'
  stored = json.loads(path.read_text())
  path.write_text(json.dumps({**stored, kind: 'of before'}))
  done = launch(workdir, config='configs/invariances_cnn10.py:smoke')
  path.write_text(json.dumps(stored))
  assert done.returncode == 2
  assert f'{kind} holds results of other weights' in done.stderr.strip().splitlines()[-1]


def test_real_images_are_denoised(analysed, tmp_path, capsys):
  workdir, _ = analysed
  images = np.random.default_rng(0).normal(-500, 200, (2, 40, 48)).astype(np.float32)
  (tmp_path / 'in').mkdir()
  for i, image in enumerate(images):
    np.save(tmp_path / 'in' / f'{i}.npy', image)
  (tmp_path / 'in' / 'bad.npy').write_bytes(b'nothing')
  assert denoise.main([str(workdir / 'denoiser'), str(tmp_path / 'in'), str(tmp_path / 'out')]) == 2
  assert 'bad.npy: cannot be read as an image' in capsys.readouterr().out
  made = [np.load(tmp_path / 'out' / f'{i}.npy') for i in range(2)]
  assert all(m.shape == (40, 48) and np.isfinite(m).all() for m in made)
  assert denoise.main([str(tmp_path), str(tmp_path / 'in'), str(tmp_path / 'out')]) == 2
  assert 'is no run folder' in capsys.readouterr().err


def test_ct_data_are_verified(tmp_path, capsys):
  for dose in ('low', 'full'):
    (tmp_path / 'val' / dose).mkdir(parents=True)
  np.save(tmp_path / 'val/low/a.npy', np.full((16, 16), -1000.0))
  np.save(tmp_path / 'val/full/a.npy', np.full((16, 16), -1000.0))
  np.save(tmp_path / 'val/low/b.npy', np.full((16, 16), -1000.0))
  assert verify_data.main([str(tmp_path)]) == 2
  out = capsys.readouterr().out
  assert 'b.npy: has no full-dose pair' in out and '1 slices, 1 with a target, 1 bad' in out
  np.save(tmp_path / 'val/full/b.npy', np.full((16, 16), 500.0))
  np.save(tmp_path / 'val/low/b.npy', np.full((16, 16), 500.0))
  assert verify_data.main([str(tmp_path)]) == 2
  assert (
    'a.npy' not in (out := capsys.readouterr().out)
    and 'b.npy: has values from 500 to 500; these are no HU, give --offset' in out
  )
  for dose in ('low', 'full'):
    np.save(tmp_path / f'val/{dose}/a.npy', np.full((16, 16), 24.0))
    np.save(tmp_path / f'val/{dose}/b.npy', np.full((16, 16), 100.0))
  assert verify_data.main([str(tmp_path), '--offset=1024']) == 0
  assert '2 slices, 2 with a target, 0 bad' in capsys.readouterr().out
  with pytest.raises(SystemExit, match='2'):
    verify_data.main([str(tmp_path), 'boxes.csv'])
  assert 'this is CT' in capsys.readouterr().err


@pytest.mark.parametrize('experiments', [
  invariances_cnn10, invariances_wganvgg, invariances_mr_unet, invariances_networks, cnn10, redcnn, wganvgg, dugan,
])  # fmt: skip
@pytest.mark.parametrize('profile', ['', 'demo', 'smoke'])
def test_every_experiment_has_its_networks(experiments, profile, monkeypatch):
  """Every option of every run is one that its factory takes; at full size perceptual losses ask for VGG features."""
  monkeypatch.setenv('LDCT_ROOT', '')
  monkeypatch.setattr(models, 'load_vgg', lambda path, kind, sha256: (kind, {}))
  config = experiments.get_config(profile)
  nested = config.experiments.values() if experiments is invariances_networks and profile == '' else [config]
  for part in nested:
    runs = part.experiments if 'experiments' in part else {'': part}
    for name, run in runs.items():
      module, _ = factory.network(build.build(run, '').model)

      def load(other):
        return (factory.network(build.build(runs[other], '').model)[0], {})

      if name == 'vae' and profile == '':
        assert run.model.size[0] in (128, 320)
      parallel = training.data_parallel(1)._replace(average=lambda tree: tree, axis=None)

      def task():
        factory.task(build.build(run, '').training, module, parallel, 10, None, load)

      compared = run.train.task.get('perceptual')
      if compared and profile == '':
        kind, weight = ('vgg19', 0.6893) if run.model.name == 'wganvgg' else ('vgg16', None)
        assert (compared.kind, run.train.task.get('perceptual_weight')) == (kind, weight) and 'independent' not in runs
        with pytest.raises(ValueError, match=f'perceptual.vgg: is missing; give a {kind} checkpoint'):
          task()
        compared.vgg = __file__
        task()
        # Other runs share it.
        compared.vgg = ''
      else:
        task()
    if 'invariances' in part:
      for sampler in part.invariances.samplers.values():
        assert {sampler.network, sampler.autoencoder, *sampler.flows, *sampler.anatomies} <= set(runs)


@pytest.mark.parametrize(
  'experiments',
  [invariances_cnn10, invariances_mr_unet, invariances_networks, wganvgg, adversarial_unet, defences, quickstart],
)
def test_one_root_serves_all_runs(experiments):
  config = experiments.get_config('smoke')
  config.data.root = '/data'

  def roots(part):
    yield part.data.root
    for run in part.get('experiments', {}).values():
      yield from roots(run)

  assert set(roots(config)) == {'/data'} and len(list(roots(config))) > 2


@pytest.mark.parametrize('experiments, where', [
  (invariances_cnn10, 'experiments.vae.train.task'), (invariances_wganvgg, 'experiments.denoiser.train.task'),
  (invariances_mr_unet, 'experiments.vae.train.task'), (invariances_networks, 'experiments.cnn10.experiments.vae.train.task'),
  (wganvgg, 'train.task'),
])  # fmt: skip
def test_vgg_features_are_asked_for_before_any_training(experiments, where, tmp_path):
  from jaxrec.experiments.run import run

  with pytest.raises(ValueError, match=f'^{where}.perceptual.vgg: is missing; give a vgg'):
    run(experiments.get_config('paper'), tmp_path / 'run')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'experiments', [invariances_cnn10, invariances_wganvgg, invariances_networks, invariances_mr_unet]
)
@pytest.mark.parametrize('profile', ['', 'demo'])
def test_one_seed_serves_all_runs_and_their_phantom(experiments, profile):
  config = experiments.get_config(profile)
  config.seed = 7
  runs = list(config.experiments.values())
  runs += [inner for run in runs for inner in run.get('experiments', {}).values()]
  assert config.data.phantom.seed == 7
  for run in runs:
    assert run.seed == (8 if run.label == 'independent' else 7)
    assert 'data' not in run or run.data.phantom.seed == 7
  config.seed = 2**31 - 1
  for run in runs:
    assert run.seed == (0 if run.label == 'independent' else 2**31 - 1)


def test_one_vgg_file_serves_all_runs_of_its_kind(tmp_path):
  from jaxrec.experiments.run import run

  config = invariances_networks.get_config('paper')
  parts = config.experiments
  parts.wganvgg.experiments.vae.train.task.perceptual.vgg = 'vgg16.pth'
  assert {part.experiments.vae.train.task.perceptual.vgg for part in parts.values()} == {'vgg16.pth'}
  assert parts.wganvgg.experiments.denoiser.train.task.perceptual.vgg == ''
  with pytest.raises(
    ValueError,
    match='experiments.cnn10.experiments.vae.train.task.perceptual.vgg: .vgg16.pth. is not allowed; give a file that exists',
  ):
    run(config, tmp_path / 'run')


def test_weights_of_two_kinds_of_features_are_not_mixed_up(tmp_path):
  """The weights of small profiles are for outputs of a denoiser: a file alone would leave them."""
  from jaxrec.experiments.run import run

  config = wganvgg.get_config('smoke')
  config.experiments.wganvgg.train.task.perceptual.vgg = __file__
  with pytest.raises(
    ValueError, match='has both vgg=.* and network=independent; give one of them, and the perceptual_weight'
  ):
    run(config, tmp_path / 'run')


def test_denoising_keeps_units_and_takes_the_offset_of_the_run(tmp_path, monkeypatch):
  class Identity:
    apply = staticmethod(lambda variables, image: image)

  monkeypatch.setattr(denoise, '_network', lambda run: (Identity(), {}, 1024.0))
  image = np.random.default_rng(0).integers(0, 2000, (16, 20)).astype(np.float32)
  np.save(tmp_path / 'a.npy', image)
  assert denoise.main([str(tmp_path), str(tmp_path / 'a.npy'), str(tmp_path / 'out')]) == 0
  np.testing.assert_allclose(np.load(tmp_path / 'out' / 'a.npy'), image - 1024, atol=1e-3)


def test_structures_are_put_where_the_target_shows_them():
  """On a k-space with margins: the measured image gains the disc of the target, and nothing else."""
  scan = synthetic.scan(2, rows=128, cols=72, coils=3, acceleration=1, center_fraction=1.0)
  scan = scan.replace(acquired=np.ones_like(scan.acquired))
  rows, cols = scan.target.shape
  assert (rows, cols) != (128, 72)
  structure = sites.place_mr(np.random.default_rng(0), scan, sites.Structure(0, -1.0, -1.0, 5.0, 0.3))
  changed = sites.insert_mr(scan, [structure])
  before, after = (np.sqrt((np.abs(singlecoil.centred_images(s.kspace)) ** 2).sum(0)) for s in (scan, changed))
  top, left = (128 - rows) // 2, (72 - cols) // 2
  gained = (after - before)[top : top + rows, left : left + cols] / scan.scale
  np.testing.assert_allclose(gained, (changed.target - scan.target) / scan.scale, atol=1e-4)
  np.testing.assert_allclose(
    gained, 0.3 * geometry.soft_disc(scan.target.shape, (structure.row, structure.col), 5.0), atol=1e-4
  )
  dark = scan.replace(target=np.eye(rows, cols, dtype=np.float32))
  assert sites.place_mr(np.random.default_rng(0), dark, structure) is None


SCAN = synthetic.scan(0, rows=48, cols=48, coils=3, acceleration=2, center_fraction=0.2)


def mr_sites(**options):
  return list(
    sites.sites_mr(
      'a-000', SCAN, **(dict(structures=[(4.0, 0.4)], count=2, repeats=12, few=3, reach=5, seed=0) | options)
    )
  )


def test_mr_sites_put_a_structure_into_the_measurement():
  for site in mr_sites(added_noise=0.05):
    row, col = site.corner[0] + 5, site.corner[1] + 5
    np.testing.assert_allclose(site.added[0, row, col], 0.4, rtol=1e-5)
    np.testing.assert_allclose(site.target, SCAN.target / SCAN.scale, rtol=1e-5)
    # What the sampling lets through of it, under the same noise.
    gained = (site.present[0] - site.absent[:3]).mean(0)
    assert gained[row, col] > 0.1 and np.unravel_index(np.argmax(gained), gained.shape) == (row, col)
    np.testing.assert_allclose(
      site.rescan(np.random.default_rng(0), (site.target + site.added)[[0] * 12]).mean(0),
      site.present[0].mean(0),
      atol=0.15,
    )


def test_added_noise_is_that_of_a_worse_scan():
  added = sites.add_noise(np.random.default_rng(1), SCAN, 0.1).kspace - SCAN.kspace
  everywhere = np.broadcast_to(SCAN.acquired, added.shape)
  assert not added[~everywhere].any()
  for part in (added[everywhere].real, added[everywhere].imag):
    assert part.std() == pytest.approx(0.1 * float(SCAN.scale), rel=0.05)
  noisy, thermal = (mr_sites(count=1, added_noise=level)[0].absent.std(0).mean() for level in (0.1, 0.0))
  assert noisy > 2 * thermal > 0


def test_mistakes_in_the_analysis_are_named(tmp_path):
  config = invariances_cnn10.get_config('smoke')
  config.stages = ('invariances',)
  single = config.experiments.denoiser
  single.stages = ('invariances',)
  from jaxrec.experiments.run import run

  with pytest.raises(ValueError, match='invariances needs the experiments'):
    run(single, tmp_path / 'x')
  with pytest.raises(ldct.DataError, match='is no folder'):
    ldct.index(tmp_path / 'nothing', 'train')


@pytest.mark.slow
@pytest.mark.parametrize('name', ['invariances_mr_unet', 'invariances_networks', 'invariances_wganvgg'])
def test_other_analyses_run_to_their_report(name, tmp_path):
  done = launch(tmp_path / 'run', config=f'configs/{name}.py:smoke')
  assert done.returncode == 0, done.stderr
  assert read(tmp_path / 'run') and 'What the samples show' in (tmp_path / 'run' / 'report.html').read_text()
