"""Tables of the report on samples: what they show, and how networks compare."""

import types

from jaxrec.workflows import invariance_report

IGNORED = {
  'layer': 'output', 'diameter': 2.0, 'contrast': 400.0, 'structure': 1, 'lost': 0.9, 'altered': 1, 'moved': 0.2, 'moved_near': 0.5, 'moved_beyond': 0, 'gap': 0.3, 'gap_near': 0.4,
  'distance_fresh': 1.0, 'distance_mismatched': 5.0, 'present_input': 1.0, 'present_output': 0.2, 'present_reconstruction': 0.1, 'present_samples': 0.1, 'contrast_true': 0.8,
  'detectability_input': 2.0, 'detectability_output': 1.0,
}  # fmt: skip


def analysis(label='f', twin=None, **changes):
  rows = []
  for patient in range(8):
    own = {**IGNORED, 'patient': f'p{patient}', 'case': f'c{patient}'}
    rows += [{**own, **changes}, {**own, 'structure': 0, 'altered': 0, **(twin or {})}]
  return types.SimpleNamespace(label=label, rows=rows, layers=['output'], unit='mm', ct=True, thresholds={'output': {'alpha': 0.05}})


def test_classes_show_means_of_the_cases_and_no_verdict():
  head, (line,) = invariance_report.classes([analysis(moved_beyond=1, twin={'altered': 1})], 200)
  found = dict(zip(head, line))
  assert not {'ignored', 'A', 'B', 'confirmed'} & set(head)
  assert (found['network'], found['size'], found['contrast'], found['n']) == ('f', '2 mm', '400 HU', '8')
  assert found['lost'] == '0.90 (0.90 to 0.90)' and found['output moves'] == '1.00 (1.00 to 1.00)'
  assert (found['in input'], found['in output'], found['in samples'], found['changed there'], found['in twin']) == ('1.00', '0.20', '0.10', '1.00', '1.00')


def test_the_blindest_network_comes_first_and_what_no_input_shows_does_not_count():
  sees, blind = analysis('sees', lost=0.2), analysis('blind', lost=0.8)
  for row in sees.rows[:8:2]:
    row.update(lost=1.0, present_input=0.0)
  _, lines = invariance_report.ranking([sees, blind], 200)
  assert [line[0] for line in lines] == ['blind', 'sees'] and lines[1][2].startswith('0.20')
  # The four structures that both inputs show.
  assert lines[1][4] == lines[0][6] == '4' and lines[0][5].startswith('0.60') and lines[1][5] == lines[1][6] == ''


def test_networks_are_compared_on_the_same_structures():
  sees, blind = analysis('sees'), analysis('blind')
  for i, (few, many) in enumerate(zip(sees.rows, blind.rows)):
    few['lost'], many['lost'] = 0.1 * (i // 2), 0.1 * (i // 2) + 0.05
  _, (first, second) = invariance_report.ranking([sees, blind], 200)
  assert first[0] == 'blind' and first[5] == '0.05 (0.05 to 0.05)'
  upper, lower = float(second[2].split()[-1][:-1]), float(first[2].split()[1][1:])
  assert lower < upper
  # Of other layers of the same network nothing is said, nor of cases that only share their names.
  inner = types.SimpleNamespace(**{**vars(blind), 'layers': ['inner'], 'rows': [{**r, 'layer': 'inner', 'lost': r['lost'] - 0.01} for r in blind.rows]})
  assert [line[5][:4] for line in invariance_report.ranking([sees, blind, inner], 200)[1]] == ['0.05', '0.04', '']
  for row in sees.rows:
    row['contrast_true'] = 0.7
  assert invariance_report.ranking([sees, blind], 200)[1][0][5:] == ['', '']


def test_consistency_is_over_fresh_noise():
  head, (line,) = invariance_report.consistency([analysis_with_distances()], 200)
  found = dict(zip(head, line))
  assert found['gap'].startswith('0.300') and found['mismatched over fresh'].startswith('5.00')
  assert found['gap near structures'].startswith('0.400')


def analysis_with_distances():
  runs = analysis()
  for row in runs.rows:
    row.update(gap_near=0.4 * row['structure'], gap_decoded=0.8, distance_samples=0.3, distance_reconstruction=0.5, diversity=0.1, noise=0.2)
  return runs
