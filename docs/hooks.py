"""Pages that the site makes itself: the reference, of every public module and name, and files of the root."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FROM_ROOT = {
  'contributing.md': ('Contributing', 'CONTRIBUTING.md'),
  'security.md': ('Security', 'SECURITY.md'),
  'changelog.md': ('Changelog', 'CHANGELOG.md'),
}


def modules() -> dict[str, list[str]]:
  """Public modules by the part of `jaxrec` that they belong to."""
  found: dict[str, list[str]] = {}
  for path in sorted((ROOT / 'jaxrec').rglob('*.py')):
    parts = path.relative_to(ROOT).with_suffix('').parts
    names = parts[:-1] if parts[-1] == '__init__' else parts
    if len(names) > 1 and not any(name.startswith('_') for name in names):
      found.setdefault(names[1], []).append('.'.join(names))
  return found


def imported(module: str) -> dict[str, str]:
  """Where the names that a package imports come from, `module.name` by name."""
  path = ROOT.joinpath(*module.split('.'), '__init__.py')
  if not path.exists():
    return {}
  found = {}
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom):
      found |= {alias.asname or alias.name: f'{node.module}.{alias.name}' for alias in node.names}
  return found


def definition(name: str) -> str:
  """Full name of the place where a name that a package offers is defined."""
  module, _, short = name.rpartition('.')
  origin = imported(module).get(short, name)
  return name if origin == name else definition(origin)


def public() -> list[str]:
  """Names in `jaxrec.__all__`."""
  tree = ast.parse((ROOT / 'jaxrec' / '__init__.py').read_text())
  (names,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == '__all__')
  return [name for name in ast.literal_eval(names) if name != '__version__']


def pages() -> dict[str, str]:
  """Markdown of the reference by path."""
  parts = modules()
  made = {}
  for part, names in parts.items():
    # What a package imports stands where it is defined.
    entries = [f'::: {name}\n' + '    options: {members: false}\n' * bool(imported(name)) for name in names]
    made[f'reference/{part}.md'] = f'# jaxrec.{part}\n\n' + '\n'.join(entries)
  lines = []
  for name in public():
    full = definition(f'jaxrec.{name}')
    # Modules have a page, all else a place on one.
    where = f'({name}.md)' if full.removeprefix('jaxrec.') in parts else f'[{full}]'
    lines.append(f'- [`jaxrec.{name}`]{where}')
  made['reference/index.md'] = '# Reference\n\nWhat `import jaxrec` offers:\n\n' + '\n'.join(lines) + '\n'
  return made


def on_config(config):
  """Adds the pages to the navigation."""
  reference = next(entry for entry in config.nav if 'Reference' in entry)
  reference['Reference'] = [{'Names': 'reference/index.md'}, *({part: f'reference/{part}.md'} for part in modules())]
  config.nav += [{title: path} for path, (title, _) in FROM_ROOT.items() if path]
  return config


def on_files(files, config):
  """Adds the pages to the files."""
  from mkdocs.structure.files import File

  for path, text in pages().items():
    files.append(File.generated(config, path, content=text))
  for path, (_, name) in FROM_ROOT.items():
    files.append(File.generated(config, path, content=(ROOT / name).read_text()))
  return files
