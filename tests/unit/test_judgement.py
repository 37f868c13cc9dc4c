"""Rows from measurements: thresholds by other patients, presence, noise, and what counts as lost."""

import json

import numpy as np
import pytest

from jaxrec.workflows import judgement


def measurement(patient, case, structure, *, contrast=0.0, noise=1.0, gap=0.5, excess=0.5, rng=None, samples=20):
  """Contrasts and maxima of a made-up case: standard normal where there is nothing."""
  rng = rng or np.random.default_rng([patient, case, structure])
  return {
    'case': f'{patient}-{case}', 'layer': 'output', 'structure': structure, 'patient': f'p{patient}', 'diameter': 2.0, 'contrast': 400.0,
    'contrasts': {view: {'2.0': list(contrast + rng.standard_normal(samples if view == 'samples' else 1))} for view in judgement.VIEWS},
    'gaps_near': [gap] * samples, 'noise_near': [noise] * samples, 'noise_near_input': {'2.0': float(abs(rng.standard_normal()))}, 'maxima': list(1 + rng.random(4)), 'excess_near': excess,
  }  # fmt: skip


SCALES = {view: 3.0**i for i, view in enumerate(judgement.VIEWS)}


def test_layers_sizes_and_views_are_judged_by_their_own():
  """Each has contrasts of another scale: a threshold of another one would be crossed always or never."""
  rng, found = np.random.default_rng(0), []
  for patient in range(10):
    for case in range(24):
      for layer, level in (('inner', 1.0), ('output', 50.0)):
        row = measurement(patient, case, 0) | {'layer': layer, 'diameter': (2.0, 4.0)[case % 2]}
        row['contrasts'] = {
          view: {str(d): list(level * d**3 * scale * rng.standard_normal(20)) for d in (2.0, 4.0)} for view, scale in SCALES.items()
        }
        row['noise_near_input'] = {str(d): level * d**3 * abs(rng.standard_normal()) for d in (2.0, 4.0)}
        found.append(row | {'maxima': list(level * (1 + rng.random(4)))})
  rows = judged(found)
  for layer in ('inner', 'output'):
    for size in (2.0, 4.0):
      mine = [r for r in rows if r['layer'] == layer and r['diameter'] == size]
      crossed = {name: np.mean([r[name] for r in mine]) for name in (*(f'present_{v}' for v in judgement.VIEWS), 'noise_crosses')}
      assert crossed == pytest.approx(dict.fromkeys(crossed, 0.05), abs=0.03), (layer, size)
      assert np.mean([r['noise_plausible_input'] for r in mine]) == pytest.approx(0.95, abs=0.05)


def twins(patients=10, cases=12):
  return [measurement(p, c, 0) for p in range(patients) for c in range(cases)]


def judged(found):
  return judgement.judge(found, judgement.by_patient(found, 0.05))


def test_twins_cross_as_often_as_intended():
  rows = judged(twins())
  for name, tolerance in (('present_samples', 0.01), ('present_input', 0.05), ('noise_crosses', 0.03)):
    assert abs(np.mean([r[name] for r in rows]) - 0.05) < tolerance, name
  assert abs(np.mean([r['noise_plausible_input'] for r in rows]) - 0.95) < 0.04
  assert all(r['lost'] == pytest.approx(1 - r['present_samples']) for r in rows)


def test_no_patient_judges_itself():
  found = twins()
  before = judgement.by_patient(found, 0.05)
  for row in found:
    if row['patient'] == 'p3':
      row['contrasts'] = {view: {'2.0': [100.0]} for view in judgement.VIEWS}
      row['maxima'], row['noise_near_input'] = [100.0] * 4, {'2.0': 100.0}
  after = judgement.by_patient(found, 0.05)
  assert after['output', 'p3'] == before['output', 'p3']
  assert after['output', 'p4'].presence['input']['2.0'] == 100 and after['output', 'p4'].family == 100


def test_lost_needs_no_contrast_plausible_noise_and_the_same_output():
  cases = [
    measurement(0, 100, 1, contrast=9.0), measurement(0, 101, 1, contrast=-9.0), measurement(0, 102, 1, contrast=-9.0, noise=50.0, excess=9.0),
    measurement(0, 103, 1, contrast=-9.0, gap=1.1),
  ]  # fmt: skip
  cases[1]['gaps_near'][:5] = [1.1] * 5
  there, gone, absorbed, seen = [r for r in judged([*twins(), *cases]) if r['structure']]
  assert (there['present_samples'], there['lost'], there['altered']) == (1, 0, 0)
  # A quarter of the samples has another output.
  assert (gone['present_samples'], gone['lost'], gone['noise_plausible'], gone['output_kept']) == (0, 0.75, 1, 0.75)
  assert (seen['present_samples'], seen['lost'], seen['noise_plausible'], seen['output_kept']) == (0, 0, 1, 0)
  assert (absorbed['present_samples'], absorbed['lost'], absorbed['noise_plausible'], absorbed['altered']) == (0, 0, 0, 1)
  assert gone['contrast_low'] <= gone['contrast_samples'] <= gone['contrast_high']
  assert judgement.telling([there | {'present_input': 1}, gone | {'present_input': 1}], 1) == [gone['case']]
  # Samples that carry their own noise are not asked for another.
  (alone,) = [r for r in judged([*twins(), cases[1] | {'noise_near': []}]) if r['structure']]
  assert alone['lost'] == 0.75


def test_of_equals_the_kind_that_is_lost_most_is_shown():
  def row(case, diameter, lost, shown=1):
    return {'structure': 1, 'case': case, 'diameter': diameter, 'contrast': 400.0, 'lost': lost, 'present_input': shown}

  found = [row('a', 3.0, 1), row('b', 3.0, 0), row('c', 2.0, 1), row('d', 2.0, 1), row('e', 2.0, 1, shown=0), row('f', 6.0, 0.9)]
  assert judgement.telling(found, 4) == ['d', 'c', 'a', 'f']


def test_measurements_are_read_once_and_too_few_are_named(tmp_path):
  (tmp_path / 'rows').mkdir()
  found = twins(2, 1)
  text = '\n'.join(json.dumps(r) for r in (*found, found[0] | {'excess_near': 7.0}))
  (tmp_path / 'rows' / '00000.measured.jsonl').write_text(text + '\n')
  assert judgement.measured(tmp_path) == found
  with pytest.raises(ValueError, match='needs at least 20 maxima under noise, there are 4'):
    judged(found)
