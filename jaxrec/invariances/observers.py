"""How well a structure at a known place can be told from its absence, before and after a network.

The best linear observer (Hotelling's) sees a region around the structure. With D
the mean difference of scans with and without the structure and K the covariance
of scans, its template is `w = K^-1 D` and its detectability `d'^2 = D^T K^-1 D`.
Asked of inputs and of outputs it gives the *retained detectability* r = d'_out /
d'_in, which is 1 for every invertible linear network whatever it does to the eye.

What it does not know: the background (a network that turns the sign of a structure
with it looks blind), and what leaves the region (which has to be a few times as
wide as the structure and the network's reach). A network may keep a structure in a
way that no linear observer sees; then r is small and nothing is lost.

Reference:
  Barrett and Myers 2004, Foundations of Image Science, sections 13.2 and 14.3.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxrec.types import AnyArray

# Noise of the observer itself, as a share of the mean variance: rounding of float32 is no evidence.
# Parts of a scan whose gain is below about a hundredth are lost in it as well.
INTERNAL = 1e-7
# Degrees of freedom per pixel below which a covariance is not trusted.
LEAST = 5


class Statistics(NamedTuple):
  """What an observer learns from scans, kept apart by patient.

  Attributes:
    signals: `[patient, class, pixel]`, mean of scans with minus scans without the
      structure, float64.
    covariances: `[patient, pixel, pixel]`, of scans without structures around the
      mean of their own site, float64.
    counts: `[patient]`, degrees of freedom of each.
  """

  signals: np.ndarray
  covariances: np.ndarray
  counts: np.ndarray


class Detection(NamedTuple):
  """Evidence of the observer on patients that it has not learnt from.

  Attributes:
    squares: `[patient, class]`, `D_p^T K^-1 D` with D and K learnt from other
      patients. The errors of the two D are independent, so they do not add up.
    variances: `[patient, class]`, of the evidence over the patient's own scans,
      over that of the scans learnt from.
    templates: `[fold, class, pixel]`, `K^-1 D`, so scaled that evidence has unit
      variance over the scans learnt from.
    fold: `[patient]`, whose template judges a patient.
  """

  squares: np.ndarray
  variances: np.ndarray
  templates: np.ndarray
  fold: np.ndarray

  @property
  def folds(self) -> int:
    """Number of groups of patients."""
    return len(self.templates)

  def detectability(self, weights: np.ndarray | None = None) -> np.ndarray:
    """d' by class, `[..., class]`; `weights` `[..., patient]` count patients, each once if `None`.

    `d'^2 = mean_p squares / mean_p variances`. An observer whose evidence is the wrong
    way round tells as much: the sign of d'^2 is dropped, which near 0 errs towards
    seeing.
    """
    weights = np.ones(len(self.squares)) if weights is None else np.asarray(weights, float)
    return np.sqrt(np.abs(weights @ self.squares) / np.maximum(weights @ self.variances, 1e-30))


def site_statistics(
  absent: Float[np.ndarray, 'scan pixel'], signal: Float[np.ndarray, 'kind pixel']
) -> tuple[Float[np.ndarray, 'kind pixel'], Float[np.ndarray, 'pixel pixel'], int]:
  """Sums of one site, to be added up over the sites of a patient.

  Args:
    absent: `[scan, pixel]`, without the structure.
    signal: `[class, pixel]`, mean of scans with it minus the same scans without.

  Returns:
    Signal `[class, pixel]`, scatter matrix `[pixel, pixel]`, degrees of freedom.
  """
  absent = np.asarray(absent, float)
  away = absent - absent.mean(0)
  return np.asarray(signal, float), away.T @ away, len(absent) - 1


def statistics_of(sites: Sequence[tuple[np.ndarray, np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray, int]:
  """Mean signal, covariance and degrees of freedom of one patient, from `site_statistics` of its sites."""
  count = sum(s[2] for s in sites)
  return np.mean([s[0] for s in sites], 0), sum((s[1] for s in sites), np.zeros(())) / count, count


def observe(statistics: Statistics, *, folds: int = 4) -> Detection:
  """Learns templates on some patients and judges the others, in turn.

  `w = K^-1 D`, without shrinkage: then the evidence in the input and in the output
  of an invertible linear network is the same number, scan by scan, and r = 1
  however few scans there are; with shrinkage it is not. A covariance of n degrees of
  freedom and rank p makes `D^T K^-1 D` too large by n / (n - p) and the variance
  on other scans by its square, for Gaussian scans; the factor that is left is taken
  back. Outputs that are far from Gaussian, such as those of a grey opening, come out
  too low, by up to a tenth for those that were tried. Intervals over the patients that
  are judged hold the templates fixed: what learning them adds is in none.

  Args:
    statistics: of all patients.
    folds: groups of patients; each is judged by the others.

  Returns:
    Evidence by patient and class.

  Raises:
    ValueError: if there are too few patients for the folds, fewer than three
      folds, or too few scans for the pixels.

  Reference:
    Barrett and Myers 2004; Haff 1979, the inverse Wishart mean.
  """
  patients, pixels = len(statistics.counts), statistics.covariances.shape[-1]
  if folds < 3 or patients < folds:
    raise ValueError(f'folds: {folds} for {patients} patients; give at least 3, and as many patients')
  fold = np.arange(patients) % folds
  squares, variances = (np.zeros(statistics.signals.shape[:2]) for _ in range(2))
  templates = []
  for k in range(folds):
    learnt, judged = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
    count = int(statistics.counts[learnt].sum())
    if count < LEAST * pixels:
      raise ValueError(
        f'scans: {count} for {pixels} pixels of the region are too few to learn from; give at least {LEAST * pixels} (more patients, sites or repeats), or a smaller region'
      )
    signals, covariance = pooled(statistics, learnt)
    internal = INTERNAL * max(np.trace(covariance) / pixels, 1e-30)
    # A network that maps to few dimensions leaves few to learn.
    rank = int(np.sum(np.linalg.eigvalsh(covariance) > internal))
    covariance = covariance + internal * np.eye(pixels)
    w = np.linalg.solve(covariance, signals.T).T
    deviation = np.sqrt(np.einsum('ci,ij,cj->c', w, covariance, w, optimize=True))
    template = w / np.maximum(deviation, 1e-30)[:, None]
    squares[judged] = count / (count - rank) * np.einsum('pci,ci->pc', statistics.signals[judged], w)
    variances[judged] = np.einsum('ci,pij,cj->pc', template, statistics.covariances[judged], template, optimize=True)
    templates.append(template)
  return Detection(squares, variances, np.stack(templates), fold)


def pooled(
  statistics: Statistics, patients: Int[np.ndarray, ' patient']
) -> tuple[Float[np.ndarray, 'kind pixel'], Float[np.ndarray, 'pixel pixel']]:
  """Mean signal `[class, pixel]` and covariance `[pixel, pixel]` of some patients."""
  counts = statistics.counts[patients]
  return statistics.signals[patients].mean(0), np.tensordot(counts / counts.sum(), statistics.covariances[patients], 1)


def exact_detectability(
  signals: Float[np.ndarray, '*lead pixel'], covariance: Float[np.ndarray, 'pixel pixel']
) -> Float[AnyArray, '*lead']:
  """`sqrt(D^T K^+ D)` of known signals and their covariance.

  The pseudo-inverse leaves out directions in which nothing varies; a signal there
  would be told with certainty, so it must have none.

  Args:
    signals: `[..., pixel]`.
    covariance: `[pixel, pixel]`.

  Returns:
    d', `[...]`.

  Raises:
    ValueError: if a signal lies where nothing varies.
  """
  values, vectors = np.linalg.eigh(covariance)
  seen = np.asarray(signals, float) @ vectors
  varies = values > 1e-9 * values.max()
  if np.any(np.sum(seen[..., ~varies] ** 2, -1) > 1e-6 * np.sum(seen**2, -1) + 1e-30):
    raise ValueError('signal: has a part in which scans do not vary; its detectability is without bound')
  return np.sqrt(np.sum(seen[..., varies] ** 2 / values[varies], -1))
