"""Scans from arrays and from the files of others."""

import functools
import os
import re
import shutil

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrec
from jaxrec import Scan, fourier, masks, metrics, networks
from jaxrec.data import chest, fastmri, ldct, synthetic
from jaxrec.data import source as sources
from jaxrec.data.errors import DataError
from jaxrec.experiments import verify_data


def assert_same(found, want, **tolerance):
  for name, a in vars(want).items():
    b = getattr(found, name)
    assert type(b) is type(a) and b.shape == a.shape and b.dtype == a.dtype, name
    np.testing.assert_allclose(b, a, err_msg=name, **tolerance)


def test_what_a_fully_sampled_scan_leaves_out_is_derived(scan):
  row, col = (int(n[0]) for n in np.nonzero(scan.region))
  height, width = (int(np.ptp(n)) + 1 for n in np.nonzero(scan.region))
  box = (row, col, height, width)
  assert_same(
    Scan.from_kspace(scan.kspace, scan.mask, acs=scan.acs, box=box, crop=scan.target.shape), scan, rtol=1e-5, atol=1e-9
  )
  whole = Scan.from_kspace(scan.kspace.astype(np.complex128), scan.mask[0].astype(int), target=scan.target)
  np.testing.assert_array_equal(whole.region, np.ones_like(scan.target))
  np.testing.assert_array_equal(whole.acs, masks.acs_of_mask(scan.mask))
  assert whole.kspace.dtype == np.complex64 and whole.has_target
  # Without a mask the network is given all that was measured.
  np.testing.assert_array_equal(Scan.from_kspace(scan.kspace).mask, scan.acquired)
  single = Scan.from_kspace(scan.kspace[0])
  image = np.abs(fourier.ifft2c(scan.kspace[0]))
  np.testing.assert_allclose(single.target, image, atol=1e-5 * image.max())


@pytest.mark.parametrize('pattern', ['lines', 'samples'])
def test_prospective_scans_have_no_target_but_a_scale(scan, pattern):
  if pattern == 'lines':
    mask = scan.mask
  else:
    mask = (np.random.default_rng(0).uniform(size=scan.kspace.shape[1:]) < 0.4) & scan.acquired
    mask[17:23, 15:21] = True
  sparse = np.where(mask, scan.kspace, 0)
  found = Scan.from_kspace(sparse)
  np.testing.assert_array_equal(found.mask, mask)
  np.testing.assert_array_equal(found.acs, masks.acs_of_mask(mask) & mask)
  assert found.acs.sum() >= (36 if pattern == 'samples' else 4)
  assert not found.has_target and np.isnan(found.target).all()
  image = fourier.rss(fourier.ifft2c(sparse))
  assert found.scale == pytest.approx(float(image.max()), rel=1e-5)
  # A mask leaves gaps, not the scan.
  assert Scan.from_kspace(scan.kspace, mask).has_target


def test_a_scan_without_target_is_compared_with_the_networks_own_output(scan):
  prospective = Scan.from_kspace(np.where(scan.mask, scan.kspace, 0))
  net = jaxrec.network(lambda sample: networks.zero_filled(sample)[0])
  image = net(prospective)
  sample = metrics.own_reference(image, prospective)
  np.testing.assert_array_equal(sample.target, image)
  np.testing.assert_array_equal(metrics.own_reference(jnp.zeros_like(scan.target), scan).target, scan.target)
  noise = jaxrec.Sweep(functools.partial(jaxrec.coil_noise, start='random'), (0.05,), search=jaxrec.pgd(num_steps=2))
  clean, attacked = jaxrec.audit(net, [prospective], {'noise': noise}, aims=('image',))
  assert float(clean['acceleration']) == pytest.approx(scan.mask.size / scan.mask.sum(), rel=0.05)
  assert clean['reference'] == attacked['reference'] == 'output'
  assert clean['ssim_image_adv'] == pytest.approx(1) and clean['nmse_image_adv'] == 0 == attacked['objective_clean']
  assert attacked['ssim_image_adv'] < 0.99 and attacked['objective_adv'] > 1e-5
  # Scores in units of nothing would make any network look robust.
  with pytest.raises(ValueError, match=r'its data range \(scale\) is nan; give a positive number'):
    jaxrec.audit(net, [prospective.replace(scale=np.float32('nan'))], {'noise': noise}, aims=('image',))


K = synthetic.scan(3, rows=40, cols=36, coils=3).kspace
WRONG = {
  'rank': (dict(kspace=K[0, 0]), 'kspace: has shape (36,)'),
  'image': (dict(kspace=np.abs(K)), 'kspace: has type float32; expected complex'),
  'nan': (dict(kspace=K * np.nan), 'kspace: holds NaN'),
  'empty': (dict(kspace=0 * K), 'kspace: is all zero'),
  'not centred': (dict(kspace=np.fft.ifftshift(K, (-2, -1))), 'kspace: its energy is in the corners; apply np.fft.fftshift'),
  'mask size': (dict(mask=np.ones(35)), 'mask: has shape (1, 35); expected [1, 36] or [40, 36]'),
  'mask weights': (dict(mask=np.full(36, 0.5)), 'mask: holds other values than 0 and 1'),
  'mask empty': (dict(mask=np.zeros(36)), 'mask: no sampled column'),
  'acs': (dict(mask=np.arange(36) % 2, acs=np.ones(36)), 'acs: holds samples that the mask leaves out'),
  'acquired': (dict(acquired=np.ones((40, 36))), 'acquired: has shape (40, 36); expected [1, 36]'),
  'target rank': (dict(target=np.ones((1, 40, 36))), 'target: has shape (1, 40, 36)'),
  'target complex': (dict(target=K[0]), 'target: has shape (40, 36) and type complex64; expected [row, col] real'),
  'target units': (dict(target=np.ones((40, 36))), 'target: is in other units than the k-space'),
  'target nan': (dict(target=np.full((40, 36), np.nan)), 'target: holds NaN'),
  'target size': (dict(target=np.ones((41, 36))), 'target: is to have 41 x 36 pixels; at least 7 x 7, and at most the 40 x 36'),
  'one row': (dict(kspace=K[:, :1]), 'target: is to have 1 x 36 pixels'),
  'crop': (dict(crop=(40, 40)), 'target: is to have 40 x 40 pixels'),
  'box': (dict(box=(30, 30, 12, 4)), 'box: (row, col, height, width) is (30, 30, 12, 4); it is not inside'),
  'box of three': (dict(box=(1, 2, 3)), 'box: is (1, 2, 3); give (row, col, height, width)'),
  'scale': (dict(scale=0), 'scale: is 0'),
}  # fmt: skip


@pytest.mark.parametrize('case', WRONG)
def test_wrong_arrays_are_named_in_one_line(case):
  arguments, words = WRONG[case]
  with pytest.raises(ValueError, match=re.escape(words)) as found:
    Scan.from_kspace(**{'kspace': K, **arguments})
  assert '\n' not in str(found.value)


DRAW = fastmri.mask_drawer(kind='random', center_fractions=(0.2,), accelerations=(3,))


@pytest.fixture(scope='module', params=[64])
def one_slice(tmp_path_factory, request):
  """A volume of one slice, as the phantom writes it, without the attribute that other formats lack."""
  root = tmp_path_factory.mktemp('header')
  synthetic.write_dataset(root, train=1, val=0, slices=1, rows=request.param, cols=40, coils=3)
  (path,) = (root / 'multicoil_train').glob('*.h5')
  with h5py.File(path, 'r+') as file:
    del file.attrs['max']
  return path


def write_without_header(path, to):
  shutil.copy(path, to.with_suffix('.h5'))
  with h5py.File(to.with_suffix('.h5'), 'r+') as file:
    del file['ismrmrd_header']


def write_bart(path, to):
  with h5py.File(path) as file:
    kspace = file['kspace'][()]
  dims = [*kspace.shape[2:], 1, kspace.shape[1], *[1] * 9, kspace.shape[0], 1, 1]
  to.with_suffix('.hdr').write_text('# Dimensions\n' + ' '.join(map(str, dims)) + '\n')
  kspace.transpose(2, 3, 1, 0).reshape(dims, order='F').ravel('F').tofile(to.with_suffix('.cfl'))


def write_npz(path, to):
  with h5py.File(path) as file:
    np.savez(to.with_suffix('.npz'), kspace=file['kspace'][()], target=file['reconstruction_rss'][()])


def write_ismrmrd(path, to, *, change=lambda line: None):
  ismrmrd = pytest.importorskip('ismrmrd')
  volume = fastmri.describe(path)
  with h5py.File(path) as file:
    kspace, header = file['kspace'][()], file['ismrmrd_header'][()]
  _, coils, rows, cols = volume.shape
  with ismrmrd.Dataset(str(to.with_suffix('.h5'))) as out:
    out.write_xml_header(header)
    noise = ismrmrd.Acquisition.from_array(np.full((coils, rows), 1e3, np.complex64))
    noise.setFlag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    out.append_acquisition(noise)
    # Averages cancel what one of them adds.
    for average in (1, -1):
      for s, planes in enumerate(kspace):
        for col in range(*volume.acquired):
          data = planes[:, :, col] + average * 1e-6
          line = ismrmrd.Acquisition.from_array(np.ascontiguousarray(data, np.complex64), center_sample=rows // 2)
          line.idx.slice, line.idx.kspace_encode_step_1, line.idx.average = (
            s,
            col - volume.acquired[0],
            (1 - average) // 2,
          )
          change(line)
          out.append_acquisition(line)


WRITERS = {'no header': write_without_header, 'bart': write_bart, 'npz': write_npz, 'ismrmrd': write_ismrmrd}


def zero_filled(_, sample):
  return fourier.rss(fourier.ifft2c(jnp.where(sample.mask, sample.kspace, 0)))


@jax.jit
def row(scan):
  found = jaxrec.attack(zero_filled, jaxrec.coil_noise(0.03), jaxrec.pgd(num_steps=2), jaxrec.region_mse())(
    None, jax.random.key(0), scan
  )
  scores = {f'{name}_{i}': getattr(metrics, name)(image, scan.target, scan.scale, scan.region)
            for i, image in enumerate((found.clean, found.adversarial)) for name in ('ssim', 'psnr', 'nmse')}  # fmt: skip
  return scores | {'loss': found.loss, 'budget': found.budget}


# BART knows of no size of images: it is given none but that of its k-space, without readout oversampling.
@pytest.mark.parametrize(
  'form, one_slice', [(form, 40 if form == 'bart' else 64) for form in WRITERS], indirect=['one_slice']
)
@pytest.mark.filterwarnings('ignore:.*ismrmrd_header')
def test_a_slice_gives_the_same_row_in_every_format(form, one_slice, tmp_path):
  WRITERS[form](one_slice, tmp_path / one_slice.stem)
  region = fastmri.Region(6, 8, 12, 9, '', 1)
  first, other = (sources.KSpace(folder).index('') for folder in (one_slice.parent, tmp_path))
  assert not first.bad and not other.bad
  assert other.volumes[0][1:4] == first.volumes[0][1:4] and other.volumes[0].fully_sampled
  want, found = (sources.KSpace('').read(index.volumes[0], 0, DRAW, region) for index in (first, other))
  np.testing.assert_array_equal(found.mask, want.mask)
  np.testing.assert_array_equal(found.acquired, want.acquired)
  for name, value in row(want).items():
    assert float(row(found)[name]) == pytest.approx(float(value), rel=1e-6), name


def test_a_missing_header_is_inferred_with_a_warning(one_slice, tmp_path):
  write_without_header(one_slice, tmp_path / 'a')
  cache = tmp_path / 'index.json'
  for _ in range(2):
    with pytest.warns(UserWarning, match='1 volumes have no ismrmrd_header'):
      (volume,) = fastmri.index(tmp_path, cache=cache).volumes
    assert volume.acquired is None


@pytest.mark.parametrize('form', ['bart', 'npz', 'ismrmrd', 'fastmri'])
def test_undersampled_volumes_keep_their_mask_and_have_no_target(form, one_slice, tmp_path):
  sparse = shutil.copy(one_slice, tmp_path / 'sparse.h5')
  mask = DRAW(fastmri.describe(one_slice)).mask[0]
  with h5py.File(sparse, 'r+') as file:
    file['kspace'][...] = np.where(mask, file['kspace'][()], 0)
    del file['reconstruction_rss']
  folder = tmp_path / form
  folder.mkdir()
  if form == 'fastmri':
    shutil.copy(sparse, folder)
  elif form == 'npz':
    with h5py.File(sparse) as file:
      np.savez(folder / 'sparse.npz', kspace=file['kspace'][()])
  else:
    WRITERS[form](sparse, folder / 'sparse')
  (volume,) = sources.KSpace(folder).index('').volumes
  assert not volume.fully_sampled
  scan = sources.KSpace('').read(volume, 0, DRAW)
  acquired = np.flatnonzero(scan.acquired)
  np.testing.assert_array_equal(scan.mask[0, acquired], mask[acquired])
  assert not scan.has_target and scan.scale > 0


def edited(name, value):
  def change(path):
    with h5py.File(path, 'r+') as file:
      file[name][-1] = value

  return change


def cut(suffix):
  def change(path):
    path = path.with_suffix(suffix)
    path.write_bytes(path.read_bytes()[:-100])

  return change


def npz_with(**arrays):
  def change(path):
    with np.load(path.with_suffix('.npz')) as file:
      np.savez(path.with_suffix('.npz'), **{**file, **arrays})

  return change


def ismrmrd_with(change):
  def write(path, to):
    write_ismrmrd(path, to, change=change)

  return write


def moved(line):
  line.idx.kspace_encode_step_1 = 999


def repeated(line):
  line.idx.repetition = 1


def keep(path, to):
  shutil.copy(path, to.with_suffix('.h5'))


# How to write the volume, what to do to it, and what is said of it.
BAD = {
  'target nan': (keep, edited('reconstruction_rss', np.nan), 'slice 0 of target holds NaN'),
  'kspace nan': (keep, edited('kspace', np.nan), 'slice 0 of kspace holds NaN'),
  'target units': (keep, edited('reconstruction_rss', 1e3), 'slice 0 of target is in other units'),
  'empty': (keep, edited('kspace', 0), 'slice 0 of kspace is all zero'),
  'bart header': (write_bart, lambda p: p.with_suffix('.hdr').write_text('# Dimensions\n64 40 2 3\n'), 'expected two of the first three'),
  'bart no header': (write_bart, lambda p: p.with_suffix('.hdr').unlink(), 'has no line of dimensions'),
  'bart short': (write_bart, cut('.cfl'), 'its header says'),
  'npz short': (write_npz, cut('.npz'), 'is no readable .npz'),
  'npz rank': (write_npz, npz_with(kspace=np.ones(3)), 'kspace has shape (3,)'),
  'npz objects': (write_npz, npz_with(patient_id=np.array([{}])), 'store arrays, no objects'),
  'npz target': (write_npz, npz_with(target=np.ones((1, 99, 9), np.float32)), 'does not fit'),
  'npz type': (write_npz, npz_with(kspace=np.ones((1, 3, 64, 40))), 'slice 0 of kspace has type float64'),
  'npz pipe': (write_npz, lambda p: pipe(p.with_suffix('.npz')), 'is no regular file'),
  'bart pipe': (write_bart, lambda p: pipe(p.with_suffix('.hdr')), 'is no regular file'),
  'ismrmrd outside': (ismrmrd_with(moved), None, 'is outside the matrix'),
  'ismrmrd frames': (ismrmrd_with(repeated), None, 'has more than one repetition'),
  'ismrmrd lines': (write_ismrmrd, lambda p: claim_lines(p), 'claims 1000000000000 lines in'),
  'ismrmrd group': (write_ismrmrd, lambda p: rename_data(p), 'it is no ISMRMRD raw data'),
}  # fmt: skip


def pipe(path):
  path.unlink()
  os.mkfifo(path)


def claim_lines(path):
  with h5py.File(path.with_suffix('.h5'), 'r+') as file:
    file['dataset/data'].resize((10**12,))


def rename_data(path):
  with h5py.File(path.with_suffix('.h5'), 'r+') as file:
    file.move('dataset/data', 'dataset/other')


@pytest.mark.parametrize('case', BAD)
def test_what_reading_refuses_verifying_finds(case, one_slice, tmp_path, capsys):
  write, damage, words = BAD[case]
  path = tmp_path / 'bad.h5'
  write(one_slice, path)
  if damage:
    damage(path)
  found = sources.KSpace(tmp_path).index('')
  try:
    said = [*found.bad.values()] or sources.KSpace('').read(found.volumes[0], 0, DRAW)
  except DataError as error:
    said = [str(error)]
  assert len(said) == 1 and words in said[0] and str(tmp_path / 'bad') in said[0] and '\n' not in said[0]
  assert verify_data.main([str(tmp_path)]) == 2
  assert f'bad: {said[0]}' in capsys.readouterr().out


@pytest.mark.parametrize('name, value, words', [
  ('low_dose', 500, 'these are no HU'), ('full_dose', np.nan, 'not finite'), ('repeats', np.nan, 'repeats of slice 1 holds values that are not finite'),
])  # fmt: skip
def test_what_reading_ct_refuses_verifying_finds(name, value, words, tmp_path, capsys):
  chest.write_dataset(tmp_path, train=0, val=1, slices=2, repeats=2, pixels=64, nodules=1)
  assert verify_data.main([str(tmp_path)]) == 0
  (path,) = (tmp_path / 'val').glob('*.h5')
  with h5py.File(path, 'r+') as file:
    images = file[name][()].astype(np.float32)
    images[-1] = value
    del file[name]
    file[name] = images
  source = sources.CT(tmp_path)
  (volume,) = source.index('val').volumes
  source.read(volume, 0)
  with pytest.raises(DataError, match=words):
    source.read(volume, 1)
    ldct.read_recorded(volume, 1)
  capsys.readouterr()
  assert verify_data.main([str(tmp_path)]) == 2
  assert words in capsys.readouterr().out


def test_a_source_of_ones_own_is_verified_and_read(one_slice, tmp_path, monkeypatch, capsys):
  (tmp_path / 'my_scanner.py').write_text(
    'from jaxrec.data.source import KSpace\n\n\ndef archive(root):\n  return KSpace(root)\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  assert verify_data.main([str(one_slice.parent), '--layout=my_scanner:archive']) == 0
  assert '1 volumes, 1 slices, 1 with a target, 0 bad' in capsys.readouterr().out
  assert verify_data.main([str(one_slice.parent), '--layout=my_scanner:nothing']) == 2
  assert "my_scanner has no function 'nothing'" in capsys.readouterr().err
