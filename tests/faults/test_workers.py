"""Several processes of one run: a fault of one ends all, and says which."""

import concurrent.futures
import contextlib
import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import pytest

from jaxrec import program
from jaxrec.workflows import workers

ROOT = Path(__file__).parents[2]

# In place of Python: notes its process id and does as the case asks. `exec` keeps the id when it waits.
STAND_IN = """#!/usr/bin/env bash
for argument in "$@"; do case "$argument" in --process_id=*) number="${argument#*=}" ;; esac; done
echo "$JAX_LOCAL_DEVICE_IDS" > "$NOTES/$number.card"
echo "$$" > "$NOTES/$number.part" && mv "$NOTES/$number.part" "$NOTES/$number"
behaviour="B$number"
case "${!behaviour}" in
  obey) exec sleep 60 ;;
  stubborn) trap '' TERM; while :; do sleep 0.1; done ;;
  fail) sleep 0.3; exit 3 ;;
  done) exit 0 ;;
esac
"""


def alive(pid):
  """Whether a process runs; one that has ended but was not waited for does not."""
  try:
    return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False


def until(condition, seconds=20):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'waited in vain'
    time.sleep(0.02)


# what worker 0 and worker 1 do, what happens (None; a signal for the launcher; a worker and a signal for it), exit code, words
CASES = {
  'both are done': ('done', 'done', None, 0, []),
  'one fails': ('obey', 'fail', None, 3, ['worker 1: failed with exit code 3', 'worker 0: ended by SIGTERM, as asked']),
  'one is done, one fails': ('done', 'fail', None, 3, ['worker 1: failed with exit code 3']),
  'one is killed': ('obey', 'obey', (1, signal.SIGKILL), 137, ['worker 1: ended by SIGKILL', 'worker 0: ended by SIGTERM, as asked']),
  'one is killed, one stubborn': ('stubborn', 'obey', (1, signal.SIGKILL), 137, ['worker 1: ended by SIGKILL', '0: still there after 1 s', 'worker 0: ended by SIGKILL']),
  'launcher terminated': ('obey', 'obey', signal.SIGTERM, 143, ['stopped by SIGTERM; the same command goes on', 'worker 0: ended by SIGTERM', 'worker 1: ended by SIGTERM']),
  'launcher interrupted': ('obey', 'stubborn', signal.SIGINT, 130, ['stopped by SIGINT', 'worker 0: ended by SIGTERM', 'worker 1: ended by SIGKILL']),
  'terminal closed': ('obey', 'obey', signal.SIGHUP, 129, ['stopped by SIGHUP']),
}  # fmt: skip

# A shell that was started with a signal ignored, as by nohup or in the background, cannot trap it.
LISTENING = 'import os, signal, sys; [signal.signal(s, signal.SIG_DFL) for s in (signal.SIGINT, signal.SIGHUP)]; os.execvp(sys.argv[1], sys.argv[1:])'


@pytest.mark.parametrize('case', CASES)
def test_no_worker_outlives_the_others(case, tmp_path):
  first, second, event, code, words = CASES[case]
  stand_in = tmp_path / 'python'
  stand_in.write_text(STAND_IN)
  stand_in.chmod(0o755)
  env = {
    **os.environ,
    'PYTHON': str(stand_in),
    'PORT': '1',
    'PROCESSES': '2',
    'GRACE': '1',
    'NOTES': str(tmp_path),
    'B0': first,
    'B1': second,
  }
  launcher = subprocess.Popen(
    [sys.executable, '-c', LISTENING, 'bash', 'launch/local_processes.sh', '--config=x'],
    cwd=ROOT,
    env=env,
    stderr=subprocess.PIPE,
    text=True,
  )
  until(lambda: (tmp_path / '0').exists() and (tmp_path / '1').exists())
  pids = [int((tmp_path / n).read_text()) for n in '01']
  time.sleep(0.1)
  if isinstance(event, tuple):
    os.kill(pids[event[0]], event[1])
  elif event:
    launcher.send_signal(event)
  _, err = launcher.communicate(timeout=20)
  assert launcher.returncode == code, err
  assert all(word in err for word in words), err
  assert not any(map(alive, pids))
  assert [(tmp_path / f'{n}.card').read_text() for n in '01'] == ['0\n', '1\n']


@pytest.mark.parametrize('program, code, words', [
  (['-m', 'jaxrec.main', '--config=unet_8x:smoke'], 130, 'stopped while loading; give the same command again'),
  (['-m', 'jaxrec.experiments.denoise', 'run', 'in', 'out'], 130, 'stopped while loading; give the same command again'),
  (['-m', 'jaxrec.experiments.verify_data', 'data'], 130, 'stopped while loading; give the same command again'),
  (['-c', 'import jaxrec'], -signal.SIGINT, 'KeyboardInterrupt'),
], ids=['run', 'denoise', 'verify', 'somebody who imports the package'])  # fmt: skip
def test_ctrl_c_while_libraries_load(program, code, words, tmp_path):
  (tmp_path / 'jax.py').write_text('import time\nprint("loading", flush=True)\ntime.sleep(60)\n')
  env = {**os.environ, 'PYTHONPATH': f'{tmp_path}:{ROOT}'}
  started = subprocess.Popen(
    [sys.executable, *program], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
  )  # fmt: skip
  assert started.stdout.readline() == 'loading\n'
  started.send_signal(signal.SIGINT)
  _, err = started.communicate(timeout=20)
  assert started.returncode == code and words in err, err
  assert code < 0 or len(err.split('\n')) == 3, err


SWALLOWS = """
import gc, signal, sys, time
from jaxrec import program

def collected(phase, _):
  if phase == 'start':
    gc.callbacks.clear()
    signal.raise_signal(signal.SIGINT)

def main(_):
  gc.callbacks[:] = [collected]
  gc.collect()
  time.sleep(60)
  return 0

sys.exit(program.ended(main, [], 'begin again'))
"""


def test_ctrl_c_in_a_callback_of_the_garbage_collector():
  """Python swallows what is raised there."""
  done = subprocess.run(
    [sys.executable, '-c', SWALLOWS], env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, timeout=25,
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
  )  # fmt: skip
  assert (done.returncode, done.stderr) == (130, '\nstopped; begin again\n')


def test_what_nobody_waits_for_any_more_is_silent(monkeypatch):
  """A write that was given up tells its loop, which is closed; anything else that is swallowed is shown."""
  shown = []
  monkeypatch.setattr(sys, '__unraisablehook__', lambda unraisable: shown.append(str(unraisable.exc_value)))
  for words in ('Event loop is closed', 'other'):
    program._swallowed(types.SimpleNamespace(exc_type=RuntimeError, exc_value=RuntimeError(words)))
  assert shown == ['other']


WORKER = (
  'import time; from jaxrec.workflows import workers; workers.join(None); print("ready", flush=True); time.sleep(60)'
)


@pytest.mark.parametrize('start', ['{} &', 'bash -c "{}; true" &'], ids=['direct', 'through a wrapper'])
def test_a_worker_without_launcher_ends_itself(start, tmp_path):
  """After `kill -9` of the launcher, which nobody can trap."""
  (tmp_path / 'worker.py').write_text(
    f'import os\nopen({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))\n{WORKER}'
  )
  line = start.format(f'{sys.executable} {tmp_path}/worker.py')
  launcher = subprocess.Popen(
    ['bash', '-c', f'export JAXREC_LAUNCHER=$$; {line} wait'], cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  assert launcher.stdout.readline() == 'ready\n'
  pid = int((tmp_path / 'pid').read_text())
  launcher.kill()
  launcher.wait()
  until(lambda: not alive(pid))
  assert f'the launcher (process {launcher.pid}) is gone' in launcher.stderr.read()


def test_a_worker_that_starts_too_late_ends_itself():
  gone = subprocess.Popen(['true'])
  gone.wait()
  done = subprocess.run(
    [sys.executable, '-c', WORKER],
    cwd=ROOT,
    env={**os.environ, 'JAXREC_LAUNCHER': str(gone.pid)},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 2 and 'is gone' in done.stderr


@pytest.fixture
def address():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return f'localhost:{free.getsockname()[1]}'


def met(address, count, numbers, *, limit=20.0):
  """What the processes with these numbers end with when they meet: nothing, or an error."""

  def meet(number):
    try:
      return workers._meet(address, count, number, patience=0.3, limit=limit)
    except workers.Missing as error:
      return error

  with concurrent.futures.ThreadPoolExecutor(len(numbers)) as pool:
    return list(pool.map(meet, numbers))


def test_processes_meet_and_leave_the_port_free(address, capsys):
  for _ in range(3):
    assert met(address, 3, [2, 0, 1]) == [None] * 3
  with socket.create_server(('', int(address.split(':')[1]))):
    pass
  assert not capsys.readouterr().err


@pytest.mark.parametrize('numbers, said, ends', [
  ([0], ['waiting for processes 1, 2 of 3'], ['processes 1, 2 of 3: did not come; start all']),
  ([0, 2], ['waiting for process 1 of 3', 'waiting for the other processes (process 0 says which)'], ['process 1 of 3: did not come', 'the other processes .*: did not come|process 0 at']),
  ([1], ['waiting for process 0 at localhost:'], ['process 0 at localhost:.*: did not come']),
])  # fmt: skip
def test_a_missing_process_is_named(numbers, said, ends, address, capsys):
  found = met(address, 3, numbers, limit=1.0)
  assert all(isinstance(error, workers.Missing) and re.match(words, str(error)) for error, words in zip(found, ends)), (
    found
  )
  err = capsys.readouterr().err
  assert all(err.count(line) == 1 for line in said), err


def test_strangers_at_the_port_are_ignored(address):
  port = int(address.split(':')[1])

  def disturb():
    for words in (b'GET / HTTP/1.0\n', b'7', b''):
      for _ in range(100):
        try:
          with socket.create_connection(('localhost', port), timeout=1) as connection:
            connection.sendall(words)
          break
        except OSError:
          time.sleep(0.02)

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    waiting = pool.submit(met, address, 2, [0])
    pool.submit(disturb).result()
    assert met(address, 2, [1]) == [None] and waiting.result() == [None]


def test_a_port_in_use_and_wrong_numbers_are_named(address):
  port = int(address.split(':')[1])
  with (
    socket.create_server(('', port)),
    pytest.raises(OSError, match=f'--coordinator: port {port} cannot be used .*; choose another'),
  ):
    workers._meet(address, 2, 0)
  with pytest.raises(ValueError, match='--coordinator: .* is no address'):
    workers._meet('localhost', 2, 0)
  for count, number in ((2, 2), (2, None), (None, 0), (2, -1)):
    with pytest.raises(ValueError, match='--process_id: .* does not fit --num_processes'):
      workers._meet(address, count, number)


# A run of two processes without data: what each does in it.
OF_TWO = """
import functools, sys, time
import jax
jax.distributed.initialize = functools.partial(jax.distributed.initialize, **{options})
from jaxrec import main, training
from jaxrec.experiments import run
training.parallel._memory = lambda _: {memory}[{number}] << 20
def act(*_):
  parallel = training.data_parallel()
  {act}
run.run = act
sys.argv = ['jaxrec', '--config=quickstart:smoke', '--coordinator={address}', '--num_processes=2', '--process_id={number}']
main.console()
"""


@contextlib.contextmanager
def two(address, *acts, memory=(1000, 1000), **options):
  """Two processes of one run that do these, and find so much memory; `options` are those of JAX for all processes."""
  running = [
    subprocess.Popen(
      [sys.executable, '-c', OF_TWO.format(act=act, address=address, number=i, options=options, memory=memory)],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )
    for i, act in enumerate(acts)
  ]  # fmt: skip
  try:
    yield running
  finally:
    for process in running:
      process.kill()
      process.communicate()


def test_what_fits_is_chosen_by_the_least_memory_of_all_processes(address):
  tell = 'print(parallel.memory >> 20)'
  with two(address, tell, tell, memory=(7000, 5000)) as running:
    assert [process.communicate(timeout=60)[0].splitlines()[-1] for process in running] == ['5000'] * 2


@pytest.mark.parametrize(
  'act, code, words',
  [
    ("raise ValueError('bad.h5: is no volume')", 2, 'error: bad.h5: is no volume'),
    ("raise AssertionError('a mistake of ours')", 1, 'AssertionError: a mistake of ours'),
  ],
)
def test_a_process_that_fails_does_not_wait_for_those_that_wait_for_it(act, code, words, address):
  with two(address, "parallel.barrier('never')", act) as (_, failing):
    assert failing.wait(60) == code
    assert failing.communicate()[1].splitlines()[-1] == words


@pytest.mark.skipif(
  'shutdown_timeout_seconds' not in inspect.signature(jax.distributed.initialize).parameters,
  reason='this JAX cannot be told to lose its patience sooner',
)
def test_a_process_that_is_done_waits_for_one_that_works(address):
  with two(address, 'time.sleep(8)', 'pass', shutdown_timeout_seconds=2) as running:
    assert [process.wait(60) for process in running] == [0, 0], running[0].communicate()[1]
