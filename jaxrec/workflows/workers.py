"""Processes of one run: how they meet, and that none outlives its launcher."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax

from jaxrec.data.files import runs
from jaxrec.training import parallel

LAUNCHER = 'JAXREC_LAUNCHER'  # set by launch/local_processes.sh: its process id
_PATIENCE = 5.0
_SAME_REQUEST = 1.0


class Missing(ValueError):
  """Processes that did not come; the message says which."""


def join(coordinator: str | None, num_processes: int | None = None, process_id: int | None = None) -> None:
  """Connects this process to the others of its run; nothing to do without a coordinator.

  Args:
    coordinator: `host:port` of process 0, or `auto` on clusters.
    num_processes: how many there are.
    process_id: number of this one.

  Raises:
    Missing: naming the processes that do not come.
    ValueError: for wrong numbers.
    OSError: if the port is in use.
  """
  _follow_launcher()
  if not coordinator:
    return
  if coordinator == 'auto':
    waiting = threading.Timer(_PATIENCE, _say, ['waiting for the other processes of the cluster'])
    waiting.daemon = True
    waiting.start()
    jax.distributed.initialize()
    waiting.cancel()
  else:
    _meet(coordinator, num_processes, process_id)
    jax.distributed.initialize(coordinator, num_processes, process_id)
  # JAX keeps SIGTERM for programs that ask it about preemption. Runs survive a
  # kill at any moment, so that a process that is asked to end can simply end.
  signal.signal(signal.SIGTERM, signal.SIG_DFL)


def leave(code: int) -> None:
  """Lets this process of several end with the others, or at once if it failed.

  JAX would wait at the end of every process for the others, for five minutes, and
  then abort them all: those that still work, and those that are to hear of a failure.

  Args:
    code: with which the process ends.
  """
  if not jax.distributed.is_initialized():
    return
  if code in (0, 128 + signal.SIGTERM):
    try:
      return parallel.barrier('end')
    except RuntimeError:
      _say('error: another process of the run failed; the same command goes on from here')
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code or 2)


@contextlib.contextmanager
def termination() -> Iterator[Callable[[], bool]]:
  """Tells whether this process was asked to end, by SIGTERM; a later one ends it at once.

  One within a second of the first is the same request: a process of a launcher
  hears from it and from whoever ended all of its group.

  Yields:
    A function that is true from the signal on.
  """
  asked, first = threading.Event(), 0.0

  def note(number, _):
    nonlocal first
    if not asked.is_set():
      asked.set()
      first = time.monotonic()
    elif time.monotonic() - first > _SAME_REQUEST:
      signal.signal(number, signal.SIG_DFL)
      os.kill(os.getpid(), number)

  if threading.current_thread() is not threading.main_thread():
    # Python hands signals to the main thread only.
    yield asked.is_set
    return
  before = signal.signal(signal.SIGTERM, note)
  try:
    yield asked.is_set
  finally:
    signal.signal(signal.SIGTERM, before)


def _meet(coordinator, count, number, *, patience=None, limit=300.0):
  """Waits until all processes are there; JAX would not say who is missing, and would abort in the end."""
  host, _, port = coordinator.rpartition(':')
  if not port.isdigit():
    raise ValueError(f'--coordinator: {coordinator!r} is no address; give host:port')
  if count is None or number is None or not 0 <= number < count:
    raise ValueError(f'--process_id: {number} does not fit --num_processes={count}; give 0 to num_processes - 1')
  clock = _Clock(patience or _PATIENCE, limit)
  if number == 0:
    _gather(int(port), count, clock)
  else:
    _report(host.strip('[]'), int(port), number, clock)


class _Clock:
  """Says who is waited for once it takes long, and again every half minute."""

  def __init__(self, patience, limit):
    self.next, self.end = time.monotonic() + patience, time.monotonic() + limit

  def wait_for(self, whom):
    now = time.monotonic()
    if now > self.end:
      raise Missing(
        f'{whom}: did not come; start all processes of the run with the same --coordinator and --num_processes'
      )
    if now > self.next:
      _say(f'waiting for {whom}')
      self.next = now + 30


def _gather(port, count, clock):
  try:
    dual = socket.has_dualstack_ipv6()
    server = socket.create_server(('', port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual)
  except OSError as error:
    raise OSError(
      f'--coordinator: port {port} cannot be used ({error.strerror}); choose another, or end the run that has it'
    ) from None
  with server, contextlib.ExitStack() as stack:
    server.settimeout(0.2)
    here = {}
    while len(here) < count - 1:
      missing = [str(i) for i in range(1, count) if i not in here]
      clock.wait_for(f'process{"es" * (len(missing) > 1)} {", ".join(missing)} of {count}')
      with contextlib.suppress(OSError, ValueError):
        connection, _ = server.accept()
        stack.enter_context(connection)
        connection.settimeout(5)
        came = int(connection.recv(16))
        if 0 < came < count:
          here[came] = connection
    for connection in here.values():
      with contextlib.suppress(OSError):
        connection.sendall(b'go')
    for connection in here.values():
      # They close first, so that JAX finds the port free.
      with contextlib.suppress(OSError):
        connection.recv(1)


def _report(host, port, number, clock):
  while True:
    clock.wait_for(f'process 0 at {host}:{port}')
    try:
      with socket.create_connection((host, port), timeout=5) as connection:
        connection.sendall(b'%d\n' % number)
        connection.settimeout(0.5)
        while True:
          clock.wait_for('the other processes (process 0 says which)')
          with contextlib.suppress(TimeoutError):
            if connection.recv(2) == b'go':
              return
            break
    except OSError:
      time.sleep(0.2)


def _say(line):
  print(line, file=sys.stderr, flush=True)


def _follow_launcher(every: float = 0.5) -> None:
  """Ends this process once its launcher is gone: the others are gone with it."""
  launcher = os.environ.get(LAUNCHER)
  if not launcher:
    return
  parent = os.getppid()

  def watch():
    # The parent is the launcher, or a wrapper that it started. A dead parent that
    # nobody has waited for still has its number, but no children any more.
    while os.getppid() == parent and runs(int(launcher)):
      time.sleep(every)
    print(
      f'error: the launcher (process {launcher}) is gone; this process ends too, the same command goes on',
      file=sys.stderr,
      flush=True,
    )
    os._exit(2)

  threading.Thread(target=watch, name='launcher', daemon=True).start()
