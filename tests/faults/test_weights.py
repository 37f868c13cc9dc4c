"""Weight files of others: whatever they claim, one line, at once, and no memory that the file does not have."""

import io
import pickle
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from jaxrec.models import weights


class Storage:
  """Pickled as PyTorch pickles a storage: by name and size."""

  def __init__(self, key, count):
    self.pid = ('storage', _Named('torch', 'FloatStorage'), key, 'cpu', count)


class _Named:
  """Pickled as a reference to a class that need not exist here."""

  def __init__(self, module, name):
    self.module, self.name = module, name

  def __reduce__(self):
    raise AssertionError('written by the pickler')


class Tensor:
  def __init__(self, size, stride, *, key='0', count=4, offset=0):
    self.arguments = (Storage(key, count), offset, size, stride, False, {})


class Pickler(pickle._Pickler):
  """Writes state dicts without torch."""

  def persistent_id(self, thing):
    return thing.pid if isinstance(thing, Storage) else None

  def save(self, thing, save_persistent_id=True):
    if isinstance(thing, _Named):
      self.write(f'c{thing.module}\n{thing.name}\n'.encode())
    elif isinstance(thing, Tensor):
      self.save(_Named('torch._utils', '_rebuild_tensor_v2'))
      self.save(thing.arguments)
      self.write(pickle.REDUCE)
    else:
      super().save(thing, save_persistent_id)


def pickled(thing):
  stream = io.BytesIO()
  Pickler(stream, 2).dump(thing)
  return stream.getvalue()


def zipped(content, data=bytes(16), compression=zipfile.ZIP_STORED):
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, 'w', compression) as archive:
    archive.writestr('a/data.pkl', content if isinstance(content, bytes) else pickled(content))
    archive.writestr('a/data/0', data)
  return stream.getvalue()


def legacy(content, keys=('0',), counts=(4,), data=bytes(16)):
  head = [pickled(x) for x in (weights._LEGACY_MAGIC, 1001, {'little_endian': True})]
  return b''.join([*head, pickled(content), pickled(list(keys)), *(struct.pack('<q', c) + data for c in counts)])


GOOD = {'w': Tensor((2, 2), (2, 1))}
RECURSIVE = {}
RECURSIVE['state_dict'] = RECURSIVE

# content, words
BAD = {
  'nothing': (b'', 'truncated.*again'),
  'web page': (b'<!DOCTYPE html><html>Not found</html>' * 9, 'neither a zip archive nor a pickle'),
  'zip bomb': (zipped(GOOD, bytes(1 << 24), zipfile.ZIP_DEFLATED), 'would unpack from .* to 16,777'),
  'other zip': (zipped(GOOD).replace(b'data.pkl', b'data.pkx'), 'without data.pkl'),
  'cut zip': (zipped(GOOD)[:-30], 'truncated.*again'),
  'cut legacy pickle': (legacy(GOOD)[:100], 'truncated.*again'),
  'cut legacy storage': (legacy(GOOD)[:-3], 'truncated.*again'),
  'no legacy storage': (legacy(GOOD, counts=())[:-8], 'truncated.*again'),
  'legacy storage of 10^15': (legacy(GOOD, counts=(10**15,)), 'truncated.*again'),
  'damaged legacy': (legacy(GOOD)[:60] + b'\xff' * 200, 'not a PyTorch state dict'),
  'other pickle': (pickled([1, 2]), 'none of torch.save'),
  'list': (zipped([1, 2]), 'it holds a list'),
  'tensor': (zipped(Tensor((2, 2), (2, 1))), 'it holds a tensor'),
  'itself': (zipped(RECURSIVE), None),
  'stride 0': (zipped({'w': Tensor((10**6, 10**6), (0, 0))}), 'tensor w of shape .* claims more than the file holds'),
  'overflowing shape': (zipped({'w': Tensor((2**32, 2**32), (0, 0))}), 'claims more than the file holds'),
  'shared storage': (zipped({f'w{i}': Tensor((2**20,), (1,), count=2**20) for i in range(20)}, bytes(2**22)), 'claims more than the file holds'),
  'outside': (zipped({'w': Tensor((2, 2), (2, 1), offset=1)}), 'outside its storage'),
  'no storage': (zipped({'w': Tensor((2, 2), (2, 1), key='7')}), 'damaged'),
  'huge memo': (zipped(b'\x80\x02}r' + struct.pack('<I', 2**31) + b'.'), 'malicious'),
  'huge string': (zipped(b'\x80\x02X' + struct.pack('<I', 2**31) + b'a.'), 'truncated'),
}  # fmt: skip


@pytest.mark.parametrize('kind', BAD)
def test_a_bad_weight_file_is_refused_at_once(kind, tmp_path):
  content, words = BAD[kind]
  path = tmp_path / 'w.pt'
  path.write_bytes(content)
  tracemalloc.start()
  start = time.monotonic()
  try:
    if words is None:
      assert weights.read_state_dict(path) == {}
    else:
      with pytest.raises(weights.WeightsError, match=words) as caught:
        weights.read_state_dict(path)
      line = str(caught.value)
      assert line.startswith(f'{path}: ') and '\n' not in line and 'protocol' not in line
    assert time.monotonic() - start < 5 and tracemalloc.get_traced_memory()[1] < 10 * len(content) + (1 << 20)
  finally:
    tracemalloc.stop()


def test_weights_of_two_networks_or_of_another_size_are_refused(tmp_path):
  path = tmp_path / 'w.pt'
  path.write_bytes(zipped({'w': Tensor((2, 2), (2, 1)), 'module.w': Tensor((2, 2), (2, 1))}))
  with pytest.raises(weights.WeightsError, match=f'^{path}: has more than one tensor w; save one network'):
    weights.load_fastmri(path, 'unet')
  path.write_bytes(zipped({'down_sample_layers.0.layers.0.weight': Tensor((2, 2, 1, 1), (2, 1, 1, 1))}))
  with pytest.raises(weights.WeightsError, match='layers.0.weight takes 2 channels, expected 1'):
    weights.load_fastmri(path, 'unet')


@pytest.mark.parametrize('make', [zipped, legacy])
def test_a_good_one_is_read(make, tmp_path):
  path = tmp_path / 'w.pt'
  path.write_bytes(make({'epoch': 3, 'state_dict': GOOD}, data=np.arange(4, dtype='<f4').tobytes()))
  np.testing.assert_array_equal(weights.read_state_dict(path)['w'], [[0, 1], [2, 3]])
