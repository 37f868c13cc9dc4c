"""Training that withstands perturbations: tasks of one network."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrec.attacks import Perturbation, Search, farthest, local_lipschitz, seek
from jaxrec.geometry import center_crop
from jaxrec.models import bind, bind_training
from jaxrec.training.draws import Place, alone, of_examples
from jaxrec.training.tasks import Task, descent, image_loss, statistics_of, update
from jaxrec.types import Objective


def _non_negative(name, value):
  if not value >= 0:
    raise ValueError(f'train.{name}: {value} is negative; give at least 0')


def worst_case(
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  perturbation: Perturbation,
  search: Search,
  objective: Objective,
  *,
  loss: str = 'ssim',
  clean_weight: float = 1.0,
  robust_weight: float = 1.0,
  micro_batch: int = 0,
  average: Callable[[Any], Any] = lambda tree: tree,
  place: Place = alone,
) -> Task:
  """Adversarial training: descent on the worst case that a search finds.

  `min_theta E[a L(f(x), t) + b L(f(x + d*), t)]` with `d*` maximising the
  objective, which looks at the region of the sample: with annotated examples
  the training is aimed at the regions.

  Args:
    module: the network.
    optimizer: an Optax transformation.
    perturbation: what may change.
    search: how the worst case is sought, such as `pgd(num_steps=5)`.
    objective: what the search maximises.
    loss: one of `LOSSES`.
    clean_weight: a.
    robust_weight: b.
    micro_batch: see `tasks.descent`.
    average: averages over devices, `Parallel.average`.
    place: see `tasks.supervised`.

  Returns:
    The task.

  Reference:
    Madry et al. 2018; Caliva et al. 2020 (MR reconstruction).
  """
  _non_negative('clean_weight', clean_weight)
  _non_negative('robust_weight', robust_weight)
  loss_of = image_loss(loss)
  reconstruct = bind(module)

  def batch_loss(forward, variables, batch, draws):
    worst = _worst(reconstruct, variables, perturbation, search, objective, draws.each, batch)
    images, variables = forward(variables, batch)
    attacked, variables = forward(variables, jax.vmap(perturbation.apply)(worst, batch))
    clean, robust = (jnp.mean(jax.vmap(loss_of)(x, batch)) for x in (images, attacked))
    return clean_weight * clean + robust_weight * robust, (variables, {'loss_clean': clean, 'loss_perturbed': robust})

  calls = _calls(search)
  return descent(
    module, optimizer, batch_loss, loss=loss, micro_batch=micro_batch, average=average, place=place, calls=calls
  )


def _calls(search):
  # Trained on what is clean and on what the search found.
  return search.forward_calls + search.backward_calls + 2, search.backward_calls + 2


def _worst(reconstruct, variables, perturbation, search, objective, keys, batch):
  variables, batch = lax.stop_gradient((variables, batch))
  found = jax.vmap(seek(reconstruct, perturbation, search, objective), (None, 0, 0))(variables, keys, batch)
  return found.delta


def consistency(
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  perturbation: Perturbation,
  search: Search,
  *,
  loss: str = 'ssim',
  robust_weight: float = 10.0,
  micro_batch: int = 0,
  average: Callable[[Any], Any] = lambda tree: tree,
  place: Place = alone,
) -> Task:
  """TRADES for images: the clean loss, and the distance of clean and perturbed output.

  `min_theta E[L(f(x), t) + b max_d ||f(x + d) - f(x)||^2 / (n scale^2)]`.

  Args:
    module: the network.
    optimizer: an Optax transformation.
    perturbation: needs `start='random'`, as the distance is flat at 0.
    search: how the largest distance is sought.
    loss: one of `LOSSES`, of the clean term.
    robust_weight: b.
    micro_batch: see `tasks.descent`.
    average: averages over devices.
    place: see `tasks.supervised`.

  Returns:
    The task.

  Reference:
    Zhang et al. 2019, TRADES, with the squared distance of images.
  """
  _non_negative('robust_weight', robust_weight)
  loss_of, distance = image_loss(loss), image_loss('mse')
  reconstruct = bind(module)

  def batch_loss(forward, variables, batch, draws):
    images, variables = forward(variables, batch)
    crop = jax.vmap(lambda image, sample: center_crop(image, sample.target.shape))
    own = batch.replace(target=crop(images, batch))
    worst = _worst(reconstruct, variables, perturbation, search, distance, draws.each, own)
    attacked, variables = forward(variables, jax.vmap(perturbation.apply)(worst, batch))
    clean, apart = jnp.mean(jax.vmap(loss_of)(images, batch)), jnp.mean(jax.vmap(distance)(attacked, own))
    return clean + robust_weight * apart, (variables, {'loss_clean': clean, 'distance': apart})

  calls = _calls(search)
  return descent(
    module, optimizer, batch_loss, loss=loss, micro_batch=micro_batch, average=average, place=place, calls=calls
  )


def free(
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  perturbation: Perturbation,
  *,
  replays: int = 4,
  step_size: float = 1.0,
  loss: str = 'ssim',
  average: Callable[[Any], Any] = lambda tree: tree,
  place: Place = alone,
) -> Task:
  """Adversarial training at the price of ordinary training: every gradient is used twice.

  Each batch is replayed; one backward pass gives the step of the network and the
  step of the perturbation, which carries over to the next replay.

  Args:
    module: the network.
    optimizer: an Optax transformation; it steps `replays` times per batch.
    perturbation: what may change; a random start is usual.
    replays: updates per batch.
    step_size: of the perturbation, in units of the feasible set's radius.
    loss: one of `LOSSES`.
    average: averages over devices.
    place: see `tasks.supervised`.

  Returns:
    The task.

  Raises:
    ValueError: if `replays` is not positive.

  Reference:
    Shafahi et al. 2019, Adversarial training for free; Wong et al. 2020.
  """
  if replays < 1:
    raise ValueError(f'train.replays: {replays} is not positive; give at least 1')
  loss_of, forward = image_loss(loss), bind_training(module)

  def unused(forward, variables, batch, draws):
    raise AssertionError('free has a step of its own')

  plain = descent(module, optimizer, unused, loss=loss, average=average, place=place)

  def step(state, batch, key):
    project = jax.vmap(perturbation.project)

    def replay(carry, _):
      state, delta = carry

      def cost(params, delta):
        images, variables = forward({**state.variables, 'params': params}, jax.vmap(perturbation.apply)(delta, batch))
        return jnp.mean(jax.vmap(loss_of)(images, batch)), variables

      (value, variables), (gradient, ascent) = jax.value_and_grad(cost, (0, 1), has_aux=True)(
        state.variables['params'], delta
      )
      value, gradient = average((value, gradient))
      ascent = jax.tree.map(jnp.conj, ascent)
      move = jax.vmap(lambda g, sample: farthest(g, lambda d: perturbation.project(d, sample)))(ascent, batch)
      delta = project(jax.tree.map(lambda d, m: d + step_size * m, delta, move), batch)
      state = update(state, optimizer, gradient, statistics_of(variables, average))
      return (state, delta), (value, optax.tree.norm(gradient))

    count = jax.tree.leaves(batch)[0].shape[0]
    delta = project(jax.vmap(perturbation.init)(of_examples(key, count, place), batch), batch)
    number = state.step + 1
    (state, _), (values, norms) = lax.scan(replay, (state, delta), None, length=replays)
    return state.replace(step=number), {'loss': values[-1], 'gradient_norm': norms[-1]}

  return plain._replace(step=step, calls=(replays, replays))


def jitter(
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  perturbation: Perturbation,
  *,
  loss: str = 'ssim',
  micro_batch: int = 0,
  average: Callable[[Any], Any] = lambda tree: tree,
  place: Place = alone,
) -> Task:
  """Training with random noise on the measurement, of a strength drawn for every example.

  `min_theta E[L(f(x + s d), t)]`, d a random start of the perturbation, s ~ U(0, 1).

  Args:
    module: the network.
    optimizer: an Optax transformation.
    perturbation: with `start='random'`.
    loss: one of `LOSSES`.
    micro_batch: see `tasks.descent`.
    average: averages over devices.
    place: see `tasks.supervised`.

  Returns:
    The task.

  Reference:
    Genzel, Macdonald and Maerz 2022, section 4.
  """
  loss_of = image_loss(loss)

  def batch_loss(forward, variables, batch, draws):
    def noisy(key, sample):
      draw, size = jax.random.split(key)
      delta, share = perturbation.init(draw, sample), jax.random.uniform(size, (), sample.target.dtype)
      return perturbation.apply(jax.tree.map(lambda x: share * x, delta), sample)

    images, variables = forward(variables, jax.vmap(noisy)(draws.each, batch))
    return jnp.mean(jax.vmap(loss_of)(images, batch)), (variables, {})

  return descent(module, optimizer, batch_loss, loss=loss, micro_batch=micro_batch, average=average, place=place)


def jacobian(
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  perturbation: Perturbation,
  *,
  num_iterations: int = 2,
  robust_weight: float = 0.1,
  step_size: float = 0.1,
  loss: str = 'ssim',
  micro_batch: int = 0,
  average: Callable[[Any], Any] = lambda tree: tree,
  place: Place = alone,
) -> Task:
  """Penalises the largest first-order change of the image over the feasible set.

  `L + b ||J d*||^2 / (n scale^2)`, d* the direction that the network amplifies
  most, by power iteration with J and its transpose (`attacks.local_lipschitz`).
  The penalty itself is a difference along d*, `(f(x + h d*) - f(x)) / h`, so
  that training needs no second derivatives.

  Args:
    module: the network.
    optimizer: an Optax transformation.
    perturbation: what may change.
    num_iterations: of the power iteration, from a random direction.
    robust_weight: b.
    step_size: h, a share of the feasible set's radius.
    loss: one of `LOSSES`.
    micro_batch: see `tasks.descent`.
    average: averages over devices.
    place: see `tasks.supervised`.

  Returns:
    The task.

  Reference:
    Yoshida and Miyato 2017; Hoffman et al. 2019 (Jacobian regularisation).
  """
  _non_negative('robust_weight', robust_weight)
  if not step_size > 0:
    raise ValueError(f'train.step_size: {step_size} is not positive')
  loss_of, reconstruct = image_loss(loss), bind(module)
  amplify = local_lipschitz(reconstruct, perturbation, num_iterations=num_iterations)

  def batch_loss(forward, variables, batch, draws):
    fixed = lax.stop_gradient(variables)
    worst = jax.vmap(lambda k, sample: amplify(fixed, k, sample).delta)(draws.each, batch)
    images, variables = forward(variables, batch)
    worst = jax.tree.map(lambda d: step_size * d, worst)
    moved, variables = forward(variables, jax.vmap(perturbation.apply)(worst, batch))

    def change(image, other, sample):
      apart = center_crop(other - image, sample.target.shape) / (step_size * sample.scale)
      return jnp.mean(apart**2)

    clean = jnp.mean(jax.vmap(loss_of)(images, batch))
    amplified = jnp.mean(jax.vmap(change)(images, moved, batch))
    return clean + robust_weight * amplified, (variables, {'loss_clean': clean, 'amplification': amplified})

  # Each iteration pulls back once and pushes forward once; the first direction is pulled back, too.
  calls = (3 + num_iterations, 3 + num_iterations)
  return descent(
    module, optimizer, batch_loss, loss=loss, micro_batch=micro_batch, average=average, place=place, calls=calls
  )
