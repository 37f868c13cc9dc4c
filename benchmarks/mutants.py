"""Changes one thing in the code at a time and asks whether the fast tests notice.

  python -m benchmarks.mutants [--count=160] [--seed=0] [--modules=jaxrec/masks.py,...] [--numbers=3,17] [--processes=1]

Mutants are drawn by the seed among all places of a module where an operator, a
comparison, a number, a truth value, a keyword argument's value or a statement can be another;
texts, annotations, checks that only raise, and defaults that a docstring prints
are left alone. Each runs in a process of its own, against the unit and property
tests of its module, until the first failure. No file is touched. Writes
benchmarks/results/mutants.csv and prints the score and every survivor.
"""

import argparse
import ast
import concurrent.futures
import csv
import importlib.abc
import importlib.util
import json
import multiprocessing
import os
import random
import sys
import time
import types
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULT = ROOT / 'benchmarks' / 'results' / 'mutants.csv'
PHYSICS = ['tests/unit/test_physics.py', 'tests/property/test_perturbations.py', 'tests/unit/test_doctest.py']
VERDICT = ['tests/unit/test_verdict.py', 'tests/unit/test_observers.py']
ATTACKS = ['tests/property/test_searches.py', 'tests/property/test_perturbations.py', 'tests/unit/test_attack.py']
DATA = ['tests/unit/test_data.py', 'tests/faults/test_data.py']
TASKS = ['tests/unit/test_losses.py', 'tests/property/test_tasks.py']
# Module, the tests that are to notice, and its share of the mutants.
MODULES = {
  'jaxrec/fourier.py': (PHYSICS, 2),
  'jaxrec/masks.py': (['tests/unit/test_physics.py', 'tests/parity/test_fastmri.py', 'tests/unit/test_doctest.py'], 3),
  'jaxrec/geometry.py': (PHYSICS, 3),
  'jaxrec/metrics.py': (PHYSICS + ['tests/parity/test_fastmri.py'], 3),
  'jaxrec/noise.py': (['tests/unit/test_physics.py', 'tests/unit/test_doctest.py'], 2),
  'jaxrec/tomography.py': (['tests/unit/test_tomography.py', 'tests/unit/test_doctest.py'], 2),
  'jaxrec/statistics.py': (
    [
      'tests/unit/test_verdict.py',
      'tests/unit/test_judgement.py',
      'tests/property/test_analysis.py',
      'tests/unit/test_observers.py',
    ],
    2,
  ),
  'jaxrec/attacks/core.py': (ATTACKS, 2),
  'jaxrec/attacks/perturbations.py': (ATTACKS[1:], 3),
  'jaxrec/attacks/searches.py': (ATTACKS, 4),
  'jaxrec/attacks/objectives.py': (ATTACKS, 1),
  'jaxrec/attacks/lipschitz.py': (['tests/property/test_defences.py'], 1),
  'jaxrec/attacks/defences.py': (['tests/property/test_defences.py'], 1),
  'jaxrec/invariances/analysis.py': (
    ['tests/property/test_analysis.py', 'tests/unit/test_measurement.py', 'tests/unit/test_judgement.py'],
    3,
  ),
  'jaxrec/invariances/observers.py': (VERDICT, 2),
  'jaxrec/invariances/verdict.py': (VERDICT, 1),
  'jaxrec/invariances/sampling.py': (['tests/property/test_invariances.py', 'tests/unit/test_measurement.py'], 2),
  'jaxrec/training/tasks.py': (TASKS, 2),
  'jaxrec/training/robust.py': (TASKS, 2),
  'jaxrec/training/loop.py': (['tests/property/test_tasks.py'], 2),
  'jaxrec/data/loader.py': (DATA, 2),
  'jaxrec/data/annotations.py': (DATA, 2),
  'jaxrec/workflows/attack.py': (['tests/unit/test_attack.py', 'tests/faults/test_data.py'], 2),
}
SECONDS = 600

SWAPS = {
  ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
  ast.MatMult: ast.Mult, ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot,
  ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


def _places(tree):
  """`(node, field or index, what is put there)` of every mutant, in order."""
  found = []

  def visit(node, inside):
    if (
      isinstance(node, (ast.JoinedStr, ast.Raise, ast.Assert, ast.Import, ast.ImportFrom))
      or isinstance(node, ast.Constant)
      and isinstance(node.value, str)
    ):
      return
    if isinstance(node, ast.If) and len(node.body) == 1 and isinstance(node.body[0], ast.Raise):
      # A check has rows of its own in the fault table.
      for child in node.orelse:
        visit(child, inside)
      return
    if inside:
      if isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        found.append((node, 'op', SWAPS[type(node.op)]()))
      elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        found.append((node, 'ops', [SWAPS[type(node.ops[0])](), *node.ops[1:]]))
      elif isinstance(node, ast.BoolOp):
        found.append((node, 'op', SWAPS[type(node.op)]()))
      elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
        found.append(
          (
            node,
            'op',
            ast.UAdd()
            if isinstance(node.op, ast.USub)
            else ast.Not()
            if isinstance(node.op, ast.Invert)
            else ast.Invert(),
          )
        )
      elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        found.append((node, 'value', not node.value))
      elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float, complex)):
        found.append(
          (node, 'value', node.value + 1 if isinstance(node.value, int) else node.value * 1.1 if node.value else 1.0)
        )
      elif isinstance(node, ast.IfExp):
        found.append((node, 'test', ast.UnaryOp(ast.Not(), node.test)))
      elif isinstance(node, ast.If):
        found.append((node, 'test', ast.UnaryOp(ast.Not(), node.test)))
      elif isinstance(node, ast.AugAssign):
        found.append((node, 'op', SWAPS.get(type(node.op), ast.Add)()))
      elif isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords and isinstance(node.func, ast.Attribute) and node.func.attr in (
        'conj', 'abs', 'sqrt', 'real', 'stop_gradient', 'ravel', 'sign', 'flip', 'ifftshift', 'fftshift', 'square'
      ):  # fmt: skip
        found.append(
          (
            node,
            'func',
            ast.Lambda(ast.arguments([], [ast.arg('x')], None, [], [], None, []), ast.Name('x', ast.Load())),
          )
        )
    for name, value in ast.iter_fields(node):
      if name in ('annotation', 'returns', 'decorator_list', 'type_params', 'type_comment', 'defaults', 'kw_defaults'):
        continue
      for child in value if isinstance(value, list) else [value]:
        if isinstance(child, ast.AST):
          visit(child, inside or isinstance(node, (ast.FunctionDef, ast.Lambda)))

  visit(tree, False)
  return found


def mutants(count, seed):
  """`(module, number of the place)` of all mutants, drawn by the seed."""
  total = sum(share for _, share in MODULES.values())
  chosen = []
  for module, (_, share) in MODULES.items():
    places = _places(ast.parse((ROOT / module).read_text()))
    wanted = min(max(round(count * share / total), 1), len(places))
    chosen += [(module, i) for i in sorted(random.Random(f'{seed} {module}').sample(range(len(places)), wanted))]
  return chosen


def mutate(module, number):
  """The code of a mutant, its line, and that line before and after."""
  source = (ROOT / module).read_text()
  tree = ast.parse(source)
  node, field, value = _places(tree)[number]
  line, before = node.lineno, ast.unparse(node)
  setattr(node, field, value)
  after = ast.unparse(node)
  if isinstance(node, (ast.If,)):
    before, after = before.split('\n')[0], after.split('\n')[0]
  return compile(ast.fix_missing_locations(tree), str(ROOT / module), 'exec'), line, before, after


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Loads the mutant in place of its module."""

  def __init__(self, module, code):
    self.name, self.path, self.code = module.removesuffix('.py').replace('/', '.'), ROOT / module, code

  def find_spec(self, name, path, target=None):
    return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

  def create_module(self, spec):
    return None

  def exec_module(self, module: types.ModuleType):
    exec(self.code, module.__dict__)

  def get_source(self, name):
    return self.path.read_text()


def _child(module, number, tests, pipe):
  import pytest

  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
  if number is not None:
    sys.meta_path.insert(0, _Finder(module, mutate(module, number)[0]))
  failed = []

  class First:
    def pytest_runtest_logreport(self, report):
      if report.failed:
        failed.append(report.nodeid)

    def pytest_collectreport(self, report):
      if report.failed:
        failed.append(report.nodeid)

  for test in tests:
    # One file after the other: most mutants fall at once, and some files are slow to collect.
    code = pytest.main(['-x', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', test], plugins=[First()])
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
      code = 0
    if code:
      break
  pipe.send((int(code), failed[:1]))
  pipe.close()
  os._exit(0)


def attempt(module, number, tests=None):
  """Exit code of the tests, the test that failed first, seconds."""
  start = time.monotonic()
  context = multiprocessing.get_context('fork')
  pipe, other = context.Pipe()
  child = context.Process(target=_child, args=(module, number, tests or MODULES[module][0], other))
  child.start()
  other.close()
  code, failed = -1, ['the tests died']
  try:
    if pipe.poll(SECONDS):
      code, failed = pipe.recv()
    else:
      failed = [f'more than {SECONDS} s']
  except EOFError:
    pass
  child.kill()
  child.join()
  return code, failed[0] if failed else '', time.monotonic() - start


def _write(rows):
  RESULT.parent.mkdir(exist_ok=True)
  with open(RESULT, 'w', newline='') as stream:
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow(['module', 'place', 'line', 'before', 'after', 'noticed', 'by'])
    writer.writerows(sorted(rows))


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--count', type=int, default=160)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--modules', default='')
  parser.add_argument('--numbers', default='', help='places of the modules, in place of a draw')
  parser.add_argument('--processes', type=int, default=1)
  parser.add_argument('--minutes', type=float, default=1e9, help='begin no mutant after so long')
  given = parser.parse_args()
  os.chdir(ROOT)
  wanted = given.modules.split(',') if given.modules else list(MODULES)
  chosen = [(m, n) for m, n in mutants(given.count, given.seed) if m in wanted]
  if given.numbers:
    chosen = [(m, int(n)) for m in wanted for n in given.numbers.split(',')]
  # Modules in turn, so that a run that is cut short has seen all.
  order = {m: i for i, m in enumerate(MODULES)}
  rank = {}
  for m, n in chosen:
    rank[m, n] = sum(1 for other, _ in rank if other == m)
  chosen.sort(key=lambda c: (rank[c], order[c[0]]))
  # Imported before the forks, once; nothing of ours, and no device.
  import flax.linen  # noqa: F401
  import grain  # noqa: F401
  import hypothesis  # noqa: F401
  import jax  # noqa: F401
  import optax  # noqa: F401
  import orbax.checkpoint  # noqa: F401
  import pytest  # noqa: F401
  import scipy.ndimage  # noqa: F401

  try:
    import torch  # noqa: F401
  except ImportError:
    print('note: without torch the tests against it notice nothing')
  rows, end = [], time.monotonic() + 60 * given.minutes

  def one(mutant):
    return (mutant, attempt(*mutant)) if time.monotonic() < end else None

  with concurrent.futures.ThreadPoolExecutor(given.processes) as pool:
    for future in concurrent.futures.as_completed([pool.submit(one, mutant) for mutant in chosen]):
      if future.result() is None:
        continue
      (module, number), (code, failed, seconds) = future.result()
      _, line, before, after = mutate(module, number)
      noticed = code > 0 or failed == 'the tests died'
      said = 'noticed' if noticed else 'SURVIVED' if code == 0 else 'undecided'
      print(
        f'{said} {module}:{line} [{number}] {json.dumps(before)} -> {json.dumps(after)} ({seconds:.0f} s) {failed}',
        flush=True,
      )
      if said != 'undecided':
        rows.append([module, number, line, before, after, int(noticed), failed])
        _write(rows)
    # A test that fails without a change has noticed nothing.
    accusers = sorted({row[6] for row in rows if '::' in row[6]})
    for test, (code, _, _) in zip(accusers, pool.map(lambda test: attempt(wanted[0], None, [test]), accusers)):
      if code:
        print(f'error: {test}: fails without a change')
        return 2
  count = sum(row[5] for row in rows)
  print(f'{count} of {len(rows)} noticed ({100 * count / max(len(rows), 1):.1f}%); {RESULT}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
