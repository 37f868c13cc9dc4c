"""Readers against good, strange and hostile files."""

import csv
import hashlib
import shutil
from functools import partial

import h5py
import jax
import numpy as np
import pytest
from absl import flags

from configs import varnet_8x_full
from jaxrec import fourier, masks
from jaxrec.data import annotations as annotations_lib
from jaxrec.data import chest, fastmri, leaderboard, loader, singlecoil, synthetic
from jaxrec.data.errors import DataError
from jaxrec.data.source import KSpace
from jaxrec.experiments import build
from jaxrec.workflows import datasets
from jaxrec.workflows.experiment import Inserted

MASK = dict(kind='random', center_fractions=(0.2,), accelerations=(3,))
DRAW = fastmri.mask_drawer(**MASK)


@pytest.fixture
def file(dataset, tmp_path):
  source = sorted((dataset / 'multicoil_val').glob('*.h5'))[0]
  return shutil.copy(source, tmp_path / source.name)


def test_phantom_is_read_as_it_was_drawn(dataset):
  found = fastmri.index(fastmri.folder(dataset, 'val'))
  assert len(found.volumes) == 2 and not found.bad
  volume = found.volumes[0]
  drawn = synthetic.volume(synthetic.entropy(0, 'val', 0), slices=2, rows=48, cols=48, coils=2)
  scan = fastmri.read_scan(volume, 1, DRAW)
  np.testing.assert_array_equal(scan.kspace, drawn.kspace[1])
  assert volume.acquired == drawn.acquired and volume.shape == (2, 2, 48, 48)
  target = fourier.rss(fourier.ifft2c(scan.kspace))
  np.testing.assert_allclose(scan.target, target, atol=1e-5 * float(target.max()))
  assert not (scan.mask & ~scan.acquired).any() and (scan.acs <= scan.mask).all()
  assert scan.scale == np.float32(drawn.target.max())
  assert all(isinstance(x, (np.ndarray, np.generic)) for x in jax.tree.leaves(scan))


def test_slices_of_a_volume_share_the_mask_of_their_file_name(dataset):
  volumes = fastmri.index(fastmri.folder(dataset, 'train')).volumes
  first, second = (fastmri.read_scan(volumes[0], s, DRAW).mask for s in (0, 1))
  np.testing.assert_array_equal(first, second)
  assert any((DRAW(v).mask != first).any() for v in volumes[1:])
  want = masks.line_mask('random', 48, center_fractions=[0.2], accelerations=[3], seed=volumes[0].name + '.h5')
  np.testing.assert_array_equal(DRAW(volumes[0]).mask, want.mask)


def test_phantoms_follow_from_their_seed_and_have_all_sizes():
  a, b = (synthetic.volume(5, slices=1, rows=48, cols=40, coils=3) for _ in range(2))
  np.testing.assert_array_equal(a.kspace, b.kspace)
  assert synthetic.output_shape(640, 368) == (320, 320)
  assert synthetic.volume(5, slices=1, rows=128, cols=72, coils=1).target.shape == (1, 64, 64)
  with pytest.raises(ValueError, match='phantom'):
    synthetic.volume(0, rows=8, cols=8)


@pytest.mark.parametrize('write, data', [
  (partial(synthetic.write_dataset, slices=1, rows=32, cols=32, coils=1), 'kspace'), (partial(chest.write_dataset, slices=1, repeats=1, pixels=64, nodules=1), 'full_dose'),
], ids=['knee', 'chest'])  # fmt: skip
def test_seeds_and_splits_share_no_patient(write, data, tmp_path):
  hashes = []
  for seed in (0, 1, 7):
    write(tmp_path / str(seed), train=3, val=2, seed=seed)
    for path in (tmp_path / str(seed)).rglob('*.h5'):
      with h5py.File(path) as file:
        # Names differ anyway: the images must.
        hashes += [hashlib.sha256(path.read_bytes()).hexdigest(), hashlib.sha256(file[data][()].tobytes()).hexdigest()]
  assert len(hashes) == 30 == len(set(hashes))


def spectral_slope(n):
  """Of the power of shapes against the frequency, both logarithmic."""
  pictures = []
  for seed in range(8):
    drawn = synthetic.volume(seed, slices=1, rows=n, cols=n, coils=1, anatomy='shapes', snr=1e9, padding=0.0).target[0]
    inner = drawn[n // 4 : -n // 4, n // 4 : -n // 4] / drawn.max()
    pictures.append((inner - inner.mean()) * np.hanning(n // 2) * np.hanning(n // 2)[:, None])
  power = np.mean(np.abs(np.fft.fft2(pictures)) ** 2, 0)
  frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(n // 2) * n // 2] * 2))
  rings = np.arange(4, n // 8)
  heights = [power[(frequency >= r) & (frequency < r + 1)].mean() for r in rings]
  return np.polyfit(np.log(rings), np.log(heights), 1)[0]


@pytest.mark.parametrize('size', [64, 128])
def test_shapes_have_the_spectrum_of_natural_images_at_every_size(size):
  # Power falls with the square to cube of the frequency, and a little faster as edges are soft.
  assert -4 < spectral_slope(size) < -2.5


def test_a_share_of_the_training_volumes_shows_shapes(tmp_path):
  options = dict(slices=1, rows=32, cols=32, coils=1, train=4, val=2)
  for name, shapes in (('knees', 0.0), ('mixed', 0.5)):
    synthetic.write_dataset(tmp_path / name, shapes=shapes, **options)
  found = {}
  for path in sorted((tmp_path / 'knees').rglob('*.h5')):
    with h5py.File(path) as knee, h5py.File(tmp_path / 'mixed' / path.relative_to(tmp_path / 'knees')) as other:
      found[path.stem] = np.array_equal(knee['kspace'], other['kspace'])
  assert list(found.values()) == [True, False, True, False, True, True], found
  table = (tmp_path / 'mixed' / 'annotations.csv').read_text()
  assert {name for name, same in found.items() if same} == {name for name in found if name in table}
  with pytest.raises(ValueError, match="anatomy 'elbow' is unknown; choose knee or shapes"):
    synthetic.volume(0, anatomy='elbow')


def test_interrupted_phantom_is_continued(tmp_path):
  options = dict(train=2, val=1, slices=1, rows=32, cols=32, coils=1)
  synthetic.write_dataset(tmp_path, **options)
  kept, lost = sorted((tmp_path / 'multicoil_train').glob('*.h5'))
  stamp = kept.stat().st_mtime_ns
  lost.unlink()
  synthetic.write_dataset(tmp_path, **options)
  assert lost.exists() and kept.stat().st_mtime_ns == stamp


def test_single_coil_and_volumes_without_reconstruction(file):
  with h5py.File(file, 'r+') as f:
    del f['reconstruction_rss']
  volume = fastmri.describe(file)
  scan = fastmri.read_scan(volume, 0, DRAW)
  assert volume.target == '' and scan.target.shape == volume.crop
  with h5py.File(file, 'r+') as f:
    k = f['kspace'][:, 0]
    del f['kspace']
    f['kspace'] = k
    f['reconstruction_esc'] = np.abs(k).astype(np.float32)
  volume = fastmri.describe(file)
  assert volume.target == 'reconstruction_esc' and fastmri.read_scan(volume, 0, DRAW).kspace.shape == (1, 48, 48)


def test_test_volumes_bring_their_own_mask(file):
  with h5py.File(file, 'r+') as f:
    del f['reconstruction_rss']
    f['mask'] = np.arange(48) % 3 == 0
  volume = fastmri.describe(file)
  assert not volume.fully_sampled
  scan = fastmri.read_scan(volume, 0, DRAW)
  assert set(np.flatnonzero(scan.mask[0])) <= set(range(0, 48, 3))


def edit(change):
  def apply(path):
    with h5py.File(path, 'r+') as f:
      change(f)

  return apply


def replace(name, value):
  def change(f):
    if name in f:
      del f[name]
    if value is not None:
      f[name] = value

  return edit(change)


def truncate(path):
  content = open(path, 'rb').read()
  open(path, 'wb').write(content[: len(content) // 3])


def link_away(f):
  del f['kspace']
  f['kspace'] = h5py.ExternalLink('/etc/passwd', '/kspace')


def soft_link(f):
  f['elsewhere'] = f['kspace'][()]
  del f['kspace']
  f['kspace'] = h5py.SoftLink('/elsewhere')


def virtual(f):
  layout = h5py.VirtualLayout((2, 2, 48, 48), np.complex64)
  layout[:] = h5py.VirtualSource('other.h5', 'kspace', (2, 2, 48, 48))
  del f['kspace']
  f.create_virtual_dataset('kspace', layout)


def external(f):
  del f['kspace']
  f.create_dataset('kspace', (2, 2, 48, 48), np.complex64, external=[('raw.bin', 0, h5py.h5f.UNLIMITED)])


BAD_FILES = {
  'truncated': (truncate, 'not a readable HDF5|damaged'),
  'text': (lambda p: open(p, 'w').write('hello'), 'not a readable HDF5'),
  'no kspace': (replace('kspace', None), 'kspace is missing'),
  'rank': (replace('kspace', np.zeros((2, 3), np.complex64)), r'shape \(2, 3\)'),
  'zero coils': (replace('kspace', np.zeros((2, 0, 48, 48), np.complex64)), 'without zeros'),
  'real kspace': (replace('kspace', np.zeros((2, 2, 48, 48))), 'expected complex'),
  'broken header': (replace('ismrmrd_header', b'<ismrmrdHeader>'), 'ismrmrd_header is malformed'),
  'entity bomb': (replace('ismrmrd_header', b'<!DOCTYPE x [<!ENTITY a "aa">]><x/>'), 'plain XML'),
  'huge header': (replace('ismrmrd_header', b' ' * (1 << 21)), '1 MiB'),
  'wrong target': (replace('reconstruction_rss', np.zeros((1, 48, 48), np.float32)), 'does not fit kspace'),
  'target rank': (replace('reconstruction_rss', np.zeros(3, np.float32)), 'reconstruction_rss has shape'),
  'one row': (replace('reconstruction_rss', np.zeros((2, 1, 48), np.float32)), 'SSIM needs 7 rows'),
  'max': (edit(lambda f: f.attrs.update(max='big')), 'attribute max'),
  'external link': (edit(link_away), 'link to elsewhere'),
  'soft link': (edit(soft_link), 'link to elsewhere'),
  'virtual': (edit(virtual), 'takes its data from other files'),
  'external storage': (edit(external), 'takes its data from other files'),
}


@pytest.mark.parametrize('kind', BAD_FILES)
@pytest.mark.fault
def test_bad_files_are_named_with_their_fault(kind, file):
  damage, words = BAD_FILES[kind]
  damage(file)
  found = fastmri.index(file.parent)
  assert not found.volumes
  line = found.bad[str(file)]
  assert str(file) in line and '\n' not in line
  with pytest.raises(DataError, match=words):
    fastmri.describe(file)


@pytest.mark.parametrize('value, words', [(np.nan, 'NaN'), (0, 'all zero')])
@pytest.mark.fault
def test_bad_slices_are_named(value, words, file):
  with h5py.File(file, 'r+') as f:
    f['kspace'][1] = value
  volume = fastmri.describe(file)
  fastmri.read_scan(volume, 0, DRAW)
  with pytest.raises(DataError, match=f'slice 1.*{words}'):
    fastmri.read_scan(volume, 1, DRAW)


def test_index_is_cached_and_notices_changes(file, tmp_path, monkeypatch):
  cache = tmp_path / 'index.json'
  first = fastmri.index(file.parent, cache=cache)
  monkeypatch.setattr(fastmri, 'describe', lambda path: pytest.fail('read again'))
  assert fastmri.index(file.parent, cache=cache) == first
  monkeypatch.undo()
  truncate(file)
  assert fastmri.index(file.parent, cache=cache).bad
  cache.write_text('{"version": 0')
  assert fastmri.index(file.parent, cache=cache).bad


def write_csv(path, rows):
  with open(path, 'w', newline='') as stream:
    writer = csv.writer(stream)
    writer.writerow(annotations_lib.COLUMNS)
    writer.writerows(rows)
  return path


def test_annotations_flip_clamp_and_count(tmp_path):
  path = write_csv(
    tmp_path / 'a.csv',
    [
      ('v', 0, 'No', 4, 5, 6, 7, 'cyst'),
      ('v', 0, 'No', 40, -1, 20, 5, 'edge'),
      ('v', 0, 'No', 4, 5, 6, 7, 'cyst'),
      ('v', 1, 'No', 60, 5, 6, 7, 'outside'),
      ('v', 0, 'No', 4, 5, 6, 0, 'flat'),
      ('v', 9, 'No', 4, 5, 6, 7, 'no slice'),
      ('v', 0, 'Yes', '', '', '', '', 'study'),
      ('v', 0, 'No', '', '', '', '', 'empty'),
      ('w', 0, 'No', 4, 5, 6, 7, 'other file'),
    ],
  )
  volume = fastmri.Volume('v.h5', 'v', (2, 1, 48, 48), (48, 48), (0, 48), '', None, None, 'p', '')
  # Boxes of the other split are not left out.
  assert 'unknown file' not in loader.annotated([volume], annotations_lib.read(path), others={'w'})[1]
  examples, unusable = loader.annotated([volume], annotations_lib.read(path))
  assert [tuple(e.region)[:4] for e in examples] == [(48 - 5 - 7, 4, 7, 6), (44, 40, 4, 8)]
  assert unusable == {
    'duplicate row': 1, 'outside the image': 1, 'empty box': 1, 'slice outside the volume': 1,
    'study level': 1, 'no coordinates': 1, 'unknown file': 1,
  }  # fmt: skip
  mask = annotations_lib.region_mask(examples[0].region, (48, 48))
  # Drawn at y = 5 from the top of the flipped image.
  assert np.flipud(mask)[5:12, 4:10].all() and mask.sum() == 42


def test_policies_choose(tmp_path):
  regions = [annotations_lib.Region(0, 0, 1, 1, str(i), i) for i in range(4)]
  assert annotations_lib.choose(regions, 'all') == regions
  assert annotations_lib.choose(regions, 'first') == regions[:1]
  drawn = {annotations_lib.choose(regions, 'random', seed=s)[0].annotation for s in range(40)}
  assert drawn == {0, 1, 2, 3}
  with pytest.raises(ValueError, match='choose one of all, first, random'):
    annotations_lib.choose(regions, 'largest')


@pytest.mark.fault
def test_unusable_annotation_files_are_named(tmp_path):
  with pytest.raises(DataError, match='none.csv'):
    annotations_lib.read(tmp_path / 'none.csv')
  (tmp_path / 'x.csv').write_text('file,slice\n')
  with pytest.raises(DataError, match='column study_level is missing'):
    annotations_lib.read(tmp_path / 'x.csv')


def test_batches_are_deterministic_resumable_bucketed_and_shared():
  shapes = [(1,)] * 5 + [(2,)] * 3
  epochs = [loader.plan(shapes, 2, epoch=e, seed=0) for e in (0, 0, 1)]
  assert epochs[0] == epochs[1] != epochs[2]
  assert {i for b in epochs[0] for i in b} == set(range(8))
  assert all(len({shapes[i] for i in b}) == 1 and len(b) == 2 for b in epochs[0])

  volume = fastmri.Volume('v.h5', 'v', (7, 1, 8, 8), (8, 8), (0, 8), '', None, None, 'p', '')
  examples = loader.slices_of([volume])

  def read(example, epoch):
    return np.array([example.slice, epoch])

  def take(count, **options):
    stream = loader.training_batches(examples, read, 2, seed=1, **options)
    return [next(stream) for _ in range(count)]

  whole = take(9)
  np.testing.assert_array_equal(whole[5:], take(4, start=5))
  halves = [take(9, part=p, parts=2) for p in (0, 1)]
  np.testing.assert_array_equal(whole, [np.concatenate(pair) for pair in zip(*halves)])
  assert whole[4][0, 1] == 1 and whole[0][0, 1] == 0
  with pytest.raises(ValueError, match='does not split over 3'):
    take(1, parts=3)
  with pytest.raises(ValueError, match='no training slices'):
    next(loader.training_batches([], read, 2, seed=0))


def test_worker_processes_read_the_same(dataset):
  # Worker processes of grain read absl's flags, which the launcher parses.
  flags.FLAGS.mark_as_parsed()
  volumes = fastmri.index(fastmri.folder(dataset, 'train')).volumes
  from jaxrec.workflows.datasets import _Read

  read = _Read(KSpace(''), dict(MASK, seed=0), redraw=True)
  streams = [loader.training_batches(loader.slices_of(volumes), read, 2, seed=0, workers=w) for w in (0, 1)]
  for _ in range(2):
    jax.tree.map(np.testing.assert_array_equal, next(streams[0]), next(streams[1]))
  streams[1].close()


def test_training_draws_a_new_mask_every_epoch_and_the_same_one_again(dataset):
  from jaxrec.workflows.datasets import _Read

  volume = fastmri.index(fastmri.folder(dataset, 'train')).volumes[0]
  example = loader.slices_of([volume])[0]
  read = _Read(KSpace(''), dict(MASK, seed=0), redraw=True)
  masks = [read(example, epoch).mask for epoch in (0, 1, 2, 1)]
  assert any(not np.array_equal(masks[0], m) for m in masks[1:3])
  np.testing.assert_array_equal(masks[1], masks[3])
  # Seeds of NumPy end at 2^32, epochs need not.
  late = [read(example, epoch).mask for epoch in (4295, 100_000)]
  assert late[0].shape == masks[0].shape and read(example, 4295).mask.tobytes() == late[0].tobytes()
  fixed = _Read(KSpace(''), dict(MASK, seed=0), redraw=False)
  np.testing.assert_array_equal(fixed(example, 0).mask, fixed(example, 5).mask)
  # Inserted spots are in the input and in the target.
  plain, spots = (
    _Read(KSpace(''), dict(MASK, seed=0), redraw=False, form='image', inserted=inserted)(example, 0)
    for inserted in (None, Inserted(3, (4.0,), (0.5,)))
  )
  place = np.unravel_index((spots.target - plain.target).argmax(), plain.target.shape)
  assert (spots.target - plain.target)[place] > 0.3 * plain.scale and (spots.input - plain.input)[
    place
  ] > 0.05 * plain.scale


def test_evaluation_sees_every_example_once():
  volume = fastmri.Volume('v.h5', 'v', (5, 1, 8, 8), (8, 8), (0, 8), '', None, None, 'p', '')
  seen = []
  for chosen, batch in loader.evaluation_batches(loader.slices_of([volume]), lambda e, _: np.array(e.slice), 2):
    assert batch.shape == (2,) and list(batch[: len(chosen)]) == [e.slice for e in chosen]
    seen += [e.slice for e in chosen]
  assert seen == list(range(5))


@pytest.mark.parametrize('keep', [1.0, 0.5, 0.3, 0.01])
@pytest.mark.parametrize('count', [1, 4, 9, 30])
def test_the_central_share_of_a_volume_is_kept(count, keep):
  volume = fastmri.Volume('v.h5', 'v', (count, 1, 8, 8), (8, 8), (0, 8), '', None, None, 'p', '')
  kept = [e.slice for e in loader.slices_of([volume], keep=keep)]
  assert kept == list(range(kept[0], kept[-1] + 1)) and abs(len(kept) - max(keep * count, 1)) <= 0.5
  before, after = kept[0], count - 1 - kept[-1]
  assert 0 <= after - before <= 1


@pytest.mark.parametrize('batch_size', [1, 2, 3])
def test_processes_share_every_batch_of_every_bucket(batch_size):
  volumes = [
    fastmri.Volume('v.h5', 'v', (count, 1, side, side), (side, side), (0, side), '', None, None, 'p', '')
    for count, side in ((5, 8), (4, 16))
  ]
  examples = loader.slices_of(volumes)
  parts = [
    loader.training_batches(examples, lambda e, _: np.array([e.volume.shape[-1], e.slice]), 2 * batch_size, seed=3, part=p, parts=2)
    for p in (0, 1)
  ]  # fmt: skip
  whole = loader.training_batches(
    examples, lambda e, _: np.array([e.volume.shape[-1], e.slice]), 2 * batch_size, seed=3
  )
  seen = set()
  for _ in range(loader.steps_per_epoch(examples, 2 * batch_size)):
    mine, all_of_it = [next(part) for part in parts], next(whole)
    assert [len(x) for x in mine] == [batch_size] * 2
    np.testing.assert_array_equal(np.concatenate(mine), all_of_it)
    assert len(set(all_of_it[:, 0])) == 1
    seen.update(map(tuple, all_of_it.tolist()))
  assert seen == {(e.volume.shape[-1], e.slice) for e in examples}


@pytest.mark.fault
def test_missing_folders_are_named(tmp_path):
  with pytest.raises(DataError, match='set data.root'):
    fastmri.folder(tmp_path, 'train')


def test_emulated_single_coil_fits_the_root_sum_of_squares():
  scan = synthetic.scan(0, rows=48, cols=48, coils=4)
  single = singlecoil.emulate(scan)
  assert single.kspace.shape == (1, 48, 48) and single.kspace.dtype == np.complex64
  images, combined = (singlecoil.centred_images(s.kspace) for s in (scan, single))
  rss = np.sqrt((np.abs(images) ** 2).sum(0))
  best = np.linalg.norm(combined[0] - rss)
  assert best < 0.5 * np.linalg.norm(rss)
  # The least-squares fit: no change of a coil's weight comes closer.
  for coil in range(4):
    for step in (1e-2, -1e-2, 1e-2j):
      assert np.linalg.norm(combined[0] + step * images[coil] - rss) > best
  np.testing.assert_allclose(single.target, singlecoil.centre_of(np.abs(combined[0]), single.target.shape), rtol=1e-5)


def test_zero_filled_images_are_those_of_the_sampled_k_space():
  scan = synthetic.scan(0, rows=48, cols=40, coils=3)
  full = singlecoil.zero_filled(scan.replace(mask=np.ones_like(scan.mask)))
  np.testing.assert_allclose(full.input, scan.target, rtol=1e-4, atol=1e-4 * scan.target.max())
  low = singlecoil.zero_filled(scan).input
  assert low.shape == scan.target.shape and np.linalg.norm(low - scan.target) > 0.05 * np.linalg.norm(scan.target)


@pytest.mark.parametrize('splits', [('val',), ('train', 'val')])
def test_boxes_left_out_are_counted_once(splits, tmp_path):
  config = varnet_8x_full.get_config('smoke')
  config.attack.splits = splits
  root, drawn = datasets._phantom(dict(config.data.phantom), tmp_path / 'run', None)
  lines = drawn.read_text().splitlines()
  config.data.root, config.data.annotations = str(root), str(tmp_path / 'a.csv')
  (tmp_path / 'a.csv').write_text(
    '\n'.join([*lines, 'elsewhere,0,No,4,5,6,7,cyst', 'elsewhere,0,Yes,,,,,study']) + '\n'
  )
  made = build.build(config, tmp_path / 'run')
  chosen, skipped = datasets.examples(made.data, made.attack, datasets.data(made.data, made.folder))
  assert skipped == {'unknown file': 1, 'study level': 1} and len(chosen) == 3 * len(splits)


def test_the_data_range_may_be_that_of_the_slice(tmp_path):
  config = varnet_8x_full.get_config('smoke')
  found = datasets.data(build.build(config, '').data, tmp_path / 'run')
  example = fastmri.Example(found.val.volumes[0], 0, None)
  assert found.read(example, 0).scale == np.float32(found.val.volumes[0].max)
  config.data.range = 'slice'
  scan = datasets.reader(build.build(config, '').data)(example, 0)
  assert scan.scale == scan.target.max() - scan.target.min()


def test_a_network_of_two_accelerations_is_attacked_at_one(tmp_path):
  config = varnet_8x_full.get_config('smoke')
  config.data.phantom.update(rows=128, cols=128)
  data = build.build(config, '').data
  found = datasets.data(data, tmp_path / 'run')
  examples = [fastmri.Example(v, s, None) for v in found.train.volumes for s in range(2)]
  train, attack = datasets.reader(data, redraw=True), datasets.reader(data, attacked=True)
  widths = [int(train(e, epoch).acs.sum()) for e in examples for epoch in range(8)]
  assert set(widths) == {10, 5} and 8 <= widths.count(10) <= 24
  assert {int(attack(e, 0).acs.sum()) for e in examples} == {5}
  assert data.masks.accelerations == (4, 8) and data.attack_masks.accelerations == (8,)
  # Masks of the attack are checked before the training.
  config.attack.accelerations = (8, 4)
  with pytest.raises(ValueError, match='center_fractions'):
    datasets.data(build.build(config, '').data, tmp_path / 'run')


@pytest.mark.filterwarnings('error')
def test_a_perfect_volume_has_scores():
  volume = np.random.default_rng(0).random((2, 20, 16), np.float32)
  found = leaderboard.scores(volume, volume)
  assert (found['psnr'], found['nmse']) == (np.inf, 0) and found['ssim'] == pytest.approx(1, abs=1e-5)
