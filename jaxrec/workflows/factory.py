"""From a config to objects: explicit tables, one per kind of thing.

The keys of a section are the argument names of the factory it feeds.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from jaxrec import attacks, models, training
from jaxrec.audit.plan import Start, Sweep
from jaxrec.networks import Network
from jaxrec.training import Parallel, Task
from jaxrec.types import Objective, Reconstructor, Sample, Slice, Variables

PERTURBATIONS = {
  'coil_noise': attacks.coil_noise,
  'image_noise': attacks.image_noise,
  'rotation': attacks.rotation,
  'translation': attacks.translation,
}
# Perturbations that are movements of the patient, and their options in `train.augment`.
MOVEMENTS = {'rotation': 'max_degrees', 'translation': 'max_pixels'}
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
# What an autoencoder describes, as `train.task.image` names it.
_DOMAINS = {'low_dose': 'input', 'target': 'target'}
STEPS = {'steepest': attacks.steepest_step, 'advrec': attacks.advrec_step}


def _pick(table, section, name):
  """What a name in a config means: an entry of a table, or `'package.module:factory'` of the user's own."""
  if ':' in name:
    return imported(section, name)
  if name not in table:
    raise ValueError(
      f"{section}: {name!r} is unknown; choose one of {', '.join(table)}, or give your own as 'package.module:factory'"
    )
  return table[name]


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


def _call(factory, section, options):
  try:
    return factory(**options)
  except TypeError as error:
    raise ValueError(f'{section}: {str(error).split(") ")[-1]}') from None


def perturbation(section: str, options: dict[str, Any]) -> tuple[Callable, Any]:
  """A family of perturbations with its options, and what its strength is set to.

  Args:
    section: of the config, for messages; its last part names the family where `options` does not.
    options: arguments of the factory.

  Returns:
    The family over its strength, and the value of the strength.

  Raises:
    ValueError: for an unknown family or option, or without a strength.
  """
  options = dict(options)
  made = _pick(PERTURBATIONS, section.rpartition('.')[0] or section, options.pop('name', section.rpartition('.')[2]))
  strength = attacks.family_of(made).strength
  if strength not in options:
    raise ValueError(f'{section}.{strength}: is missing; give a tuple of strengths')
  value = options.pop(strength)
  for each in value if isinstance(value, (tuple, list)) else (value,):
    _call(made, section, {strength: each, **options})
  return functools.partial(made, **options), value


def sweep(config: ml_collections.ConfigDict, name: str, start: Start | None = None) -> Sweep:
  """The attack `name` of a config: `perturbation.NAME`, `search.NAME` and the objective.

  Args:
    config: the experiment.
    name: key of both sections.
    start: draws of a generator, for `perturbation.NAME.generator`.

  Returns:
    The sweep.

  Raises:
    ValueError: naming the option that is wrong.
  """
  section = f'perturbation.{name}'
  options = dict(config.perturbation[name])
  options.pop('generator', '')
  family, value = perturbation(section, options)
  values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
  positive = [v for v in values if v > 0]
  chosen = dict(config.search[name]) if name in config.search else {'name': 'pgd'}
  kind = chosen.pop('name')
  if kind == 'grid':
    found = attacks.grid(attacks.angle_grid(max(positive, default=0.0), **chosen))
  else:
    found = search(kind, chosen)
  try:
    return Sweep(
      family, values, found, objective(config.objective), config.attack.get('titles', {}).get(name, ''), start
    )
  except ValueError as error:
    raise ValueError(f'{section}.{error}') from None


def search(name: str, options: dict[str, Any], section: str = 'search') -> attacks.Search:
  """A gradient or random search by name; the grid of `sweep` is built where its range is known."""
  options = dict(options)
  repeats = options.pop('num_restarts', 1)
  if name == 'pgd':
    step = options.pop('step', 'steepest')
    size = options.pop('step_size', 0.5)
    momentum = options.pop('momentum', 0.0)
    rule = _pick(STEPS, f'{section}.step', step)(size)
    if momentum:
      rule = optax.chain(optax.trace(momentum), rule)
    built, defaults = attacks.pgd, {'step': rule}
  elif name == 'grid':
    raise ValueError(f'{section}.name: grid is for sweeps of the attack stage; choose pgd, apgd or random')
  else:
    table: dict[str, Callable[..., attacks.Search]] = {
      'pgd': attacks.pgd,
      'apgd': attacks.apgd,
      'random': attacks.random_search,
    }
    built, defaults = _pick(table, f'{section}.name', name), {}
  found = _call(built, f'{section}.{name}', {**defaults, **options})
  return found if repeats == 1 else attacks.restarts(found, num_restarts=repeats)


def objective(options: dict[str, Any]) -> Objective:
  """The objective by name."""
  options = dict(options)
  name = options.pop('name')
  return _call(_pick(OBJECTIVES, 'objective.name', name), f'objective.{name}', options)


def network(config: ml_collections.ConfigDict):
  """The module and, for published weights, its variables (else `None`).

  The user's own factory gives a linen module, or a `Network` that has its weights.
  """
  options = dict(config.model)
  options.pop('checkpoint', '')
  weights, digest = options.pop('weights', ''), options.pop('sha256', '') or None
  if weights:
    kind = {'varnet': 'varnet', 'unet_recon': 'unet'}.get(options['name'])
    if kind is not None:
      module, variables = models.load_fastmri(weights, kind, sha256=digest)
      # The sizes are in the file, the field of view and the type are not.
      own = {key: options[key] for key in ('crop', 'dtype') if options.get(key)}
      return module.clone(**own), variables
    if options['name'] not in ('cnn10', 'redcnn', 'wganvgg', 'dugan'):
      raise ValueError(
        f'model.weights: there is no import for {options["name"]}; use varnet, unet_recon, cnn10, redcnn, wganvgg or dugan'
      )
    return models.load_ldct(weights, options['name'], sha256=digest)
  name = options.pop('name')
  if ':' not in name:
    return models.build(name, **options), None
  made = _call(imported('model.name', name), f'model ({name})', options)
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


def defended(config: ml_collections.ConfigDict, module) -> tuple[Reconstructor, Reconstructor | None]:
  """The network with its defence, and what an attack's search looks at (`None`: the same).

  `attack.sees` is `defence` (gradients through the defence, expectation over
  `attack.draws` of its randomness) or `network`, for attacks that do not know it.
  """
  plain = undefended(module)
  randomised = getattr(module, 'smoothing_samples', 0) > 0
  options = dict(config.defence)
  name = options.pop('name')
  reconstruct = plain
  if name == 'cyclic':
    reconstruct = _call(
      attacks.cyclic, 'defence', dict(reconstruct=plain, complete=models.bind_complete(module), **options)
    )
  if config.attack.sees == 'network':
    return reconstruct, models.bind(module.clone(smoothing_samples=0)) if randomised else plain
  if not randomised:
    return reconstruct, None
  draws = [models.bind(module.clone(smoothing_seed=i + 1)) for i in range(config.attack.draws)]
  return reconstruct, attacks.expectation(draws)


def schedule(options: ml_collections.ConfigDict, num_steps: int) -> optax.ScalarOrSchedule:
  """The learning rate of a `train` section over its updates."""
  return training.schedule(
    options.learning_rate,
    num_steps,
    drop_at=options.drop_at,
    drop_factor=options.drop_factor,
    **options.get('schedule', {}),
  )


def learning_rates(options: ml_collections.ConfigDict, num_steps: int) -> np.ndarray:
  """Learning rate of the last update of every step of a `train` section, `[num_steps]`.

  All at once: one by one they would wait behind the steps of the training.
  """
  rate = schedule(options, num_steps)
  last = updates_per_step(options) * np.arange(1, num_steps + 1) - 1
  return np.asarray(jax.vmap(rate)(last)) if callable(rate) else np.full(num_steps, rate)


def updates_per_step(options: ml_collections.ConfigDict) -> int:
  """How often the task of a `train` section updates the network with a batch."""
  taken = inspect.signature(_pick(TASKS, 'train.task.name', options.task.name)).parameters
  return options.task.get('replays', taken['replays'].default) if 'replays' in taken else 1


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
  rule = training.optimizer(
    config.train.optimizer,
    schedule(config.train, steps),
    weight_decay=config.train.weight_decay,
    b1=config.train.get('b1', 0.9),
  )
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
    family, radius = perturbation('train.task.perturbation', {'name': kind, **chosen})
    parts['perturbation'] = family(**{attacks.family_of(family).strength: radius})
  if 'search' in options:
    chosen = dict(options.pop('search'))
    parts['search'] = search(chosen.pop('name'), chosen, 'train.task.search')
  if 'objective' in options:
    parts['objective'] = objective(options.pop('objective'))
  if name == 'adversarial':
    parts |= _adversarial(config, options, radius, sample, load, parallel.axis)
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
    parts |= _representation(name, options, load)
  made = _pick(TASKS, 'train.task.name', name)
  return _modified(config.train, _call(made, f'train.task.{name}', parts | options | common), steps)


def _modified(options, task, steps):
  """The task with augmented examples and averaged weights, where a `train` section asks for them."""
  chosen = options.get('augment', {})
  if chosen and chosen.probability:
    moves = [PERTURBATIONS[name](chosen[key]) for name, key in MOVEMENTS.items() if chosen[key]]
    task = training.augmented(task, attacks.compose(*moves), probability=chosen.probability, num_steps=steps)
  decay = options.get('ema_decay', 0.0)
  return training.averaged(task, decay) if decay else task


def accumulates(name: str) -> bool:
  """Whether a task can sum gradients over parts of its batch: `train.micro_batch`."""
  return 'micro_batch' in inspect.signature(_pick(TASKS, 'train.task.name', name)).parameters


def _adversarial(config, options, radius, sample, load, axis):
  """Generator of perturbations, its optimiser, and the reconstructor that stays as it is, if any."""
  generator = dict(options.pop('generator'))
  rate, frozen = options.pop('generator_learning_rate'), options.pop('frozen', '')
  return dict(
    adversary=adversary(generator, sample, radius, axis=axis),
    generator_optimizer=training.optimizer(config.train.optimizer, rate, weight_decay=config.train.weight_decay),
    frozen=load(frozen)[1] if frozen else None,
    epsilon=float(radius**2 * (sample.target.size if generator['name'] == 'dcgan' else 1)),
  )


def _representation(name, options, load):
  """What an autoencoder or a flow is told of the network that it describes."""
  network, layer = options.pop('network'), options.pop('layer', 0) or None
  domain = _DOMAINS[options.pop('image', 'low_dose')]
  if name == 'flow':
    return dict(codes=codes(load, network, options.pop('autoencoder'), layer, domain))
  judged, variables = load(network)
  observe = models.observer(judged)
  return dict(observe=lambda x: observe(variables, x), image=lambda batch: getattr(batch, domain))


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
  module: Any
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
    mean, logvar = vae.apply(weights, getattr(batch, domain), output(variables, batch.input), method='encode')
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype), tap(variables, batch.input)

  return draw


def adversary(options: dict[str, Any], sample: Sample, radius: float, *, axis: str | None = None) -> training.Adversary:
  """The generator of perturbations of an adversarial task; `axis` is `Parallel.axis` in training."""
  options = dict(options)
  name = options.pop('name')
  if name == 'dcgan':
    noise = {k: options.pop(k) for k in ('latent', 'latent_scale') if k in options}
    if not isinstance(sample, Slice):
      raise ValueError('train.task.generator: dcgan perturbs images; set data.form=image or use kspace_generator')
    return training.image_adversary(models.build(name, size=sample.input.shape, batch_axis=axis, **options), **noise)
  if name == 'kspace_generator':
    return training.kspace_adversary(models.build(name, **options), relative_radius=radius)
  raise ValueError(f'train.task.generator.name: {name!r} is unknown; choose one of dcgan, kspace_generator')
