"""Networks side by side: what robust training gains and costs."""

from collections.abc import Sequence

import numpy as np

from jaxrec import results, statistics
from jaxrec.attacks import strength_text
from jaxrec.reports import figures

METRICS = (
  'nmse_image_adv',
  'psnr_image_adv',
  'ssim_image_adv',
  'nmse_region_adv',
  'psnr_region_adv',
  'ssim_region_adv',
)
_GROUP = ('network', 'split', 'perturbation', 'attacked', 'strength', 'unit')


def summary(rows: Sequence[dict], draws: int) -> tuple[list[str], list[list]]:
  """Means and 95% bootstrap intervals over patients, one line per network, split, attack and strength.

  Args:
    rows: rows of one or more runs.
    draws: bootstrap draws.

  Returns:
    Head and lines of `summary.csv`.
  """
  head = [
    *_GROUP,
    *(f'{m.removesuffix("_adv")}_{part}' for m in METRICS for part in ('mean', 'low', 'high')),
    'budget_used',
    'n',
  ]
  groups: dict[tuple, list[dict]] = {}
  for row in rows:
    key = (figures.name_of(row), row.get('split', 'val'), *(row[name] for name in _GROUP[2:]))
    groups.setdefault(key, []).append(row)
  lines = []
  for key in sorted(groups, key=lambda k: (k[1], k[2], k[3] != 'region', k[4], k[0])):
    at = groups[key]
    patients = [r['patient'] for r in at]
    stats = [x for m in METRICS for x in statistics.bootstrap([r[m] for r in at], patients, draws=draws)]
    lines.append([*key, *stats, float(np.mean([r['budget_used'] for r in at])), len(at)])
  return head, lines


def table(rows: Sequence[dict], draws: int) -> tuple[list[str], list[list[str]]]:
  """The summary as readers see it, with the interval beside each mean."""
  head, lines = summary(rows, draws)
  column = {name: i for i, name in enumerate(head)}
  shown = [('NMSE image', 'nmse_image', '.4f'), ('PSNR image [dB]', 'psnr_image', '.2f'), ('SSIM image', 'ssim_image', '.3f'),
           ('NMSE box', 'nmse_region', '.4f'), ('PSNR box [dB]', 'psnr_region', '.1f'), ('SSIM box', 'ssim_region', '.3f')]  # fmt: skip
  out = []
  for line in lines:
    network, split, perturbation, attacked, strength, unit = line[:6]
    cells = []
    for _, name, form in shown:
      mean, low, high = (line[column[f'{name}_{part}']] for part in ('mean', 'low', 'high'))
      cells.append(f'{mean:{form}} ({low:{form}} to {high:{form}})')
    out.append(
      [
        network,
        split,
        perturbation,
        attacked,
        strength_text(strength, unit),
        *cells,
        f'{100 * line[-2]:.0f}%',
        str(line[-1]),
      ]
    )
  titles = ['network', 'split', 'perturbation', 'aimed at', 'strength', *(t for t, _, _ in shown), 'budget used', 'n']
  return titles, out


def _attacks(runs, aim, strongest):
  """Perturbation, strength and unit of every attack, or of the strongest ones."""
  rows = [r for run in runs for r in run.rows if r['strength'] > 0 and r['attacked'] == aim]
  attacks = sorted({(r['perturbation'], r['strength'], r['unit']) for r in rows})
  return [(n, s, u) for n, s, u in attacks if not strongest or s == max(t for m, t, _ in attacks if m == n)]


def defences(runs: Sequence, draws: int, *, strongest: bool = False) -> tuple[list[str], list[list[str]]]:
  """One line per network: clean quality, harm under every attack, amplification, training cost.

  Harm is the loss of SSIM and the gain of NMSE in the box, with intervals over patients.

  Args:
    runs: run folders with rows, `label`, `cost` and `settings`.
    draws: bootstrap draws.
    strongest: leave out all but the largest strength of every perturbation.

  Returns:
    Head and lines; no lines for fewer than two networks.
  """
  if len(runs) < 2:
    return [], []
  # Attacks on the box where there are some, else on the whole image.
  aim = 'region' if any(r['attacked'] == 'region' for run in runs for r in run.rows) else 'image'
  attacks = _attacks(runs, aim, strongest)
  head = ['network', 'attack sees', 'clean SSIM box', 'clean NMSE box']
  for name, strength, unit in attacks:
    attack = f'{name} {strength_text(strength, unit)}'
    head += [f'SSIM lost, {attack}', f'NMSE gained, {attack}']
  head += ['amplification', 'training passes', 'training time']
  lines = []
  for run in runs:
    rows = [r for r in run.rows if r.get('split', 'val') == 'val' and r['attacked'] == aim]
    if not rows:
      continue
    clean = {(r['file'], r['slice'], r['annotation']): r for r in rows if r['strength'] == 0}.values()

    def cell(values, at, form='.3f'):
      if not at:
        return ''
      mean, low, high = statistics.bootstrap(values, [r['patient'] for r in at], draws=draws)
      return f'{mean:{form}} ({low:{form}} to {high:{form}})'

    line = [run.label, run.settings.sees]
    line += [
      cell([r['ssim_region_adv'] for r in clean], clean),
      cell([r['nmse_region_adv'] for r in clean], clean, '.4f'),
    ]
    for name, strength, _ in attacks:
      at = [r for r in rows if (r['perturbation'], r['strength']) == (name, strength)]
      line.append(cell([r['ssim_region_clean'] - r['ssim_region_adv'] for r in at], at))
      line.append(cell([r['nmse_region_adv'] - r['nmse_region_clean'] for r in at], at, '.4f'))
    gains = [r['lipschitz'] for r in rows if 'lipschitz' in r and r['strength'] == 0]
    line.append(f'{np.mean(gains):.2f}' if gains else '')
    cost = run.cost
    passes = cost.get('steps', 0) * (cost.get('forward_per_step', 0) + cost.get('backward_per_step', 0))
    line += [f'{passes:,}' if cost else 'none', f'{cost["seconds"]:.0f} s' if cost else 'none']
    lines.append(line)
  return head, lines


def training_scores(runs: Sequence) -> tuple[list[str], list[list[str]]]:
  """How the two players did at the end of training, one line per adversarial run."""
  names = [
    'loss_clean',
    'loss_perturbed',
    'loss_generator',
    'budget_used',
    'diversity',
    'gradient_norm',
    'gradient_norm_generator',
  ]
  lines = []
  for run in runs:
    last = [r for r in run.metrics if 'loss_generator' in r][-1:]
    lines += [[run.label, *(f'{r[name]:.4g}' for name in names)] for r in last]
  return ['run', *names], lines


def cost_of(folder) -> dict:
  """Contents of `cost.json`, or nothing."""
  return results.read_json(folder / 'cost.json')
