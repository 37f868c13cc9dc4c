"""Pictures of the validations of a training: the same few slices every time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxrec import results
from jaxrec.data import loader
from jaxrec.geometry import center_crop
from jaxrec.models import bind
from jaxrec.reports import figures
from jaxrec.training import Parallel, Task
from jaxrec.workflows import datasets
from jaxrec.workflows.experiment import Experiment


def painter(
  experiment: Experiment, data: datasets.Data, task: Task, module: nn.Module, parallel: Parallel, folder: Path
) -> Callable[[Any], None]:
  """Draws target, reconstruction and error of `train.pictures` slices, spread evenly over the validation.

  Args:
    experiment: with its training.
    data: its data.
    task: its task.
    module: its network.
    parallel: devices.
    folder: of the figures; a state after step s is `validation-s.png`, with eight digits.

  Returns:
    `replicated state -> None`.
  """
  examples = datasets.training_examples(experiment.data, data.val.volumes)
  examples = loader.spread(examples, experiment.training.pictures)
  reconstruct = jax.jit(bind(module))

  def paint(state: Any) -> None:
    state = parallel.first(state)
    step, variables, shown = int(task.steps(state)), jax.device_put(task.variables(state)), []
    for example in examples:
      sample = data.read(example, 0)
      image = np.asarray(center_crop(reconstruct(variables, sample), sample.target.shape))
      shown.append((f'{example.volume.name}\nslice {example.slice}', sample.target, image))
    panel = figures.validation_panel(shown, f'step {step}')
    results.write_bytes(folder / f'validation-{step:08d}.png', figures.png(panel, dpi=100))

  return paint
