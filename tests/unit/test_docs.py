"""The documentation: its examples run, and its reference leaves out no public name."""

import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest

import jaxrec

DOCS = Path(jaxrec.__file__).parents[1] / 'docs'
PAGES = [path.name for path in sorted(DOCS.glob('*.md')) if '```python' in path.read_text()]


@pytest.fixture(scope='module')
def hooks():
  spec = importlib.util.spec_from_file_location('hooks', DOCS / 'hooks.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize('page', PAGES)
def test_examples_run(page, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  namespace = {'__name__': 'example'}
  for block in re.findall(r'```python\n(.*?)```', (DOCS / page).read_text(), re.DOTALL):
    exec(compile(block, page, 'exec'), namespace)


def found(name):
  """What a full name means."""
  module, _, attribute = name.rpartition('.')
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError:
    return getattr(importlib.import_module(module), attribute)


def test_the_reference_has_every_public_name(hooks):
  index = hooks.pages()['reference/index.md']
  for name in jaxrec.__all__:
    if name != '__version__':
      (kind, target) = re.search(rf'\[`jaxrec\.{name}`\]([\[(])([^\])]*)', index).groups()
      where = f'jaxrec.{target.removesuffix(".md")}' if kind == '(' else target
      assert found(where) is getattr(jaxrec, name), name


def test_the_reference_has_every_public_module(hooks):
  text = '\n'.join(hooks.pages().values())
  for module in pkgutil.walk_packages(jaxrec.__path__, 'jaxrec.'):
    if not any(part.startswith('_') for part in module.name.split('.')):
      assert f'::: {module.name}\n' in text, module.name


def test_every_perturbation_is_in_the_gallery():
  page = (DOCS / 'gallery.md').read_text()
  drawn = set(re.findall(r'!\[.*?\]\(gallery/(\w+)\.png\)', page))
  assert drawn == {path.stem for path in (DOCS / 'gallery').glob('*.png')}
  families = {name for name in jaxrec.attacks.__all__ if hasattr(getattr(jaxrec.attacks, name), 'family')}
  assert families and families | {'compose'} <= drawn
