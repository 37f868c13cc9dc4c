"""Low-dose CT data: the chest phantom, the three layouts, and what is wrong with files."""

import json
import re

import h5py
import numpy as np
import pytest

from jaxrec import geometry
from jaxrec.data import chest, ldct, sites
from jaxrec.data.errors import DataError

SMALL = dict(slices=1, pixels=64, nodules=3)


@pytest.fixture(scope='module')
def drawn():
  return chest.volume(3, repeats=12, **SMALL)


def test_phantom_is_made_of_its_seed(drawn):
  again = chest.volume(3, repeats=12, **SMALL)
  other = chest.volume(4, **SMALL)
  np.testing.assert_array_equal(drawn.repeats, again.repeats)
  assert (drawn.low_dose != other.low_dose).any()


def test_low_dose_has_the_psnr_of_the_chest_data():
  """As ldct-benchmark measures it: images cut to the lung window, with its width as range."""
  errors = []
  for seed in range(3):
    low, full = (np.clip((x.astype(float) + 1350) / 1500, 0, 1) for x in chest.volume(seed, slices=1)[:2])
    errors.append(np.mean((low - full) ** 2))
  assert abs(-10 * np.log10(np.mean(errors)) - 18.07) < 1


def test_twins_share_their_noise(drawn):
  low, twin, repeat = (x.astype(float) for x in (drawn.low_dose[0], drawn.twin_low_dose[0], drawn.repeats[0, 0]))
  inside = np.zeros(low.shape, bool)
  for s in drawn.structures:
    inside |= geometry.soft_disc(low.shape, (s.row, s.col), s.diameter / (400 / 64) + 3) > 0
  # Away from nodules twins differ much less than two scans do.
  assert np.std((low - twin)[~inside]) < 0.5 * np.std((low - repeat)[~inside])
  # Nodules are where the table says, and bright.
  strong = [s for s in drawn.structures if s.contrast * s.diameter**2 >= 6400]
  assert strong
  for s in strong:
    assert (low - twin)[round(s.row), round(s.col)] > 0.1 * s.contrast


def test_nodules_add_their_contrast_times_their_area():
  """In the low dose and the full dose, and not in the repeats, which are of the twin; photons enough to see it."""
  v = chest.volume(11, slices=2, pixels=64, nodules=1, repeats=4, photons=1e9, dose=0.5)
  assert len(v.structures) == 2
  rows, cols = np.ogrid[:64, :64]
  for s in v.structures:
    near = np.hypot(rows - s.row, cols - s.col) < s.diameter / 2 / 6.25 + 4
    expected = s.contrast * np.pi * (s.diameter / 2 / 6.25) ** 2
    twin = v.twin_low_dose[s.slice].astype(float)
    for image in (v.low_dose[s.slice], v.full_dose[s.slice]):
      assert (image - twin)[near].sum() == pytest.approx(expected, rel=0.2, abs=60), s
    for image in v.repeats[s.slice]:
      assert (image - twin)[near].sum() == pytest.approx(0, abs=60)


def test_a_tenth_of_the_photons_has_ten_times_the_variance():
  def variance(dose):
    v = chest.volume(5, slices=1, pixels=64, nodules=0, repeats=10, photons=1e7, dose=dose)
    return v.repeats[0].astype(float).var(0, ddof=1)[20:44, 20:44].mean()

  assert 8 < variance(0.01) / variance(0.1) < 13


@pytest.fixture(scope='module')
def phantom(tmp_path_factory):
  return chest.write_dataset(tmp_path_factory.mktemp('ct') / 'chest', train=2, val=2, repeats=4, **SMALL)


def test_hdf5_gives_normalised_slices(phantom):
  found = ldct.index(phantom, 'train')
  assert len(found.volumes) == 2 and not found.bad
  series = found.volumes[0]
  sample = ldct.read_slice(series, 0)
  with h5py.File(series.path) as file:
    np.testing.assert_allclose(ldct.hounsfield(sample.input), file['low_dose'][0], atol=0.01)
  assert sample.target.shape == (64, 64) and sample.scale == np.float32(4095 / ldct.STD)
  # Fat is about -100 HU, 85% of the deviation above the mean of the LDCT images.
  np.testing.assert_allclose(ldct.normalise(np.array([-100.0])), 0.8813, atol=1e-3)


def test_patches_are_drawn_by_patient_and_reach_every_pixel(phantom):
  series = ldct.index(phantom, 'train', patch=40).volumes[0]
  same = [ldct.read_patch(series, (0, 1, 2)).input for _ in range(2)]
  np.testing.assert_array_equal(*same)
  whole = ldct.read_slice(series._replace(crop=(64, 64)), 0).input
  corners = set()
  for i in range(400):
    patch = ldct.read_patch(series, (i,)).input
    at = np.argwhere(whole == patch[0, 0])
    corners |= {
      tuple(a) for a in at if a.max() <= 24 and np.array_equal(whole[a[0] : a[0] + 40, a[1] : a[1] + 40], patch)
    }
  rows, cols = zip(*corners)
  assert min(rows) == min(cols) == 0 and max(rows) == max(cols) == 24
  lung = ldct.read_patch(series, (1,), (-950.0, -600.0))
  middle = ldct.hounsfield(lung.target[16:25, 16:25]).mean()
  assert -950 <= middle <= -600


ADDED = np.stack([c / ldct.STD * geometry.soft_disc((32, 32), (16, 16), 3.0) for c in (100.0, 400.0)]).astype(
  np.float32
)


def test_sites_are_the_repeats_of_the_twin_with_structures_put_in(phantom):
  series = ldct.index(phantom, 'val', patch=32).volumes[0]
  places = sites.places_ct(series, 0, count=2, side=32, centre_hu=(), seed=0)
  assert len(places) == 2 and all(16 <= x <= 48 for at in places for x in at)
  found = list(sites.sites_ct(series, 0, places, added=ADDED, repeats=4, few=2, reach=3, seed=0))
  twin, again = ldct.read_recorded(series, 0)
  for (row, col), site in zip(places, found):
    cut = slice(row - 16, row + 16), slice(col - 16, col + 16)
    np.testing.assert_array_equal(site.absent, ldct.normalise(again[:4, cut[0], cut[1]]))
    np.testing.assert_allclose(
      site.present - site.absent[:2], np.broadcast_to(ADDED[:, None], (2, 2, 32, 32)), atol=1e-5
    )
    assert site.corner == (13, 13) and site.rescan is None
    # The full dose without the structures that the phantom holds, up to the noise of thinning.
    low, full = ldct.read_hu(series, 0)
    np.testing.assert_allclose(site.target, ldct.normalise((full + twin - low)[cut]), atol=1e-5)
  with pytest.raises(DataError, match='cannot be read|no such|does not exist|is no file'):
    next(
      sites.sites_ct(
        series._replace(path=f'{series.path}.none'), 0, places, added=ADDED, repeats=4, few=2, reach=3, seed=0
      )
    )
  assert sites.places_ct(series, 0, count=2, side=32, centre_hu=(5000.0, 6000.0), seed=0) == []


def test_a_new_scan_of_the_anatomy_looks_like_the_recorded_ones():
  """`R^-1 P R y` of the noise-free phantom: its noise, and its mean but for the resolution that a second projection costs."""
  rng = np.random.default_rng(0)
  options = dict(photons=2.4e4, dose=0.1)
  recorded = chest.volume(3, repeats=24, **SMALL).repeats[0].astype(float)
  clean = chest.volume(3, repeats=0, slices=1, pixels=64, nodules=0, photons=1e9, dose=1.0).full_dose[0]
  again = np.stack([chest.rescan(rng, clean, **options) for _ in range(24)]).astype(float)
  inner = (slice(20, 44),) * 2
  assert again.std(0)[inner].mean() == pytest.approx(recorded.std(0)[inner].mean(), rel=0.25)
  away = again.mean(0) - clean
  assert np.abs(away[inner].mean()) < 40
  # Four times the dose, half of the noise, where no detector starves.
  worse, better = (
    np.stack([chest.rescan(rng, clean, photons=1e6, dose=dose) for _ in range(24)]).std(0)[inner].mean()
    for dose in (0.1, 0.4)
  )
  assert better == pytest.approx(worse / 2, rel=0.15)


def test_noise_of_other_slices_is_their_own(tmp_path):
  """Without repeats, noise is low minus full dose of the other slices, shifted."""
  full = np.full((3, 40, 40), -1000, np.float32)
  low = full + np.array([7.0, -3.0, -3.0], np.float32)[:, None, None]
  (tmp_path / 'val').mkdir()
  with h5py.File(tmp_path / 'val' / 'a.h5', 'w') as file:
    file['low_dose'], file['full_dose'] = low, full
  series = ldct.index(tmp_path, 'val', patch=32).volumes[0]
  site = next(sites.sites_ct(series, 0, [(20, 20)], added=ADDED, repeats=6, few=2, reach=3, seed=0))
  np.testing.assert_allclose(ldct.hounsfield(site.absent), -1003, atol=1e-3)
  np.testing.assert_allclose(ldct.hounsfield(site.target), -1000, atol=1e-3)


def test_folders_of_splits_need_no_table_of_patients(phantom, tmp_path):
  assert len(ldct.index(phantom, 'val', patients='configs/ldct_chest.json').volumes) == 2
  # Without either, training and validation would be the same files.
  path = ldct.index(phantom, 'val').volumes[0].path
  (tmp_path / 'flat').mkdir()
  (tmp_path / 'flat' / 'a.h5').write_bytes(open(path, 'rb').read())
  with pytest.raises(DataError, match='patients need a split; make folders train and val'):
    ldct.index(tmp_path / 'flat', 'train')


@pytest.mark.parametrize('name, value, words', [
  ('repeats', np.zeros((2, 3, 8, 8)), r'repeats has shape \(2, 3, 8, 8\); expected \(1, n, 8, 8\)'),
  ('structures', np.zeros((2, 4)), r'structures has shape \(2, 4\); expected \(n, 5\)'),
  ('structures', np.array([[0, 4, 4, 0.0, 100]]), 'structures hold values that are not finite, or diameters that are not positive'),
  ('pixel_mm', 0.0, 'pixel_mm is .*; expected a positive number'),
  ('pixel_mm', 'wide', 'pixel_mm is .*; expected a positive number'),
])  # fmt: skip
@pytest.mark.fault
def test_what_is_wrong_in_hdf5_is_named(tmp_path, name, value, words):
  (tmp_path / 'val').mkdir()
  with h5py.File(tmp_path / 'val' / 'a.h5', 'w') as file:
    file['low_dose'] = file['full_dose'] = np.zeros((1, 8, 8), np.float32)
    if name == 'pixel_mm':
      file.attrs[name] = value
    else:
      file[name] = value
  (problem,) = ldct.index(tmp_path, 'val').bad.values()
  assert re.search(words, problem), problem


@pytest.mark.parametrize('centre', [(15.0, 20.0), (14.3, 20.7), (0.0, 20.0), (31.0, 0.0), (-30.0, 5.0), (60.0, 60.0)])
@pytest.mark.parametrize('diameter', [0.8, 4.0, 13.0])
def test_discs_cover_their_share_of_every_pixel(centre, diameter):
  disc = geometry.soft_disc((32, 40), centre, diameter)
  rows, cols = (np.arange(20 * n).reshape(n, 20) / 20 + 0.025 - 0.5 - c for n, c in zip((32, 40), centre))
  inside = rows[:, :, None, None] ** 2 + cols[None, None] ** 2 <= (diameter / 2) ** 2
  np.testing.assert_allclose(disc, inside.mean((1, 3)), atol=0.15)
  assert disc.sum() == pytest.approx(inside.mean((1, 3)).sum(), abs=0.05 + 0.1 * diameter)


def dicom(path, pixels, **changes):
  pydicom = pytest.importorskip('pydicom', reason='the extra ct is not installed')
  meta = pydicom.dataset.FileMetaDataset()
  meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.2'
  meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
  meta.TransferSyntaxUID = changes.pop('syntax', pydicom.uid.ExplicitVRLittleEndian)
  data = pydicom.Dataset()
  data.file_meta = meta
  fields = dict(
    Modality='CT', Rows=pixels.shape[0], Columns=pixels.shape[1], BitsAllocated=16, BitsStored=16, HighBit=15, SamplesPerPixel=1,
    PixelRepresentation=0, PhotometricInterpretation='MONOCHROME2', RescaleSlope=1, RescaleIntercept=-1024, PixelSpacing=[0.7, 0.7],
  )  # fmt: skip
  for name, value in {**fields, **changes}.items():
    setattr(data, name, value)
  data.PixelData = (
    pydicom.encaps.encapsulate([b'\xff\x4f\xff\x51 nonsense'])
    if meta.TransferSyntaxUID.is_compressed
    else pixels.astype('<u2').tobytes()
  )
  data['PixelData'].VR = 'OW'
  path.parent.mkdir(parents=True, exist_ok=True)
  data.save_as(path, enforce_file_format=True)


def tcia(root, patient='C001', numbers=(1, 2, 3), shape=(32, 32)):
  rng = np.random.default_rng(0)
  for dose, spread in (('Low', 200), ('Full', 20)):
    for k in numbers:
      pixels = np.clip(1000 + spread * rng.standard_normal(shape), 0, 4095).astype(np.uint16)
      pixels[0, 0] = 0
      dicom(
        root
        / 'LDCT-and-Projection-data'
        / patient
        / '01-01-2019-NA-NA-1'
        / f'1.000000-{dose} Dose Images-1'
        / f'1-{k}.dcm',
        pixels,
      )
  split = root / 'split.json'
  split.write_text(json.dumps({'train': ['C*'], 'val': ['C002']}))
  return split


def test_patients_that_are_written_as_bytes_have_their_names(tmp_path):
  chest.write_dataset(tmp_path / 'made', train=1, val=1, repeats=4, **SMALL)
  (path,) = (tmp_path / 'made' / 'train').glob('*.h5')
  with h5py.File(path, 'r+') as file:
    file.attrs['patient_id'] = np.bytes_('C001')
  assert [v.patient_id for v in ldct.index(tmp_path / 'made', 'train').volumes] == ['C001']


def test_dicom_of_tcia_is_paired_by_file_name_and_split_by_patient(tmp_path):
  split = tcia(tmp_path)
  tcia(tmp_path, 'C002')
  found = ldct.index(tmp_path, 'train', patients=split)
  assert [v.patient_id for v in found.volumes] == ['C001'] and not found.bad
  series = found.volumes[0]
  assert series.shape == (3, 32, 32) and series.pixel == 0.7
  low, full = ldct.read_hu(series, 2)
  assert abs(low.mean() + 24) < 30 and low[1:].std() > 5 * full[1:].std()
  # The longest entry decides: C002 is not of C*.
  assert [v.patient_id for v in ldct.index(tmp_path, 'val', patients=split).volumes] == ['C002']


@pytest.mark.parametrize('suffix', ['.npy', '.tif'])
def test_folders_of_images(tmp_path, suffix):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 4000, (2, 3, 24, 20)).astype(np.uint16)
  for dose, stack in zip(('low', 'full'), images):
    (tmp_path / 'val' / dose).mkdir(parents=True)
    for i, image in enumerate(stack):
      path = tmp_path / 'val' / dose / f's{i}{suffix}'
      if suffix == '.npy':
        np.save(path, image)
      else:
        image_lib = pytest.importorskip('PIL.Image')
        image_lib.fromarray(image).save(path)
  found = ldct.index(tmp_path, 'val', offset=1024.0)
  assert found.volumes[0].shape == (3, 24, 20)
  low, full = ldct.read_hu(found.volumes[0], 1)
  np.testing.assert_array_equal(low, images[0, 1].astype(np.float32) - 1024)
  np.testing.assert_array_equal(full, images[1, 1].astype(np.float32) - 1024)


def series_of(root, split):
  return ldct.index(root, 'train', patients=split).volumes[0]


@pytest.mark.fault
def test_what_is_wrong_with_dicom_is_named(tmp_path):
  split = tcia(tmp_path)
  low = tmp_path / 'LDCT-and-Projection-data/C001/01-01-2019-NA-NA-1/1.000000-Low Dose Images-1'
  full = low.parent / '1.000000-Full Dose Images-1'
  pixels = np.zeros((32, 32), np.uint16)

  dicom(low / '1-2.dcm', pixels, Modality='MR')
  with pytest.raises(DataError, match='1-2.dcm: has modality MR; expected CT'):
    ldct.read_hu(series_of(tmp_path, split), 1)
  dicom(low / '1-2.dcm', np.zeros((16, 32), np.uint16))
  with pytest.raises(DataError, match='1-2.dcm: has 16 x 32 pixels, the series 32 x 32'):
    ldct.read_hu(series_of(tmp_path, split), 1)
  dicom(low / '1-2.dcm', pixels, syntax='1.2.840.10008.1.2.4.90')
  with pytest.raises(DataError, match='transfer syntax "JPEG 2000.*decompress'):
    ldct.read_hu(series_of(tmp_path, split), 1)
  (low / '1-2.dcm').write_bytes(b'not dicom')
  with pytest.raises(DataError, match='1-2.dcm: cannot be read as DICOM'):
    ldct.read_hu(series_of(tmp_path, split), 1)
  (full / '1-3.dcm').unlink()
  found = ldct.index(tmp_path, 'train', patients=split)
  assert found.volumes[0].shape[0] == 2
  assert 'has no full-dose pair' in next(iter(found.bad.values()))
  with pytest.raises(DataError, match='patients need a split'):
    ldct.index(tmp_path, 'train')


def broken(name, tmp_path):
  folder = tmp_path / 'train'
  folder.mkdir()
  path = folder / 'a.h5'
  with h5py.File(path, 'w') as file:
    file['low_dose'] = np.zeros((2, 24, 24), np.int16)
    file['full_dose'] = np.zeros((2, 24, 24), np.int16)
    if name == 'keys':
      del file['low_dose']
    if name == 'pair':
      del file['full_dose']
    if name == 'shape':
      del file['full_dose']
      file['full_dose'] = np.zeros((2, 24, 20), np.int16)
    if name == 'link':
      del file['low_dose']
      file['low_dose'] = h5py.ExternalLink('/etc/passwd', 'x')
    if name == 'virtual':
      del file['low_dose']
      file.create_virtual_dataset('low_dose', h5py.VirtualLayout((2, 24, 24), 'i2'))
    if name == 'group':
      file.create_group('repeats')
    if name == 'text':
      file['structures'] = np.full((1, 5), b'x')
    if name == 'axes':
      del file['low_dose']
      file['low_dose'] = np.zeros((24, 24))
  if name == 'truncated':
    path.write_bytes(path.read_bytes()[:300])
  return path


@pytest.mark.parametrize(
  'name, words',
  [
    ('keys', 'has no data set low_dose'), ('pair', 'has no full-dose images'), ('shape', 'full_dose has shape'), ('link', 'low_dose is a link'),
    ('virtual', 'low_dose takes its data from other files'), ('group', 'repeats is a group'), ('text', 'structures has type'),
    ('axes', r'expected \[slice, row, col\]'), ('truncated', 'not a readable HDF5'), ('patch', 'are smaller than data.patch=32'),
  ],
)  # fmt: skip
@pytest.mark.fault
def test_what_is_wrong_with_hdf5_is_named(tmp_path, name, words):
  path = broken(name, tmp_path)
  found = ldct.index(tmp_path, 'train', patch=32 if name == 'patch' else 0)
  assert not found.volumes
  with pytest.raises(DataError, match=words):
    raise DataError(found.bad[str(path)])
  assert str(path) in found.bad[str(path)]


@pytest.mark.fault
def test_values_that_are_not_finite_are_named(tmp_path):
  (tmp_path / 'val' / 'low').mkdir(parents=True)
  np.save(tmp_path / 'val' / 'low' / 'a.npy', np.full((8, 8), np.nan, np.float32))
  series = ldct.index(tmp_path, 'val', require_pairs=False).volumes[0]
  with pytest.raises(DataError, match='a.npy: holds values that are not finite'):
    ldct.read_hu(series, 0)
  with pytest.raises(DataError, match='holds neither'):
    ldct.index(tmp_path / 'val' / 'low', 'val')
