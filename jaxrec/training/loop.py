"""The training loop: any task, resumable, with progress and clear failures."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxrec.progress import Remaining
from jaxrec.training.checkpoint import Checkpointer
from jaxrec.training.parallel import Parallel
from jaxrec.training.tasks import Task
from jaxrec.types import Key


class Diverged(RuntimeError):
  """The loss is not finite; the message says at which step and what to do."""


class Stopped(RuntimeError):
  """The training was asked to stop; the message says at which step. Its checkpoint is written."""


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
  score: str | None = 'val_ssim',
  patience: int | None = None,
  checkpoint_minutes: float = 10.0,
  files: Callable[[int], list[str]] = lambda number: [],
  stop: Callable[[], bool] = lambda: False,
  on_wait: Callable[[float], None] = lambda seconds: None,
  on_save: Callable[[int], None] = lambda done: None,
) -> Any:
  """Trains a task, from its newest checkpoint if there is one.

  Step s uses batch s and the key folded with s, so an interrupted run that is
  resumed reports the same numbers as an uninterrupted one.

  While a step is computed the next batch is read and copied to the devices, and
  one step waits in their queue: nothing is fetched that is not finished. States
  are copied to the host, and written while the training goes on; the newest after
  the best.

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
      smallest is. `None`: every state is better than the one before.
    patience: stop after so many validations without a better score.
    checkpoint_minutes: a checkpoint is also written after so much time without
      one; 0: only at validations. Several processes look at the clock of the
      first, at reports.
    files: what batch number i was read from, for the message of a loss that is not
      finite.
    stop: asked after every step, with several processes at reports and validations; once true, a
      checkpoint is written.
    on_wait: receives the seconds that reading a batch took, if the devices had
      nothing to do before its end.
    on_save: receives the step of a checkpoint that is about to be written.

  Returns:
    The final state, on the host.

  Raises:
    Diverged: if the loss is not finite; the newest checkpoint is intact, and the
      writer has received the step and the files of its batch.
    Stopped: if it was asked to stop.
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

  best_at = checkpointer.best_step() or 0

  def stalled(done):
    return patience is not None and done > 0 and done - best_at >= patience * validate_every

  if first >= num_steps or stalled(first):
    return state
  step = parallel.compile(task.step)
  state = parallel.replicate(state)
  best, saved, pending, stopping = checkpointer.best_score(), time.monotonic(), None, False

  def settle(report: bool) -> None:
    """Looks at the loss of the step before, when the next one is already queued."""
    if pending is None:
      return
    done, metrics = pending
    values = {name: float(x) for name, x in parallel.first(metrics).items()}
    if not all(np.isfinite(x) for x in values.values()):
      read = files(done - 1)
      writer({'step': done, 'not_finite': read})
      raise Diverged(
        f'training: loss is not finite at step {done}; lower train.learning_rate, or check the data with verify_data'
        + (f'; its batch was read from {", ".join(read[:4])}{", ..." if len(read) > 4 else ""}' if read else '')
      )
    if report:
      bar.set_postfix(loss=f'{values["loss"]:.4g}')
      writer({'step': done, **values})

  def asked():
    return bool(parallel.total(np.int32(stop())))

  def save(done):
    on_save(done)
    checkpointer.save_last(done, parallel.first(state))
    return time.monotonic()

  def reported(done):
    return done % report_every == 0 or done % validate_every == 0 or done == num_steps

  remaining = Remaining('train', 'step', num_steps, note=', validation not counted', silent=parallel.part > 0)
  progress = tqdm(total=num_steps, initial=first, desc='train', unit='step', disable=parallel.part > 0)
  with checkpointer.settled(), progress as bar:
    share = parallel.shard(batch)
    for i in range(first, num_steps):
      keys = _device_keys(jax.random.fold_in(step_key, i), parallel)
      state, metrics = step(state, share, keys)
      settle(reported(i))
      if pending is not None:
        remaining.step(i)
      done = i + 1
      pending = done, metrics
      if done < num_steps:
        start = time.perf_counter()
        batch = next(stream)
        if all(x.is_ready() for x in jax.tree.leaves(metrics)):
          on_wait(time.perf_counter() - start)
        share = parallel.shard(batch)
      if done % validate_every == 0 or done == num_steps:
        settle(True)
        pending = None
        if validate is not None:
          start = time.perf_counter()
          scores = validate(state)
          remaining.leave_out(time.perf_counter() - start)
          writer({'step': done, **scores})
          value = done if score is None else -scores[score] if score == 'val_loss' else scores[score]
          if value > best:
            best, best_at = value, done
            checkpointer.save_best(done, parallel.first(state), best)
        saved, stopping = save(done), asked()
        if stopping or stalled(done):
          break
      elif parallel.parts == 1 or reported(done):
        late = checkpoint_minutes > 0 and time.monotonic() - saved > 60 * checkpoint_minutes
        late, stopping = parallel.agree((late, asked()))
        if late or stopping:
          settle(reported(done))
          pending = None
          saved = save(done)
        if stopping:
          break
      bar.update()
  if stopping or asked():
    raise Stopped(f'training: stopped after step {done} as asked; the same command goes on from there')
  return parallel.first(state)


def _device_keys(key, parallel):
  """The same on all devices, which draw by the places of their examples; the numbers are those of one device."""
  return jnp.repeat(jax.random.split(jax.random.fold_in(key, 0), 1), parallel.devices)
