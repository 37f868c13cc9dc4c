"""From what was measured on cases to rows: both analyses judged by thresholds that other patients set.

Every patient is judged by the nodule-free twins of all others, so that no
threshold has seen the patient and none is wasted on a group set aside.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrec import invariances, results

MEASURED = 'measured.jsonl'
KEY = ('case', 'layer', 'structure')
# What is looked at for a structure: samples, the input, the autoencoder's image of the input, the network's output.
VIEWS = ('samples', 'input', 'reconstruction', 'output')
_LISTS = ('contrasts', 'maxima', 'noise_near', 'noise_near_input', 'gaps_near')


class Thresholds(NamedTuple):
  """What twins without structures show.

  `family` of analysis A; `presence` by view and diameter, of analysis B, in the
  units of the images; `noise` by diameter, of the largest deviation of noise near
  a structure of that size.
  """

  family: float
  presence: dict[str, dict[str, float]]
  noise: dict[str, float]


def measured(folder: Path) -> list[dict[str, Any]]:
  """Finished measurements of a run folder, each once, ordered."""
  found = {}
  for path in sorted((folder / 'rows').glob(f'*.{MEASURED}')):
    for row in results.read_jsonl(path):
      found.setdefault(tuple(row[k] for k in KEY), row)
  return [found[k] for k in sorted(found, key=str)]


def thresholds(twins: Sequence[dict[str, Any]], alpha: float) -> Thresholds:
  """Thresholds that a share `alpha` of the twins cross.

  Args:
    twins: measurements of one layer, without structures.
    alpha: share.

  Returns:
    The thresholds.

  Raises:
    ValueError: if there are too few twins for this `alpha`.
  """
  sizes = twins[0]['contrasts']['input'] if twins else ()
  return Thresholds(
    family=invariances.family_threshold([m for row in twins for m in row['maxima']], alpha=alpha),
    presence={
      view: {
        size: invariances.presence_threshold(np.concatenate([row['contrasts'][view][size] for row in twins]), alpha=alpha) for size in sizes
      }
      for view in VIEWS
    },
    noise={size: invariances.presence_threshold([row['noise_near_input'][size] for row in twins], alpha=alpha) for size in sizes},
  )


def by_patient(found: Sequence[dict[str, Any]], alpha: float) -> dict[tuple[str, str], Thresholds]:
  """Thresholds of every layer and patient, from the twins of the other patients."""
  layers = sorted({row['layer'] for row in found})
  patients = sorted({row['patient'] for row in found})
  twins = [row for row in found if not row['structure']]
  return {
    (layer, patient): thresholds([t for t in twins if t['layer'] == layer and t['patient'] != patient], alpha)
    for layer in layers
    for patient in patients
  }


def judge(found: Sequence[dict[str, Any]], table: Mapping[tuple[str, str], Thresholds]) -> list[dict[str, Any]]:
  """One row per case, layer and twin.

  Contrasts are against the anatomy without the structure (of the input, against its
  mean over new noise), so that neither vessels nor aliasing count. A sample has lost
  the structure if it does not show it, its noise is one that scans have (what it
  lacks as anatomy it must not have as noise), and its output near the structure is
  closer to that of the input than outputs of two scans are to each other. Such a
  sample proves by itself that the output does not tell, whatever model made it.

  Args:
    found: of `measured`.
    table: of `by_patient`.

  Returns:
    Rows of scalars.
  """
  rows = []
  for row in found:
    limits, size = table[row['layer'], row['patient']], str(row['diameter'])
    contrasts = {view: np.asarray(row['contrasts'][view][size]) for view in VIEWS}
    low, high = invariances.contrast_interval(contrasts['samples'])
    present = {view: contrasts[view] > limits.presence[view][size] for view in VIEWS}
    # Without noise of their own, samples cannot have an unlikely one.
    plausible = np.less_equal(row['noise_near'], limits.noise[size]) if row['noise_near'] else np.ones_like(present['samples'])
    kept = np.less(row['gaps_near'], 1)
    rows.append({
      **{k: v for k, v in row.items() if k not in _LISTS},
      **{f'contrast_{view}': float(np.mean(contrasts[view])) for view in VIEWS},
      'contrast_low': low,
      'contrast_high': high,
      **{f'present_{view}': float(np.mean(present[view])) for view in VIEWS},
      'noise_plausible': float(np.mean(plausible)),
      'noise_plausible_input': float(row['noise_near_input'][size] <= limits.noise[size]),
      'output_kept': float(np.mean(kept)),
      'lost': float(np.mean(plausible & kept & ~present['samples'])),
      'altered': int(row['excess_near'] > limits.family),
      'noise_crosses': float(np.mean(np.asarray(row['maxima']) > limits.family)),
    })  # fmt: skip
  return rows


def telling(rows: Sequence[dict[str, Any]], count: int) -> list[str]:
  """The cases whose samples most often lost a structure that the input shows; of equals, those of the kind that is lost most."""
  structures = [row for row in rows if row['structure']]
  kinds: dict[tuple, list[float]] = {}
  for row in structures:
    kinds.setdefault((row['diameter'], row['contrast']), []).append(row['present_input'] * row['lost'])
  scores: dict[str, tuple] = {}
  for row in structures:
    score = (row['present_input'] * row['lost'], float(np.mean(kinds[row['diameter'], row['contrast']])), row['contrast'])
    scores[row['case']] = max(scores.get(row['case'], score), score)
  return sorted(scores, key=lambda case: (scores[case], case), reverse=True)[:count]
