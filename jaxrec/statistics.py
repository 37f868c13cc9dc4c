"""Uncertainty over patients: the only place that computes an interval."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

_Numbers: TypeAlias = Sequence[float] | Float[np.ndarray, ' example']


def bootstrap(
  values: _Numbers,
  groups: Sequence[str] | Shaped[np.ndarray, ' example'],
  *,
  draws: int = 1000,
  level: float = 0.95,
  seed: int = 0,
) -> tuple[float, float, float]:
  """Mean and percentile interval of a bootstrap over groups (patients).

  Args:
    values: one per example.
    groups: group of each example; whole groups are drawn.
    draws: bootstrap draws.
    level: coverage of the interval.
    seed: seed of the draws.

  Returns:
    Mean over examples, lower and upper end.

  Reference:
    Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
  """
  scores = np.asarray(values, float)
  names, member = np.unique(np.asarray(groups), return_inverse=True)
  sums = np.bincount(member, scores, len(names))
  counts = np.bincount(member, minlength=len(names))
  chosen = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
  means = sums[chosen].sum(1) / counts[chosen].sum(1)
  return float(scores.mean()), *interval(means, level)


def resampled(groups: int, *, draws: int, seed: int = 0) -> Int[np.ndarray, 'draw group']:
  """How often every group is drawn, `[draw, group]`: the same draws pair statistics of the same patients.

  Args:
    groups: number of groups.
    draws: bootstrap draws.
    seed: seed of the draws.
  """
  return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=draws)


def interval(draws: Float[np.ndarray, ' draw'], level: float) -> tuple[float, float]:
  """Central interval of bootstrap draws, `[draw]`, at a level such as .95."""
  tail = (1 - level) / 2
  low, high = np.quantile(draws, (tail, 1 - tail))
  return float(low), float(high)


def corrected(level: float, comparisons: int) -> float:
  """Level of one interval so that all of several hold together at `level` (Bonferroni).

  Raises:
    ValueError: if there are no comparisons or the level is no probability.
  """
  if comparisons < 1 or not 0 < level < 1:
    raise ValueError(f'level: {level} of {comparisons} comparisons; give a level in (0, 1) and at least one')
  return 1 - (1 - level) / comparisons


def roc_area(scores: _Numbers, truths: Sequence[bool] | Bool[np.ndarray, ' example']) -> float:
  """Area under the ROC curve: the share of pairs that the scores order rightly, ties counted half.

  Raises:
    ValueError: if one of the two classes is missing.

  Reference:
    Hanley and McNeil 1982.
  """
  given, positive = np.asarray(scores, float), np.asarray(truths, bool)
  yes, no = given[positive], given[~positive]
  if not yes.size or not no.size:
    raise ValueError('truths: all are the same; the area needs both')
  return float(np.mean((yes[:, None] > no[None]) + 0.5 * (yes[:, None] == no[None])))
