"""From a config to objects: explicit tables, one per kind of thing.

The keys of a section are the argument names of the factory it feeds.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import optax

from jaxrec import attacks, models
from jaxrec.data import annotations as annotations_lib
from jaxrec.data import fastmri, loader, synthetic
from jaxrec.data.errors import DataError
from jaxrec.training import Parallel, Task, optimizer, supervised
from jaxrec.types import Objective, Scan


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
    name: key of `PERTURBATIONS`.
    options: arguments of the factory; the scaling one is a tuple of strengths.

  Returns:
    The strength's description, `strength -> Perturbation`, and the strengths
    without 0, ascending.
  """
  strength = _pick(PERTURBATIONS, 'perturbation', name)
  options = dict(options)
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
    if kind is None:
      raise ValueError(f'model.weights: there is no import for {options["name"]}; use varnet or unet_recon')
    return models.load_fastmri(weights, kind, sha256=digest)
  return models.build(options.pop('name'), **options), None


def task(config: ml_collections.ConfigDict, module, parallel: Parallel, steps_per_epoch: int) -> tuple[Task, int]:
  """The training task and its number of steps."""
  train = config.train
  num_steps = train.num_steps or int(round(train.num_epochs * steps_per_epoch))
  if num_steps < 1:
    raise ValueError('train.num_steps: give num_steps or num_epochs above 0')
  drop_at = int(round(train.drop_at * num_steps)) if train.drop_at else None
  rule = optimizer(
    train.optimizer, train.learning_rate, drop_at=drop_at, drop_factor=train.drop_factor, weight_decay=train.weight_decay
  )
  return supervised(module, rule, loss=train.loss, average=parallel.average), num_steps


class Data(NamedTuple):
  """Indexed data of a run, and a reader of examples as scans."""

  train: fastmri.Index
  val: fastmri.Index
  annotations: annotations_lib.Annotations | None
  read: Callable[[fastmri.Example, int], Scan]


class _Read:
  """Reads an example; picklable for worker processes."""

  def __init__(self, options, redraw):
    self.options, self.redraw = options, redraw

  def __call__(self, example: fastmri.Example, epoch: int) -> Scan:
    options = dict(self.options)
    if self.redraw and epoch >= 0:
      # Training sees a fresh mask every epoch, the same one after a resume.
      options['seed'] = 1 + epoch * 1_000_003 + example.slice + options['seed']
    return fastmri.read_scan(example.volume, example.slice, fastmri.mask_drawer(**options), example.region)


def reader(config: ml_collections.ConfigDict, *, redraw: bool = False) -> Callable[[fastmri.Example, int], Scan]:
  """Reads examples as scans with the config's masks; `redraw` gives new masks every epoch."""
  return _Read(_mask_options(config), redraw)


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


def phantom_folder(options: dict[str, Any], workdir: Path) -> Path:
  """Folder of the phantom, beside the run folder and shared by runs of the same phantom."""
  digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:8]
  return workdir.parent / f'phantom-{options["rows"]}x{options["cols"]}x{options["coils"]}-{digest}'


def _phantom(options, workdir, part):
  folder = phantom_folder(options, workdir)
  done = folder / 'annotations.csv'
  if not done.exists():
    if part == 0:
      print(f'phantom: writing {options["train"]} + {options["val"]} volumes to {folder}')
    synthetic.write_dataset(folder, **options)
  return folder, done


def examples(config: ml_collections.ConfigDict, found: Data) -> tuple[list[fastmri.Example], dict[str, int]]:
  """Validation examples to attack: every box, or every slice without annotations."""
  volumes = [v for v in found.val.volumes if v.fully_sampled]
  skipped = {}
  unscored = len(found.val.volumes) - len(volumes)
  if found.annotations is None:
    chosen = loader.slices_of(volumes, keep=config.data.keep_slices)
  else:
    chosen, skipped = loader.annotated(volumes, found.annotations, policy=config.data.boxes, seed=config.seed)
  if unscored:
    skipped['volume without full sampling'] = unscored
  if not chosen:
    raise DataError('data.annotations: no box belongs to a usable validation volume; check data.root and data.annotations')
  limit = config.attack.max_examples
  if limit and len(chosen) > limit:
    # Evenly spread, so that a short run sees all volumes.
    chosen = [chosen[i * len(chosen) // limit] for i in range(limit)]
  return chosen, skipped
