"""The options of a training, together and as users set them: pictures, averages, schedules, movements, scores of volumes."""

import csv
import json
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from jaxrec import metrics
from jaxrec.data import fastmri
from tests.e2e.test_main import ROOT, environment, launch

VARNET = 'configs/varnet_8x.py:smoke'
ASKED = (
  "--config.stages=('train', 'evaluate')", '--config.train.schedule.name=cosine', '--config.train.schedule.warmup=0.5',
  '--config.train.learning_rate=1e-3', '--config.train.ema_decay=0.9', '--config.train.augment.probability=1.0',
  '--config.train.augment.max_degrees=5.0', '--config.train.augment.max_pixels=2.0', '--config.train.augment.noise=(0.01, 0.05)', '--config.train.pictures=2',
)  # fmt: skip


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  done = launch(workdir, *ASKED, config=VARNET)
  assert done.returncode == 0, done.stderr
  return workdir, done


def rows(path):
  with open(path) as stream:
    return list(csv.DictReader(stream))


def test_every_step_tells_its_learning_rate(finished):
  records = [json.loads(line) for line in (finished[0] / 'metrics.jsonl').read_text().splitlines()]
  found = {r['step']: r['learning_rate'] for r in records if 'loss' in r}
  np.testing.assert_allclose([found[s] for s in (1, 2, 3, 4)], [1e-3 / 3, 2e-3 / 3, 1e-3, 0.5e-3], rtol=1e-5)


def test_every_validation_has_its_picture(finished):
  pictures = sorted(p.name for p in (finished[0] / 'figures').glob('validation-*.png'))
  assert pictures == ['validation-00000002.png', 'validation-00000004.png']
  assert all((finished[0] / 'figures' / name).read_bytes()[:4] == b'\x89PNG' for name in pictures)


def test_volumes_are_reconstructed_and_scored(finished):
  workdir, done = finished
  volumes = {v.name: v for v in fastmri.index(next(workdir.parent.glob('phantom-*')) / 'multicoil_val').volumes}
  scored = {row['file']: row for row in rows(workdir / 'evaluation.csv')}
  assert set(scored) == set(volumes) == {p.stem for p in (workdir / 'reconstructions').glob('*.h5')}
  for name, volume in volumes.items():
    with h5py.File(workdir / 'reconstructions' / f'{name}.h5') as made, h5py.File(volume.path) as file:
      images, targets = made['reconstruction'][()], file['reconstruction_rss'][()]
    assert (
      images.shape == targets.shape
      and scored[name]['acquisition'] == 'PHANTOM_PD'
      and scored[name]['acceleration'] == '8'
    )
    error = ((images - targets) ** 2).sum()
    np.testing.assert_allclose(float(scored[name]['nmse']), error / (targets**2).sum(), rtol=1e-4)
    np.testing.assert_allclose(
      float(scored[name]['psnr']), 10 * np.log10(targets.max() ** 2 * targets.size / error), rtol=1e-4
    )
    ssim = np.mean([float(metrics.ssim(i, t, targets.max())) for i, t in zip(images, targets)])
    np.testing.assert_allclose(float(scored[name]['ssim']), ssim, rtol=1e-4)
  mean, every = rows(workdir / 'evaluation_by_acquisition.csv')
  assert (mean['acquisition'], every['acquisition']) == ('PHANTOM_PD', 'all') and mean['volumes'] == every[
    'volumes'
  ] == '2'
  np.testing.assert_allclose(float(every['ssim']), np.mean([float(r['ssim']) for r in scored.values()]), rtol=1e-6)
  assert f'evaluate: 8x all, 2 volumes: SSIM {float(every["ssim"]):.4f}' in done.stdout


def test_volumes_without_targets_are_reconstructed(finished, tmp_path):
  """As those of the challenge's test set, which have their own masks: with the same mask, the same images."""
  workdir, _ = finished
  phantom = next(workdir.parent.glob('phantom-*'))
  for split in ('train', 'val'):
    shutil.copytree(phantom / f'multicoil_{split}', tmp_path / 'data' / f'multicoil_{split}')
  volume = fastmri.index(phantom / 'multicoil_val').volumes[0]
  mask = fastmri.mask_drawer(kind='random', center_fractions=(0.04,), accelerations=(8,), seed=0)(volume).mask
  (tmp_path / 'data' / 'multicoil_test').mkdir()
  hidden = shutil.copy(volume.path, tmp_path / 'data' / 'multicoil_test')
  with h5py.File(hidden, 'r+') as file:
    del file['reconstruction_rss']
    file['mask'] = mask[0]
    file['kspace'][...] = np.where(mask, file['kspace'][()], 0)
  done = launch(
    tmp_path / 'run', "--config.stages=('evaluate',)", '--config.evaluate.split=test', f'--config.data.root={tmp_path / "data"}',
    f'--config.model.checkpoint={workdir}', config=VARNET,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert 'evaluate: 8x all, 1 volumes: no targets' in done.stdout
  (row,) = rows(tmp_path / 'run' / 'evaluation.csv')
  assert (row['file'], row['acceleration'], row['ssim']) == (volume.name, '8', '')
  with (
    h5py.File(tmp_path / 'run' / 'reconstructions' / f'{volume.name}.h5') as ours,
    h5py.File(workdir / 'reconstructions' / f'{volume.name}.h5') as seen,
  ):
    images, expected = ours['reconstruction'][()], seen['reconstruction'][()]
  assert images.shape == expected.shape
  np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-4 * expected.max())


@pytest.mark.fault
def test_what_is_missing_is_made_again_and_the_rest_is_left(finished):
  workdir, _ = finished
  first, second = sorted((workdir / 'reconstructions').glob('*.h5'))
  content, stamp, table = first.read_bytes(), second.stat().st_mtime_ns, (workdir / 'evaluation.csv').read_bytes()
  first.unlink()
  done = launch(workdir, *ASKED, '--config.evaluate.batch_size=2', config=VARNET)
  assert done.returncode == 0, done.stderr
  assert second.stat().st_mtime_ns == stamp and len(first.read_bytes()) == len(content)
  ours, again = (rows(workdir / 'evaluation.csv'), list(csv.DictReader(table.decode().splitlines())))
  for a, b in zip(ours, again):
    assert a['file'] == b['file'] and np.isclose(float(a['ssim']), float(b['ssim']), rtol=1e-5)


@pytest.mark.fault
def test_reconstructions_of_other_weights_are_refused(finished):
  workdir, _ = finished
  path = workdir / 'weights.json'
  (kind, weights), *_ = json.loads(path.read_text()).items()
  path.write_text(json.dumps({kind: 'of before'}))
  done = launch(workdir, *ASKED, config=VARNET)
  path.write_text(json.dumps({kind: weights}))
  assert done.returncode == 2 and f'delete {workdir / "evaluation"} to' in done.stderr.splitlines()[-1]


@pytest.mark.fault
@pytest.mark.parametrize(
  'asked, words',
  [
    (('--config.evaluate.split=test', "--config.stages=('evaluate',)"), 'error: evaluate.split: the phantom has no volumes to test; use val, or set data.root'),
    (('--config.train.augment.probability=0.5',), 'error: train.augment.probability: moves nothing; give train.augment.max_degrees or max_pixels above 0'),
    (('--config.train.ema_decay=1.0',), 'error: train.ema_decay: 1.0 is not allowed; give a number from 0 and below 1'),
  ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_a_line(asked, words, tmp_path):
  done = launch(tmp_path / 'run', *asked, config=VARNET)
  assert done.returncode == 2 and done.stderr.strip().splitlines()[-1] == words


MOVABLE = (
  '--config.stages=("train",)', '--config.train.num_steps=20', '--config.train.batch_size=8', '--config.train.learning_rate=1e-4',
  '--config.train.validate_every=10', '--config.data.phantom.train=6',
)  # fmt: skip


def trained_on(workdir, *options, processes=1):
  """Losses of a run on 8 devices of this machine, shared out over processes."""
  devices = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={8 // processes}'
  if processes == 1:
    done = launch(workdir, *MOVABLE, *options, config=VARNET, XLA_FLAGS=devices)
  else:
    done = subprocess.run(
      ['bash', 'launch/local_processes.sh', f'--config={VARNET}', f'--workdir={workdir}', *MOVABLE, *options],
      cwd=ROOT, capture_output=True, text=True, timeout=600,
      # JAX 0.10.1 stood still twice where one process had its program from the cache and the other compiled it.
      env=environment(PROCESSES=str(processes), PYTHON=sys.executable, XLA_FLAGS=devices, JAX_ENABLE_COMPILATION_CACHE='0'),
    )  # fmt: skip
  assert done.returncode == 0, done.stderr
  records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  losses = {r['step']: r['loss'] for r in records if 'loss' in r}
  assert sorted(losses) == list(range(1, 21))
  return np.array([losses[step] for step in sorted(losses)])


def half_of(workdir, copy):
  """A run folder as it was after 10 of 20 steps."""
  shutil.copytree(workdir, copy)
  for newest in copy.glob('checkpoints/*/20'):
    shutil.rmtree(newest)
  assert (copy / 'checkpoints' / 'last' / '10').is_dir()
  return copy


@pytest.mark.slow
def test_a_run_is_that_of_its_global_batch_wherever_it_is_computed(tmp_path):
  """A VarNet: micro-batches of 1, 2, 4 and 8; 8 devices; 2 processes of 4; and moved from each to the next after 10 steps."""
  one = '--config.train.num_devices=1'
  want = trained_on(tmp_path / '8', one, '--config.train.micro_batch=8')
  found = {f'micro-batch {m}': trained_on(tmp_path / str(m), one, f'--config.train.micro_batch={m}') for m in (1, 2, 4)}
  found['8 devices'] = trained_on(tmp_path / 'devices')
  found['2 processes'] = trained_on(tmp_path / 'processes', processes=2)
  found['to 8 devices'] = trained_on(half_of(tmp_path / '2', tmp_path / 'to-devices'))
  found['to 2 processes'] = trained_on(half_of(tmp_path / 'devices', tmp_path / 'to-processes'), processes=2)
  found['to 1 device'] = trained_on(
    half_of(tmp_path / 'processes', tmp_path / 'to-one'), one, '--config.train.micro_batch=4'
  )
  apart = {name: np.max(np.abs(curve / want - 1)) for name, curve in found.items()}
  print({name: f'{x:.1e}' for name, x in apart.items()})
  assert want[-1] < want[0] and max(apart.values()) < 1e-4, apart
