"""What is ignored: the verdict on a class of structures, from detectabilities and their intervals over patients."""

from typing import NamedTuple

import numpy as np

from jaxrec import statistics
from jaxrec.invariances.observers import Detection

# Fixed before any network was judged by them.
VISIBLE = 2.0
RETAINED = 0.5
UNSEEN = 1.0


class Estimate(NamedTuple):
  """A number and its interval."""

  value: float
  low: float
  high: float


class Verdict(NamedTuple):
  """One network and class of structures.

  `input` and `output` are detectabilities, `retained` is their ratio r.
  """

  input: Estimate
  output: Estimate
  retained: Estimate

  @property
  def visible(self) -> bool:
    """Whether d'_in is above 2 with its whole interval."""
    return self.input.low > VISIBLE

  @property
  def ignored(self) -> bool:
    """Whether the class is visible, r below .5 and d'_out below 1, each with its whole interval."""
    return self.visible and self.retained.high < RETAINED and self.output.high < UNSEEN


def judge(
  before: Detection, after: Detection, *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> list[Verdict]:
  """Verdicts of all classes, with intervals that hold together.

  Args:
    before: detection in the inputs.
    after: detection in the outputs, of the same patients in the same order.
    level: coverage of all intervals of a kind together; corrected for the number
      of classes by Bonferroni's rule.
    draws: bootstrap draws of patients, the same for inputs and outputs.
    seed: of the draws.

  Returns:
    One verdict per class.
  """
  patients, classes = before.squares.shape
  weights = statistics.resampled(patients, draws=draws, seed=seed)
  one = statistics.corrected(level, classes)
  both = before.detectability(), after.detectability()
  both_drawn = before.detectability(weights), after.detectability(weights)
  values, drawn = (*both, _ratio(*both)), (*both_drawn, _ratio(*both_drawn))
  return [
    Verdict(*(Estimate(float(v[c]), *statistics.interval(d[:, c], one)) for v, d in zip(values, drawn)))
    for c in range(classes)
  ]


def difference(
  before: Detection, first: Detection, second: Detection, *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> list[Estimate]:
  """Retained detectability of one network minus that of another, paired over patients, by class.

  Args:
    before: detection in the inputs that both networks saw.
    first: detection in the outputs of one.
    second: detection in the outputs of the other.
    level: coverage of all intervals together, corrected for the number of classes.
    draws: bootstrap draws of patients.
    seed: of the draws.
  """
  weights = statistics.resampled(len(before.squares), draws=draws, seed=seed)
  one = statistics.corrected(level, before.squares.shape[1])
  value, drawn = (
    _ratio(before.detectability(w), first.detectability(w)) - _ratio(before.detectability(w), second.detectability(w))
    for w in (None, weights)
  )
  return [Estimate(float(value[c]), *statistics.interval(drawn[:, c], one)) for c in range(len(value))]


def _ratio(before, after):
  return after / np.where(np.abs(before) > 1e-12, before, np.nan)
