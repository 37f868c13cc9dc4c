"""Training tasks, the loop, checkpoints and data parallelism."""

from jaxrec.training.checkpoint import Checkpointer, CheckpointError
from jaxrec.training.loop import Diverged, fit
from jaxrec.training.parallel import Parallel, data_parallel
from jaxrec.training.tasks import Task, TrainState, image_loss, image_scores, optimizer, supervised

__all__ = [
  'Checkpointer',
  'CheckpointError',
  'Diverged',
  'Parallel',
  'Task',
  'TrainState',
  'data_parallel',
  'fit',
  'image_loss',
  'image_scores',
  'optimizer',
  'supervised',
]
