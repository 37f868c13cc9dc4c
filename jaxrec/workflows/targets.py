"""Devices that a program can be compiled for without having them."""

import importlib.util
import os
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

_GIB = 1 << 30
_UNSET = 'UNKNOWN'  # Of JAX, for XLA's own default.


class Card(NamedTuple):
  """What XLA asks about a graphics card; sizes in bytes.

  Attributes:
    title: its name.
    memory: of the device.
    bandwidth: bytes per second.
    capability: CUDA compute capability.
    cores: multiprocessors.
    units: float32 units of each.
    threads: most threads on each.
    shared: shared memory of each.
    cache: second level.
    clock: GHz.
  """

  title: str
  memory: int
  bandwidth: float
  capability: tuple[int, int]
  cores: int
  units: int
  threads: int
  shared: int
  cache: int
  clock: float


# NVIDIA's data sheets and CUDA programming guide.
CARDS = {
  'h200': Card('NVIDIA H200', 140 * _GIB, 4.8e12, (9, 0), 132, 128, 2048, 233472, 52428800, 1.98),
  'h100': Card('NVIDIA H100 80GB HBM3', 84929347584, 3.352e12, (9, 0), 132, 128, 2048, 233472, 52428800, 1.98),
  'a100-80gb': Card('NVIDIA A100-SXM4-80GB', 80 * _GIB, 2.039e12, (8, 0), 108, 64, 2048, 167936, 41943040, 1.41),
  'a100-40gb': Card('NVIDIA A100-SXM4-40GB', 40 * _GIB, 1.555e12, (8, 0), 108, 64, 2048, 167936, 41943040, 1.41),
  'rtx4090': Card('NVIDIA GeForce RTX 4090', 24 * _GIB, 1.008e12, (8, 9), 128, 128, 1536, 102400, 75497472, 2.52),
  'rtx2080ti': Card('NVIDIA GeForce RTX 2080 Ti', 11 * _GIB, 6.16e11, (7, 5), 68, 64, 1024, 65536, 5767168, 1.545),
}
# Memory of a chip, by the kind in the name of a slice.
CHIPS = {'v4': 32 * _GIB, 'v5e': 16 * _GIB, 'v5p': 95 * _GIB, 'v6e': 32 * _GIB}
HERE = 'here'


class Target(NamedTuple):
  """Devices to compile for.

  Attributes:
    name: as given.
    devices: of JAX; they need not be present.
    memory: bytes that a program may take on each.
    options: of the compiler.
    effort: `jax_optimization_level` to compile with where the user set none.
  """

  name: str
  devices: list[Any]
  memory: int
  options: dict[str, Any]
  effort: str = _UNSET

  def compile(self, lowered: Any) -> Any:
    """Compiles a lowered program.

    Args:
      lowered: for these devices, of `jax.jit(...).lower(...)`.

    Returns:
      The compiled program.
    """
    before = _users_effort()
    jax.config.update('jax_optimization_level', self.level())
    try:
      return lowered.compile(compiler_options=self.options)
    finally:
      jax.config.update('jax_optimization_level', before)

  def level(self) -> str:
    """The effort with which `compile` compiles, `UNKNOWN` for XLA's own default."""
    chosen = _users_effort()
    return self.effort if chosen == _UNSET else chosen


def _users_effort():
  return jax.config.jax_optimization_level  # type: ignore[attr-defined]  # jax declares it at run time


def target(name: str, memory: int, devices: list[Any]) -> Target:
  """Devices by name.

  Args:
    name: `here`; one of `CARDS`; or a TPU slice such as `v5e:4x4` or `v5p:4x4x4`.
    memory: bytes that a program may take on each of the devices that are here.
    devices: those that are here.

  Returns:
    The target. Of a graphics card nine tenths of what JAX reserves may be taken,
    three quarters of it if `XLA_PYTHON_CLIENT_MEM_FRACTION` is not set, of a TPU
    nine tenths: libraries take memory too. For a TPU programs are compiled with
    effort O1 unless `JAX_OPTIMIZATION_LEVEL` says otherwise.

  Raises:
    ValueError: for an unknown name, or if the extra for it is not installed.
  """
  if name == HERE:
    return Target(name, devices, memory, {})
  if name in CARDS:
    _needs(name, 'cuda', 'jax_cuda12_plugin', 'jax_cuda13_plugin')
    card = CARDS[name]
    share = 0.9 * float(os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION', 0.75))
    found = topologies.get_topology_desc(
      platform='cuda', topology_name='', target_config=_described(card), topology='1x1x1'
    )
    # There is no card on which convolutions could be timed, nor one that knows which of them keep the order of their sums.
    options = {'xla_gpu_autotune_level': 0, 'xla_gpu_deterministic_ops': False}
    return Target(name, found.devices, int(share * card.memory), options)
  kind, colon, _ = name.partition(':')
  if kind not in CHIPS or not colon:
    raise ValueError(
      f'plan.targets: {name!r} is unknown; choose {HERE}, one of {", ".join(CARDS)}, or a TPU slice such as v5e:4x4 ({", ".join(CHIPS)})'
    )
  _needs(name, 'tpu', 'libtpu')
  # Without these libtpu asks the network which machine it is on.
  for variable, value in _NO_TPU.items():
    os.environ.setdefault(variable, value)
  try:
    found = topologies.get_topology_desc(platform='tpu', topology_name=name)
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    raise ValueError(f'plan.targets: {name}: libtpu knows no such slice ({str(error).splitlines()[0][:160]})') from None
  # Left to itself libtpu looks for the best form of every convolution, several times as long.
  return Target(name, found.devices, int(0.9 * CHIPS[kind]), {}, effort='O1')


_NO_TPU = {
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
}


def _needs(name, extra, *packages):
  if not any(map(importlib.util.find_spec, packages)):
    raise ValueError(f'plan.targets: {name} needs the extra, pip install jaxrec[{extra}]')


def _described(card):
  major, minor = card.capability
  return f"""
    gpu_device_info {{
      threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: {card.shared}
      threads_per_core_limit: {card.threads} core_count: {card.cores} fpus_per_core: {card.units}
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      memory_bandwidth: {int(card.bandwidth)} l2_cache_size: {card.cache} clock_rate_ghz: {card.clock}
      device_memory_size: {card.memory} shared_memory_per_block_optin: {max(card.shared - 1024, 65536)}
      cuda_compute_capability {{ major: {major} minor: {minor} }}
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 10 }}
    runtime_version {{ major: 12 minor: 9 patch: 0 }}
    device_description_str: "{card.title}"
  """
