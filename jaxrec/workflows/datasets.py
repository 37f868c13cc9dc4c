"""From a config to data: indices of the splits, a reader of examples, and what to train on and attack."""

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from jaxrec.data import annotations as annotations_lib
from jaxrec.data import chest, fastmri, ldct, loader, singlecoil, sites, synthetic
from jaxrec.data.annotations import Region
from jaxrec.data.chest import Structure
from jaxrec.data.errors import DataError
from jaxrec.data.fastmri import Example
from jaxrec.data.source import CT, KSpace, Source
from jaxrec.training import Parallel
from jaxrec.types import Sample, Slice
from jaxrec.workflows import factory


class Data(NamedTuple):
  """Indexed data of a run, and a reader of examples as samples."""

  train: fastmri.Index | ldct.Index
  val: fastmri.Index | ldct.Index
  annotations: annotations_lib.Annotations | None
  read: Callable[[Example, int], Sample]


class _Read:
  """Reads an example; picklable for worker processes."""

  def __init__(
    self,
    source,
    options,
    redraw,
    *,
    form='kspace',
    emulate_single_coil=False,
    relative=False,
    inserted=None,
    added_noise=0.0,
    data_range='volume',
  ):
    self.data_range = data_range
    self.source, self.options, self.redraw, self.inserted, self.added_noise = (
      source,
      options,
      redraw,
      inserted,
      added_noise,
    )
    self.form, self.emulate_single_coil, self.relative = form, emulate_single_coil, relative

  def __call__(self, example: fastmri.Example, epoch: int) -> Sample:
    options = dict(self.options)
    if self.redraw and epoch >= 0:
      # Training sees a fresh mask every epoch, the same one after a resume.
      options['seed'] = 1 + epoch * 1_000_003 + example.slice + options['seed']
    scan = self.source.read(example.volume, example.slice, fastmri.mask_drawer(**options), example.region)
    if isinstance(scan, Slice):
      return scan
    if self.data_range == 'slice':
      scan = scan.replace(scale=np.float32(np.ptp(scan.target)))
    if self.emulate_single_coil:
      scan = singlecoil.emulate(scan)
    rng = np.random.default_rng((zlib.crc32(example.volume.name.encode()), example.slice, options['seed']))
    if self.inserted:
      scan = self._insert(scan, rng)
    if self.added_noise:
      scan = sites.add_noise(rng, scan, self.added_noise)
    return singlecoil.zero_filled(scan, relative=self.relative) if self.form == 'image' else scan

  def _insert(self, scan, rng):
    drawn = [
      Structure(0, 0.0, 0.0, rng.choice(self.inserted['diameters']), rng.choice(self.inserted['contrasts']))
      for _ in range(self.inserted['count'])
    ]
    return sites.insert_mr(scan, [s for s in (sites.place_mr(rng, scan, s) for s in drawn) if s is not None])


def reader(
  config: ml_collections.ConfigDict, *, redraw: bool = False, form: str | None = None, attacked: bool = False
) -> Callable[[fastmri.Example, int], Sample]:
  """Reads examples with the config's masks.

  Args:
    config: the experiment.
    redraw: give new masks every epoch.
    form: `kspace` for scans, `image` for zero-filled images; the config's if `None`.
    attacked: with the masks of the attack, `attack.accelerations`, where they are
      not those of the training.
  """
  if is_ct(config):
    return _ReadCT(config.seed, redraw, tuple(config.data.centre_hu))
  form = form or config.data.form
  options = dict(
    form=form, data_range=config.data.get('range', 'volume'), emulate_single_coil=config.data.emulate_single_coil,
    relative=config.data.get('relative', False),
  )  # fmt: skip
  if form == 'image':
    options['added_noise'] = config.data.get('added_noise', 0.0)
    options['inserted'] = dict(config.data.get('inserted', {}))
  return _Read(source(config, config.data.root), _mask_options(config, attacked), redraw, **options)


def accelerations(config: ml_collections.ConfigDict, *, attacked: bool = False) -> tuple[int, ...]:
  """Accelerations of training and validation, or of the attack; none for CT."""
  own = config.get('attack', {}).get('accelerations', ()) if attacked else ()
  return tuple(own or config.data.get('accelerations', ()))


def is_ct(config: ml_collections.ConfigDict) -> bool:
  """Whether the data are CT slices."""
  return config.data.get('layout', 'fastmri') == 'ldct'


def source(config: ml_collections.ConfigDict, root: str | Path) -> Source:
  """The source of k-space that `data.layout` names.

  Args:
    config: the experiment.
    root: its data set, `data.root` or the phantom.

  Raises:
    ValueError: if there is no such source.
  """
  layout = config.data.get('layout', 'fastmri')
  return own_source(layout, root) if ':' in layout else KSpace(root, config.data.challenge)


def own_source(name: str, root: str | Path) -> Source:
  """What a factory `package.module:factory` makes of the root of a data set.

  Args:
    name: where the factory is.
    root: its one argument.

  Raises:
    ValueError: if there is no such factory.
  """
  return factory.imported('data.layout', name)(root)


class _ReadCT:
  """Reads a CT example: a whole slice, or a patch drawn by its number; picklable for worker processes."""

  def __init__(self, seed, redraw, centre_hu):
    self.seed, self.redraw, self.centre_hu = seed, redraw, centre_hu

  def __call__(self, example: Example, epoch: int) -> Sample:
    if example.volume.crop == example.volume.shape[1:]:
      return ldct.read_slice(example.volume, example.slice, region=example.region)
    epoch = epoch + 1 if self.redraw else 0
    return ldct.read_patch(example.volume, (self.seed, epoch, example.slice), self.centre_hu)


def _mask_options(config, attacked=False):
  c = config.data
  own = config.get('attack', {}).get('center_fractions', ()) if attacked else ()
  return dict(
    kind=c.mask,
    center_fractions=tuple(own or c.center_fractions),
    accelerations=accelerations(config, attacked=attacked),
    seed=config.seed,
  )


def data(config: ml_collections.ConfigDict, workdir: Path, parallel: Parallel | None = None) -> Data:
  """Indexes the data of a config; without a root the first process writes the phantom, for which the others wait.

  Args:
    config: the experiment.
    workdir: the run folder; a phantom goes beside it.
    parallel: the processes, if there may be several.

  Raises:
    DataError: if there are no usable volumes.
  """
  if is_ct(config):
    return _ct_data(config, workdir, parallel)
  c = config.data
  root, annotations = c.root, c.annotations
  if not root and ':' not in c.get('layout', ''):
    if c.challenge != 'multicoil':
      raise DataError(
        f'data.root: is missing; the phantom has several coils, and data.challenge asks for {c.challenge}; use the profile demo'
      )
    root, annotations = _phantom(dict(c.phantom), workdir, parallel)
  indices, made = [], source(config, root)
  for split in ('train', 'val'):
    found = made.index(split, cache=workdir / f'index-{split}.json' if _first(parallel) else None)
    if not found.volumes:
      reason = next(iter(found.bad.values()), 'there is none')
      raise DataError(f'{root}: no usable volume in {split}; the first problem: {reason}')
    indices.append(found)
  # Options of the mask are checked here, not at the first slice of a long run.
  for attacked in (False, True):
    fastmri.mask_drawer(**_mask_options(config, attacked))(found.volumes[0])
  if annotations:
    annotations = annotations_lib.read(annotations)
  train, val = indices
  return Data(train, val, annotations or None, reader(config))


def _ct_data(config, workdir, parallel):
  c = config.data
  root = c.root
  if not root:
    options = dict(c.phantom)
    root = phantom_folder(options, workdir)
    if _first(parallel):
      chest.write_dataset(root, **options)
    if parallel:
      parallel.barrier('phantom')
  indices = []
  for split, patch in (('train', c.patch), ('val', c.evaluate_patch)):
    found = CT(root, patients=c.patients or None, offset=c.offset, patch=patch).index(split)
    if not found.volumes:
      reason = next(iter(found.bad.values()), 'no patient belongs to it')
      raise DataError(f'{root}: no usable series in {split}; the first problem: {reason}')
    indices.append(found)
  train, val = indices
  return Data(train, val, None, reader(config))


def training_examples(config: ml_collections.ConfigDict, volumes) -> list[Example]:
  """What an epoch sees: every slice, or as many patches of every patient."""
  usable = [v for v in volumes if v.fully_sampled]
  if is_ct(config) and usable and usable[0].crop != usable[0].shape[1:]:
    return [Example(v, i, None) for i in range(config.data.patches_per_patient) for v in usable]
  return loader.slices_of(usable, keep=config.data.keep_slices)


def phantom_folder(options: dict[str, Any], workdir: Path) -> Path:
  """Folder of the phantom, beside the run folder and shared by runs of the same phantom."""
  digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:8]
  size = (
    f'{options["rows"]}x{options["cols"]}x{options["coils"]}' if 'rows' in options else f'chest-{options["pixels"]}'
  )
  return workdir.parent / f'phantom-{size}-{digest}'


def _first(parallel):
  return parallel is None or parallel.part == 0


def _phantom(options, workdir, parallel):
  folder = phantom_folder(options, workdir)
  done = folder / 'annotations.csv'
  if _first(parallel) and not done.exists():
    print(f'phantom: writing {options["train"]} + {options["val"]} volumes to {folder}')
    synthetic.write_dataset(folder, **options)
  if parallel:
    parallel.barrier('phantom')
  return folder, done


def examples(config: ml_collections.ConfigDict, found: Data) -> tuple[list[fastmri.Example], dict[str, int]]:
  """Examples to attack: every box of the splits, or every slice without annotations."""
  chosen: list[Example] = []
  skipped: dict[str, int] = {}
  annotations = found.annotations
  # Boxes of the other split are not left out; files that cannot be read are listed by themselves.
  others = {v.name for index in (found.train, found.val) for v in index.volumes} | {
    Path(p).stem for p in (*found.train.bad, *found.val.bad)
  }
  for split in config.attack.splits:
    every = getattr(found, split).volumes
    # Prospective data have no target: they are attacked where there is nothing else.
    volumes = [v for v in every if v.fully_sampled] or list(every)
    if is_ct(config):
      mine = _ct_examples(volumes)
    elif annotations is None:
      mine = loader.slices_of(volumes, keep=config.data.keep_slices)
    else:
      mine, reasons = loader.annotated(volumes, annotations, policy=config.data.boxes, seed=config.seed, others=others)
      skipped |= {k: skipped.get(k, 0) + n for k, n in reasons.items()}
      # What belongs to no volume is counted once.
      annotations = annotations_lib.Annotations(
        {name: boxes for name, boxes in annotations.boxes.items() if name in others}, {}
      )
    if len(every) > len(volumes):
      skipped['volume without full sampling'] = (
        skipped.get('volume without full sampling', 0) + len(every) - len(volumes)
      )
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
      listed, _ = ldct.read_structures(v, s)
      for i, structure in enumerate(listed):
        half = max(int(np.ceil(structure.diameter / v.pixel)), 6)
        row, col = (
          int(np.clip(round(at) - half, 0, n - 2 * half)) for at, n in zip((structure.row, structure.col), v.shape[1:])
        )
        label = f'nodule {structure.diameter:g} mm, {structure.contrast:g} HU'
        found.append(Example(v, s, Region(row, col, 2 * half, 2 * half, label, i + 1)))
      if not listed:
        found.append(Example(v, s, None))
  return found
