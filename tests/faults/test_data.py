"""Data of others: what claims too much or is no file is refused at once, and a sweep goes on without it."""

import itertools
import os
import shutil
import socket
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

from configs import unet_8x
from jaxrec import results
from jaxrec.audit.engine import Engine
from jaxrec.audit.program import Outcome
from jaxrec.data import annotations as annotations_lib
from jaxrec.data import chest, ct_images, fastmri, hdf5, ldct, loader, synthetic
from jaxrec.data.errors import DataError
from jaxrec.experiments import build
from jaxrec.experiments import run as launched
from jaxrec.training import data_parallel
from jaxrec.workflows import attack, datasets, factory
from jaxrec.workflows.train import Context
from tests.faults.test_checkpoints import full_disk
from tests.unit.test_data import write_csv


def claim(name, shape, **options):
  def apply(path):
    with h5py.File(path, 'r+') as file:
      kind = file[name].dtype if name in file else np.float32
      if name in file:
        del file[name]
      file.create_dataset(name, shape, kind, **options)

  return apply


def few_rows(path):
  with h5py.File(path, 'r+') as file:
    for name, cut in (('kspace', np.s_[:, :, :1]), ('reconstruction_rss', np.s_[:, :1])):
      kept = file[name][cut]
      del file[name]
      file[name] = kept


def pipe(path):
  path.unlink()
  os.mkfifo(path)


HOSTILE = {
  '10^12 elements of k-space': (
    claim('kspace', (2, 2, 10**6, 10**6), chunks=(1, 1, 48, 48)),
    'kspace claims slices of .* MiB each',
  ),
  '10^8 slices': (claim('kspace', (10**8, 2, 48, 48), chunks=(1, 1, 48, 48)), 'kspace claims 100000000 slices'),
  'a chunk of 2 GiB': (claim('kspace', (2, 2, 8000, 8000), chunks=(2, 2, 8000, 8000)), 'kspace claims chunks of'),
  'a target of 10^12': (
    claim('reconstruction_rss', (2, 10**6, 10**6), chunks=(1, 48, 48)),
    'reconstruction_rss claims slices',
  ),
  'one row': (few_rows, r'kspace has shape \(2, 2, 1, 48\); SSIM needs 7 rows'),
  'a pipe': (pipe, 'is no regular file'),
  'a folder': (lambda p: (p.unlink(), p.mkdir()), 'is no regular file'),
}


@pytest.fixture
def volumes(dataset, tmp_path):
  return sorted(shutil.copytree(dataset / 'multicoil_val', tmp_path / 'multicoil_val').glob('*.h5'))


@pytest.mark.parametrize('kind', HOSTILE)
def test_hostile_volumes_are_refused_by_the_index(kind, volumes):
  damage, words = HOSTILE[kind]
  damage(volumes[0])
  found = fastmri.index(volumes[0].parent)
  assert [v.path for v in found.volumes] == [str(v) for v in volumes[1:]]
  with pytest.raises(DataError, match=f'^{volumes[0]}: .*{words}'):
    raise DataError(found.bad[str(volumes[0])])


def test_a_mask_of_10_12_columns_is_refused(volumes):
  with h5py.File(volumes[0], 'r+') as file:
    del file['reconstruction_rss']
    file.create_dataset('mask', (10**12,), bool, chunks=(1000,))
  draw = fastmri.mask_drawer(kind='random', center_fractions=(0.2,), accelerations=(3,))
  with pytest.raises(DataError, match='mask has 1000000000000 columns, kspace has 48'):
    fastmri.read_scan(fastmri.describe(volumes[0]), 0, draw)


@pytest.mark.parametrize('suffix', ct_images.SUFFIXES)
def test_pipes_are_no_images(suffix, tmp_path):
  path = tmp_path / f'x{suffix}'
  os.mkfifo(path)
  for read in (ct_images.read_file, ct_images.describe):
    with pytest.raises(DataError, match='is no regular file'):
      read(path)


def test_ct_volumes_that_claim_too_much_are_refused(tmp_path):
  path = tmp_path / 'train' / 'a.h5'
  path.parent.mkdir()
  with h5py.File(path, 'w') as file:
    for name in ('low_dose', 'full_dose'):
      file.create_dataset(name, (10, 10**6, 10**6), np.float32, chunks=(1, 64, 64))
  with pytest.raises(DataError, match='low_dose claims slices of'):
    raise DataError(ldct.index(tmp_path, 'train').bad[str(path)])
  with hdf5.open_file(path) as file, pytest.raises(DataError, match='claims'):
    hdf5.read(file, 'full_dose', 0)


def test_annotations_name_files_with_or_without_suffix_and_whole_slices(tmp_path):
  path = write_csv(tmp_path / 'a.csv', [
    ('v.h5', '0', 'No', 4, 5, 16, 17, 'cyst'), ('v', '1.0', 'No', 4, 5, 16, 17, 'cyst'), ('v', '0.9', 'No', 4, 5, 16, 17, 'between'),
    ('v', 'nan', 'No', 4, 5, 16, 17, 'nothing'), ('v', '1e400', 'No', 4, 5, 16, 17, 'far'),
  ])  # fmt: skip
  volume = fastmri.Volume('v.h5', 'v', (2, 1, 48, 48), (48, 48), (0, 48), '', None, None, 'p', '')
  examples, unusable = loader.annotated([volume], annotations_lib.read(path))
  assert [(e.volume.name, e.slice) for e in examples] == [('v', 0), ('v', 1)]
  assert unusable == {'slice is no whole number': 3}


PHANTOMS = {
  'knee': lambda root: synthetic.write_dataset(root, train=1, val=1, slices=1, rows=32, cols=32, coils=1),
  'chest': lambda root: chest.write_dataset(root, train=1, val=1, slices=1, repeats=1, pixels=32, nodules=1),
}


@pytest.mark.parametrize('kind', PHANTOMS)
def test_a_full_disk_and_a_kill_leave_no_part_of_a_phantom(kind, tmp_path, monkeypatch):
  # Its bar would meet the full disk too.
  monkeypatch.setenv('TQDM_DISABLE', '1')
  write = PHANTOMS[kind]
  with (
    full_disk(1000),
    pytest.raises(DataError, match=f'^{tmp_path}/.*h5: cannot be written .*; free the disk, then') as caught,
  ):
    write(tmp_path)
  assert '\n' not in str(caught.value) and not [p for p in tmp_path.rglob('*') if p.is_file()]
  path = Path(str(caught.value).split(':')[0])
  gone = subprocess.Popen(['true'])
  gone.wait()
  left, alive, other = (
    path.with_name(f'{path.name}.{end}.tmp')
    for end in (f'{socket.gethostname()}.{gone.pid}', f'{socket.gethostname()}.{os.getppid()}', 'elsewhere.1')
  )
  for part in (left, alive, other):
    part.write_bytes(b'x')
  write(tmp_path)
  assert path.exists() and not left.exists() and alive.exists() and other.exists()


@pytest.fixture
def sweep(volumes, dataset, monkeypatch, tmp_path, capsys):
  """Attacks without their networks: what is read, skipped and said."""
  shutil.copytree(dataset / 'multicoil_train', tmp_path / 'multicoil_train')
  config = unet_8x.get_config('smoke')
  config.data.root = str(tmp_path)
  config.attack.max_examples = 0
  del config.perturbation.rotation
  parallel = data_parallel(1)
  folder = results.Run(tmp_path / 'run')
  unfit = []

  def outcomes(engine, cases, samples, bar):
    if unfit and cases[0].origin in unfit:
      raise ValueError('UNet: an image of (8, 8) is too small for pools=4\nsecond line')
    for (name, found), case, sample in itertools.product(engine.sweeps.items(), cases, samples):
      strengths = np.zeros(len(found.strengths))
      outcome = Outcome(
        dict.fromkeys(('objective_clean', 'objective_adv', 'delta'), strengths), sample.target, sample.target, strengths
      )
      yield (
        name,
        sample.target[None],
        {},
        [(0, place, outcome) for place in case.places(sample, engine.settings.aims)],
        1.0,
      )

  monkeypatch.setattr(Engine, '_outcomes', outcomes)

  def run(refused=(), weights=0):
    unfit[:] = refused
    monkeypatch.setattr(
      attack, 'trained', lambda experiment, *_: (factory.network(experiment.model)[0], {'weights': np.float32(weights)})
    )
    experiment = build.build(config, folder.folder)
    context = Context(datasets.data(experiment.data, folder.folder, parallel), parallel, build.stored)
    attack.run(experiment, folder, context)
    return {(row['file'], row['slice']) for row in folder.rows()}, capsys.readouterr().out

  run.config = config
  return run


def test_test_volumes_are_looked_for_before_training(dataset, monkeypatch, tmp_path):
  for split in ('train', 'val'):
    shutil.copytree(dataset / 'multicoil_train', tmp_path / 'data' / f'multicoil_{split}')
  config = unet_8x.get_config('smoke')
  config.stages, config.data.root, config.evaluate.split = ('train', 'evaluate'), str(tmp_path / 'data'), 'test'
  monkeypatch.setattr(launched.train, 'run', lambda *_: pytest.fail('it trains'))
  with pytest.raises(DataError, match='^evaluate.split: .*no .* volumes in multicoil_test'):
    launched.run(config, tmp_path / 'run')


def test_rows_of_other_weights_are_refused_until_they_are_deleted(sweep, tmp_path):
  found, _ = sweep(weights=1)
  assert sweep(weights=1)[0] == found
  with pytest.raises(results.RunError, match=r'run: rows holds results of other weights.*delete .*run/rows'):
    sweep(weights=2)
  shutil.rmtree(tmp_path / 'run' / 'rows')
  results.Run(tmp_path / 'run')
  assert sweep(weights=2)[0] == found


def test_a_sweep_goes_on_without_bad_files_and_names_them(sweep, volumes):
  everything = {(v.stem, s) for v in volumes for s in range(2)}
  with h5py.File(volumes[0], 'r+') as file:
    file['kspace'][1] = np.nan
  found, said = sweep(refused=[str(volumes[1])])
  assert found == everything - {(volumes[0].stem, 1), (volumes[1].stem, 0), (volumes[1].stem, 1)}
  assert 'attack: skipped 3 bad files' in said and f'{volumes[0]}: slice 1 of kspace holds NaN' in said
  run = volumes[0].parents[1] / 'run'
  listed = results.read_json(run / 'skipped-00000.json')['files']
  assert (
    listed[f'{volumes[1]} slice 0']
    == f'{volumes[1]}: cannot be attacked (UNet: an image of (8, 8) is too small for pools=4)'
  )
  # What was skipped is tried again; what a second process had skipped, when there was one, is not told.
  (run / 'skipped-00001.json').write_text('{"files": {"gone.h5": "was bad"}, "boxes": []}')
  found, said = sweep()
  assert found == everything - {(volumes[0].stem, 1)} and 'skipped 1 bad files' in said
  assert [path.name for path in run.glob('skipped-*')] == ['skipped-00000.json']


def test_a_sweep_of_nothing_is_an_error(sweep, volumes):
  with pytest.raises(
    DataError, match=f'attack: no example could be attacked; the first: {volumes[0]}: cannot be attacked'
  ):
    sweep(refused=[str(v) for v in volumes])


def test_a_strict_sweep_stops_at_the_first_bad_file(sweep, volumes):
  sweep.config.attack.strict = True
  with pytest.raises(DataError, match=f'^{volumes[1]}: cannot be attacked'):
    sweep(refused=[str(volumes[1])])


def test_the_report_shows_what_the_attack_samples(sweep, volumes):
  """First coil of the first slice: magnitudes, of as much energy in k-space as in images."""
  sweep.config.attack.accelerations, sweep.config.attack.center_fractions = (3,), (0.2,)
  sweep()
  with results.open_images(volumes[0].parents[1] / 'run') as file:
    shown = {name: file[f'sampling/{name}'][()] for name in ('kspace', 'sampled', 'image', 'zero_filled')}
  assert all(np.isrealobj(x) for x in shown.values())
  kept = shown['sampled'] > 0
  np.testing.assert_array_equal(shown['sampled'][kept], shown['kspace'][kept])
  # Of the attack, not of the training, which takes one column of eight.
  assert 0.25 < kept.any(0).mean() < 0.45
  for seen, image in (('kspace', 'image'), ('sampled', 'zero_filled')):
    np.testing.assert_allclose(np.sum(shown[seen] ** 2), np.sum(shown[image] ** 2), rtol=1e-4)
