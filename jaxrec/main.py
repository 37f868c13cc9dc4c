"""Launcher: `python -m jaxrec.main --config=configs/varnet_8x.py [--workdir=...] [--config.a.b=...]`."""

import os
import runpy
import signal
import sys
import warnings
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from jaxrec.training import Stopped
from jaxrec.workflows import run, workers

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment, such as configs/varnet_8x.py or configs/varnet_8x.py:demo.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Run folder; runs/<config>-<profile> if not given.')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'Address of process 0 for several processes, host:port; "auto" on clusters.')
_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Number of processes.')
_PROCESS = flags.DEFINE_integer('process_id', None, 'Number of this process.')


def _with_demo(argv: list[str]) -> list[str]:
  """Without data the demo profile runs, but for plans: `--config=x.py` becomes `--config=x.py:demo`."""
  if any('config.data.root' in a or ('config.stages' in a and 'plan' in a) for a in argv):
    return argv
  flag = ('--config', '-config')
  named = [before in flag or a.startswith(tuple(f'{f}=' for f in flag)) for before, a in zip(['', *argv], argv)]
  return [f'{a}:demo' if is_config and _lacks_data(a.split('=')[-1]) else a for is_config, a in zip(named, argv)]


def _lacks_data(path):
  """Whether a config without a profile finds no data of its own kind; what is no config is left to the parser."""
  if not path.endswith('.py') or not os.path.exists(path):
    return False

  def has_root(config):
    return bool(config.get('data', {}).get('root')) or any(map(has_root, config.get('experiments', {}).values()))

  return not has_root(runpy.run_path(path)['get_config']())


def main(argv: list[str]) -> int:
  """Parses and dispatches; returns the exit code."""
  try:
    rest = flags.FLAGS(_with_demo(argv))
    if len(rest) > 1:
      raise flags.Error(f'unexpected argument {rest[1]!r}')
    if _CONFIG.value is None:
      raise flags.Error('--config: is missing; give one of configs/*.py')
    config = _CONFIG.value
  except (flags.Error, OSError, ValueError, KeyError, AttributeError, TypeError, ImportError, SyntaxError) as error:
    return _fail(error)
  try:
    workers.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    run.run(config, _WORKDIR.value or Path('runs') / f'{config.name}-{config.profile}')
  except Stopped as stopped:
    print(f'\n{stopped}', file=sys.stderr)
    return 128 + signal.SIGTERM
  except KeyboardInterrupt:
    print('\nstopped; the same command goes on from here', file=sys.stderr)
    return 130
  except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
    if type(error).__module__.split('.')[0] in ('jax', 'jaxlib') or os.environ.get('JAXREC_TRACEBACK'):
      raise
    return _fail(error)
  return 0


def _fail(error: Exception) -> int:
  line = ' '.join(str(error).split()) or type(error).__name__
  print(f'error: {line}', file=sys.stderr)
  return 2


if __name__ == '__main__':
  warnings.filterwarnings('default', category=DeprecationWarning, module='jaxrec')
  sys.exit(main(sys.argv))
