"""The invariances stage: samples that a network cannot tell apart, and what of them is anatomy.

Cases of one half of the held-out patients calibrate the thresholds of both
analyses; the other half gives the rows. Every finished case is on the disk, so
the same command goes on where it stopped.
"""

import json
import time
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxrec import invariances, results
from jaxrec.data import cases as cases_lib
from jaxrec.data import loader
from jaxrec.data.errors import DataError
from jaxrec.models import observer
from jaxrec.training import Parallel
from jaxrec.workflows import factory
from jaxrec.workflows.train import loader_of

ROWS, CALIBRATION = 'invariances.jsonl', 'calibration.jsonl'
KEY = ('case', 'layer', 'structure')
# What is looked at for a structure: samples, the input, the autoencoder's image of the input, the network's output.
VIEWS = ('samples', 'input', 'reconstruction', 'output')


def run(config, run_folder: results.Run, data: factory.Data, parallel: Parallel) -> None:
  """Samples, calibrates and analyses; finished cases are not computed again."""
  options = config.invariances
  if options.domain not in ('low_dose', 'target'):
    raise ValueError(f'invariances.domain: {options.domain!r} is unknown; choose one of low_dose, target')
  plans = cases_lib.plan(
    data.val.volumes, diameters=options.diameters, contrasts=options.contrasts, per_slice=options.per_slice, seed=config.seed
  )
  for_calibration, for_results = (loader.spread(part, options.max_cases) for part in cases_lib.halves(plans))
  if not for_calibration or not for_results:
    raise DataError('invariances: needs cases of at least two held-out patients; add patients to the validation split')
  load = loader_of(run_folder.folder / 'stage', data, parallel)
  bad: dict[str, str] = dict(data.val.bad)
  taps = [Tap(config, load, name, options.flows[name]) for name in options.flows]
  if parallel.part == 0:
    print(
      f'invariances: {options.num_samples} samples x {len(taps)} layers for {len(for_calibration)} twins to calibrate, and for '
      f'{len(for_results)} structures and their twins: {(len(for_calibration) + 2 * len(for_results)) * len(taps) * options.num_samples} images'
    )
  read = _last(lambda plan: _read(config, plan))
  sizes = sorted({p.structure.diameter for p in plans})
  with tqdm(total=(len(for_calibration) + len(for_results)) * len(taps), desc='invariances', unit='case', disable=parallel.part > 0) as bar:
    calibrations = _calibrate(config, run_folder, taps, for_calibration, read, sizes, parallel, bad, bar)
    parallel.barrier('calibration')
    thresholds = {tap.name: Thresholds(calibrations[tap.name], sizes, options.alpha) for tap in taps}
    _analyse(config, run_folder, taps, for_results, read, thresholds, parallel, bad, bar)
  results.write_text(run_folder.folder / f'skipped-{parallel.part:05d}.json', json.dumps({'files': bad, 'boxes': {}}, indent=2))
  parallel.barrier('invariances')
  if parallel.part == 0:
    found = rows(run_folder.folder)
    head = list(found[0]) if found else []
    results.write_csv(run_folder.folder / 'invariances.csv', head, [[row.get(c) for c in head] for row in found])
    run_folder.compact_arrays()
    moments = {tap.name: tap.moments(config, data) for tap in taps}
    stored = {t: {**thresholds[t].as_json(), 'moments': moments[t]} for t in thresholds}
    results.write_text(run_folder.folder / 'thresholds.json', json.dumps(stored, indent=2))
    if bad:
      print(f'invariances: left out {len(bad)} files or slices, listed in the report; the first: {next(iter(bad.values()))}')


def _last(function):
  """Keeps the last case: both twins and all layers look at it in turn."""
  kept: dict[str, Any] = {}

  def call(plan):
    if plan.name not in kept:
      kept.clear()
      kept[plan.name] = function(plan)
    return kept[plan.name]

  return call


def rows(folder) -> list[dict[str, Any]]:
  """Finished rows of a run folder, each once, ordered."""
  return _finished(folder, ROWS, KEY)


def _finished(folder, suffix, key):
  found = {}
  for path in sorted((folder / 'rows').glob(f'*.{suffix}')):
    for row in results.read_jsonl(path):
      found.setdefault(tuple(row[k] for k in key), row)
  return [found[k] for k in sorted(found, key=str)]


def _read(config, plan) -> cases_lib.Case:
  options = config.invariances
  if factory.is_ct(config):
    return cases_lib.read_ct(plan, repeats=options.repeats, centre_hu=config.data.centre_hu, seed=config.seed)
  scan = factory.reader(config, form='kspace')(loader.Example(plan.volume, plan.slice, None), 0)
  return cases_lib.read_mr(plan, scan, repeats=options.repeats, seed=config.seed)


class Tap:
  """One layer of the network with its flow: compiled programs for sampling and its yardsticks."""

  def __init__(self, config, load, name, layer):
    options = config.invariances
    network, variables = load(options.network)
    vae, vae_variables = load(options.autoencoder)
    flow, flow_variables = load(name)
    self.name, self.layer = name, int(layer)
    output, tap = observer(network), observer(network, int(layer) or None)
    self.variables = dict(network=variables, vae=vae_variables, flow=flow_variables)

    def observe(v, image):
      # The same thing twice for the output itself: the decoder needs it whatever the flow looks at.
      return {'output': output(v['network'], image), 'tap': tap(v['network'], image)}

    def encode(v, key, image, y):
      mean, logvar = vae.apply(v['vae'], (image - v['noise'])[None], y['output'][None], method='encode')
      return (mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype))[0]

    self.sampler = invariances.Sampler(
      observe=observe,
      encode=encode,
      decode=lambda v, z, y: vae.apply(v['vae'], z[None], y['output'][None], method='decode')[0] + v['noise'],
      forward=lambda v, z, y: flow.apply(v['flow'], z[None], y['tap'][None])[0][0],
      inverse=lambda v, noise, y: flow.apply(v['flow'], noise[None], y['tap'][None], reverse=True)[0][0],
      latent=vae.latent,
      correct=lambda v, image, y: image + y['output'] - output(v['network'], image),
    )
    draw = invariances.sample(
      self.sampler, num_samples=options.num_samples, chunk=options.chunk, corrections=options.corrections
    )
    check = invariances.consistency(self.sampler, chunk=options.chunk, corrections=options.corrections)
    scales = tuple(options.scales)

    def everything(v, key, image, fresh, others):
      found = draw(v, key, image)
      first, second = jax.random.split(jax.random.fold_in(key, 1))
      z = encode(v, first, image, found.output)
      return dict(
        images=found.images,
        decoded=found.decoded,
        output=found.output['output'],
        outputs_fresh=jax.lax.map(lambda x: output(v['network'], x), fresh, batch_size=options.chunk),
        reconstruction=self.sampler.decode(v, z, found.output),
        deviations=invariances.deviations(found.images - v['noise'], fresh, scales=scales),
        excess=invariances.excess_variation(found.images - v['noise'], fresh, scales=scales),
        maxima=invariances.noise_maxima(second, fresh, scales=scales),
        away=check(v, key, image, found, fresh, others),
      )

    self.everything = jax.jit(everything)
    self.observe = jax.jit(lambda v, x: output(v['network'], x))
    self.forward = jax.jit(
      lambda v, key, x: self.sampler.forward(v, encode(v, key, x, observe(v, x)), observe(v, x))
    )

  def __call__(self, config, name, image, target, fresh, others):
    """All arrays of one image; the same case has the same noise v at every layer and in every network.

    An autoencoder of the high-dose domain gives anatomies: the input's own noise is put on them.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(name.encode()))
    noise = image - target if config.invariances.domain == 'target' else np.zeros_like(image)
    return jax.device_get(self.everything(self.variables | {'noise': noise}, key, image, fresh, others))

  def moments(self, config, data) -> dict[str, float]:
    """Whether the flow's noise is standard normal on held-out images."""
    examples = factory.training_examples(config, data.val.volumes)[: config.invariances.max_moments]
    keys = jax.random.split(jax.random.key(config.seed), len(examples))
    v = []
    for k, example in zip(keys, examples):
      sample = data.read(example, 0)
      noise = sample.low_dose - sample.target if config.invariances.domain == 'target' else np.zeros_like(sample.target)
      v.append(self.forward(self.variables | {'noise': noise}, k, sample.low_dose))
    v = np.stack(v)
    found = invariances.noise_moments(jnp.asarray(v))
    return {
      'examples': len(examples),
      'mean_rms': float(jnp.sqrt(jnp.mean(found.mean**2))),
      'std_mean': float(jnp.mean(found.std)),
      'correlation': float(found.correlation),
      'correlation_expected': float(found.level),
    }


class Thresholds:
  """Presence thresholds per size and view, and the family-wise threshold, from nodule-free twins."""

  def __init__(self, calibration: list[dict], sizes, alpha):
    self.alpha = alpha
    self.family = invariances.family_threshold([m for row in calibration for m in row['maxima']], alpha=alpha)
    self.presence = {
      view: {
        size: invariances.presence_threshold(np.concatenate([np.ravel(row[view][str(size)]) for row in calibration]), alpha=alpha)
        for size in sizes
      }
      for view in VIEWS
    }

  def as_json(self) -> dict[str, Any]:
    presence = {view: {str(size): t for size, t in table.items()} for view, table in self.presence.items()}
    return {'alpha': self.alpha, 'family': self.family, 'presence': presence}


def _calibrate(config, run_folder, taps, plans, read, sizes, parallel, bad, bar):
  """Contrasts at the places of structures in twins that have none, and maxima under noise alone."""
  path = run_folder.folder / 'rows' / f'{run_folder.part:05d}.{CALIBRATION}'
  done = {(row['layer'], row['case']) for row in _calibrations(run_folder.folder)}
  for plan in plans[parallel.part :: parallel.parts]:
    for tap in taps:
      bar.update()
      if (tap.name, plan.name) in done:
        continue
      try:
        case = read(plan)
      except DataError as error:
        bad[plan.name] = str(error)
        break
      found = tap(config, plan.name, case.twin, case.target + (case.twin - case.image), _without(case), case.fresh[: config.invariances.others])
      views = _views(case.twin, found)
      row = {'layer': tap.name, 'case': plan.name, 'maxima': [float(m) for m in found['maxima']]}
      for view in VIEWS:
        row[view] = {}
        for size in sizes:
          inside, around = invariances.disc(case.image.shape, case.centre, size / _pixel(plan))
          row[view][str(size)] = [float(c) for c in np.atleast_1d(invariances.contrast(views[view], inside, around))]
      results.append_jsonl(path, [row])
  parallel.barrier('calibrated')
  table = _calibrations(run_folder.folder)
  return {tap.name: [r for r in table if r['layer'] == tap.name] for tap in taps}


def _calibrations(folder):
  return _finished(folder, CALIBRATION, ('layer', 'case'))


def _pixel(plan):
  return getattr(plan.volume, 'pixel', 1.0)


def _without(case):
  """Fresh noise on the anatomy of the twin: the structure's own part is taken away again."""
  return case.fresh + (case.twin - case.image)


def _views(image, found):
  return {'samples': found['images'], 'input': image, 'reconstruction': found['reconstruction'], 'output': found['output']}


def _analyse(config, run_folder, taps, plans, read, thresholds, parallel, bad, bar):
  path = run_folder.folder / 'rows' / f'{run_folder.part:05d}.{ROWS}'
  done = {tuple(row[k] for k in KEY) for row in rows(run_folder.folder)}
  pictured = {p.name for p in plans[: config.invariances.pictures]}
  for number, plan in list(enumerate(plans))[parallel.part :: parallel.parts]:
    for tap in taps:
      bar.update()
      wanted = [s for s in (1, 0) if (plan.name, tap.name, s) not in done]
      if not wanted:
        continue
      try:
        case = read(plan)
        other = [_read(config, plans[(number + i + 1) % len(plans)]).image for i in range(config.invariances.others)]
      except DataError as error:
        bad[plan.name] = str(error)
        break
      for structure in wanted:
        start = time.perf_counter()
        image, fresh, changed = (case.image, case.fresh, case.removed) if structure else (case.twin, _without(case), case.image)
        target = case.target if structure else case.target + (case.twin - case.image)
        found = tap(config, plan.name, image, target, fresh, np.stack(other))
        row = _row(config, plan, case, tap, structure, image, changed, found, thresholds[tap.name])
        results.append_jsonl(path, [{**row, 'seconds': time.perf_counter() - start}])
        if structure and plan.name in pictured:
          _save(run_folder, plan, case, tap, found, thresholds[tap.name], config.invariances)


def _row(config, plan, case, tap, structure, image, changed, found, thresholds):
  """One row: both analyses, the control, and the yardsticks of one image at one layer."""
  inside, around = invariances.disc(image.shape, case.centre, case.diameter)
  near, _ = invariances.disc(image.shape, case.centre, case.diameter + 4)
  size = plan.structure.diameter
  views = _views(image, found)
  contrasts = {view: np.asarray(invariances.contrast(x, inside, around)) for view, x in views.items()}
  low, high = invariances.contrast_interval(contrasts['samples'])
  regions = invariances.components(found['excess'], thresholds.family)
  away = found['away']
  moved = tap.observe(tap.variables, changed)
  outputs = found['outputs_fresh']
  return {
    'case': plan.name,
    'layer': tap.name,
    'structure': structure,
    'network': config.label,
    'patient': plan.patient,
    'slice': plan.slice,
    'diameter': size,
    'contrast': plan.structure.contrast,
    'inserted': int(plan.inserted),
    'seed': config.seed,
    'gap': float(away.gap()),
    'gap_decoded': float(np.median(found['decoded']) / np.median(away.fresh)),
    'distance_samples': float(np.median(away.samples)),
    'distance_fresh': float(np.median(away.fresh)),
    'distance_mismatched': float(np.median(away.mismatched)),
    'distance_reconstruction': float(away.reconstruction),
    'diversity': float(np.mean(invariances.diversity(found['images']))),
    'noise': float(np.mean(np.abs(image - case.target + (0 if structure else case.image - case.twin)))),
    'contrast_input': float(contrasts['input']),
    'contrast_output': float(contrasts['output']),
    'contrast_reconstruction': float(contrasts['reconstruction']),
    'contrast_samples': float(np.mean(contrasts['samples'])),
    'contrast_low': low,
    'contrast_high': high,
    'contrast_true': case.contrast if structure else 0.0,
    **{
      f'present_{view}': float(np.mean(contrasts[view] > thresholds.presence[view][size])) for view in VIEWS
    },
    'altered': int(any((c.mask & near).any() for c in regions)),
    'altered_share': float(np.mean(found['excess'] > thresholds.family)),
    'largest_component': regions[0].size if regions else 0,
    'noise_crosses': float(np.mean(found['maxima'] > thresholds.family)),
    'excess_near': float(np.max(found['excess'][near])),
    'excess': float(np.mean(found['excess'])),
    'moved_near': float(invariances.displacement(found['output'], moved, outputs, near)),
    'moved': float(invariances.displacement(found['output'], moved, outputs)),
  }


def _save(run_folder, plan, case, tap, found, thresholds, options):
  """Pictures of one case: samples in order, those that A ranks first, and those that differ most everywhere.

  Samples of the high-dose domain are shown without the input's noise.
  """
  shown = options.shown
  samples, reference = (found['images'], case.image) if options.domain == 'low_dose' else (found['images'] - (case.image - case.target), case.target)
  within = found['excess'] > thresholds.family
  ranked = invariances.rank_by_component(found['deviations'], thresholds.family, within)[:shown]
  order = [i for i, _ in ranked]
  boxes = np.array([c.box if c else (0, 0, 0, 0) for _, c in ranked], np.int32)
  different = np.asarray(invariances.rank(jnp.asarray(samples), jnp.asarray(reference)))[:shown]
  run_folder.save_arrays(f'{plan.name}.{tap.name}', {
    'input': case.image, 'target': case.target, 'output': found['output'], 'samples': samples[:shown],
    'deviation': np.asarray(invariances.diversity(found['images'])), 'excess': found['excess'], 'threshold': np.float32(thresholds.family),
    'altered': samples[order], 'boxes': boxes, 'different': samples[different],
    'centre': np.array(case.centre, np.float32), 'diameter': np.float32(case.diameter), 'contrast': np.float32(case.contrast),
  })  # fmt: skip
