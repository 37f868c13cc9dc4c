"""Data of an experiment: indices of the splits, a reader of examples, and what to train on and attack."""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
from jaxrec.workflows.experiment import Attack, CTData, DataSet, Inserted, MRData


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
    inserted: Inserted | None = None,
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
      options['seed'] = (1 + epoch * 1_000_003 + example.slice + options['seed']) % 2**32
    scan = self.source.read(example.volume, example.slice, fastmri.mask_drawer(**options), example.region)
    if isinstance(scan, Slice):
      return scan
    if self.data_range == 'slice' and scan.has_target:
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
      Structure(0, 0.0, 0.0, rng.choice(self.inserted.diameters), rng.choice(self.inserted.contrasts))
      for _ in range(self.inserted.count)
    ]
    return sites.insert_mr(scan, [s for s in (sites.place_mr(rng, scan, s) for s in drawn) if s is not None])


def reader(
  data_set: DataSet, *, redraw: bool = False, form: str | None = None, attacked: bool = False
) -> Callable[[fastmri.Example, int], Sample]:
  """Reads examples with the experiment's masks.

  Args:
    data_set: the data of the experiment.
    redraw: give new masks every epoch.
    form: `kspace` for scans, `image` for zero-filled images; the experiment's if `None`.
    attacked: with the masks of the attack, where they are not those of the training.
  """
  if isinstance(data_set, CTData):
    return _ReadCT(data_set.seed, redraw, data_set.centre_hu)
  form = form or data_set.form
  options: dict[str, Any] = dict(
    form=form, data_range=data_set.range, emulate_single_coil=data_set.emulate_single_coil, relative=data_set.relative
  )
  if form == 'image':
    options |= dict(added_noise=data_set.added_noise, inserted=data_set.inserted)
  return _Read(source(data_set, data_set.root), _mask_options(data_set, attacked), redraw, **options)


def source(data_set: MRData, root: str | Path) -> Source:
  """The source of k-space that `data.layout` names.

  Args:
    data_set: the data of the experiment.
    root: its data set, `data.root` or the phantom.

  Raises:
    ValueError: if there is no such source.
  """
  return own_source(data_set.layout, root) if ':' in data_set.layout else KSpace(root, data_set.challenge)


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


def _mask_options(data_set, attacked=False):
  return dataclasses.asdict(data_set.attack_masks if attacked else data_set.masks) | {'seed': data_set.seed}


def data(data_set: DataSet, workdir: Path, parallel: Parallel | None = None) -> Data:
  """Indexes the data of an experiment; without a root the first process writes the phantom, for which the others wait.

  Args:
    data_set: the data of the experiment.
    workdir: the run folder; a phantom goes beside it.
    parallel: the processes, if there may be several.

  Raises:
    DataError: if there are no usable volumes.
  """
  if isinstance(data_set, CTData):
    return _ct_data(data_set, workdir, parallel)
  root: str | Path = data_set.root
  boxes: str | Path = data_set.annotations
  if not root and ':' not in data_set.layout:
    if data_set.challenge != 'multicoil':
      raise DataError(
        f'data.root: is missing; the phantom has several coils, and data.challenge asks for {data_set.challenge}; use the profile demo'
      )
    root, boxes = _phantom(data_set.phantom, workdir, parallel)
  indices, made = [], source(data_set, root)
  for split in ('train', 'val'):
    found = made.index(split, cache=workdir / f'index-{split}.json' if _first(parallel) else None)
    if not found.volumes:
      reason = next(iter(found.bad.values()), 'there is none')
      raise DataError(f'{root}: no usable volume in {split}; the first problem: {reason}')
    indices.append(found)
  # Options of the mask are checked here, not at the first slice of a long run.
  for attacked in (False, True):
    fastmri.mask_drawer(**_mask_options(data_set, attacked))(found.volumes[0])
  train, val = indices
  return Data(train, val, annotations_lib.read(boxes) if boxes else None, reader(data_set))


def _ct_data(data_set, workdir, parallel):
  root = data_set.root
  if not root:
    root = phantom_folder(data_set.phantom, workdir)
    if _first(parallel):
      chest.write_dataset(root, **data_set.phantom)
    if parallel:
      parallel.barrier('phantom')
  indices = []
  for split, patch in (('train', data_set.patch), ('val', data_set.evaluate_patch)):
    found = CT(root, patients=data_set.patients or None, offset=data_set.offset, patch=patch).index(split)
    if not found.volumes:
      reason = next(iter(found.bad.values()), 'no patient belongs to it')
      raise DataError(f'{root}: no usable series in {split}; the first problem: {reason}')
    indices.append(found)
  train, val = indices
  return Data(train, val, None, reader(data_set))


def training_examples(data_set: DataSet, volumes) -> list[Example]:
  """What an epoch sees: every slice, or as many patches of every patient."""
  usable = [v for v in volumes if v.fully_sampled]
  if isinstance(data_set, CTData) and usable and usable[0].crop != usable[0].shape[1:]:
    return [Example(v, i, None) for i in range(data_set.patches_per_patient) for v in usable]
  return loader.slices_of(usable, keep=data_set.keep_slices)


def phantom_folder(options: Mapping[str, Any], workdir: Path) -> Path:
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


def examples(data_set: DataSet, attack: Attack, found: Data) -> tuple[list[fastmri.Example], dict[str, int]]:
  """Examples to attack: every box of the splits, or every slice without annotations."""
  chosen: list[Example] = []
  skipped: dict[str, int] = {}
  annotations = found.annotations
  # Boxes of the other split are not left out; files that cannot be read are listed by themselves.
  others = {v.name for index in (found.train, found.val) for v in index.volumes} | {
    Path(p).stem for p in (*found.train.bad, *found.val.bad)
  }
  for split in attack.splits:
    every = getattr(found, split).volumes
    # Prospective data have no target: they are attacked where there is nothing else.
    volumes = [v for v in every if v.fully_sampled] or list(every)
    if isinstance(data_set, CTData):
      mine = _ct_examples(volumes)
    elif annotations is None:
      mine = loader.slices_of(volumes, keep=data_set.keep_slices)
    else:
      mine, reasons = loader.annotated(volumes, annotations, policy=data_set.boxes, seed=data_set.seed, others=others)
      skipped |= {k: skipped.get(k, 0) + n for k, n in reasons.items()}
      # What belongs to no volume is counted once.
      annotations = annotations_lib.Annotations(
        {name: boxes for name, boxes in annotations.boxes.items() if name in others}, {}
      )
    if len(every) > len(volumes):
      skipped['volume without full sampling'] = (
        skipped.get('volume without full sampling', 0) + len(every) - len(volumes)
      )
    chosen += loader.spread(mine, attack.max_examples)
  paths: dict[str, str] = {}
  for example in chosen:
    path = str(example.volume.path)
    other = paths.setdefault(example.volume.name, path)
    if other != path:
      raise DataError(
        f'{path}: has the name of {other}, which is attacked too; rename one of them, or attack one split'
      )
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
