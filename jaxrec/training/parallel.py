"""Data parallelism over local devices and processes; the only place that knows `pmap`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.jax_utils
import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

_AXIS = 'devices'


class Parallel(NamedTuple):
  """Placement of states and batches on devices.

  Attributes:
    devices: number of local devices.
    average: averages a pytree over all devices of all processes, inside a
      function given to `compile`.
    compile: turns `(state, batch, key) -> outputs` for one device into the
      function over all devices; batch and outputs have a leading device axis.
    replicate: puts a copy of a pytree on every device.
    first: takes the pytree back from the first device.
    shard: splits the leading axis of a batch over the devices.
    map_batch: compiles `(constant, batch, ...) -> outputs` so that the batch is
      spread over the local devices; no process waits for another.
    total: sums an array over processes.
    barrier: waits until every process has come here.
    agree: the pytree of the first process, in all of them.
    part: number of this process.
    parts: number of processes.
    axis: name of the device axis, for batch norm.
  """

  devices: int
  average: Callable[[Any], Any]
  compile: Callable[[Callable], Callable]
  replicate: Callable[[Any], Any]
  first: Callable[[Any], Any]
  shard: Callable[[Any], Any]
  map_batch: Callable[[Callable], Callable]
  total: Callable[[np.ndarray], np.ndarray]
  barrier: Callable[[str], None]
  agree: Callable[[Any], Any]
  part: int
  parts: int
  axis: str


def data_parallel(num_devices: int | None = None) -> Parallel:
  """Parallelism over the first local devices, and over all processes.

  Args:
    num_devices: local devices to use; all if `None`.

  Returns:
    The functions that place and compile.

  Raises:
    ValueError: if there are fewer devices.
  """
  devices = jax.local_devices()
  if num_devices is not None:
    if not 1 <= num_devices <= len(devices):
      raise ValueError(f'train.num_devices: {num_devices} asked for, {len(devices)} present')
    if jax.process_count() == 1:
      devices = devices[:num_devices]
  count = len(devices)

  def shard(batch):
    def split(x):
      if x.shape[0] % count:
        raise ValueError(f'batch_size: {x.shape[0]} per process does not split over {count} devices')
      return np.asarray(x).reshape(count, x.shape[0] // count, *x.shape[1:])

    return jax.tree.map(split, batch)

  def compile_(function):
    # With several processes pmap spans all devices, and takes the local ones.
    chosen = devices if jax.process_count() == 1 else None
    return jax.pmap(function, axis_name=_AXIS, devices=chosen)

  mesh = jax.sharding.Mesh(np.array(devices), (_AXIS,))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(_AXIS))

  def replicate(tree):
    if jax.process_count() > 1:
      return flax.jax_utils.replicate(tree, devices)
    # Placed as pmap places its outputs: otherwise the second step compiles again.
    copies = jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), tree)
    return jax.device_put(copies, split)

  def map_batch(function):
    compiled = jax.jit(function)

    def run(constant, *batches):
      return compiled(jax.device_put(constant, everywhere), *jax.device_put(batches, split))

    return run

  def total(array):
    if jax.process_count() == 1:
      return array
    return np.sum(multihost_utils.process_allgather(np.asarray(array)), 0)

  def barrier(name):
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(name)

  def agree(tree):
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)

  # Processes have 30 seconds to find each other, and then any time: they meet before one of them writes a phantom.
  barrier('connected')
  return Parallel(
    devices=count,
    average=lambda tree: lax.pmean(tree, _AXIS),
    compile=compile_,
    replicate=replicate,
    first=lambda tree: jax.device_get(jax.tree.map(lambda x: x[0], tree)),
    shard=shard,
    map_batch=map_batch,
    total=total,
    barrier=barrier,
    agree=agree,
    part=jax.process_index(),
    parts=jax.process_count(),
    axis=_AXIS,
  )
