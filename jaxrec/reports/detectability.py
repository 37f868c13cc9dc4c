"""What networks retain of small structures, as a report shows it."""

import re
from collections.abc import Mapping

from jaxrec import results, statistics
from jaxrec.reports import figures
from jaxrec.reports.page import Page


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
    cells = [cell(r, k) for k in ('input', 'output', 'retained')]
    lines.append([r['network'], *of(r), *cells, r['ignored'], *hunted(r)])
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
  columns = [c for c in (rows[0] if rows else ()) if c not in ('network', 'patient')]
  head = ['network', *(re.sub('dose_(.*)_(.*)', r'dose x \1, \2', c) for c in columns)]
  lines = []
  for network in dict.fromkeys(r['network'] for r in rows):
    mine = [r for r in rows if r['network'] == network]
    stats = [
      statistics.bootstrap([float(r[c]) for r in mine], [r['patient'] for r in mine], draws=draws) for c in columns
    ]
    lines.append([network, *(f'{m:.3f} ({low:.3f} to {high:.3f})' for m, low, high in stats)])
  return head, lines


def cell(row: Mapping[str, str], name: str, form: str = '.2f') -> str:
  """A number of `detectability.csv` and its interval, as reports show them."""
  value, low, high = (float(row[f'{name}{end}']) for end in ('', '_low', '_high'))
  return f'{value:{form}} ({low:{form}} to {high:{form}})'


def hunted(row: Mapping[str, str]) -> list[str]:
  """Share of witnesses and median fall, as reports show them; empty where none were searched."""
  return [f'{float(row[k]):.2f}' if row[k] else '' for k in ('witnesses', 'fell')]
