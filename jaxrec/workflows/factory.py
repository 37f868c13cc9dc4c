"""From typed parts of an experiment to networks, tasks and defended networks."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec import attacks, models, training
from jaxrec.networks import Network
from jaxrec.training import Parallel, Task
from jaxrec.types import Reconstructor, Sample, Slice, Variables
from jaxrec.workflows.experiment import Attack, Described, Features, Generator, Model, Recipe, Training

Load = Callable[[str], tuple[Any, Variables]]
# Networks whose weights the fastMRI repository has, and what `models.load_fastmri` calls them.
FASTMRI = {'varnet': 'varnet', 'unet_recon': 'unet'}


def imported(section: str, name: str) -> Callable:
  """What `package.module:factory` names.

  Args:
    section: of the config, for messages.
    name: where the factory is.

  Raises:
    ValueError: if there is no such function.
  """
  module, _, attribute = name.partition(':')
  try:
    found = importlib.import_module(module)
  except ImportError as error:
    raise ValueError(
      f'{section}: {name!r} cannot be imported ({error}); its folder is to be that of the config, the current one, or on PYTHONPATH'
    ) from None
  if not callable(getattr(found, attribute, None)):
    raise ValueError(f'{section}: {name!r} cannot be used; {found.__name__} has no function {attribute!r}')
  return getattr(found, attribute)


def called(factory: Callable, section: str, options: Mapping[str, Any]) -> Any:
  """What a factory makes of its options.

  Args:
    factory: takes them by name.
    section: of the config, for messages.
    options: its arguments.

  Raises:
    ValueError: for an argument that it does not have.
  """
  try:
    return factory(**options)
  except TypeError as error:
    raise ValueError(f'{section}: {str(error).split(") ")[-1]}') from None


def network(model: Model):
  """The module and, for published weights, its variables (else `None`).

  The user's own factory gives a linen module, or a `Network` that has its weights.
  """
  name, options = model.name, model.options
  if model.weights:
    kind = FASTMRI.get(name)
    if kind is not None:
      module, variables = models.load_fastmri(model.weights, kind, sha256=model.sha256)
      # The sizes are in the file, the field of view and the type are not.
      own = {key: options[key] for key in ('crop', 'dtype') if options.get(key)}
      return module.clone(**own), variables
    if name not in ('cnn10', 'redcnn', 'wganvgg', 'dugan'):
      raise ValueError(
        f'model.weights: there is no import for {name}; use varnet, unet_recon, cnn10, redcnn, wganvgg or dugan'
      )
    return models.load_ldct(model.weights, name, sha256=model.sha256)
  if ':' not in name:
    return models.build(name, **options), None
  made = called(imported('model.name', name), f'model ({name})', options)
  if isinstance(made, Network):
    return made, made.variables
  if not isinstance(made, nn.Module):
    raise ValueError(
      f'model.name: {name} makes a {type(made).__name__}; it is to make a Flax linen module or a jaxrec.Network'
    )
  return made, None


def undefended(module) -> Reconstructor:
  """The reconstructor of a linen module or a `Network`, without a defence."""
  return module.reconstruct if isinstance(module, Network) else models.bind(module)


def reconstructor(defence: Callable[..., Reconstructor] | None, module) -> Reconstructor:
  """The network with its defence, `None` for none."""
  plain = undefended(module)
  if not defence:
    return plain
  return called(defence, 'defence', dict(reconstruct=plain, complete=models.bind_complete(module)))


def defended(
  attack: Attack, defence: Callable[..., Reconstructor] | None, module
) -> tuple[Reconstructor, Reconstructor | None]:
  """The network with its defence, and what an attack's search looks at (`None`: the same).

  `attack.sees` is `defence` (gradients through the defence, expectation over
  `attack.draws` of its randomness) or `network`, for attacks that do not know it.
  """
  plain, reconstruct = undefended(module), reconstructor(defence, module)
  randomised = getattr(module, 'smoothing_samples', 0) > 0
  if attack.sees == 'network':
    return reconstruct, models.bind(module.clone(smoothing_samples=0)) if randomised else plain
  if not randomised:
    return reconstruct, None
  draws = [models.bind(module.clone(smoothing_seed=i + 1)) for i in range(attack.draws)]
  return reconstruct, attacks.expectation(draws)


def schedule(options: Training, num_steps: int) -> optax.ScalarOrSchedule:
  """The learning rate of a training over its updates."""
  chosen = options.schedule
  return training.schedule(
    options.learning_rate, num_steps, name=chosen.name, warmup=chosen.warmup, drop_at=options.drop_at,
    drop_factor=options.drop_factor, final=chosen.final,
  )  # fmt: skip


def learning_rates(options: Training, num_steps: int) -> np.ndarray:
  """Learning rate of the last update of every step of a training, `[num_steps]`.

  All at once: one by one they would wait behind the steps of the training.
  """
  rate = schedule(options, num_steps)
  last = updates_per_step(options.task.made, options.task.options) * np.arange(1, num_steps + 1) - 1
  return np.asarray(jax.vmap(rate)(last)) if callable(rate) else np.full(num_steps, rate)


def updates_per_step(made: Callable[..., Task], options: Mapping[str, Any]) -> int:
  """How often a task updates the network with a batch.

  Args:
    made: its factory.
    options: arguments of it.
  """
  taken = inspect.signature(made).parameters
  return options.get('replays', taken['replays'].default) if 'replays' in taken else 1


def num_steps(options: Training, steps_per_epoch: int) -> int:
  """Number of training steps.

  Raises:
    ValueError: if it is not positive.
  """
  count = options.num_steps or int(round(options.num_epochs * steps_per_epoch))
  if count < 1:
    raise ValueError('train.num_steps: give num_steps or num_epochs above 0')
  return count


def task(
  options: Training, module, parallel: Parallel, steps: int, sample: Sample,
  load: Load = lambda run: (None, None), micro_batch: int = 0,
) -> Task:  # fmt: skip
  """The task of a training.

  Args:
    options: the training.
    module: the network.
    parallel: devices.
    steps: number of training steps.
    sample: any example, for its sizes.
    load: module and variables of another run, for tasks that build on trained
      networks.
    micro_batch: see `training.supervised`.

  Raises:
    ValueError: for options that the task does not have.
  """
  recipe = options.task
  if hasattr(module, 'batch_axis'):
    module = module.clone(batch_axis=parallel.axis)
  common: dict[str, Any] = dict(loss=options.loss, average=parallel.average, place=parallel.place)
  if micro_batch:
    if not accumulates(recipe):
      raise ValueError(
        f'train.micro_batch: the task {recipe.name} updates its networks in turns on one batch; set it to 0'
      )
    common['micro_batch'] = micro_batch
  parts = {'module': module, 'optimizer': _optimizer(options, schedule(options, steps))}
  for name in ('perturbation', 'search', 'objective'):
    if getattr(recipe, name) is not None:
      parts[name] = getattr(recipe, name)
  if recipe.generator:
    parts |= _adversarial(options, recipe.generator, sample, load, parallel.axis)
  if recipe.critic:
    parts['critic'] = recipe.critic.module
    parts['critic_optimizer'] = _optimizer(options, recipe.critic.learning_rate)
  if recipe.features:
    check_features(recipe.name, recipe.options.get('perceptual_weight'), recipe.features)
    parts['perceptual'] = perceptual(recipe.features, load)
  if recipe.described:
    del common['loss']
    parts |= _representation(recipe.described, load)
  made = called(recipe.made, f'train.task.{recipe.name}', {**parts, **recipe.options, **common})
  return _modified(options, made, steps, parallel)


def _optimizer(options: Training, rate):
  """All networks of a training have the same, each with a rate of its own."""
  return training.optimizer(options.optimizer, rate, weight_decay=options.weight_decay, b1=options.b1)


def _modified(options: Training, task: Task, steps: int, parallel: Parallel) -> Task:
  """The task with augmented examples and averaged weights, where a training asks for them."""
  chosen = options.augment
  # Noise is that of the moved patient: what wraps last acts first.
  if chosen and chosen.noise:
    task = training.noisier(task, chosen.noise, place=parallel.place)
  if chosen and chosen.moves:
    task = training.augmented(task, chosen.moves, probability=chosen.probability, num_steps=steps, place=parallel.place)
  return training.averaged(task, options.ema_decay) if options.ema_decay else task


def accumulates(recipe: Recipe) -> bool:
  """Whether a task can sum gradients over parts of its batch: `train.micro_batch`."""
  return 'micro_batch' in inspect.signature(recipe.made).parameters


def splits(recipe: Recipe, model: Model) -> bool:
  """Whether a device may take its share of a batch in parts: batch norm needs it at once."""
  return accumulates(recipe) and model.options.get('norm') != 'batch'


def _adversarial(options, generator, sample, load, axis):
  """Generator of perturbations, its optimiser, and the reconstructor that stays as it is, if any."""
  return dict(
    adversary=adversary(generator, sample, axis=axis),
    generator_optimizer=_optimizer(options, generator.learning_rate),
    frozen=load(generator.frozen)[1] if generator.frozen else None,
    epsilon=float(generator.radius**2 * (sample.target.size if generator.name == 'dcgan' else 1)),
  )


def _representation(described, load):
  """What an autoencoder or a flow is told of the network that it describes."""
  if described.autoencoder:
    return dict(codes=codes(load, described))
  judged, variables = load(described.network)
  observe = models.observer(judged)
  return dict(observe=lambda x: observe(variables, x), image=lambda batch: getattr(batch, described.domain))


def check_features(task: str, weight: float | None, features: Features, section: str = 'train.task') -> None:
  """Checks that a task with a perceptual loss says what it compares.

  Weights for features of VGG and for outputs of a denoiser differ by orders of
  magnitude: whoever changes from one to the other is to change the weight too.

  Args:
    task: its name.
    weight: of the loss, `None` if it is not given.
    features: what is compared.
    section: name of the task's section, for messages.

  Raises:
    ValueError: for no features, for both kinds, or for a file that is missing.
  """
  path, run, kind = features.vgg, features.network, features.kind
  if path and run:
    raise ValueError(
      f'{section}.perceptual: has both vgg={path} and network={run}; give one of them, and the perceptual_weight that belongs to it '
      '(.6893 of WGAN-VGG and .121 of the VAE are for VGG features)'
    )
  if path and not Path(path).is_file():
    raise ValueError(f'{section}.perceptual.vgg: {path} is no file; give a {kind} checkpoint of torchvision')
  # The VAE's other terms stand without it; of WGAN-VGG nothing else ties the output to the input.
  if not (path or run) and (task == 'wgan_vgg' or weight != 0):
    raise ValueError(
      f'{section}.perceptual.vgg: is missing; give a {kind} checkpoint of torchvision, '
      f'or {section}.perceptual.network=RUN of a denoiser with a perceptual_weight for its outputs'
    )


def perceptual(features: Features, load: Load) -> Callable | None:
  """The perceptual distance of a task, `None` if it is off."""
  module: Any
  if features.vgg:
    module, variables = models.load_vgg(features.vgg, features.kind, sha256=features.sha256)
    return models.perceptual(lambda x: module.apply(variables, x))
  if not features.network:
    return None
  module, variables = load(features.network)
  # Its output, not its first layers: there all noise still stands, and drowns what the term is for.
  return models.perceptual(lambda x: [module.apply(variables, x)])


def codes(load: Load, described: Described) -> Callable:
  """`(key, batch) -> (z, y)`: posterior samples of an autoencoder, and what a layer of a network makes of the input."""
  module, variables = load(described.network)
  vae, weights = load(described.autoencoder)
  output, tap = models.observer(module), models.observer(module, described.layer or None)

  def draw(key, batch):
    image = getattr(batch, described.domain)
    mean, logvar = vae.apply(weights, image, output(variables, batch.input), method='encode')
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype), tap(variables, batch.input)

  return draw


def adversary(generator: Generator, sample: Sample, *, axis: str | None = None) -> training.Adversary:
  """The generator of perturbations of an adversarial task; `axis` is `Parallel.axis` in training."""
  name, options = generator.name, dict(generator.options)
  if name == 'dcgan':
    noise = {k: options.pop(k) for k in ('latent', 'latent_scale') if k in options}
    if not isinstance(sample, Slice):
      raise ValueError('train.task.generator: dcgan perturbs images; set data.form=image or use kspace_generator')
    return training.image_adversary(models.build(name, size=sample.input.shape, batch_axis=axis, **options), **noise)
  if name == 'kspace_generator':
    return training.kspace_adversary(models.build(name, **options), relative_radius=generator.radius)
  raise ValueError(f'train.task.generator.name: {name!r} is unknown; choose one of dcgan, kspace_generator')
