"""Samples that a network cannot tell apart, at the sites of the observer, judged by its templates.

Every patient is one unit of work whose rows are on the disk when it is finished, so
the same command goes on where it stopped.
"""

import itertools
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxrec import invariances, results
from jaxrec.data.sites import Site
from jaxrec.invariances import observers, witness
from jaxrec.progress import Remaining
from jaxrec.types import Image, Variables
from jaxrec.workflows import detect
from jaxrec.workflows.experiment import Invariances
from jaxrec.workflows.places import Question

MEASURED = 'sampled.jsonl'
KEY = ('network', 'layer', 'patient', 'site', 'kind')

Model = tuple[nn.Module, Variables]


class Tap(NamedTuple):
  """One layer of a network, and the models that describe what it leaves open.

  Attributes:
    network: name of the network among those of `detect`.
    layer: name of the layer.
    sampler: of inputs.
    variables: of its functions.
    anatomies: of the high-dose domain given the same output, with its variables;
      `None` if there is no such model.
  """

  network: str
  layer: str
  sampler: invariances.Sampler
  variables: Variables
  anatomies: tuple[invariances.Sampler, Variables] | None = None


def sampler(
  output: Callable[[Image], Image], tap: Callable[[Image], Any], vae: Model, flow: Model
) -> tuple[invariances.Sampler, Variables]:
  """Sampler of a network's inputs, with its variables.

  Args:
    output: f, `[row, col]` to the same; the decoder is given it whatever the flow looks at.
    tap: the layer that the flow looks at.
    vae: `models.CVAE` and its variables.
    flow: `models.CINN` and its variables.
  """
  coder, transform = vae[0], flow[0]

  def observe(_, image):
    return {'output': output(image), 'tap': tap(image)}

  def encode(v, key, image, y):
    mean, logvar = coder.apply(v['vae'], image[None], y['output'][None], method='encode')
    return (mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype))[0]

  made = invariances.Sampler(
    observe=observe,
    encode=encode,
    decode=lambda v, z, y: coder.apply(v['vae'], z[None], y['output'][None], method='decode')[0],
    forward=lambda v, z, y: transform.apply(v['flow'], z[None], y['tap'][None])[0][0],
    inverse=lambda v, noise, y: transform.apply(v['flow'], noise[None], y['tap'][None], reverse=True)[0][0],
    latent=coder.code,
    correct=lambda v, image, seen, y: image + y['output'] - seen['output'],
  )
  return made, {'vae': vae[1], 'flow': flow[1]}


class Sampling:
  """Everything that is asked of the taps of some networks, at the sites that `detect.measure` has seen.

  Args:
    folder: of `detect.measure`.
    taps: what to sample.
    asked: classes and sites.
    searched: classes to sample.
    options: how samples are drawn and judged.
    folds: of the observers.
    seed: of the samples; the same noise v at every layer and network.
  """

  def __init__(
    self,
    folder: results.Run,
    taps: Sequence[Tap],
    asked: Question,
    searched: Sequence[int],
    options: Invariances,
    *,
    folds: int,
    seed: int,
  ):
    self.folder, self.taps, self.asked, self.searched, self.seed = folder, taps, asked, searched, seed
    names = list(asked.patients)
    self.benches = _benches(folder, names, {tap.network for tap in taps}, folds)
    self.programs = [_programs(tap, options, asked.side) for tap in taps]
    self.others, self.sites = options.others, options.sites
    # Once: reading a site reads or draws all of its scans.
    self._scans, self._anatomies = {}, []
    for name, read in asked.patients.items():
      site = next(iter(read()))
      self._scans[name] = site.absent[: options.scans]
      row, col = site.corner
      self._anatomies.append(site.target[row : row + asked.side, col : col + asked.side])

  def measure(self, *, part: int = 0, parts: int = 1) -> None:
    """Samples for inputs without structures at some sites, and at the first site of a patient for those of every searched class."""
    path = self.folder.folder / 'rows' / f'{part:05d}.{MEASURED}'
    done = {tuple(row[k] for k in KEY) for row in measured(self.folder.folder)}
    remaining = Remaining('sample', 'patient', len(self.asked.patients), silent=part > 0)
    for p, name in enumerate(tqdm(self.asked.patients, desc='sample', unit='patient', disable=part > 0)):
      if p % parts != part:
        continue
      computed = False
      for number, site in enumerate(itertools.islice(self.asked.patients[name](), self.sites)):
        for kind in (results.NO_STRUCTURE, *self.searched) if number == 0 else (results.NO_STRUCTURE,):
          for t, tap in enumerate(self.taps):
            key = dict(zip(KEY, (tap.network, tap.layer, name, number, kind)))
            if tuple(key.values()) not in done:
              start = time.perf_counter()
              found, _ = self.ask(t, name, site, kind, number=number)
              results.append_jsonl(path, [{**key, **found, 'seconds': time.perf_counter() - start}])
              computed = True
      if computed:
        remaining.step(p + 1)

  def ask(
    self, t: int, patient: str, site: Site, kind: int, *, number: int = 0
  ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Samples for one input of a site and judges them.

    Args:
      t: number of the tap.
      patient: whose site.
      site: where.
      kind: class of the structure in the input, or `results.NO_STRUCTURE`.
      number: of the site.

    Returns:
      A row of numbers, and the pictures.
    """
    tap, programs, names = self.taps[t], self.programs[t], list(self.asked.patients)
    tests = self.benches[tap.network].tests(names.index(patient), max(kind, 0), number)
    tests = jax.tree.map(lambda t: jnp.asarray(t, jnp.float32), tests)
    few = site.present.shape[1]
    x = site.absent[0] if kind == results.NO_STRUCTURE else site.present[kind, 0]
    signal = 0 if kind == results.NO_STRUCTURE else (site.present[kind] - site.absent[:few]).mean(0)
    fresh = site.absent[1:] + signal
    entropy = zlib.crc32(f'{patient}-{number}-{kind}'.encode())
    key = jax.random.fold_in(jax.random.key(self.seed), entropy)
    corner = jnp.asarray(site.corner)
    found, pictures = jax.device_get(
      programs.everything(tap.variables, key, x, fresh, self._mismatched(patient), tests, corner)
    )
    away = found.pop('away')
    fresh_away = max(float(np.median(away.fresh)), 1e-12)
    row = {
      **_summary(found.pop('ours')),
      **_summary(found.pop('seeds'), '_drawn'),
      **{k: float(v) for k, v in found.items()},
    }
    row |= {
      f'distance_{k}': float(np.median(getattr(away, k)))
      for k in ('samples', 'drawn', 'fresh', 'mismatched', 'reconstruction')
    }
    if tap.anatomies and site.rescan:
      rng = np.random.default_rng([entropy, self.seed])
      made = np.asarray(programs.anatomies(tap.anatomies[1], key, x))
      own = site.target + (0 if kind == results.NO_STRUCTURE else site.added[kind])
      judged, distances = jax.device_get(programs.judge(tests, x, site.rescan(rng, made), corner))
      _, yardstick = jax.device_get(
        programs.judge(tests, x, site.rescan(rng, np.broadcast_to(own, made.shape)), corner)
      )
      row |= _summary(judged, '_rescanned')
      row |= {
        'gap_rescanned': float(np.median(distances)) / fresh_away,
        'gap_rescanned_target': float(np.median(yardstick)) / fresh_away,
      }
      pictures['anatomies'] = made
    return row, pictures

  def _mismatched(self, patient):
    """Inputs of other patients, `[other, row, col]`; the same for all inputs of a patient."""
    names = [n for n in self._scans if n != patient]
    chosen = np.random.default_rng(zlib.crc32(patient.encode())).permutation(len(names))[: self.others]
    return np.stack([self._scans[names[i]][0] for i in chosen])

  def anatomy(self) -> float:
    """Standard deviation of noise-free images near the structures, over patients."""
    return float(np.std(self._anatomies, 0, ddof=1).mean())

  def moments(self, t: int) -> dict[str, float]:
    """Whether the noise of a tap's flow is standard normal over scans of all patients without structures."""
    tap = self.taps[t]
    forward = jax.jit(
      lambda key, x: tap.sampler.forward(
        tap.variables, tap.sampler.encode(tap.variables, key, x, y := tap.sampler.observe({}, x)), y
      )
    )
    scans = np.concatenate(list(self._scans.values()))
    v = [forward(jax.random.fold_in(jax.random.key(self.seed), i), x) for i, x in enumerate(scans)]
    found = invariances.noise_moments(jnp.stack(v))
    return {
      'scans': len(v),
      'mean_rms': float(jnp.sqrt(jnp.mean(found.mean**2))),
      'std_mean': float(jnp.mean(found.std)),
      'correlation': float(found.correlation),
      'correlation_expected': float(found.level),
    }


def measured(folder: Path) -> list[dict[str, Any]]:
  """Finished rows of a run folder, each once, ordered."""
  found: dict[tuple, dict] = {}
  for path in sorted((folder / 'rows').glob(f'*.{MEASURED}')):
    for row in results.read_jsonl(path):
      found.setdefault(tuple(row[k] for k in KEY), row)
  return [found[k] for k in sorted(found, key=str)]


def _benches(folder, names, networks, folds):
  before = detect.gathered(folder, names, detect.INPUT)
  seen = observers.observe(before.statistics, folds=folds)
  found = {}
  for network in sorted(networks):
    after = detect.gathered(folder, names, network)
    found[network] = detect.Bench(before, after, seen, observers.observe(after.statistics, folds=folds))
  return found


class Programs(NamedTuple):
  """Compiled: the sampling with its tests; anatomies alone; the judgement of inputs that others made."""

  everything: Callable
  anatomies: Callable | None
  judge: Callable


def _programs(tap, options, side):
  draw = invariances.sample(
    tap.sampler, num_samples=options.num_samples, chunk=options.chunk, corrections=options.corrections
  )
  check = invariances.consistency(tap.sampler, chunk=options.chunk, corrections=options.corrections)
  scales = tuple(options.scales)

  def cut(images, corner):
    return jax.vmap(lambda x: witness.cut(x, corner, side))(images)

  def findings(tests, x, y, images, outputs, corner):
    x, y = (witness.cut(image, corner, side) for image in (x, y))
    return jax.vmap(lambda a, b: witness.examine(tests, x, y, a, b))(cut(images, corner), cut(outputs, corner))

  def everything(v, key, x, fresh, others, tests, corner):
    found = draw(v, key, x)
    first = jax.random.fold_in(key, 1)
    y = found.output['output']
    rebuilt = tap.sampler.decode(v, tap.sampler.encode(v, first, x, found.output), found.output)
    noise = cut(fresh, corner)
    excess = invariances.excess_variation(found.images, fresh, scales=scales)
    numbers = dict(
      ours=findings(tests, x, y, found.images, found.outputs['output'], corner),
      seeds=findings(tests, x, y, found.drawn, found.drawn_outputs['output'], corner),
      excess=witness.cut(excess, corner, side).max(),
      away=check(v, first, x, found, fresh, others),
      deviation=invariances.diversity(cut(found.images, corner)).mean(),
      deviation_drawn=invariances.diversity(cut(found.drawn, corner)).mean(),
      noise=invariances.diversity(noise).mean(),
      represented=1 - jnp.mean(witness.cut(rebuilt - x, corner, side) ** 2) / jnp.mean(jnp.var(noise, 0, ddof=1)),
    )
    pictures = dict(
      images=found.images, outputs=found.outputs['output'], drawn=found.drawn, drawn_outputs=found.drawn_outputs['output'], output=y,
      excess=excess, deviations=invariances.deviations(found.images, fresh, scales=scales),
    )  # fmt: skip
    return numbers, pictures

  def judge(tests, x, images, corner):
    seen = jax.lax.map(lambda image: tap.sampler.observe({}, image)['output'], images, batch_size=options.chunk)
    y = tap.sampler.observe({}, x)['output']
    return findings(tests, x, y, images, seen, corner), jax.vmap(lambda s: invariances.distance(y, s))(seen)

  anatomies = None
  if tap.anatomies:
    high = invariances.sample(tap.anatomies[0], num_samples=options.num_samples, chunk=options.chunk)
    anatomies = jax.jit(lambda v, key, x: high(v, key, x).images)
  return Programs(jax.jit(everything), anatomies, jax.jit(judge))


def _summary(findings, end=''):
  """Shares and medians over samples."""
  shares = {'plausible': findings.plausible, 'plausible_witnesses': findings.witness}
  # Whether the noise of a sample is one that scans have is asked apart: the model need not draw it well.
  shares['witnesses'] = (findings.fell >= witness.FELL) & (findings.moved <= witness.MOVED) & (findings.away <= 1)
  medians = {k: getattr(findings, k) for k in ('fell', 'moved', 'norm', 'away')}
  return {f'{k}{end}': float(np.mean(v)) for k, v in shares.items()} | {
    f'{k}{end}': float(np.median(v)) for k, v in medians.items()
  }


def judged(rows: Iterable[Mapping[str, Any]], alpha: float) -> list[dict[str, Any]]:
  """Rows with the verdict of analysis A: `altered`, beyond what structure-free inputs of other patients give.

  Args:
    rows: of `measured`.
    alpha: share of structure-free inputs that may be called altered.

  Raises:
    ValueError: if there are too few structure-free inputs for this `alpha`.
  """
  rows = list(rows)
  limits: dict[tuple, float] = {}
  for tap in sorted({(r['network'], r['layer']) for r in rows}):
    nothing = [r for r in rows if (r['network'], r['layer']) == tap and r['kind'] == results.NO_STRUCTURE]
    for patient in sorted({r['patient'] for r in rows}):
      limits[(*tap, patient)] = invariances.family_threshold(
        np.array([r['excess'] for r in nothing if r['patient'] != patient]), alpha=alpha
      )
  found = []
  for r in rows:
    limit = limits[r['network'], r['layer'], r['patient']]
    found.append({**r, 'limit': limit, 'altered': int(r['excess'] > limit)})
  return found
