"""Shared by the benchmarks: the same network in jaxrec and in torch, and alternating timing."""

import importlib.machinery
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / 'results'


def kspace(coils, rows, cols):
  """Coil k-space of an ellipse, a mask and its centre, as NumPy arrays."""
  import numpy as np

  from jaxrec import masks

  rng = np.random.default_rng(0)
  y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : cols * 1j]
  image = (y**2 + x**2 < 0.7) * (1 + 0.3 * np.sin(9 * x) * np.cos(7 * y))
  turn = np.linspace(0, 2 * np.pi, coils, endpoint=False)[:, None, None]
  maps = np.exp(-((y - np.sin(turn)) ** 2) - (x - np.cos(turn)) ** 2 + 1j * turn)
  k = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image * maps, (-2, -1)), norm='ortho'), (-2, -1))
  k = k + 0.02 * (rng.standard_normal(k.shape) + 1j * rng.standard_normal(k.shape))
  line = masks.line_mask('random', cols, center_fractions=[0.08], accelerations=[4], seed=0)
  return k.astype(np.complex64), line.mask, line.acs


def torch_varnet(cascades, chans, sens_chans):
  """The fastMRI package's VarNet with seeded random weights."""
  import types

  for name in ('pandas', 'requests', 'yaml'):
    # fastmri is installed without its dependencies; VarNet needs none of them.
    try:
      __import__(name)
    except ImportError:
      sys.modules[name] = stub = types.ModuleType(name)
      stub.__spec__ = importlib.machinery.ModuleSpec(name, None)
      stub.Series = stub.DataFrame = object
  import torch
  from fastmri.models import VarNet

  # Float32 on both sides: torch takes TF32 for convolutions where it can.
  torch.backends.cudnn.allow_tf32 = False
  torch.manual_seed(0)
  net = VarNet(num_cascades=cascades, chans=chans, sens_chans=sens_chans).eval()
  return net.cuda() if torch.cuda.is_available() else net


def jaxrec_varnet(weights, shape):
  """The same network in jaxrec, its variables, and a scan whose target it misses by 10%."""
  import jax
  import jax.numpy as jnp

  import jaxrec

  module, variables = jaxrec.models.load_fastmri(weights, 'varnet')
  variables = jax.device_put(variables)
  k, mask, acs = map(jnp.asarray, kspace(*shape))
  blank = jaxrec.Scan(k, mask, acs, jnp.ones_like(mask), jnp.ones(shape[1:]), jnp.ones(shape[1:]), jnp.float32(1))
  target = 0.9 * jax.jit(jaxrec.models.bind(module))(variables, blank)
  return module, variables, blank.replace(target=target, scale=target.max())


def peak_memory(side='jaxrec'):
  """Peak of this process or of its device, in GB; of one side, as each allocates by itself."""
  if side == 'torch':
    import torch

    if torch.cuda.is_available():
      return torch.cuda.max_memory_allocated() / 1e9
  else:
    import jax

    if jax.default_backend() != 'cpu':
      return jax.local_devices()[0].memory_stats()['peak_bytes_in_use'] / 1e9
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def serve(build, side):
  """Worker: builds one side, then runs it once per line of standard input.

  Args:
    build: returns a function that does the work once and waits for it.
    side: `torch` or `jaxrec`.
  """
  start = time.perf_counter()
  work = build()
  work()
  print(json.dumps({'first': time.perf_counter() - start, 'device': device() if side == 'jaxrec' else ''}), flush=True)
  for _ in sys.stdin:
    start = time.perf_counter()
    work()
    print(json.dumps({'seconds': time.perf_counter() - start, 'peak_gb': peak_memory(side)}), flush=True)


def alternate(script, arguments, sides, repeats):
  """Runs the sides in processes of their own, in turns.

  Returns:
    By side, the time of the first call (with compilation), the times, the peak memory.
  """
  # One side computes at a time: each worker waits for its line.
  found = {}
  workers = {}
  for side in sides:
    # The side of torch draws its masks with jaxrec, which shall not take memory of the card.
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'} if side == 'torch' else None
    workers[side] = subprocess.Popen(
      [sys.executable, '-m', script, f'--side={side}', *arguments],
      env=environment,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    found[side] = {**_answer(workers[side], script, side), 'times': []}
  for _ in range(repeats):
    for side, worker in workers.items():
      worker.stdin.write('\n')
      worker.stdin.flush()
      answer = _answer(worker, script, side)
      found[side]['times'].append(answer['seconds'])
      found[side]['peak_gb'] = answer['peak_gb']
  for worker in workers.values():
    worker.stdin.close()
    worker.wait()
  return found


def _answer(worker, script, side):
  line = worker.stdout.readline()
  if not line:
    sys.exit(f'{script}: side {side} stopped with exit code {worker.wait()}')
  return json.loads(line)


def report(name, work, shape, found, per=1):
  """Prints medians, ratios, compile time and memory; appends them to `results/`."""
  import numpy as np

  medians = {side: float(np.median(f['times'])) / per for side, f in found.items()}
  for side, f in found.items():
    spread = ', '.join(f'{t / per:.2f}' for t in f['times'])
    print(
      f'{work:9s} {shape}: {side:6s} {medians[side]:8.3f} s [{spread}], first call {f["first"]:6.1f} s, peak {f["peak_gb"]:.2f} GB'
    )
  line = {
    'work': work, 'shape': shape, 'medians': medians, 'times': {s: f['times'] for s, f in found.items()},
    'first_call': {s: f['first'] for s, f in found.items()}, 'peak_gb': {s: f['peak_gb'] for s, f in found.items()},
    'device': found['jaxrec']['device'], 'versions': {p: importlib.metadata.version(p) for p in ('jax', 'flax', 'torch', 'fastmri', 'numpy')},
    'date': time.strftime('%Y-%m-%d'),
  }  # fmt: skip
  if set(medians) == {'torch', 'jaxrec'}:
    line['speedup'] = medians['torch'] / medians['jaxrec']
    line['memory_ratio'] = found['jaxrec']['peak_gb'] / found['torch']['peak_gb']
    print(
      f'{work:9s} {shape}: jaxrec is {line["speedup"]:.2f} times as fast, with {line["memory_ratio"]:.2f} of the memory'
    )
  RESULTS.mkdir(exist_ok=True)
  with open(RESULTS / f'{name}.jsonl', 'a') as stream:
    stream.write(json.dumps(line) + '\n')


def device():
  """What the benchmark ran on."""
  import jax

  found = jax.devices()[0]
  if found.platform != 'cpu':
    return f'{found.platform} {found.device_kind}'
  return f'cpu {platform.machine()}, {os.cpu_count()} cores'
