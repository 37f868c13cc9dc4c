"""From a config to objects: explicit tables, one per kind of thing.

The keys of a section are the argument names of the factory it feeds.
"""

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from jaxrec import attacks, models, training
from jaxrec.data import annotations as annotations_lib
from jaxrec.data import cases, chest, fastmri, ldct, loader, singlecoil, synthetic
from jaxrec.data.annotations import Region
from jaxrec.data.chest import Structure
from jaxrec.data.errors import DataError
from jaxrec.data.fastmri import Example
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
      return models.load_fastmri(weights, kind, sha256=digest)
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
  load: Load = lambda run: (None, None),
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
  """
  rule = optimizer(config.train, steps)
  if hasattr(module, 'batch_axis'):
    module = module.clone(batch_axis=parallel.axis)
  options = dict(config.train.task)
  name = options.pop('name')
  common = dict(loss=config.train.loss, average=parallel.average)
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


class Data(NamedTuple):
  """Indexed data of a run, and a reader of examples as samples."""

  train: fastmri.Index | ldct.Index
  val: fastmri.Index | ldct.Index
  annotations: annotations_lib.Annotations | None
  read: Callable[[Example, int], Sample]


class _Read:
  """Reads an example; picklable for worker processes."""

  def __init__(self, options, redraw, *, form='kspace', emulate_single_coil=False, relative=False, inserted=None):
    self.options, self.redraw, self.inserted = options, redraw, inserted
    self.form, self.emulate_single_coil, self.relative = form, emulate_single_coil, relative

  def __call__(self, example: fastmri.Example, epoch: int) -> Sample:
    options = dict(self.options)
    if self.redraw and epoch >= 0:
      # Training sees a fresh mask every epoch, the same one after a resume.
      options['seed'] = 1 + epoch * 1_000_003 + example.slice + options['seed']
    scan = fastmri.read_scan(example.volume, example.slice, fastmri.mask_drawer(**options), example.region)
    if self.emulate_single_coil:
      scan = singlecoil.emulate(scan)
    if self.inserted:
      scan = self._insert(scan, (zlib.crc32(example.volume.name.encode()), example.slice, options['seed']))
    return singlecoil.zero_filled(scan, relative=self.relative) if self.form == 'image' else scan


  def _insert(self, scan, seed):
    rng = np.random.default_rng(seed)
    drawn = [Structure(0, 0.0, 0.0, rng.choice(self.inserted['diameters']), rng.choice(self.inserted['contrasts'])) for _ in range(self.inserted['count'])]
    return cases.insert_mr(scan, [cases.place_mr(rng, scan, s) for s in drawn])


def reader(
  config: ml_collections.ConfigDict, *, redraw: bool = False, form: str | None = None
) -> Callable[[fastmri.Example, int], Sample]:
  """Reads examples with the config's masks.

  Args:
    config: the experiment.
    redraw: give new masks every epoch.
    form: `kspace` for scans, `image` for zero-filled images; the config's if `None`.
  """
  if is_ct(config):
    return _ReadCT(config.seed, redraw, tuple(config.data.centre_hu))
  form = form or config.data.form
  if form not in ('kspace', 'image'):
    raise ValueError(f'data.form: {form!r} is unknown; choose one of kspace, image')
  options = dict(form=form, emulate_single_coil=config.data.emulate_single_coil, relative=config.data.get('relative', False))
  if config.data.get('inserted', None) and form == 'image':
    options['inserted'] = dict(config.data.inserted)
  return _Read(_mask_options(config), redraw, **options)


def is_ct(config: ml_collections.ConfigDict) -> bool:
  """Whether the data are CT slices.

  Raises:
    ValueError: for an unknown layout.
  """
  layout = config.data.get('layout', 'fastmri')
  if layout not in ('fastmri', 'ldct'):
    raise ValueError(f'data.layout: {layout!r} is unknown; choose one of fastmri, ldct')
  return layout == 'ldct'


class _ReadCT:
  """Reads a CT example: a whole slice, or a patch drawn by its number; picklable for worker processes."""

  def __init__(self, seed, redraw, centre_hu):
    self.seed, self.redraw, self.centre_hu = seed, redraw, centre_hu

  def __call__(self, example: Example, epoch: int) -> Sample:
    if example.volume.crop == example.volume.shape[1:]:
      return ldct.read_slice(example.volume, example.slice, region=example.region)
    epoch = epoch + 1 if self.redraw else 0
    return ldct.read_patch(example.volume, (self.seed, epoch, example.slice), self.centre_hu)


def _mask_options(config):
  c = config.data
  return dict(
    kind=c.mask, center_fractions=tuple(c.center_fractions), accelerations=tuple(c.accelerations), seed=config.seed
  )


def data(config: ml_collections.ConfigDict, workdir: Path, *, part: int = 0) -> Data:
  """Indexes the data of a config; without a root it writes the phantom first.

  Raises:
    DataError: if there are no usable volumes.
  """
  if is_ct(config):
    return _ct_data(config, workdir, part)
  c = config.data
  root, annotations = c.root, c.annotations
  if not root:
    root, annotations = _phantom(dict(c.phantom), workdir, part)
  indices = []
  for split in ('train', 'val'):
    path = fastmri.folder(root, split, c.challenge)
    found = fastmri.index(path, cache=workdir / f'index-{split}.json' if part == 0 else None)
    if not found.volumes:
      reason = next(iter(found.bad.values()), 'the folder is empty')
      raise DataError(f'{path}: no usable volume; the first problem: {reason}')
    indices.append(found)
  # Options of the mask are checked here, not at the first slice of a long run.
  fastmri.mask_drawer(**_mask_options(config))(found.volumes[0])
  if annotations:
    annotations = annotations_lib.read(annotations)
  return Data(*indices, annotations or None, reader(config))


def _ct_data(config, workdir, part):
  c = config.data
  root = c.root
  if not root:
    options = dict(c.phantom)
    root = phantom_folder(options, workdir)
    if part == 0:
      chest.write_dataset(root, **options)
  indices = []
  for split, patch in (('train', c.patch), ('val', c.evaluate_patch)):
    found = ldct.index(root, split, patients=c.patients or None, offset=c.offset, patch=patch)
    if not found.volumes:
      reason = next(iter(found.bad.values()), 'no patient belongs to it')
      raise DataError(f'{root}: no usable series in {split}; the first problem: {reason}')
    indices.append(found)
  return Data(*indices, None, reader(config))


def training_examples(config: ml_collections.ConfigDict, volumes) -> list[Example]:
  """What an epoch sees: every slice, or as many patches of every patient."""
  usable = [v for v in volumes if v.fully_sampled]
  if is_ct(config) and usable and usable[0].crop != usable[0].shape[1:]:
    return [Example(v, i, None) for i in range(config.data.patches_per_patient) for v in usable]
  return loader.slices_of(usable, keep=config.data.keep_slices)


def phantom_folder(options: dict[str, Any], workdir: Path) -> Path:
  """Folder of the phantom, beside the run folder and shared by runs of the same phantom."""
  digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:8]
  size = f'{options["rows"]}x{options["cols"]}x{options["coils"]}' if 'rows' in options else f'chest-{options["pixels"]}'
  return workdir.parent / f'phantom-{size}-{digest}'


def _phantom(options, workdir, part):
  folder = phantom_folder(options, workdir)
  done = folder / 'annotations.csv'
  if not done.exists():
    if part == 0:
      print(f'phantom: writing {options["train"]} + {options["val"]} volumes to {folder}')
    synthetic.write_dataset(folder, **options)
  return folder, done


def examples(config: ml_collections.ConfigDict, found: Data) -> tuple[list[fastmri.Example], dict[str, int]]:
  """Examples to attack: every box of the splits, or every slice without annotations."""
  chosen, skipped = [], {}
  for split in config.attack.splits:
    if split not in ('train', 'val'):
      raise ValueError(f'attack.splits: {split!r} is unknown; choose among train, val')
    every = getattr(found, split).volumes
    volumes = [v for v in every if v.fully_sampled]
    if is_ct(config):
      mine = _ct_examples(volumes)
    elif found.annotations is None:
      mine = loader.slices_of(volumes, keep=config.data.keep_slices)
    else:
      mine, reasons = loader.annotated(volumes, found.annotations, policy=config.data.boxes, seed=config.seed)
      skipped |= {k: skipped.get(k, 0) + n for k, n in reasons.items()}
    if len(every) > len(volumes):
      skipped['volume without full sampling'] = skipped.get('volume without full sampling', 0) + len(every) - len(volumes)
    chosen += loader.spread(mine, config.attack.max_examples)
  if not chosen:
    raise DataError('data.annotations: no box belongs to a usable volume; check data.root and data.annotations')
  return chosen, skipped


def _ct_examples(volumes):
  """Every known structure with a box around it, or whole slices where none is known."""
  found = []
  for v in volumes:
    v = v._replace(crop=v.shape[1:])
    for s in range(v.shape[0]):
      listed = ldct.read_recorded(v, s).structures
      for i, structure in enumerate(listed):
        half = max(int(np.ceil(structure.diameter / v.pixel)), 6)
        row, col = (int(np.clip(round(at) - half, 0, n - 2 * half)) for at, n in zip((structure.row, structure.col), v.shape[1:]))
        label = f'nodule {structure.diameter:g} mm, {structure.contrast:g} HU'
        found.append(Example(v, s, Region(row, col, 2 * half, 2 * half, label, i + 1)))
      if not listed:
        found.append(Example(v, s, None))
  return found
