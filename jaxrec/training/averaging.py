"""A running mean of the weights of a training, which is what is validated and kept."""

from typing import Any

import jax.numpy as jnp
import optax
from flax import struct

from jaxrec.training.tasks import Task


@struct.dataclass
class AveragedState:
  """`state` is that of the task itself, `average` the averaged parameters of its reconstructor."""

  state: Any
  average: Any


def averaged(task: Task, decay: float) -> Task:
  """A task whose reconstructor is an exponential moving average of its iterates.

  `a_n = a_(n-1) + max(1 - decay, 1/n) (p_n - a_(n-1))`: the mean of all iterates
  until it reaches as far back as the decay does, so that the start is forgotten.
  The training itself is that of the task. Running statistics are the newest.

  Args:
    task: what is trained.
    decay: in (0, 1).

  Returns:
    The task; its state is an `AveragedState`, its variables and scores those of
    the average.

  Reference:
    Polyak and Juditsky 1992; Tarvainen and Valpola 2017 (decay).
  """

  def variables(state):
    return {**task.variables(state.state), 'params': state.average}

  def with_variables(state, variables):
    return AveragedState(task.with_variables(state.state, variables), variables['params'])

  def init(key, batch):
    state = task.init(key, batch)
    return AveragedState(state, task.variables(state)['params'])

  def step(state, batch, key):
    inner, metrics = task.step(state.state, batch, key)
    share = jnp.maximum(1 - decay, 1 / task.steps(inner))
    average = optax.incremental_update(task.variables(inner)['params'], state.average, share)
    return AveragedState(inner, average), metrics

  return task._replace(
    init=init,
    step=step,
    evaluate=lambda state, batch: task.evaluate(task.with_variables(state.state, variables(state)), batch),
    variables=variables,
    with_variables=with_variables,
    steps=lambda state: task.steps(state.state),
  )
