"""From a config to an experiment: explicit tables, one per kind of thing.

The keys of a section are the fields of the part that it becomes, or the argument
names of the factory that it feeds.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import ml_collections
import optax

from jaxrec import attacks, models, results, training
from jaxrec.audit.plan import Sweep
from jaxrec.types import Objective
from jaxrec.workflows.experiment import (
  DOMAINS,
  Attack,
  Augmentation,
  Comparison,
  Critic,
  CTData,
  DataSet,
  Described,
  Detection,
  Evaluation,
  Experiment,
  Features,
  Forecast,
  Generator,
  Inserted,
  Invariances,
  Known,
  Masks,
  Model,
  MRData,
  Recipe,
  Report,
  Sampler,
  Schedule,
  Training,
  Trial,
)
from jaxrec.workflows.factory import called, imported

PERTURBATIONS = {
  'coil_noise': attacks.coil_noise,
  'image_noise': attacks.image_noise,
  'rotation': attacks.rotation,
  'translation': attacks.translation,
}
# Perturbations that are movements of the patient, and their options in `train.augment`.
MOVEMENTS = {'rotation': 'max_degrees', 'translation': 'max_pixels'}
# The grid is made in `sweep`, where its range is known.
SEARCHES: dict[str, Callable[..., attacks.Search]] = {
  'pgd': attacks.pgd,
  'apgd': attacks.apgd,
  'random': attacks.random_search,
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
DEFENCES: dict[str, Callable | None] = {'none': None, 'cyclic': attacks.cyclic}
STEPS = {'steepest': attacks.steepest_step, 'advrec': attacks.advrec_step}

Section = Mapping[str, Any]


class _Dataclass(Protocol):
  __dataclass_fields__: ClassVar[dict[str, Any]]


Part = TypeVar('Part', bound=_Dataclass)


def build(
  config: ml_collections.ConfigDict, folder: str | Path, *, planned: bool = False
) -> Experiment | Comparison | Trial:
  """The experiment of a config, which was checked by `options.check`.

  Args:
    config: a config of `configs/`.
    folder: of the run.
    planned: whether a comparison around it asks for its plan.

  Raises:
    ValueError: naming the option that is wrong or missing.
  """
  return _built(_plain(config), Path(folder), planned)


def stored(folder: Path) -> Experiment:
  """The network and training that a run was made with, out of its `config.json`.

  Raises:
    RunError: if its file is damaged.
  """
  path = folder / 'config.json'
  config = results.read_json(path)
  missing = [name for name in ('data', 'model', 'train') if not isinstance(config.get(name), dict)]
  if missing:
    raise results.RunError(f'{path}: is damaged (it has no section {missing[0]}); put back the one of the run')
  try:
    return _experiment({**_plain(config), 'stages': ()}, folder, planned=False)
  except (KeyError, TypeError, AttributeError) as error:
    raise results.RunError(f'{path}: is damaged ({results.reason(error)}); put back the one of the run') from None
  except ValueError as error:
    raise results.RunError(f'{path}: {error}') from None


def _plain(value):
  """Dicts in the order of the config, tuples for lists."""
  if isinstance(value, (ml_collections.ConfigDict, dict)):
    return {k: _plain(v) for k, v in value.items()}
  return tuple(map(_plain, value)) if isinstance(value, (tuple, list)) else value


def _built(config: Section, folder: Path, planned: bool) -> Experiment | Comparison | Trial:
  planned = planned or 'plan' in config['stages']
  if 'known' in config:
    return _trial(config, folder)
  return (_comparison if 'experiments' in config else _experiment)(config, folder, planned)


def _section(config: Section, name: str) -> Section:
  if name not in config:
    raise ValueError(f'{name}: is missing; the config needs this section')
  return config[name]


def _part(cls: type[Part], section: str, options: Section, **made: Any) -> Part:
  """A part whose fields are options of a section, but for those that were `made`."""
  fields = dataclasses.fields(cls)
  given = {f.name: options[f.name] for f in fields if f.name in options and f.name not in made}
  for f in fields:
    if f.name not in given and f.name not in made and f.default is dataclasses.MISSING:
      raise ValueError(f'{section}.{f.name}: is missing; give it')
  return cls(**given, **made)


def _common(config: Section, folder: Path) -> dict[str, Any]:
  """Fields that all runs have."""
  return dict(
    folder=folder, name=config.get('name', ''), profile=config.get('profile', ''), label=config.get('label', ''),
    seed=config.get('seed', 0), stages=config['stages'], num_devices=config.get('train', {}).get('num_devices', 0),
    report=_part(Report, 'report', _section(config, 'report')) if 'report' in config['stages'] else None, resolved=config,
  )  # fmt: skip


def _experiment(config: Section, folder: Path, planned: bool) -> Experiment:
  stages, forecast = config['stages'], planned and 'plan' in config
  attacked, evaluated = 'attack' in stages or planned, 'evaluate' in stages
  return Experiment(
    **_common(config, folder),
    data=data(config),
    model=model(_section(config, 'model')),
    training=train(_section(config, 'train')),
    defence=_defence(config) if attacked or evaluated else None,
    attack=attack(config) if attacked else None,
    evaluation=_part(Evaluation, 'evaluate', _section(config, 'evaluate')) if evaluated else None,
    forecast=_part(Forecast, 'plan', config['plan']) if forecast else None,
  )


def _comparison(config: Section, folder: Path, planned: bool) -> Comparison:
  inner: dict[str, Any] = {
    name: _built(experiment, folder / name, planned) for name, experiment in config['experiments'].items()
  }
  asked = {'detect', 'invariances'} & set(config['stages'])

  detection = invariances = None
  if asked:
    options = _section(config, 'detect')
    labels = {run: _found(inner, 'detect.networks', run).label for run in options['networks']}
    detection = _part(Detection, 'detect', options, networks=labels)
  if 'invariances' in asked:
    options = _section(config, 'invariances')
    samplers = []
    for name, sampler in options['samplers'].items():
      section = f'invariances.samplers.{name}'
      # What a flow was trained for, not what an option repeats.
      described = {run: _found(inner, f'{section}.flows', run).training.task.described for run in sampler['flows']}
      flows = {run: told.layer if told else 0 for run, told in described.items()}
      samplers.append(_part(Sampler, section, sampler, flows=flows))
    invariances = _part(Invariances, 'invariances', options, samplers=tuple(samplers))
  return Comparison(
    **_common(config, folder),
    experiments=inner,
    data=data(config) if asked else None,
    detection=detection,
    invariances=invariances,
  )


def _found(experiments: Mapping[str, Any], section: str, run: str) -> Experiment:
  at: Any = None
  for name in run.split('/'):
    at = experiments.get(name)
    experiments = getattr(at, 'experiments', {})
  if not isinstance(at, Experiment):
    raise ValueError(f'{section}: {run!r} is none of the experiments that train a network; choose one of them')
  return at


def _trial(config: Section, folder: Path) -> Trial:
  options = config['known']
  sizes = {'vae': {'size': (options['side'],) * 2}}
  names = {'bottleneck': 'bottleneck', 'vae': 'cvae', 'critic': 'cvae_critic', 'flow': 'cinn'}
  made = {
    part: called(functools.partial(models.build, name), f'known.{part}', {**sizes.get(part, {}), **options[part]})
    for part, name in names.items()
  }
  return Trial(
    **_common(config, folder),
    known=_part(Known, 'known', options, **made),
    invariances=_part(Invariances, 'invariances', _section(config, 'invariances')),
  )


def data(config: Section) -> DataSet:
  """The data of a config: its section `data`, its seed, and masks of the attack."""
  options, seed = _section(config, 'data'), config.get('seed', 0)
  if options.get('layout', 'fastmri') == 'ldct':
    return _part(CTData, 'data', options, seed=seed)
  own, inserted = config.get('attack', {}), options.get('inserted')
  given = {name: options.get(name, ()) for name in ('center_fractions', 'accelerations')}
  kind = options.get('mask', '')
  return _part(
    MRData,
    'data',
    options,
    seed=seed,
    masks=Masks(kind, **given),
    attack_masks=Masks(kind, **{name: own.get(name) or value for name, value in given.items()}),
    inserted=_part(Inserted, 'data.inserted', inserted) if inserted else None,
  )


def model(options: Section) -> Model:
  """The network of a section `model`."""
  options = dict(options)
  weights, digest, checkpoint = (options.pop(name, '') for name in ('weights', 'sha256', 'checkpoint'))
  if 'name' not in options:
    raise ValueError('model.name: is missing; give the name of a network')
  return Model(options.pop('name'), options, weights, digest or None, checkpoint)


def train(options: Section) -> Training:
  """The training of a section `train`."""
  schedule = _part(Schedule, 'train.schedule', options.get('schedule', {}))
  chosen, augment = options.get('augment', {}), None
  moves, noise = None, chosen.get('noise') or None
  if chosen.get('probability'):
    moves = attacks.compose(*(PERTURBATIONS[name](chosen[key]) for name, key in MOVEMENTS.items() if chosen[key]))
  if moves or noise:
    augment = Augmentation(moves, chosen['probability'], noise)
  task = recipe(_section(options, 'task'), options)
  return _part(Training, 'train', options, task=task, schedule=schedule, augment=augment)


def recipe(options: Section, around: Section) -> Recipe:
  """The task of a section `train.task`.

  Args:
    options: the section.
    around: the section `train`.

  Raises:
    ValueError: naming the option that is wrong or missing.
  """
  options = dict(options)

  def take(name):
    if name not in options:
      raise ValueError(f'train.task.{name}: is missing; the task {kind} needs it')
    return options.pop(name)

  kind = options.pop('name')
  parts: dict[str, Any] = {}
  if 'perturbation' in options:
    family, radius = perturbation('train.task.perturbation', options.pop('perturbation'))
    parts['perturbation'] = family(**{attacks.family_of(family).strength: radius})
  if 'search' in options:
    chosen = dict(options.pop('search'))
    parts['search'] = search(chosen.pop('name'), chosen, 'train.task.search')
  if 'objective' in options:
    parts['objective'] = objective(options.pop('objective'))
  if kind == 'adversarial':
    if 'perturbation' not in parts:
      take('perturbation')
    chosen = dict(take('generator'))
    parts['generator'] = Generator(
      chosen.pop('name'), chosen, take('generator_learning_rate'), options.pop('frozen', ''), radius
    )
  if kind in CRITICS:
    chosen = dict(options.pop('critic', {}))
    module = models.build(chosen.pop('name', CRITICS[kind]), **chosen)
    parts['critic'] = Critic(module, options.pop('critic_learning_rate', around['learning_rate']))
  if kind in ('cvae', 'wgan_vgg'):
    parts['features'] = features(options.pop('perceptual', {}))
  if kind in ('cvae', 'flow'):
    of_flow = {'autoencoder': take('autoencoder')} if kind == 'flow' else {}
    domain = options.pop('image', 'input')
    if domain not in DOMAINS:
      raise ValueError(f'train.task.image: {domain!r} is unknown; choose one of {", ".join(DOMAINS)}')
    parts['described'] = Described(take('network'), domain, layer=int(options.pop('layer', 0)), **of_flow)
  return Recipe(kind, task_factory(kind), options, **parts)


def task_factory(name: str) -> Callable[..., training.Task]:
  """The factory of a task by name, or the user's own."""
  return _pick(TASKS, 'train.task.name', name)


def features(options: Section) -> Features:
  """What a section `perceptual` says is compared."""
  return _part(Features, 'train.task.perceptual', options, sha256=options.get('sha256') or None)


def attack(config: Section) -> Attack:
  """The attacks of a config: its sections `attack`, `perturbation`, `search` and `objective`."""
  families = config.get('perturbation', {})
  return _part(
    Attack,
    'attack',
    _section(config, 'attack'),
    sweeps={name: sweep(config, name) for name in families},
    generators={name: family['generator'] for name, family in families.items() if family.get('generator')},
  )


def _defence(config):
  options = dict(config.get('defence', {'name': 'none'}))
  made = _pick(DEFENCES, 'defence.name', options.pop('name'))
  return made and functools.partial(made, **options)


def _pick(table, section, name):
  """What a name in a config means: an entry of a table, or `'package.module:factory'` of the user's own."""
  if ':' in name:
    return imported(section, name)
  if name not in table:
    raise ValueError(
      f"{section}: {name!r} is unknown; choose one of {', '.join(table)}, or give your own as 'package.module:factory'"
    )
  return table[name]


def perturbation(section: str, options: Section) -> tuple[Callable, Any]:
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
  for each in value if isinstance(value, tuple) else (value,):
    called(made, section, {strength: each, **options})
  return functools.partial(made, **options), value


def sweep(config: Section, name: str) -> Sweep:
  """The attack `name` of a config: `perturbation.NAME`, `search.NAME` and the objective.

  Args:
    config: the experiment.
    name: key of both sections.

  Raises:
    ValueError: naming the option that is wrong.
  """
  section = f'perturbation.{name}'
  options = dict(config['perturbation'][name])
  options.pop('generator', '')
  family, value = perturbation(section, options)
  values = value if isinstance(value, tuple) else (value,)
  positive = [v for v in values if v > 0]
  chosen = dict(config.get('search', {}).get(name, {'name': 'pgd'}))
  kind = chosen.pop('name')
  if kind == 'grid':
    found = attacks.grid(attacks.angle_grid(max(positive, default=0.0), **chosen))
  else:
    found = search(kind, chosen)
  try:
    return Sweep(
      family, values, found, objective(_section(config, 'objective')), config['attack'].get('titles', {}).get(name, '')
    )
  except ValueError as error:
    raise ValueError(f'{section}.{error}') from None


def search(name: str, options: Section, section: str = 'search') -> attacks.Search:
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
    built, defaults = _pick(SEARCHES, f'{section}.name', name), {}
  found = called(built, f'{section}.{name}', {**defaults, **options})
  return found if repeats == 1 else attacks.restarts(found, num_restarts=repeats)


def objective(options: Section) -> Objective:
  """The objective by name."""
  options = dict(options)
  name = options.pop('name')
  return called(_pick(OBJECTIVES, 'objective.name', name), f'objective.{name}', options)
