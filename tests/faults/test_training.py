"""What the training loop does when it is stopped, when a loss is not finite, and when data are slow."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import training
from jaxrec.workflows import workers

FILES = [f'/data/volume_{i}.h5 slice 7' for i in range(6)]


def walk():
  """A task whose loss tells its step, its batch and its key."""

  def step(state, batch, key):
    return {'step': state['step'] + 1, 'sum': state['sum'] + batch.sum()}, {
      'loss': state['sum'] + batch.sum() + jax.random.uniform(key)
    }

  return training.Task(
    lambda key, batch: {'step': jnp.int32(0), 'sum': jnp.float32(0)}, step, lambda *_: {}, lambda state: state
  )


def fit(folder, steps=8, *, batch=lambda i: float(i), **options):
  records, checkpointer = [], training.Checkpointer(folder)
  try:
    state = training.fit(
      walk(), lambda start: (np.full((1, 1), batch(i), np.float32) for i in range(start, steps + 1)), steps, key=jax.random.key(0),
      parallel=training.data_parallel(1), writer=records.append, checkpointer=checkpointer, files=lambda i: [FILES[i], 'other'], **options,
    )  # fmt: skip
    return state, records
  except (training.Diverged, training.Stopped) as error:
    return error, records
  finally:
    checkpointer.close()


def saved(folder):
  return sorted(int(p.name) for p in (folder / 'last').iterdir() if p.name.isdigit())


def test_a_loss_that_is_not_finite_names_its_batch_between_reports(tmp_path):
  error, records = fit(tmp_path, batch=lambda i: np.nan if i == 4 else 1.0, report_every=8, validate_every=3)
  assert isinstance(error, training.Diverged)
  assert 'step 5;' in str(error) and f'read from {FILES[4]}, other' in str(error)
  assert records[-1] == {'step': 5, 'not_finite': [FILES[4], 'other']}
  assert saved(tmp_path) == [3]


def test_a_run_that_was_asked_to_end_goes_on_as_if_it_had_not(tmp_path, monkeypatch):
  """By SIGTERM, while the third step is computed; from two sides, as when a launcher and its workers are ended together."""
  # A machine that stands still for a second would make two requests of it.
  monkeypatch.setattr(workers, '_SAME_REQUEST', 600.0)
  state, records = fit(tmp_path / 'whole', report_every=2)

  def batch(i):
    if i == 3:
      for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    return float(i)

  before = signal.getsignal(signal.SIGTERM)
  with workers.termination() as stop:
    error, first = fit(tmp_path / 'cut', batch=batch, report_every=2, stop=stop)
    assert stop()
  assert signal.getsignal(signal.SIGTERM) == before
  assert isinstance(error, training.Stopped) and 'stopped after step 3' in str(error) and saved(tmp_path / 'cut') == [3]
  again, second = fit(tmp_path / 'cut', report_every=2)
  assert first + second == records
  jax.tree.map(np.testing.assert_array_equal, again, state)


def test_a_later_request_ends_a_run_at_once():
  code = textwrap.dedent("""
    import os, signal, time
    from jaxrec.workflows import workers
    with workers.termination() as stop:
      workers._SAME_REQUEST = 600.0
      for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
      assert stop()
      workers._SAME_REQUEST = 0.0
      print('still here', flush=True)
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(60)
  """)
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, 'still here\n', '')


@pytest.mark.parametrize('parts, validate_every, report_every, step', [
  (1, 1, 20, 1), (1, 3, 20, 1), (2, 2, 2, 2), (2, 6, 3, 3), (2, 4, 2, 2), (2, 8, 20, 8),
])  # fmt: skip
def test_whoever_validates_hears_too(parts, validate_every, report_every, step, tmp_path, monkeypatch):
  """Several processes ask when they report or validate, one asks always."""
  alone = training.data_parallel(1)
  monkeypatch.setattr(training, 'data_parallel', lambda _: alone._replace(parts=parts))
  error, _ = fit(
    tmp_path, stop=lambda: True, validate=lambda state: {'val_ssim': 1.0},
    validate_every=validate_every, report_every=report_every,
  )  # fmt: skip
  assert isinstance(error, training.Stopped) and saved(tmp_path) == [step]


def test_a_run_that_was_asked_to_end_in_its_last_step_ends(tmp_path):
  """What comes after the training does not begin; the same command goes on with it."""
  asked = []
  error, records = fit(tmp_path, stop=lambda: bool(asked), validate=lambda state: asked.append(1) or {'val_ssim': 1.0})
  assert isinstance(error, training.Stopped) and 'stopped after step 8' in str(error) and saved(tmp_path) == [8]
  state, more = fit(tmp_path, validate=lambda state: {'val_ssim': 1.0})
  assert not more and int(state['step']) == 8


def test_without_a_score_the_last_state_is_kept(tmp_path):
  _, records = fit(
    tmp_path, validate=lambda state: {'val_ssim': -float(np.ravel(state['step'])[0])}, validate_every=3, score=None
  )
  assert [r['step'] for r in records if 'val_ssim' in r] == [3, 6, 8]
  assert [p.name for p in (tmp_path / 'best').iterdir() if p.name.isdigit()] == ['8']


@pytest.mark.parametrize('minutes, steps', [(1e-9, [7, 8]), (60.0, [8]), (0.0, [8])])
def test_checkpoints_follow_the_clock_too(minutes, steps, tmp_path):
  fit(tmp_path, checkpoint_minutes=minutes)
  assert saved(tmp_path) == steps


def test_the_time_without_data_is_told(tmp_path):
  def slow(i):
    time.sleep(0.05)
    return float(i)

  for folder, batch, low, high in (('slow', slow, 0.3, 2.0), ('fast', float, 0.0, 0.2)):
    waits = []
    fit(tmp_path / folder, batch=batch, on_wait=waits.append)
    assert low <= sum(waits) <= high
