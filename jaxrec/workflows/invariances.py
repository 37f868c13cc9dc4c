"""The invariances stage: samples that a network cannot tell apart, and what of them is anatomy.

Every case and its twin are measured; `judgement` makes rows of the measurements.
Every finished case is on the disk, so the same command goes on where it stopped.
"""

import functools
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
from jaxrec.workflows import datasets, judgement
from jaxrec.workflows.train import loader_of


def run(config, run_folder: results.Run, data: datasets.Data, parallel: Parallel) -> None:
  """Samples, measures and judges; finished cases are not computed again."""
  options = config.invariances
  plans = cases_lib.plan(
    data.val.volumes, diameters=options.diameters, contrasts=options.contrasts, per_slice=options.per_slice, seed=config.seed
  )
  plans = loader.spread(plans, options.max_cases)
  if len({p.patient for p in plans}) < 2:
    raise DataError('invariances: needs cases of at least two held-out patients; add patients to the validation split')
  load = loader_of(run_folder.folder / 'stage', data, parallel)
  bad: dict[str, str] = dict(data.val.bad)
  taps = [Tap(config, load, name) for name in options.flows]
  if parallel.part == 0:
    print(
      f'invariances: {options.num_samples} samples x {len(taps)} layers for {len(plans)} structures and their twins: '
      f'{2 * len(plans) * len(taps) * options.num_samples} images'
    )
  read = _reader(config, plans)
  _measure(config, run_folder, taps, plans, read, parallel, bad)
  moments = {tap.name: tap.moments(config, data, bad) for tap in taps} if parallel.part == 0 else {}
  results.write_text(run_folder.folder / f'skipped-{parallel.part:05d}.json', json.dumps({'files': bad, 'boxes': {}}, indent=2))
  parallel.barrier('invariances')
  if parallel.part == 0:
    found = judgement.measured(run_folder.folder)
    table = judgement.by_patient(found, options.alpha)
    rows = judgement.judge(found, table)
    head = list(rows[0]) if rows else []
    results.write_csv(run_folder.folder / 'invariances.csv', head, [[row.get(c) for c in head] for row in rows])
    pictured = judgement.telling(rows, options.pictures)
    for plan in (p for p in plans if p.name in pictured):
      for tap in taps:
        _picture(config, run_folder, tap, plan, *read(plan), table[tap.name, plan.patient])
    run_folder.compact_arrays()
    stored = {
      tap.name: {
        'alpha': options.alpha, 'moments': moments[tap.name],
        'by_patient': {patient: limits._asdict() for (layer, patient), limits in table.items() if layer == tap.name},
      }
      for tap in taps
    }  # fmt: skip
    results.write_text(run_folder.folder / 'thresholds.json', json.dumps(stored, indent=2))
    if bad:
      print(f'invariances: left out {len(bad)} files or slices, listed in the report; the first: {next(iter(bad.values()))}')


def rows(folder) -> list[dict[str, Any]]:
  """Rows of a run folder, judged by its own `invariances.alpha`."""
  found = judgement.measured(folder)
  alpha = results.read_json(folder / 'config.json').get('invariances', {}).get('alpha', 0.05)
  return judgement.judge(found, judgement.by_patient(found, alpha))


def _read(config, plan) -> cases_lib.Case:
  options = config.invariances
  if datasets.is_ct(config):
    return cases_lib.read_ct(plan, repeats=options.repeats, centre_hu=config.data.centre_hu, seed=config.seed)
  scan = datasets.reader(config, form='kspace')(loader.Example(plan.volume, plan.slice, None), 0)
  return cases_lib.read_mr(plan, scan, repeats=options.repeats, seed=config.seed, added_noise=config.data.get('added_noise', 0.0))


def _reader(config, plans):
  """`plan -> (case, inputs of other patients)`; the same few inputs serve all cases of a patient."""

  @functools.cache
  def others(patient):
    rng = np.random.default_rng([zlib.crc32(patient.encode()), config.seed])
    found = []
    for number in rng.permutation([i for i, p in enumerate(plans) if p.patient != patient]):
      try:
        found.append(_read(config, plans[number]).image)
      except DataError:
        # Named when its own turn comes.
        continue
      if len(found) == config.invariances.others:
        break
    if not found:
      raise DataError(f'invariances: no case of another patient than {patient} can be read')
    return np.stack(found)

  return lambda plan: (_read(config, plan), others(plan.patient))


class Tap:
  """One layer of the network with its flow: compiled programs for sampling and its yardsticks."""

  def __init__(self, config, load, name):
    options = config.invariances
    # What the networks were trained for, not what an option repeats.
    layer = config.experiments[name].train.task.layer
    network, variables = load(options.network)
    vae, vae_variables = load(options.autoencoder)
    flow, flow_variables = load(name)
    self.name = name
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
      correct=lambda v, image, seen, y: image + y['output'] - seen['output'],
    )
    draw = invariances.sample(
      self.sampler, num_samples=options.num_samples, chunk=options.chunk, corrections=options.corrections
    )
    check = invariances.consistency(self.sampler, chunk=options.chunk, corrections=options.corrections)
    scales = tuple(options.scales)

    # Samples of the high-dose domain are anatomies; what the corrections change of their images is noise.
    self.apart = apart = config.experiments[options.autoencoder].train.task.image == 'target'

    def everything(v, key, image, fresh, noisy, others, near):
      found = draw(v, key, image)
      first, second = jax.random.split(jax.random.fold_in(key, 1))
      z = encode(v, first, image, found.output)
      away = check(v, first, image, found, fresh, others)
      anatomies, reference = (found.drawn - v['noise'], noisy) if apart else (found.images, fresh)

      def unlikely(noise):
        return jnp.max(jnp.abs(invariances.deviations(noise + v['target'], fresh, scales=scales)), 1)

      return dict(
        anatomies=anatomies,
        outputs=found.outputs['output'],
        decoded=found.decoded,
        noise_near=jnp.max(unlikely(found.images - anatomies) * near, (1, 2)) if apart else (),
        unlikely=unlikely((image - v['target'])[None])[0],
        output=found.output['output'],
        outputs_fresh=away.outputs_fresh['output'],
        reconstruction=self.sampler.decode(v, z, found.output) - v['noise'],
        deviations=invariances.deviations(anatomies, reference, scales=scales),
        excess=invariances.excess_variation(anatomies, reference, scales=scales),
        maxima=invariances.noise_maxima(second, reference, scales=scales),
        away=away.replace(outputs_fresh=()),
      )

    self.everything = jax.jit(everything)
    self.observe = jax.jit(lambda v, x: output(v['network'], x))
    self.forward = jax.jit(
      lambda v, key, x: self.sampler.forward(v, encode(v, key, x, observe(v, x)), observe(v, x))
    )

  def __call__(self, config, name, case, structure, others):
    """All arrays of a case or of its twin; the same case has the same noise v at every layer and in every network.

    An autoencoder of the high-dose domain gives anatomies: the input's own noise is put on them.
    """
    image, target, fresh, noisy, _ = _side(case, structure)
    key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(name.encode()))
    noise = image - target if self.apart else np.zeros_like(image)
    variables = self.variables | {'noise': noise, 'target': target}
    return jax.device_get(self.everything(variables, key, image, fresh, noisy, others, _near(case)))

  def moments(self, config, data, bad) -> dict[str, float]:
    """Whether the flow's noise is standard normal on held-out images; unreadable ones are added to `bad`.

    Raises:
      DataError: if none can be read.
    """
    examples = loader.spread(datasets.training_examples(config, data.val.volumes), config.invariances.max_moments)
    keys = jax.random.split(jax.random.key(config.seed), len(examples))
    v = []
    for k, example in zip(keys, examples):
      try:
        sample = data.read(example, 0)
      except DataError as error:
        bad[f'{example.volume.name}-{example.slice:03d}'] = last = str(error)
        continue
      noise = sample.low_dose - sample.target if self.apart else np.zeros_like(sample.target)
      v.append(self.forward(self.variables | {'noise': noise}, k, sample.low_dose))
    if not v:
      raise DataError(f'invariances: no held-out image can be read; the last: {last}')
    v = np.stack(v)
    found = invariances.noise_moments(jnp.asarray(v))
    return {
      'examples': len(v),
      'mean_rms': float(jnp.sqrt(jnp.mean(found.mean**2))),
      'std_mean': float(jnp.mean(found.std)),
      'correlation': float(found.correlation),
      'correlation_expected': float(found.level),
    }


def _side(case, structure):
  """`(image, target, fresh, noisy, changed)` of a case or of its twin; `changed` is what the control compares with."""
  if structure:
    return case.image, case.target, case.fresh, case.noisy, case.removed
  # Fresh noise on the anatomy of the twin: the structure's own part is taken away again.
  fresh, noisy = case.fresh + (case.twin - case.image), case.noisy + (case.twin_target - case.target)
  return case.twin, case.twin_target, fresh, noisy, case.image


def _near(case, diameter=None, *, margin=4):
  return invariances.disc(case.image.shape, case.centre, (diameter or case.diameter) + margin)[0]


def _measure(config, run_folder, taps, plans, read, parallel, bad):
  path = run_folder.folder / 'rows' / f'{run_folder.part:05d}.{judgement.MEASURED}'
  done = {tuple(row[k] for k in judgement.KEY) for row in judgement.measured(run_folder.folder)}
  sizes = sorted({p.structure.diameter for p in plans})
  mine = plans[parallel.part :: parallel.parts]
  for plan in tqdm(mine, desc='invariances', unit='case', disable=parallel.part > 0):
    wanted = [(tap, s) for tap in taps for s in (1, 0) if (plan.name, tap.name, s) not in done]
    if not wanted:
      continue
    try:
      case, others = read(plan)
    except DataError as error:
      bad[plan.name] = str(error)
      continue
    for tap, structure in wanted:
      start = time.perf_counter()
      row = _row(config, plan, case, tap, structure, tap(config, plan.name, case, structure, others), sizes)
      results.append_jsonl(path, [{**row, 'seconds': time.perf_counter() - start}])


def _row(config, plan, case, tap, structure, found, sizes):
  """What both analyses, the control and the yardsticks measure on one image at one layer."""
  image, target, fresh, _, changed = _side(case, structure)
  near, away = _near(case), found['away']
  size = plan.structure.diameter
  # A twin tells what is seen of any size where there is nothing.
  judged = [size] if structure else sizes
  contrasts = _contrasts(plan, case, judged, dict(
    samples=found['anatomies'], input=image, reconstruction=found['reconstruction'], output=found['output'], true=target,
  ))  # fmt: skip
  moved = tap.observe(tap.variables, changed)
  gaps = invariances.displacement(found['output'], found['outputs'], found['outputs_fresh'], near)
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
    'gap_near': float(np.median(gaps)),
    'gaps_near': [round(float(g), 4) for g in gaps],
    'gap_decoded': float(np.median(found['decoded']) / np.median(away.fresh)),
    'distance_samples': float(np.median(away.samples)),
    'distance_fresh': float(np.median(away.fresh)),
    'distance_mismatched': float(np.median(away.mismatched)),
    'distance_reconstruction': float(away.reconstruction),
    'diversity': float(np.mean(invariances.diversity(found['anatomies']))),
    'noise': float(np.mean(np.abs(image - target))),
    'contrast_true': contrasts.pop('true')[str(size)][0],
    'contrasts': contrasts,
    'noise_near': [round(float(z), 4) for z in found['noise_near']],
    'noise_near_input': {str(d): float(np.max(found['unlikely'][_near(case, _pixels(plan, d))])) for d in judged},
    'maxima': [float(m) for m in found['maxima']],
    # At the structure and its edge: farther away the samples' own errors are found as well.
    'excess_near': float(np.max(found['excess'][_near(case, margin=2)])),
    'excess': float(np.mean(found['excess'])),
    'moved_near': float(invariances.displacement(found['output'], moved, found['outputs_fresh'], near)),
    'moved_beyond': int(invariances.displacement(found['output'], moved, found['outputs_fresh'], near, level=1 - config.invariances.alpha) > 1),
    'moved': float(invariances.displacement(found['output'], moved, found['outputs_fresh'])),
  }


def _contrasts(plan, case, sizes, views):
  """Contrasts by view and diameter, against the anatomy without the structure; of the input, against its mean over new noise."""
  contrasts = {view: {} for view in views}
  # What undersampling or the reconstruction make of the anatomy is no structure of the input.
  unseen = _side(case, 0)[2].mean(0)
  for size in sizes:
    inside, around = invariances.disc(case.image.shape, case.centre, _pixels(plan, size))
    nothing, aliased = (invariances.contrast(image, inside, around) for image in (case.twin_target, unseen))
    for view, images in views.items():
      found = np.atleast_1d(invariances.contrast(images, inside, around) - (aliased if view == 'input' else nothing))
      contrasts[view][str(size)] = [round(float(c), 5) for c in found]
  return contrasts


def _pixels(plan, size):
  return size / getattr(plan.volume, 'pixel', 1.0)


def _picture(config, run_folder, tap, plan, case, others, limits):
  """Pictures of one case: samples in order, those that A ranks first, and those that differ most everywhere."""
  shown = config.invariances.shown
  found = tap(config, plan.name, case, 1, others)
  samples, reference = found['anatomies'], case.target if tap.apart else case.image
  within = found['excess'] > limits.family
  ranked = invariances.rank_by_component(found['deviations'], limits.family, within)[:shown]
  order = [i for i, _ in ranked]
  boxes = np.array([c.box if c else (0, 0, 0, 0) for _, c in ranked], np.int32)
  different = np.asarray(invariances.rank(jnp.asarray(samples), jnp.asarray(reference)))[:shown]
  run_folder.save_arrays(f'{plan.name}.{tap.name}', {
    'input': case.image, 'target': case.target, 'output': found['output'], 'samples': samples[:shown], 'outputs': found['outputs'][:shown],
    'deviation': np.asarray(invariances.diversity(samples)), 'excess': found['excess'], 'threshold': np.float32(limits.family),
    'altered': samples[order], 'boxes': boxes, 'different': samples[different],
    'centre': np.array(case.centre, np.float32), 'diameter': np.float32(case.diameter), 'contrast': np.float32(case.contrast),
  })  # fmt: skip
