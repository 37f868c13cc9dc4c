"""PyTorch checkpoints of the fastMRI repository, read without PyTorch.

The pickle inside a checkpoint may name only an ordered dictionary, tensors and
their storages; anything else is refused before it could run. No more memory is
taken than a small multiple of the file's size, whatever the file claims.
"""

import collections
import hashlib
import io
import pickle
import pickletools
import zipfile
from pathlib import Path

import flax.linen as nn
import numpy as np

from jaxrec.models.unet import UNetRecon
from jaxrec.models.varnet import VarNet

_DTYPES = {
  'FloatStorage': np.float32,
  'DoubleStorage': np.float64,
  'HalfStorage': np.float16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}
# Tied weights may share a storage, but tensors do not outgrow the file.
_MOST_SHARED = 4
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class WeightsError(ValueError):
  """A weight file that cannot be used; the message names the file and why."""


class _Tensor:
  def __init__(self, storage, offset, size, stride):
    self.storage, self.offset, self.size, self.stride = storage, offset, tuple(size), tuple(stride)


def _rebuild_tensor(storage, offset, size, stride, *_):
  return _Tensor(storage, offset, size, stride)


def _rebuild_parameter(data, *_):
  return data


class _Unpickler(pickle.Unpickler):
  """Knows tensors and ordered dictionaries, and nothing that could act."""

  _ALLOWED = {
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
    ('torch._utils', '_rebuild_parameter'): _rebuild_parameter,
  }

  def __init__(self, stream):
    super().__init__(stream)
    self.storages = {}

  def find_class(self, module, name):
    if (module, name) in self._ALLOWED:
      return self._ALLOWED[module, name]
    if module == 'torch' and name in _DTYPES:
      return name
    raise pickle.UnpicklingError(f'it holds {module}.{name}, which a state dict does not need')

  def persistent_load(self, pid):
    kind, dtype, key, _, count = pid[:5]
    if kind != 'storage' or dtype not in _DTYPES:
      raise pickle.UnpicklingError(f'unknown storage {dtype!r}')
    self.storages[key] = dtype
    return key, dtype, count


def read_state_dict(path: str | Path, *, sha256: str | None = None) -> dict[str, np.ndarray]:
  """Tensors of a PyTorch state dict (zip or legacy format) by name.

  Args:
    path: the `.pt` file. A dictionary with an entry `state_dict` or
      `model_state_dict` is opened too.
    sha256: expected hexadecimal digest of the file.

  Returns:
    NumPy arrays by name.

  Raises:
    WeightsError: if the file is missing, damaged, holds other objects, or has
      another digest.
  """
  path = Path(path)
  try:
    raw = path.read_bytes()
  except OSError as error:
    raise WeightsError(f'{path}: cannot be read ({error.strerror}); give an existing .pt file') from None
  if sha256 is not None and hashlib.sha256(raw).hexdigest() != sha256.lower():
    raise WeightsError(f'{path}: its SHA-256 is {hashlib.sha256(raw).hexdigest()}, not {sha256}; download it again')
  try:
    content, storages = _read_zip(raw) if zipfile.is_zipfile(io.BytesIO(raw)) else _read_legacy(raw)
    for name in ('state_dict', 'model_state_dict', 'state_dict'):
      if isinstance(content, dict) and isinstance(content.get(name), dict):
        content = content[name]
    if not isinstance(content, dict):
      raise ValueError(f'it holds a {type(content).__name__.lstrip("_").lower()}')
    tensors = {name: value for name, value in content.items() if isinstance(value, _Tensor) and isinstance(name, str)}
    _check_sizes(tensors, storages, len(raw))
    return {name: _array(value, storages) for name, value in tensors.items()}
  except (_Truncated, EOFError):
    raise WeightsError(f'{path}: not a PyTorch state dict (the file is truncated); download or copy it again') from None
  except (ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
    raise WeightsError(f'{path}: not a PyTorch state dict ({error}); save model.state_dict()') from None
  except Exception as error:  # Damaged pickles raise whatever they stumble over.
    raise WeightsError(
      f'{path}: not a PyTorch state dict (it is damaged: {type(error).__name__} {error}); download or copy it again'
    ) from None


class _Truncated(Exception):
  """The file ends too early."""


def _check_sizes(tensors, storages, file_size):
  total = 0
  for name, tensor in tensors.items():
    key, dtype, _ = tensor.storage
    size = int(np.prod(tensor.size, dtype=object)) * np.dtype(_DTYPES[dtype]).itemsize
    total += size
    # A stride of 0 would make any number of values out of one.
    if size > len(storages[key]) or total > _MOST_SHARED * file_size:
      raise ValueError(f'tensor {name} of shape {tensor.size} claims more than the file holds')


def _array(tensor, storages):
  key, dtype, _ = tensor.storage
  flat = np.frombuffer(storages[key], _DTYPES[dtype])
  itemsize = flat.itemsize
  last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.size, tensor.stride)) + 1
  if tensor.offset < 0 or any(s < 0 for s in tensor.stride) or last > flat.size:
    raise ValueError('a tensor reaches outside its storage')
  strides = tuple(s * itemsize for s in tensor.stride)
  return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.size, strides, writeable=False).copy()


def _read_zip(raw):
  with zipfile.ZipFile(io.BytesIO(raw)) as archive:
    claimed = sum(entry.file_size for entry in archive.infolist())
    # PyTorch stores, and never compresses or shares: nothing it writes unpacks to more than the file.
    if claimed > len(raw):
      raise ValueError(f'it would unpack from {len(raw):,} to {claimed:,} bytes, which no file of torch.save does')
    names = archive.namelist()
    root = next((n for n in names if n.endswith('data.pkl')), None)
    if root is None:
      raise ValueError('it is a zip archive without data.pkl')
    root = root[: -len('data.pkl')]
    content = _load(_Unpickler, io.BytesIO(archive.read(root + 'data.pkl')))
    data = root + 'data/'
    return content, {n[len(data) :]: archive.read(n) for n in names if n.startswith(data)}


def _load(unpickler, stream):
  """One pickle; the unpickler may be a class, or an instance that already has the stream."""
  start = stream.tell()
  try:
    for code, argument, _ in pickletools.genops(stream):
      # The memo is an array: a large index takes memory for all below it.
      if 'PUT' in code.name and argument is not None and argument > stream.getbuffer().nbytes:
        raise pickle.UnpicklingError('its pickle is malicious')
  except ValueError:
    if stream.tell() == stream.getbuffer().nbytes:
      raise _Truncated from None
    raise ValueError('it is neither a zip archive nor a pickle of torch.save') from None
  stream.seek(start)
  return (unpickler(stream) if isinstance(unpickler, type) else unpickler).load()


def _read_legacy(raw):
  # What begins as a zip archive and has no directory at its end has lost that end.
  if not raw or raw.startswith(b'PK\x03\x04'):
    raise _Truncated
  stream = io.BytesIO(raw)
  if _load(_Unpickler, stream) != _LEGACY_MAGIC:
    raise ValueError('it is a pickle, but none of torch.save')
  _load(_Unpickler, stream)
  _load(_Unpickler, stream)
  unpickler = _Unpickler(stream)
  content = _load(unpickler, stream)
  storages = {}
  for key in _load(_Unpickler, stream):
    count = int.from_bytes(stream.read(8), 'little')
    size = count * np.dtype(_DTYPES[unpickler.storages[key]]).itemsize
    # Asked first: to read more than there is would not fail before it has been tried.
    if size > stream.getbuffer().nbytes - stream.tell():
      raise _Truncated
    storages[key] = stream.read(size)
  return content, storages


def load_fastmri(path: str | Path, kind: str, *, sha256: str | None = None) -> tuple[nn.Module, dict]:
  """Network and variables of a published fastMRI state dict.

  Args:
    path: `.pt` file of `fastmri.models.VarNet` or `Unet`.
    kind: `varnet` or `unet`; sizes are inferred from the shapes.
    sha256: expected digest of the file.

  Returns:
    `(module, variables)`; the module is a `VarNet` or a `UNetRecon` with the
    full field of view.

  Raises:
    WeightsError: if the file cannot be used; the message names the tensor.
    ValueError: for an unknown kind.
  """
  if kind not in ('varnet', 'unet'):
    raise ValueError(f'kind: {kind!r} is unknown; choose varnet or unet')
  state = _StateDict(path, read_state_dict(path, sha256=sha256))
  if kind == 'unet':
    pools, chans, params = _unet(state, '')
    module = UNetRecon(chans=chans, pools=pools)
    params = {'unet': params}
  else:
    module, params = _varnet(state)
  state.finish()
  return module, {'params': params}


class _StateDict:
  """Takes tensors by name and checks their shapes and that none is left."""

  def __init__(self, path, tensors):
    self.path = path
    self.tensors = {_strip(name): value for name, value in tensors.items()}
    if len(self.tensors) < len(tensors):
      counts = collections.Counter(map(_strip, tensors))
      raise WeightsError(f'{path}: has more than one tensor {counts.most_common(1)[0][0]}; save one network')

  def __contains__(self, name):
    return name in self.tensors

  def take(self, name, shape):
    if name not in self.tensors:
      raise WeightsError(f'{self.path}: tensor {name} is missing; is this another kind of network?')
    value = self.tensors.pop(name)
    if len(value.shape) != len(shape) or any(want not in (None, got) for want, got in zip(shape, value.shape)):
      raise WeightsError(f'{self.path}: tensor {name} has shape {value.shape}, expected {shape}')
    if not np.isfinite(value).all():
      raise WeightsError(f'{self.path}: tensor {name} holds values that are not finite')
    return value

  def finish(self):
    if self.tensors:
      raise WeightsError(f'{self.path}: tensor {next(iter(self.tensors))} is not part of this kind of network')


def _strip(name):
  for prefix in ('module.', 'varnet.', 'unet.'):
    name = name.removeprefix(prefix)
  return name


def _unet(state, prefix, images=1):
  first = f'{prefix}down_sample_layers.0.layers.0.weight'
  if first not in state:
    raise WeightsError(f'{state.path}: tensor {first} is missing; is this another kind of network?')
  chans, inputs = state.tensors[first].shape[:2]
  if inputs != images:
    raise WeightsError(f'{state.path}: tensor {first} takes {inputs} channels, expected {images}')
  pools = sum(f'{prefix}down_sample_layers.{i}.layers.0.weight' in state for i in range(64))

  def block(name, n_in, n_out):
    kernels = [state.take(f'{prefix}{name}.layers.{i}.weight', (n_out, n, 3, 3)) for i, n in ((0, n_in), (4, n_out))]
    return {f'Conv_{i}': {'kernel': kernel.transpose(2, 3, 1, 0)} for i, kernel in enumerate(kernels)}

  params = {}
  for level in range(pools):
    width = chans * 2**level
    params[f'down_{level}'] = block(f'down_sample_layers.{level}', width // 2 if level else inputs, width)
    up = pools - 1 - level
    last = '.0' if level == 0 else ''
    params[f'merge_{level}'] = block(f'up_conv.{up}{last}', 2 * width, width)
    kernel = state.take(f'{prefix}up_transpose_conv.{up}.layers.0.weight', (2 * width, width, 2, 2))
    params[f'up_{level}'] = {'kernel': kernel.transpose(0, 2, 3, 1)}
  params['bottom'] = block('conv', chans * 2 ** (pools - 1), chans * 2**pools)
  kernel = state.take(f'{prefix}up_conv.{pools - 1}.1.weight', (images, chans, 1, 1))
  bias = state.take(f'{prefix}up_conv.{pools - 1}.1.bias', (images,))
  params['out'] = {'kernel': kernel.transpose(2, 3, 1, 0), 'bias': bias}
  return pools, chans, params


def _varnet(state):
  num_cascades = sum(f'cascades.{i}.dc_weight' in state for i in range(256))
  if not num_cascades:
    raise WeightsError(f'{state.path}: tensor cascades.0.dc_weight is missing; is this another kind of network?')
  sens_pools, sens_chans, sens = _unet(state, 'sens_net.norm_unet.unet.', 2)
  cascades = []
  for i in range(num_cascades):
    pools, chans, params = _unet(state, f'cascades.{i}.model.unet.', 2)
    weight = state.take(f'cascades.{i}.dc_weight', (1,))[0]
    cascades.append({'dc_weight': weight, 'norm_unet': {'unet': params}})
  module = VarNet(num_cascades=num_cascades, chans=chans, pools=pools, sens_chans=sens_chans, sens_pools=sens_pools)
  return module, {'sens': {'norm_unet': {'unet': sens}}, 'cascades': _stack(cascades)}


def _stack(trees):
  if isinstance(trees[0], dict):
    return {key: _stack([tree[key] for tree in trees]) for key in trees[0]}
  return np.stack(trees)
