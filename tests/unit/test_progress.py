"""What long work will take is said once, and not by the step that compiles."""

import pytest

import jaxrec
from jaxrec import networks, progress
from jaxrec.data import synthetic


@pytest.fixture
def clock(monkeypatch):
  """Time that passes only where a test says so."""
  now = [0.0]
  monkeypatch.setattr(progress.time, 'perf_counter', lambda: now[0])

  def wait(seconds):
    now[0] += seconds

  return wait


def run(steps, remaining, clock):
  for done, seconds in enumerate(steps, 1):
    clock(seconds)
    remaining.step(done)


def test_the_rest_is_told_once_without_the_first_step(clock, capsys):
  run([90, 30, 30, 30, 30], progress.Remaining('train', 'step', 6, note=', without validation'), clock)
  assert capsys.readouterr().err == 'train: 4 more steps: about 2 min, without validation\n'


def test_short_steps_are_averaged_over_a_second(clock, capsys):
  run([9, *[0.25, 0.5] * 3], progress.Remaining('attack', 'batch', 404), clock)
  assert capsys.readouterr().err == 'attack: 400 more batches: about 2 min\n'


def test_what_belongs_to_no_step_is_left_out(clock, capsys):
  remaining = progress.Remaining('train', 'step', 402)
  remaining.leave_out(7)
  run([9], remaining, clock)
  clock(60)
  remaining.leave_out(60)
  clock(1.5)
  remaining.step(2)
  assert capsys.readouterr().err == 'train: 400 more steps: about 10 min\n'


@pytest.mark.parametrize('steps, silent', [([50, 50], False), ([5, 0.1, 0.1], False), ([50] * 5, True), ([], False)])
def test_nothing_is_said_of_what_is_over_or_of_other_processes(steps, silent, clock, capsys):
  run(steps, progress.Remaining('detect', 'patient', max(len(steps), 1), silent=silent), clock)
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize(
  'seconds, words', [(0.4, '0 s'), (99, '99 s'), (150, '2 min'), (5990, '100 min'), (9000, '2.5 h')]
)
def test_durations_are_as_people_say_them(seconds, words):
  assert progress.duration(seconds) == words


def test_an_audit_says_what_the_rest_of_it_takes(monkeypatch, capsys, tmp_path):
  monkeypatch.setattr(progress, '_SECONDS', 0.0)
  scans = [synthetic.scan(seed, rows=32, cols=32, coils=2) for seed in range(4)]
  net = jaxrec.network(lambda scan: networks.zero_filled(scan)[0])
  noise = jaxrec.Sweep(jaxrec.coil_noise, (0.02,), jaxrec.pgd(num_steps=1))
  # The second time all rows are there.
  for said in (1, 0):
    jaxrec.audit(net, scans, noise, aims=('image',), folder=tmp_path)
    assert capsys.readouterr().err.count('attack: 2 more batches: about ') == said
