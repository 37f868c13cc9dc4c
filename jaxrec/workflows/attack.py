"""The attack stage: every example, perturbation, aim and strength becomes a row."""

import functools
import json
import time
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxrec import attacks, metrics, noise, results
from jaxrec.data import loader
from jaxrec.data.errors import DataError
from jaxrec.data.fastmri import Example
from jaxrec.data.singlecoil import centred_images
from jaxrec.fourier import abs_squared, ifft2c, rss
from jaxrec.geometry import center_crop
from jaxrec.models import bind
from jaxrec.training import Parallel, memory
from jaxrec.types import Scan, Slice
from jaxrec.workflows import datasets, factory
from jaxrec.workflows.train import generator_of, sibling, trained

AIMS = ('region', 'image')
# Examples of a device, and strengths of an example, that are tried together where 0 leaves the choice.
AT_ONCE = (1, 2, 4, 8, 16)


def run(config, run_folder: results.Run, data: datasets.Data, parallel: Parallel) -> None:
  """Attacks the trained network; finished rows are not computed again."""
  for aim in config.attack.attacked:
    if aim not in AIMS:
      raise ValueError(f'attack.attacked: {aim!r} is unknown; choose among {", ".join(AIMS)}')
  plans = [planned(config, name, run_folder.folder, data, parallel) for name in config.perturbation]
  examples, skipped = datasets.examples(config, data)
  read = datasets.reader(config, attacked=True)
  for plan in plans:
    plan['pictured'] = {_name(e) for e in examples[: config.attack.pictures]}
    plan['split_of'] = {v.name: split for split in ('train', 'val') for v in getattr(data, split).volumes}
  module, variables = trained(config, run_folder.folder, data, parallel)
  if parallel.part == 0:
    for plan in plans:
      calls = plan['calls']
      print(
        f'attack: {plan["name"]} on {len(examples)} examples x {len(config.attack.attacked)} aims: '
        f'{calls["forward"]} forward and {calls["backward"]} backward network calls each'
      )
  done = {results.key_of(row) for row in run_folder.rows()}
  bad: dict[str, str] = dict(data.val.bad)
  reconstruct, surrogate = factory.defended(config, module)

  @functools.cache
  def program_of(number, chunk):
    return parallel.map_batch(program(bind(module), reconstruct, surrogate, plans[number], config, chunk=chunk))

  constants = [(variables, plan['generator'][1]) for plan in plans]
  batch_size, chunk = config.attack.batch_size, config.attack.chunk
  if not (batch_size and chunk):
    largest = sorted(examples, key=lambda e: -np.prod(loader.shape_of(e)))
    sample = next((scans[0] for e in largest for _, scans in [_read(config, read, [e], bad)] if scans), None)
    if sample is not None:
      batch_size, chunk = at_once(config, parallel, program_of, constants, sample, len(examples) // parallel.devices)
  batch_size, chunk = (batch_size or 1) * parallel.devices, chunk or 1
  work = loader.evaluation_plan(examples, batch_size)
  programs = {plan['name']: program_of(i, chunk) for i, plan in enumerate(plans)}
  if parallel.part == 0 and not datasets.is_ct(config):
    _save_sampling(config, run_folder, examples[0])
  mine = work[parallel.part :: parallel.parts]
  with tqdm(total=len(mine) * len(plans) * len(config.attack.attacked), desc='attack', unit='batch', disable=parallel.part > 0) as bar:
    for members in mine:
      if all(
        _key(examples[i], plan, aim, s) in done
        for i in members for plan in plans for aim in config.attack.attacked for s in (0.0, *plan['strengths'])
      ):  # fmt: skip
        bar.update(len(plans) * len(config.attack.attacked))
        continue
      chosen, scans = _read(config, read, [examples[i] for i in members], bad)
      for plan in plans:
        for aim in config.attack.attacked:
          bar.update()
          wanted = [
            (i, s) for i, e in enumerate(chosen) for s in (0.0, *plan['strengths']) if _key(e, plan, aim, s) not in done
          ]
          if wanted:
            rows = _attack_batch(config, run_folder, plan, programs[plan['name']], (variables, plan['generator'][1]), chosen, scans, aim, batch_size)
            run_folder.append([rows[i, s] for i, s in wanted])
            done.update(results.key_of(rows[i, s]) for i, s in wanted)
  results.write_text(
    run_folder.folder / f'skipped-{parallel.part:05d}.json', json.dumps({'files': bad, 'boxes': skipped}, indent=2)
  )
  parallel.barrier('attack')
  if parallel.part == 0:
    run_folder.compact()
    etas = [row['thermal_eta'] for row in run_folder.rows() if 'thermal_eta' in row]
    if etas:
      print(
        f'attack: thermal noise has the energy of adversarial noise with eta = {100 * np.median(etas):.2f}% '
        f'(median; {100 * min(etas):.2f}% to {100 * max(etas):.2f}%)'
      )
    if bad:
      print(f'attack: skipped {len(bad)} bad files, listed in the report; the first: {next(iter(bad.values()))}')


def at_once(config, parallel: Parallel, program_of, constants, sample, count: int) -> tuple[int, int]:
  """Examples per device and strengths computed together: the config's or, for 0, the largest that fit into memory.

  Args:
    config: the experiment.
    parallel: devices.
    program_of: `(number of the plan, strengths at a time) -> BatchProgram`.
    constants: first argument of the program of each plan.
    sample: the largest example.
    count: examples per device.

  Raises:
    ValueError: if nothing fits.
  """

  def fits(batch, chunk):
    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch * parallel.devices, *np.shape(x)), x.dtype), sample)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch * parallel.devices))
    return all(
      memory.takes_at_most(parallel.memory, lambda: program_of(i, chunk).compile(constant, keys, many, many.region))
      for i, constant in enumerate(constants)
    )

  batch, chunk = config.attack.batch_size, config.attack.chunk
  if not batch:
    batch = memory.largest_that_fits([n for n in AT_ONCE if n <= max(count, 1)], lambda n: fits(n, chunk or 1))
  if batch and not chunk:
    chunk = memory.largest_that_fits(list(AT_ONCE), lambda n: fits(batch, n))
  if not (batch and chunk):
    raise ValueError(f'attack.batch_size: not even one example fits into {parallel.memory / 1e9:.1f} GB of a device; use a larger one')
  return batch, chunk


def _read(config, read, examples, bad):
  chosen, scans = [], []
  for example in examples:
    try:
      scans.append(read(example, 0))
      chosen.append(example)
    except DataError as error:
      if config.attack.strict:
        raise
      bad[f'{example.volume.path} slice {example.slice}'] = str(error)
  return chosen, scans


def planned(config, name: str, folder, data, parallel) -> dict[str, Any]:
  """What is fixed about one perturbation: its family, strengths, search and cost."""
  strength, make, strengths = factory.perturbation(name, config.perturbation[name])
  options = dict(config.search[name]) if name in config.search else {'name': 'pgd'}
  search_name = options.pop('name')
  plan = dict(name=name, unit=strength.unit, make=make, strengths=strengths, generator=(None, None))
  if config.perturbation[name].get('generator', ''):
    plan['generator'] = generator_of(config, sibling(folder, config.perturbation[name].generator), data, parallel)
  if search_name == 'grid':
    if name != 'rotation':
      raise ValueError(f'search.{name}.name: grid is for rotation; choose pgd, apgd or random')
    step = options.pop('step_degrees', 0.1)
    if options:
      raise ValueError(f'search.{name}.{next(iter(options))}: grid has no such option; it takes step_degrees')
    plan['points'] = attacks.angle_grid(strengths[-1], step)
    plan['calls'] = {'forward': len(plan['points']) + 2, 'backward': 0}
  else:
    plan['search'] = factory.search(search_name, options)
    per_strength = attacks.network_calls(plan['search'])
    plan['calls'] = {k: v * len(strengths) for k, v in per_strength.items()}
  return plan


def _scores(image, sample, suffix):
  whole = {
    f'{name}_image_{suffix}': getattr(metrics, name)(image, sample.target, sample.scale) for name in ('ssim', 'psnr', 'nmse')
  }
  boxed = {
    f'{name}_region_{suffix}': getattr(metrics, name)(image, sample.target, sample.scale, sample.region)
    for name in ('ssim', 'psnr', 'nmse')
  }
  return whole | boxed


def program(network, reconstruct, surrogate, plan, config, *, chunk: int = 1) -> Callable:
  """One XLA program for a batch: `(variables of network and generator, keys, scans, aimed regions) -> outputs`.

  Amplification is that of the network without its defence.
  """
  objective = factory.objective(config.objective)
  adversary = plan['generator'][0]

  def make(value, generator=None):
    perturbation = plan['make'](value)
    if adversary is None:
      return perturbation
    return perturbation._replace(init=lambda key, sample: adversary.draw(generator, key, sample))

  def crop(image, scan):
    return center_crop(image, scan.target.shape)

  def fully_sampled(scan):
    if isinstance(scan, Slice):
      return scan.low_dose
    return rss(ifft2c(jnp.where(scan.acquired, scan.kspace, 0)))

  def measurement(scan):
    return scan.low_dose if isinstance(scan, Slice) else scan.kspace

  def by_search(variables, key, scan, aimed):
    variables, generator = variables

    def at(value):
      worst = attacks.attack(reconstruct, make(value, generator), plan['search'], objective, surrogate=surrogate)
      result = worst(variables, key, aimed)
      control = make(value).align(result.delta, fully_sampled(result.sample))
      if isinstance(scan, Slice):
        control = scan.target + control - scan.low_dose
      change = jnp.sum(abs_squared(measurement(result.sample) - measurement(scan)))
      size = jnp.sqrt(change / jnp.sum(abs_squared(measurement(scan))))
      return dict(
        objective_clean=result.clean_loss,
        objective_adv=result.loss,
        delta=size if plan['unit'] == 'relative' else jnp.max(jnp.abs(result.delta)),
        budget_used=result.budget,
        clean=crop(result.clean, scan),
        adversarial=crop(result.adversarial, scan),
        control=crop(control, scan),
        trace=result.trace,
        **_scores(result.clean, scan, 'clean'),
        **_scores(result.adversarial, scan, 'adv'),
      )

    return attacks.chunked(at, (jnp.asarray(plan['strengths'], scan.scale.dtype),), chunk=chunk)

  def by_grid(variables, key, scan, aimed):
    del key
    variables, _ = variables
    points = jnp.asarray(plan['points'])
    turn = make(plan['strengths'][-1])

    def score(image, _):
      return _scores(image, scan, 'adv') | {'objective_adv': objective(image, aimed)}

    along = attacks.evaluate(reconstruct, turn, score, chunk=chunk)(variables, scan, points)
    limits = jnp.asarray(plan['strengths'], points.dtype)[:, None]
    allowed = jnp.abs(points) <= limits + 1e-6
    worst = jnp.argmax(jnp.where(allowed & ~jnp.isnan(along['objective_adv']), along['objective_adv'], -jnp.inf), 1)
    zero = int(np.argmin(np.abs(plan['points'])))
    found = jax.tree.map(lambda x: x[worst], along)
    clean = jax.tree.map(lambda x: jnp.broadcast_to(x[zero], worst.shape), along)
    most = points[worst[-1]]
    turned = turn.apply(most, scan)
    both = jax.tree.map(lambda *x: jnp.stack(x), scan, turned)
    images = jax.lax.map(lambda s: reconstruct(variables, s), both)
    return dict(
      **found,
      **{name.replace('_adv', '_clean'): value for name, value in clean.items()},
      delta=points[worst],
      budget_used=jnp.abs(points[worst]) / limits[:, 0],
      clean=crop(images[0], scan)[None],
      adversarial=crop(turn.align(most, images[1]), scan)[None],
      control=crop(turn.align(most, fully_sampled(turned)), scan)[None],
      trace=along['objective_adv'][None],
      curve=along['ssim_region_adv'][None],
    )

  one = by_grid if 'points' in plan else by_search

  def batch(variables, keys, scans, regions):
    def each(key, scan, region):
      outputs = one(variables, key, scan, scan.replace(region=region))
      extra = {}
      if isinstance(scan, Scan):
        eta = noise.thermal_eta(noise.sigma_from_kspace(scan), scan)
        extra['thermal_eta'] = jnp.sqrt(jnp.mean(eta**2))
      if config.attack.lipschitz_iterations and adversary is None and 'points' not in plan:
        unit = make(plan['strengths'][0])
        amplify = attacks.local_lipschitz(network, unit, num_iterations=config.attack.lipschitz_iterations)
        found = amplify(variables[0], key, scan)
        extra['lipschitz'] = found.trace[-1] / (plan['strengths'][0] * jnp.linalg.norm(scan.target))
      return outputs, extra

    return jax.vmap(each)(keys, scans, regions)

  return batch


def _attack_batch(config, run_folder, plan, program, variables, examples, scans, aim, batch_size):
  """Rows of one batch by (index of the example, strength), and its pictures on disk."""
  start = time.perf_counter()
  padded = loader.stack(list(scans) + [scans[-1]] * (batch_size - len(scans)))
  regions = padded.region if aim == 'region' else np.ones_like(padded.region)
  keys = [jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(_name(e).encode())) for e in examples]
  keys = jnp.stack(keys + [keys[-1]] * (batch_size - len(keys)))
  outputs, extra = jax.device_get(program(variables, keys, padded, regions))
  seconds = (time.perf_counter() - start) / (len(examples) * (len(plan['strengths']) + 1))
  rows = {}
  for i, example in enumerate(examples):
    mine = jax.tree.map(lambda x: x[i], outputs)
    _save_pictures(run_folder, plan, example, scans[i], aim, mine)
    for j, strength in enumerate((0.0, *plan['strengths'])):
      values = {name: float(v[max(j - 1, 0)]) for name, v in mine.items() if v.ndim == 1}
      if strength == 0:
        # Strength 0 leaves the measurement alone: the attacked scores are the clean ones.
        values |= {name: values[name.replace('_adv', '_clean')] for name in values if name.endswith('_adv')}
        values |= {'delta': 0.0, 'budget_used': 0.0}
      rows[i, strength] = {
        'file': example.volume.name,
        'slice': example.slice,
        'annotation': example.region.annotation if example.region else 0,
        'label': example.region.label if example.region else '',
        'model': config.model.name,
        'acceleration': '/'.join(str(a) for a in datasets.accelerations(config, attacked=True)),
        'perturbation': plan['name'],
        'attacked': aim,
        'strength': strength,
        'unit': plan['unit'],
        'seed': config.seed,
        **values,
        'steps': sum(plan['calls'].values()) // (1 if 'points' in plan else len(plan['strengths'])) if strength else 1,
        'seconds': seconds,
        'patient': example.volume.patient_id,
        'split': plan['split_of'][example.volume.name],
        'network': config.label,
        **{name: float(x[i]) for name, x in extra.items()},
      }
  return rows


def _save_sampling(config, run_folder, example):
  """Full and undersampled k-space of the first coil and their images, for the report."""
  scan = datasets.reader(config, form='kspace', attacked=True)(example, 0)
  sampled = np.where(scan.mask, scan.kspace, 0)
  run_folder.save_arrays('sampling', {
    'kspace': np.abs(scan.kspace[0]), 'sampled': np.abs(sampled[0]),
    'image': np.abs(centred_images(scan.kspace)[0]), 'zero_filled': np.abs(centred_images(sampled)[0]),
  })  # fmt: skip


def _save_pictures(run_folder, plan, example, scan: Scan, aim, outputs):
  if _name(example) not in plan['pictured']:
    return
  arrays = {
    'target': scan.target,
    'region': scan.region,
    'clean': outputs['clean'][-1],
    'adversarial': outputs['adversarial'][-1],
    'control': outputs['control'][-1],
    'scale': np.asarray(scan.scale),
    'strength': np.float32(plan['strengths'][-1]),
    'delta': np.float32(outputs['delta'][-1]),
    'trace': outputs['trace'][-1],
  }
  if 'points' in plan:
    arrays |= {'angles': plan['points'], 'curve': outputs['curve'][-1]}
  run_folder.save_arrays(f'{_name(example)}.{plan["name"]}.{aim}', arrays)


def _name(example: Example) -> str:
  annotation = example.region.annotation if example.region else 0
  return f'{example.volume.name}-{example.slice:03d}-{annotation}'


def _key(example, plan, aim, strength):
  annotation = example.region.annotation if example.region else 0
  return (example.volume.name, example.slice, annotation, plan['name'], aim, strength)
