"""The sweep itself: every case, place, sweep and strength becomes a row; finished rows are not computed again."""

import dataclasses
import time
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxrec import attacks
from jaxrec.audit import program
from jaxrec.audit.plan import Case, Place, Settings, Store, Sweep
from jaxrec.data.errors import DataError
from jaxrec.networks import Network
from jaxrec.progress import Remaining
from jaxrec.training import Parallel
from jaxrec.types import Reconstructor, Sample

# A network may lose half of the image; other units differ by orders of magnitude.
_OTHER_UNITS = 10


@dataclasses.dataclass(frozen=True)
class Labels:
  """Columns that are the same in all rows of a network."""

  model: str
  network: str


class Engine:
  """Attacks one network.

  Args:
    network: whom.
    sweeps: attacks by name.
    settings: how.
    store: where rows and pictures go.
    parallel: devices and processes.
    labels: of the rows.
    undefended: the network without its defence, for the amplification.
  """

  def __init__(self, network: Network, sweeps: Mapping[str, Sweep], settings: Settings, store: Store, parallel: Parallel,
               labels: Labels, undefended: Reconstructor | None = None):  # fmt: skip
    variables = jax.device_put(network.variables)
    self.network = dataclasses.replace(network, variables=variables)
    self.sweeps, self.settings, self.store, self.parallel, self.labels = sweeps, settings, store, parallel, labels
    self.batch = settings.batch_size * parallel.devices
    # Processes share out the same batches, also if their own devices take more at a time.
    self.share = int(parallel.total(np.where(np.arange(parallel.parts) == parallel.part, self.batch, 0)).min())
    self.done = {_key(row) for row in store.rows()}
    self.clean = parallel.map_batch(program.clean(self.network))
    self.programs: dict[str, Callable] = {}
    self.amplify: dict[str, Callable] = {}
    for name, sweep in sweeps.items():
      make = program.by_grid if sweep.is_grid else program.by_search
      self.programs[name] = parallel.map_batch(make(self.network, sweep, settings.chunk))
      # Of shares only: a degree is no share of the measurement.
      if (
        settings.lipschitz_iterations
        and sweep.declared.unit == 'relative'
        and not sweep.is_grid
        and sweep.start is None
      ):
        self.amplify[name] = parallel.map_batch(
          program.amplification(undefended or network.reconstruct, sweep, settings.lipschitz_iterations)
        )

  def run(self, cases: Sequence[Case]) -> dict[str, str]:
    """Attacks every case of this process.

    Args:
      cases: of all processes.

    Returns:
      What is wrong with slices that could not be read, by place.

    Raises:
      DataError: for such a slice, if `settings.strict`.
      ValueError: if a sweep cannot work on a sample.
    """
    bad: dict[str, str] = {}
    self.pictured = set(_names(cases)[: self.settings.pictures])
    self.most = max((len(c.targets(self.settings.aims, True)) for c in cases), default=1)
    batches = _batches(cases, self.share)[self.parallel.part :: self.parallel.parts]
    remaining = Remaining('attack', 'batch', len(batches), silent=self.parallel.part > 0)
    with tqdm(
      total=len(batches) * len(self.sweeps), desc='attack', unit='batch', disable=self.parallel.part > 0
    ) as bar:
      for n, members in enumerate(batches, 1):
        before = len(self.done)
        members = [case for case in members if not self._finished(case)]
        for chosen, samples in _alike(self._read(members, bad)):
          self._attack(chosen, samples, bad, bar)
        bar.update(n * len(self.sweeps) - bar.n)
        if len(self.done) > before:
          remaining.step(n)
    return bad

  def _finished(self, case: Case) -> bool:
    if case.boxed is None:
      return False
    return not any(
      self._missing(case, *target, name)
      for target in case.targets(self.settings.aims, case.boxed)
      for name in self.sweeps
    )

  def _missing(self, case: Case, annotation: int, aim: str, name: str) -> list[float]:
    strengths = (0.0, *self.sweeps[name].strengths)
    return [s for s in strengths if (case.file, case.slice, annotation, name, aim, s) not in self.done]

  def _read(self, cases, bad):
    for case in cases:
      try:
        sample = jax.tree.map(np.asarray, case.read())
      except DataError as error:
        self._refuse([case], error, bad)
      else:
        yield case, sample

  def _refuse(self, cases, error, bad):
    if self.settings.strict:
      raise error from None
    bad.update({f'{case.origin or case.file} slice {case.slice}': str(error) for case in cases})

  def _attack(self, cases: list[Case], samples: list[Sample], bad: dict[str, str], bar: tqdm) -> None:
    """All sweeps on slices of one shape."""
    computed = self._outcomes(cases, samples, bar)
    while True:
      try:
        found = next(computed, None)
      except ValueError as error:
        # Of a size that the network or the perturbation does not take; what shares a batch has the same.
        words = (str(error).splitlines() or [type(error).__name__])[0]
        return self._refuse(cases, DataError(f'{cases[0].origin or cases[0].file}: cannot be attacked ({words})'), bad)
      if found is None:
        return None
      self._record(cases, samples, *found)

  def _outcomes(self, cases, samples, bar):
    padded = _stack(samples, self.batch)
    images, extra = self.clean(program.weights(self.network), padded)
    self._check(cases, samples, images)
    places = [case.places(sample, self.settings.aims) for case, sample in zip(cases, samples)]
    for name, sweep in self.sweeps.items():
      bar.set_postfix_str(name)
      wanted = [
        (i, place) for i, case in enumerate(cases) for place in places[i]
        if self._missing(case, place.annotation, place.aim, name)
      ]  # fmt: skip
      if not wanted:
        continue
      columns = dict(extra)
      if name in self.amplify:
        keys = self._keys([(case, 0) for case in cases])
        columns['lipschitz'] = self.amplify[name](program.weights(self.network), keys, padded, images)
      columns = jax.device_get(columns)
      attack = self._on_grid if sweep.is_grid else self._by_search
      for found, seconds in attack(name, cases, padded, images, places, wanted):
        yield name, images, columns, found, seconds

  def _by_search(self, name, cases, padded, images, places, wanted):
    """Places one after another, in batches; what is missing only."""
    sweep = self.sweeps[name]
    for start in range(0, len(wanted), self.batch):
      chosen = wanted[start : start + self.batch]
      began = time.perf_counter()
      given = chosen + [chosen[-1]] * (self.batch - len(chosen))
      index = np.array([i for i, _ in given])
      outcome = self.programs[name](
        program.weights(self.network, sweep),
        self._keys([(cases[i], place.annotation) for i, place in given]),
        jax.tree.map(lambda x: x[index], padded),
        np.stack([place.region for _, place in given]),
        np.stack([place.box for _, place in given]),
        images[index],
      )
      outcome = jax.device_get(outcome)
      found = [(i, place, jax.tree.map(lambda x, n=n: x[n], outcome)) for n, (i, place) in enumerate(chosen)]
      yield found, time.perf_counter() - began

  def _on_grid(self, name, cases, padded, images, places, wanted):
    """All places of all slices at once: the network does not depend on them."""
    del cases
    began = time.perf_counter()
    filled = [of + [of[-1]] * (self.most - len(of)) for of in places]
    filled += [filled[-1]] * (self.batch - len(filled))
    regions = np.stack([[place.region for place in of] for of in filled])
    boxes = np.stack([[place.box for place in of] for of in filled])
    outcome = jax.device_get(
      self.programs[name](program.weights(self.network, self.sweeps[name]), padded, regions, boxes, images)
    )
    feasible = outcome.feasible[: len(places)].all((0, 1))
    if not feasible.all():
      sweep = self.sweeps[name]
      raise ValueError(
        f'{name}: no point of its grid lies within {sweep.declared.strength} {sweep.strengths[np.argmin(feasible)]:g}; add one, such as zero'
      )
    missing = {(i, place.annotation, place.aim) for i, place in wanted}
    found = [
      (i, place, jax.tree.map(lambda x, i=i, n=n: x[i, n], outcome))
      for i, of in enumerate(places) for n, place in enumerate(of) if (i, place.annotation, place.aim) in missing
    ]  # fmt: skip
    yield found, time.perf_counter() - began

  def _record(self, cases, samples, name, images, columns, found, seconds):
    """Rows of outcomes, pictures first: a row says that its picture is there."""
    sweep, rows = self.sweeps[name], []
    seconds /= len(found) * (len(sweep.strengths) + 1)
    for i, place, outcome in found:
      case = cases[i]
      if case.name(place.annotation) in self.pictured:
        arrays = _pictures(samples[i], np.asarray(images[i]), place, outcome, sweep)
        self.store.save_arrays(f'{case.name(place.annotation)}.{name}.{place.aim}', arrays)
      constant = {k: float(v[i]) for k, v in columns.items()}
      missing = self._missing(case, place.annotation, place.aim, name)
      rows += [
        row
        for row in self._rows(name, case, samples[i], place, outcome, constant, seconds)
        if row['strength'] in missing
      ]
    self.store.append(rows)
    self.done.update(map(_key, rows))

  def _rows(self, name, case: Case, sample, place: Place, outcome: program.Outcome, constant, seconds):
    sweep = self.sweeps[name]
    for n, strength in enumerate((0.0, *sweep.strengths)):
      values = {k: float(v[max(n - 1, 0)]) for k, v in outcome.columns.items()}
      if strength == 0:
        # Strength 0 leaves the measurement alone: the attacked scores are the clean ones.
        values |= {k: values[k.replace('_adv', '_clean')] for k in values if k.endswith('_adv')}
        values |= {'delta': 0.0, 'budget_used': 0.0}
      yield {
        'file': case.file, 'slice': case.slice, 'annotation': place.annotation, 'label': place.label,
        'model': self.labels.model, 'acceleration': _acceleration(case, sample),
        'perturbation': name, 'attacked': place.aim, 'strength': strength, 'unit': sweep.declared.unit,
        'seed': self.settings.seed, **values, 'steps': sweep.steps if strength else 0, 'seconds': seconds,
        'patient': case.patient, 'split': case.split, 'network': self.labels.network, **constant,
        **({'reference': 'output'} if np.isnan(sample.target).any() else {}),
      }  # fmt: skip

  def _keys(self, chosen: list[tuple[Case, int]]):
    key = jax.random.key(self.settings.seed)
    keys = [jax.random.fold_in(key, zlib.crc32(case.name(annotation).encode())) for case, annotation in chosen]
    return jnp.stack(keys + [keys[-1]] * (self.batch - len(keys)))

  def _check(self, cases, samples, images):
    """What would end in wrong numbers without a word."""
    for case, sample, image in zip(cases, samples, np.asarray(images)):
      if not 0 < sample.scale < np.inf:
        raise ValueError(f'{case.file}: its data range (scale) is {float(sample.scale)}; give a positive number')
      if not case.boxes and not np.any(sample.region):
        raise ValueError(f'{case.file}: its region is empty; give ones where it is, or everywhere if there is no box')
      ratio = np.sqrt(np.mean(np.square(image))) / np.sqrt(np.mean(np.square(sample.target)))
      if np.isnan(image).any():
        warnings.warn(f'{self.labels.network}: its image of {case.file} holds NaN', stacklevel=2)
      elif ratio > _OTHER_UNITS or ratio < 1 / _OTHER_UNITS:
        warnings.warn(
          f'{self.labels.network}: its image of {case.file} is {ratio:.3g} times as large as the target; '
          'is it in other units? scores compare the two as they are', stacklevel=2,
        )  # fmt: skip
      if not np.isnan(sample.target).any():
        continue
      for name, sweep in self.sweeps.items():
        if (
          sweep.search.backward_calls
          and sweep.start is None
          and not attacks.starts_at_random(sweep.at(sweep.strengths[0]).init, sample)
        ):
          raise ValueError(
            f'{name}: {case.file} has no target, so that the network is compared with its own output, where every gradient is zero; '
            "let the search start elsewhere, such as functools.partial(coil_noise, start='random')"
          )


def _key(row):
  return (row['file'], row['slice'], row['annotation'], row['perturbation'], row['attacked'], row['strength'])


def _names(cases):
  return [case.name(n) for case in cases for n in ([box.annotation for box in case.boxes] or [0])]


def _batches(cases, size):
  """Bucket by bucket of one shape, in order."""
  buckets: dict[Any, list[Case]] = {}
  for case in cases:
    buckets.setdefault(case.shape, []).append(case)
  return [of[i : i + size] for of in buckets.values() for i in range(0, len(of), size)]


def _alike(read):
  """Slices of one shape, where that was not known before they were read."""
  groups: dict[Any, tuple[list, list]] = {}
  for case, sample in read:
    cases, samples = groups.setdefault(str(jax.tree.map(np.shape, sample)), ([], []))
    cases.append(case)
    samples.append(sample)
  return groups.values()


def _stack(samples, size):
  return jax.tree.map(lambda *x: np.stack(x), *samples, *[samples[-1]] * (size - len(samples)))


def _acceleration(case, sample):
  if case.acceleration is not None or not hasattr(sample, 'mask'):
    return case.acceleration or ''
  # Of prospective data only what was sampled was acquired: there, all columns count.
  columns = sample.acquired[0] | np.isnan(sample.target).any()
  share = np.mean(sample.mask[..., columns])
  return f'{1 / share:.2g}' if share else ''


def _pictures(sample, image, place: Place, outcome: program.Outcome, sweep: Sweep):
  top, left = ((n - m) // 2 for n, m in zip(image.shape, sample.target.shape))
  clean = image[top : top + sample.target.shape[0], left : left + sample.target.shape[1]]
  arrays = {
    'target': clean if np.isnan(sample.target).any() else sample.target, 'region': place.box, 'clean': clean,
    'adversarial': outcome.adversarial, 'control': outcome.control, 'scale': np.asarray(sample.scale),
    'strength': np.float32(sweep.strengths[-1]), 'delta': np.float32(outcome.columns['delta'][-1]), 'trace': outcome.trace,
  }  # fmt: skip
  amounts = program.numbers(sweep.points)
  if outcome.curve is not None and amounts is not None:
    arrays |= {'angles': np.asarray(amounts), 'curve': outcome.curve}
  return arrays
