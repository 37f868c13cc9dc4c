"""What is trained: states, steps and scores. A task knows no devices and no files."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrec import metrics
from jaxrec.fourier import abs_squared, ifft2c, sens_reduce
from jaxrec.geometry import center_crop
from jaxrec.models import VarNet, bind, bind_training, coil_maps
from jaxrec.models.draws import hardware_key
from jaxrec.models.registry import inputs
from jaxrec.models.unet import moments, zero_filled
from jaxrec.training.draws import Draws, Place, alone, of_examples
from jaxrec.types import Array, Image, Key, Sample, Scalar, Scan

LOSSES = ('ssim', 'l1', 'normalised_l1', 'mse', 'dssim')


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
    calls: forward and backward passes of the reconstructor per example and step.
    with_variables: `(state, variables) -> state` with these variables of the reconstructor.
    steps: `state -> []`, the number of finished steps.
  """

  init: Callable[[Key, Sample], Any]
  step: Callable[[Any, Sample, Key], tuple[Any, dict[str, Array]]]
  evaluate: Callable[[Any, Sample], dict[str, Array]]
  variables: Callable[[Any], Any]
  calls: tuple[int, int] = (1, 1)
  with_variables: Callable[[Any, Any], Any] = lambda state, variables: state.replace(variables=variables)
  steps: Callable[[Any], Array] = lambda state: state.step


def image_loss(kind: str) -> Callable[[Image, Sample], Scalar]:
  """Training loss of one example: `ssim` (1 - SSIM), `dssim`, or `l1` or `mse` in units of the data range.

  `normalised_l1` is fastMRI's loss of U-Nets: with mean m and unbiased standard
  deviation s of the input image, the zero-filled one cropped to the target's
  size, it is `mean |f(x) - clip(t, m - 6 s, m + 6 s)| / s`.

  Args:
    kind: one of `LOSSES`.

  Returns:
    `(image, sample) -> []`.

  Raises:
    ValueError: for an unknown kind.

  Reference:
    Zbontar et al. 2018, the fastMRI U-Net baseline (`normalised_l1`).
  """
  if kind == 'ssim':
    return lambda image, sample: 1 - metrics.ssim(image, sample.target, sample.scale)
  if kind == 'dssim':
    return lambda image, sample: metrics.dssim(image, sample.target, sample.scale)
  if kind == 'l1':
    return lambda image, sample: jnp.mean(jnp.abs(_error(image, sample)))
  if kind == 'normalised_l1':
    return _normalised_l1
  if kind == 'mse':
    return lambda image, sample: jnp.mean(_error(image, sample) ** 2)
  raise ValueError(f'train.loss: {kind!r} is unknown; choose one of {", ".join(LOSSES)}')


def _normalised_l1(image, sample):
  shape = sample.target.shape
  seen = zero_filled(sample.kspace, sample.mask) if isinstance(sample, Scan) else sample.input
  mean, std = moments(center_crop(seen, shape), (-2, -1))
  # The target that fastMRI shows is clipped as the input is.
  target = jnp.clip(sample.target, mean - 6 * std, mean + 6 * std)
  return jnp.mean(jnp.abs(center_crop(image, shape) - target) / (std + 1e-11))


def _error(image, sample):
  return (center_crop(image, sample.target.shape) - sample.target) / sample.scale


def image_scores(image: Image, sample: Sample) -> dict[str, Scalar]:
  """SSIM, PSNR, NMSE of one example, over the whole image."""
  return {name: getattr(metrics, name)(image, sample.target, sample.scale) for name in ('ssim', 'psnr', 'nmse')}


def supervised(
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  *,
  loss: str = 'ssim',
  maps_weight: float = 0.0,
  micro_batch: int = 0,
  average: Callable[[Any], Any] = lambda tree: tree,
  place: Place = alone,
) -> Task:
  """Training of a reconstructor on pairs of undersampled data and target.

  Args:
    module: the network.
    optimizer: an Optax transformation.
    loss: one of `LOSSES`.
    maps_weight: of `unexplained`, which is added to the loss of a VarNet. Trained on
      the image alone its maps need not be those of the coils, as its cascades learn
      to live with them; on other anatomy they then fail together.
    micro_batch: see `descent`.
    average: averages gradients and metrics over devices, `Parallel.average`.
    place: where in the global batch the examples of a device are, `Parallel.place`.

  Returns:
    The task.

  Raises:
    ValueError: if a network is to have maps that has none.

  Reference:
    Sriram et al. 2020 (SSIM, Adam); Zbontar et al. 2018 (L1, RMSprop).
  """
  loss_of = image_loss(loss)
  if maps_weight and not isinstance(module, VarNet):
    raise ValueError('train.task.maps_weight: only a VarNet estimates maps of coils; set it to 0')

  def batch_loss(forward, variables, batch, draws):
    images, changed = forward(variables, batch, draws.common)
    value = jnp.mean(jax.vmap(loss_of)(images, batch))
    if not maps_weight:
      return value, (changed, {})
    # The network computes the same maps: XLA keeps them once.
    maps = coil_maps(module, variables, batch.kspace, batch.mask, batch.acs)
    left = jnp.mean(jax.vmap(unexplained)(maps, batch.kspace))
    return value + maps_weight * left, (changed, {'unexplained': left})

  return descent(module, optimizer, batch_loss, loss=loss, micro_batch=micro_batch, average=average, place=place)


def unexplained(maps: Array, kspace: Array) -> Scalar:
  """Share of the energy of fully sampled coil images that no image seen through the maps has.

  `1 - sum_p |sum_c conj(S_c) x_c|^2 / sum_p sum_c |x_c|^2`, which is 0 if and only
  if the coil images are one image times the maps, wherever there is one.

  Args:
    maps: `[coil, row, col]` complex, of unit RSS.
    kspace: `[coil, row, col]` complex, fully sampled.

  Reference:
    Pruessmann et al. 1999, the signal model of SENSE.
  """
  images = ifft2c(kspace)
  energy = jnp.sum(abs_squared(images))
  return 1 - jnp.sum(abs_squared(sens_reduce(images, maps))) / jnp.where(energy > 0, energy, 1)


BatchLoss = Callable[[Callable, Any, Sample, Draws], tuple[Scalar, tuple[Any, dict[str, Scalar]]]]


def descent(
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  batch_loss: BatchLoss,
  *,
  loss: str,
  micro_batch: int = 0,
  average: Callable[[Any], Any],
  place: Place,
  calls: tuple[int, int] = (1, 1),
) -> Task:
  """A task of one network and one loss.

  Args:
    module: the network.
    optimizer: an Optax transformation.
    batch_loss: `(forward, variables, batch, draws) -> (loss, (variables, metrics))`
      with `forward` of `models.bind_training`.
    loss: one of `LOSSES`, for the scores.
    micro_batch: examples of a device's share that are in memory at a time; their
      gradients are summed before the one update, so that it changes no result
      but by rounding. 0: all.
    average: averages over devices, `Parallel.average`.
    place: see `supervised`.
    calls: see `Task`.

  Returns:
    The task. Its step raises ValueError if the micro-batch does not divide the
    share, or if the network has batch norm, whose statistics need all of it.
  """
  forward = bind_training(module)

  def step(state, batch, key):
    def of_params(params, batch, draws):
      return batch_loss(forward, {**state.variables, 'params': params}, batch, draws)

    gradient_of = jax.value_and_grad(of_params, has_aux=True)
    count = jax.tree.leaves(batch)[0].shape[0]
    if micro_batch and count % micro_batch:
      raise ValueError(f'train.micro_batch: {micro_batch} does not divide the {count} examples of a device')
    draws = Draws(key, of_examples(key, count, place))
    if not micro_batch or micro_batch == count:
      (value, (variables, extra)), gradient = gradient_of(state.variables['params'], batch, draws)
    else:
      if state.variables.keys() != {'params'}:
        raise ValueError('train.micro_batch: batch norm takes its statistics over the whole batch; set it to 0')
      variables = state.variables
      value, gradient, extra = _accumulated(gradient_of, variables['params'], batch, draws, count // micro_batch)
    value, gradient, extra = average((value, gradient, extra))
    state = update(state, optimizer, gradient, statistics_of(variables, average))
    return state, {'loss': value, 'gradient_norm': optax.tree.norm(gradient), **extra}

  return Task(
    lambda key, batch: jax.jit(lambda key: first_state(module, optimizer, key, batch))(hardware_key(key)),
    step,
    scoring(module, loss),
    lambda state: state.variables,
    calls,
  )


def _accumulated(gradient_of, params, batch, draws, parts):
  """Means over the micro-batches of loss, gradient and metrics."""

  def one(part):
    batch, each = part
    (value, (_, extra)), gradient = gradient_of(params, batch, draws._replace(each=each))
    return value, gradient, extra

  split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), (batch, draws.each))
  first = jax.eval_shape(lambda parts: one(jax.tree.map(lambda x: x[0], parts)), split)
  zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
  total, _ = jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, one(part)), None), zero, split)
  return jax.tree.map(lambda x: x / parts, total)


def first_state(module: nn.Module, optimizer: optax.GradientTransformation, key: Key, batch: Sample) -> TrainState:
  """State before the first step."""
  variables = module.init(key, *inputs(jax.tree.map(lambda x: jnp.asarray(x[:1]), batch)))
  return TrainState(jnp.int32(0), variables, optimizer.init(variables['params']))


def statistics_of(variables: Any, average: Callable[[Any], Any]) -> Any:
  """Everything but the parameters (running statistics), averaged over devices."""
  return average({name: value for name, value in variables.items() if name != 'params'})


def update(state: TrainState, optimizer: optax.GradientTransformation, gradient: Any, statistics: Any) -> TrainState:
  """One step of the optimiser."""
  updates, opt_state = optimizer.update(gradient, state.opt_state, state.variables['params'])
  params = optax.apply_updates(state.variables['params'], updates)
  return TrainState(state.step + 1, {**statistics, 'params': params}, opt_state)


def scoring(module: nn.Module, loss: str) -> Callable[[TrainState, Sample], dict[str, Array]]:
  """The `evaluate` of a task: image scores and loss per example."""
  reconstruct, loss_of = bind(module), image_loss(loss)

  def evaluate(state, batch):
    images = reconstruct(state.variables, batch)
    return jax.vmap(image_scores)(images, batch) | {'loss': jax.vmap(loss_of)(images, batch)}

  return evaluate


def optimizer(
  name: str, learning_rate: optax.ScalarOrSchedule, *, weight_decay: float = 0.0, b1: float = 0.9
) -> optax.GradientTransformation:
  """The optimisers of fastMRI and of the CT networks.

  Args:
    name: `adam`, `rmsprop` (PyTorch's form, decay 0.99) or `adamw`.
    learning_rate: a number, or a `schedule`.
    weight_decay: of `adamw`.
    b1: decay of the first moment of `adam` and `adamw`.

  Returns:
    An Optax transformation.

  Raises:
    ValueError: for an unknown name.
  """
  if name == 'adam':
    return optax.adam(learning_rate, b1=b1)
  if name == 'adamw':
    return optax.adamw(learning_rate, b1=b1, weight_decay=weight_decay)
  if name == 'rmsprop':
    return optax.rmsprop(learning_rate, decay=0.99, eps=1e-8, eps_in_sqrt=False)
  raise ValueError(f'train.optimizer: {name!r} is unknown; choose one of adam, adamw, rmsprop')
