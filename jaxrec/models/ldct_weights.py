"""PyTorch checkpoints of the ldct-benchmark repository, read without PyTorch."""

from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from jaxrec.models.denoisers import CNN10, REDCNN, WGANVGG
from jaxrec.models.weights import WeightsError, read_state_dict


def _conv(weight):
  return weight.transpose(2, 3, 1, 0)


def _transposed(weight):
  # A transposed convolution is a convolution with the flipped kernel and swapped channels.
  return np.flip(weight, (2, 3)).transpose(2, 3, 0, 1)


def _chain(prefix: str, count: int) -> dict[str, tuple[str, Callable]]:
  return {f'conv_{i + 1}': (f'{prefix}.{2 * i}', _conv) for i in range(count)}


_RED = {f'conv_{i}': (f'conv{i}', _conv) for i in range(1, 6)} | {
  f'transposed_{i}': (f'tconv{i}', _transposed) for i in range(1, 6)
}
_KINDS = {
  'cnn10': (CNN10, _chain('layers', 3)),
  'redcnn': (REDCNN, _RED),
  'wganvgg': (WGANVGG, _chain('net', 8)),
  'dugan': (REDCNN, _RED),
}


def load_ldct(path: str | Path, kind: str, *, sha256: str | None = None) -> tuple[nn.Module, dict]:
  """A denoiser with the weights of an ldct-benchmark checkpoint.

  Args:
    path: the `.pt` file.
    kind: `cnn10`, `redcnn`, `wganvgg` or `dugan`.
    sha256: expected hexadecimal digest of the file.

  Returns:
    The module, its size taken from the weights, and its variables.

  Raises:
    WeightsError: for an unknown kind, a file that cannot be read, or names and
      shapes that do not fit.

  Reference:
    Eulig, Ommer and Kachelriess 2024, Benchmarking deep learning-based low-dose
    CT image denoising algorithms.
  """
  if kind not in _KINDS:
    raise WeightsError(f'kind: {kind!r} is unknown; choose one of {", ".join(_KINDS)}')
  state = {name.removeprefix('module.'): value for name, value in read_state_dict(path, sha256=sha256).items()}
  make, table = _KINDS[kind]
  if make is REDCNN:
    chans = state['conv1.weight'].shape[0] if state.get('conv1.weight') is not None else 96
    module = REDCNN(chans)
  else:
    module = make()
  params = {}
  for layer, (theirs, convert) in table.items():
    for name in ('weight', 'bias'):
      if f'{theirs}.{name}' not in state:
        raise WeightsError(f'{path}: {theirs}.{name} is missing; it is no {kind} of ldct-benchmark')
    weight, bias = state.pop(f'{theirs}.weight'), state.pop(f'{theirs}.bias')
    if weight.ndim != 4:
      raise WeightsError(f'{path}: {theirs}.weight has shape {weight.shape}; expected four axes')
    params[layer] = {'kernel': np.ascontiguousarray(convert(weight), np.float32), 'bias': bias.astype(np.float32)}
  if state:
    raise WeightsError(f'{path}: {next(iter(state))} is unknown; it is no {kind} of ldct-benchmark')
  _check(path, module, params)
  return module, {'params': params}


def _check(path, module, params):
  expected = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((64, 64), np.float32))['params']
  for layer, values in expected.items():
    for name, value in values.items():
      if params[layer][name].shape != value.shape:
        raise WeightsError(f'{path}: {layer}.{name} has shape {params[layer][name].shape}; expected {value.shape}')
