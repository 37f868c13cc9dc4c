"""Run folders: one writer, and damaged files are named with what to do."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import unet_8x
from jaxrec import results
from jaxrec.experiments import build
from jaxrec.reports import attacks, comparison
from jaxrec.reports.source import Source
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
  process = subprocess.Popen(
    [sys.executable, '-c', HOLDER, str(tmp_path / 'run')], cwd=ROOT, stdout=subprocess.PIPE, text=True
  )
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
  assert re.search(
    rf'{folder}: is in use by process {holder.pid} on .*, started 20.*another workdir.*delete {folder}/.lock', lines[0]
  )
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


def row(slice_index):
  return {
    **dict.fromkeys(results.COLUMNS, 0.0),
    'file': 'a',
    'slice': slice_index,
    'annotation': 0,
    'perturbation': 'noise',
    'attacked': 'image',
    'strength': 0.1,
    'network': 'n',
  }


def full_folder(folder):
  """A run folder with something in every file that is read again."""
  run = results.Run(folder)
  run.check_config(unet_8x.get_config('smoke').to_dict())
  run.append([row(i) for i in range(3)])
  results.append_jsonl(folder / 'metrics.jsonl', [{'step': i, 'loss': 1.0} for i in range(3)])
  results.write_text(folder / 'cost.json', json.dumps({'steps': 2, 'seconds': 1.0}))
  results.write_text(folder / 'provenance.json', '{}')
  results.write_text(folder / 'skipped-00000.json', '{}')
  run.save_arrays('x', {'image': np.ones((20, 20))})
  run.compact()
  return run


def spoil_line(path):
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(lines[0] + lines[1][:9] + b'\n' + lines[2])


def other_line(path):
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(lines[0] + b'[]\n' + lines[2])


def without(section, option):
  """Takes an option out of `config.json`."""

  def spoil(path):
    stored = json.loads(path.read_text())
    del stored[section][option]
    path.write_text(json.dumps(stored))

  return spoil


def halve(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def images(run):
  with results.open_images(run.folder) as file:
    return file['x/image'][()]


# file, how it is damaged, what reads it, words
DAMAGE = {
  'middle of rows': ('rows/00000.jsonl', spoil_line, lambda run: run.rows(), 'line 2 is damaged.*delete the line.*computed again'),
  'list among rows': ('rows/00000.jsonl', other_line, lambda run: run.rows(), 'line 2 is damaged.*holds a list'),
  'row without key': ('rows/00000.jsonl', lambda p: p.write_text('{"file": "a"}\n'), lambda run: run.rows(), 'line 1 is damaged.*slice'),
  'rows of the report': ('rows/00000.jsonl', spoil_line, lambda run: Source(run.folder), 'line 2 is damaged'),
  'row without model': ('rows/00000.jsonl', lambda p: p.write_text(p.read_text().replace('"model"', '"modfl"')), lambda run: Source(run.folder), 'line 1 is damaged .*model.*delete the line'),
  'middle of metrics': ('metrics.jsonl', spoil_line, lambda run: results.cut_metrics(run.folder / 'metrics.jsonl', 1), 'line 2 is damaged.*record is lost'),
  'no step in metrics': ('metrics.jsonl', lambda p: p.write_text('{"step": null, "loss": 1}\n'), lambda run: results.cut_metrics(run.folder / 'metrics.jsonl', 1), 'line 1 is damaged.*record is lost'),
  'binary metrics': ('metrics.jsonl', lambda p: p.write_bytes(b'\xff\xfe\n'), lambda run: results.read_jsonl(run.folder / 'metrics.jsonl'), 'line 1 is damaged'),
  'half cost': ('cost.json', halve, lambda run: comparison.cost_of(run.folder), 'is damaged.*delete it.*time of earlier runs'),
  'half provenance': ('provenance.json', halve, lambda run: Source(run.folder), 'is damaged.*delete it.*writes it again'),
  'half skipped': ('skipped-00000.json', halve, lambda run: attacks._bad_input(None, [run]), 'is damaged.*delete it'),
  'config a list': ('config.json', lambda p: p.write_text('[1]'), lambda run: run.check_config({'seed': 0}), 'it holds a list.*put back'),
  'half config': ('config.json', halve, lambda run: run.check_config({'seed': 0}), 'is damaged.*put back'),
  'config of another run': ('config.json', lambda p: p.write_text('[1]'), lambda run: build.stored(run.folder), 'it holds a list'),
  'config without model': ('config.json', lambda p: p.write_text('{"data": {}}'), lambda run: build.stored(run.folder), 'no section model'),
  'config without option': ('config.json', without('train', 'batch_size'), lambda run: build.stored(run.folder), 'train.batch_size: is missing'),
  'config without task': ('config.json', lambda p: p.write_text(p.read_text().replace('"supervised"', '[]')), lambda run: build.stored(run.folder), 'train.task.name: .* is unknown'),
  'half array': ('arrays/x.npz', halve, lambda run: run.compact_arrays(), 'is damaged.*delete it to go on without'),
  'empty array': ('arrays/x.npz', lambda p: p.write_bytes(b''), lambda run: run.compact_arrays(), 'is damaged.*delete it to go on without'),
  'half images': ('images.h5', halve, images, 'is damaged.*delete it and run the attack stage'),
  'no images': ('images.h5', lambda p: p.write_bytes(b'x' * 99), lambda run: Source(run.folder).sampling(), 'is damaged.*delete it'),
}  # fmt: skip


@pytest.mark.parametrize('kind', DAMAGE)
def test_a_damaged_file_is_named_with_what_to_do(kind, tmp_path):
  name, spoil, read, words = DAMAGE[kind]
  run = full_folder(tmp_path / 'run')
  path = run.folder / name
  spoil(path)
  before = {p: p.read_bytes() for p in run.folder.rglob('*') if p.is_file()}
  with pytest.raises(results.RunError, match=words) as caught:
    read(run)
  assert str(caught.value).startswith(f'{path}: ') and '\n' not in str(caught.value)
  assert {p: p.read_bytes() for p in run.folder.rglob('*') if p.is_file()} == before


def test_what_the_messages_advise_works(tmp_path):
  run = full_folder(tmp_path / 'run')
  for name in ('images.h5', 'cost.json', 'provenance.json', 'config.json'):
    (run.folder / name).unlink()
  run.check_config({'seed': 0})
  run.compact()
  np.testing.assert_array_equal(images(run), 1)
  assert comparison.cost_of(run.folder) == {} and len(run.rows()) == 3


FULL_DISK = """
import resource, signal, sys
import numpy as np
from jaxrec import results
run = results.Run(sys.argv[1])
run.save_arrays('y', {'image': np.random.default_rng(0).normal(size=(100, 100))})
# A limit on the size of files acts as a full disk does: a write fails midway.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
try:
  run.compact_arrays()
except results.RunError as error:
  print(error)
"""


def test_a_disk_that_fills_while_pictures_are_compacted(tmp_path):
  run = full_folder(tmp_path / 'run')
  before = (run.folder / 'images.h5').read_bytes()
  done = subprocess.run([sys.executable, '-c', FULL_DISK, str(run.folder)], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, (done.returncode, done.stderr)
  assert re.fullmatch(rf'{run.folder}/images.h5: cannot be written .*free the disk.*\n', done.stdout)
  assert (run.folder / 'images.h5').read_bytes() == before and not list(run.folder.rglob('*.tmp'))
  run.compact()
  assert images(run).shape == (20, 20)


@pytest.mark.parametrize('name', ['config.json', 'rows/00000.jsonl', 'provenance.json'])
def test_the_launcher_gives_one_line_and_exit_code_2(name, tmp_path, capsys, monkeypatch):
  folder = tmp_path / 'run'
  arguments = ['--config=configs/unet_8x.py:smoke', f'--workdir={folder}', '--config.stages=("report",)']
  code, captured = run_main(capsys, monkeypatch, arguments)
  assert code == 2 and 'has no rows to report' in captured.err
  results.Run(folder).append([row(i) for i in range(3)])
  (folder / name).write_text('[1]\n')
  code, captured = run_main(capsys, monkeypatch, arguments)
  lines = captured.err.splitlines()
  assert (
    code == 2 and len(lines) == 1 and lines[0].startswith(f'error: {folder / name}: ') and 'holds a list' in lines[0]
  )
  assert (folder / name).read_text() == '[1]\n'
