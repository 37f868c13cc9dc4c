"""Adversarial training against a generator of perturbations: two players."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax

from jaxrec.attacks import Perturbation
from jaxrec.fourier import abs_squared
from jaxrec.models import bind, bind_training
from jaxrec.training.draws import Place, alone, of_batch
from jaxrec.training.tasks import (
  Task,
  TrainState,
  first_state,
  hardware_key,
  image_loss,
  image_scores,
  statistics_of,
  update,
)
from jaxrec.types import Delta, Key, Variables


class Adversary(NamedTuple):
  """A network that makes perturbations.

  Attributes:
    init: `(key, batch) -> variables`.
    perturb: `(variables, key, batch, place) -> (deltas, variables)` in training, of the
      examples that a device has of a batch (see `tasks.supervised`).
    draw: `(variables, key, sample) -> delta` for one example, with the running
      statistics.
  """

  # Of any sample: one takes scans, the other slices.
  init: Callable[[Key, Any], Variables]
  perturb: Callable[[Variables, Key, Any, Place], tuple[Delta, Variables]]
  draw: Callable[[Variables, Key, Any], Delta]


@struct.dataclass
class AdversarialState:
  """Both players, each with its number of updates, variables and optimiser."""

  reconstructor: TrainState
  generator: TrainState


def image_adversary(module: nn.Module, *, latent: int = 100, latent_scale: float = 1.0) -> Adversary:
  """Perturbations of the network's input image, from latent noise.

  `delta = std(x) G(s n)`, `n ~ N(0, I)`: G works in units of the normalised image.

  Args:
    module: `models.DCGAN` of the image's size.
    latent: length of the latent vector.
    latent_scale: s; the authors' code has 1e-3 where the report has 1.

  Returns:
    An adversary for `Slice`.

  Reference:
    Huang and Liang 2020, algorithm 1.
  """

  def unit(batch):
    return jnp.std(batch.input, axis=(-2, -1), keepdims=True, ddof=1)

  def noise(key, count, dtype):
    return latent_scale * jax.random.normal(key, (count, latent), dtype)

  def perturb(variables, key, batch, place):
    latents = of_batch(lambda n: noise(key, n, batch.input.dtype), batch.input.shape[0], place)
    images, changed = module.apply(variables, latents, mutable=['batch_stats'])
    return unit(batch) * images, {**variables, **changed}

  return Adversary(
    init=lambda key, batch: module.init(key, jnp.zeros((2, latent), batch.input.dtype)),
    perturb=perturb,
    draw=lambda variables, key, sample: unit(sample) * module.apply(variables, noise(key, 1, sample.input.dtype))[0],
  )


def kspace_adversary(module: nn.Module, *, relative_radius: float) -> Adversary:
  """Perturbations inside the sampled k-space, conditioned on the measured k-space.

  `delta = eta G(k)`; G returns noise of about the norm of every coil.

  Args:
    module: `models.KspaceGenerator`.
    relative_radius: eta, which sets the scale of the start.

  Returns:
    An adversary for `Scan`, single- or multi-coil.

  Reference:
    Huang and Liang 2020, section 5 and algorithm 2.
  """

  def deltas(variables, batch):
    return relative_radius * module.apply(variables, batch.kspace, batch.mask & batch.acquired)

  return Adversary(
    init=lambda key, batch: module.init(key, batch.kspace[:1], batch.mask[:1]),
    perturb=lambda variables, key, batch, place: (deltas(variables, batch), variables),
    draw=lambda variables, key, sample: deltas(variables, sample),
  )


def adversarial(
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  adversary: Adversary,
  generator_optimizer: optax.GradientTransformation,
  perturbation: Perturbation,
  *,
  loss: str = 'mse',
  robust_weight: float = 1.0,
  hinge_weight: float = 1.0,
  epsilon: float = 1.0,
  project: bool = False,
  frozen: Variables | None = None,
  average: Callable[[Any], Any] = lambda tree: tree,
  place: Place = alone,
) -> Task:
  """Joint training of a reconstructor and a generator of perturbations.

  `min_theta max_phi L(f(x), t) + a L(f(x + G), t) - l max(0, ||G||^2 - epsilon)`,
  one step of the generator, then one of the reconstructor against the new
  generator. The generator's norm is measured by the perturbation's budget:
  `||G||^2 = epsilon budget^2`.

  Args:
    module: the reconstructor.
    optimizer: its Optax transformation.
    adversary: the generator.
    generator_optimizer: its Optax transformation.
    perturbation: how deltas enter, and the bound that the hinge refers to.
    loss: one of `LOSSES`; the paper uses `mse` and `dssim`.
    robust_weight: a, `alpha_1` of the paper.
    hinge_weight: l, `-alpha_2` of the paper.
    epsilon: bound of the squared norm, in the units of `hinge_weight`.
    project: perturbations are also projected to be feasible, so that the
      players meet at the very budget of the attacks (not in the paper).
    frozen: variables of a reconstructor that is not to be trained: a generator
      is fitted against it alone.
    average: averages over devices.
    place: see `tasks.supervised`.

  Returns:
    A task whose state is an `AdversarialState`. Its metrics show both losses and
    gradient norms, the share of the budget in use, and `diversity`: one minus the
    squared norm of the mean perturbation over the mean squared norm, 0 when all
    are the same.

  Reference:
    Huang and Liang 2020, equation (9), algorithms 1 and 2; Raj et al. 2020.
  """
  loss_of, forward, reconstruct = image_loss(loss), bind_training(module), bind(module)

  def init(key, batch):
    def start(key):
      first, second = jax.random.split(key)
      variables = adversary.init(second, jax.tree.map(jnp.asarray, batch))
      generator = TrainState(jnp.int32(0), variables, generator_optimizer.init(variables['params']))
      return AdversarialState(first_state(module, optimizer, first, batch), generator)

    state = jax.jit(start)(hardware_key(key))
    if frozen is not None:
      state = state.replace(reconstructor=state.reconstructor.replace(variables=jax.tree.map(jnp.asarray, frozen)))
    return state

  def perturb(variables, key, batch):
    delta, variables = adversary.perturb(variables, key, batch, place)
    used = jax.vmap(perturbation.budget)(delta, batch)
    if project:
      delta = jax.vmap(perturbation.project)(delta, batch)
    return delta, jax.vmap(perturbation.apply)(delta, batch), used, variables

  def mean_loss(variables, seen, batch):
    images, variables = forward(variables, seen)
    return jnp.mean(jax.vmap(loss_of)(images, batch)), variables

  def step(state, batch, key):
    reconstructor, generator = state.reconstructor, state.generator

    def against(params):
      delta, seen, used, variables = perturb({**generator.variables, 'params': params}, key, batch)
      harm, _ = mean_loss(reconstructor.variables, seen, batch)
      hinge = jnp.mean(jnp.maximum(0, epsilon * used**2 - epsilon))
      return hinge_weight * hinge - robust_weight * harm, (variables, delta, used)

    (value, (variables, delta, used)), slope = jax.value_and_grad(against, has_aux=True)(generator.variables['params'])
    value, slope = average((value, slope))
    generator = update(generator, generator_optimizer, slope, statistics_of(variables, average))

    seen = lax.stop_gradient(perturb(generator.variables, key, batch)[1])

    def cost(params):
      clean, variables = mean_loss({**reconstructor.variables, 'params': params}, batch, batch)
      perturbed, variables = mean_loss(variables, seen, batch)
      return clean + robust_weight * perturbed, (variables, clean, perturbed)

    if frozen is None:
      (total, (variables, clean, perturbed)), gradient = jax.value_and_grad(cost, has_aux=True)(
        reconstructor.variables['params']
      )
      gradient = average(gradient)
      reconstructor = update(reconstructor, optimizer, gradient, statistics_of(variables, average))
      norm = optax.tree.norm(gradient)
    else:
      total, (_, clean, perturbed) = cost(reconstructor.variables['params'])
      norm = jnp.zeros_like(total)
    size = jax.vmap(lambda d: d / jnp.sqrt(jnp.maximum(jnp.sum(abs_squared(d)), 1e-30)))(delta)
    middle = average(jnp.mean(size, 0))
    metrics = average({'loss': total, 'loss_clean': clean, 'loss_perturbed': perturbed, 'budget_used': jnp.mean(used)})
    return AdversarialState(reconstructor, generator), metrics | {
      'loss_generator': value,
      'gradient_norm': norm,
      'gradient_norm_generator': optax.tree.norm(slope),
      'diversity': 1 - jnp.sum(abs_squared(middle)),
    }

  def evaluate(state, batch):
    variables = state.reconstructor.variables

    def one(key, sample):
      delta = perturbation.project(adversary.draw(state.generator.variables, key, sample), sample)
      clean, attacked = (reconstruct(variables, s) for s in (sample, perturbation.apply(delta, sample)))
      total = loss_of(clean, sample) + robust_weight * loss_of(attacked, sample)
      under = {f'{name}_perturbed': x for name, x in image_scores(attacked, sample).items()}
      return image_scores(clean, sample) | under | {'loss': total}

    # Every example meets the same latent vector, whatever its place in a batch.
    keys = jnp.broadcast_to(jax.random.key(0), (jax.tree.leaves(batch)[0].shape[0],))
    return jax.vmap(one)(keys, batch)

  return Task(
    init,
    step,
    evaluate,
    lambda state: state.reconstructor.variables,
    (3, 3) if frozen is None else (3, 1),
    lambda state, variables: state.replace(reconstructor=state.reconstructor.replace(variables=variables)),
    # The reconstructor may be frozen.
    lambda state: state.generator.step,
  )
