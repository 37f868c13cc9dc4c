"""Run folders: one writer, and damaged files are named with what to do."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrec import results
from tests.e2e.test_main import run_main

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from jaxrec import results
with results.exclusive(sys.argv[1]):
  print('held', flush=True)
  time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
  """Another process that writes to the folder `run`."""
  process = subprocess.Popen([sys.executable, '-c', HOLDER, str(tmp_path / 'run')], cwd=ROOT, stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == 'held\n'
  yield process
  process.kill()
  process.wait()


def test_a_second_run_is_refused_until_the_first_is_gone(holder, tmp_path, capsys, monkeypatch):
  folder = tmp_path / 'run'
  before = sorted(folder.rglob('*'))
  code, captured = run_main(capsys, monkeypatch, ['--config=configs/unet_8x.py:smoke', f'--workdir={folder}'])
  lines = [line for line in captured.err.splitlines() if line.startswith('error: ')]
  assert code == 2 and len(lines) == 1
  assert re.search(rf'{folder}: is in use by process {holder.pid} on .*, started 20.*another workdir.*delete {folder}/.lock', lines[0])
  assert sorted(folder.rglob('*')) == before
  # Other processes of the same run leave the lock to process 0.
  with results.exclusive(folder, part=1):
    pass
  os.kill(holder.pid, signal.SIGKILL)
  holder.wait()
  with results.exclusive(folder):
    assert f'process {os.getpid()} on ' in (folder / '.lock').read_text()
  with results.exclusive(folder):
    pass


def test_a_stale_lock_can_be_deleted(holder, tmp_path):
  (tmp_path / 'run' / '.lock').unlink()
  with results.exclusive(tmp_path / 'run'):
    pass


def test_a_disk_without_locks_is_said(tmp_path, capsys, monkeypatch):
  def unsupported(*_):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr(results.fcntl, 'flock', unsupported)
  with results.exclusive(tmp_path / 'run'):
    pass
  assert 'its disk has no locks' in capsys.readouterr().err


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
  for name in ('images.h5.17.tmp', 'arrays/a.17.tmp', 'rows/00000.jsonl.17.tmp', 'rows/00000.jsonl', 'arrays/a.npz'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b'')
  with results.exclusive(tmp_path, part=1):
    assert len(list(tmp_path.rglob('*.tmp'))) == 3
  with results.exclusive(tmp_path):
    assert not list(tmp_path.rglob('*.tmp'))
  assert (tmp_path / 'rows/00000.jsonl').exists() and (tmp_path / 'arrays/a.npz').exists()
