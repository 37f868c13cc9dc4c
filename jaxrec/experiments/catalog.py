"""The configs that travel with the package, and those of the user: how `--config` finds them."""

import ast
import importlib.util
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import jaxrec

_FLAGS = ('--config', '-config')


def folder() -> Path:
  """Where the package's configs are: inside an installed package, or beside it in the repository."""
  inside = Path(jaxrec.__file__).parent / 'configs'
  return inside if inside.is_dir() else inside.parents[1] / 'configs'


def described() -> dict[str, tuple[str, list[str]]]:
  """Name, first line, and lines on what it costs, of every config of the package."""
  found = {}
  for path in sorted(folder().glob('*.py')):
    text = path.read_text()
    if 'def get_config' in text:
      lines = (ast.get_docstring(ast.parse(text)) or '').splitlines()
      demo = [m[1] for line in lines if (m := re.search(r':demo \((.*)\)', line))]
      hardware = [line.removeprefix('Hardware: ') for line in lines if line.startswith('Hardware: ')]
      found[path.stem] = lines[0], [*hardware, *(f'{path.stem}:demo: {text}' for text in demo)]
  return found


def listing() -> str:
  """The configs with what each costs, for `--help`."""
  lines = [
    'configs, each also as NAME:demo (minutes on the built-in phantom, if nothing else is said) and NAME:smoke (seconds):'
  ]
  for name, (title, costs) in described().items():
    lines += [f'  {name:22}{title}', *(f'  {"":22}  {cost}' for cost in costs)]
  return '\n'.join(lines)


def prepare(argv: list[str]) -> list[str]:
  """A command line whose `--config` is a file, with all that the file imports in reach.

  `NAME` and `configs/NAME.py` become the package's own config where there is no such
  file; without data of its kind `:demo` is added. `from configs import common` works
  everywhere, and so do modules beside the config and in the current folder.

  Args:
    argv: the command line.

  Returns:
    The command line to parse.

  Raises:
    ValueError: for a name that is neither a file nor a config of the package.
  """
  provide()
  return with_demo(_each_config(argv, _located))


def provide() -> None:
  """Makes the package's configs importable as `configs`."""
  if 'configs' not in sys.modules:
    spec = importlib.util.spec_from_file_location(
      'configs', folder() / '__init__.py', submodule_search_locations=[str(folder())]
    )
    assert spec and spec.loader
    sys.modules['configs'] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules['configs'])


def _each_config(argv: list[str], change: Callable[[str], str]) -> list[str]:
  changed = []
  for before, a in zip(['', *argv], argv):
    if before in _FLAGS:
      a = change(a)
    elif a.startswith(tuple(f'{flag}=' for flag in _FLAGS)):
      flag, _, value = a.partition('=')
      a = f'{flag}={change(value)}'
    changed.append(a)
  return changed


def _located(value):
  name, colon, profile = value.partition(':')
  path = Path(name)
  if not path.is_file() and path.parent in (Path('.'), Path('configs')):
    own = folder() / f'{path.stem}.py'
    if path.stem in described():
      path = own
    elif not name.endswith('.py'):
      raise ValueError(
        f'--config: {name!r} is neither a file nor a config of jaxrec; choose one of {", ".join(described())}'
      )
  if path.is_file():
    for place in (path.resolve().parent, Path.cwd()):
      # At the end, where they hide nothing that is installed.
      if str(place) not in sys.path and place != folder():
        sys.path.append(str(place))
    if path.resolve().parent.name == 'configs':
      sys.modules['configs'].__path__.append(str(path.resolve().parent))
  return f'{path}{colon}{profile}'


def with_demo(argv: list[str]) -> list[str]:
  """Without data the demo profile runs, but for plans: `--config=x.py` becomes `--config=x.py:demo`."""
  if any('config.data.root' in a or ('config.stages' in a and 'plan' in a) for a in argv):
    return argv
  return _each_config(argv, lambda value: f'{value}:demo' if _lacks_data(value) else value)


def _lacks_data(path):
  """Whether a config without a profile finds no data of its own kind; what is no config is left to the parser."""
  if not path.endswith('.py') or not Path(path).is_file():
    return False

  def has_root(config):
    return bool(config.get('data', {}).get('root')) or any(map(has_root, config.get('experiments', {}).values()))

  return not has_root(runpy.run_path(path)['get_config']())
