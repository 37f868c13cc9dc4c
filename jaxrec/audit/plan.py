"""What an audit will compute, before any of it runs."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxrec import attacks
from jaxrec.data.annotations import Region, region_mask
from jaxrec.types import Delta, Key, Objective, Sample, Variables

AIMS = ('region', 'image')


@dataclasses.dataclass(frozen=True)
class Start:
  """Where a search starts, if not where its perturbation does: draws of a trained generator.

  Attributes:
    draw: `(variables, key, sample) -> delta`.
    variables: of the generator.
  """

  draw: Callable[[Variables, Key, Sample], Delta]
  variables: Variables


@dataclasses.dataclass(frozen=True)
class Sweep:
  """One attack over several strengths.

  Attributes:
    family: a factory of perturbations that `jaxrec.family` declares, such as
      `coil_noise`, or a `functools.partial` of it.
    strengths: above 0, in the family's unit; sorted, without doubles. Strength 0,
      the clean reconstruction, is always a row.
    search: how the worst case is sought. The points of a `grid` are evaluated once
      for all strengths, boxes and aims of a slice.
    objective: what is maximised.
    title: heading in the report; the family's if empty.
    start: replaces the start of the search.

  Raises:
    ValueError: for a strength that cannot be.
  """

  family: Callable[..., attacks.Perturbation]
  strengths: tuple[float, ...]
  search: attacks.Search = dataclasses.field(default_factory=attacks.pgd)
  objective: Objective = dataclasses.field(default_factory=attacks.region_mse)
  title: str = ''
  start: Start | None = None

  def __post_init__(self):
    declared = self.declared
    given = self.strengths if np.ndim(self.strengths) else (self.strengths,)
    for value in given:
      if not (np.isfinite(value) and value >= 0):
        raise ValueError(f'{declared.strength}: {value} is not a strength; give a finite number of at least 0')
      if declared.unit == 'relative' and value > 1:
        raise ValueError(f'{declared.strength}: {value} is above 1; relative strengths are shares, 0.02 is 2%')
    positive = tuple(sorted({float(value) for value in given if value > 0}))
    if not positive:
      raise ValueError(f'{declared.strength}: give at least one strength above 0')
    for value in positive:
      # Bounds of its own, such as the largest angle, a family can only check where it sees a number.
      self.at(value)
    object.__setattr__(self, 'strengths', positive)

  @property
  def declared(self) -> attacks.Family:
    """What the family says about itself."""
    return attacks.family_of(self.family)

  @property
  def points(self) -> Delta:
    """Points of a `grid`; `None` for other searches."""
    return getattr(self.search, 'points', None)

  @property
  def is_grid(self) -> bool:
    """Whether the points are the same for all strengths."""
    return self.points is not None

  @property
  def steps(self) -> int:
    """Gradient steps of one search, or points of one without gradients."""
    return self.search.backward_calls or self.search.forward_calls

  @property
  def calls(self) -> tuple[int, int]:
    """Forward and backward network calls: of a grid per slice, of other searches per box and aim."""
    if self.is_grid:
      return self.search.forward_calls, 0
    calls = attacks.network_calls(self.search, clean=False)
    return calls['forward'] * len(self.strengths), calls['backward'] * len(self.strengths)

  def at(self, strength: Any) -> attacks.Perturbation:
    """The perturbation of a strength, which may be traced."""
    return self.family(**{self.declared.strength: strength})

  def description(self) -> dict[str, Any]:
    """What tells this sweep from others, for a run folder."""
    options = self.family.keywords if isinstance(self.family, functools.partial) else {}
    return {
      'title': self.title or self.declared.title, 'axis': self.declared.axis, 'unit': self.declared.unit,
      'options': {k: str(v) for k, v in options.items()}, 'strengths': list(self.strengths),
      'search': [self.search.forward_calls, self.search.backward_calls],
    }  # fmt: skip


class Place(NamedTuple):
  """One thing to aim at in a slice.

  Attributes:
    annotation: number of the box, 0 for the whole image or the sample's own region.
    label: of the box.
    aim: one of `AIMS`.
    region: `[row, col]` float32, 1 where the attack aims.
    box: `[row, col]` float32, 1 where `region` scores are taken.
  """

  annotation: int
  label: str
  aim: str
  region: np.ndarray
  box: np.ndarray


@dataclasses.dataclass(frozen=True)
class Case:
  """One slice, read when its turn comes, and its boxes.

  Attributes:
    file: name of its volume.
    slice: its number.
    patient: the unit of statistics.
    read: gives the sample, as NumPy arrays.
    boxes: regions of the target; none: the sample's own region.
    boxed: whether there is a box at all; `None` if only the sample tells.
    shape: slices of one shape make a batch; `None` if only the sample tells.
    split: of the data set.
    acceleration: as rows show it; counted from the mask if `None`.
    origin: its volume, to be named where something is wrong; `file` if empty.
  """

  file: str
  slice: int
  patient: str
  read: Callable[[], Sample]
  boxes: tuple[Region, ...] = ()
  boxed: bool | None = None
  shape: tuple[int, ...] | None = None
  split: str = 'val'
  acceleration: str | None = None
  origin: str = ''

  def name(self, annotation: int) -> str:
    """Of a box in this slice, for pictures and random draws."""
    return f'{self.file}-{self.slice:03d}-{annotation}'

  def targets(self, aims: tuple[str, ...], boxed: bool) -> list[tuple[int, str]]:
    """Annotation and aim of every place. What has no box has one aim, the whole image."""
    numbers = [box.annotation for box in self.boxes] or [0]
    return [(n, aim) for n in numbers for aim in (aims if boxed else ('image',))]

  def places(self, sample: Sample, aims: tuple[str, ...]) -> list[Place]:
    """What is attacked in the sample that was read."""
    whole = np.ones_like(sample.region)
    boxes = {box.annotation: (box.label, region_mask(box, sample.target.shape)) for box in self.boxes}
    boxes = boxes or {0: ('', np.asarray(sample.region))}
    boxed = bool(self.boxes) or not np.all(sample.region == 1)
    found = []
    for annotation, aim in self.targets(aims, boxed):
      label, box = boxes[annotation]
      found.append(Place(annotation, label, aim, box if aim == 'region' else whole, box))
    return found


@dataclasses.dataclass(frozen=True)
class Settings:
  """How an audit runs.

  Attributes:
    aims: out of `AIMS`.
    seed: of random starts.
    batch_size: slices, or places, computed together on one device.
    chunk: strengths or points computed together.
    pictures: boxes whose images are kept.
    lipschitz_iterations: of the amplification, which is left out if 0.
    strict: whether bad input stops the audit.

  Raises:
    ValueError: for unknown or doubled aims, or nothing to compute at a time.
  """

  aims: tuple[str, ...] = AIMS
  seed: int = 0
  batch_size: int = 1
  chunk: int = 1
  pictures: int = 8
  lipschitz_iterations: int = 0
  strict: bool = False

  def __post_init__(self):
    for aim in self.aims:
      if aim not in AIMS:
        raise ValueError(f'aims: {aim!r} is unknown; choose among {", ".join(AIMS)}')
    if not self.aims or len(set(self.aims)) < len(self.aims):
      raise ValueError(f'aims: {self.aims} is empty or names one twice; choose among {", ".join(AIMS)}')
    for name in ('batch_size', 'chunk'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}: {getattr(self, name)} is not positive')


@runtime_checkable
class Store(Protocol):
  """Where rows and pictures go: a `results.Run`, or memory."""

  def rows(self) -> list[dict[str, Any]]: ...
  def append(self, rows: list[Mapping[str, Any]]) -> None: ...
  def save_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None: ...
