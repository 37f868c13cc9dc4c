"""The detect stage: what trained networks retain of structures put into scans of held-out patients."""

from functools import partial

from jaxrec import results
from jaxrec.invariances import verdict
from jaxrec.models import observer
from jaxrec.workflows import detect, places
from jaxrec.workflows.experiment import Comparison, CTData, Detection
from jaxrec.workflows.train import Context, loader_of, weights_of


def run(comparison: Comparison, run_folder: results.Run, context: Context, asked: places.Question) -> None:
  """Measures, judges and searches; finished patients are not measured again.

  Verdicts are on the patients of the validation split, each judged by the others.
  """
  options, parallel = comparison.detection, context.parallel
  assert options is not None
  load = loader_of(run_folder.folder / 'stage', context)
  networks, weights = {}, []
  for name in options.networks:
    module, variables = load(name)
    networks[name] = partial(observer(module), variables)
    weights.append(weights_of(module, variables))
  started = any((run_folder.folder / detect.DETECTIONS).glob('*.npz'))
  run_folder.check_weights(detect.DETECTIONS, '-'.join(weights), started=started)
  if parallel.part == 0:
    if asked.left_out:
      print(f'detect: left out {len(asked.left_out)} patients with too few places: {", ".join(asked.left_out)}')
    sites = sum(1 for _ in next(iter(asked.patients.values()))())
    shown = sites * len(asked.patients) * (options.repeats + len(asked.kinds) * options.few)
    print(
      f'detect: {len(networks)} networks, {len(asked.kinds)} classes, {len(asked.patients)} patients with {sites} sites: {shown} images each'
    )
  detect.measure(run_folder, networks, asked, part=parallel.part, parts=parallel.parts)
  parallel.barrier('detect')
  if parallel.part:
    return
  searched = [i for i, k in enumerate(asked.kinds) if k.aim in options.searched_aims]
  found = detect.judged(
    run_folder,
    networks,
    asked,
    level=options.level,
    draws=options.draws,
    num_steps=options.num_steps,
    searched=searched,
    folds=options.folds,
  )
  unit = 'mm' if isinstance(comparison.data, CTData) else 'pixels'
  _write(options, unit, run_folder, networks, asked, found, searched)


def _write(options: Detection, unit, run_folder, networks, asked, found, searched):
  """Writes verdicts, paired differences, and how outputs move with the noise."""
  labels = options.networks
  table = [
    [*line, unit]
    for name, result in found.items()
    for line in detect.lines(labels[name], asked.kinds, result, searched)
  ]
  results.write_csv(run_folder.folder / 'detectability.csv', [*detect.columns(), 'unit'], table)
  pairs = [(a, b) for i, a in enumerate(networks) for b in list(networks)[i + 1 :]]
  apart = [
    [labels[a], labels[b], *kind, *estimate]
    for a, b in pairs
    for kind, estimate in zip(
      asked.kinds,
      verdict.difference(
        found[a].before, found[a].detection, found[b].detection, level=options.level, draws=options.draws
      ),
    )
  ]
  results.write_csv(
    run_folder.folder / 'differences.csv',
    ['network', 'other', *places.Kind._fields, 'difference', 'low', 'high'],
    apart,
  )
  first = {name: next(iter(read())) for name, read in asked.patients.items()}
  moved = [
    [labels[name], patient, *row]
    for name, f in networks.items()
    for patient, row in zip(first, detect.moved_by_noise(f, list(first.values()), asked.side))
  ]
  results.write_csv(run_folder.folder / 'moved_by_noise.csv', ['network', 'patient', *detect.noise_columns()], moved)
