"""Processes of one run: how they meet, and that none outlives its launcher."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax

LAUNCHER = 'JAXREC_LAUNCHER'  # set by launch/local_processes.sh: its process id


def join(coordinator: str | None, num_processes: int | None = None, process_id: int | None = None) -> None:
  """Connects this process to the others of its run; nothing to do without a coordinator.

  Args:
    coordinator: `host:port` of process 0, or `auto` on clusters.
    num_processes: how many there are.
    process_id: number of this one.
  """
  _follow_launcher()
  if not coordinator:
    return
  if coordinator == 'auto':
    jax.distributed.initialize()
  else:
    jax.distributed.initialize(coordinator, num_processes, process_id)
  # JAX keeps SIGTERM for programs that ask it about preemption. Runs survive a
  # kill at any moment, so that a process that is asked to end can simply end.
  signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def termination() -> Iterator[Callable[[], bool]]:
  """Tells whether this process was asked to end, by SIGTERM; a second one ends it at once.

  Yields:
    A function that is true from the signal on.
  """
  asked = threading.Event()

  def note(number, _):
    asked.set()
    signal.signal(number, signal.SIG_DFL)

  if threading.current_thread() is not threading.main_thread():
    # Python hands signals to the main thread only.
    yield asked.is_set
    return
  before = signal.signal(signal.SIGTERM, note)
  try:
    yield asked.is_set
  finally:
    signal.signal(signal.SIGTERM, before)


def _follow_launcher(every: float = 0.5) -> None:
  """Ends this process once its launcher is gone: the others are gone with it."""
  launcher = os.environ.get(LAUNCHER)
  if not launcher:
    return
  parent = os.getppid()

  def watch():
    # The parent is the launcher, or a wrapper that it started. A dead parent that
    # nobody has waited for still has its number, but no children any more.
    while os.getppid() == parent and _exists(int(launcher)):
      time.sleep(every)
    print(f'error: the launcher (process {launcher}) is gone; this process ends too, the same command goes on', file=sys.stderr, flush=True)
    os._exit(2)

  threading.Thread(target=watch, name='launcher', daemon=True).start()


def _exists(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return True
