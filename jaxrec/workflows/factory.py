"""From a config to objects: explicit tables, one per kind of thing.

The keys of a section are the argument names of the factory it feeds.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from jaxrec import attacks, models, training
from jaxrec.training import Parallel, Task
from jaxrec.types import Objective, Reconstructor, Sample, Variables


class Strength(NamedTuple):
  """How a perturbation is scaled: its factory, the argument that scales it, and the unit."""

  factory: Callable
  argument: str
  unit: str


PERTURBATIONS = {
  'coil_noise': Strength(attacks.coil_noise, 'relative_radius', 'relative'),
  'image_noise': Strength(attacks.image_noise, 'relative_radius', 'relative'),
  'rotation': Strength(attacks.rotation, 'max_degrees', 'degrees'),
  'translation': Strength(attacks.translation, 'max_pixels', 'pixels'),
}
OBJECTIVES = {
  'region_mse': attacks.region_mse,
  'region_ssim': attacks.region_ssim,
  'region_mse_ssim': attacks.region_mse_ssim,
}
TASKS = {
  'supervised': training.supervised,
  'adversarial': training.adversarial,
  'worst_case': training.worst_case,
  'consistency': training.consistency,
  'free': training.free,
  'jitter': training.jitter,
  'jacobian': training.jacobian,
  'wgan_vgg': training.wgan_vgg,
  'du_gan': training.du_gan,
  'cvae': training.cvae,
  'flow': training.flow,
}
CRITICS = {'wgan_vgg': 'wganvgg_critic', 'du_gan': 'dugan_discriminator', 'cvae': 'cvae_critic'}
Load = Callable[[str], tuple[Any, Variables]]
STEPS = {'steepest': attacks.steepest_step, 'advrec': attacks.advrec_step}


def _pick(table, section, name):
  if name not in table:
    raise ValueError(f'{section}: {name!r} is unknown; choose one of {", ".join(table)}')
  return table[name]


def _call(factory, section, options):
  try:
    return factory(**options)
  except TypeError as error:
    raise ValueError(f'{section}: {str(error).split(") ")[-1]}') from None


def perturbation(name: str, options: dict[str, Any]) -> tuple[Strength, Callable, tuple[float, ...]]:
  """A family of perturbations over its strengths.

  Args:
    name: key of `PERTURBATIONS`, or any name if the options name the family.
    options: arguments of the factory; the scaling one is a tuple of strengths.

  Returns:
    The strength's description, `strength -> Perturbation`, and the strengths
    without 0, ascending.
  """
  options = dict(options)
  strength = _pick(PERTURBATIONS, 'perturbation', options.pop('name', name))
  options.pop('generator', None)
  if strength.argument not in options:
    raise ValueError(f'perturbation.{name}.{strength.argument}: is missing; give a tuple of strengths')
  values = options.pop(strength.argument)
  values = tuple(values) if isinstance(values, (tuple, list)) else (values,)
  for value in values:
    _call(strength.factory, f'perturbation.{name}', {strength.argument: value, **options})
  positive = tuple(sorted({float(v) for v in values if v > 0}))
  if not positive:
    raise ValueError(f'perturbation.{name}.{strength.argument}: give at least one strength above 0')
  return strength, lambda value: strength.factory(value, **options), positive


def search(name: str, options: dict[str, Any]) -> attacks.Search:
  """A gradient or random search by name; `grid` is built where its range is known."""
  options = dict(options)
  if name == 'pgd':
    step = options.pop('step', 'steepest')
    size = options.pop('step_size', 0.5)
    momentum = options.pop('momentum', 0.0)
    rule = _pick(STEPS, 'search.step', step)(size)
    if momentum:
      rule = optax.chain(optax.trace(momentum), rule)
    built, defaults = attacks.pgd, {'step': rule}
  else:
    table = {'apgd': attacks.apgd, 'random': attacks.random_search}
    built, defaults = _pick(table | {'pgd': attacks.pgd, 'grid': None}, 'search.name', name), {}
  repeats = options.pop('num_restarts', 1)
  found = _call(built, f'search.{name}', {**defaults, **options})
  return found if repeats == 1 else attacks.restarts(found, num_restarts=repeats)


def objective(options: dict[str, Any]) -> Objective:
  """The objective by name."""
  options = dict(options)
  name = options.pop('name')
  return _call(_pick(OBJECTIVES, 'objective.name', name), f'objective.{name}', options)


def network(config: ml_collections.ConfigDict):
  """The network and, for published weights, its variables (else `None`)."""
  options = dict(config.model)
  options.pop('checkpoint', '')
  weights, digest = options.pop('weights', ''), options.pop('sha256', '') or None
  if weights:
    kind = {'varnet': 'varnet', 'unet_recon': 'unet'}.get(options['name'])
    if kind is not None:
      module, variables = models.load_fastmri(weights, kind, sha256=digest)
      # The sizes are in the file, the field of view is not.
      return (module.clone(crop=options['crop']) if options.get('crop') else module), variables
    if options['name'] not in ('cnn10', 'redcnn', 'wganvgg', 'dugan'):
      raise ValueError(f'model.weights: there is no import for {options["name"]}; use varnet, unet_recon, cnn10, redcnn, wganvgg or dugan')
    return models.load_ldct(weights, options['name'], sha256=digest)
  return models.build(options.pop('name'), **options), None


def defended(config: ml_collections.ConfigDict, module) -> tuple[Reconstructor, Reconstructor | None]:
  """The network with its defence, and what an attack's search looks at (`None`: the same).

  `attack.sees` is `defence` (gradients through the defence, expectation over
  `attack.draws` of its randomness) or `network`, for attacks that do not know it.
  """
  plain = models.bind(module)
  randomised = getattr(module, 'smoothing_samples', 0) > 0
  options = dict(config.defence)
  name = options.pop('name')
  if name not in ('none', 'cyclic'):
    raise ValueError(f'defence.name: {name!r} is unknown; choose one of none, cyclic')
  reconstruct = plain
  if name == 'cyclic':
    reconstruct = _call(attacks.cyclic, 'defence', dict(reconstruct=plain, complete=models.bind_complete(module), **options))
  if config.attack.sees == 'network':
    return reconstruct, models.bind(module.clone(smoothing_samples=0)) if randomised else plain
  if config.attack.sees != 'defence':
    raise ValueError(f'attack.sees: {config.attack.sees!r} is unknown; choose one of defence, network')
  if not randomised:
    return reconstruct, None
  draws = [models.bind(module.clone(smoothing_seed=i + 1)) for i in range(config.attack.draws)]
  return reconstruct, attacks.expectation(draws)


def optimizer(options: ml_collections.ConfigDict, num_steps: int) -> optax.GradientTransformation:
  """The optimiser of a `train` section."""
  drop_at = int(round(options.drop_at * num_steps)) if options.drop_at else None
  return training.optimizer(
    options.optimizer, options.learning_rate, drop_at=drop_at, drop_factor=options.drop_factor,
    weight_decay=options.weight_decay, b1=options.get('b1', 0.9),
  )  # fmt: skip


def num_steps(config: ml_collections.ConfigDict, steps_per_epoch: int) -> int:
  """Number of training steps.

  Raises:
    ValueError: if it is not positive.
  """
  count = config.train.num_steps or int(round(config.train.num_epochs * steps_per_epoch))
  if count < 1:
    raise ValueError('train.num_steps: give num_steps or num_epochs above 0')
  return count


def task(
  config: ml_collections.ConfigDict, module, parallel: Parallel, steps: int, sample: Sample,
  load: Load = lambda run: (None, None), micro_batch: int = 0,
) -> Task:  # fmt: skip
  """The training task of `train.task`; its keys are the arguments of the task's factory.

  Args:
    config: the experiment.
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
  rule = optimizer(config.train, steps)
  if hasattr(module, 'batch_axis'):
    module = module.clone(batch_axis=parallel.axis)
  options = dict(config.train.task)
  name = options.pop('name')
  common = dict(loss=config.train.loss, average=parallel.average)
  if micro_batch:
    if not accumulates(name):
      raise ValueError(f'train.micro_batch: the task {name} updates its networks in turns on one batch; set it to 0')
    common['micro_batch'] = micro_batch
  parts = {'module': module, 'optimizer': rule}
  if 'perturbation' in options:
    chosen = dict(options.pop('perturbation'))
    kind = chosen.pop('name')
    strength = _pick(PERTURBATIONS, 'train.task.perturbation', kind)
    parts['perturbation'] = _call(strength.factory, f'train.task.perturbation.{kind}', chosen)
    radius = chosen.get(strength.argument)
  if 'search' in options:
    chosen = dict(options.pop('search'))
    parts['search'] = search(chosen.pop('name'), chosen)
  if 'objective' in options:
    parts['objective'] = objective(options.pop('objective'))
  if name == 'adversarial':
    generator = dict(options.pop('generator'))
    parts['adversary'] = adversary(generator, sample, radius, axis=parallel.axis)
    rate = options.pop('generator_learning_rate')
    parts['generator_optimizer'] = training.optimizer(config.train.optimizer, rate, weight_decay=config.train.weight_decay)
    frozen = options.pop('frozen', '')
    parts |= dict(frozen=load(frozen)[1] if frozen else None, epsilon=float(radius**2 * (sample.target.size if generator['name'] == 'dcgan' else 1)))
  if name in CRITICS:
    chosen = dict(options.pop('critic', {}))
    parts['critic'] = models.build(chosen.pop('name', CRITICS[name]), **chosen)
    rate = options.pop('critic_learning_rate', config.train.learning_rate)
    parts['critic_optimizer'] = training.optimizer(config.train.optimizer, rate, b1=config.train.get('b1', 0.9))
  if name in ('cvae', 'wgan_vgg'):
    check_perceptual(config)
    parts['perceptual'] = perceptual(dict(options.pop('perceptual', {})), load)
  if name in ('cvae', 'flow'):
    del common['loss']
    network, layer = options.pop('network'), options.pop('layer', 0) or None
    if name == 'cvae':
      judged, variables = load(network)
      observe = models.observer(judged)
      domain = options.pop('image', 'low_dose')
      parts |= dict(observe=lambda x: observe(variables, x), image=lambda batch: getattr(batch, domain))
    else:
      parts['codes'] = codes(load, network, options.pop('autoencoder'), layer, options.pop('image', 'low_dose'))
  made = _pick(TASKS, 'train.task.name', name)
  return _call(made, f'train.task.{name}', parts | options | common)


def accumulates(name: str) -> bool:
  """Whether a task can sum gradients over parts of its batch: `train.micro_batch`."""
  return 'micro_batch' in inspect.signature(_pick(TASKS, 'train.task.name', name)).parameters


def check_perceptual(config: ml_collections.ConfigDict, section: str = 'train.task') -> None:
  """Checks that a task with a perceptual loss says what it compares; other tasks pass.

  Weights for features of VGG and for outputs of a denoiser differ by orders of
  magnitude: whoever changes from one to the other is to change the weight too.

  Args:
    config: the experiment.
    section: name of its task, for messages.

  Raises:
    ValueError: for no features, for both kinds, or for a file that is missing.
  """
  options = config.train.task
  if options.name not in ('cvae', 'wgan_vgg'):
    return
  chosen = options.get('perceptual', {})
  path, run, kind = chosen.get('vgg', ''), chosen.get('network', ''), chosen.get('kind', 'vgg16')
  if path and run:
    raise ValueError(
      f'{section}.perceptual: has both vgg={path} and network={run}; give one of them, and the perceptual_weight that belongs to it '
      '(.6893 of WGAN-VGG and .121 of the VAE are for VGG features)'
    )
  if path and not Path(path).is_file():
    raise ValueError(f'{section}.perceptual.vgg: {path} is no file; give a {kind} checkpoint of torchvision')
  # The VAE's other terms stand without it; of WGAN-VGG nothing else ties the output to the input.
  if not (path or run) and (options.name == 'wgan_vgg' or options.get('perceptual_weight') != 0):
    raise ValueError(
      f'{section}.perceptual.vgg: is missing; give a {kind} checkpoint of torchvision, '
      f'or {section}.perceptual.network=RUN of a denoiser with a perceptual_weight for its outputs'
    )


def perceptual(options: dict[str, Any], load: Load) -> Callable | None:
  """The perceptual distance of a task, `None` if it is off.

  `network` names a run of a denoiser whose outputs are compared;
  `vgg` a checkpoint of torchvision with its `kind` and `sha256`.
  """
  network, path = options.pop('network', ''), options.pop('vgg', '')
  kind, digest = options.pop('kind', 'vgg16'), options.pop('sha256', '') or None
  if options:
    raise ValueError(f'train.task.perceptual: has no option {next(iter(options))}; it takes network, vgg, kind, sha256')
  if path:
    module, variables = models.load_vgg(path, kind, sha256=digest)
    return models.perceptual(lambda x: module.apply(variables, x))
  if not network:
    return None
  module, variables = load(network)
  # Its output, not its first layers: there all noise still stands, and drowns what the term is for.
  return models.perceptual(lambda x: [module.apply(variables, x)])


def codes(load: Load, network: str, autoencoder: str, layer: int | None, domain: str) -> Callable:
  """`(key, batch) -> (z, y)`: posterior samples of an autoencoder of `domain`, and what a layer of a network makes of the input."""
  module, variables = load(network)
  vae, weights = load(autoencoder)
  output, tap = models.observer(module), models.observer(module, layer)

  def draw(key, batch):
    mean, logvar = vae.apply(weights, getattr(batch, domain), output(variables, batch.low_dose), method='encode')
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype), tap(variables, batch.low_dose)

  return draw


def adversary(options: dict[str, Any], sample: Sample, radius: float, *, axis: str | None = None) -> training.Adversary:
  """The generator of perturbations of an adversarial task; `axis` is `Parallel.axis` in training."""
  options = dict(options)
  name = options.pop('name')
  if name == 'dcgan':
    noise = {k: options.pop(k) for k in ('latent', 'latent_scale') if k in options}
    if not hasattr(sample, 'low_dose'):
      raise ValueError('train.task.generator: dcgan perturbs images; set data.form=image or use kspace_generator')
    return training.image_adversary(models.build(name, size=sample.low_dose.shape, batch_axis=axis, **options), **noise)
  if name == 'kspace_generator':
    return training.kspace_adversary(models.build(name, **options), relative_radius=radius)
  raise ValueError(f'train.task.generator.name: {name!r} is unknown; choose one of dcgan, kspace_generator')
