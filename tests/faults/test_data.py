"""Data of others: what claims too much or is no file is refused at once, and a sweep goes on without it."""

import itertools
import json
import os
import shutil
import socket
import struct
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
from jaxrec.data import chest, ct_images, fastmri, hdf5, ldct, loader, npz, source, synthetic
from jaxrec.data.errors import DataError
from jaxrec.experiments import build, verify_data
from jaxrec.experiments import run as launched
from jaxrec.training import data_parallel
from jaxrec.workflows import attack, datasets, factory
from jaxrec.workflows.train import Context
from tests.faults.test_checkpoints import full_disk
from tests.faults.test_denoise import dicom
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


def nothing(name):
  def apply(path):
    with h5py.File(path, 'r+') as file:
      if name in file:
        del file[name]
      file[name] = h5py.Empty('c8')

  return apply


def time_of_day(path):
  with h5py.File(path, 'r+') as file:
    del file['kspace']
    h5py.h5d.create(file.id, b'kspace', h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((2, 2, 48, 48)))


def wide_numbers(path):
  """Floats of 128 bits with 27 for the exponent."""
  kind = h5py.h5t.IEEE_F32LE.copy()
  kind.set_size(16)
  kind.set_precision(128)
  kind.set_fields(127, 100, 27, 0, 100)
  with h5py.File(path, 'r+') as file:
    del file['kspace']
    h5py.h5d.create(file.id, b'kspace', kind, h5py.h5s.create_simple((2, 2, 48, 48)))


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
  'no numbers of k-space': (nothing('kspace'), 'kspace is empty'),
  'a mask of nothing': (
    lambda p: (claim('reconstruction_rss', (2, 0, 0))(p), nothing('mask')(p)),
    'mask is empty|does not fit|has shape',
  ),
  'a header of nothing': (nothing('ismrmrd_header'), 'ismrmrd_header is empty'),
  'a type that NumPy has not': (time_of_day, 'kspace has a type that NumPy does not have'),
  'numbers that NumPy has not': (wide_numbers, 'kspace has a type that NumPy does not have'),
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


@pytest.mark.parametrize('length', [0, 9000])
@pytest.mark.parametrize(
  'number, size',
  [(0, 0), (3, 2**64 - 16), (3, 10**6), (0, 2**63)],
  ids=['no size', 'around the address space', 'past the end', 'huge'],
)
def test_strings_in_a_damaged_heap_are_refused(tmp_path, number, size, length):
  """HDF5 2.0 goes through the first two of them for ever, also where it reads a heap in two parts."""
  path = tmp_path / 'a.h5'
  with h5py.File(path, 'w') as file:
    file['kspace'] = np.ones((2, 2, 32, 32), np.complex64)
    file['ismrmrd_header'] = f'<a>{"x" * length}</a>'
    file.attrs['patient_id'] = 'p'
    file.attrs['acquisition'] = 'CORPD_FBK'
  content = bytearray(path.read_bytes())
  heap = content.index(b'GCOL')
  at = heap + 16
  while (first := struct.unpack_from('<H6xQ', content, at))[0]:
    at += 16 + -(-first[1] // 8) * 8
  assert (at > heap + 4096) == (length > 0)
  struct.pack_into('<H6xQ', content, at, number, size)
  path.write_bytes(content)
  with pytest.raises(DataError, match=r'\.h5: damaged \(a heap of strings is damaged\); copy or download it again'):
    fastmri.describe(path)


def test_pixels_that_look_like_a_heap_are_pixels(volumes):
  with h5py.File(volumes[0], 'r+') as file:
    kspace = file['kspace'][()]
    kspace[1, 0, 0, 0] = np.frombuffer(b'GCOL\0\0\x80?', '<c8')[0]
    file['kspace'][...] = kspace
  np.testing.assert_array_equal(fastmri.read_raw(fastmri.describe(volumes[0]), 1).kspace, kspace[1])


@pytest.mark.parametrize('lengths', [2, 4, 8])
def test_files_are_read_whatever_the_size_of_their_numbers(tmp_path, lengths):
  properties = h5py.h5p.create(h5py.h5p.FILE_CREATE)
  properties.set_sizes(8, lengths)
  path = tmp_path / 'knäuel.h5'
  texts = ['x' * length for length in range(0, 200 * lengths, 17)]
  with h5py.File(h5py.h5f.create(str(path).encode(), h5py.h5f.ACC_TRUNC, properties)) as file:
    file.attrs['texts'] = texts
  with hdf5.open_file(path) as file:
    assert list(file.attrs['texts']) == texts
    assert file.filename == str(path)


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


def test_volumes_of_one_name_are_not_taken_for_one(volumes, capsys):
  """Rows, masks and reconstructions go by names."""
  twin = volumes[0].with_suffix('.npz')
  np.savez(twin, kspace=fastmri.read_raw(fastmri.describe(volumes[0]), 0).kspace)
  found = source.KSpace(twin.parent.parent).index('val')
  assert [v.name for v in found.volumes] == [v.stem for v in volumes]
  assert found.bad == {str(twin): f'{twin}: has the name of {volumes[0]}; rename one of them, or leave it out'}
  assert verify_data.main([str(twin.parent)]) == 2 and f'bad: {twin}: has the name of' in capsys.readouterr().out


def test_splits_that_share_names_are_not_attacked_together(volumes, tmp_path):
  shutil.copytree(volumes[0].parent, tmp_path / 'multicoil_train')
  config = unet_8x.get_config('smoke')
  config.data.root = str(tmp_path)
  for splits in (('val',), ('train', 'val')):
    config.attack.splits = splits
    made = build.build(config, tmp_path / 'run')
    data = datasets.data(made.data, made.folder)
    if len(splits) == 1:
      assert {e.volume.name for e in datasets.examples(made.data, made.attack, data)[0]} <= {v.stem for v in volumes}
      continue
    with pytest.raises(
      DataError,
      match=r'multicoil_val/.*: has the name of .*multicoil_train/.*; rename one of them, or attack one split',
    ):
      datasets.examples(made.data, made.attack, data)


def test_two_studies_of_a_patient_are_not_taken_for_one(tmp_path):
  for study in ('2001', '2002'):
    for dose in ('Low', 'Full'):
      folder = tmp_path / 'C001' / study / f'1 {dose} Dose Images'
      folder.mkdir(parents=True)
      dicom(folder / '1.dcm', np.linspace(-1000, 900, 400).reshape(20, 20))
  patients = tmp_path / 'patients.json'
  patients.write_text('{"train": ["C*"], "val": ["N*"]}')
  found = ldct.index(tmp_path, 'train', patients=patients)
  first, second = (tmp_path / f'C001/{study}/1 Low Dose Images' for study in ('2001', '2002'))
  assert [v.path for v in found.volumes] == [str(first)]
  assert found.bad == {str(second): f'{second}: has the name of {first}; rename one of them, or leave it out'}


@pytest.mark.parametrize('gaps', ['k-space', 'mask'])
def test_a_target_of_undersampled_data_is_refused(gaps, volumes):
  """Masks would be drawn over their own."""
  volume = fastmri.describe(volumes[0])
  left = np.arange(48) % 4 == 0
  with h5py.File(volumes[0], 'r+') as file:
    if gaps == 'mask':
      file['mask'] = left
    else:
      file['kspace'][...] = file['kspace'][()] * left
    kspace, target = file['kspace'][()], file['reconstruction_rss'][()]
  archive = volumes[0].parent / 'other.npz'
  np.savez(archive, kspace=kspace, target=target, **({'mask': left} if gaps == 'mask' else {}))
  draw = fastmri.mask_drawer(kind='random', center_fractions=(0.1,), accelerations=(3,))
  for read, described in ((fastmri.read_raw, volume), (npz.read_raw, npz.describe(archive))):
    with pytest.raises(DataError, match='slice 0.* of target belongs to undersampled k-space.*leave the target out'):
      fastmri.scan_of(described, 0, read(described, 0), draw)


def test_undersampled_volumes_keep_no_target_whatever_is_made_of_them(volumes):
  with h5py.File(volumes[0], 'r+') as file:
    del file['reconstruction_rss']
    del file.attrs['max']
    file['mask'] = np.arange(48) % 3 == 0
    file['kspace'][...] = file['kspace'][()] * file['mask'][()]
  config = unet_8x.get_config('smoke')
  plain = datasets.reader(build.data(config.unlock()))
  config.data.range = 'slice'
  config.data.emulate_single_coil = True
  example = fastmri.Example(fastmri.describe(volumes[0]), 0, None)
  scan, single = plain(example, 0), datasets.reader(build.data(config))(example, 0)
  assert not scan.has_target and not single.has_target and single.kspace.shape[0] == 1
  assert np.isfinite(single.scale) and 0.2 < single.scale / scan.scale < 5


@pytest.mark.parametrize(
  'content', [[], {}, {'version': 2}, {'version': 2, 'files': []}, {'version': 2, 'files': {'a': 3}}]
)
def test_an_index_of_another_shape_is_made_anew(content, volumes, tmp_path):
  cache = tmp_path / 'index.json'
  for entry in (
    content,
    {'version': 2, 'files': {str(volumes[0]): content}},
    {'version': 2, 'files': {str(volumes[0]): {'stamp': [1], 'volume': content}}},
  ):
    cache.write_text(json.dumps(entry))
    assert len(fastmri.index(volumes[0].parent, cache=cache).volumes) == len(volumes)


@pytest.mark.parametrize('table', [{'train': 'X*', 'val': ['a']}, {'train': [3], 'val': ['a']}, {'train': 3}, [1], 'x'])
def test_a_table_of_patients_that_are_no_lists_is_refused(table, tmp_path):
  path = tmp_path / 'patients.json'
  path.write_text(json.dumps(table))
  (tmp_path / 'p1' / 's' / '1 Low Dose Images').mkdir(parents=True)
  with pytest.raises(DataError, match=f'^{path}: is no JSON of patients by split'):
    ldct.index(tmp_path, 'train', patients=path)


def test_names_in_capitals_are_read_too(volumes):
  loud = volumes[0].with_suffix('.H5')
  volumes[0].rename(loud)
  assert str(loud) in [v.path for v in source.KSpace(loud.parent.parent).index('val').volumes]


def test_full_dose_images_are_in_hu_too(tmp_path):
  for name, shift in (('low', 0), ('full', 1024)):
    (tmp_path / 'train' / name).mkdir(parents=True)
    np.save(tmp_path / 'train' / name / 'a.npy', np.linspace(-1000, 900, 400, dtype=np.float32).reshape(20, 20) + shift)
  (series,) = ldct.index(tmp_path, 'train').volumes
  with pytest.raises(DataError, match=r'full/a.npy: has values from 24 to 1924; these are no HU, give --offset'):
    ldct.read_hu(series, 0)


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


def test_rows_of_other_boxes_are_refused_until_they_are_deleted(sweep, volumes, tmp_path):
  """Rows go by the line of the annotation file, whose content no config holds."""
  path = tmp_path / 'boxes.csv'

  def boxes(*columns):
    lines = [
      (volume.stem, s, 'No', column, 5, 16, 17, 'cyst') for s, (volume, column) in enumerate(zip(volumes, columns))
    ]
    write_csv(path, lines)
    return len(lines)

  sweep.config.data.annotations = str(path)
  boxes(4)
  first, _ = sweep()
  assert len(first) == 1
  assert boxes(4, 6) == 2 and len(sweep()[0]) == 2
  boxes(4, 7)
  with pytest.raises(
    results.RunError, match=r'run: rows holds results of other boxes in slice 1 of .*delete .*run/rows'
  ):
    sweep()
  boxes(4)
  with pytest.raises(results.RunError, match='rows holds results of other boxes'):
    sweep()
  shutil.rmtree(tmp_path / 'run' / 'rows')
  results.Run(tmp_path / 'run')
  assert sweep()[0] == first


def test_files_of_the_train_split_that_are_bad_are_listed_where_it_is_attacked(sweep, volumes, tmp_path):
  train = volumes[0].parents[1] / 'multicoil_train'
  names = [path.stem for path in train.glob('*.h5')]
  (train / 'broken.h5').write_bytes(b'no volume')
  sweep.config.attack.splits = ('train',)
  found, said = sweep()
  assert found == {(name, s) for name in names for s in range(2)} and 'skipped 1 bad files' in said
  assert str(train / 'broken.h5') in results.read_json(tmp_path / 'run' / 'skipped-00000.json')['files']


def test_a_volume_that_lacked_its_second_file_is_found_when_it_is_there(tmp_path):
  """The index keeps what it knows of files that did not change; what was missing may be there now."""
  folder = tmp_path / 'multicoil_val'
  folder.mkdir()
  np.zeros(2 * 32 * 32, np.complex64).tofile(folder / 'a.cfl')
  found = source.KSpace(tmp_path).index('val', cache=tmp_path / 'index.json')
  assert not found.volumes and 'copy both files of BART' in next(iter(found.bad.values()))
  (folder / 'a.hdr').write_text('# Dimensions\n32 32 1 2 1\n')
  found = source.KSpace(tmp_path).index('val', cache=tmp_path / 'index.json')
  assert [v.name for v in found.volumes] == ['a'] and not found.bad


@pytest.mark.parametrize('target', ['words', 1j])
def test_targets_that_are_no_numbers_are_one_bad_file(tmp_path, target):
  folder = tmp_path / 'multicoil_val'
  folder.mkdir()
  np.savez(folder / 'a.npz', kspace=np.ones((1, 2, 32, 32), np.complex64), target=np.full((1, 32, 32), target))
  found = source.KSpace(tmp_path).index('val')
  assert 'target has type' in found.bad[str(folder / 'a.npz')]


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
