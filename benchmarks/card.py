"""Runs the programs that the plan compiles, on the device that is here: seconds, memory, and whether they repeat bit for bit.

  python -m benchmarks.card [--configs varnet_8x varnet_8x_full] [--programs train coil_noise rotation] [--repeats 5] [-- overrides]

The inputs are random, of the size `plan.shape`; the measurement is that of an ellipse. Each program runs in a process of its own,
so that the peak of the device's memory is its own. `planned` is what XLA's analysis says that it takes, on this device. The digest is
that of what one run gives: equal digests of two rows are two processes that agree bit for bit. `order` says whether XLA was told to sum
in a fixed order, as programs of jaxrec do (XLA_FLAGS=--xla_gpu_deterministic_ops=true), `together` how many strengths of a search or
points of a grid are computed together (attack.chunk). Rows go to benchmarks/results/card.jsonl.
"""

import argparse
import hashlib
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import common

ROOT = Path(__file__).parents[1]


def filled(info, rng):
  """Random arrays of the shapes of a program's arguments; measurements are of an ellipse."""
  import jax
  import numpy as np

  import jaxrec

  def one(x):
    kind, shape = x.dtype, x.shape
    if jax.numpy.issubdtype(kind, jax.dtypes.prng_key):
      return jax.random.split(jax.random.key(0), shape)
    if np.issubdtype(kind, np.bool_) or np.issubdtype(kind, np.integer):
      return np.zeros(shape, kind)
    return (0.1 * abs(rng.standard_normal(shape, np.float32))).astype(kind)

  def scan(x):
    kspace, mask, acs = common.kspace(*x.kspace.shape[-3:])
    given = dict(kspace=kspace, mask=mask, acs=acs, acquired=np.ones_like(mask))
    given = {name: np.broadcast_to(value, getattr(x, name).shape) for name, value in given.items()}
    target = one(x.target)
    return x.replace(
      **given, target=target, region=np.ones(x.region.shape, np.float32), scale=np.full(x.scale.shape, target.max())
    )

  def either(x):
    return scan(x) if isinstance(x, jaxrec.Scan) else one(x)

  return jax.tree.map(either, info, is_leaf=lambda x: isinstance(x, jaxrec.Scan))


def measured(config, name, repeats, overrides):
  """One program, compiled and run; prints its row."""
  import jax
  import numpy as np

  from jaxrec import results
  from jaxrec.experiments import build
  from jaxrec.program import sums_keep_order
  from jaxrec.training import data_parallel, memory
  from jaxrec.workflows import plan, targets

  # As `experiments.run` does.
  jax.config.update('jax_default_matmul_precision', 'highest')
  module, _, profile = config.partition(':')
  made = importlib.import_module(f'configs.{module}').get_config(profile)
  made.stages, made.plan.targets, made.plan.programs = ('plan',), ('here',), (name,)
  made.update_from_flattened_dict({key: json.loads(value) for key, value in overrides})
  here = data_parallel()
  with tempfile.TemporaryDirectory() as folder:
    (work,) = plan.programs(build.build(made, folder), here)
  devices = jax.local_devices()
  start = time.perf_counter()
  found, compiled = plan.fitted(work, targets.target(targets.HERE, here.memory, devices))
  at_once = found or work.sizes(len(devices))[0]
  program = compiled(at_once)
  compile_seconds = time.perf_counter() - start
  if repeats < 0:
    return print(f'compiled in {compile_seconds:.0f} s')
  planned = memory.needed_memory(program)
  arguments = filled(program.args_info[0], np.random.default_rng(0))
  where = program.input_shardings[0]
  times, digests, finite = [], [], True
  for _ in range(repeats + 1):
    # The state is donated, so that every run needs its own.
    placed = jax.block_until_ready(jax.device_put(arguments, where))
    start = time.perf_counter()
    out = jax.block_until_ready(program(*placed))
    times.append(time.perf_counter() - start)
    if len(digests) < 2:
      leaves = [np.asarray(x) for x in jax.tree.leaves(out) if not jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)]
      digests.append(hashlib.sha256(b''.join(x.tobytes() for x in leaves)).hexdigest()[:12])
      finite = bool(finite and all(np.isfinite(x).all() for x in leaves))
    del placed, out
  batch = work.batch(len(devices), at_once)
  seconds, gflop = float(np.median(times[1:])), work.flops() * batch / 1e9
  row = {
    'config': config, 'program': name, 'dtype': made.model.get('dtype', 'float32'), 'overrides': dict(overrides),
    'order': 'fixed' if sums_keep_order() else 'any', 'batch': batch, 'at_once': at_once,
    'together': '' if name == 'train' else made.attack.chunk or 1, 'seconds': seconds,
    'times': times[1:], 'seconds_per_example': seconds / batch, 'gflop': gflop, 'gflops': gflop / seconds,
    'compile_seconds': compile_seconds, 'planned_gbytes': planned / 1e9, 'peak_gbytes': common.peak_memory(), 'finite': finite,
    'repeats': digests[0] == digests[1], 'digest': digests[0], 'xla_flags': os.environ.get('XLA_FLAGS', ''), 'device': common.device(), 'revision': results.git_revision(),
    'versions': {p: importlib.metadata.version(p) for p in ('jax', 'flax', 'numpy')}, 'date': time.strftime('%Y-%m-%d'),
  }  # fmt: skip
  print(json.dumps(row), flush=True)


def main():
  """Runs what was asked for, each in its own process."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--configs', nargs='+', default=['varnet_8x', 'varnet_8x_full'])
  parser.add_argument('--programs', nargs='+', default=['train', 'coil_noise', 'rotation'])
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--one', action='store_true', help=argparse.SUPPRESS)
  parser.add_argument('overrides', nargs='*', help='options of the config, such as attack.batch_size=0, after --')
  options = parser.parse_args()
  if options.one:
    pairs = [tuple(text.split('=', 1)) for text in options.overrides]
    return measured(options.configs[0], options.programs[0], options.repeats, pairs)
  common.RESULTS.mkdir(exist_ok=True)
  for config in options.configs:
    for program in options.programs:
      command = [
        sys.executable, '-m', 'benchmarks.card', '--one', f'--configs={config}', f'--programs={program}', f'--repeats={options.repeats}',
        '--', *options.overrides,
      ]  # fmt: skip
      done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
      if done.returncode:
        sys.exit(f'benchmarks.card: {config}, {program}: exit code {done.returncode}')
      row = json.loads(done.stdout.strip().splitlines()[-1])
      print(
        f'{config:16} {program:12} {row["at_once"]:3d} of {row["batch"]:3d} at once: {row["seconds"]:8.3f} s, {row["gflops"] / 1e3:6.2f} TFLOP/s, '
        f'{row["peak_gbytes"]:6.2f} GB ({row["planned_gbytes"]:.2f} planned), compiled in {row["compile_seconds"]:.0f} s, '
        f'{"repeats" if row["repeats"] else "DOES NOT REPEAT"}', flush=True,
      )  # fmt: skip
      with open(common.RESULTS / 'card.jsonl', 'a') as stream:
        stream.write(json.dumps(row) + '\n')


if __name__ == '__main__':
  main()
