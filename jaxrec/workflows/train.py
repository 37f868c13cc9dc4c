"""The training stage."""

import functools
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrec import models, results
from jaxrec.audit import identity
from jaxrec.data import loader
from jaxrec.data.fastmri import Example
from jaxrec.networks import Network
from jaxrec.training import AveragedState, Checkpointer, Parallel, Task, fit, memory
from jaxrec.workflows import datasets, factory, pictures, workers
from jaxrec.workflows.experiment import CTData, Experiment, Training


class Context(NamedTuple):
  """What stages share: indexed data, the devices, and who reads the experiment that a run folder was made with."""

  data: datasets.Data
  parallel: Parallel
  stored: Callable[[Path], Experiment]


class _Ledger:
  """Metrics, costs and waiting of a training, written by the first process."""

  def __init__(self, training: Training, run_folder: results.Run, parallel: Parallel, rates: np.ndarray):
    self.training, self.folder, self.part = training, run_folder.folder, parallel.part
    self.rates = rates
    self.start, self.waited = time.perf_counter(), 0.0
    self.before = results.read_json(self.folder / 'cost.json')
    self.tensorboard = _tensorboard(training, run_folder, parallel)
    self.task: Task | None = None

  def wait(self, seconds: float) -> None:
    """The devices waited for data."""
    self.waited += seconds

  def write(self, record: dict[str, Any]) -> None:
    """Writes the metrics of a step."""
    if self.part == 0:
      if 'loss' in record:
        # Seven digits: those of float32.
        record = {**record, 'learning_rate': float(f'{self.rates[record["step"] - 1]:.7g}')}
      results.append_jsonl(self.folder / 'metrics.jsonl', [record])
      self.tensorboard(record)

  def close(self, last: int) -> None:
    """At the end of a training: says what it waited, and counts `last` steps if nobody has."""
    if self.part:
      return
    if self.waited:
      total = time.perf_counter() - self.start
      print(
        f'train: {total:.0f} s, of which the devices waited at most {self.waited:.0f} s for data '
        '(more data.workers read faster)'
      )
    if results.read_json(self.folder / 'cost.json').get('steps') != last:
      self.count(last)

  def count(self, steps: int) -> None:
    """Writes what training cost: all `steps` behind the newest checkpoint, whoever made them, and the seconds that were seen.

    Before that checkpoint is written: what is killed later has cost this much at
    least. In `waited` of the seconds the devices had nothing to do but to wait for data.
    """
    if self.part:
      return
    assert self.task is not None
    forward, backward = (n * self.training.batch_size for n in self.task.calls)
    cost = {
      'steps': steps,
      'seconds': self.before.get('seconds', 0.0) + time.perf_counter() - self.start,
      'waited': self.before.get('waited', 0.0) + self.waited,
      'forward_per_step': forward,
      'backward_per_step': backward,
    }
    results.write_text(self.folder / 'cost.json', json.dumps(cost) + '\n')


def run(experiment: Experiment, run_folder: results.Run, context: Context) -> None:
  """Trains the network, or goes on; nothing to do for published weights."""
  model, training, (data, parallel, _) = experiment.model, experiment.training, context
  module, _ = factory.network(model)
  if source := model.weights or model.checkpoint:
    print(f'train: nothing to do, the network comes from {source}')
    return
  if isinstance(module, Network):
    raise ValueError(
      f"stages: {model.name} makes a jaxrec.Network, which has its weights; training takes a Flax linen module, so leave 'train' out"
    )
  examples = datasets.training_examples(experiment.data, data.train.volumes)
  steps_per_epoch = loader.steps_per_epoch(examples, training.batch_size)
  num_steps = factory.num_steps(training, steps_per_epoch)
  load = loader_of(run_folder.folder, context)
  largest = max(examples, key=lambda e: np.prod(loader.shape_of(e)))
  sample = data.read(largest, 0)

  def make(micro_batch):
    return started(factory.task(training, module, parallel, num_steps, sample, load, micro_batch), experiment)

  checkpointer = Checkpointer(run_folder.folder / 'checkpoints')
  done = checkpointer.latest_step() or 0
  every = training.validate_every or steps_per_epoch
  if parallel.part == 0:
    _announce(training.batch_size, data, num_steps, num_steps / steps_per_epoch, len(examples), every, done)
    results.cut_metrics(run_folder.folder / 'metrics.jsonl', done)
  ledger = _Ledger(training, run_folder, parallel, factory.learning_rates(training, num_steps))
  read = datasets.reader(experiment.data, redraw=True)
  task, micro_batch = fitted(experiment, parallel, make, read(largest, 0)) if done < num_steps else (make(0), 1)
  ledger.task = task
  validate = _validation(experiment, data, task, module, parallel, micro_batch, run_folder.folder)
  with workers.termination() as stop:
    fit(
      task,
      lambda start: loader.training_batches(
        examples, read, training.batch_size, seed=experiment.seed, start=start,
        workers=experiment.data.workers, part=parallel.part, parts=parallel.parts,
      ),
      num_steps,
      key=jax.random.key(experiment.seed),
      parallel=parallel,
      writer=ledger.write,
      checkpointer=checkpointer,
      validate=validate,
      validate_every=every,
      report_every=training.report_every,
      score=None if training.best == 'last' else f'val_{training.best}',
      patience=training.patience or None,
      checkpoint_minutes=training.checkpoint_minutes,
      files=lambda number: loader.batch_files(examples, training.batch_size, number, seed=experiment.seed),
      stop=stop,
      on_wait=ledger.wait,
      on_save=ledger.count,
    )  # fmt: skip
  ledger.close(checkpointer.latest_step() or 0)
  checkpointer.close()
  parallel.barrier('the first process has written what all read')


def _announce(batch_size, data, num_steps, epochs, count, every, done):
  print(
    f'train: {num_steps} steps of {batch_size} slices ({epochs:.1f} epochs of {count}), validation every {every}; {done} done'
  )
  if {v.path for v in data.train.volumes} & {v.path for v in data.val.volumes}:
    print('train: train and val share volumes: validation and attacks see what was trained on', file=sys.stderr)


def started(task: Task, experiment: Experiment) -> Task:
  """The task from the weights of `train.start_from`, a file of the fastMRI repository; itself if that is empty.

  Raises:
    ValueError: if they are not of this network.
  """
  path = experiment.training.start_from
  if not path:
    return task
  kind = factory.FASTMRI.get(experiment.model.name)
  recipe = experiment.training.task
  if kind is None or recipe.generator or recipe.critic:
    raise ValueError('train.start_from: is for one network, model.name=varnet or unet_recon; leave it empty')
  _, variables = models.load_fastmri(path, kind)

  def init(key, batch):
    state = task.init(key, batch)
    own, given = (jax.tree.map(np.shape, tree) for tree in (task.variables(state), variables))
    if own != given:
      raise ValueError(
        f'train.start_from: {path} is of a network of another size; set model.chans and the like to its own'
      )
    return task.with_variables(state, variables)

  return task._replace(init=init)


def fitted(experiment: Experiment, parallel: Parallel, make: Callable[[int], Task], sample) -> tuple[Task, int]:
  """The task with the micro-batch of the experiment or, for 0, with the largest that fits into memory.

  What the choice compiles is kept: the training does not compile it again.

  Args:
    experiment: with its training.
    parallel: devices.
    make: `micro-batch -> task`.
    sample: the largest example.

  Returns:
    The task and its micro-batch, in examples per device.

  Raises:
    ValueError: if the batch does not split, or nothing fits.
  """
  training = experiment.training
  chosen = training.micro_batch
  if chosen:
    return make(chosen), chosen
  shares = parallel.devices * parallel.parts
  if training.batch_size % shares:
    raise ValueError(f'train.batch_size: {training.batch_size} does not split over {shares} devices')
  count = training.batch_size // shares
  tasks = functools.cache(lambda micro_batch: make(micro_batch if micro_batch < count else 0))

  def needed(micro_batch):
    shapes = step_shapes(tasks(micro_batch), sample, count, parallel.devices)
    return memory.bytes_of(lambda: parallel.compile(tasks(micro_batch).step).compile(*shapes))

  splits = factory.splits(training.task, experiment.model)
  found = memory.largest_that_fits(memory.divisors(count) if splits else [count], parallel.memory, needed)
  if found is None:
    raise ValueError(
      f'train.batch_size: not even {1 if splits else count} of its examples fits into {parallel.memory / 1e9:.1f} GB of a device; '
      'set model.remat=True, or use more or larger devices'
    )
  if found < count and parallel.part == 0:
    print(f'train: {found} of the {count} examples of a device fit into its memory at a time; gradients are summed')
  return tasks(found), found


def step_shapes(task: Task, sample, count: int, devices: int):
  """Shapes of state, batch and keys of a step, with a leading device axis; `count` examples a device."""

  def lead(tree, *axes):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*axes, *np.shape(x)), x.dtype), tree)

  batch = lead(sample, count)
  state = jax.eval_shape(task.init, jax.random.key(0), batch)
  return lead(state, devices), lead(batch, devices), lead(jax.eval_shape(lambda: jax.random.key(0)), devices)


def _validation(
  experiment: Experiment, data: datasets.Data, task, module, parallel: Parallel, micro_batch: int, folder: Path
):
  """Scores, and pictures of the first process if there are to be any."""
  training, score = experiment.training, validation(experiment, data, task, parallel, micro_batch)
  if parallel.part or not training.pictures or training.task.described:
    return score
  paint = pictures.painter(experiment, data, task, module, parallel, folder / 'figures')

  def run_validation(state) -> dict[str, float]:
    paint(state)
    return score(state)

  return run_validation


def validation(experiment: Experiment, data: datasets.Data, task, parallel: Parallel, micro_batch: int):
  """Scores by volume: the mean over volumes of the mean over their slices; so many slices per device at a time."""
  examples = datasets.training_examples(experiment.data, data.val.volumes)
  examples = loader.spread(examples, experiment.training.max_validation)
  batch_size = parallel.devices * micro_batch
  mine = examples[parallel.part :: parallel.parts]
  evaluate = parallel.map_batch(task.evaluate)

  def run_validation(state) -> dict[str, float]:
    state = parallel.first(state)
    by_volume = defaultdict(list)
    for chosen, batch in loader.evaluation_batches(mine, data.read, batch_size):
      scores = jax.device_get(evaluate(state, batch))
      for i, example in enumerate(chosen):
        by_volume[example.volume.name].append({name: float(x[i]) for name, x in scores.items()})
    names = sorted({e.volume.name for e in examples})
    shapes = jax.eval_shape(task.evaluate, state, jax.tree.map(lambda x: x[None], data.read(examples[0], 0)))
    keys = sorted(shapes)
    sums = np.zeros((len(names), len(keys) + 1))
    for row, name in enumerate(names):
      for scores in by_volume.get(name, ()):
        sums[row] += [*(scores[k] for k in keys), 1]
    sums = parallel.total(sums)
    means = (sums[:, :-1] / sums[:, -1:]).mean(0)
    return {f'val_{k}': float(m) for k, m in zip(keys, means)}

  return run_validation


def _tensorboard(training, run_folder, parallel):
  if not training.tensorboard or parallel.part:
    return lambda record: None
  try:
    from tensorboardX import SummaryWriter
  except ImportError:
    raise ValueError('train.tensorboard: needs the extra, pip install jaxrec[tensorboard]') from None
  writer = SummaryWriter(str(run_folder.folder / 'tensorboard'))

  def write(record):
    for name, value in record.items():
      # The files of a step that is not finite are no number.
      if name != 'step' and isinstance(value, float):
        writer.add_scalar(name, value, record['step'])
    writer.flush()

  return write


def loader_of(folder: Path, context: Context) -> factory.Load:
  """Networks of other runs by name, each read once."""

  @functools.cache
  def load(run: str):
    other = results.sibling(folder, run)
    if not (other / 'config.json').exists():
      raise ValueError(f'{other}: is no run folder; train it first')
    return trained(context.stored(other), other, context)

  return load


def trained(experiment: Experiment, folder: Path, context: Context):
  """Network and variables to attack: the best checkpoint, of another run if asked for, or published weights."""
  module, variables = factory.network(experiment.model)
  if variables is not None or isinstance(module, Network):
    return module, variables
  checkpoint = experiment.model.checkpoint
  folder = results.sibling(folder, checkpoint) if checkpoint else folder
  return module, restored(experiment, module, folder, context)[1]


def weights_of(module, variables) -> str:
  """Short name of the weights of what `trained` gives."""
  return identity.of_network(module) if isinstance(module, Network) else identity.digest(variables)


def restored(experiment: Experiment, module, folder: Path, context: Context):
  """Best state of a run, and the variables of its reconstructor.

  The run may have been trained by another task: its own folder tells which.

  Raises:
    ValueError: if there is none or it does not fit.
  """
  if not (folder / 'checkpoints').is_dir():
    raise ValueError(f'{folder}: holds no checkpoints; train first, or set model.checkpoint to a run folder')
  own = context.stored(folder) if (folder / 'config.json').exists() else experiment
  sample = _training_sample(own, context.data)
  task = factory.task(own.training, module, context.parallel, 1, sample, loader_of(folder, context))
  like = jax.eval_shape(task.init, jax.random.key(0), loader.stack([sample]))
  checkpointer = Checkpointer(folder / 'checkpoints')
  try:
    state = checkpointer.restore(like, which='best')
  finally:
    checkpointer.close()
  return state, task.variables(state)


def _training_sample(experiment, data):
  """A sample of the shapes that a run was trained on: critics may know their size."""
  volumes = [v for v in data.val.volumes if v.fully_sampled] or data.val.volumes
  sample = data.read(Example(volumes[0], 0, None), 0)
  if not isinstance(experiment.data, CTData):
    return sample
  side = experiment.data.patch or max(sample.target.shape)
  return jax.tree.map(lambda x: x[:side, :side] if x.ndim else x, sample)


def generator_of(folder: Path, context: Context):
  """The generator of an adversarially trained run: its adversary and variables."""
  if not (folder / 'config.json').exists():
    raise ValueError(f'{folder}: is no run folder; train the generator first')
  own = context.stored(folder)
  recipe = own.training.task
  if recipe.generator is None:
    raise ValueError(f'{folder}: has no generator; it was trained with train.task.name={recipe.name}')
  module, _ = factory.network(own.model)
  state, _ = restored(own, module, folder, context)
  if isinstance(state, AveragedState):
    state = state.state
  return factory.adversary(recipe.generator, _training_sample(own, context.data)), state.generator.variables
