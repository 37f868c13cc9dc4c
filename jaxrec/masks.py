"""Cartesian line masks, element for element those of the fastMRI package.

Only NumPy's legacy `RandomState` reproduces the published masks, so masks are
drawn on the host and enter programs as data.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped

KINDS = ('random', 'equispaced', 'equispaced_fraction', 'magic', 'magic_fraction')

Seed = int | tuple[int, ...] | str | None


class LineMask(NamedTuple):
  """A sampling mask and its fully sampled centre, `[1, col]` bool each."""

  mask: np.ndarray
  acs: np.ndarray


def acs_mask(num_cols: int, num_low: int) -> Bool[np.ndarray, '1 num_cols']:
  """The `num_low` central columns, starting at `(num_cols - num_low + 1) // 2`.

  Args:
    num_cols: number of columns.
    num_low: number of fully sampled central columns.

  Returns:
    `[1, num_cols]` bool.
  """
  start = (num_cols - num_low + 1) // 2
  mask = np.zeros((1, num_cols), bool)
  mask[:, start : start + num_low] = True
  return mask


def acs_of_mask(mask: Shaped[np.ndarray, '*rows col']) -> Bool[np.ndarray, '_ col']:
  """The symmetric run of sampled columns around DC of a given mask, or the square of samples.

  For files that carry a mask but not the width of its centre.

  Args:
    mask: `[col]`, `[1, col]` or `[row, col]` bool.

  Returns:
    `[1, col]` or `[row, col]` bool; one column or sample if there is no more.

  Reference:
    The sensitivity model of the fastMRI repository.
  """
  mask = np.asarray(mask, bool)
  if mask.ndim == 2 and mask.shape[0] > 1:
    row, col = (n // 2 for n in mask.shape)
    side = max(
      (2 * h for h in range(1, min(row, col) + 1) if mask[row - h : row + h, col - h : col + h].all()), default=1
    )
    return acs_mask(mask.shape[0], side).T & acs_mask(mask.shape[1], side)
  columns = mask.reshape(-1)
  centre = columns.size // 2
  # Beyond the edges nothing is sampled: fastMRI's own code finds no run at all where everything is.
  left = int(np.argmin(np.append(columns[:centre][::-1], False)))
  right = int(np.argmin(np.append(columns[centre:], False)))
  return acs_mask(columns.size, max(2 * min(left, right), 1))


def has_gaps(measured: Bool[np.ndarray, 'row col']) -> bool:
  """Whether samples are missing between others: undersampled, unlike zero padding, a partial echo or an ellipse.

  Args:
    measured: `[row, col]` bool.
  """
  edges = [np.diff(measured.astype(np.int8), axis=axis, prepend=0, append=0) == 1 for axis in (0, 1)]
  return any((e.sum(axis) > 1).any() for axis, e in enumerate(edges))


def restrict(line: LineMask, acquired: Bool[np.ndarray, '1 col']) -> LineMask:
  """Removes columns that were never measured (zero padding) from a mask.

  Args:
    line: the mask.
    acquired: `[1, col]` bool.

  Returns:
    The restricted mask; its `acs` is restricted likewise.

  Raises:
    ValueError: if no sampled column is left.
  """
  mask = line.mask & acquired
  if not mask.any():
    raise ValueError('mask: no sampled column; lower the acceleration or raise center_fractions')
  return LineMask(mask, line.acs & acquired)


def line_mask(
  kind: str,
  num_cols: int,
  *,
  center_fractions: Sequence[float],
  accelerations: Sequence[int],
  seed: Seed,
  offset: int | None = None,
) -> LineMask:
  """Draws a Cartesian undersampling mask.

  One pair of `center_fractions` and `accelerations` is chosen at random.
  `random` keeps outer columns independently so that `col / acceleration`
  columns are expected; `equispaced` and `magic` space them evenly (`magic`
  with opposite offsets on both halves of k-space); the `_fraction` kinds
  correct the spacing so that the acceleration is met.

  Args:
    kind: one of `KINDS`.
    num_cols: number of columns (phase encodings).
    center_fractions: fractions of fully sampled central columns.
    accelerations: acceleration factors, as many as `center_fractions`.
    seed: an integer, a tuple of integers, or a string (a file name, which gives
      all slices of a volume the same mask); `None` draws an unseeded mask.
    offset: first sampled column of the equispaced and magic kinds; drawn if
      `None`.

  Returns:
    `LineMask(mask, acs)`, `[1, num_cols]` bool each.

  Raises:
    ValueError: for an unknown kind, sequences of different lengths, or a
      combination for which no spacing exists.

  Reference:
    Zbontar et al. 2018 (random, equispaced); Defazio 2019 (magic).

  Example:
    >>> from jaxrec import masks
    >>> masks.line_mask('equispaced', 8, center_fractions=[0.25], accelerations=[4],
    ...                 seed=0, offset=0).mask.astype(int).tolist()
    [[1, 0, 0, 1, 1, 0, 0, 0]]
  """
  if kind not in KINDS:
    raise ValueError(f'mask kind: {kind!r} is unknown; choose one of {", ".join(KINDS)}')
  if len(center_fractions) != len(accelerations) or not len(accelerations):
    raise ValueError(
      f'mask: {len(center_fractions)} center_fractions for {len(accelerations)} accelerations; '
      'give as many of each, and at least one'
    )
  if num_cols < 1 or any(a < 1 for a in accelerations) or any(not 0 <= f <= 1 for f in center_fractions):
    raise ValueError('mask: needs num_cols >= 1, accelerations >= 1 and center_fractions in [0, 1]')
  if isinstance(seed, str):
    seed = tuple(map(ord, seed))
  rng = np.random.RandomState(seed)
  choice = rng.randint(len(accelerations))
  fraction, acceleration = center_fractions[choice], accelerations[choice]
  num_low = round(num_cols * fraction)
  if kind in ('random', 'equispaced') and num_low > num_cols / acceleration > 1:
    raise ValueError(
      f'mask kind {kind}: {num_low} central columns are more than 1/{acceleration} of {num_cols}; lower center_fractions or accelerations'
    )
  if kind == 'random':
    if num_low >= num_cols:
      outer = np.ones(num_cols, bool)
    else:
      probability = (num_cols / acceleration - num_low) / (num_cols - num_low)
      outer = rng.uniform(size=num_cols) < probability
  elif kind == 'equispaced':
    outer = _every(num_cols, acceleration, rng.randint(0, high=round(acceleration)) if offset is None else offset)
  elif kind == 'equispaced_fraction':
    outer = _equispaced_fraction(rng, num_cols, acceleration, offset, num_low)
  elif kind == 'magic':
    outer = _magic(rng, num_cols, acceleration, offset)
  else:
    wanted = round(num_cols / acceleration)
    num_low = max(min(num_low, wanted), 1)
    if wanted <= num_low:
      raise ValueError(
        f'mask kind magic_fraction: {num_low} central columns leave none of the {wanted} for the rest; '
        'lower center_fractions or accelerations'
      )
    outer = _magic(rng, num_cols, round(num_cols / (wanted - num_low)), offset)
  centre = acs_mask(num_cols, num_low)
  return LineMask(centre | outer[None], centre)


def _every(num_cols: int, spacing: int, offset: int) -> np.ndarray:
  outer = np.zeros(num_cols, bool)
  outer[offset::spacing] = True
  return outer


def _equispaced_fraction(rng, num_cols, acceleration, offset, num_low):
  denominator = num_low * acceleration - num_cols
  if denominator >= 0:
    raise ValueError(
      f'mask kind equispaced_fraction: {num_low} central columns already exceed 1/{acceleration} of '
      f'{num_cols}; lower center_fractions or accelerations'
    )
  spacing = acceleration * (num_low - num_cols) / denominator
  if offset is None:
    offset = rng.randint(0, high=round(spacing))
  columns = np.around(np.arange(offset, num_cols - 1, spacing)).astype(int)
  outer = np.zeros(num_cols, bool)
  outer[columns] = True
  return outer


def _magic(rng, num_cols, spacing, offset):
  if offset is None:
    offset = rng.randint(0, high=spacing)
  first, last = (offset + 1, offset + 2) if offset % 2 == 0 else (offset + 2, offset - 1)
  half = (num_cols + 1) // 2
  positive = _every(half, spacing, first)
  negative = _every(num_cols - half, spacing, last)[::-1]
  return np.fft.fftshift(np.concatenate((positive, negative)))
