"""Data parallelism over local devices and processes; the only place that knows `pmap`."""

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax._src import distributed
from jax.experimental import multihost_utils

from jaxrec.training.draws import Place

_AXIS = 'devices'
_WEEK = 7 * 24 * 3600 * 1000
_meetings = itertools.count()


def barrier(name: str) -> None:
  """Waits until every process has come here, for days if need be.

  Not a sum over devices: those of CPUs give up after half an hour.

  Args:
    name: of the place, for messages.

  Raises:
    RuntimeError: if another process has ended.
  """
  if jax.process_count() == 1:
    return
  if (client := distributed.global_state.client) is None:  # A TPU pod that connected by itself.
    multihost_utils.sync_global_devices(name)
  else:
    # Every process passes the same places in the same order, so that they count alike.
    client.wait_at_barrier(f'{name} {next(_meetings)}', _WEEK)


class BatchProgram:
  """A function of a constant and batches, whose examples are spread over the local devices."""

  def __init__(self, function: Callable, devices: Sequence[Any]):
    mesh, spec = _mesh(devices), jax.sharding.PartitionSpec
    self._whole, self._split = (jax.sharding.NamedSharding(mesh, s) for s in (spec(), spec(_AXIS)))
    self._function = function
    self._compiled: dict[tuple, Any] = {}

  def compile(self, constant: Any, *batches: Any):
    """The program for arrays or `jax.ShapeDtypeStruct`s of these shapes."""
    shapes = tuple(x.shape for x in jax.tree.leaves(batches))
    if shapes not in self._compiled:
      self._compiled[shapes] = self.lower(constant, *batches).compile()
    return self._compiled[shapes]

  def lower(self, constant: Any, *batches: Any):
    """As `jax.jit(...).lower`; the devices need not be here."""
    # Each device runs its examples by itself. Left to choose, XLA exchanges them in the middle of a network.
    mapped = jax.shard_map(
      self._function, mesh=self._split.mesh, in_specs=(self._whole.spec, *(self._split.spec,) * len(batches)),
      out_specs=self._split.spec, check_vma=False,
    )  # fmt: skip
    return jax.jit(mapped).lower(_at(self._whole, constant), *_at(self._split, batches))

  def __call__(self, constant: Any, *batches: Any) -> Any:
    placed = jax.device_put(constant, self._whole), *jax.device_put(batches, self._split)
    return self.compile(*placed)(*placed)


class Program:
  """A step over all devices, compiled once for every shape of its batch.

  The state is donated: its memory holds the new one.
  """

  def __init__(self, function: Callable, devices: Sequence[Any]):
    # With several processes pmap spans all devices, and takes the local ones.
    self._alone = jax.process_count() == 1
    self._mapped = jax.pmap(function, axis_name=_AXIS, devices=devices if self._alone else None, donate_argnums=0)
    self._function, self._devices = function, devices
    self._compiled: dict[tuple, Any] = {}

  def compile(self, state: Any, batch: Any, key: Any):
    """The program for these arrays or `jax.ShapeDtypeStruct`s, each with a leading device axis.

    With several processes it is one of the devices of this process alone, which
    takes the same memory.
    """
    shapes = tuple(x.shape for x in jax.tree.leaves(batch))
    if shapes not in self._compiled:
      self._compiled[shapes] = (self._mapped.lower if self._alone else self._lower_local)(state, batch, key).compile()
    return self._compiled[shapes]

  def _lower_local(self, state, batch, key):
    state, key = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (state, key))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] * x.shape[1], *x.shape[2:]), x.dtype), batch)
    return lower(self._devices, self._function, state, batch, key)

  def __call__(self, state: Any, batch: Any, key: Any) -> tuple[Any, Any]:
    if not self._alone:
      # It turns the arrays of this process into its part of those of all.
      return self._mapped(state, batch, key)
    return self.compile(state, batch, key)(state, batch, key)


class Parallel(NamedTuple):
  """Placement of states and batches on devices.

  Attributes:
    devices: number of local devices.
    average: averages a pytree over all devices of all processes, inside a
      function given to `compile`.
    place: from the number of a device's examples to where the first of them is in
      the batch of all devices of all processes, and to the size of that batch;
      inside a function given to `compile`.
    compile: turns `(state, batch, key) -> outputs` for one device into the
      `Program` over all devices; batch and outputs have a leading device axis.
    replicate: puts a copy of a pytree on every device.
    first: takes the pytree back from the first device.
    shard: splits the leading axis of a batch over the devices, and starts to
      copy it there.
    map_batch: turns `(constant, batch, ...) -> outputs` into a `BatchProgram`,
      spread over the local devices; no process waits for another.
    total: sums an array over processes.
    barrier: waits until every process has come here.
    agree: the pytree of the first process, in all of them.
    part: number of this process.
    parts: number of processes.
    axis: name of the device axis, for batch norm; `None` for a program that is not spread.
    memory: bytes that a program may take on each device.
  """

  devices: int
  average: Callable[[Any], Any]
  place: Place
  compile: Callable[[Callable], Program]
  replicate: Callable[[Any], Any]
  first: Callable[[Any], Any]
  shard: Callable[[Any], Any]
  map_batch: Callable[[Callable], BatchProgram]
  total: Callable[[np.ndarray | np.generic], np.ndarray]
  barrier: Callable[[str], None]
  agree: Callable[[Any], Any]
  part: int
  parts: int
  axis: str | None
  memory: int


def data_parallel(num_devices: int | None = None) -> Parallel:
  """Parallelism over the local devices, and over all processes.

  Args:
    num_devices: the first so many of one process; all if `None`.

  Returns:
    The functions that place and compile.

  Raises:
    ValueError: if there are fewer devices, or several processes are to use a part.
  """
  devices = jax.local_devices()
  if num_devices is not None:
    if not 1 <= num_devices <= len(devices):
      raise ValueError(f'train.num_devices: {num_devices} asked for, {len(devices)} present')
    if jax.process_count() > 1 and num_devices < len(devices):
      raise ValueError(
        f'train.num_devices: {num_devices} of {len(devices)} devices is for one process; set it to 0, and start processes that see fewer'
      )
    devices = devices[:num_devices]
  count = len(devices)

  def shard(batch):
    def split(x):
      if x.shape[0] % count:
        raise ValueError(f'batch_size: {x.shape[0]} per process does not split over {count} devices')
      return np.asarray(x).reshape(count, x.shape[0] // count, *x.shape[1:])

    return place(jax.tree.map(split, batch))

  mesh = _mesh(devices)
  spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(_AXIS))

  def place(tree):
    # Placed as pmap places its outputs: otherwise the second step compiles again.
    return tree if jax.process_count() > 1 else jax.device_put(tree, spread)

  def replicate(tree):
    return jax.device_put(jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), tree), spread)

  def first(tree):
    # `x[0]` would run a program on the device, behind the steps that are queued there.
    return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data).reshape(x.shape[1:]), tree)

  def total(array):
    if jax.process_count() == 1:
      return array
    barrier('total')
    return np.sum(multihost_utils.process_allgather(np.asarray(array)), 0)

  def agree(tree):
    barrier('agree')
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)

  memory = _memory(devices)
  # Devices of CPUs have 30 seconds to find each other: all at once, before one process writes a phantom.
  barrier('connect')
  if jax.process_count() > 1:
    # What is chosen by it must be one program.
    memory = int(multihost_utils.process_allgather(np.int32(memory >> 20)).min()) << 20
  return Parallel(
    devices=count,
    average=lambda tree: lax.pmean(tree, _AXIS),
    place=lambda count: (lax.axis_index(_AXIS) * count, lax.axis_size(_AXIS) * count),
    compile=functools.cache(lambda function: Program(function, devices)),
    replicate=replicate,
    first=first,
    shard=shard,
    map_batch=lambda function: BatchProgram(function, devices),
    total=total,
    barrier=barrier,
    agree=agree,
    part=jax.process_index(),
    parts=jax.process_count(),
    axis=_AXIS,
    memory=memory,
  )


def lower(devices: Sequence[Any], function: Callable, state: Any, batch: Any, key: Any, *, donate: bool = True):
  """A step as `Parallel.compile` runs it, lowered for devices that need not be here.

  Args:
    devices: of one kind, such as those of `jax.experimental.topologies`.
    function: `(state, batch, key) -> (state, metrics)` for one device's share.
    state: shapes of the state of one device.
    batch: shapes of the batch of all devices.
    key: shape of one key.
    donate: whether the memory of the state is given away.

  Returns:
    What `jax.jit(...).lower` returns.
  """
  mesh, spec = _mesh(devices), jax.sharding.PartitionSpec
  whole, split = (jax.sharding.NamedSharding(mesh, s) for s in (spec(), spec(_AXIS)))

  def each(state, batch, keys):
    return function(state, batch, keys[0])

  mapped = jax.shard_map(
    each, mesh=mesh, in_specs=(spec(), spec(_AXIS), spec(_AXIS)), out_specs=spec(), check_vma=False
  )
  keys = jax.tree.map(lambda x: jax.ShapeDtypeStruct((mesh.size, *x.shape), x.dtype), key)
  return jax.jit(mapped, donate_argnums=0 if donate else ()).lower(_at(whole, state), *_at(split, (batch, keys)))


def _mesh(devices):
  return jax.sharding.Mesh(np.array(devices).reshape(-1), (_AXIS,))


def _at(sharding, tree):
  def place(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) if isinstance(x, jax.ShapeDtypeStruct) else x

  return jax.tree.map(place, tree)


def _memory(devices):
  """What a program may take: nine tenths of a device, the rest for libraries; of the CPU, three quarters of this process's memory.

  Not what is free at the moment: the choice that depends on it would not repeat.
  """
  stats = [device.memory_stats() or {} for device in devices if device.platform != 'cpu']
  if stats and all('bytes_limit' in s for s in stats):
    return int(0.9 * min(s['bytes_limit'] for s in stats))
  return int(0.75 * min([os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'), *_limits()])) // len(devices)


def _limits(groups: Path = Path('/proc/self/cgroup'), root: Path = Path('/sys/fs/cgroup')):
  """Bytes that the control groups of this process allow: those of a container or of a job."""
  with contextlib.suppress(OSError):
    for line in groups.read_text().splitlines():
      _, controllers, path = line.split(':', 2)
      if not controllers:
        top, name = root, 'memory.max'
      elif 'memory' in controllers.split(','):
        top, name = root / 'memory', 'memory.limit_in_bytes'
      else:
        continue
      folder = top / path.strip('/')
      for place in (folder, *folder.parents):
        if place.is_relative_to(top):
          with contextlib.suppress(OSError, ValueError):  # 'max' is no limit.
            yield int((place / name).read_text())
