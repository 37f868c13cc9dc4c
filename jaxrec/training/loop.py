"""The training loop: any task, resumable, with progress and clear failures."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from tqdm import tqdm

from jaxrec.training.checkpoint import Checkpointer
from jaxrec.training.parallel import Parallel
from jaxrec.training.tasks import Task
from jaxrec.types import Key


class Diverged(RuntimeError):
  """The loss is not finite; the message says at which step and what to do."""


class Writer(Protocol):
  """Receives one record per report."""

  def __call__(self, record: dict[str, Any]) -> None: ...


def fit(
  task: Task,
  batches: Callable[[int], Iterator[Any]],
  num_steps: int,
  *,
  key: Key,
  parallel: Parallel,
  writer: Writer,
  checkpointer: Checkpointer,
  validate: Callable[[Any], dict[str, float]] | None = None,
  validate_every: int | None = None,
  report_every: int = 20,
  score: str = 'val_ssim',
  patience: int | None = None,
) -> Any:
  """Trains a task, from its newest checkpoint if there is one.

  Step s uses batch s and the key folded with s, so an interrupted run that is
  resumed reports the same numbers as an uninterrupted one.

  Args:
    task: what to train; its state is never looked into.
    batches: `start -> iterator` over host batches from number `start` on.
    num_steps: updates in total.
    key: key of the start and of all steps.
    parallel: devices.
    writer: receives `{'step': ..., **metrics}`.
    checkpointer: where states are kept.
    validate: `replicated state -> means`, called every `validate_every` steps and
      at the end, when a checkpoint is written too.
    validate_every: steps between validations; only at the end if `None`.
    report_every: steps between records.
    score: validation metric of which the largest is the best; of `val_loss` the
      smallest is.
    patience: stop after so many validations without a better score.

  Returns:
    The final state, on the host.

  Raises:
    Diverged: if the loss is not finite; the newest checkpoint is intact.
  """
  validate_every = validate_every or num_steps
  init_key, step_key = jax.random.split(key)
  first = checkpointer.latest_step() or 0
  stream = batches(first)
  batch = next(stream) if first < num_steps else next(batches(0))
  shapes = jax.eval_shape(task.init, init_key, batch)
  if first:
    state = checkpointer.restore(shapes)
  else:
    # Flows start from the batch, of which every process has its own part.
    state = parallel.agree(jax.device_get(task.init(init_key, batch)))

  def stalled(done):
    return patience is not None and done > 0 and done - (checkpointer.best_step() or 0) >= patience * validate_every

  if first >= num_steps or stalled(first):
    return state
  step = parallel.compile(task.step)
  state = parallel.replicate(state)
  best = checkpointer.best_score()
  with tqdm(total=num_steps, initial=first, desc='train', unit='step', disable=parallel.part > 0) as bar:
    for i in range(first, num_steps):
      keys = _device_keys(jax.random.fold_in(step_key, i), parallel)
      state, metrics = step(state, parallel.shard(batch), keys)
      done = i + 1
      at_report = done % report_every == 0 or done % validate_every == 0 or done == num_steps
      if at_report:
        values = {name: float(x) for name, x in parallel.first(metrics).items()}
        if not all(np.isfinite(x) for x in values.values()):
          raise Diverged(
            f'training: loss is not finite at step {done}; lower train.learning_rate, or check the data with verify_data'
          )
        bar.set_postfix(loss=f'{values["loss"]:.4g}')
        writer({'step': done, **values})
      if done % validate_every == 0 or done == num_steps:
        if validate is not None:
          scores = validate(state)
          writer({'step': done, **scores})
          value = -scores[score] if score == 'val_loss' else scores[score]
          if value > best:
            best = value
            checkpointer.save_best(done, parallel.first(state), best)
        checkpointer.save_last(done, parallel.first(state))
        if stalled(done):
          break
      bar.update()
      if done < num_steps:
        batch = next(stream)
  return parallel.first(state)


def _device_keys(key, parallel):
  key = jax.random.fold_in(key, parallel.part)
  return jax.random.split(key, parallel.devices)
