"""What a config takes on a device that is here or elsewhere: its programs, compiled and not run."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxrec import models, results
from jaxrec.audit import program
from jaxrec.networks import Network
from jaxrec.training import Parallel, cost, memory, parallel
from jaxrec.types import Sample, Scan, Slice
from jaxrec.workflows import attack, datasets, factory
from jaxrec.workflows.targets import Target, target

COLUMNS = (
  'config',
  'program',
  'target',
  'devices',
  'batch',
  'at_once',
  'gbytes',
  'limit_gbytes',
  'gflop',
  'xla_gflop',
  'xla_gbytes',
  'seconds',
)

# Tasks that load the networks of other runs, or VGG.
_BUILT_ON_OTHERS = ('cvae', 'flow', 'wgan_vgg')


class Work(NamedTuple):
  """One program of a config.

  Attributes:
    name: `train`, or the name of a perturbation.
    sizes: examples per device at a time that are tried.
    batch: examples over all devices, from their number.
    lowered: `(devices, examples per device at a time) -> lowered program`.
    flops: of an example.
  """

  name: str
  sizes: Callable[[int], list[int]]
  batch: Callable[[int, int], int]
  lowered: Callable[[list[Any], int], Any]
  flops: Callable[[], float]


def run(config, folder: Path, here: Parallel) -> list[dict[str, Any]]:
  """Compiles the programs of a config for each target, prints a table and writes `plan.csv`.

  Args:
    config: the experiment; `plan.targets`, `plan.shape` (of a scan `coils, rows,
      cols`, of an image `rows, cols`) and `plan.crop` say for what.
    folder: of the run.
    here: the devices of this process.

  Returns:
    One row per target and program, see `COLUMNS`: memory of the largest number of
    examples at once that fits, or of one if none does (`at_once` is 0 then), per
    device; FLOPs of the batch as the program is written (`cost.flops`) and, with
    bytes, as XLA gives them for a device, which counts the body of a loop once.

  Raises:
    ValueError: for an unknown target, or one whose extra is not installed.
  """
  targets = [target(name, here.memory, jax.local_devices()[: here.devices]) for name in config.plan.targets]
  rows = []
  folder.mkdir(parents=True, exist_ok=True)
  print(
    f'{"program":16} {"target":12} {"devices":>7} {"batch":>6} {"at once":>7} {"GB":>7} {"of":>7} {"TFLOP":>8} {"compiled in":>11}'
  )
  for chosen in targets:
    for work in programs(config, here):
      row = planned(work, chosen)
      rows.append({'config': config.name, **row})
      # After every row: compilers take minutes.
      results.write_csv(folder / 'plan.csv', COLUMNS, [[row[name] for name in COLUMNS] for row in rows])
      print(
        f'{row["program"]:16} {row["target"]:12} {row["devices"]:7d} {row["batch"]:6d} {row["at_once"] or "none fits":>7} {row["gbytes"]:7.2f} '
        f'{row["limit_gbytes"]:7.2f} {row["gflop"] / 1e3:8.2f} {row["seconds"]:9.0f} s', flush=True,
      )  # fmt: skip
  return rows


def planned(work: Work, chosen: Target) -> dict[str, Any]:
  """The row of one program on one target."""
  start = time.perf_counter()

  @functools.cache
  def compiled(at_once):
    return work.lowered(chosen.devices, at_once).compile(compiler_options=chosen.options)

  sizes = work.sizes(len(chosen.devices))
  found = memory.largest_that_fits(sizes, lambda n: memory.takes_at_most(chosen.memory, lambda: compiled(n)))
  needed: float
  try:
    made = compiled(found or sizes[0])
    needed, told = memory.needed_memory(made), _analysis(made)
  except jax.errors.JaxRuntimeError:
    needed, told = float('nan'), {}
  batch = work.batch(len(chosen.devices), found or sizes[0])
  return {
    'program': work.name,
    'target': chosen.name,
    'devices': len(chosen.devices),
    'batch': batch,
    'at_once': found or 0,
    'gbytes': round(needed / 1e9, 3),
    'limit_gbytes': round(chosen.memory / 1e9, 3),
    'gflop': round(work.flops() * batch / 1e9, 3),
    'xla_gflop': round(told.get('flops', float('nan')) / 1e9, 3),
    'xla_gbytes': round(told.get('bytes accessed', float('nan')) / 1e9, 3),
    'seconds': round(time.perf_counter() - start, 1),
  }


def _analysis(program):
  told = program.cost_analysis()
  return (told[0] if isinstance(told, list) else told) or {}


def programs(config, here: Parallel) -> Iterator[Work]:
  """The training step and the attacks of a config."""
  module, _ = factory.network(config)
  sample = example(config)
  if 'train' in config.plan.programs and config.train.task.name in _BUILT_ON_OTHERS:
    print(f'plan: the training of {config.train.task.name} is left out: it needs other networks')
  elif 'train' in config.plan.programs:
    yield _training(config, module, sample, here)
  for name in config.perturbation:
    if name in config.plan.programs and not config.perturbation[name].get('generator', ''):
      yield _attack(config, module, sample, name)


def example(config) -> Sample:
  """Shapes of one example of the size `plan.shape`."""

  def of(shape, kind='float32'):
    return jax.ShapeDtypeStruct(tuple(shape), kind)

  shape = tuple(config.plan.shape)
  if datasets.is_ct(config) or config.data.form == 'image':
    return Slice(*(of(shape[-2:]),) * 3, of(()))
  crop = [min(n, m) for n, m in zip(config.plan.crop, shape[-2:])]
  mask = of((1, shape[-1]), bool)
  return Scan(of(shape, 'complex64'), mask, mask, mask, of(crop), of(crop), of(()))


def _stacked(tree, count):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), tree)


def _key():
  return jax.eval_shape(lambda: jax.random.key(0))


def _training(config, module, sample, here):
  def share(devices):
    if config.train.batch_size % devices:
      raise ValueError(f'train.batch_size: {config.train.batch_size} does not split over {devices} devices')
    return config.train.batch_size // devices

  def task(micro_batch, count):
    return factory.task(config, module, here, 1, sample, micro_batch=micro_batch if micro_batch < count else 0)

  def sizes(devices):
    chosen, count = config.train.micro_batch, share(devices)
    splits = factory.accumulates(config.train.task.name) and config.model.get('norm') != 'batch'
    return [chosen or count] if chosen or not splits else memory.divisors(count)

  def lowered(devices, micro_batch):
    made = task(micro_batch, share(len(devices)))
    state = jax.eval_shape(made.init, jax.random.key(0), _stacked(sample, share(len(devices))))
    return parallel.lower(devices, made.step, state, _stacked(sample, config.train.batch_size), _key())

  def flops():
    alone = factory.task(config, module, here._replace(average=lambda tree: tree), 1, sample)
    batch = _stacked(sample, 1)
    return cost.flops(alone.step, jax.eval_shape(alone.init, jax.random.key(0), batch), batch, _key())

  return Work('train', sizes, lambda devices, at_once: config.train.batch_size, lowered, flops)


def _attack(config, module, sample, name):
  reconstruct, seen = factory.defended(config, module)
  variables = jax.eval_shape(lambda key, s: models.start(module, key, s), _key(), sample)
  network = Network(reconstruct, variables, config.model.name)
  if seen is not None:
    network = dataclasses.replace(network, surrogate=Network(seen, variables))
  sweep = factory.sweep(config, name)
  run_batch = (program.by_grid if sweep.is_grid else program.by_search)(network, sweep, config.attack.chunk or 1)

  def shapes(count):
    return program.shapes(network, sweep, sample, count)

  return Work(
    name, lambda devices: [config.attack.batch_size] if config.attack.batch_size else list(attack.AT_ONCE),
    lambda devices, at_once: devices * at_once,
    lambda devices, count: parallel.BatchProgram(run_batch, devices).lower(*shapes(count * len(devices))),
    lambda: cost.flops(run_batch, *shapes(1)),
  )  # fmt: skip
