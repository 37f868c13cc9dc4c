"""The training stage."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrec import results
from jaxrec.data import loader
from jaxrec.training import Checkpointer, Parallel, fit
from jaxrec.types import Scan
from jaxrec.workflows import factory


def run(config, run_folder: results.Run, data: factory.Data, parallel: Parallel) -> None:
  """Trains the config's network, or goes on; nothing to do for published weights."""
  module, _ = factory.network(config)
  source = config.model.weights or config.model.checkpoint
  if source:
    print(f'train: nothing to do, the network comes from {source}')
    return
  volumes = [v for v in data.train.volumes if v.fully_sampled]
  examples = loader.slices_of(volumes, keep=config.data.keep_slices)
  steps_per_epoch = loader.steps_per_epoch(examples, config.train.batch_size)
  task, num_steps = factory.task(config, module, parallel, steps_per_epoch)
  checkpointer = Checkpointer(run_folder.folder / 'checkpoints')
  done = checkpointer.latest_step() or 0
  every = config.train.validate_every or steps_per_epoch
  if parallel.part == 0:
    print(
      f'train: {num_steps} steps of {config.train.batch_size} slices ({num_steps / steps_per_epoch:.1f} epochs of '
      f'{len(examples)}), validation every {every}; {done} done'
    )
    results.cut_metrics(run_folder.folder / 'metrics.jsonl', done)
  read = factory.reader(config, redraw=True)
  validate = validation(config, data, task, parallel)
  tensorboard = _tensorboard(config, run_folder, parallel)

  def write(record: dict[str, Any]) -> None:
    if parallel.part == 0:
      results.append_jsonl(run_folder.folder / 'metrics.jsonl', [record])
      tensorboard(record)

  fit(
    task,
    lambda start: loader.training_batches(
      examples, read, config.train.batch_size, seed=config.seed, start=start,
      workers=config.data.workers, part=parallel.part, parts=parallel.parts,
    ),
    num_steps,
    key=jax.random.key(config.seed),
    parallel=parallel,
    writer=write,
    checkpointer=checkpointer,
    validate=validate,
    validate_every=every,
    report_every=config.train.report_every,
  )  # fmt: skip
  checkpointer.close()


def validation(config, data: factory.Data, task, parallel: Parallel):
  """Scores by volume: the mean over volumes of the mean over their slices."""
  volumes = [v for v in data.val.volumes if v.fully_sampled]
  examples = loader.slices_of(volumes, keep=config.data.keep_slices)
  limit = config.train.max_validation
  if limit and len(examples) > limit:
    examples = [examples[i * len(examples) // limit] for i in range(limit)]
  batch_size = parallel.devices * max(config.train.batch_size // (parallel.devices * parallel.parts), 1)
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
    keys = ('ssim', 'psnr', 'nmse', 'loss')
    sums = np.zeros((len(names), len(keys) + 1))
    for row, name in enumerate(names):
      for scores in by_volume.get(name, ()):
        sums[row] += [*(scores[k] for k in keys), 1]
    sums = parallel.total(sums)
    means = (sums[:, :-1] / sums[:, -1:]).mean(0)
    return {f'val_{k}': float(m) for k, m in zip(keys, means)}

  return run_validation


def _tensorboard(config, run_folder, parallel):
  if not config.train.tensorboard or parallel.part:
    return lambda record: None
  try:
    from tensorboardX import SummaryWriter
  except ImportError:
    raise ValueError('train.tensorboard: needs the extra, pip install jaxrec[tensorboard]') from None
  writer = SummaryWriter(str(run_folder.folder / 'tensorboard'))

  def write(record):
    for name, value in record.items():
      if name != 'step':
        writer.add_scalar(name, value, record['step'])
    writer.flush()

  return write


def trained(config, folder: Path, data: factory.Data, parallel: Parallel):
  """Network and variables to attack: the best checkpoint, of another run if asked for, or published weights."""
  module, variables = factory.network(config)
  if variables is not None:
    return module, variables
  task, _ = factory.task(config, module, parallel, 1)
  like = jax.eval_shape(task.init, jax.random.key(0), _shapes(data.val.volumes[0]))
  folder = Path(config.model.checkpoint) if config.model.checkpoint else folder
  if not (folder / 'checkpoints').is_dir():
    raise ValueError(f'{folder}: holds no checkpoints; train first, or set model.checkpoint to a run folder')
  checkpointer = Checkpointer(folder / 'checkpoints')
  state = checkpointer.restore(like, which='best')
  checkpointer.close()
  return module, task.variables(state)


def _shapes(volume) -> Scan:
  """Shapes of a batch of one scan, without reading it."""
  _, coils, rows, cols = volume.shape

  def array(dtype, *shape):
    return jax.ShapeDtypeStruct((1, *shape), dtype)

  line, image = array(bool, 1, cols), array(np.float32, *volume.crop)
  return Scan(array(np.complex64, coils, rows, cols), line, line, line, image, image, array(np.float32))
