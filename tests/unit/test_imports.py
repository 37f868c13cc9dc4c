"""The direction of imports, what importing jaxrec loads, and the names it offers."""

import ast
import subprocess
import sys
from pathlib import Path

import jaxrec

ROOT = Path(jaxrec.__file__).parent
LAYERS = [
  {'types', 'version', 'masks', 'program', 'progress'},
  {'fourier', 'geometry'},
  {'metrics', 'noise', 'tomography'},
  {'statistics', 'models', 'networks', 'attacks', 'invariances'},
  {'training', 'data', 'results'},
  {'audit', 'reports'},
  {'workflows'},
  {'experiments'},
  {'main'},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FORBIDDEN = {'attacks': {'models', 'data', 'training'}, 'invariances': {'models', 'data', 'training'}}


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield node.module
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def parts():
  for path in sorted(ROOT.rglob('*.py')):
    relative = path.relative_to(ROOT)
    if relative.name == '__init__.py' and len(relative.parts) == 1:
      continue
    yield path, relative.parts[0].removesuffix('.py')


def test_imports_go_upwards_only():
  for path, part in parts():
    assert part in LEVEL, f'{path} has no layer'
    for name in imports(path):
      if name.startswith('jaxrec.') and name.split('.')[1] in LEVEL:
        other = name.split('.')[1]
        assert LEVEL[other] <= LEVEL[part], f'{path} imports {name}'
        assert other not in FORBIDDEN.get(part, ()), f'{path} imports {name}'


def only_in(package, *allowed):
  for path in ROOT.rglob('*.py'):
    if str(path.relative_to(ROOT)) not in allowed:
      assert package not in {name.split('.')[0] for name in imports(path)}, f'{path} imports {package}'


def test_heavy_packages_have_one_home():
  only_in('matplotlib', 'reports/figures.py')
  only_in('orbax', 'training/checkpoint.py')
  only_in('absl', 'main.py')
  only_in('torch', 'networks.py')
  for path in ROOT.rglob('*.py'):
    if path.name != 'parallel.py':
      assert 'pmap' not in path.read_text() and 'pmean' not in path.read_text(), path


def test_one_room_sees_configs():
  for path, part in parts():
    if part in ('experiments', 'main'):
      continue
    assert 'ml_collections' not in {name.split('.')[0] for name in imports(path)}, path
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, (ast.FunctionDef, ast.Lambda)):
        taken = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        assert 'config' not in taken, f'{path}: line {node.lineno}'


def test_importing_jaxrec_is_light():
  code = 'import sys, jaxrec; print([m for m in ("h5py", "ml_collections", "matplotlib", "orbax", "torch") if m in sys.modules])'
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == '[]'


def test_public_names_exist_and_are_documented():
  for name in jaxrec.__all__:
    thing = getattr(jaxrec, name)
    assert name == '__version__' or thing.__doc__, name


def test_public_functions_state_their_arguments():
  for path, _ in parts():
    for node in ast.parse(path.read_text()).body:
      if isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
        text = ast.get_docstring(node)
        assert text, f'{path}: {node.name} has no docstring'
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        if 'Args:' in text:
          missing = [name for name in names if f'{name}:' not in text.split('Args:')[1]]
          assert not missing, f'{path}: {node.name} does not state {missing}'


def test_main_is_short():
  assert len((ROOT / 'main.py').read_text().splitlines()) < 80


def test_functions_of_the_workflows_are_short():
  for path in sorted(
    [*(ROOT / 'workflows').glob('*.py'), *(ROOT / 'reports').glob('*.py'), *(ROOT / 'experiments').glob('*.py')]
  ):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.FunctionDef):
        assert node.end_lineno - node.lineno < 60, f'{path.name}: {node.name}'
