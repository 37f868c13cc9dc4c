"""The report of the verdict tried on networks whose answer is known."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxrec import results, statistics
from jaxrec.reports import detectability, figures, samples
from jaxrec.reports.page import Page
from jaxrec.reports.source import PROVENANCE, provenance


def run(folder: Path, *, draws: int = 1000) -> Path:
  """Writes `report.html` from `detectability.csv` and `invariances.csv`.

  Raises:
    RunError: if it has no rows.
  """
  rows = results.read_csv(folder / 'detectability.csv')
  if not rows:
    raise results.RunError(f'{folder}: has no rows to report; run the known stage first')
  (folder / 'figures').mkdir(parents=True, exist_ok=True)
  page = Page(folder)
  sampled = results.read_csv(folder / 'invariances.csv')
  page.text([*_summary(rows), *_sampled(rows, sampled)])
  page.table(
    'How well search and samples tell what is ignored: area under the ROC curve against the known answer',
    ['method', 'networks', 'classes', 'area'],
    [[name, str(networks), str(classes), f'{area:.3f}'] for name, networks, classes, area in areas(rows, sampled)],
    name='roc',
  )
  page.figure(
    'retained', figures.retained_curves(rows, 'pixels'),
    'Retained detectability r = d\'_out / d\'_in against the detectability in the input, by size of the structure; bands: 95% intervals over patients that hold together for all classes of a network. '
    'Networks that lose nothing lie at 1, whatever they do to the eye.',
  )  # fmt: skip
  page.heading('Verdicts')
  page.table(
    'Ignored: visible (d\' in the input above 2), r below .5 and d\' in the output below 1, each with its whole interval. Known: the same from the exact d\' in the output (linear networks), or from an independent, '
    'larger set of scans. Witnesses: share of inputs for which the search finds a sample that a scan could be, in which the evidence for the structure fell by 2 deviations or more while it moved by at most half a '
    'deviation in the output and the output stayed as close as those of two scans; fell: the median fall.',
    *verdict_table(rows), name='verdicts',
  )  # fmt: skip
  samples.section(page, folder, 'pixels', draws)
  page.heading('Where the numbers come from')
  page.table('', PROVENANCE, [provenance(folder)])
  return page.write('jaxrec: the verdict on networks whose answer is known')


def verdict_table(rows: Sequence[Mapping[str, str]]) -> tuple[list[str], list[list[str]]]:
  """Head and lines of the report's table."""
  head = ['network', 'size', "d' in input", "d' in output", 'known', 'r', 'ignored', 'known ', 'witnesses', 'fell']
  lines = []
  for r in rows:
    lines.append([
      r['network'], f'{float(r["size"]):g}', detectability.cell(r, 'input'), detectability.cell(r, 'output'), f'{float(r["exact"]):.2f}',
      detectability.cell(r, 'retained', '.3f'), r['ignored'], r['truth'], *detectability.hunted(r),
    ])  # fmt: skip
  return head, lines


def _summary(rows):
  wrong = [r for r in rows if r['ignored'] != r['truth']]
  lines = [
    f'{len(rows)} classes of {len({r["network"] for r in rows})} networks: {sum(r["ignored"] == "yes" for r in rows)} are judged as ignored, {sum(r["truth"] == "yes" for r in rows)} are; '
    f'{len(wrong)} verdicts differ from the known answer'
    + (
      ': ' + ', '.join(f"{r['network']} at {float(r['size']):g} pixels and d' {float(r['aim']):g}" for r in wrong)
      if wrong
      else ''
    )
    + '.'
  ]
  keeps = [r for r in rows if r['keeps'] == '1']
  lines.append(
    f'Networks that lose nothing: r from {min(float(r["retained"]) for r in keeps):.4f} to {max(float(r["retained"]) for r in keeps):.4f}.'
  )
  for flag, words in (
    ('1', 'its exact value (linear networks)'),
    ('0', 'what a larger set of scans says (other networks)'),
  ):
    away = [
      abs(float(r['output']) / float(r['exact']) - 1) for r in rows if r['linear'] == flag and float(r['exact']) > 0.5
    ]
    if away:
      lines.append(f"d' in the output differs from {words} by at most {100 * max(away):.1f}% where that is above .5.")
  hunted = [r for r in rows if r['witnesses']]
  if hunted:
    share = max(float(r['witnesses']) for r in hunted if r['keeps'] == '1')
    lines.append(f'Search: at most {share:.3f} witnesses for a network that loses nothing.')
  return lines


def _by_class(sampled):
  """Means of the samples' findings over patients, `(network, size, aim)`."""
  at: dict[tuple, list] = {}
  for r in sampled:
    if int(r['kind']) != results.NO_STRUCTURE:
      at.setdefault((r['network'], r['size'], r['aim']), []).append(r)
  return {
    key: {k: float(np.mean([float(r[k]) for r in mine])) for k in ('witnesses', 'altered', 'excess')}
    for key, mine in at.items()
  }


def _sampled(rows, sampled):
  """Witnesses among samples for networks that lose nothing."""
  keeps = {r['network'] for r in rows if r['keeps'] == '1'}
  lossless = [m['witnesses'] for key, m in _by_class(sampled).items() if key[0] in keeps]
  return [f'Sampling: at most {max(lossless):.3f} witnesses for a network that loses nothing.'] if lossless else []


def areas(rows: Sequence[Mapping[str, str]], sampled: Sequence[Mapping[str, str]]) -> list[list]:
  """Areas under the ROC curves of what search and samples say, against the known answer.

  Args:
    rows: of `detectability.csv`.
    sampled: of `invariances.csv`; may be empty.

  Returns:
    Method, networks, classes and area; nothing where all answers are the same.
  """
  hunted: list[Mapping] = [r for r in rows if r['witnesses']]
  found = [('search: share of witnesses', hunted, 'witnesses'), ('search: median fall', hunted, 'fell')]
  truths = {(r['network'], r['size'], r['aim']): r['truth'] for r in rows}
  mine: list[Mapping] = [{**m, 'network': key[0], 'truth': truths[key]} for key, m in _by_class(sampled).items()]
  for name, column in (
    ('B: share of witnesses', 'witnesses'),
    ('A: share of inputs with excess variation', 'altered'),
    ('A: mean excess variation', 'excess'),
  ):
    found.append((name, mine, column))
  table = []
  for name, lines, column in found:
    known_answers = [r['truth'] == 'yes' for r in lines]
    if len(set(known_answers)) == 2:
      area = statistics.roc_area([float(r[column]) for r in lines], known_answers)
      table.append([name, len({r['network'] for r in lines}), len(lines), area])
  return table
