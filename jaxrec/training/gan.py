"""Adversarially trained denoisers: WGAN-VGG and DU-GAN."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax

from jaxrec.models import bind_training
from jaxrec.training.draws import Place, alone, of_batch
from jaxrec.training.tasks import Task, TrainState, first_state, hardware_key, scoring, statistics_of, update
from jaxrec.types import Array, Image, Key, Scalar

Perceptual = Callable[[Image, Image], Array]


@struct.dataclass
class GANState:
  """Denoiser and critics by name, each with its number of updates, variables and optimiser."""

  generator: TrainState
  critics: dict[str, TrainState]


def wasserstein(
  score: Callable[..., Array], real: tuple, made: tuple, share: Array, penalty: float
) -> tuple[Scalar, Scalar]:
  """Loss of a Wasserstein critic with gradient penalty, and the distance it sees.

  `E D(made) - E D(real) + penalty E (||grad D|| - 1)^2` at mixtures of both.

  Args:
    score: `(*images) -> [batch]`.
    real: images `[batch, row, col]`, and conditions if there are any.
    made: the same for generated images.
    share: `[batch, 1, 1]` in [0, 1], of the real ones in the mixtures.
    penalty: weight.

  Returns:
    Loss and `E D(real) - E D(made)`.

  Reference:
    Gulrajani et al. 2017, algorithm 1.
  """
  between = tuple(share * a + (1 - share) * b for a, b in zip(real, made))
  slopes = jax.grad(lambda images: jnp.sum(score(*images)))(between)
  norm = jnp.sqrt(sum(jnp.sum(s**2, (1, 2)) for s in slopes) + 1e-12)
  apart = jnp.mean(score(*real)) - jnp.mean(score(*made))
  return penalty * jnp.mean((norm - 1) ** 2) - apart, apart


def wgan_vgg(
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  critic: nn.Module,
  critic_optimizer: optax.GradientTransformation,
  *,
  perceptual: Perceptual | None = None,
  perceptual_weight: float = 0.6893,
  penalty: float = 10.0,
  loss: str = 'mse',
  average: Callable[[Any], Any] = lambda tree: tree,
  place: Place = alone,
) -> Task:
  """A denoiser against a Wasserstein critic, with a perceptual loss.

  Args:
    module: the denoiser.
    optimizer: its Optax transformation.
    critic: `models.WGANVGGCritic`.
    critic_optimizer: its Optax transformation.
    perceptual: distance of two batches of images, per example; off if `None`.
    perceptual_weight: of that distance.
    penalty: of the critic's gradient.
    loss: shown in validation; not trained on.
    average: averages over devices.
    place: see `tasks.supervised`.

  Returns:
    A task whose state is a `GANState`.

  Reference:
    Yang et al. 2018, WGAN-VGG, equations (5) to (9).
  """
  forward = bind_training(module)

  def step(state, batch, key):
    made, _ = forward(state.generator.variables, batch)
    share = of_batch(lambda n: jax.random.uniform(key, (n, 1, 1), made.dtype), batch.target.shape[0], place)

    def critic_loss(params):
      return wasserstein(lambda x: critic.apply({'params': params}, x), (batch.target,), (made,), share, penalty)

    judge = state.critics['image']
    (_, apart), slope = jax.value_and_grad(critic_loss, has_aux=True)(judge.variables['params'])
    judge = update(judge, critic_optimizer, average(slope), {})

    def cost(params):
      images, variables = forward({**state.generator.variables, 'params': params}, batch)
      score = jnp.mean(critic.apply(judge.variables, images))
      seen = jnp.mean(perceptual(batch.target, images)) if perceptual else 0.0
      return perceptual_weight * seen - score, (variables, jnp.mean((images - batch.target) ** 2))

    (value, (variables, error)), gradient = jax.value_and_grad(cost, has_aux=True)(state.generator.variables['params'])
    value, gradient, apart, error = average((value, gradient, apart, error))
    generator = update(state.generator, optimizer, gradient, statistics_of(variables, average))
    shown = {'loss': value, 'gradient_norm': optax.tree.norm(gradient), 'wasserstein': apart, 'mse': error}
    return GANState(generator, {'image': judge}), shown

  evaluate = scoring(module, loss)
  return Task(
    _starter(module, optimizer, critic, critic_optimizer, ('image',)),
    step,
    lambda state, batch: evaluate(state.generator, batch),
    lambda state: state.generator.variables,
    (2, 1),
    _with_generator,
    lambda state: state.generator.step,
  )


def _starter(module, optimizer, critic, rule, names):
  """The `init` of a denoiser and its critics."""

  def judge(key, images):
    variables = critic.init(key, images[:1])
    return TrainState(jnp.int32(0), variables, rule.init(variables['params']))

  def start(key, batch):
    first, *keys = jax.random.split(key, 1 + len(names))
    critics = {name: judge(k, batch.target) for name, k in zip(names, keys)}
    return GANState(first_state(module, optimizer, first, batch), critics)

  return lambda key, batch: jax.jit(start)(hardware_key(key), jax.tree.map(jnp.asarray, batch))


def _with_generator(state, variables):
  return state.replace(generator=state.generator.replace(variables=variables))


def sobel(images: Image) -> Image:
  """Gradient magnitude `sqrt(gx^2 + gy^2 + 1e-4)` by Sobel kernels over 4, zero outside; `[..., row, col]` to the same."""
  padded = jnp.pad(images, [(0, 0)] * (images.ndim - 2) + [(1, 1), (1, 1)])

  def along(x, axis):
    n = x.shape[axis] - 2
    low, middle, high = (lax.slice_in_dim(x, i, i + n, axis=axis) for i in range(3))
    return low, middle, high

  def smooth(x, axis):
    low, middle, high = along(x, axis)
    return (low + 2 * middle + high) / 4

  def slope(x, axis):
    low, _, high = along(x, axis)
    return high - low

  gx, gy = (
    slope(smooth(padded, -2 + images.ndim), -1 + images.ndim),
    slope(smooth(padded, -1 + images.ndim), -2 + images.ndim),
  )
  return jnp.sqrt(gx**2 + gy**2 + 1e-4)


def cut_mix(key: Key, real: Image, made: Image) -> tuple[Image, Array]:
  """Boxes of generated images in real ones, of the same size and place over the batch.

  Args:
    key: of the box; its area is Beta(1, 1), uniform, before it is cut at the edges.
    real: `[batch, row, col]`.
    made: `[batch, row, col]`.

  Returns:
    The mixture, and a mask `[row, col]`, 1 where it is real.

  Reference:
    Yun et al. 2019, CutMix; Schonfeld et al. 2020, U-Net GAN.
  """
  area, *centre = jax.random.uniform(key, (3,), real.dtype)
  inside: Array | bool = True
  for axis, at in zip((0, 1), centre):
    n = real.shape[1 + axis]
    half = jnp.sqrt(1 - area) * n / 2
    place = jnp.arange(n) + 0.5
    inside = inside & jnp.expand_dims(jnp.abs(place - at * n) <= half, 1 - axis)
  mask = jnp.where(inside, 0.0, 1.0).astype(real.dtype)
  return mask * real + (1 - mask) * made, mask


def du_gan(
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  critic: nn.Module,
  critic_optimizer: optax.GradientTransformation,
  *,
  adversarial_weight: float = 0.0803,
  pixel_weight: float = 1.0,
  gradient_weight: float = 27.81,
  consistency_weight: float = 2.648,
  mix_probability: float = 0.5,
  mix_steps: int = 7615,
  image_steps: int = 2,
  gradient_steps: int = 1,
  loss: str = 'mse',
  average: Callable[[Any], Any] = lambda tree: tree,
  place: Place = alone,
) -> Task:
  """A denoiser against two U-Net discriminators, of the image and of its Sobel magnitude.

  Least squares on scores and on maps, 1 for real, 0 for made and for low-dose
  images; with CutMix, maps of mixtures are the mixtures of the maps.

  Args:
    module: the denoiser.
    optimizer: its Optax transformation.
    critic: `models.DUGANDiscriminator`; both discriminators have its sizes.
    critic_optimizer: their Optax transformation.
    adversarial_weight: of both discriminators in the denoiser's loss.
    pixel_weight: of the mean squared error.
    gradient_weight: of the mean absolute difference of Sobel magnitudes.
    consistency_weight: of CutMix.
    mix_probability: of CutMix, after `mix_steps`; it grows linearly.
    mix_steps: see there.
    image_steps: updates of the image's discriminator per step.
    gradient_steps: the same for the Sobel magnitude.
    loss: shown in validation.
    average: averages over devices.
    place: see `tasks.supervised`.

  Returns:
    A task whose state is a `GANState`.

  Reference:
    Huang et al. 2021, DU-GAN, equations (1) to (10).
  """
  forward = bind_training(module)
  views = {'image': (lambda x: x, image_steps), 'gradient': (sobel, gradient_steps)}

  def square(output, target):
    return sum(jnp.mean((part - target) ** 2) for part in output)

  def train_critic(judge, real, made, low, share, key):
    chance, box = jax.random.split(key)
    mixed, mask = cut_mix(box, real, made)
    active = jnp.where(jax.random.uniform(chance) < share, 1.0, 0.0)

    def cost(params):
      variables = {**judge.variables, 'params': params}
      count = real.shape[0]
      # One call for all four kinds of image, so that spectral norm takes one power step.
      (scores, maps), changed = critic.apply(variables, jnp.concatenate([real, made, low, mixed]), mutable=['spectral'])
      parts = [(scores[i * count : (i + 1) * count], maps[i * count : (i + 1) * count]) for i in range(4)]
      plain = square(parts[0], 1.0) + square(parts[1], 0.0) + square(parts[2], 0.0)
      blend = mask * parts[0][1] + (1 - mask) * parts[1][1]
      mixing = jnp.mean(parts[3][0] ** 2) + jnp.mean((parts[3][1] - mask) ** 2)
      mixing += consistency_weight * jnp.mean((parts[3][1] - blend) ** 2)
      return plain + active * mixing, changed

    (value, changed), slope = jax.value_and_grad(cost, has_aux=True)(judge.variables['params'])
    value, slope = average((value, slope))
    return update(judge, critic_optimizer, slope, average(changed)), value

  def step(state, batch, key):
    made, _ = forward(state.generator.variables, batch)
    critics, shown = dict(state.critics), {}
    share = mix_probability * jnp.minimum(state.generator.step / mix_steps, 1)
    for i, (name, (view, repeats)) in enumerate(views.items()):
      images = view(batch.target), view(made), view(batch.input)
      keys = jax.random.split(jax.random.fold_in(key, i), repeats)
      critics[name], losses = lax.scan(lambda judge, k: train_critic(judge, *images, share, k), critics[name], keys)
      shown[f'loss_{name}'] = losses[-1]

    def cost(params):
      images, variables = forward({**state.generator.variables, 'params': params}, batch)
      fooled = sum(
        square(critic.apply(critics[name].variables, view(images)), 1.0) for name, (view, _) in views.items()
      )
      error = jnp.mean((images - batch.target) ** 2)
      edges = jnp.mean(jnp.abs(sobel(images) - sobel(batch.target)))
      return adversarial_weight * fooled + pixel_weight * error + gradient_weight * edges, (variables, error)

    (value, (variables, error)), gradient = jax.value_and_grad(cost, has_aux=True)(state.generator.variables['params'])
    value, gradient, error = average((value, gradient, error))
    generator = update(state.generator, optimizer, gradient, statistics_of(variables, average))
    return GANState(generator, critics), {
      'loss': value,
      'gradient_norm': optax.tree.norm(gradient),
      'mse': error,
      **shown,
    }

  evaluate = scoring(module, loss)
  return Task(
    _starter(module, optimizer, critic, critic_optimizer, tuple(views)),
    step,
    lambda state, batch: evaluate(state.generator, batch),
    lambda state: state.generator.variables,
    (2, 1),
    _with_generator,
    lambda state: state.generator.step,
  )
