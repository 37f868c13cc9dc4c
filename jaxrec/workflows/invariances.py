"""The invariances stage: samples that trained networks cannot tell apart, and what of them is anatomy."""

import json
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from jaxrec import invariances, results
from jaxrec.models import observer
from jaxrec.training import Parallel
from jaxrec.workflows import places, sampling
from jaxrec.workflows.experiment import Comparison, Invariances
from jaxrec.workflows.train import Context, loader_of, weights_of


def run(comparison: Comparison, run_folder: results.Run, context: Context, asked: places.Question) -> None:
  """Samples, measures and judges; finished inputs are not sampled again.

  Raises:
    ValueError: if an autoencoder draws images of another size than the sites have.
  """
  options, detection = comparison.invariances, comparison.detection
  assert options is not None and detection is not None
  shown = next(iter(next(iter(asked.patients.values()))())).absent.shape[1:]
  load = loader_of(run_folder.folder / 'stage', context)
  for s in options.samplers:
    if tuple(load(s.autoencoder)[0].size) != shown:
      raise ValueError(
        f'invariances.samplers: {s.autoencoder} draws images of {tuple(load(s.autoencoder)[0].size)} and sites are {shown}; set detect.side, or model.size of that run'
      )
  searched = [i for i, k in enumerate(asked.kinds) if k.aim in detection.searched_aims]
  taps = _taps(options, load)
  used = [run for s in options.samplers for run in (s.network, s.autoencoder, *s.flows, *s.anatomies)]
  weights = '-'.join(weights_of(*load(run)) for run in dict.fromkeys(used))
  run_folder.check_weights('rows', weights, started=bool(sampling.measured(run_folder.folder)))
  finish(
    run_folder,
    taps,
    asked,
    searched,
    options,
    folds=detection.folds,
    seed=comparison.seed,
    labels=detection.networks,
    parallel=context.parallel,
  )


def _taps(options, load):
  found = []
  for s in options.samplers:
    module, variables = load(s.network)

    def output(image, m=observer(module), v=variables):
      return m(v, image)

    vae = load(s.autoencoder)
    for name, layer in s.flows.items():
      tap = (lambda image, m=observer(module, layer), v=variables: m(v, image)) if layer else output
      made, own = sampling.sampler(output, tap, vae, load(name))
      high = (
        sampling.sampler(output, output, load(s.anatomies[0]), load(s.anatomies[1]))
        if s.anatomies and not layer
        else None
      )
      found.append(sampling.Tap(s.network, f'layer {layer}' if layer else 'output', made, own, high))
  return found


def finish(
  run_folder: results.Run, taps: Sequence[sampling.Tap], asked: places.Question, searched: Sequence[int], options: Invariances, *,
  folds: int, seed: int, labels: Mapping[str, str], parallel: Parallel,
) -> None:  # fmt: skip
  """Measures, and writes `invariances.csv`, `sampling.json` and the pictures.

  Args:
    run_folder: of the detect stage.
    taps: see `sampling.Sampling`.
    asked: see `sampling.Sampling`.
    searched: see `sampling.Sampling`.
    options: how samples are drawn and judged.
    folds: see `sampling.Sampling`.
    seed: see `sampling.Sampling`.
    labels: of the networks.
    parallel: processes; the first one writes.
  """
  if parallel.part == 0:
    inputs = len(asked.patients) * (options.sites + len(searched)) * len(taps)
    print(
      f'invariances: {options.num_samples} samples for each of {inputs} inputs: {inputs * options.num_samples} images'
    )
  work = sampling.Sampling(run_folder, taps, asked, searched, options, folds=folds, seed=seed)
  work.measure(part=parallel.part, parts=parallel.parts)
  parallel.barrier('invariances')
  if parallel.part:
    return
  rows = []
  for r in sampling.judged(sampling.measured(run_folder.folder), options.alpha):
    kind = asked.kinds[r['kind']] if r['kind'] != results.NO_STRUCTURE else places.Kind(0.0, 0.0, 0.0)
    named = {'network': labels[r['network']], **{k: r[k] for k in sampling.KEY[1:]}, **kind._asdict()}
    rows.append({**named, **{k: v for k, v in r.items() if k not in sampling.KEY}, 'seed': seed})
  head = list(dict.fromkeys(k for r in rows for k in r))
  results.write_csv(run_folder.folder / 'invariances.csv', head, [[r.get(c) for c in head] for r in rows])
  moments = {f'{labels[tap.network]}, {tap.layer}': work.moments(t) for t, tap in enumerate(taps)}
  results.write_text(
    run_folder.folder / 'sampling.json',
    json.dumps({'alpha': options.alpha, 'anatomy': work.anatomy(), 'moments': moments}, indent=2),
  )
  _pictures(run_folder, work, rows, options, labels)


def _pictures(run_folder, work, rows, options, labels):
  """Pictures of the inputs with most witnesses among their samples, by network; all layers share v."""
  ranked = sorted(
    (r for r in rows if r['kind'] != results.NO_STRUCTURE),
    key=lambda r: (-r['witnesses'], -r['fell'], r['patient'], r['kind']),
  )
  table, shown, asked = [], options.shown, work.asked
  for network in dict.fromkeys(t.network for t in work.taps):
    mine = [r for r in ranked if r['network'] == labels[network]]
    for patient, kind in list(dict.fromkeys((r['patient'], r['kind']) for r in mine))[: options.pictures]:
      site = next(iter(asked.patients[patient]()))
      own = (asked.kinds[kind], site.target + site.added[kind], site.present[kind, 0])
      name = f'{results.safe_name(labels[network])}.{patient}.{kind}'
      for t, tap in enumerate(work.taps):
        if tap.network != network:
          continue
        _, found = work.ask(t, patient, site, kind)
        limit = next(r['limit'] for r in mine if (r['patient'], r['kind'], r['layer']) == (patient, kind, tap.layer))
        order = np.asarray(invariances.rank(jnp.asarray(found['drawn']), jnp.asarray(own[2])))[:shown]
        run_folder.save_arrays(
          f'{name}.{results.safe_name(tap.layer)}', _arrays(found, own, site, asked, limit, shown, order)
        )
        table += [
          [name, tap.layer, i + 1, int(n), float(np.abs(found['drawn'][n] - own[2]).mean())]
          for i, n in enumerate(order)
        ]
  results.write_csv(
    run_folder.folder / 'mean_differences.csv', ['input', 'layer', 'rank', 'sample', 'mean_absolute_difference'], table
  )
  run_folder.compact_arrays()


def _arrays(found, own, site, asked, limit, shown, order):
  kind, target, x = own
  # The threshold is that of the observer's region.
  near = np.zeros(found['excess'].shape, bool)
  near[tuple(slice(start, start + asked.side) for start in site.corner)] = True
  ranked = invariances.rank_by_component(found['deviations'], limit, near & (found['excess'] > limit))[:shown]
  boxes = np.array([c.box if c else (0, 0, 0, 0) for _, c in ranked], np.int32)
  return {
    'input': x, 'target': target, 'output': found['output'],
    'samples': found['images'][:shown], 'outputs': found['outputs'][:shown], 'deviation': found['images'].std(0, ddof=1),
    'drawn': found['drawn'][:shown], 'drawn_outputs': found['drawn_outputs'][:shown], 'drawn_deviation': found['drawn'].std(0, ddof=1),
    **({'anatomies': found['anatomies'][:shown]} if 'anatomies' in found else {}),
    'excess': found['excess'], 'threshold': np.float32(limit), 'altered': found['images'][[i for i, _ in ranked]], 'boxes': boxes,
    'different': found['drawn'][order], 'centre': np.array(site.corner, np.float32) + asked.side // 2,
    'diameter': np.float32(kind.size / asked.pixel), 'size': np.float32(kind.size), 'contrast': np.float32(kind.contrast),
  }  # fmt: skip
