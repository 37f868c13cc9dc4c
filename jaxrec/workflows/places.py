"""What trained networks are asked about: classes of structures, and sites of held-out patients."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from jaxrec.data import ldct, loader, sites
from jaxrec.data.errors import DataError
from jaxrec.data.sites import Site
from jaxrec.geometry import soft_disc
from jaxrec.invariances import observers
from jaxrec.workflows import datasets
from jaxrec.workflows.experiment import CTData, DataSet, Detection

# Of the MR structures whose signal sets the contrasts, as a share of the scan's maximum: magnitudes are nearly linear there.
_TRIAL = 0.1


class Kind(NamedTuple):
  """A class of structures: its size, its contrast, and the detectability in the input that the contrast is made for."""

  size: float
  contrast: float
  aim: float


class Question(NamedTuple):
  """Classes `kinds`; by patient, functions that read the sites; `side` of the observer's region; `pixel` in units of the sizes.

  `left_out` are patients with too few sites.
  """

  kinds: list[Kind]
  patients: Mapping[str, Callable[[], Iterable[Site]]]
  side: int
  pixel: float
  left_out: list[str]


def question(options: Detection, data_set: DataSet, data: datasets.Data) -> Question:
  """Structures and sites of a comparison.

  Contrasts follow from the detectabilities that are aimed at and the noise of
  training patients.

  Args:
    options: of the observer.
    data_set: what `data` was read from.
    data: patients; those of validation are asked about.

  Raises:
    DataError: if there are too few places or patients.
  """
  ask = _ct if isinstance(data_set, CTData) else _mr
  kinds, patients, pixel = ask(options, data_set, data)
  # All patients have as many sites: those with fewer are left out and named.
  count = int(np.median([n for n, _ in patients.values()])) if patients else 0
  enough = {name: read for name, (n, read) in patients.items() if n >= count > 0}
  if len(enough) < options.folds:
    raise DataError(
      f'detect: {len(enough)} patients have {count} places for structures; detect.folds={options.folds} need as many'
    )
  readers = {name: partial(_first, read, count) for name, read in enough.items()}
  return Question(kinds, readers, 2 * options.reach + 1, pixel, [name for name in patients if name not in enough])


def _first(read, count):
  return itertools.islice(read(), count)


def _slices(volume, count):
  """At most `count` slices, evenly over the volume."""
  return sorted({int(i) for i in np.linspace(0, volume.shape[0] - 1, min(count, volume.shape[0]))})


def _ct(options, data_set, data):
  volumes = [v for v in data.val.volumes if v.paired]
  places: dict[str, list] = {v.patient_id: [] for v in volumes}
  for v in volumes:
    for s in _slices(v, options.slices):
      found = sites.places_ct(
        v, s, count=options.sites, side=options.side, centre_hu=data_set.centre_hu, seed=data_set.seed
      )
      places[v.patient_id] += [(v, s, p) for p in found]
  kinds = _contrasts_ct(options, data_set, data)
  phantom = data_set.phantom
  scanner = None if data_set.root else dict(photons=phantom['photons'], dose=phantom['dose'])
  patients = {
    name: (len(mine), partial(_sites_ct, options, kinds, mine, data_set.seed, scanner)) for name, mine in places.items()
  }
  return kinds, patients, volumes[0].pixel if volumes else 1.0


def _sites_ct(options, kinds, places, seed, scanner):
  for (v, s), group in itertools.groupby(places, lambda place: place[:2]):
    added = np.stack([k.contrast / ldct.STD * disc(options.side, k.size / v.pixel) for k in kinds]).astype(np.float32)
    yield from sites.sites_ct(
      v,
      s,
      [at for *_, at in group],
      added=added,
      repeats=options.repeats,
      few=options.few,
      reach=options.reach,
      seed=seed,
      scanner=scanner,
    )


def _contrasts_ct(options, data_set, data):
  """The covariance is that of low minus full dose at places like those of the structures."""
  region = (slice(options.side // 2 - options.reach, options.side // 2 + options.reach + 1),) * 2
  samples, series = [], {}
  for v in (v for v in data.train.volumes if v.paired):
    series[v.patient_id] = v
    for s in _slices(v, options.slices):
      low, full = ldct.read_hu(v, s)
      for r, c in sites.places_ct(
        v, s, count=options.calibration, side=options.side, centre_hu=data_set.centre_hu, seed=data_set.seed, apart=1.0
      ):
        corner = r - options.side // 2, c - options.side // 2
        patch = (low - full)[corner[0] : corner[0] + options.side, corner[1] : corner[1] + options.side]
        samples.append((patch - patch.mean())[region].ravel())
  pixel = next(iter(series.values())).pixel if series else 1.0
  signals = {size: disc(options.side, size / pixel)[region].ravel().astype(float) for size in options.diameters}
  # Contrasts in whole tenths of a HU.
  return _aimed(options, signals, np.asarray(samples, float), 1)


def disc(side: int, diameter: float) -> np.ndarray:
  """A structure of unit contrast on the middle pixel of a patch."""
  return soft_disc((side, side), (side // 2, side // 2), diameter)


def _aimed(options, signals, samples, digits):
  """Contrasts that give the signals of unit contrast the aimed detectabilities.

  The inverse of a covariance of n samples of p pixels is too large by n / (n - p - 1),
  which is taken back (Wishart).
  """
  n, p = len(samples), (2 * options.reach + 1) ** 2
  if n < 2 * p:
    raise DataError(
      f'detect: {n} places in training patients are too few for {p} pixels; raise detect.calibration or lower detect.reach'
    )
  covariance = np.cov(samples.T)
  units = observers.exact_detectability(np.stack(list(signals.values())), covariance) * np.sqrt((n - p - 1) / n)
  return [
    Kind(size, float(np.round(aim / unit, digits)), aim) for size, unit in zip(signals, units) for aim in options.aims
  ]


def _mr(options, data_set, data):
  trials = [Kind(d, _TRIAL, 0.0) for d in options.diameters]
  samples, signals = [], []
  for v in data.train.volumes:
    # Noise is drawn: a few sites of every patient are enough for many scans.
    for site in _sites_mr(options, data_set, trials, v, max(options.calibration // options.repeats, 1)):
      cut = tuple(slice(c, c + 2 * options.reach + 1) for c in site.corner)
      absent = site.absent[:, cut[0], cut[1]]
      samples.append((absent - absent.mean(0)).reshape(len(absent), -1) * np.sqrt(len(absent) / (len(absent) - 1)))
      signals.append((site.present - site.absent[: options.few])[..., cut[0], cut[1]].mean(1).reshape(len(trials), -1))
  if not samples:
    raise DataError('detect: no training patient has a place for structures')
  means = np.mean(signals, 0).astype(float) / _TRIAL
  kinds = _aimed(options, dict(zip(options.diameters, means)), np.concatenate(samples).astype(float), 4)
  patients: dict[str, list] = {}
  for v in data.val.volumes:
    patients.setdefault(v.patient_id, []).append(v)
  read = {name: partial(_patient_mr, options, data_set, kinds, mine) for name, mine in patients.items()}
  return kinds, {name: (sum(_counts(options, data_set, v) for v in patients[name]), f) for name, f in read.items()}, 1.0


def _patient_mr(options, data_set, kinds, volumes):
  for v in volumes:
    yield from _sites_mr(options, data_set, kinds, v, options.sites)


def _counts(options, data_set, volume):
  """Sites of a volume, without its scans."""
  return sum(1 for _ in _sites_mr(options, data_set, [], volume, options.sites))


def _sites_mr(options, data_set, kinds, volume, count):
  read = datasets.reader(data_set, form='kspace')
  for s in _slices(volume, options.slices):
    yield from sites.sites_mr(
      f'{volume.name}-{s:03d}', read(loader.Example(volume, s, None), 0), structures=[k[:2] for k in kinds], count=count,
      repeats=options.repeats if kinds else 1, few=options.few if kinds else 1, reach=options.reach, seed=data_set.seed, added_noise=data_set.added_noise,
    )  # fmt: skip
