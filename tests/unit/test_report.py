"""Figures and tables of a report, from rows and arrays."""

import csv
import itertools
import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from jaxrec import results
from jaxrec.reports import attacks, comparison, figures
from jaxrec.reports.source import Settings

STRENGTHS = {('coil_noise', 'relative'): (0.0, 0.005, 0.01, 0.02, 0.025), ('rotation', 'degrees'): (0.0, 1.0, 2.0, 5.0)}


def rows_of(network, **values):
  found = []
  for (name, unit), strengths in STRENGTHS.items():
    for aim, patient, strength in itertools.product(('region', 'image'), 'ab', strengths):
      scores = {
        f'{m}_{where}_{when}': 0.5
        for m in ('ssim', 'psnr', 'nmse')
        for where in ('region', 'image')
        for when in ('clean', 'adv')
      }
      found.append({
        'file': patient, 'slice': 0, 'annotation': 1, 'perturbation': name, 'unit': unit, 'attacked': aim, 'strength': strength,
        'patient': patient, 'network': network, 'model': 'unet', 'acceleration': '4', 'budget_used': 1.0, **scores, **values,
      })  # fmt: skip
  return found


def colours(figure):
  return {
    line.get_label().split(',')[0]: to_hex(line.get_color())
    for axes in figure.axes
    for line in axes.lines
    if line.get_label()[0] != '_'
  }


def test_a_network_has_one_colour_in_all_figures():
  names = ['b', 'a', 'c']
  look = figures.looks(names)
  rows = [r for n in names for r in rows_of(n) if r['perturbation'] == 'coil_noise']
  groups = [
    (f'{n}, {aim}', [r for r in rows if (r['network'], r['attacked']) == (n, aim)])
    for n in names
    for aim in ('region', 'image')
  ]
  angles = np.linspace(-1, 1, 5)
  drawn = [
    figures.strength_curve([r for r in rows if r['network'] != 'a'], 'ssim_region_adv', draws=10, look=look),
    figures.strength_curve(rows, 'ssim_region_adv', groups, draws=10, look=look),
    figures.angle_curve([(n, angles, angles) for n in names], look),
    figures.training_curve({n: [{'step': 1, 'loss': 1.0}] for n in names[::-1]}, look),
  ]
  assert len({colour for _, colour in look.values()}) == 3
  for figure in drawn:
    found = colours(figure)
    assert len(found) >= 2 and all(found[n] == to_hex(look[n][1]) for n in found)
  # Both aims of a network differ by their lines.
  styles = {(line.get_color(), line.get_linestyle()) for line in drawn[1].axes[0].lines}
  assert len(styles) == 6


def test_more_networks_than_colours_are_told_apart():
  look = figures.looks(f'{i:02d}' for i in range(14))
  assert len(set(look.values())) == 14


def test_a_unit_of_ones_own_is_the_label_of_the_axis():
  rows = [{**r, 'unit': 'radians'} for r in rows_of('a') if r['perturbation'] == 'rotation']
  assert (
    'phase [radians]' == figures.strength_curve(rows, 'ssim_region_adv', axis='phase', draws=10).axes[0].get_xlabel()
  )


@pytest.mark.parametrize('make', [figures.panel, figures.perturbation_panel])
def test_lungs_are_not_black(make):
  rng = np.random.default_rng(0)
  # Lungs of -1.5 and tissue of 1, in units of the networks.
  target = np.where(np.indices((32, 32))[1] < 16, -1.5, 1.0) + 0.1 * rng.standard_normal((32, 32))
  arrays = dict.fromkeys(('target', 'clean', 'adversarial', 'control'), target) | {'region': np.ones((32, 32))}
  figure = make([('net', arrays)], 'caption')
  shown = figure.axes[0].images[0]
  low, high = shown.get_clim()
  assert low < np.quantile(target, 0.01) and high > np.quantile(target, 0.99)
  # Zero stays black in MR.
  assert (
    make([('net', {**arrays, **{k: np.abs(target) for k in ('target', 'clean')}})], '').axes[0].images[0].get_clim()[0]
    == 0
  )


def test_the_first_table_is_narrow_and_its_file_has_all_strengths():
  runs = [SimpleNamespace(rows=rows_of(n), label=n, settings=Settings(), cost={}) for n in 'ab']
  head, lines = comparison.defences(runs, 10, strongest=True)
  assert len(head) == 11 and all(len(line) == 11 for line in lines)
  assert [h for h in head if h.startswith('SSIM lost')] == [
    'SSIM lost, coil_noise 2.5%',
    'SSIM lost, rotation 5 degrees',
  ]
  everything, _ = comparison.defences(runs, 10)
  assert len(everything) == 21 and set(head) <= set(everything)


def write_rows(folder, name, rows):
  (folder / 'rows').mkdir(parents=True)
  (folder / 'rows' / name).write_text(''.join(json.dumps(r) + '\n' for r in rows))
  return folder


@pytest.mark.parametrize('make, words', [
  (lambda p: p / 'none', 'none is no folder'),
  (lambda p: write_rows(p / 'empty', '00000.jsonl', []), 'empty holds no rows of an attack'),
  (lambda p: write_rows(p / 'inv', '00000.measured.jsonl', [{'case': 'a', 'layer': 'b', 'structure': 1}]), 'inv holds no rows of an attack'),
])  # fmt: skip
def test_other_folders_in_a_report_are_named(make, words, tmp_path):
  mine = write_rows(tmp_path / 'mine', '00000.jsonl', rows_of('a'))
  with pytest.raises(results.RunError, match=f'report.runs: .*{re.escape(words)}'):
    attacks.run(mine, [mine], others=[make(tmp_path)], draws=10)


def whole_rows_of(network, **values):
  return [{**dict.fromkeys(results.COLUMNS, 0.0), **row} for row in rows_of(network, **values)]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
  """Two seeds of one config; what is given twice is one, and runs of other attacks on the same network stay one network."""
  folders = [
    write_rows(tmp_path / name, '00000.jsonl', whole_rows_of('net', ssim_region_adv=value))
    for name, value in (('a', 0.9), ('b', 0.5))
  ]
  page = attacks.run(folders[0], folders, others=[folders[0], tmp_path / '.' / 'b'], draws=10)
  lines = list(csv.DictReader((folders[0] / 'summary.csv').open()))
  assert {line['network'] for line in lines} == {'net (a)', 'net (b)'} and {line['n'] for line in lines} == {'2'}
  assert f'{2 * len(rows_of("net"))} rows' in page.read_text()
  noise, turns = (
    write_rows(tmp_path / f'only {name}', '00000.jsonl', [r for r in whole_rows_of('net') if r['perturbation'] == name])
    for name, _ in STRENGTHS
  )
  attacks.run(noise, [noise, turns], draws=10)
  assert {line['network'] for line in csv.DictReader((noise / 'summary.csv').open())} == {'net'}


def test_curves_are_of_slices_that_were_not_trained_on(tmp_path, monkeypatch):
  drawn = []
  curve = attacks.figures.strength_curve
  monkeypatch.setattr(
    attacks.figures,
    'strength_curve',
    lambda rows, *args, **options: drawn.append(rows) or curve(rows, *args, **options),
  )
  rows = whole_rows_of('net', split='train', ssim_region_adv=0.9) + [
    {**row, 'file': f'held {row["file"]}'} for row in whole_rows_of('net', split='val')
  ]
  page = attacks.run(write_rows(tmp_path / 'a', '00000.jsonl', rows), [tmp_path / 'a'], draws=10)
  assert drawn and {row['split'] for rows in drawn for row in rows} == {'val'}
  assert 'slices of the split val' in page.read_text()


def test_provenance_names_the_processor(tmp_path):
  results.Run(tmp_path).write_provenance()
  stored = json.loads((tmp_path / 'provenance.json').read_text())
  assert stored['processor'] and stored['processor'] == results.processor()
  assert stored['cores'] >= 1 and stored['xla_flags'] == os.environ.get('XLA_FLAGS', '')
  assert stored['optimization_level'] == 'UNKNOWN'
