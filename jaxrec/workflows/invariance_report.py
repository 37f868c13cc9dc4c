"""The report of an invariance analysis: samples, what changes among them, and which structures a network ignores."""

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from jaxrec import figures, results, statistics
from jaxrec.workflows import detectability, invariances
from jaxrec.workflows.page import Page


def run(config, folder: Path, sources: Sequence[Path]) -> Path:
  """Writes `figures/*.png`, `classes.csv`, `ranking.csv` and `report.html` in a run folder.

  Args:
    config: `report.draws` bootstrap draws.
    folder: where the report goes.
    sources: folders of invariance analyses to show together.

  Returns:
    Path of the page.

  Raises:
    RunError: if no source has rows.
  """
  runs = [r for r in (_Source(Path(s)) for s in sources) if r.rows]
  if not runs:
    raise results.RunError(f'{folder}: has no rows to report; run the invariances stage first')
  (folder / 'figures').mkdir(parents=True, exist_ok=True)
  draws, page = config.report.draws, Page(folder)
  page.text(_summary(runs))
  for source in dict.fromkeys([folder, *(s.folder for s in runs)]):
    detectability.section(page, source)
  page.heading('What the samples show')
  page.table(
    'By size and contrast; shares of samples found by one generative model, no verdict: what is ignored is said by the observer above. In input, output, samples: share of cases (or samples) whose contrast to the '
    'anatomy without the structure (the input: to its mean over new noise) exceeds what 5% of the other patients\' twins exceed there. Lost: share of samples that do not show the structure as anatomy, whose noise near it '
    'is no larger than 95% of scans have, and whose output near it is closer to f(x) than outputs of two scans are to each other; their noise may still hold the structure. In autoencoder: its own image of the input; '
    'what it cannot draw, samples do not show. Changed there, in twin: share of cases where the samples vary beyond noise at the structure, and at the same place of the twin without it. Output moves: share of cases whose '
    'output moves more near the structure when it is taken out than 95% of new scans move it. Moves there, everywhere: that move over the median under new noise. Gap there: distance of f of the samples from f(x) near '
    'the structure, over that of new noise.',
    *classes(runs, draws), name='classes',
  )  # fmt: skip
  if len(runs) > 1 or len({r['layer'] for s in runs for r in s.rows}) > 1:
    page.table(
      'Networks and layers by the share of samples that lost a structure which the input shows. More than the next network: of the same structures. One training of each network, autoencoder and flow',
      *ranking(runs, draws), name='ranking',
    )  # fmt: skip
  for source in runs:
    structures = [r for r in source.rows if r['structure']]
    for layer in source.layers:
      page.figure(
        f'contrast-{source.slug}-{layer}', figures.contrast_curve([r for r in structures if r['layer'] == layer], source.unit, draws=draws),
        f'{source.label}, {layer}: contrast of structures in the input, the output and the samples over the true contrast, against size; '
        'bars: central 95% of the samples, which the network cannot tell apart.',
      )  # fmt: skip
  page.heading('Do samples share the output?')
  page.table(
    'Median distance of f(x\') from f(x) over |f(x)|. Gap: samples over fresh noise on the same anatomy; below 1, the network sees the samples as '
    'more alike than two scans. Mismatched: samples made for other patients.',
    *consistency(runs, draws), name='consistency',
  )  # fmt: skip
  page.table('Errors of the analyses on twins without structures, judged by other patients, and the flow\'s noise on held-out images', *calibration(runs, draws), name='calibration')
  for source in runs:
    _pictures(page, source)
  page.heading('Where the numbers come from')
  lines = []
  for s in runs:
    p = s.provenance
    versions = ', '.join(f'{k} {v}' for k, v in p.get('versions', {}).items())
    lines.append([s.label, str(s.folder), p.get('git_revision', 'unknown'), ', '.join(p.get('devices', [])), versions, str(p.get('seed', '')), p.get('data_fingerprint', ''), s.perceptual])
  page.table('', ['network', 'folder', 'revision', 'devices', 'versions', 'seed', 'data', 'perceptual term'], lines)
  bad = {k: v for s in runs for path in sorted(s.folder.glob('skipped-*.json')) for k, v in json.loads(path.read_text())['files'].items()}
  page.table('Left out', ['file', 'problem'], [[k, v] for k, v in sorted(bad.items())])
  page.text(['Every number above is a mean over rows of invariances.csv; thresholds.json holds what the twins of other patients gave. Analyses A and B are jaxrec\'s own.'])
  return page.write('jaxrec: what a network ignores')


class _Source:
  """One analysis as the report sees it."""

  def __init__(self, folder):
    self.folder = folder
    self.rows = invariances.rows(folder)
    self.config = results.read_json(folder / 'config.json')
    self.provenance = results.read_json(folder / 'provenance.json')
    self.thresholds = results.read_json(folder / 'thresholds.json')
    self.label = self.config.get('label') or folder.name
    self.slug = results.safe_name(self.label)
    self.layers = list(self.config.get('invariances', {}).get('flows', ()))
    self.ct = self.config.get('data', {}).get('layout', 'fastmri') == 'ldct'
    options, runs = self.config.get('invariances', {}), self.config.get('experiments', {})
    autoencoder = runs.get(options.get('autoencoder'), {}).get('train', {}).get('task', {})
    target = autoencoder.get('image') == 'target'
    self.domain = ' Samples are anatomies: with noise near that of x they are inputs with nearly the same output, shown below each.' if target else ''
    self.unit = 'mm' if self.ct else 'pixels'
    task = autoencoder.get('perceptual', {})
    self.perceptual = task.get('vgg') or (f'features of the run {task["network"]}' if task.get('network') else 'off')

  def pictures(self):
    """Arrays by `case.layer`."""
    path = self.folder / 'images.h5'
    if not path.exists():
      return {}
    with h5py.File(path) as file:
      return {name: {k: v[()] for k, v in group.items()} for name, group in file.items()}


def _summary(runs):
  lines = []
  for s in runs:
    structures = [r for r in s.rows if r['structure'] and r['layer'] == s.layers[0]]
    lines.append(f'{s.label}: {len(structures)} structures of {len({r["patient"] for r in structures})} patients, each with its twin without the structure; {s.config["invariances"]["num_samples"]} samples per image and layer. Perceptual term of the autoencoder: {s.perceptual}.')
  if any(not s.config['data']['root'] for s in runs):
    lines.append('<b>These numbers come from the built-in phantom</b>, not from patients: small networks, trained for minutes. They show that the method works, not how a clinical network behaves.')
  return lines


def _stat(rows, value, draws):
  return statistics.bootstrap([value(r) for r in rows], [r['patient'] for r in rows], draws=draws)


def _cell(stat, form='.2f'):
  return f'{stat[0]:{form}} ({stat[1]:{form}} to {stat[2]:{form}})'


def classes(runs: Sequence, draws: int) -> tuple[list[str], list[list[str]]]:
  """What samples show of structures, by network, layer, size and contrast.

  Args:
    runs: analyses with `rows`, `label` and `layers`.
    draws: bootstrap draws.

  Returns:
    Head and lines.
  """
  head = ['network', 'layer', 'size', 'contrast', 'n', 'in input', 'in output', 'in autoencoder', 'in samples', 'lost', 'changed there', 'in twin', 'output moves', 'moves there', 'everywhere', 'gap there']
  lines = []
  for s in runs:
    for layer in s.layers:
      mine = [r for r in s.rows if r['layer'] == layer]
      twins = {r['case']: r for r in mine if not r['structure']}
      groups: dict[tuple, list[dict]] = {}
      for r in mine:
        if r['structure'] and r['case'] in twins:
          groups.setdefault((r['diameter'], r['contrast']), []).append(r)
      for size, contrast in sorted(groups):
        at = groups[size, contrast]
        lines.append([
          s.label, layer, *_kind(s, size, contrast), str(len(at)),
          *(f'{np.mean([r[f"present_{view}"] for r in at]):.2f}' for view in ('input', 'output', 'reconstruction', 'samples')),
          _cell(_stat(at, lambda r: r['lost'], draws)),
          f'{np.mean([r["altered"] for r in at]):.2f}', f'{np.mean([twins[r["case"]]["altered"] for r in at]):.2f}',
          _cell(_stat(at, lambda r: r['moved_beyond'], draws)),
          *(f'{np.mean([r[name] for r in at]):.2f}' for name in ('moved_near', 'moved', 'gap_near')),
        ])  # fmt: skip
  return head, lines


def _kind(source, size, contrast):
  return f'{size:g} {source.unit}', f'{contrast:g} HU' if source.ct else f'{100 * contrast:g}%'


def ranking(runs: Sequence, draws: int) -> tuple[list[str], list[list[str]]]:
  """Networks and layers, the blindest first, by how often samples lost a structure that the input shows.

  The difference to the next network is paired: of the structures that both inputs show, of the same phantom or data.
  """
  found = []
  for s in runs:
    for layer in s.layers:
      at = {(r['case'], r['diameter'], r['contrast_true']): r for r in s.rows if r['structure'] and r['layer'] == layer and r['present_input']}
      if at:
        found.append((np.mean([r['lost'] for r in at.values()]), s.label, layer, at))
  found.sort(key=lambda f: -f[0])
  lines = []
  for i, (_, label, layer, at) in enumerate(found):
    below = next((other for _, name, _, other in found[i + 1 :] if name != label), {})
    both = [key for key in at if key in below]
    more = statistics.bootstrap([at[k]['lost'] - below[k]['lost'] for k in both], [at[k]['patient'] for k in both], draws=draws) if both else None
    lines.append([
      label, layer, *(_cell(_stat(at.values(), lambda r, n=n: r[n], draws)) for n in ('lost', 'gap')), str(len(at)),
      _cell(more) if both else '', str(len(both)) if both else '',
    ])  # fmt: skip
  return ['network', 'layer', 'shown structures lost', 'gap', 'n', 'more than the next network', 'of'], lines


def consistency(runs: Sequence, draws: int) -> tuple[list[str], list[list[str]]]:
  """Distances between outputs, and diversity, by network and layer."""
  lines = []
  for s in runs:
    for layer in s.layers:
      at = [r for r in s.rows if r['layer'] == layer]
      names = ('gap', 'gap_decoded', 'distance_samples', 'distance_fresh', 'distance_mismatched', 'distance_reconstruction', 'diversity', 'noise')
      over = _stat(at, lambda r: r['distance_mismatched'] / r['distance_fresh'], draws)
      there = _stat([r for r in at if r['structure']], lambda r: r['gap_near'], draws)
      lines.append([s.label, layer, *(_cell(_stat(at, lambda r, n=n: r[n], draws), '.3f') for n in names), _cell(over), _cell(there, '.3f')])
  return ['network', 'layer', 'gap', 'gap before corrections', 'samples', 'fresh noise', 'mismatched', 'autoencoder', 'diversity', 'noise of the input', 'mismatched over fresh', 'gap near structures'], lines


def calibration(runs: Sequence, draws: int) -> tuple[list[str], list[list[str]]]:
  """What the thresholds that other patients set do on twins; moments of the flow."""
  lines = []
  for s in runs:
    for layer in s.layers:
      twins = [r for r in s.rows if r['layer'] == layer and not r['structure']]
      moments = s.thresholds.get(layer, {}).get('moments', {})
      lines.append([
        s.label, layer, f'{s.thresholds[layer]["alpha"]:.2f}', _cell(_stat(twins, lambda r: r['present_samples'], draws), '.3f'),
        *(_cell(_stat(twins, value, draws), '.3f') for value in (lambda r: r['present_input'], lambda r: r['noise_crosses'], lambda r: 1 - r['noise_plausible_input'], lambda r: 1 - r['noise_plausible'])),
        f'{moments.get("mean_rms", np.nan):.3f}', f'{moments.get("std_mean", np.nan):.3f}',
        f'{moments.get("correlation", np.nan):.3f} ({moments.get("correlation_expected", np.nan):.3f})',
      ])  # fmt: skip
  return ['network', 'layer', 'intended', 'B: structure in samples of twins', 'structure in twins', 'A: noise crosses', 'noise of scans called unlikely', 'noise of samples called unlikely', 'mean of v (rms)', 'deviation of v', 'correlation of v (if independent)'], lines


def _pictures(page, source):
  pictures = source.pictures()
  names = sorted({name.rsplit('.', 1)[0] for name in pictures})
  if not names:
    return
  page.heading(f'{source.label}: samples')
  kinds = {r['case']: ', '.join(_kind(source, r['diameter'], r['contrast'])) for r in source.rows if r['structure']}
  for case in names:
    rows = [(layer, pictures[f'{case}.{layer}']) for layer in source.layers if f'{case}.{layer}' in pictures]
    if rows:
      page.figure(
        f'samples-{source.slug}-{case}', figures.sample_panel(rows, source.ct),
        f'{case}: input x, target y (full dose, or fully sampled), output f(x), samples (the same noise v for every layer) and their standard deviation; below, f of every sample. The circle is the structure ({kinds[case]}). Shown are cases whose samples most often lack a structure that the input shows.' + source.domain,
      )  # fmt: skip
      page.figure(
        f'changes-{source.slug}-{case}', figures.change_panel(rows[-1][1], source.ct),
        f'{case}, {rows[-1][0]}: above, samples with the largest change (box) where they vary beyond noise, and the map of excess variation; below, samples that differ most by mean absolute difference.',
      )  # fmt: skip
