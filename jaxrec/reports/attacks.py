"""The report: figures, tables and one self-contained page, from rows and images alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec import results
from jaxrec.attacks import strength_text
from jaxrec.reports import comparison, figures
from jaxrec.reports.page import Page
from jaxrec.reports.source import PROVENANCE, Source


def report(folder: str | Path, *, draws: int = 1000) -> Path:
  """Writes the report of an audit, or of any run folders in a folder, from their rows.

  Args:
    folder: as given to `audit`, a run folder, or a folder of run folders.
    draws: bootstrap draws over patients.

  Returns:
    Path of the page, one file to be opened in a browser.

  Raises:
    RunError: if there are no rows.
  """
  folder = Path(folder)
  sources = [folder] if (folder / 'rows').is_dir() else sorted(path.parent for path in folder.glob('*/rows'))
  return run(folder, sources, draws=draws)


def run(
  folder: Path,
  sources: Sequence[Path],
  *,
  others: Sequence[str | Path] = (),
  draws: int = 1000,
  generators: Sequence[str] = (),
) -> Path:
  """Writes `figures/*.png` and `report.html` in a run folder.

  Args:
    folder: where the report goes.
    sources: run folders whose rows are shown together, if they have any.
    others: further ones, which must have some: `report.runs`.
    draws: bootstrap draws over patients.
    generators: runs beside them whose adversarial training is shown.

  Returns:
    Path of the page.

  Raises:
    RunError: if no source has rows, or if one of the others has none.
  """
  for other in others:
    _check(Path(other))
  folders = {Path(s).resolve(): Path(s) for s in (*sources, *others)}.values()
  runs = _told_apart([r for r in map(Source, folders) if r.rows])
  rows = [row for r in runs for row in r.rows]
  if not rows:
    raise results.RunError(f'{folder}: has no rows to report; run the attack stage first')
  (folder / 'figures').mkdir(parents=True, exist_ok=True)
  look = figures.looks(map(figures.name_of, rows))
  page = Page(folder)
  page.text(_summary(runs, rows))
  page.table(
    'One line per network: quality in the box, and what every attack takes from it at its largest strength (all strengths: defences.csv). '
    'Amplification: largest relative change of the image per relative change of the measurement, to first order. '
    'Passes: forward and backward, of one example each.',
    *comparison.defences(runs, draws, strongest=True),
  )  # fmt: skip
  if len(runs) > 1:
    results.write_csv(folder / 'defences.csv', *comparison.defences(runs, draws))
  results.write_csv(folder / 'summary.csv', *comparison.summary(rows, draws))
  for name in sorted({r['perturbation'] for r in rows}):
    _attack(page, runs, rows, name, draws, look)
  _training(page, runs, generators, look)
  page.heading('All numbers')
  page.table('Mean over examples, with 95% bootstrap intervals over patients', *comparison.table(rows, draws))
  _bad_input(page, runs)
  _origin(page, runs)
  return page.write('jaxrec: adversarial robustness of MR image reconstruction')


def _told_apart(runs):
  """Runs whose rows would be taken for those of one network are named with their folders."""
  keys = [{(figures.name_of(row), *(row[k] for k in results.KEY)) for row in run.rows} for run in runs]
  for n, run in enumerate(runs):
    if any(keys[n] & other for m, other in enumerate(keys) if m != n):
      alike = sum(other.folder.name == run.folder.name for other in runs)
      run.rename(f'({run.folder if alike > 1 else run.folder.name})')
  return runs


def _attack(page, runs, rows, name, draws, look):
  """Curves and pictures of one perturbation."""
  mine = [r for r in rows if r['perturbation'] == name]
  # Slices that a network was trained on are another question; tables have both.
  held_out = [r for r in mine if r.get('split', 'val') == 'val']
  of_split = '; slices of the split val' if 0 < len(held_out) < len(mine) else ''
  mine = held_out or mine
  sweep: dict[str, Any] = next((r.sweeps[name] for r in runs if name in r.sweeps), {})
  title, axis = sweep.get('title', name), sweep.get('axis', 'strength')
  page.heading(title)
  aimed = [r for r in mine if r['attacked'] == 'region']
  bands = (
    '; bands are 95% bootstrap intervals over patients'
    if len(set(map(figures.name_of, mine))) <= figures.MOST_BANDS
    else ''
  )
  page.figure(
    f'{name}-ssim', figures.strength_curve(aimed or mine, 'ssim_region_adv', axis=axis, draws=draws, look=look),
    f'Attacks on the {"annotated box: SSIM in the box" if aimed else "whole image: SSIM"} against strength{of_split}{bands}.',
  )  # fmt: skip
  if len({r['attacked'] for r in mine}) == 2:
    groups = []
    for label in sorted({figures.name_of(r) for r in mine}):
      for aim, words in (('region', 'box attacked'), ('image', 'whole image attacked')):
        groups.append((f'{label}, {words}', [r for r in mine if figures.name_of(r) == label and r['attacked'] == aim]))
    groups = [group for group in groups if group[1]]
    page.figure(
      f'{name}-aims', figures.strength_curve(mine, 'ssim_region_adv', groups, axis=axis, draws=draws, look=look),
      'Attacks aimed at the box against attacks aimed at the whole image, both scored in the box.',
    )  # fmt: skip
  _pictures(page, runs, name, title, mine[0]['unit'], look)


def _check(folder):
  if not folder.is_dir():
    raise results.RunError(f'report.runs: {folder} is no folder; name run folders')
  if not results.read_rows(folder):
    raise results.RunError(
      f'report.runs: {folder} holds no rows of an attack; name the folder of a run with the stage attack'
    )


def _summary(runs, rows):
  examples = {(r['file'], r['slice'], r['annotation']) for r in rows}
  lines = [
    f'{len(examples)} {"annotated regions" if any(r["attacked"] == "region" for r in rows) else "slices"}, {len({r["patient"] for r in rows})} patients, {len(rows)} rows.'
  ]
  lines += [r.settings.caution for r in runs if r.settings.caution][:1]
  prospective = sum('reference' in r for r in rows)
  if prospective:
    lines.append(
      f"<b>{prospective} rows have no fully sampled image to compare with</b>: they compare with the network's own output without attack. "
      'There, clean scores are perfect by definition, and the others say how far an attack moves the output.'
    )
  eta = sorted(r['thermal_eta'] for r in rows if 'thermal_eta' in r)
  if eta:
    lines.append(
      f'Thermal noise of these scans has the energy of adversarial noise with &eta; = {100 * np.median(eta):.2f}% '
      f'(median; {100 * eta[0]:.2f}% to {100 * eta[-1]:.2f}%).'
    )
  return lines


def _training(page, runs, generators, look):
  other = [page.folder / s for s in generators]
  trained = [r for r in runs if (r.folder / 'metrics.jsonl').exists() and r.folder not in other] + [
    Source(f) for f in other
  ]
  # A network that several runs attack was trained once.
  curves = {}
  for r in runs:
    if r.metrics and r.metrics not in curves.values():
      curves[r.label] = r.metrics
  if not curves:
    return
  page.heading('Training')
  page.figure('training', figures.training_curve(curves, look), 'Training loss and validation SSIM.')
  for r in trained:
    if any('loss_generator' in m for m in r.metrics):
      page.figure(
        f'players-{r.folder.name}', figures.players_curve(r.metrics),
        f'{r.folder.name}: losses and gradient norms of both players, the share of the budget that the generator uses, '
        'and the diversity of its perturbations (0: all the same).',
      )  # fmt: skip
  page.table('The players at the end of training', *comparison.training_scores(trained))
  sampling = next((a for a in (r.sampling() for r in runs) if a), None)
  if sampling:
    page.figure(
      'sampling',
      figures.sampling_panel(sampling),
      'Full and undersampled k-space of one slice (first coil), and their images.',
    )


def _pictures(page, runs, name, title, unit, look):
  for aim, words in (('region', 'the box'), ('image', 'the whole image')):
    shared = [set(r.examples(name, aim)) for r in runs]
    common = sorted(set.intersection(*shared)) if shared else []
    if not common:
      continue
    example = common[0]
    shown = [(r.label, r.arrays(example, name, aim)) for r in runs]
    first = shown[0][1]
    if aim == 'region' and 'curve' in first:
      page.figure(
        f'{name}-angle', figures.angle_curve([(label, a['angles'], a['curve']) for label, a in shown], look),
        f'SSIM in the box against the angle, for {example}.',
      )  # fmt: skip
    strength = strength_text(float(first['strength']), unit)
    if unit == 'relative' and len(shown) > 1:
      page.figure(
        f'{name}-perturbations-{aim}', figures.perturbation_panel(shown, f'{title} ({strength}), {example}'),
        'Clean reconstruction, perturbation of the fully sampled image, that image perturbed, reconstruction under attack.',
      )  # fmt: skip
    page.figure(
      f'{name}-panel-{aim}',
      figures.panel(shown, f'{title} aimed at {words} ({strength}), {example}'),
      'Full sampling, clean and attacked reconstruction, the attacked but fully sampled image, and the change; below, the box.',
    )


def _bad_input(page, runs):
  files, boxes = {}, {}
  for r in runs:
    for path in sorted(r.folder.glob('skipped-*.json')):
      content = results.read_json(path)
      files |= content.get('files', {})
      boxes |= content.get('boxes', {})
  if files or boxes:
    page.heading('Left out')
    page.table('Boxes by reason', ['reason', 'boxes'], [[k, str(v)] for k, v in sorted(boxes.items())])
    page.table('Files', ['file', 'problem'], [[k, v] for k, v in sorted(files.items())])


def _origin(page, runs):
  page.heading('Where the numbers come from')
  page.table('', ['network', *PROVENANCE], [[r.label, *r.provenance] for r in runs])
  page.text(
    ['Every number above comes from rows of results.csv, and means stand in summary.csv; config.json repeats the run.']
  )
