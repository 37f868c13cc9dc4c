"""The report of samples that networks cannot tell apart, beside the observer's verdict."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py

from jaxrec import results, statistics
from jaxrec.reports import detectability, figures
from jaxrec.reports.page import Page
from jaxrec.reports.source import PROVENANCE, provenance, settings

Rows = Sequence[Mapping[str, Any]]


def run(folder: Path, sources: Sequence[str | Path], *, draws: int) -> Path:
  """Writes `figures/*.png`, tables and `report.html` in a run folder.

  Args:
    folder: where the report goes.
    sources: folders with detect or invariances stages to show together.
    draws: bootstrap draws.

  Returns:
    Path of the page.

  Raises:
    RunError: if no source has rows.
  """
  shown = [s for s in dict.fromkeys(map(Path, sources)) if (s / 'detectability.csv').exists()]
  if not shown:
    raise results.RunError(f'{folder}: has no rows to report; run the detect stage first')
  (folder / 'figures').mkdir(parents=True, exist_ok=True)
  page, origin = Page(folder), []
  for n, source in enumerate(shown):
    # The first one's tables have the names that they have alone.
    page.prefix = f'{results.safe_name(source.name)}-{n}-' if n else ''
    made_with = settings(source)
    page.text([made_with.caution] if made_with.caution else [])
    origin.append([*provenance(source), made_with.features])
    unit = results.read_csv(source / 'detectability.csv')[0]['unit']
    detectability.section(page, source, draws)
    section(page, source, unit, draws)
  page.heading('Where the numbers come from')
  page.table('', [*PROVENANCE, 'perceptual term of the autoencoders'], origin)
  return page.write('jaxrec: what networks ignore')


def section(page: Page, folder: Path, unit: str, draws: int) -> None:
  """Adds what the samples of a run folder show; nothing if it has none."""
  rows = results.read_csv(folder / 'invariances.csv')
  if not rows:
    return
  page.heading('What the samples show')
  page.text(
    [
      "Samples x' are drawn by a conditional autoencoder and a conditional flow so that f(x') is f(x), each with its own noise; the observer judges them. One training of each network, autoencoder and flow."
    ]
  )
  page.table(
    'Share of samples that are witnesses (method B: the evidence for the structure in the input fell by 2 deviations or more, moved by at most half a deviation in the output, and the output stayed as close as those of two '
    'scans), of those whose noise is one that scans have as well, and the median fall; without corrections, as in the papers; and of anatomies scanned anew. Method A: share of inputs whose samples vary more than '
    'those for 95% of the structure-free inputs of other patients, and of structure-free inputs. 95% intervals over patients.',
    *classes(rows, unit, draws), name='classes',
  )  # fmt: skip
  page.table(
    'Do samples share the output? Median distance of f(x\') from f(x) over |f(x)|, of a layer that of the output and the layer together; gap: over that of new scans of the same anatomy, below 1 where the network sees samples as more alike than two scans. Mismatched: samples '
    'for outputs of other patients. Rescanned: anatomies sampled in the high-dose domain, projected, measured with fresh noise at the dose and reconstructed, f(R^-1 P R y\'); beside it the same of the true anatomy.',
    *consistency(rows, draws), name='consistency',
  )  # fmt: skip
  page.table(
    'How much samples differ: their standard deviation near the structure over that of new scans (noise), and over that of anatomy between places; without corrections; and how much of the noise of x the autoencoder can '
    'represent (1: all of it).',
    *diversity(rows, _anatomy(folder), draws), name='diversity',
  )  # fmt: skip
  moments = results.read_json(folder / 'sampling.json').get('moments', {})
  page.table(
    'The flow\'s noise over held-out scans: standard normal if the flow is fitted', ['network, layer', 'scans', 'mean (rms)', 'deviation', 'correlation', 'if independent'],
    [[name, str(m['scans']), *(f'{m[k]:.3f}' for k in ('mean_rms', 'std_mean', 'correlation', 'correlation_expected'))] for name, m in moments.items()],
  )  # fmt: skip
  _pictures(page, folder, unit, rows)
  ranks = results.read_csv(folder / 'mean_differences.csv')
  page.table(
    'Samples that differ most from x by mean absolute difference, without corrections (Eulig et al. 2022)', ['input', 'layer', 'rank', 'sample', 'mean absolute difference'],
    [[r['input'], r['layer'], r['rank'], r['sample'], f'{float(r["mean_absolute_difference"]):.4f}'] for r in ranks],
  )  # fmt: skip


def _stat(rows, name, draws, form='.2f'):
  """Mean over rows with its interval over patients; empty where a row lacks the number."""
  values = [(float(r[name]), r['patient']) for r in rows if r.get(name)]
  if not values:
    return ''
  mean, low, high = statistics.bootstrap(*zip(*values), draws=draws)
  return f'{mean:{form}} ({low:{form}} to {high:{form}})'


def _taps(rows):
  """Rows by network and layer."""
  found: dict[tuple, list] = {}
  for r in rows:
    found.setdefault((r['network'], r['layer']), []).append(r)
  return found


def classes(rows: Rows, unit: str, draws: int) -> tuple[list[str], list[list[str]]]:
  """What samples do to structures, by network, layer, size and contrast."""
  head = [
    'network',
    'layer',
    'size',
    "d' aimed at",
    'n',
    'witnesses',
    'with likely noise',
    'fell',
    'uncorrected',
    'rescanned',
    'A',
    'A, no structure',
  ]
  lines = []
  for (network, layer), mine in _taps(rows).items():
    nothing = [r for r in mine if int(r['kind']) == results.NO_STRUCTURE]
    for kind in sorted({int(r['kind']) for r in mine} - {results.NO_STRUCTURE}):
      at = [r for r in mine if int(r['kind']) == kind]
      lines.append([
        network, layer, f'{float(at[0]["size"]):g} {unit}', f'{float(at[0]["aim"]):g}', str(len(at)),
        *(_stat(at, k, draws) for k in ('witnesses', 'plausible_witnesses', 'fell', 'witnesses_drawn', 'witnesses_rescanned', 'altered')), _stat(nothing, 'altered', draws),
      ])  # fmt: skip
  return head, lines


def consistency(rows: Rows, draws: int) -> tuple[list[str], list[list[str]]]:
  """Distances between outputs, by network and layer."""
  lines = []
  for (network, layer), mine in _taps(rows).items():
    gaps = [
      {
        'patient': r['patient'],
        **{
          k: str(float(r[f'distance_{k}']) / max(float(r['distance_fresh']), 1e-12))
          for k in ('samples', 'drawn', 'mismatched')
        },
      }
      for r in mine
    ]
    cells = [_stat(gaps, k, draws, '.3f') for k in ('samples', 'drawn', 'mismatched')]
    lines.append([
      network, layer, *cells, *(_stat(mine, k, draws, '.3f') for k in ('distance_samples', 'distance_fresh', 'distance_reconstruction', 'gap_rescanned', 'gap_rescanned_target'))
    ])  # fmt: skip
  return [
    'network',
    'layer',
    'gap',
    'uncorrected',
    'mismatched',
    'samples',
    'new scans',
    'autoencoder',
    'rescanned',
    'true anatomy rescanned',
  ], lines


def diversity(rows: Rows, anatomy: float, draws: int) -> tuple[list[str], list[list[str]]]:
  """Deviation of samples relative to noise and to anatomy, by network and layer."""
  lines = []
  for (network, layer), mine in _taps(rows).items():
    over = [
      {
        'patient': r['patient'], 'noise': str(float(r['deviation']) / float(r['noise'])), 'anatomy': str(float(r['deviation']) / anatomy),
        'drawn': str(float(r['deviation_drawn']) / float(r['noise'])),
      }
      for r in mine
    ]  # fmt: skip
    lines.append(
      [
        network,
        layer,
        *(_stat(over, k, draws) for k in ('noise', 'anatomy', 'drawn')),
        _stat(mine, 'represented', draws),
      ]
    )
  return ['network', 'layer', 'over noise', 'over anatomy', 'uncorrected over noise', 'represented'], lines


def _anatomy(folder):
  return float(results.read_json(folder / 'sampling.json')['anatomy'])


def _pictures(page, folder, unit, rows):
  path = folder / 'images.h5'
  if not path.exists():
    return
  with h5py.File(path) as file:
    pictures = {name: {k: v[()] for k, v in group.items()} for name, group in file.items() if 'drawn' in group}
  said = {results.safe_name(row[k]): row[k] for row in rows for k in ('network', 'layer')}
  for name in sorted({n.rsplit('.', 1)[0] for n in pictures}):
    taps = [(n.rsplit('.', 1)[1], arrays) for n, arrays in sorted(pictures.items()) if n.rsplit('.', 1)[0] == name]
    first = taps[0][1]
    network = next((safe for safe in said if name.startswith(f'{safe}.')), '')
    what = f'{said.get(network, "")}{name[len(network) :]}: {float(first["size"]):g} {unit}'
    for kind, prefix, words in (
      ('samples', '', 'samples with corrections'),
      ('seed', 'drawn', 'samples without corrections, as in the papers'),
    ):
      panels = [(said.get(layer, layer), _view(arrays, prefix)) for layer, arrays in taps]
      page.figure(
        f'{kind}-{results.safe_name(name)}', figures.sample_panel(panels, unit == 'mm'),
        f'{what}: input x, target y, output f(x), {words} (the same noise v for every layer) and their standard deviation; below, f of every sample. The circle is the structure.',
      )  # fmt: skip
    page.figure(
      f'changes-{results.safe_name(name)}', figures.change_panel(first, unit == 'mm'),
      f'{what}: above, samples with the largest change near the structure (box) where they vary beyond those of structure-free inputs, and the map of excess variation; below, samples that differ most by mean absolute difference.',
    )  # fmt: skip
    if 'anatomies' in first:
      page.figure(
        f'anatomies-{results.safe_name(name)}',
        figures.anatomy_panel(first, unit == 'mm'),
        f'{what}: samples in the high-dose domain given f(x), beside the target.',
      )


def _view(arrays, prefix):
  return (
    {
      **arrays,
      'samples': arrays[prefix],
      'outputs': arrays[f'{prefix}_outputs'],
      'deviation': arrays[f'{prefix}_deviation'],
    }
    if prefix
    else arrays
  )
