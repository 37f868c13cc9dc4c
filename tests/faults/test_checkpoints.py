"""Checkpoints: a damaged one has another behind it, a full disk leaves the earlier ones."""

import contextlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from jaxrec.training import Checkpointer, CheckpointError

STATE = {'w': np.random.default_rng(0).normal(size=(300, 100)).astype(np.float32), 'step': np.int32(0)}


def state(step):
  return {**STATE, 'step': np.int32(step)}


@contextlib.contextmanager
def opened(folder):
  checkpointer = Checkpointer(folder)
  try:
    yield checkpointer
  finally:
    checkpointer.close()


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """Two checkpoints, at steps 3 and 6, of which the first is the best."""
  folder = tmp_path_factory.mktemp('run') / 'checkpoints'
  with opened(folder) as checkpointer:
    checkpointer.save_best(3, state(3), 0.5)
    for step in (3, 6):
      checkpointer.save_last(step, state(step))
  return folder


@pytest.fixture
def folder(written, tmp_path):
  return shutil.copytree(written, tmp_path / 'checkpoints')


def largest(path):
  return max((p for p in path.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


# How the folder of one checkpoint is damaged.
DAMAGE = {
  'a bit': lambda path: flip(largest(path)),
  'half a file': lambda path: largest(path).write_bytes(largest(path).read_bytes()[:-1000]),
  'a file is gone': lambda path: largest(path).unlink(),
  'no metadata': lambda path: (path / 'state/_METADATA').unlink(),
  'empty metadata': lambda path: (path / 'state/_METADATA').write_bytes(b''),
  'no arrays': lambda path: shutil.rmtree(path / 'state'),
  'digests': lambda path: (path / 'digests.json').write_text('{'),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_the_checkpoint_before_a_damaged_one_is_taken(kind, folder, capsys):
  DAMAGE[kind](folder / 'last/6')
  with opened(folder) as checkpointer:
    assert checkpointer.latest_step() == 3
    np.testing.assert_equal(checkpointer.restore(STATE), state(3))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(
      rf'^warning: {folder}/last: checkpoint 6 \(.*\) is damaged.* from 3, 3 steps are lost', lines[0]
    )
    checkpointer.save_last(6, state(6))
  with opened(folder) as checkpointer:
    np.testing.assert_equal(checkpointer.restore(STATE), state(6))
  assert not capsys.readouterr().err


@pytest.mark.parametrize(
  'spoil',
  [flip, lambda path: path.write_bytes(b''), lambda path: path.write_bytes(b'\xff{'), lambda path: path.unlink()],
)
def test_the_file_that_has_no_digest_is_not_needed(spoil, folder, capfd):
  """Orbax's own time stamps."""
  for step in (3, 6):
    spoil(folder / f'last/{step}/_CHECKPOINT_METADATA')
  with opened(folder) as checkpointer:
    np.testing.assert_equal(checkpointer.restore(STATE), state(6))
    checkpointer.save_last(9, state(9))
    np.testing.assert_equal(checkpointer.restore(STATE), state(9))
  assert not capfd.readouterr().err


@pytest.mark.parametrize('which, steps', [('last', (3, 6)), ('best', (3,))])
def test_nothing_is_taken_where_all_are_damaged(which, steps, folder):
  for step in steps:
    flip(largest(folder / f'{which}/{step}'))
  with opened(folder) as checkpointer:
    for read in (
      lambda: checkpointer.restore(STATE, which=which),
      checkpointer.latest_step if which == 'last' else checkpointer.best_score,
    ):
      with pytest.raises(
        CheckpointError,
        match=f'^{folder}/{which}: every checkpoint is damaged .* has changed.*; delete {folder} to train',
      ) as caught:
        read()
      assert '\n' not in str(caught.value)
  # What the message advises.
  shutil.rmtree(folder)
  with opened(folder) as checkpointer:
    assert checkpointer.latest_step() is None and checkpointer.best_score() == -float('inf')


def test_a_checkpoint_without_digests_is_read_or_named(folder):
  for step in (3, 6):
    (folder / f'last/{step}/digests.json').unlink()
  with opened(folder) as checkpointer:
    np.testing.assert_equal(checkpointer.restore(STATE), state(6))
  largest(folder / 'last/6').unlink()
  with (
    opened(folder) as checkpointer,
    pytest.raises(CheckpointError, match=f'^{folder}/last/6: is damaged .*; delete it') as caught,
  ):
    checkpointer.restore(STATE)
  assert '\n' not in str(caught.value)


@contextlib.contextmanager
def full_disk(limit=20_000):
  """A limit on the size of files acts as a full disk does: a write fails midway."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize('which', ['last', 'best'])
def test_a_full_disk_leaves_the_earlier_checkpoints(which, folder, capfd):
  def save(checkpointer):
    (checkpointer.save_last(9, state(9)) if which == 'last' else checkpointer.save_best(9, state(9), 0.7))
    checkpointer.wait()

  kept = sorted(folder.glob('*/*'))
  with opened(folder) as checkpointer, full_disk():
    with pytest.raises(
      CheckpointError, match=f'^{folder}/{which}/9: cannot be written .*; free the disk, then'
    ) as caught:
      save(checkpointer)
  assert '\n' not in str(caught.value) and not capfd.readouterr().err
  assert sorted(folder.glob('*/*')) == kept
  with opened(folder) as checkpointer:
    assert (checkpointer.latest_step(), checkpointer.best_step()) == (6, 3)
    save(checkpointer)
    np.testing.assert_equal(checkpointer.restore(STATE, which=which), state(9))


def test_the_newest_state_is_never_ahead_of_the_best(folder):
  """A validation is not repeated: what it found best would be gone."""
  with opened(folder) as checkpointer:
    with full_disk():
      checkpointer.save_best(9, state(9), 0.7)
      with pytest.raises(CheckpointError, match=f'^{folder}/best/9: cannot be written'):
        checkpointer.save_last(9, state(9))
  with opened(folder) as checkpointer:
    assert (checkpointer.latest_step(), checkpointer.best_step()) == (6, 3)


def test_what_a_kill_left_half_written_is_removed(folder):
  left = folder / 'last/9.orbax-checkpoint-tmp'
  shutil.copytree(folder / 'last/6', left)
  with opened(folder) as checkpointer:
    assert checkpointer.latest_step() == 6 and left.exists()
    checkpointer.save_last(9, state(9))
  assert not left.exists()


def test_the_next_call_tells_what_could_not_be_written(folder, capfd):
  kept = sorted(folder.glob('*/*'))
  with opened(folder) as checkpointer:
    with full_disk():
      checkpointer.save_last(9, state(9))
      checkpointer.save_best(9, state(9), 0.7)
      for again, name in (
        (lambda: checkpointer.save_last(12, state(12)), 'last/9'),
        (checkpointer.best_score, 'best/9'),
      ):
        with pytest.raises(CheckpointError, match=f'^{folder}/{name}: cannot be written .*; free the disk, then'):
          again()
    assert sorted(folder.glob('*/*')) == kept and not capfd.readouterr().err
    checkpointer.save_last(12, state(12))
  with opened(folder) as checkpointer:
    assert (checkpointer.latest_step(), checkpointer.best_step()) == (12, 3)


def test_a_checkpoint_has_its_digests_as_soon_as_it_has_its_name(tmp_path):
  """Looked at all the time while it is written."""
  big = {'w': np.random.default_rng(0).normal(size=(200, 100, 100)).astype(np.float32)}
  seen = set()
  with opened(tmp_path) as checkpointer:
    for step in (1, 2, 3):
      checkpointer.save_last(step, big)
      end = time.monotonic() + 60
      while not (tmp_path / f'last/{step}').exists() and time.monotonic() < end:
        pass
      seen.add((tmp_path / f'last/{step}/digests.json').exists())
    checkpointer.wait()
    assert seen == {True} and sorted(p.name for p in (tmp_path / 'last').iterdir()) == ['2', '3']
  with opened(tmp_path) as checkpointer:
    np.testing.assert_equal(checkpointer.restore(big), big)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path):
  code = textwrap.dedent("""
    import os, signal, sys, threading, time
    import numpy as np
    from jaxrec.training import Checkpointer
    state = lambda step: {'w': np.full((400, 100, 100), step, np.float32), 'step': np.int32(step)}
    checkpointer = Checkpointer(sys.argv[1])
    checkpointer.save_last(1, state(1))
    checkpointer.wait()
    checkpointer.save_last(2, state(2))
    time.sleep(float(sys.argv[2]))
    os.kill(os.getpid(), signal.SIGKILL)
  """)
  for i, delay in enumerate((0.0, 0.01, 0.05, 0.2)):
    folder = tmp_path / str(i)
    done = subprocess.run([sys.executable, '-c', code, str(folder), str(delay)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with opened(folder) as checkpointer:
      step = checkpointer.latest_step()
      found = checkpointer.restore({'w': np.zeros((400, 100, 100), np.float32), 'step': np.int32(0)})
      assert step in (1, 2) and found['step'] == step and np.all(found['w'] == step)
