"""The detect stage: what trained networks retain of structures put into scans of held-out patients."""

from functools import partial

from jaxrec import figures, results, statistics
from jaxrec.invariances import verdict
from jaxrec.models import observer
from jaxrec.workflows import detect, places
from jaxrec.workflows.experiment import Comparison, CTData, Detection
from jaxrec.workflows.page import Page
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


def section(page: Page, folder, draws: int = 1000) -> None:
  """Adds verdicts, curves, paired differences and what noise does of a run folder to a page."""
  rows = results.read_csv(folder / 'detectability.csv')
  if not rows:
    return
  page.heading('What the networks retain of small structures')
  unit = rows[0]['unit']

  def of(r):
    return [
      f'{float(r["size"]):g} {unit}',
      f'{float(r["contrast"]):.0f} HU' if unit == 'mm' else f'{100 * float(r["contrast"]):.1f}%',
    ]

  ignored = [f'{r["network"]}: {" at ".join(of(r))}' for r in rows if r['ignored'] == 'yes']
  page.text(
    [
      f'Ignored: {"; ".join(ignored) or "no class, by any network"}. {rows[0]["patients"]} patients, each judged by the others.'
    ]
  )
  page.figure(
    'retained', figures.retained_curves(rows, unit),
    'Retained detectability r = d\'_out / d\'_in of the best linear observer against the detectability in the input, by size; bands: 95% intervals over patients that hold together for all classes of a network.',
  )  # fmt: skip
  head = ['network', 'size', 'contrast', "d' in input", "d' in output", 'r', 'ignored', 'witnesses', 'fell']
  lines = []
  for r in rows:
    cells = [detect.cell(r, k) for k in ('input', 'output', 'retained')]
    lines.append([r['network'], *of(r), *cells, r['ignored'], *detect.hunted(r)])
  page.table(
    'Ignored: visible (d\' in the input above 2), r below .5 and d\' in the output below 1, each with its whole interval. Contrasts follow from the d\' aimed at and the noise of training patients. Witnesses: share of '
    'inputs for which the search finds a sample that a scan could be, in which the evidence fell by 2 deviations or more, moved by at most half a deviation in the output, and whose output is as close as those of two scans.',
    head, lines, name='verdicts',
  )  # fmt: skip
  apart = results.read_csv(folder / 'differences.csv')
  page.table(
    'Paired differences of r over patients, 95% intervals that hold together for all classes of a pair', ['network', 'minus', 'size', 'contrast', 'difference of r'],
    [[d['network'], d['other'], *of(d), f'{float(d["difference"]):.3f} ({float(d["low"]):.3f} to {float(d["high"]):.3f})'] for d in apart],
  )  # fmt: skip
  page.table(
    'How outputs change with realisation and amplitude of the noise. Realisation: distance of the outputs of two scans over that of the scans. Dose: what a change of dose alone (the same noise, scaled) makes of the '
    'input and of the output, over the distance of two scans there.', *noise_table(results.read_csv(folder / 'moved_by_noise.csv'), draws), name='noise',
  )  # fmt: skip


def noise_table(rows, draws: int) -> tuple[list[str], list[list[str]]]:
  """Head and lines of the table on noise, from `moved_by_noise.csv`: means over patients with 95% intervals."""
  head = [
    'network',
    'realisation',
    *(f'dose x {dose:g}, {view}' for dose in detect.DOSES for view in ('input', 'output')),
  ]
  lines = []
  for network in dict.fromkeys(r['network'] for r in rows):
    mine = [r for r in rows if r['network'] == network]
    stats = [
      statistics.bootstrap([float(r[c]) for r in mine], [r['patient'] for r in mine], draws=draws)
      for c in detect.noise_columns()
    ]
    lines.append([network, *(f'{m:.3f} ({low:.3f} to {high:.3f})' for m, low, high in stats)])
  return head, lines
