"""Training of the models that describe what a network ignores: conditional VAE and flow."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrec.training.draws import Place, alone, of_batch, of_device
from jaxrec.training.gan import wasserstein
from jaxrec.training.tasks import Task, TrainState, hardware_key, statistics_of, update
from jaxrec.types import Array, Image, Key, Sample


def flow(
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  codes: Callable[[Key, Sample], tuple[Array, Array]],
  *,
  average: Callable[[Any], Any] = lambda tree: tree,
  place: Place = alone,
) -> Task:
  """Maximum likelihood of a conditional flow: `E[0.5 ||v||^2 - log |det dv/dz|]`, `v = t(z | y)`.

  Args:
    module: `models.CINN`.
    optimizer: an Optax transformation.
    codes: `(key, batch) -> (z, y)`, such as posterior samples of a VAE and the
      outputs of a network, `[batch, c]` and `[batch, row, col, ...]`.
    average: averages over devices.
    place: see `tasks.supervised`.

  Returns:
    A task whose `evaluate` gives the negative log-likelihood per example,
    without its constant.

  Reference:
    Rombach et al. 2020, equation (5).
  """

  def nll(variables, z, y):
    v, logdet = module.apply(variables, z, y)
    return 0.5 * jnp.sum(v**2, -1) - logdet

  def init(key, batch):
    def start(key, batch):
      first, second = jax.random.split(key)
      variables = module.init(first, *codes(second, batch))
      return TrainState(jnp.int32(0), variables, optimizer.init(variables['params']))

    return jax.jit(start)(hardware_key(key), jax.tree.map(jnp.asarray, batch))

  def step(state, batch, key):
    z, y = codes(of_device(key, jax.tree.leaves(batch)[0].shape[0], place), batch)

    def loss(params):
      return jnp.mean(nll({'params': params}, z, y))

    value, gradient = average(jax.value_and_grad(loss)(state.variables['params']))
    state = update(state, optimizer, gradient, {})
    return state, {'loss': value, 'gradient_norm': optax.tree.norm(gradient)}

  def evaluate(state, batch):
    # Every example meets the same noise, whatever its place in a batch.
    def one(sample):
      return nll(state.variables, *codes(jax.random.key(0), jax.tree.map(lambda x: x[None], sample)))[0]

    return {'loss': jax.vmap(one)(batch)}

  return Task(init, step, evaluate, lambda state: state.variables)


@struct.dataclass
class VAEState:
  """Autoencoder and critic, each with its number of updates, variables and optimiser."""

  vae: TrainState
  critic: TrainState


def cvae(
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  critic: nn.Module,
  critic_optimizer: optax.GradientTransformation,
  observe: Callable[[Image], Image],
  *,
  image: Callable[[Any], Image] = lambda batch: batch.input,
  perceptual: Callable[[Image, Image], Array] | None = None,
  l1_weight: float = 0.0011852172680049085,
  kl_weight: float = 0.5750362872947617,
  perceptual_weight: float = 0.12101882347522842,
  adversarial_weight: float = 1.0,
  penalty: float = 10.0,
  average: Callable[[Any], Any] = lambda tree: tree,
  place: Place = alone,
) -> Task:
  """Training of a conditional VAE with a WGAN-GP critic.

  Autoencoder: `a sum|x - x'| + b KL + c perceptual(x, x') - d critic(x' | y)`;
  critic: `critic(x' | y) - critic(x | y) + penalty (||grad|| - 1)^2`. Images made
  for the critic are not differentiated by it and do not move the statistics.

  Args:
    module: `models.CVAE`.
    optimizer: an Optax transformation.
    critic: `models.CVAECritic`.
    critic_optimizer: an Optax transformation.
    observe: `images -> y`, the network whose invariances are asked for.
    image: what is modelled; `target` of the batch for the high-dose domain. The
      condition is what the network makes of the input in either.
    perceptual: distance of two batches of images per example; off if `None`.
    l1_weight: a.
    kl_weight: b, with the divergence summed over the code.
    perceptual_weight: c.
    adversarial_weight: d; with 0 the critic is still trained but not felt.
    penalty: of the critic's gradient with respect to image and condition.
    average: averages over devices.
    place: see `tasks.supervised`.

  Returns:
    A task whose state is a `VAEState`.

  Reference:
    Eulig et al. 2022; Gulrajani et al. 2017, WGAN-GP.
  """
  mutable = ['batch_stats', 'spectral']

  def start(rule, variables):
    return TrainState(jnp.int32(0), variables, rule.init(variables['params']))

  def init(key, batch):
    def make(key, batch):
      keys = jax.random.split(key, 3)
      x = image(batch)
      y = observe(batch.input)
      return VAEState(
        start(optimizer, module.init(keys[0], x, y, keys[1])),
        start(critic_optimizer, critic.init(keys[2], x, y)),
      )

    return jax.jit(make)(hardware_key(key), jax.tree.map(jnp.asarray, batch))

  def terms(x, y, output):
    made, mean, logvar = output
    kl = 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - 1 - logvar, -1)
    l1 = jnp.sum(jnp.abs(x - made), (1, 2))
    seen = perceptual(x, made) if perceptual else jnp.zeros_like(l1)
    return l1_weight * l1 + kl_weight * kl + perceptual_weight * seen, {
      'l1': jnp.mean(l1) / x[0].size,
      'kl': jnp.mean(kl),
    }

  def step(state, batch, key):
    x = image(batch)
    y = jax.lax.stop_gradient(observe(batch.input))
    draw, mix = jax.random.split(key)
    draw = of_device(draw, x.shape[0], place)

    def vae_loss(params):
      output, changed = module.apply({**state.vae.variables, 'params': params}, x, y, draw, mutable=mutable)
      own, shown = terms(x, y, output)
      score = jnp.mean(critic.apply(state.critic.variables, output[0], y))
      return jnp.mean(own) - adversarial_weight * score, (changed, output[0], shown)

    (value, (changed, made, shown)), gradient = jax.value_and_grad(vae_loss, has_aux=True)(
      state.vae.variables['params']
    )
    made = jax.lax.stop_gradient(made)
    share = of_batch(lambda n: jax.random.uniform(mix, (n, 1, 1), x.dtype), x.shape[0], place)

    def critic_loss(params):
      return wasserstein(lambda *images: critic.apply({'params': params}, *images), (x, y), (made, y), share, penalty)

    (_, apart), slope = jax.value_and_grad(critic_loss, has_aux=True)(state.critic.variables['params'])
    value, gradient, slope, shown, apart = average((value, gradient, slope, shown, apart))
    vae = update(
      state.vae, optimizer, gradient, {**statistics_of(state.vae.variables, lambda t: t), **average(changed)}
    )
    state = VAEState(vae, update(state.critic, critic_optimizer, slope, {}))
    return state, {'loss': value, 'gradient_norm': optax.tree.norm(gradient), 'wasserstein': apart, **shown}

  def evaluate(state, batch):
    x = image(batch)
    y = observe(batch.input)
    # Every example meets the same noise, whatever its place in a batch.
    output = jax.vmap(
      lambda x, y: jax.tree.map(lambda t: t[0], module.apply(state.vae.variables, x[None], y[None], jax.random.key(0)))
    )(x, y)
    own, _ = terms(x, y, output)
    return {'loss': own, 'l1': jnp.mean(jnp.abs(output[0] - x), (1, 2))}

  return Task(
    init,
    step,
    evaluate,
    lambda state: state.vae.variables,
    with_variables=lambda state, variables: state.replace(vae=state.vae.replace(variables=variables)),
    steps=lambda state: state.vae.step,
  )
