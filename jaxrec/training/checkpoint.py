"""Checkpoints of any task's state; the only place that knows Orbax.

`last` keeps the newest two, so that a process killed while writing leaves one
whole; `best` keeps the best by validation. Arrays are written by process 0.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp



class CheckpointError(ValueError):
  """A checkpoint that does not fit; the message names the folder and the remedy."""


class Checkpointer:
  """Saves and restores states in `<folder>/last` and `<folder>/best`.

  Args:
    folder: created if missing.
  """

  def __init__(self, folder: str | Path):
    logging.getLogger('absl').setLevel(logging.ERROR)
    self.folder = Path(folder).absolute()
    self._last = self._manager('last', keep=2)
    self._best = self._manager('best', keep=1)

  def _manager(self, name, keep):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=False)
    handlers = {'state': ocp.StandardCheckpointHandler(), 'score': ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(self.folder / name, options=options, item_handlers=handlers)

  def latest_step(self) -> int | None:
    """Step of the newest state, or `None`."""
    return self._last.latest_step()

  def best_step(self) -> int | None:
    """Step of the best state, or `None`."""
    return self._best.latest_step()

  def best_score(self) -> float:
    """Score of the best state, or minus infinity."""
    step = self._best.latest_step()
    if step is None:
      return -float('inf')
    return float(self._best.restore(step, args=ocp.args.Composite(score=ocp.args.JsonRestore()))['score']['score'])

  def save_last(self, step: int, state: Any) -> None:
    """Writes the newest state; keeps the one before it."""
    self._last.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))
    self._last.wait_until_finished()

  def save_best(self, step: int, state: Any, score: float) -> None:
    """Writes a state as the best one."""
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), score=ocp.args.JsonSave({'score': float(score)}))
    if step in self._best.all_steps():
      return
    self._best.save(step, args=args)
    self._best.wait_until_finished()

  def restore(self, like: Any, *, which: str = 'last') -> Any:
    """Reads a state.

    Args:
      like: a state, or shapes, of the same structure.
      which: `last` or `best`.

    Returns:
      The state, as NumPy arrays.

    Raises:
      CheckpointError: if there is none, or it belongs to another architecture.
    """
    manager = self._last if which == 'last' else self._best
    step = manager.latest_step()
    if step is None:
      raise CheckpointError(f'{self.folder}: holds no checkpoint; train first or set another workdir')
    abstract = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    try:
      saved = manager.item_metadata(step)['state']
      _check_shapes(self.folder, saved, abstract)
      return manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))['state']
    except CheckpointError:
      raise
    except (ValueError, KeyError, TypeError, OSError) as error:
      line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
      raise CheckpointError(
        f'{self.folder}: checkpoint {step} does not fit this config ({line[:160]}); '
        'use the config it was trained with or another workdir'
      ) from None

  def close(self) -> None:
    """Waits for writes and frees the managers."""
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
    raise CheckpointError(f'{folder}: {side} has no {name}; the checkpoint is of another architecture, set another workdir')
  for name, shape in expected.items():
    if saved[name] != shape:
      raise CheckpointError(
        f'{folder}: {name} has shape {saved[name]} in the checkpoint and {shape} in this config; '
        'use the config it was trained with or another workdir'
      )


def _path(path):
  return '/'.join(str(getattr(p, 'key', getattr(p, 'name', getattr(p, 'idx', p)))) for p in path)


