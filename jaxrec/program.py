"""How programs of this package begin and end: Ctrl-C is one line, also while they load their libraries; XLA is silent, and repeats."""

import os
import re
import signal
import sys
from collections.abc import Callable

EXIT_CODE = 128 + signal.SIGINT


def _leave(*_):
  # Nothing has begun that would have to be put in order, and libraries that are half loaded survive no exception.
  os.write(2, b'\nstopped while loading; give the same command again\n')
  os._exit(EXIT_CODE)


def sums_keep_order() -> bool:
  """Whether XLA was told, in `XLA_FLAGS`, to add up in a fixed order on graphics cards; it does not say so itself."""
  given = re.findall(r'(?:^|\s)--xla_gpu_deterministic_ops(?:=(\S*))?(?=\s|$)', os.environ.get('XLA_FLAGS', ''))
  return bool(given) and given[-1].lower() in ('', 'true', '1')


def _is_program():
  given = getattr(sys, 'orig_argv', [''])[1:]
  by_name = bool(given) and os.path.basename(given[0]) == 'jaxrec'
  return by_name or any(a == '-m' and b.startswith('jaxrec.') for a, b in zip(given, given[1:]))


def _swallowed(unraisable):
  # Callbacks of the garbage collector, of which JAX has one, swallow exceptions, that of Ctrl-C too: it comes once more.
  if issubclass(unraisable.exc_type, KeyboardInterrupt):
    signal.setitimer(signal.ITIMER_REAL, 0.05)
  # A checkpoint that nobody waits for any more, after Ctrl-C or on a full disk, tells so to a loop that is gone.
  elif str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


def ended(main: Callable[[list[str]], int], arguments: list[str], words: str) -> int:
  """The exit code of a program that is done loading: 130 after Ctrl-C, 1 after an error that it does not know, which is printed.

  Args:
    main: the program.
    arguments: its own.
    words: what to do after Ctrl-C.
  """
  if signal.getsignal(signal.SIGINT) is _leave:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  sys.unraisablehook = _swallowed
  signal.signal(signal.SIGALRM, signal.default_int_handler)
  try:
    return main(arguments)
  except KeyboardInterrupt:
    print(f'\nstopped; {words}', file=sys.stderr)
    return EXIT_CODE
  except Exception:
    sys.excepthook(*sys.exc_info())
    return 1


def show(text: str) -> None:
  """Prints to a reader who may have enough before the end, as `head` does."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    # Python would write the rest once more when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Whoever imports the package keeps the signals and logs that are theirs.
if _is_program():
  # XLA says at length of programs in its own cache that they were compiled for another CPU (openxla/xla#44565). Errors are exceptions.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  # Left to itself XLA sums on a graphics card in any order, and times kernels to choose among them: no two runs are the same.
  _flags = os.environ.get('XLA_FLAGS', '')
  if '--xla_gpu_deterministic_ops' not in _flags:
    os.environ['XLA_FLAGS'] = f'{_flags} --xla_gpu_deterministic_ops=true'.strip()
  # A job of a shell goes on to ignore Ctrl-C.
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
