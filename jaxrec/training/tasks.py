"""What is trained: states, steps and scores. A task knows no devices and no files."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrec import metrics
from jaxrec.geometry import center_crop
from jaxrec.models import bind
from jaxrec.types import Array, Image, Key, Sample, Scalar

LOSSES = ('ssim', 'l1', 'mse')


@struct.dataclass
class TrainState:
  """`step` is the number of finished updates."""

  step: Array
  variables: Any
  opt_state: Any


class Task(NamedTuple):
  """A training problem.

  Attributes:
    init: `(key, batch) -> state`.
    step: `(state, batch, key) -> (state, metrics)`, for one device's share.
    evaluate: `(state, batch) -> metrics`, each with one value per example.
    variables: `state -> variables` of the reconstructor.
  """

  init: Callable[[Key, Sample], Any]
  step: Callable[[Any, Sample, Key], tuple[Any, dict[str, Array]]]
  evaluate: Callable[[Any, Sample], dict[str, Array]]
  variables: Callable[[Any], Any]


def image_loss(kind: str) -> Callable[[Image, Sample], Scalar]:
  """Training loss of one example: `ssim` (1 - SSIM), or `l1` or `mse` in units of the data range.

  Args:
    kind: one of `LOSSES`.

  Returns:
    `(image, sample) -> []`.

  Raises:
    ValueError: for an unknown kind.
  """
  if kind == 'ssim':
    return lambda image, sample: 1 - metrics.ssim(image, sample.target, sample.scale)
  if kind == 'l1':
    return lambda image, sample: jnp.mean(jnp.abs(_error(image, sample)))
  if kind == 'mse':
    return lambda image, sample: jnp.mean(_error(image, sample) ** 2)
  raise ValueError(f'train.loss: {kind!r} is unknown; choose one of {", ".join(LOSSES)}')


def _error(image, sample):
  return (center_crop(image, sample.target.shape) - sample.target) / sample.scale


def image_scores(image: Image, sample: Sample) -> dict[str, Scalar]:
  """SSIM, PSNR, NMSE of one example, over the whole image."""
  return {
    name: getattr(metrics, name)(image, sample.target, sample.scale) for name in ('ssim', 'psnr', 'nmse')
  }


def hardware_key(key: Key) -> Key:
  """The key for XLA's own generator: drawing a network's weights by Threefry takes long to compile."""
  data = jax.random.key_data(key)
  return jax.random.wrap_key_data(jnp.concatenate([data, data]), impl='rbg')


def supervised(
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  *,
  loss: str = 'ssim',
  average: Callable[[Any], Any] = lambda tree: tree,
) -> Task:
  """Training of a reconstructor on pairs of undersampled data and target.

  Args:
    module: the network.
    optimizer: an Optax transformation.
    loss: one of `LOSSES`.
    average: averages gradients and metrics over devices, `Parallel.average`.

  Returns:
    The task.

  Reference:
    Sriram et al. 2020 (SSIM, Adam); Zbontar et al. 2018 (L1, RMSprop).
  """
  reconstruct = bind(module)
  loss_of = image_loss(loss)

  def init(key, batch):
    sample = jax.tree.map(lambda x: jnp.asarray(x[0]), batch)

    def start(key):
      variables = module.init(key, sample.kspace, sample.mask, sample.acs)
      return TrainState(jnp.int32(0), variables, optimizer.init(variables['params']))

    return jax.jit(start)(hardware_key(key))

  def step(state, batch, key):
    del key

    def batch_loss(params):
      images = reconstruct({**state.variables, 'params': params}, batch)
      return jnp.mean(jax.vmap(loss_of)(images, batch))

    value, gradient = jax.value_and_grad(batch_loss)(state.variables['params'])
    value, gradient = average((value, gradient))
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.variables['params'])
    params = optax.apply_updates(state.variables['params'], updates)
    state = TrainState(state.step + 1, {**state.variables, 'params': params}, opt_state)
    return state, {'loss': value, 'gradient_norm': optax.tree.norm(gradient)}

  def evaluate(state, batch):
    images = reconstruct(state.variables, batch)
    return jax.vmap(image_scores)(images, batch) | {'loss': jax.vmap(loss_of)(images, batch)}

  return Task(init, step, evaluate, lambda state: state.variables)


def optimizer(
  name: str, learning_rate: float, *, drop_at: int | None = None, drop_factor: float = 0.1, weight_decay: float = 0.0
) -> optax.GradientTransformation:
  """The optimisers of fastMRI, with a step-wise drop of the learning rate.

  Args:
    name: `adam`, `rmsprop` (PyTorch's form, decay 0.99) or `adamw`.
    learning_rate: before the drop.
    drop_at: step of the drop, or `None`.
    drop_factor: factor of the drop.
    weight_decay: of `adamw`.

  Returns:
    An Optax transformation.

  Raises:
    ValueError: for an unknown name.
  """
  schedule = learning_rate
  if drop_at is not None:
    schedule = optax.piecewise_constant_schedule(learning_rate, {drop_at: drop_factor})
  if name == 'adam':
    return optax.adam(schedule)
  if name == 'adamw':
    return optax.adamw(schedule, weight_decay=weight_decay)
  if name == 'rmsprop':
    return optax.rmsprop(schedule, decay=0.99, eps=1e-8, eps_in_sqrt=False)
  raise ValueError(f'train.optimizer: {name!r} is unknown; choose one of adam, adamw, rmsprop')
