"""What networks retain of known structures: the observer's verdict, and witnesses found by search.

Sites are places of patients with repeated scans that hold no structure; structures
are added to them. What the observer sees of every patient goes to the disk once
(`detections/*.npz`), so the same command goes on where it stopped.
"""

import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxrec import results
from jaxrec.invariances import observers, verdict, witness
from jaxrec.types import Image

INPUT = 'input'
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class Kind(NamedTuple):
  """A class of structures: its size, its contrast, and the detectability in the input that the contrast is made for."""

  size: float
  contrast: float
  aim: float


class Site(NamedTuple):
  """A place: `absent` `[scan, row, col]`, and `present` `[class, few, row, col]` under the noise of the first scans."""

  absent: np.ndarray
  present: np.ndarray


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
  folder: results.Run, networks: Mapping[str, Callable[[Image], Image]], patients: Mapping[str, Callable[[], Iterable[Site]]],
  region: tuple[slice, slice], *, chunk: int = 256, part: int = 0, parts: int = 1,
) -> None:  # fmt: skip
  """Shows all scans of all patients to all networks; finished patients are not shown again.

  Args:
    folder: where the arrays go.
    networks: by name, `[batch, row, col]` to the same.
    patients: by name, functions that read the sites; all have as many.
    region: rows and columns that the observer sees.
    chunk: images computed together.
    part: this process.
    parts: processes that share the patients.
  """
  views = {INPUT: lambda x: x, **{name: jax.jit(f) for name, f in networks.items()}}
  mine = list(patients)[part::parts]
  for name in tqdm(mine, desc='detect', unit='patient', disable=part > 0):
    if _stored(_path(folder, name), views):
      continue
    sites = list(patients[name]())
    arrays = {}
    for view, f in views.items():
      absent, present = (np.stack([_seen(f, x, region, chunk) for x in images]) for images in zip(*sites))
      arrays[f'{view}.absent'] = absent
      arrays[f'{view}.signal'] = (present - absent[:, None, : present.shape[2]]).mean(2)
    folder.save_arrays(name, arrays, where='detections')


def _stored(path, views):
  """Whether a patient's file is whole and has all views; another is written in its place."""
  try:
    with np.load(path) as stored:
      return all(f'{view}.{kind}' in stored.files for view in views for kind in ('absent', 'signal'))
  except _DAMAGED:
    return False


def _path(folder, patient):
  return folder.folder / 'detections' / f'{results.safe_name(patient)}.npz'


def _seen(f, images, region, chunk):
  """Regions of the outputs, `[..., pixel]`; the last chunk is filled up so that one program serves all."""
  flat = images.reshape(-1, *images.shape[-2:])
  found = []
  for i in range(0, len(flat), chunk):
    batch = flat[i : i + chunk]
    filled = np.concatenate([batch, np.repeat(batch[-1:], chunk - len(batch), 0)])
    found.append(np.asarray(f(filled))[: len(batch), region[0], region[1]])
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
  folder: results.Run, networks: Mapping[str, Callable[[Image], Image]], patients: Mapping[str, Callable[[], Iterable[Site]]],
  kinds: Sequence[Kind], region: tuple[slice, slice], *, level: float = 0.95, draws: int = 10_000, num_steps: int = 150,
  searched: Sequence[int] = (), folds: int = 4, part: int = 0,
) -> dict[str, Result]:  # fmt: skip
  """Verdicts on all networks, and a search for witnesses at one site of every patient.

  Args:
    folder: of `measure`.
    networks: see `measure`.
    patients: see `measure`.
    kinds: classes of structures, as in `Site.present`.
    region: see `measure`.
    level: of the intervals of a network together.
    draws: bootstrap draws.
    num_steps: of the search from each start; 0 leaves it out.
    searched: classes to search in.
    folds: groups of patients, each judged by the others.
    part: only the first process shows progress.
  """
  before = gathered(folder, list(patients), INPUT)
  seen = observers.observe(before.statistics, folds=folds)
  sites = [next(iter(read())) for read in patients.values()] if num_steps and searched else []
  found = {}
  for name, f in tqdm(networks.items(), desc='judge', unit='network', disable=part > 0):
    after = gathered(folder, list(patients), name)
    detection = observers.observe(after.statistics, folds=folds)
    verdicts = verdict.judge(seen, detection, level=level, draws=draws)
    witnesses = _hunt(f, before, after, seen, detection, sites, searched, region, num_steps) if sites else None
    found[name] = Result(seen, detection, verdicts, witnesses)
  return found


def _hunt(network, before, after, seen, detection, sites, searched, region, num_steps):
  run = jax.jit(jax.vmap(witness.search(network, region, num_steps=num_steps)))
  bench = Bench(before, after, seen, detection)
  found = []
  for kind in searched:
    chosen = [bench.tests(p, kind) for p in range(len(sites))]
    chosen = jax.tree.map(lambda *x: jnp.asarray(np.stack(x), jnp.float32), *chosen)
    x = jnp.asarray(np.stack([s.present[kind, 0] for s in sites]))
    found.append(jax.device_get(run(chosen, x)[1]))
  return found


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


def cell(row: Mapping[str, str], name: str, form: str = '.2f') -> str:
  """A number of `detectability.csv` and its interval, as reports show them."""
  value, low, high = (float(row[f'{name}{end}']) for end in ('', '_low', '_high'))
  return f'{value:{form}} ({low:{form}} to {high:{form}})'


def hunted(row: Mapping[str, str]) -> list[str]:
  """Share of witnesses and median fall, as reports show them; empty where none were searched."""
  return [f'{float(row[k]):.2f}' if row[k] else '' for k in ('witnesses', 'fell')]


def columns() -> list[str]:
  """Columns of `detectability.csv`."""
  ends = [f'{name}{end}' for name in ('input', 'output', 'retained') for end in ('', '_low', '_high')]
  return ['network', 'size', 'contrast', 'aim', *ends, 'visible', 'ignored', 'witnesses', 'fell', 'searched', 'patients']


def lines(label: str, kinds: Sequence[Kind], result: Result, searched: Sequence[int]) -> list[list]:
  """Lines of `detectability.csv` for one network."""
  found = []
  for i, (kind, v) in enumerate(zip(kinds, result.verdicts)):
    numbers = [x for estimate in (v.input, v.output, v.retained) for x in estimate]
    mine = result.found[searched.index(i)] if result.found is not None and i in searched else None
    search = ['', '', 0] if mine is None else [float(np.mean(mine.witness)), float(np.median(mine.fell)), len(mine.witness)]
    found.append([label, *kind, *numbers, word(v.visible), word(v.ignored), *search, len(result.detection.fold)])
  return found
