"""What tells one network from another, so that a run folder is not continued with another one."""

import functools
import hashlib
import inspect
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxrec.audit.plan import Sweep
from jaxrec.networks import Network, arrays_of, is_torch

_ADDRESS = re.compile(r' at 0x[0-9a-f]+')
_PLAIN = (str, bytes, int, float, complex, type(None), np.generic)


def digest(tree: Any) -> str:
  """Short name of arrays, texts and numbers in memory."""
  found = hashlib.sha256()
  for path, leaf in jax.tree.flatten_with_path(tree)[0]:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    found.update(f'{jax.tree_util.keystr(path)}'.encode())
    found.update(
      np.ascontiguousarray(leaf).tobytes() if isinstance(leaf, (jax.Array, np.ndarray)) else repr(leaf).encode()
    )
  return found.hexdigest()[:16]


def of_samples(samples: Any) -> str:
  """Short name of samples in memory, or of how many there are and what they are called if they are read one by one."""
  if isinstance(samples, dict):
    return digest(dict(samples))
  if isinstance(samples, (list, tuple)):
    return digest(samples)
  return digest([len(samples), *(map(str, samples) if isinstance(samples, Mapping) else ())])


def of_sweep(sweep: Sweep) -> str:
  """Short name of what a sweep is made of: family, search, objective and start, as far as `of_network` sees such things."""
  held = (sweep.family, sweep.search, sweep.objective, sweep.start)
  return digest([list(_values(part, '', {})) for part in held])


def of_network(network: Network) -> str:
  """Short name of a network: of its weights, wherever they are, and of its surrogate's.

  Of a function it takes the source and the values that the function refers to:
  defaults, closure, globals, and the same of the functions and objects of its own
  module; of those of other packages the numbers that they were made with, such as a
  step size. It sees neither what a function reads from files nor what other
  packages do.

  Args:
    network: any.

  Returns:
    The name; that of its variables alone if there is no more.
  """
  if network.inner is None and network.surrogate is None:
    return digest(network.variables)
  held = list(_values(network.inner, '', {}))
  return digest([network.variables, held, of_network(network.surrogate) if network.surrogate else ''])


def _values(value: Any, module: str, seen: dict[int, Any]) -> Iterator[Any]:
  """Arrays and texts that are the same in every process, in order; of what another module defines, its name."""
  if isinstance(value, _PLAIN):
    yield repr(value)
  elif isinstance(value, (np.ndarray, jax.Array)):
    yield value
  elif id(value) not in seen:
    # Kept, so that nothing else gets its id.
    seen[id(value)] = value
    yield _ADDRESS.sub('', repr(value) if isinstance(value, nn.Module) else _name(value))
    parts, module = _parts(value, module)
    for part in parts:
      yield from _values(part, module, seen)


def _name(value):
  return getattr(value, '__qualname__', type(value).__qualname__)


def _parts(value: Any, module: str) -> tuple[Any, str]:
  """What a value consists of, as far as images may depend on it, and whose functions are looked into."""
  if isinstance(value, Network):
    # Not its digest: a function may refer to the very network that is made of it.
    return [value.variables, value.inner, value.surrogate], module
  if is_torch(value):
    return [x for name, tensor in value.state_dict().items() for x in (name, _host(tensor))], module
  if isinstance(value, Mapping):
    return [x for item in value.items() for x in item], module
  if isinstance(value, (list, tuple)):
    return value, module
  if isinstance(value, functools.partial):
    return [value.func, value.args, value.keywords], module
  if isinstance(value, types.MethodType):
    return [value.__func__, value.__self__], module
  if hasattr(value, '__wrapped__'):
    return [value.__wrapped__], module
  if isinstance(value, (type, types.ModuleType)):
    return [], module
  if (arrays := arrays_of(value)) is not None:
    return arrays, module
  its = getattr(value, '__module__', '') or type(value).__module__
  if module and its != module:
    return _made_with(value), module
  if isinstance(value, types.FunctionType):
    return _of_function(value), its
  return [type(value).__call__ if callable(value) else '', getattr(value, '__dict__', '')], its


def _made_with(value):
  """What a function or an object of another package holds, if that is the same in every process."""
  plain = (*_PLAIN, np.ndarray, jax.Array, tuple, types.FunctionType)
  held = [x for x in _closed_over(value) if isinstance(x, (*plain, list, dict, functools.partial))]
  return held + [x for x in getattr(value, '__dict__', {}).values() if isinstance(x, plain)]


def _of_function(function):
  try:
    source = inspect.getsource(function)
  except (OSError, TypeError):  # Typed into an interpreter.
    source = function.__code__.co_code.hex()
  named = sorted(_named(function.__code__) & set(function.__globals__))
  values = {name: function.__globals__[name] for name in named}
  return [source, function.__defaults__, function.__kwdefaults__, _closed_over(function), values]


def _closed_over(value):
  return [cell.cell_contents for cell in getattr(value, '__closure__', None) or () if cell != types.CellType()]


def _named(code: types.CodeType) -> set[str]:
  """Globals that code, or code inside it, may refer to."""
  inside = [c for c in code.co_consts if isinstance(c, types.CodeType)]
  return set(code.co_names).union(*map(_named, inside))


def _host(tensor):
  try:
    return tensor.numpy(force=True)
  except TypeError:  # NumPy has no bfloat16.
    return tensor.float().numpy(force=True)
