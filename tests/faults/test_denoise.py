"""Images to denoise: bad ones are refused by name, the others are written, none replaces another."""

import re

import numpy as np
import pytest

from jaxrec.data import ct_images, ldct
from jaxrec.experiments import denoise

pydicom = pytest.importorskip('pydicom', reason='the extra ct is not installed')
Image = pytest.importorskip('PIL.Image')


class Brighter:
  """A network that adds 100 HU."""

  apply = staticmethod(lambda variables, image: image + np.float32(100 / ldct.STD))


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(denoise, '_network', lambda run: (Brighter(), {'w': np.ones(3)}, 0.0))
  (tmp_path / 'in').mkdir()

  def run(source='in', target='out'):
    code = denoise.main([str(tmp_path / 'run'), str(tmp_path / source), str(tmp_path / target)])
    return code, capsys.readouterr()

  return run


def image(seed=0):
  return np.random.default_rng(seed).integers(-1000, 2000, (12, 10)).astype(np.float32)


def dicom(path, hounsfield, **changes):
  meta = pydicom.dataset.FileMetaDataset()
  meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
  meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
  data = pydicom.Dataset()
  data.file_meta = meta
  data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
  data.StudyInstanceUID, data.SeriesInstanceUID = '1.2.3', '1.2.3.4'
  data.Modality, data.PatientID, data.PatientName = 'CT', 'p1', 'Doe^Jane'
  data.ImageType, data.SeriesDescription, data.SeriesNumber = ['ORIGINAL', 'PRIMARY', 'AXIAL'], 'Thorax B30f', 2
  data.ImagePositionPatient, data.PixelSpacing, data.SliceThickness = [1, 2, 3], [0.7, 0.7], 1.5
  data.Rows, data.Columns = hounsfield.shape[:2]
  data.SamplesPerPixel, data.PhotometricInterpretation = 1, 'MONOCHROME2'
  data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
  data.RescaleSlope, data.RescaleIntercept = 1, -1024
  data.PixelData = (hounsfield + 1024).astype('<u2').tobytes()
  for name, value in changes.items():
    if value is None:
      delattr(data, name)
    else:
      setattr(data, name, value)
  data.save_as(path, enforce_file_format=True)


def header(path, shape):
  with open(path, 'wb') as stream:
    np.lib.format.write_array_header_1_0(stream, {'descr': '<f4', 'fortran_order': False, 'shape': shape})
    stream.write(bytes(64))


def pages(path):
  first, second = (Image.fromarray(image(i)) for i in range(2))
  first.save(path, save_all=True, append_images=[second])


def archive(path):
  with open(path, 'wb') as stream:
    np.savez(stream, image())


def truncated(path):
  dicom(path, image())
  path.write_bytes(path.read_bytes()[:-100])


# name of the bad file, how it is made, words of its line
BAD = {
  'empty file': ('b.npy', lambda p: p.write_bytes(b''), 'cannot be read as an image'),
  'empty array': ('b.npy', lambda p: np.save(p, np.zeros((0, 5), np.float32)), r'\(0, 5\)'),
  'archive': ('b.npy', archive, 'cannot be read as an image'),
  'pickle': ('b.npy', lambda p: np.save(p, np.array([[{}]]), allow_pickle=True), 'cannot be read as an image'),
  'colours': ('b.npy', lambda p: np.save(p, np.zeros((4, 4, 3))), r'\(4, 4, 3\).*expected one grey image'),
  'not finite': ('b.npy', lambda p: np.save(p, np.full((4, 4), np.nan)), 'not finite'),
  'claims 10^12': ('b.npy', lambda p: header(p, (10**6, 10**6)), 'cannot be read as an image'),
  'RGB TIFF': ('b.tif', lambda p: Image.new('RGB', (4, 4)).save(p), r'\(4, 4, 3\).*expected one grey image'),
  'palette TIFF': ('b.tif', lambda p: Image.new('P', (4, 4)).save(p), 'has a palette'),
  'pages TIFF': ('b.tiff', pages, 'has 2 pages'),
  'PostScript': ('b.tif', lambda p: Image.fromarray(np.zeros((9, 9), np.uint8)).save(p, 'EPS'), 'cannot be read as an image'),
  'PNG': ('b.tif', lambda p: Image.fromarray(np.zeros((9, 9), np.uint8)).save(p, 'PNG'), 'cannot be read as an image'),
  'HU + 1024': ('b.npy', lambda p: np.save(p, image() + 1024), r'values from \d+ .* no HU, as the run takes off its data.offset=0'),
  'no air': ('b.npy', lambda p: np.save(p, np.random.default_rng(0).random((9, 9))), 'these are no HU'),
  'no TIFF': ('b.tif', lambda p: p.write_bytes(b'II*\0nothing'), 'cannot be read as an image'),
  'no DICOM': ('b.dcm', lambda p: p.write_bytes(b'nothing'), 'cannot be read as DICOM'),
  'MR': ('b.dcm', lambda p: dicom(p, image(), Modality='MR'), 'modality MR; expected CT'),
  'frames': ('b.dcm', lambda p: dicom(p, image(), Rows=6, NumberOfFrames=2), 'has 2 frames'),
  'RGB DICOM': ('b.dcm', lambda p: dicom(p, image(), SamplesPerPixel=3, PhotometricInterpretation='RGB'), r'colour image \(RGB\)'),
  'palette DICOM': ('b.dcm', lambda p: dicom(p, image(), PhotometricInterpretation='PALETTE COLOR'), 'colour image'),
  'no slope': ('b.dcm', lambda p: dicom(p, image(), RescaleSlope=None), 'no rescale slope or intercept'),
  'no intercept': ('b.dcm', lambda p: dicom(p, image(), RescaleIntercept=None), 'no rescale slope or intercept'),
  'no HU': ('b.dcm', lambda p: dicom(p, image(), RescaleType='US'), 'rescale type US'),
  'slope a list': ('b.dcm', lambda p: dicom(p, image(), RescaleSlope=[1, 2]), 'cannot be read as DICOM'),
  'rows a list': ('b.dcm', lambda p: dicom(p, image(), Rows=[12, 12]), 'cannot be read as DICOM'),
  'claims 4 10^9': ('b.dcm', lambda p: dicom(p, image(), Rows=65535, Columns=65535), 'claims 65535 x 65535'),
  'truncated': ('b.dcm', truncated, 'cannot be read'),
}  # fmt: skip


@pytest.mark.parametrize('kind', BAD)
def test_a_bad_image_is_named_and_the_others_are_made(kind, command, tmp_path):
  name, make, words = BAD[kind]
  for good in ('a.npy', 'c.npy'):
    np.save(tmp_path / 'in' / good, image())
  make(tmp_path / 'in' / name)
  code, captured = command()
  lines = [line for line in captured.out.splitlines() if line.startswith('bad: ')]
  assert code == 2 and len(lines) == 1
  assert re.search(f'{name}: .*{words}', lines[0]), lines[0]
  assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['a.npy', 'c.npy']


def test_results_mirror_their_inputs(command, tmp_path):
  named = ['x/y.npy', 'x-y.npy', 'z.npy', 'z.tif', 'z.dcm']
  (tmp_path / 'in' / 'x').mkdir()
  for i, name in enumerate(named):
    path = tmp_path / 'in' / name
    {'.npy': np.save, '.tif': lambda p, x: Image.fromarray(x).save(p), '.dcm': dicom}[path.suffix](path, image(i))
  code, captured = command()
  assert code == 0, captured
  found = sorted(str(p.relative_to(tmp_path / 'out')) for p in (tmp_path / 'out').rglob('*') if p.is_file())
  assert found == sorted(['x/y.npy', 'x-y.npy', 'z.npy', 'z.tif.npy', 'z.dcm'])
  for i, name in enumerate(named):
    made = ct_images.read_file(tmp_path / 'out' / (f'{name}.npy' if name.endswith('.tif') else name))
    np.testing.assert_allclose(made, image(i) + 100, atol=0.5 if name.endswith('.dcm') else 1e-2)
  code, captured = command()
  assert code == 0 and '5 of 5 were in' in captured.out


def test_results_that_would_share_a_name_are_refused(command, tmp_path):
  Image.fromarray(image()).save(tmp_path / 'in' / 'z.tif')
  np.save(tmp_path / 'in' / 'z.tif.npy', image())
  np.save(tmp_path / 'in' / 'a.npy', image())
  code, captured = command()
  assert code == 2 and captured.out.count('would replace another file') == 2
  assert [p.name for p in (tmp_path / 'out').iterdir()] == ['a.npy']


@pytest.mark.parametrize('source, target', [('in', 'in'), ('in', 'in/out'), ('in/a.npy', 'in'), ('in', 'in/../in')])
def test_results_do_not_mix_with_inputs(source, target, command, tmp_path):
  np.save(tmp_path / 'in' / 'a.npy', image())
  before = (tmp_path / 'in' / 'a.npy').read_bytes()
  code, captured = command(source, target)
  assert code == 2 and 'lies in the input folder' in captured.err and len(captured.err.splitlines()) == 1
  assert (tmp_path / 'in' / 'a.npy').read_bytes() == before


def test_dicom_becomes_a_derived_series(command, tmp_path):
  for i in range(2):
    dicom(tmp_path / 'in' / f'{i}.dcm', image(i), PixelPaddingValue=0)
  assert command()[0] == 0
  sources, made = ([pydicom.dcmread(tmp_path / folder / f'{i}.dcm') for i in range(2)] for folder in ('in', 'out'))
  for i, (source, result) in enumerate(zip(sources, made)):
    for name in (
      'PatientID',
      'PatientName',
      'StudyInstanceUID',
      'ImagePositionPatient',
      'PixelSpacing',
      'SliceThickness',
      'SOPClassUID',
    ):
      assert result[name] == source[name]
    assert list(result.ImageType) == ['DERIVED', 'SECONDARY', 'AXIAL']
    assert (
      result.SOPInstanceUID != source.SOPInstanceUID
      and result.file_meta.MediaStorageSOPInstanceUID == result.SOPInstanceUID
    )
    assert result.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert result.SeriesDescription == 'Thorax B30f denoised' and 'of run run, weights ' in result.DerivationDescription
    assert 'PixelPaddingValue' not in result
    np.testing.assert_allclose(
      result.pixel_array * float(result.RescaleSlope) + float(result.RescaleIntercept), image(i) + 100, atol=0.5
    )
  assert made[0].SeriesInstanceUID == made[1].SeriesInstanceUID != '1.2.3.4'
  assert made[0].SOPInstanceUID != made[1].SOPInstanceUID
  # The same weights make the same image again, others never do.
  again = tmp_path / 'again.dcm'
  ct_images.write_dicom(
    tmp_path / 'in/0.dcm', again, image(), network='n', digest=made[0].DerivationDescription.split()[-1]
  )
  assert pydicom.dcmread(again).SOPInstanceUID == made[0].SOPInstanceUID
  ct_images.write_dicom(tmp_path / 'in/0.dcm', again, 20 * image(), network='n', digest='other')
  other = pydicom.dcmread(again)
  assert other.SOPInstanceUID != made[0].SOPInstanceUID and other.SeriesInstanceUID != made[0].SeriesInstanceUID
  np.testing.assert_allclose(ct_images.read_file(again), 20 * image(), atol=1)
