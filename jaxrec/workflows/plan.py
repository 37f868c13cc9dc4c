"""What an experiment takes on a device that is here or elsewhere: its programs, compiled and not run."""

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
from jaxrec.training.draws import alone
from jaxrec.types import Sample, Scan, Slice
from jaxrec.workflows import attack, factory
from jaxrec.workflows.experiment import Attack, CTData, DataSet, Experiment, Forecast
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
  'effort',
  'seconds',
)


class Work(NamedTuple):
  """One program of an experiment.

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


def run(experiment: Experiment, folder: Path, here: Parallel) -> list[dict[str, Any]]:
  """Compiles the programs of an experiment for each target, prints a table and writes `plan.csv`.

  Args:
    experiment: whose forecast says for what.
    folder: of the run.
    here: the devices of this process.

  Returns:
    One row per target and program, see `COLUMNS`: memory of the largest number of
    examples at once that fits, or of the smallest that is allowed if none does
    (`at_once` is 0 then), per device; FLOPs of the batch as the program is written
    (`cost.flops`) and, with bytes, as XLA gives them for a device, which counts the
    body of a loop once.

  Raises:
    ValueError: for an unknown target, one whose extra is not installed, or a
      global batch that does not split over its devices.
  """
  assert experiment.forecast is not None
  targets = [target(name, here.memory, jax.local_devices()[: here.devices]) for name in experiment.forecast.targets]
  rows = []
  folder.mkdir(parents=True, exist_ok=True)
  print(
    f'{"program":16} {"target":12} {"devices":>7} {"batch":>6} {"at once":>7} {"GB":>7} {"of":>7} {"TFLOP":>8} {"compiled in":>11}'
  )
  for chosen in targets:
    for work in programs(experiment, here):
      row = planned(work, chosen)
      rows.append({'config': experiment.name, **row})
      # After every row: compilers take minutes.
      results.write_csv(folder / 'plan.csv', COLUMNS, [[row[name] for name in COLUMNS] for row in rows])
      print(
        f'{row["program"]:16} {row["target"]:12} {row["devices"]:7d} {row["batch"]:6d} {row["at_once"] or "none fits":>7} {row["gbytes"]:7.2f} '
        f'{row["limit_gbytes"]:7.2f} {row["gflop"] / 1e3:8.2f} {row["seconds"]:9.0f} s', flush=True,
      )  # fmt: skip
  return rows


def fitted(work: Work, chosen: Target) -> tuple[int, Callable[[int], Any]]:
  """How many examples of a program fit on a device at a time, 0 if none do, and what compiles it for a number, once each."""

  @functools.cache
  def compiled(at_once):
    return chosen.compile(work.lowered(chosen.devices, at_once))

  sizes = work.sizes(len(chosen.devices))
  found = memory.largest_that_fits(sizes, chosen.memory, lambda n: memory.bytes_of(lambda: compiled(n)))
  return found or 0, compiled


def planned(work: Work, chosen: Target) -> dict[str, Any]:
  """The row of one program on one target."""
  start = time.perf_counter()
  found, compiled = fitted(work, chosen)
  at_once = found or work.sizes(len(chosen.devices))[0]
  needed: float
  try:
    made = compiled(at_once)
    needed, told = memory.needed_memory(made), _analysis(made)
  except jax.errors.JaxRuntimeError:
    needed, told = float('nan'), {}
  batch = work.batch(len(chosen.devices), at_once)
  return {
    'program': work.name,
    'target': chosen.name,
    'devices': len(chosen.devices),
    'batch': batch,
    'at_once': found,
    'gbytes': round(needed / 1e9, 3),
    'limit_gbytes': round(chosen.memory / 1e9, 3),
    'gflop': round(work.flops() * batch / 1e9, 3),
    'xla_gflop': round(told.get('flops', float('nan')) / 1e9, 3),
    'xla_gbytes': round(told.get('bytes accessed', float('nan')) / 1e9, 3),
    'effort': chosen.level(),
    'seconds': round(time.perf_counter() - start, 1),
  }


def _analysis(program):
  told = program.cost_analysis()
  return (told[0] if isinstance(told, list) else told) or {}


def programs(experiment: Experiment, here: Parallel) -> Iterator[Work]:
  """The training step and the attacks of an experiment."""
  forecast, attacks = experiment.forecast, experiment.attack
  assert forecast is not None and attacks is not None
  module, _ = factory.network(experiment.model)
  sample = example(forecast, experiment.data)
  recipe = experiment.training.task
  if 'train' in forecast.programs and isinstance(module, Network):
    print(f'plan: there is no training of {experiment.model.name}: it makes a jaxrec.Network, which has its weights')
  elif 'train' in forecast.programs and _on_others(recipe):
    print(f'plan: the training of {recipe.name} is left out: it needs other networks')
  elif 'train' in forecast.programs:
    yield _training(experiment, module, sample, here)
  for name in attacks.sweeps:
    if name in forecast.programs and name not in attacks.generators:
      yield _attack(experiment, attacks, module, sample, name)


def _on_others(recipe):
  """Whether a task loads the networks of other runs, or VGG."""
  return recipe.features or recipe.described or recipe.generator and recipe.generator.frozen


def example(forecast: Forecast, data: DataSet) -> Sample:
  """Shapes of one example of the size `plan.shape`."""

  def of(shape, kind='float32'):
    return jax.ShapeDtypeStruct(tuple(shape), kind)

  shape = forecast.shape
  if isinstance(data, CTData) or data.form == 'image':
    return Slice(*(of(shape[-2:]),) * 3, of(()))
  crop = [min(n, m) for n, m in zip(forecast.crop, shape[-2:])]
  mask = of((1, shape[-1]), bool)
  return Scan(of(shape, 'complex64'), mask, mask, mask, of(crop), of(crop), of(()))


def _stacked(tree, count):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), tree)


def _key():
  return jax.eval_shape(lambda: jax.random.key(0))


def _training(experiment, module, sample, here):
  training = experiment.training

  def share(devices):
    if training.batch_size % devices:
      raise ValueError(f'train.batch_size: {training.batch_size} does not split over {devices} devices')
    return training.batch_size // devices

  def task(micro_batch, count):
    return factory.task(training, module, here, 1, sample, micro_batch=micro_batch if micro_batch < count else 0)

  def sizes(devices):
    chosen, count = training.micro_batch, share(devices)
    splits = factory.splits(training.task, experiment.model)
    return [chosen or count] if chosen or not splits else memory.divisors(count)

  def lowered(devices, micro_batch):
    made = task(micro_batch, share(len(devices)))
    state = jax.eval_shape(made.init, jax.random.key(0), _stacked(sample, share(len(devices))))
    return parallel.lower(devices, made.step, state, _stacked(sample, training.batch_size), _key())

  def flops():
    one = factory.task(training, module, here._replace(average=lambda tree: tree, place=alone, axis=None), 1, sample)
    batch = _stacked(sample, 1)
    return cost.flops(one.step, jax.eval_shape(one.init, jax.random.key(0), batch), batch, _key())

  return Work('train', sizes, lambda devices, at_once: training.batch_size, lowered, flops)


def _attack(experiment: Experiment, attacks: Attack, module, sample, name):
  reconstruct, seen = factory.defended(attacks, experiment.defence, module)
  if isinstance(module, Network):
    variables = jax.eval_shape(lambda: module.variables)
  else:
    variables = jax.eval_shape(lambda key, s: models.start(module, key, s), _key(), sample)
  network = Network(reconstruct, variables, experiment.model.name)
  if seen is not None:
    network = dataclasses.replace(network, surrogate=Network(seen, variables))
  sweep = attacks.sweeps[name]
  run_batch = (program.by_grid if sweep.is_grid else program.by_search)(network, sweep, attacks.chunk or 1)

  def shapes(count):
    return program.shapes(network, sweep, sample, count)

  return Work(
    name, lambda devices: [attacks.batch_size] if attacks.batch_size else list(attack.AT_ONCE),
    lambda devices, at_once: devices * at_once,
    lambda devices, count: parallel.BatchProgram(run_batch, devices).lower(*shapes(count * len(devices))),
    lambda: cost.flops(run_batch, *shapes(1)),
  )  # fmt: skip
