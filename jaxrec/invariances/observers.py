"""How well a structure at a known place can be told from its absence, before and after a network.

The best linear observer (Hotelling's) sees a region around the structure. With D
the mean difference of scans with and without the structure and K the covariance
of scans, its template is `w = K^-1 D` and its detectability `d'^2 = D^T K^-1 D`.
Asked of inputs and of outputs it gives the *retained detectability* r = d'_out /
d'_in, which is 1 for every invertible linear network whatever it does to the eye.

Reference:
  Barrett and Myers 2004, Foundations of Image Science, sections 13.2 and 14.3.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Shares of the mean variance that are added to every pixel's.
SHRINKAGES = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Noise of the observer itself, as a share of the mean variance: rounding of float32 is no evidence.
INTERNAL = 1e-7
# Without shrinkage, evidence in the input and in the output of an invertible linear network are
# the same number, scan by scan; with it they are not. So shrinkage has to be worth it.
WORTH = 0.95


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

  Evidence is in units of its standard deviation over the scans learnt from.

  Attributes:
    signal: `[patient, class]`, mean evidence of the structure.
    variance: `[patient, class]`, of the evidence over scans.
    templates: `[fold, class, pixel]`.
    fold: `[patient]`, whose template judges a patient.
    shrinkage: `[fold]`, chosen on the patients learnt from.
  """

  signal: np.ndarray
  variance: np.ndarray
  templates: np.ndarray
  fold: np.ndarray
  shrinkage: np.ndarray

  def detectability(self, weights: np.ndarray | None = None) -> np.ndarray:
    """d' by class, `[..., class]`; `weights` `[..., patient]` count patients, each once if `None`."""
    weights = np.ones(len(self.signal)) if weights is None else np.asarray(weights, float)
    count = weights.sum(-1, keepdims=True)
    return (weights @ self.signal / count) / np.sqrt(np.maximum(weights @ self.variance / count, 1e-30))


def site_statistics(absent: np.ndarray, present: np.ndarray, paired: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
  """Sums of one site, to be added up over the sites of a patient.

  Args:
    absent: `[scan, pixel]`, without the structure.
    present: `[class, scan', pixel]`, with it.
    paired: `[scan', pixel]`, without it under the same noise as `present`.

  Returns:
    Signal `[class, pixel]`, scatter matrix `[pixel, pixel]`, degrees of freedom.
  """
  absent = np.asarray(absent, float)
  away = absent - absent.mean(0)
  signal = (np.asarray(present, float) - np.asarray(paired, float)).mean(1)
  return signal, away.T @ away, len(absent) - 1


def statistics_of(sites: Sequence[tuple[np.ndarray, np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray, int]:
  """Mean signal, covariance and degrees of freedom of one patient, from `site_statistics` of its sites."""
  count = sum(s[2] for s in sites)
  return np.mean([s[0] for s in sites], 0), sum(s[1] for s in sites) / count, count


def observe(statistics: Statistics, *, folds: int = 4, shrinkages: Sequence[float] = SHRINKAGES) -> Detection:
  """Learns templates on some patients and judges the others, in turn.

  `w = (K + s tr(K)/n I)^-1 D`, scaled to unit variance on the patients learnt
  from. The shrinkage s is the smallest whose detectability, on patients held out
  among those, is at least `WORTH` times the best one.

  Args:
    statistics: of all patients.
    folds: groups of patients; each is judged by the others.
    shrinkages: choices of s, ascending.

  Returns:
    Evidence by patient and class.

  Raises:
    ValueError: if there are too few patients for the folds, or fewer than three folds.
  """
  patients = len(statistics.counts)
  if folds < 3 or patients < folds:
    raise ValueError(f'folds: {folds} for {patients} patients; give at least 3, and as many patients')
  pixels = statistics.covariances.shape[-1]
  internal = INTERNAL * np.trace(statistics.covariances.mean(0)) / pixels
  statistics = statistics._replace(covariances=statistics.covariances + internal * np.eye(pixels))
  fold = np.arange(patients) % folds
  signal, variance = (np.zeros(statistics.signals.shape[:2]) for _ in range(2))
  templates, chosen = [], []
  for k in range(folds):
    learnt = np.flatnonzero(fold != k)
    inner = fold[learnt]
    scores = np.zeros(len(shrinkages))
    for j in np.unique(inner):
      for i, w in enumerate(_templates(statistics, learnt[inner != j], shrinkages)):
        held = _evidence(statistics, learnt[inner == j], w)
        scores[i] += np.mean(np.maximum(held[0].mean(0) / np.sqrt(held[1].mean(0)), 0))
    best = int(np.argmax(scores >= WORTH * scores.max()))
    w = _templates(statistics, learnt, shrinkages[best : best + 1])[0]
    judged = np.flatnonzero(fold == k)
    signal[judged], variance[judged] = _evidence(statistics, judged, w)
    templates.append(w)
    chosen.append(shrinkages[best])
  return Detection(signal, variance, np.stack(templates), fold, np.array(chosen))


def pooled(statistics: Statistics, patients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean signal `[class, pixel]` and covariance `[pixel, pixel]` of some patients."""
  counts = statistics.counts[patients]
  return statistics.signals[patients].mean(0), np.tensordot(counts / counts.sum(), statistics.covariances[patients], 1)


def _templates(statistics, patients, shrinkages):
  """`[class, pixel]` for every shrinkage; one eigenvalue decomposition serves all."""
  signals, covariance = pooled(statistics, patients)
  values, vectors = np.linalg.eigh(covariance)
  values = np.maximum(values, 0)
  mean = max(values.mean(), 1e-30)
  found = []
  for s in shrinkages:
    w = (signals @ vectors / (values + s * mean)) @ vectors.T
    deviation = np.sqrt(np.einsum('ci,ij,cj->c', w, covariance, w))
    found.append(w / np.maximum(deviation, 1e-30)[:, None])
  return found


def _evidence(statistics, patients, templates):
  signal = np.einsum('pci,ci->pc', statistics.signals[patients], templates)
  variance = np.einsum('ci,pij,cj->pc', templates, statistics.covariances[patients], templates, optimize=True)
  return signal, np.maximum(variance, 1e-30)


def exact_detectability(signal: np.ndarray, covariance: np.ndarray) -> float:
  """`sqrt(D^T K^+ D)` of a known signal and covariance.

  The pseudo-inverse leaves out directions in which nothing varies; a signal there
  would be told with certainty, so it must have none.

  Args:
    signal: `[pixel]`.
    covariance: `[pixel, pixel]`.

  Returns:
    d'.

  Raises:
    ValueError: if the signal lies where nothing varies.
  """
  values, vectors = np.linalg.eigh(covariance)
  seen = vectors.T @ signal
  varies = values > 1e-9 * values.max()
  if np.sum(seen[~varies] ** 2) > 1e-6 * np.sum(seen**2) + 1e-30:
    raise ValueError('signal: has a part in which scans do not vary; its detectability is without bound')
  return float(np.sqrt(np.sum(seen[varies] ** 2 / values[varies])))
