"""Launcher: `jaxrec --config=varnet_8x [--workdir=...] [--config.a.b=...]`, or `python -m jaxrec.main`."""

import os
import signal
import sys
import warnings
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from jaxrec import program
from jaxrec.experiments import catalog, run
from jaxrec.training import Stopped
from jaxrec.workflows import workers

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment: varnet_8x, varnet_8x:demo, or a Python file.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Run folder; runs/<config>-<profile> if not given.')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'Address of process 0, host:port; "auto" on clusters.')
_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Number of processes.')
_PROCESS = flags.DEFINE_integer('process_id', None, 'Number of this process.')


def _help() -> str:
  given = (_CONFIG, _WORKDIR, _COORDINATOR, _PROCESSES, _PROCESS)
  options = [f'  --{f.name}: {flags.FLAGS[f.name].help}' for f in given]
  return '\n'.join([
    'usage: jaxrec --config=NAME[:PROFILE] [--workdir=FOLDER] [--config.SECTION.OPTION=VALUE ...]',
    '', 'NAME is one of the configs below or a file of your own, such as ~/study/mine.py; the same command goes on after a stop.',
    '', 'options:', *options, '', catalog.listing(),
  ])  # fmt: skip


def main(argv: list[str]) -> int:
  """Parses and dispatches; returns the exit code."""
  if {'--help', '-h', '-help'} & set(argv):
    program.show(_help())
    return 0
  try:
    if len(rest := flags.FLAGS(catalog.prepare(argv))) > 1:
      raise flags.Error(f'unexpected argument {rest[1]!r}')
    if (config := _CONFIG.value) is None:
      raise flags.Error('--config: is missing; give a config, jaxrec --help lists them')
  except (flags.Error, OSError, ValueError, KeyError, AttributeError, TypeError, ImportError, SyntaxError) as error:
    return _fail(error)
  try:
    workers.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    run.run(config, _WORKDIR.value or Path('runs') / f'{config.name}-{config.profile}')
  except Stopped as stopped:
    print(f'\n{stopped}', file=sys.stderr)
    return 128 + signal.SIGTERM
  except (ValueError, OSError, ArithmeticError, RuntimeError, MemoryError) as error:
    if os.environ.get('JAXREC_TRACEBACK'):
      raise
    return _fail(error)
  return 0


def _fail(error: Exception) -> int:
  paragraphs = [' '.join(line.split()) for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
  line = ' '.join(paragraphs)
  if isinstance(error, RuntimeError) and len(paragraphs) > 1:  # Of JAX: the first says what is wrong.
    line = f'{paragraphs[0][:500]} (JAXREC_TRACEBACK=1 shows all)'
  if isinstance(error, KeyError) and ' ' not in str(error.args[0]):
    line = f'--config: has no section or option {error.args[0]} to set there; add it in a config file of your own'
  print(f'error: {line}', file=sys.stderr)
  return 2


def console() -> None:
  """The command `jaxrec`."""
  warnings.filterwarnings('default', category=DeprecationWarning, module='jaxrec')
  code = program.ended(main, sys.argv, 'the same command goes on from here')
  workers.leave(code)
  sys.exit(code)


if __name__ == '__main__':
  console()
