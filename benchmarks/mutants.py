"""Changes one thing in the code at a time and asks whether the fast tests notice.

  python -m benchmarks.mutants [--count=160] [--seed=0] [--modules=jaxrec/masks.py,...] [--numbers=3,17] [--minutes=60]
      [--known=docs/numbers/mutants.csv]

Mutants are drawn by the seed among all places of a module where an operator, a
comparison, a number, a truth value, a keyword argument's value or a statement can be another;
texts, annotations, checks that only raise, and defaults that a docstring prints
are left alone. First every test runs once and notes which functions it calls
(benchmarks/results/calls.json). Each mutant then meets, in a process of its own,
the tests that call its function, first those that are fast and call little else,
and if none notices, all other tests of their files. No file is touched. What was tried is added to
benchmarks/results/mutants.csv, and the same command goes on from there. A mutant that the table of an earlier revision
(`--known`) holds too first meets the test that noticed it then. At the
end the tests that noticed run once without a change. Prints every survivor and the score.
"""

import argparse
import ast
import csv
import functools
import gc
import hashlib
import importlib
import json
import math
import multiprocessing
import os
import random
import sys
import threading
import time
import types
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RESULT = ROOT / 'benchmarks' / 'results' / 'mutants.csv'
CALLS = ROOT / 'benchmarks' / 'results' / 'calls.json'
HEAD = ['module', 'place', 'line', 'before', 'after', 'noticed', 'by']
# Share of the mutants.
MODULES = {
  'jaxrec/fourier.py': 2,
  'jaxrec/masks.py': 3,
  'jaxrec/geometry.py': 3,
  'jaxrec/metrics.py': 3,
  'jaxrec/noise.py': 2,
  'jaxrec/tomography.py': 2,
  'jaxrec/statistics.py': 2,
  'jaxrec/attacks/core.py': 2,
  'jaxrec/attacks/perturbations.py': 3,
  'jaxrec/attacks/searches.py': 4,
  'jaxrec/attacks/objectives.py': 1,
  'jaxrec/attacks/lipschitz.py': 1,
  'jaxrec/attacks/defences.py': 1,
  'jaxrec/invariances/analysis.py': 3,
  'jaxrec/invariances/observers.py': 2,
  'jaxrec/invariances/verdict.py': 1,
  'jaxrec/invariances/sampling.py': 2,
  'jaxrec/invariances/witness.py': 1,
  'jaxrec/training/tasks.py': 2,
  'jaxrec/training/robust.py': 2,
  'jaxrec/training/loop.py': 2,
  'jaxrec/data/loader.py': 2,
  'jaxrec/data/annotations.py': 2,
  'jaxrec/audit/program.py': 3,
  'jaxrec/audit/engine.py': 3,
  'jaxrec/workflows/attack.py': 1,
}
# Tests of a module's numbers; those of whole programs, of documents and of what is not changed here take long and say little.
TESTS = ['tests/unit', 'tests/property', 'tests/parity', 'tests/faults']
WITHOUT = {
  'test_docs', 'test_imports', 'test_readme_numbers', 'test_recipes', 'test_models', 'test_vgg', 'test_workers', 'test_denoise', 'test_options',
  'test_weights', 'test_run_folders', 'test_plan', 'test_adversarial', 'test_audit', 'test_invariances', 'test_checkpoints', 'test_costs', 'test_training',
}  # fmt: skip
SECONDS = 1800

SWAPS = {
  ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
  ast.MatMult: ast.Mult, ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot,
  ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


_LEFT_OUT = ('annotation', 'returns', 'decorator_list', 'type_params', 'type_comment', 'defaults', 'kw_defaults')
_DROPPED = (
  'conj', 'abs', 'sqrt', 'real', 'stop_gradient', 'ravel', 'sign', 'flip', 'ifftshift', 'fftshift', 'square',
)  # fmt: skip


def _change(node):
  """What can be another in a node: the field's name and what is put there; or nothing."""
  if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
    return 'op', SWAPS[type(node.op)]()
  if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
    return 'ops', [SWAPS[type(node.ops[0])](), *node.ops[1:]]
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Invert)):
    return 'op', ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
    return 'operand', ast.UnaryOp(ast.Not(), node.operand)
  if isinstance(node, ast.Constant) and isinstance(node.value, bool):
    return 'value', not node.value
  if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, complex)):
    return 'value', node.value + 1 if isinstance(node.value, int) else node.value * 1.1 if node.value else 1.0
  if isinstance(node, (ast.If, ast.IfExp)):
    return 'test', ast.UnaryOp(ast.Not(), node.test)
  if isinstance(node, ast.AugAssign):
    return 'op', SWAPS.get(type(node.op), ast.Add)()
  if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _DROPPED:
    if len(node.args) == 1 and not node.keywords:
      return 'func', ast.parse('lambda x: x', mode='eval').body
  return None


def _checks(node):
  """Whether a statement only raises; the fault table has rows of its own for it."""
  return isinstance(node, ast.If) and len(node.body) == 1 and isinstance(node.body[0], ast.Raise)


def _places(tree):
  """`(node, field, what is put there, first line of the function)` of every mutant, in order."""
  found = []

  def visit(node, inside):
    text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    if text or isinstance(node, (ast.JoinedStr, ast.Raise, ast.Assert, ast.Import, ast.ImportFrom)):
      return
    if _checks(node):
      for child in node.orelse:
        visit(child, inside)
      return
    change = _change(node) if inside else None
    if change:
      found.append((node, *change, inside))
    if isinstance(node, (ast.FunctionDef, ast.Lambda)):
      inside = min(x.lineno for x in (node, *getattr(node, 'decorator_list', ())))
    for name, value in ast.iter_fields(node):
      if name not in _LEFT_OUT:
        for child in value if isinstance(value, list) else [value]:
          if isinstance(child, ast.AST):
            visit(child, inside)

  visit(tree, 0)
  return found


def mutants(count, seed):
  """`(module, number of the place)` of all mutants, drawn by the seed."""
  total = sum(MODULES.values())
  chosen = []
  for module, share in MODULES.items():
    places = _places(ast.parse((ROOT / module).read_text()))
    wanted = min(max(round(count * share / total), 1), len(places))
    chosen += [(module, i) for i in sorted(random.Random(f'{seed} {module}').sample(range(len(places)), wanted))]
  return chosen


class Mutant(NamedTuple):
  """The code of a mutant, its line, that place before and after, and the first line of its function."""

  code: types.CodeType
  line: int
  before: str
  after: str
  function: int


def mutate(module, number):
  tree = ast.parse((ROOT / module).read_text())
  node, field, value, function = _places(tree)[number]
  before = ast.unparse(node)
  setattr(node, field, value)
  after = ast.unparse(node)
  if isinstance(node, ast.If):
    before, after = before.split('\n')[0], after.split('\n')[0]
  code = compile(ast.fix_missing_locations(tree), str(ROOT / module), 'exec')
  return Mutant(code, node.lineno, before, after, function)


def _codes(code):
  """All code objects in one, by name and line."""
  found = {(code.co_qualname, code.co_firstlineno): code}
  for inner in code.co_consts:
    if isinstance(inner, types.CodeType):
      found |= _codes(inner)
  return found


def _install(mutant):
  """Gives every function of the module the mutant's code, wherever it is kept; importing again would take seconds."""
  codes = _codes(mutant.code)
  for function in gc.get_objects():
    if isinstance(function, types.FunctionType) and function.__code__.co_filename == mutant.code.co_filename:
      function.__code__ = codes[function.__code__.co_qualname, function.__code__.co_firstlineno]


class _First:
  """Runs the tests of a plan, in its order; or those that are not in it. Notes the first that fails."""

  def __init__(self, chosen, others):
    self.chosen, self.others, self.failed = {name: i for i, name in enumerate(chosen)}, others, ''
    self.ran = 0

  def pytest_collection_modifyitems(self, items):
    if self.others:
      items[:] = [item for item in items if item.nodeid not in self.chosen]
    else:
      items[:] = sorted(
        (item for item in items if item.nodeid in self.chosen), key=lambda item: self.chosen[item.nodeid]
      )

  def pytest_runtest_logreport(self, report):
    self.ran += 1
    if report.failed:
      self.failed = self.failed or report.nodeid

  def pytest_collectreport(self, report):
    if report.failed:
      self.failed = self.failed or report.nodeid


class _Calls:
  """Notes which functions of the package each test calls, and how long it takes."""

  def __init__(self):
    self.called, self.tests, self.began = set(), {}, time.monotonic()
    self.package = f'{ROOT}/jaxrec/'
    sys.settrace(self._trace)
    threading.settrace(self._trace)

  def _trace(self, frame, event, arg):
    if frame.f_code.co_filename.startswith(self.package):
      self.called.add(frame.f_code)

  def _taken(self):
    taken = sorted({f'{c.co_filename.removeprefix(f"{ROOT}/")}:{c.co_firstlineno}' for c in self.called})
    self.called.clear()
    return taken

  def pytest_collection_finish(self, session):
    self.tests[''] = [time.monotonic() - self.began, self._taken()]

  def pytest_runtest_logfinish(self, nodeid, location):
    self.tests[nodeid][1] = self._taken()

  def pytest_runtest_logreport(self, report):
    self.tests.setdefault(report.nodeid, [0.0, []])[0] += report.duration


def _pytest(test, plugin):
  import pytest

  code = pytest.main(['-x', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', test], plugins=[plugin])
  return 0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else int(code)


def _child(work, pipe):
  for number in (1, 2):
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)
  try:
    pipe.send(work())
  except Exception as error:
    pipe.send(error)
  pipe.close()
  os._exit(0)


def forked(work, seconds):
  """What a function gives in a process of its own; nothing if that takes too long or dies."""
  context = multiprocessing.get_context('fork')
  pipe, other = context.Pipe()
  child = context.Process(target=_child, args=(work, other))
  child.start()
  other.close()
  try:
    return pipe.recv() if pipe.poll(seconds) else 'time'
  except EOFError:
    return 'dead'
  finally:
    child.kill()
    child.join()


def calls():
  """What every test calls, by file and test; `''` is what its collection calls."""
  found = json.loads(CALLS.read_text()) if CALLS.exists() else {}
  files = [p for folder in TESTS for p in sorted((ROOT / folder).glob('test_*.py')) if p.stem not in WITHOUT]
  for path in files:
    name, content = str(path.relative_to(ROOT)), path.read_text()
    if found.get(name, {}).get('content') == hash_of(content):
      continue

    def work(name=name):
      plugin = _Calls()
      _pytest(name, plugin)
      return plugin.tests

    tests = forked(work, 3600)
    if isinstance(tests, str):
      raise SystemExit(f'error: {name}: its tests ended without a result ({tests})')
    found[name] = {'content': hash_of(content), 'tests': tests}
    print(f'{name}: {len(tests) - 1} tests, {sum(seconds for seconds, _ in tests.values()):.0f} s', flush=True)
    CALLS.parent.mkdir(exist_ok=True)
    CALLS.write_text(json.dumps(found))
  return {name: of['tests'] for name, of in found.items() if ROOT / name in files}


def hash_of(content):
  return hashlib.sha256(content.encode()).hexdigest()[:16]


def plan(place, called, most):
  """Rounds of `(file, its tests)` that call a place, those first that take little time and call little else."""
  wanted = []
  for name, tests in called.items():
    everything = place in tests[''][1]
    for test, (seconds, places) in tests.items():
      if test and (everything or place in places):
        wanted.append((seconds * len(places), seconds, name, test))
  wanted.sort()
  spent, kept = 0.0, []
  for _, seconds, name, test in wanted:
    spent += seconds
    if spent > most and kept:
      break
    kept.append((name, test))
  rounds = []
  for start, stop in ((0, 6), (6, 30), (30, None)):
    files: dict = {}
    for name, test in kept[start:stop]:
      files.setdefault(name, []).append(test)
    rounds += files.items()
  return rounds


def _rounds(tests):
  files: dict = {}
  for test in tests:
    files.setdefault(test.partition('::')[0], []).append(test)
  return list(files.items())


def attempt(module, number, called, most):
  """Whether a mutant is noticed (nothing: time is over), and by which test; `called` as of `calls`, or rounds of tests."""
  mutant = mutate(module, number)
  rounds = plan(f'{module}:{mutant.function}', called, most) if isinstance(called, dict) else called

  def work():
    _install(mutant)
    done: dict = {}
    for name, chosen in rounds:
      first = _First(chosen, False)
      if _pytest(name, first):
        return True, first.failed or f'{name}: does not run'
      if not first.ran:
        raise ValueError(f'{name}: none of its tests ran: {", ".join(chosen)}; name others, or make {CALLS} anew')
      done[name] = done.get(name, []) + chosen
    if most == math.inf:
      # What a test calls is not noted if an earlier one has compiled it.
      for name, chosen in done.items():
        first = _First(chosen, True)
        if _pytest(name, first):
          return True, first.failed or f'{name}: does not run'
    return False, '' if rounds else 'no test calls it'

  found = forked(work, SECONDS)
  # A mutant that does not end, or takes all tests down with it, would not pass a run of the tests either.
  if isinstance(found, Exception):
    raise found
  return {'time': (None, f'more than {SECONDS} s'), 'dead': (True, 'the tests died')}.get(found, found)


def _read():
  if not RESULT.exists():
    return {}
  with open(RESULT, newline='') as stream:
    return {(row['module'], int(row['place'])): row for row in csv.DictReader(stream)}


def _accusers(path):
  """The test that noticed a mutant of an earlier revision, by module and what stood there before and after."""
  if not path:
    return {}
  with open(path, newline='') as stream:
    return {(r['module'], r['before'], r['after']): r['by'] for r in csv.DictReader(stream) if '::' in r['by']}


def _write(rows):
  RESULT.parent.mkdir(exist_ok=True)
  with open(RESULT, 'w', newline='') as stream:
    writer = csv.DictWriter(stream, HEAD, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows[key] for key in sorted(rows))


def _chosen(given):
  """Mutants, modules in turn, so that a run that is cut short has seen all."""
  wanted = given.modules.split(',') if given.modules else list(MODULES)
  if given.numbers:
    return [(m, int(n)) for m in wanted for n in given.numbers.split(',')]
  chosen = [(m, n) for m, n in mutants(given.count, given.seed) if m in wanted]
  rank: dict = {}
  for m, n in chosen:
    rank[m, n] = sum(1 for other, _ in rank if other == m)
  return sorted(chosen, key=lambda c: (rank[c], wanted.index(c[0])))


def _warm():
  """Imported before the forks, once; no device is asked for."""
  import flax.linen  # noqa: F401
  import grain  # noqa: F401
  import h5py  # noqa: F401
  import hypothesis
  import jax  # noqa: F401
  import matplotlib.pyplot  # noqa: F401
  import ml_collections  # noqa: F401
  import optax  # noqa: F401
  import orbax.checkpoint  # noqa: F401
  import pytest  # noqa: F401
  import scipy.ndimage  # noqa: F401

  # One example that fails is enough; the smallest takes minutes to find.
  phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
  hypothesis.settings.register_profile('mutants', phases=phases, database=None)
  hypothesis.settings.load_profile('mutants')
  try:
    import torch  # noqa: F401
  except ImportError:
    print('note: without torch the tests against it notice nothing')
  for module in MODULES:
    importlib.import_module(module.removesuffix('.py').replace('/', '.'))


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--count', type=int, default=160)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--modules', default='')
  parser.add_argument('--numbers', default='', help='places of the modules, in place of a draw')
  parser.add_argument(
    '--tests', default='', help='names of tests that the mutants meet, in place of those that call them'
  )
  parser.add_argument('--known', default='', help='a table of an earlier revision')
  parser.add_argument('--again', action='store_true', help='those that survived, with the tests as they are now')
  parser.add_argument(
    '--most', type=float, default=math.inf, help='seconds of tests per mutant, as they took without a change'
  )
  parser.add_argument('--minutes', type=float, default=1e9, help='begin no mutant after so long')
  given = parser.parse_args()
  os.chdir(ROOT)
  _warm()
  rows, end, known = _read(), time.monotonic() + 60 * given.minutes, _accusers(given.known)
  called = functools.cache(lambda: _rounds(given.tests.split(',')) if given.tests else calls())
  for module, number in _chosen(given):
    before = rows.get((module, number))
    if time.monotonic() > end or before and not (given.again and before['noticed'] != '1'):
      continue
    start = time.monotonic()
    mutant, noticed, by = mutate(module, number), False, ''
    accuser = known.get((module, mutant.before, mutant.after))
    if accuser:
      noticed, by = attempt(module, number, _rounds([accuser]), 0)
    if not noticed:
      noticed, by = attempt(module, number, called(), given.most)
    said = {True: 'noticed', False: 'SURVIVED', None: 'undecided'}[noticed]
    print(
      f'{said} {module}:{mutant.line} [{number}] {json.dumps(mutant.before)} -> {json.dumps(mutant.after)} '
      f'({time.monotonic() - start:.0f} s) {by}', flush=True,
    )  # fmt: skip
    values = [module, number, mutant.line, mutant.before, mutant.after, '' if noticed is None else int(noticed), by]
    rows[module, number] = dict(zip(HEAD, map(str, values)))
    _write(rows)
  # A test that fails without a change has noticed nothing.
  accusers: dict = {}
  for row in rows.values():
    if '::' in row['by']:
      accusers.setdefault(row['by'].partition('::')[0], []).append(row['by'])
  for name, tests in accusers.items():
    first = _First(tests, False)
    if forked(lambda name=name, first=first: (_pytest(name, first), first.failed)[1], 3600):
      print(f'error: {name}: fails without a change')
      return 2
  count, tried = (sum(row['noticed'] in of for row in rows.values()) for of in (('1',), ('0', '1')))
  print(f'{count} of {tried} noticed ({100 * count / max(tried, 1):.1f}%); {RESULT}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
