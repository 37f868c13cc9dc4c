"""Checkpoints of any task's state; the only place that knows Orbax, which is loaded with the first `Checkpointer`.

`last` keeps the newest two, so that a process killed while writing leaves one
whole, and that a damaged one has another behind it; `best` keeps the best by
validation. Process 0 writes, while the training goes on: arrays, then the digests
of all files, as a flipped bit decompresses to other weights without an error;
then the folder gets its name, so that there is no checkpoint without digests.
"""

import contextlib
import hashlib
import json
import logging
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

_DIGESTS = 'digests.json'
# Orbax writes the time of the commit into it afterwards; nothing is read from it.
_STAMP = '_CHECKPOINT_METADATA'


class CheckpointError(ValueError):
  """A checkpoint that does not fit; the message names the folder and the remedy."""


class Checkpointer:
  """Saves and restores states in `<folder>/last` and `<folder>/best`.

  States are written in the background: one that could not be is told by the next
  call, whichever it is.

  Args:
    folder: created if missing.
  """

  def __init__(self, folder: str | Path):
    import orbax.checkpoint

    self._ocp = orbax.checkpoint
    # Orbax logs the traceback of every thread that a full disk stops.
    logging.getLogger('absl').setLevel(logging.CRITICAL)
    self.folder = Path(folder).absolute()
    self._whole: set[Path] = set()
    # Steps on their way to the disk, by manager.
    self._writing: dict[str, int] = {}
    self._last = self._manager('last', keep=2)
    self._best = self._manager('best', keep=1)

  def _manager(self, name, keep):
    background = self._ocp.options.AsyncOptions(post_finalization_callback=lambda: self._seal(name))
    several = self._ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
      # Each process reads for itself and one writes: threads in the background that meet those of others would
      # meet them in another order than the training does.
      part = jax.process_index()
      several = self._ocp.options.MultiprocessingOptions(
        primary_host=part, active_processes={part}, barrier_sync_key_prefix=f'{name}_{part}'
      )
    options = self._ocp.CheckpointManagerOptions(
      max_to_keep=keep, create=False, async_options=background, multiprocessing_options=several
    )
    (self.folder / name).mkdir(parents=True, exist_ok=True)
    handlers = {
      'state': self._ocp.StandardCheckpointHandler(multiprocessing_options=several),
      'score': self._ocp.JsonCheckpointHandler(multiprocessing_options=several),
    }
    return self._ocp.CheckpointManager(self.folder / name, options=options, item_handlers=handlers)

  def latest_step(self) -> int | None:
    """Step of the newest state that is not damaged, or `None`.

    A damaged one is said on standard error, and replaced by the next `save_last`.

    Raises:
      CheckpointError: if all are damaged.
    """
    return self._newest(self._last)

  def best_step(self) -> int | None:
    """Step of the best state, or `None`.

    Raises:
      CheckpointError: if it is damaged.
    """
    return self._newest(self._best)

  def best_score(self) -> float:
    """Score of the best state, or minus infinity.

    Raises:
      CheckpointError: if it is damaged.
    """
    step = self.best_step()
    if step is None:
      return -float('inf')
    args = self._ocp.args
    return float(self._best.restore(step, args=args.Composite(score=args.JsonRestore()))['score']['score'])

  def save_last(self, step: int, state: Any) -> None:
    """Begins to write the newest state, on process 0; keeps the one before it.

    Args:
      step: its number.
      state: NumPy arrays, which nobody changes any more.

    Raises:
      CheckpointError: if the one before or the best cannot be written; earlier states are intact.
    """
    if jax.process_index():
      return
    # Never ahead of the best state: the validation that found it is not repeated.
    self.wait()
    for later in self._last.all_steps():
      # Training went on from before it, so it was damaged.
      if later >= step:
        self._last.delete(later)
    self._save(self._last, step, state=self._ocp.args.StandardSave(state))

  def save_best(self, step: int, state: Any, score: float) -> None:
    """Begins to write a state as the best one, on process 0.

    Args:
      step: its number.
      state: as in `save_last`.
      score: of its validation.

    Raises:
      CheckpointError: if the one before cannot be written; the best one so far is intact.
    """
    if jax.process_index():
      return
    self._wait(self._best)
    if step not in self._best.all_steps():
      args = self._ocp.args
      self._save(self._best, step, state=args.StandardSave(state), score=args.JsonSave({'score': float(score)}))

  def wait(self) -> None:
    """Waits until all states are on the disk.

    Raises:
      CheckpointError: if one cannot be written; earlier states are intact.
    """
    for manager in (self._last, self._best):
      self._wait(manager)

  @contextlib.contextmanager
  def settled(self) -> Iterator[None]:
    """Whatever ends the context, all states are on the disk after it.

    Yields:
      Nothing.

    Raises:
      CheckpointError: as `wait`, if nothing else was raised.
    """
    try:
      yield
    except BaseException:
      with contextlib.suppress(CheckpointError):
        self.wait()
      raise
    self.wait()

  def _save(self, manager, step, **parts):
    self._remove_unfinished(manager)
    self._writing[Path(manager.directory).name] = step
    try:
      manager.save(step, args=self._ocp.args.Composite(**parts))
    except (OSError, ValueError) as error:
      self._failed(manager, error)

  def _seal(self, name):
    """The digests of a checkpoint that is about to get its name."""
    for path in (self.folder / name).glob(f'{self._writing[name]}.orbax-checkpoint-tmp*'):
      (path / _DIGESTS).write_text(json.dumps(_digests(path)))

  def _wait(self, manager):
    name = Path(manager.directory).name
    if name not in self._writing:
      return
    try:
      manager.wait_until_finished()
      manager.check_for_errors()
    except (OSError, ValueError) as error:
      self._failed(manager, error)
    self._whole.add(self.folder / name / str(self._writing.pop(name)))

  def _failed(self, manager, error):
    name = Path(manager.directory).name
    path = self.folder / name / str(self._writing.pop(name))
    # TensorStore's other threads go on for a moment, and make the folder anew.
    for _ in range(5):
      time.sleep(0.1)
      self._remove_unfinished(manager)
    # TensorStore hides the system's words in a paragraph.
    words = re.search(r': ([^:]*) \[os_error_code', str(error))
    raise CheckpointError(
      f'{path}: cannot be written ({words[1] if words else _reason(error)}); free the disk, then run the same command to go on'
    ) from None

  def _remove_unfinished(self, manager):
    for left in Path(manager.directory).glob('*.orbax-checkpoint-tmp*'):
      shutil.rmtree(left, ignore_errors=True)

  def _newest(self, manager):
    self._wait(manager)
    steps = sorted(manager.all_steps(), reverse=True)
    damaged = {}
    for step in steps:
      path = Path(manager.directory) / str(step)
      fault = '' if path in self._whole else _fault(path)
      if not fault:
        if damaged and path not in self._whole and jax.process_index() == 0:
          found = ', '.join(f'{step} ({why})' for step, why in damaged.items())
          print(
            f'warning: {path.parent}: checkpoint {found} is damaged; goes on from {step}, {steps[0] - step} steps are lost',
            file=sys.stderr,
          )
        self._whole.add(path)
        return step
      damaged[step] = fault
    if damaged:
      raise CheckpointError(
        f'{manager.directory}: every checkpoint is damaged ({_reason(damaged[steps[0]])}); delete {self.folder} to train from the start'
      )
    return None

  def restore(self, like: Any, *, which: str = 'last') -> Any:
    """Reads a state.

    Args:
      like: a state, or shapes, of the same structure.
      which: `last` or `best`.

    Returns:
      The state, as NumPy arrays.

    Raises:
      CheckpointError: if there is none, all are damaged, or it belongs to another architecture.
    """
    manager = self._last if which == 'last' else self._best
    step = self._newest(manager)
    if step is None:
      raise CheckpointError(f'{self.folder}: holds no checkpoint; train first or set another workdir')
    abstract = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    try:
      saved = manager.item_metadata(step)['state']
      _check_shapes(self.folder, saved, abstract)
      args = self._ocp.args
      return manager.restore(step, args=args.Composite(state=args.StandardRestore(abstract)))['state']
    except CheckpointError:
      raise
    except (ValueError, KeyError, TypeError, OSError) as error:
      raise CheckpointError(
        f'{manager.directory / str(step)}: is damaged or of another config ({_reason(error)}); '
        'delete it to go on from the one before, or set another workdir'
      ) from None

  def close(self) -> None:
    """Waits for writes and frees the managers.

    Raises:
      CheckpointError: as `wait`.
    """
    try:
      self.wait()
    finally:
      self._last.close()
      self._best.close()


def _check_shapes(folder, saved, like):
  def by_path(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_path(path): tuple(x.shape) for path, x in leaves if hasattr(x, 'shape')}

  saved = by_path(saved.tree if hasattr(saved, 'tree') else saved)
  expected = by_path(like)
  for name in sorted(expected.keys() ^ saved.keys()):
    side = 'the checkpoint' if name in expected else 'this config'
    raise CheckpointError(
      f'{folder}: {side} has no {name}; the checkpoint is of another architecture, set another workdir'
    )
  for name, shape in expected.items():
    if saved[name] != shape:
      raise CheckpointError(
        f'{folder}: {name} has shape {saved[name]} in the checkpoint and {shape} in this config; '
        'use the config it was trained with or another workdir'
      )


def _path(path):
  return '/'.join(str(getattr(p, 'key', getattr(p, 'name', getattr(p, 'idx', p)))) for p in path)


def _digests(folder):
  """SHA-256 of every file of a checkpoint by its path."""
  found = {}
  for path in sorted(p for p in folder.rglob('*') if p.is_file() and p not in (folder / _DIGESTS, folder / _STAMP)):
    with open(path, 'rb') as stream:
      found[str(path.relative_to(folder))] = hashlib.file_digest(stream, 'sha256').hexdigest()
  return found


def _fault(folder):
  """What is wrong with the files of a checkpoint; nothing if they are as they were written, or nobody knows."""
  if not (folder / _DIGESTS).exists():
    return ''
  try:
    written, found = json.loads((folder / _DIGESTS).read_text()), _digests(folder)
    changed = sorted(name for name in written if name != _STAMP and found.get(name) != written[name])
  except (OSError, ValueError, TypeError) as error:
    return f'{_DIGESTS}: {_reason(error)}'
  return f'{changed[0]} {"has changed" if changed[0] in found else "is missing"}' if changed else ''


def _reason(error):
  return (str(error).splitlines() or [type(error).__name__])[0][:160]
