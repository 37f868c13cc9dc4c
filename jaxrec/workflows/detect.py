"""What networks retain of known structures: the observer's verdict, and witnesses found by search.

Sites are places of patients with repeated scans that hold no structure; structures
are added to them. What the observer sees of every patient goes to the disk once
(`detections/*.npz`), so the same command goes on where it stopped.
"""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxrec import results
from jaxrec.data.sites import Site
from jaxrec.invariances import observers, verdict, witness
from jaxrec.progress import Remaining
from jaxrec.types import Image
from jaxrec.workflows.places import Kind, Question

INPUT = 'input'
# Where arrays of patients go.
DETECTIONS = 'detections'
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class Seen(NamedTuple):
  """What the observer sees of the sites of all patients in one view, the input or a network's output.

  `absent` `[patient, site, scan, pixel]`, `statistics` over patients.
  """

  absent: np.ndarray
  statistics: observers.Statistics


class Result(NamedTuple):
  """One network's verdicts and findings by class; `found` is `[class, patient]` of `witness.Findings`, or `None`.

  `before` is the detection in the inputs, the same for all networks.
  """

  before: observers.Detection
  detection: observers.Detection
  verdicts: list[verdict.Verdict]
  found: list[witness.Findings] | None


def measure(
  folder: results.Run,
  networks: Mapping[str, Callable[[Image], Image]],
  asked: Question,
  *,
  chunk: int = 256,
  part: int = 0,
  parts: int = 1,
) -> None:
  """Shows all scans of all patients to all networks; finished patients are not shown again.

  Args:
    folder: where the arrays go.
    networks: by name, `[batch, row, col]` to the same.
    asked: classes and sites; all patients have as many.
    chunk: images computed together.
    part: this process.
    parts: processes that share the patients.
  """
  views = {INPUT: lambda x: x, **{name: jax.jit(f) for name, f in networks.items()}}
  mine = list(asked.patients)[part::parts]
  remaining = Remaining('detect', 'patient', len(mine), silent=part > 0)
  for number, name in enumerate(tqdm(mine, desc='detect', unit='patient', disable=part > 0), 1):
    if _stored(_path(folder, name), views):
      continue
    sites = list(asked.patients[name]())
    arrays = {}
    for view, f in views.items():
      absent, present = (
        np.stack([_seen(f, images, site.corner, asked.side, chunk) for site, images in zip(sites, shown)])
        for shown in ([s.absent for s in sites], [s.present for s in sites])
      )
      arrays[f'{view}.absent'] = absent
      arrays[f'{view}.signal'] = (present - absent[:, None, : present.shape[2]]).mean(2)
    folder.save_arrays(name, arrays, where=DETECTIONS)
    remaining.step(number)


def _stored(path, views):
  """Whether a patient's file is whole and has all views; another is written in its place."""
  try:
    with np.load(path) as stored:
      return all(f'{view}.{kind}' in stored.files for view in views for kind in ('absent', 'signal'))
  except _DAMAGED:
    return False


def _path(folder, patient):
  return folder.folder / DETECTIONS / f'{results.safe_name(patient)}.npz'


def _seen(f, images, corner, side, chunk):
  """Regions of the outputs, `[..., pixel]`; the last chunk is filled up so that one program serves all."""
  flat = images.reshape(-1, *images.shape[-2:])
  found = []
  for i in range(0, len(flat), chunk):
    batch = flat[i : i + chunk]
    filled = np.concatenate([batch, np.repeat(batch[-1:], chunk - len(batch), 0)])
    found.append(np.asarray(f(filled))[: len(batch), corner[0] : corner[0] + side, corner[1] : corner[1] + side])
  return np.concatenate(found).reshape(*images.shape[:-2], -1)


def gathered(folder: results.Run, patients: Sequence[str], view: str) -> Seen:
  """What `measure` stored of one view, over all patients.

  Raises:
    results.RunError: naming the file, if one is missing or damaged.
  """
  absent: list[np.ndarray] = []
  parts = []
  for name in patients:
    path = _path(folder, name)
    try:
      with np.load(path) as stored:
        without, signals = stored[f'{view}.absent'], stored[f'{view}.signal']
    except _DAMAGED as error:
      raise results.RunError(f'{path}: cannot be read ({results.reason(error)}); remove it and run again') from None
    absent.append(without)
    parts.append(observers.statistics_of([observers.site_statistics(a, s) for a, s in zip(without, signals)]))
  statistics = observers.Statistics(*(np.stack(p) for p in zip(*parts)))
  return Seen(np.stack(absent), statistics)


def judged(
  folder: results.Run, networks: Mapping[str, Callable[[Image], Image]], asked: Question, *, level: float = 0.95, draws: int = 10_000,
  num_steps: int = 150, searched: Sequence[int] = (), folds: int = 4, part: int = 0,
) -> dict[str, Result]:  # fmt: skip
  """Verdicts on all networks, and a search for witnesses at one site of every patient.

  Args:
    folder: of `measure`.
    networks: see `measure`.
    asked: see `measure`.
    level: of the intervals of a network together.
    draws: bootstrap draws.
    num_steps: of the search from each start; 0 leaves it out.
    searched: classes to search in.
    folds: groups of patients, each judged by the others.
    part: only the first process shows progress.
  """
  before = gathered(folder, list(asked.patients), INPUT)
  seen = observers.observe(before.statistics, folds=folds)
  sites = [next(iter(read())) for read in asked.patients.values()] if num_steps and searched else []
  found = {}
  for name, f in tqdm(networks.items(), desc='judge', unit='network', disable=part > 0):
    after = gathered(folder, list(asked.patients), name)
    detection = observers.observe(after.statistics, folds=folds)
    verdicts = verdict.judge(seen, detection, level=level, draws=draws)
    witnesses = (
      _hunt(f, Bench(before, after, seen, detection), sites, searched, asked.side, num_steps) if sites else None
    )
    found[name] = Result(seen, detection, verdicts, witnesses)
  return found


def _hunt(network, bench, sites, searched, side, num_steps):
  run = jax.jit(jax.vmap(witness.search(network, side, num_steps=num_steps)))
  corners = jnp.asarray([s.corner for s in sites])
  found = []
  for kind in searched:
    chosen = [bench.tests(p, kind) for p in range(len(sites))]
    chosen = jax.tree.map(lambda *x: jnp.asarray(np.stack(x), jnp.float32), *chosen)
    x = jnp.asarray(np.stack([s.present[kind, 0] for s in sites]))
    found.append(jax.device_get(run(chosen, x, corners)[1]))
  return found


# Noise of scans at these doses, relative to the dose of the data; it goes with one over the root of the dose.
DOSES = (0.25, 0.5, 2.0, 4.0)


def moved_by_noise(network: Callable[[Image], Image], sites: Sequence[Site], side: int) -> list[list[float]]:
  """How a network's output changes with realisation and amplitude of the noise, near the structures.

  Args:
    network: f, `[batch, row, col]` to the same.
    sites: one of every patient.
    side: of the observer's region.

  Returns:
    By site: the median distance of the outputs of two scans over that of the two
    scans; and by dose of `DOSES`, the distance that the change of dose alone makes
    (the same noise, scaled), over that of two scans, in the inputs and in the outputs.

  Reference:
    Eulig et al. 2025, invariance to noise amplitude and realisations.
  """
  f = jax.jit(network)
  rows = []
  for site in sites:
    scans, mean = site.absent, site.absent.mean(0)
    half = len(scans) // 2
    doses = [mean + (scans[:half] - mean) / np.sqrt(dose) for dose in DOSES]
    seen = [_seen(f, x, site.corner, side, len(scans)) for x in (scans, *doses)]
    given = [_seen(lambda x: x, x, site.corner, side, len(scans)) for x in (scans, *doses)]

    def two(x):
      return max(float(np.median(np.linalg.norm(x[:half] - x[half : 2 * half], axis=-1))), 1e-12)

    def change(x, i):
      return float(np.median(np.linalg.norm(x[1 + i] - x[0][:half], axis=-1))) / two(x[0])

    rows.append([two(seen[0]) / two(given[0]), *(change(x, i) for i in range(len(DOSES)) for x in (given, seen))])
  return rows


def noise_columns() -> list[str]:
  """Columns of `moved_by_noise.csv` after the network and the patient."""
  return ['realisation', *(f'dose_{dose:g}_{view}' for dose in DOSES for view in ('input', 'output'))]


class Bench:
  """The tests that samples of one network have to pass, learnt from other patients than theirs.

  Templates come from the observers; limits from the next fold of patients, with the
  covariance of all but those and the judged fold.

  Args:
    before: inputs.
    after: outputs.
    seen: the observer of the inputs.
    detection: the observer of the outputs.
  """

  def __init__(self, before: Seen, after: Seen, seen: observers.Detection, detection: observers.Detection):
    self.before, self.seen, self.detection = before, seen, detection
    folds = seen.folds
    self._by_fold = [self._learnt(after, np.flatnonzero(seen.fold == (k + 1) % folds), k) for k in range(folds)]

  def _learnt(self, after, spare, fold):
    others = np.setdiff1d(np.flatnonzero(self.seen.fold != fold), spare)
    signals, covariance = observers.pooled(self.before.statistics, others)
    values, vectors = np.linalg.eigh(covariance)
    whiten = (vectors / np.sqrt(np.maximum(values, observers.INTERNAL * values.mean()))).T
    scans, outputs = self.before.absent[spare].astype(float), after.absent[spare]
    count = scans.shape[2]
    # Their own mean takes a share of the noise away.
    rest = (scans - scans.mean(2, keepdims=True)) * np.sqrt(count / (count - 1))
    modes = rest.reshape(-1, rest.shape[-1]) @ whiten.T
    limits = witness.limits(modes, outputs.reshape(-1, *outputs.shape[2:]), np.random.default_rng(fold))
    return signals, dict(whiten=whiten, **limits)

  def tests(self, patient: int, kind: int, site: int = 0) -> witness.Tests:
    """Tests of samples of a class at a site of a patient."""
    fold = self.seen.fold[patient]
    signals, limits = self._by_fold[fold]
    return witness.Tests(
      before=self.seen.templates[fold, kind], after=self.detection.templates[fold, kind],
      absent=self.before.absent[patient, site].mean(0), signal=signals[kind], **limits,
    )  # fmt: skip


def word(truth: bool) -> str:
  """As tables say it."""
  return 'yes' if truth else 'no'


def columns() -> list[str]:
  """Columns of `detectability.csv`."""
  ends = [f'{name}{end}' for name in ('input', 'output', 'retained') for end in ('', '_low', '_high')]
  return [
    'network',
    'size',
    'contrast',
    'aim',
    *ends,
    'visible',
    'ignored',
    'witnesses',
    'fell',
    'searched',
    'patients',
  ]


def lines(label: str, kinds: Sequence[Kind], result: Result, searched: Sequence[int]) -> list[list]:
  """Lines of `detectability.csv` for one network."""
  found = []
  for i, (kind, v) in enumerate(zip(kinds, result.verdicts)):
    numbers = [x for estimate in (v.input, v.output, v.retained) for x in estimate]
    mine = result.found[searched.index(i)] if result.found is not None and i in searched else None
    search = (
      ['', '', 0] if mine is None else [float(np.mean(mine.witness)), float(np.median(mine.fell)), len(mine.witness)]
    )
    found.append([label, *kind, *numbers, word(v.visible), word(v.ignored), *search, len(result.detection.fold)])
  return found
