"""fastMRI+ annotations: pathology boxes in image coordinates.

The boxes were drawn on vertically flipped images, so `row = rows - y - height`.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrec.data.errors import DataError

COLUMNS = ('file', 'slice', 'study_level', 'x', 'y', 'width', 'height', 'label')
POLICIES = ('all', 'first', 'random')
SMALLEST = 7


class Box(NamedTuple):
  """A row of the annotation file with a box, as drawn (y on the flipped image)."""

  file: str
  slice: int
  x: int
  y: int
  width: int
  height: int
  label: str
  line: int


class Region(NamedTuple):
  """A box on the image: top row, left column, size in pixels, and its label.

  `annotation` is the line of the box in the annotation file.
  """

  row: int
  col: int
  height: int
  width: int
  label: str
  annotation: int


class Annotations(NamedTuple):
  """Usable boxes by volume name, and counts of the unusable rows by reason."""

  boxes: dict[str, list[Box]]
  unusable: dict[str, int]


def read(path: str | Path) -> Annotations:
  """Reads a fastMRI+ CSV; every row ends up as a box or in a count.

  Args:
    path: file with the columns of `COLUMNS`.

  Returns:
    The boxes by volume name (without extension) and the unusable rows by reason.

  Raises:
    DataError: if the file is missing or lacks a column.
  """
  boxes: dict[str, list[Box]] = {}
  unusable: Counter = Counter()
  try:
    with open(path, newline='', encoding='utf-8-sig') as stream:
      rows = csv.DictReader(stream)
      missing = [c for c in COLUMNS if c not in (rows.fieldnames or ())]
      if missing:
        raise DataError(f'{path}: column {missing[0]} is missing; the fastMRI+ columns are {", ".join(COLUMNS)}')
      seen = set()
      for line, row in enumerate(rows, start=2):
        box = _parse(row, line, unusable)
        if box is None:
          continue
        if box[:-1] in seen:
          unusable['duplicate row'] += 1
          continue
        seen.add(box[:-1])
        boxes.setdefault(box.file, []).append(box)
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise DataError(f'{path}: cannot be read as CSV ({error}); give the fastMRI+ annotation file') from None
  return Annotations(boxes, dict(unusable))


def _parse(row, line, unusable):
  if (row['study_level'] or '').strip().lower() in ('yes', 'true', '1'):
    unusable['study level'] += 1
    return None
  try:
    where = [float(row[c]) for c in ('slice', 'x', 'y', 'width', 'height')]
    if not where[0].is_integer():
      unusable['slice is no whole number'] += 1
      return None
    where = [int(x) for x in where]
  except (TypeError, ValueError, OverflowError):
    unusable['no coordinates'] += 1
    return None
  if where[3] <= 0 or where[4] <= 0:
    unusable['empty box'] += 1
    return None
  return Box((row['file'] or '').strip().removesuffix('.h5'), *where, (row['label'] or '').strip(), line)


def locate(box: Box, shape: tuple[int, int]) -> Region | str:
  """Flips a box onto the image and clamps it.

  Args:
    box: the box as drawn.
    shape: rows and columns of the image.

  Returns:
    The region, or the reason why there is none.
  """
  rows, cols = shape
  top, left = rows - box.y - box.height, box.x
  bottom, right = min(top + box.height, rows), min(left + box.width, cols)
  top, left = max(top, 0), max(left, 0)
  if bottom <= top or right <= left:
    return 'outside the image'
  return Region(top, left, bottom - top, right - left, box.label, box.line)


def region_mask(region: Region | None, shape: Sequence[int]) -> np.ndarray:
  """`[row, col]` float32, 1 inside the box (everywhere if there is none)."""
  if region is None:
    return np.ones(shape, np.float32)
  mask = np.zeros(shape, np.float32)
  mask[region.row : region.row + region.height, region.col : region.col + region.width] = 1
  return mask


def choose(regions: Iterable[Region], policy: str, *, seed: int = 0) -> list[Region]:
  """Boxes of one slice under a policy: `all`, the `first`, or one at `random`.

  Args:
    regions: regions of one slice.
    policy: one of `POLICIES`.
    seed: seed of the random choice.

  Returns:
    The chosen regions.

  Raises:
    ValueError: for an unknown policy.
  """
  if policy not in POLICIES:
    raise ValueError(f'data.boxes: {policy!r} is unknown; choose one of {", ".join(POLICIES)}')
  regions = list(regions)
  if policy == 'all' or not regions:
    return regions
  if policy == 'first':
    return regions[:1]
  return [regions[np.random.default_rng([seed, regions[0].annotation]).integers(len(regions))]]
