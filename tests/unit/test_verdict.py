"""The report's verdict on a class of structures: each criterion counts, and only together."""

import types

import pytest

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


def verdict(**changes):
  head, (line,) = invariance_report.classes([analysis(**changes)], 200)
  return dict(zip(head, line))


def test_a_class_that_meets_all_criteria_is_ignored():
  line = verdict()
  assert [line[k] for k in ('ignored', 'shown', 'B', 'A', 'confirmed')] == ['yes'] * 5
  assert (line['network'], line['size'], line['contrast'], line['n']) == ('f', '2 mm', '400 HU', '8')


@pytest.mark.parametrize('column, changes', [
  ('shown', dict(present_input=0.1)), ('B', dict(lost=0.5)), ('A', dict(altered=0)), ('A', dict(twin={'altered': 1})),
  ('confirmed', dict(moved_beyond=1)), ('confirmed', dict(detectability_output=2.1)),
  (None, dict(gap=1.1)), (None, dict(gap_near=1.1)), (None, dict(distance_mismatched=0.9)),
])  # fmt: skip
def test_every_criterion_counts(column, changes):
  line = verdict(**changes)
  assert line['ignored'] == 'no'
  assert [k for k in ('shown', 'B', 'A', 'confirmed') if line[k] == 'no'] == ([column] if column else [])


def test_bounds_count_and_not_means():
  runs = analysis()
  for row in runs.rows[:6]:
    # Three of eight patients keep the structure: the mean is above a half, its interval is not.
    row['lost'] = 0.0
  head, (line,) = invariance_report.classes([runs], 200)
  found = dict(zip(head, line))
  assert found['lost'].startswith('0.56') and found['B'] == found['ignored'] == 'no'


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
