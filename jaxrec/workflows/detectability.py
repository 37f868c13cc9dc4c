"""The detect stage: what trained CT networks retain of structures put into scans of held-out patients."""

import itertools
from functools import partial

import numpy as np
from ml_collections import ConfigDict

from jaxrec import figures, results
from jaxrec.data import cases, ldct
from jaxrec.data.errors import DataError
from jaxrec.geometry import soft_disc
from jaxrec.invariances import observers, verdict
from jaxrec.models import observer
from jaxrec.training import Parallel
from jaxrec.workflows import datasets, detect
from jaxrec.workflows.page import Page
from jaxrec.workflows.train import loader_of


def run(config: ConfigDict, run_folder: results.Run, data: datasets.Data, parallel: Parallel) -> None:
  """Measures, judges and searches; finished patients are not measured again.

  Contrasts follow from the detectabilities that are aimed at and the noise of
  training patients (`contrasts`); verdicts are on the patients of the validation
  split, each judged by the others.

  Raises:
    ValueError: for bad options.
    DataError: if there are too few places or patients.
  """
  options = config.detect
  region = (slice(options.side // 2 - options.reach, options.side // 2 + options.reach + 1),) * 2
  load = loader_of(run_folder.folder / 'stage', data, parallel)
  networks = {}
  for name in options.networks:
    module, variables = load(name)
    networks[name] = partial(observer(module), variables)
  volumes = [v for v in data.val.volumes if v.paired]
  places = {v.patient_id: [] for v in volumes}
  for v in volumes:
    for s in _slices(v, options.slices):
      found = cases.places_ct(v, s, count=options.sites, side=options.side, centre_hu=config.data.centre_hu, seed=config.seed)
      places[v.patient_id] += [(v, s, p) for p in found]
  # All patients have as many sites: those with fewer are left out and named.
  count = int(np.median([len(p) for p in places.values()])) if places else 0
  short = [name for name, p in places.items() if len(p) < count or not p]
  places = {name: p[:count] for name, p in places.items() if name not in short}
  if len(places) < options.folds:
    raise DataError(f'detect: {len(places)} patients have {count} places with a mean of {config.data.centre_hu} HU; detect.folds={options.folds} need as many')
  kinds = contrasts(config, data, region)
  if parallel.part == 0:
    if short:
      print(f'detect: left out {len(short)} patients with fewer than {count} places: {", ".join(short)}')
    shown = count * len(places) * (options.repeats + len(kinds) * options.few)
    print(f'detect: {len(networks)} networks, {len(kinds)} classes, {len(places)} patients with {count} sites: {shown} images each')
  read = {name: partial(_sites, options, kinds, mine, config.seed) for name, mine in places.items()}
  detect.measure(run_folder, networks, read, region, part=parallel.part, parts=parallel.parts)
  parallel.barrier('detect')
  if parallel.part:
    return
  searched = [i for i, k in enumerate(kinds) if k.aim in options.searched_aims]
  found = detect.judged(
    run_folder, networks, read, kinds, region, level=options.level, draws=options.draws, num_steps=options.num_steps, searched=searched, folds=options.folds
  )
  labels = {name: _label(config, name) for name in networks}
  table = [line for name, result in found.items() for line in detect.lines(labels[name], kinds, result, searched)]
  results.write_csv(run_folder.folder / 'detectability.csv', detect.columns(), table)
  pairs = [(a, b) for i, a in enumerate(networks) for b in list(networks)[i + 1 :]]
  apart = [
    [labels[a], labels[b], *kind, *estimate]
    for a, b in pairs
    for kind, estimate in zip(kinds, verdict.difference(found[a].before, found[a].detection, found[b].detection, level=options.level, draws=options.draws))
  ]
  results.write_csv(run_folder.folder / 'differences.csv', ['network', 'other', *detect.Kind._fields, 'difference', 'low', 'high'], apart)


def _slices(volume, count):
  """At most `count` slices, evenly over the volume."""
  return sorted({int(i) for i in np.linspace(0, volume.shape[0] - 1, min(count, volume.shape[0]))})


def _label(config, name):
  run, *inner = name.split('/')
  own = config.experiments[run]
  return (own.experiments[inner[0]] if inner else own).label


def contrasts(config: ConfigDict, data: datasets.Data, region: tuple[slice, slice]) -> list[detect.Kind]:
  """Contrasts in HU that give every size the detectabilities `detect.aims`, by the noise of training patients.

  The covariance is that of low minus full dose at places like those of the
  structures; estimated from n samples of p pixels, its inverse is too large by n /
  (n - p - 1), which is taken back (Wishart).

  Raises:
    DataError: if there are too few places.
  """
  options = config.detect
  samples, series = [], {}
  for v in (v for v in data.train.volumes if v.paired):
    series[v.patient_id] = v
    for s in _slices(v, options.slices):
      low, full = ldct.read_hu(v, s)
      for r, c in cases.places_ct(v, s, count=options.calibration, side=options.side, centre_hu=config.data.centre_hu, seed=config.seed, apart=1.0):
        corner = r - options.side // 2, c - options.side // 2
        patch = (low - full)[corner[0] : corner[0] + options.side, corner[1] : corner[1] + options.side]
        samples.append((patch - patch.mean())[region].ravel())
  n, p = len(samples), (2 * options.reach + 1) ** 2
  if n < 2 * p:
    raise DataError(f'detect: {n} places in training patients are too few for {p} pixels; raise detect.calibration or lower detect.reach')
  covariance = np.cov(np.asarray(samples, float).T)
  pixel = next(iter(series.values())).pixel
  kinds = []
  for size in options.diameters:
    unit = observers.exact_detectability(disc(options.side, size / pixel)[region].ravel().astype(float), covariance) * np.sqrt((n - p - 1) / n)
    kinds += [detect.Kind(size, float(np.round(aim / unit, 1)), aim) for aim in options.aims]
  return kinds


def disc(side: int, diameter: float) -> np.ndarray:
  """A structure of unit contrast on the middle pixel of a patch."""
  return soft_disc((side, side), (side // 2, side // 2), diameter)


def _sites(options, kinds, places, seed):
  for (v, s), group in itertools.groupby(places, lambda place: place[:2]):
    signals = np.stack([k.contrast / ldct.STD * disc(options.side, k.size / v.pixel) for k in kinds]).astype(np.float32)
    # The repeats of a slice are read once for all of its places.
    for absent in cases.absent_ct(v, s, [at for *_, at in group], repeats=options.repeats, side=options.side, seed=seed):
      yield detect.Site(absent, absent[None, : options.few] + signals[:, None])


def section(page: Page, folder) -> None:
  """Adds verdicts, curves and paired differences of a run folder to a page."""
  rows = results.read_csv(folder / 'detectability.csv')
  if not rows:
    return
  page.heading('What the networks retain of small structures')
  ignored = [f'{r["network"]}: {float(r["size"]):g} mm at {float(r["contrast"]):.0f} HU' for r in rows if r['ignored'] == 'yes']
  page.text([f'Ignored: {"; ".join(ignored) or "no class, by any network"}. {rows[0]["patients"]} patients, each judged by the others.'])
  page.figure(
    'retained', figures.retained_curves(rows, 'mm'),
    'Retained detectability r = d\'_out / d\'_in of the best linear observer against the detectability in the input, by size; bands: 95% intervals over patients that hold together for all classes of a network.',
  )  # fmt: skip
  head = ['network', 'size', 'contrast', 'd\' in input', 'd\' in output', 'r', 'ignored', 'witnesses', 'fell']
  lines = []
  for r in rows:
    cells = [detect.cell(r, k) for k in ('input', 'output', 'retained')]
    lines.append([r['network'], f'{float(r["size"]):g} mm', f'{float(r["contrast"]):.0f} HU', *cells, r['ignored'], *detect.hunted(r)])
  page.table(
    'Ignored: visible (d\' in the input above 2), r below .5 and d\' in the output below 1, each with its whole interval. Contrasts follow from the d\' aimed at and the noise of training patients. Witnesses: share of '
    'inputs for which the search finds a sample that a scan could be, in which the evidence fell by 2 deviations or more, moved by at most half a deviation in the output, and whose output is as close as those of two scans.',
    head, lines, name='verdicts',
  )  # fmt: skip
  apart = results.read_csv(folder / 'differences.csv')
  page.table(
    'Paired differences of r over patients, 95% intervals that hold together for all classes of a pair', ['network', 'minus', 'size', 'contrast', 'difference of r'],
    [[d['network'], d['other'], f'{float(d["size"]):g} mm', f'{float(d["contrast"]):.0f} HU', f'{float(d["difference"]):.3f} ({float(d["low"]):.3f} to {float(d["high"]):.3f})'] for d in apart],
  )  # fmt: skip


def report(folder):
  """Writes `report.html` of a run folder that has this stage alone.

  Raises:
    RunError: if it has no rows.
  """
  if not (folder / 'detectability.csv').exists():
    raise results.RunError(f'{folder}: has no rows to report; run the detect stage first')
  (folder / 'figures').mkdir(parents=True, exist_ok=True)
  page = Page(folder)
  section(page, folder)
  return page.write('jaxrec: what networks retain')
