"""Compares the numbers of the README and of pages with the files that they come from; `--write` puts the files' numbers in.

A comment names the file, its rows and how they are written; `docs/numbers/README.md`
says how. Every difference is one line of output, and the exit status is then 1.

  python docs/numbers/check.py [--write] [page.md ...]
"""

import argparse
import csv
import json
import pathlib
import re
import shlex
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Pages that show results.
PAGES = ('README.md', 'docs/ignored.md', 'docs/robust.md', 'docs/measured.md', 'docs/accelerators.md')
_EXEMPT = '<!-- table without results -->'
_TABLE = re.compile(r'<!-- table (?!without results -->)((?:(?!-->).)*)-->[ \t]*\n', re.DOTALL)
_TEXT = re.compile(r'<!-- n ((?:(?!-->).)*)-->((?:(?!<!--).)*)<!-- /n -->', re.DOTALL)
_OPENING = re.compile(r'<!--\s*(?:/?n|table|number)\b')
_FIELD = re.compile(r'{([^{}:]+)(?::([^{}]*))?}')
_RULE = re.compile(r'\|?[ :|-]*-[ :|-]*\|?$')


class NumbersError(Exception):
  """A comment that cannot be followed; the message says why."""


def read_rows(path: pathlib.Path) -> list[dict[str, str]]:
  """Rows of a CSV or JSONL file; nested JSON becomes `outer.inner`."""
  try:
    text = path.read_text()
  except OSError as error:
    raise NumbersError(f'{path}: cannot be read ({error.strerror})') from None
  if path.suffix == '.jsonl':
    return [dict(_flat(json.loads(line))) for line in text.splitlines() if line.strip()]
  return list(csv.DictReader(text.splitlines()))


def _flat(values, prefix=''):
  for name, value in values.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', str(value)


def selected(source: str) -> list[dict[str, str]]:
  """Rows that `FILE... [where COLUMN=VALUE...]` names, in the order of the files."""
  try:
    words = shlex.split(source)
  except ValueError as error:
    raise NumbersError(f'{source!r}: {error}') from None
  split = words.index('where') if 'where' in words else len(words)
  found = []
  for name in words[:split]:
    rows = read_rows(ROOT / name)
    for word in words[split + 1 :]:
      column, equals, value = word.partition('=')
      if not equals:
        raise NumbersError(f'{word!r} is no condition; write COLUMN=VALUE')
      if rows and column not in rows[0]:
        raise NumbersError(f'{name}: has no column {column!r}; it has {", ".join(rows[0])}')
      rows = [row for row in rows if row.get(column) == value]
    found += rows
  if not found:
    raise NumbersError(f'no row fits {source!r}')
  return found


def render(template: str, row: dict[str, str]) -> str:
  """Fills in a template such as `{label} | {clean:~.3f}`."""
  return _FIELD.sub(lambda field: written(field[1], field[2], row), template)


def written(column: str, style: str | None, row: dict[str, str]) -> str:
  """One value in Python's format `style`; `~` leaves out the zero before the point, no style copies the text."""
  if row.get(column) is None:
    raise NumbersError(f'no column {column!r}; there are {", ".join(row)}')
  if not style:
    return row[column]
  bare = style.startswith('~')
  style = style.removeprefix('~')
  try:
    value = float(row[column])
    text = format(int(value) if style.endswith('d') else value, style)
  except (ValueError, OverflowError) as error:
    raise NumbersError(f'{column}={row[column]!r} does not take the format {style!r} ({error})') from None
  if style.endswith('d') and value != int(value):
    raise NumbersError(f'{column}={row[column]!r} is no whole number')
  # 1e-06 is written 1e-6.
  text = re.sub(r'e([+-])0+(?=\d)', r'e\1', text)
  return re.sub(r'^([+-]?)0\.', r'\1.', text) if bare else text


def split_source(comment: str) -> tuple[str, str]:
  """The rows and the template of a comment's text, `ROWS : TEMPLATE`."""
  source, colon, template = ' '.join(comment.split()).partition(' : ')
  if not colon:
    raise NumbersError('the comment has no " : " between rows and template')
  return source, template


def updated(text: str, name: str = 'README.md') -> tuple[str, list[str]]:
  """The text with the files' numbers, and one line for every difference or fault."""
  problems = []

  def at(position):
    return f'{name} line {text.count(chr(10), 0, position) + 1}'

  edits = []
  understood = [match.span() for pattern in (_TEXT, _TABLE) for match in pattern.finditer(text)]
  for match in _OPENING.finditer(text):
    inside = any(first <= match.start() < last for first, last in understood)
    if not inside and not text.startswith(_EXEMPT, match.start()):
      problems.append(
        f'{at(match.start())}: a comment that is not understood: {text[match.start() :].splitlines()[0][:60]!r}'
      )
  for match in _TEXT.finditer(text):
    # Markdown takes a line that starts with a comment out of its paragraph.
    if not text[text.rfind('\n', 0, match.start()) + 1 : match.start()].strip():
      problems.append(f'{at(match.start())}: a comment in running text starts the line; put a word before it')
    try:
      source, template = split_source(match[1])
      rows = selected(source)
      if len(rows) != 1:
        raise NumbersError(f'{len(rows)} rows fit {source!r}; one has to')
      expected = render(template, rows[0])
    except NumbersError as error:
      problems.append(f'{at(match.start())}: {error}')
      continue
    if match[2] != expected:
      problems.append(f'{at(match.start(2))}: {match[2]!r} should be {expected!r}, by {source}')
      edits.append((match.start(2), match.end(2), expected))
  covered = set()
  for match in _TABLE.finditer(text):
    start = match.end()
    while text[start : start + 1] == '\n':
      start += 1
    end = text.find('\n\n', start)
    lines = text[start : end if end >= 0 else len(text)].splitlines()
    covered.add(start)
    try:
      source, template = split_source(match[1])
      expected = [f'| {render(template, row)} |' for row in selected(source)]
      if len(lines) < 2 or not lines[0].startswith('|') or not _RULE.match(lines[1]):
        raise NumbersError('no table follows the comment')
      if template.count('|') + 2 != lines[0].count('|'):
        raise NumbersError(f'{template.count("|") + 1} cells in the template, {lines[0].count("|") - 1} in the table')
    except NumbersError as error:
      problems.append(f'{at(match.start())}: {error}')
      continue
    position = start + len(lines[0]) + len(lines[1]) + 2
    for i in range(max(len(expected), len(lines) - 2)):
      line = lines[i + 2] if i + 2 < len(lines) else None
      wanted = expected[i] if i < len(expected) else None
      if line != wanted:
        problems.append(f'{at(position)}: {_short(line)} should be {_short(wanted)}, by {source}')
      position += len(line) + 1 if line is not None else 0
    if lines[2:] != expected:
      edits.append((start, start + len('\n'.join(lines)), '\n'.join(lines[:2] + expected)))
  problems += _bare_tables(text, covered, name)
  for first, last, new in sorted(edits, reverse=True):
    text = text[:first] + new + text[last:]
  return text, problems


def _short(line):
  return 'no line' if line is None else repr(line)


def _bare_tables(text, covered, name):
  """Tables without a comment; a table each of whose lines holds a number from a file counts as covered."""
  problems, position, code = [], 0, False
  lines = text.splitlines(keepends=True)
  for i, line in enumerate(lines):
    code ^= line.startswith('```')
    head = not code and '|' in line and i + 1 < len(lines) and '|' in lines[i + 1] and _RULE.match(lines[i + 1].strip())
    if head and position not in covered:
      before = ''.join(lines[:i]).rstrip()
      body = []
      for row in lines[i + 2 :]:
        if '|' not in row:
          break
        body.append(row)
      if not before.endswith(_EXEMPT) and not all(_TEXT.search(row) for row in body):
        problems.append(f'{name} line {i + 1}: a table without a comment that names its file ({line.strip()[:60]})')
    position += len(line)
  return problems


def main(argv: list[str] | None = None) -> int:
  """Checks, or with `--write` rewrites; the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('pages', nargs='*', type=pathlib.Path, default=[ROOT / page for page in PAGES])
  parser.add_argument('--write', action='store_true', help='put the numbers of the files in')
  options = parser.parse_args(argv)
  found = []
  for page in options.pages:
    text = page.read_text()
    new, problems = updated(text, page.name)
    if options.write and new != text:
      page.write_text(new)
      # What is left are faults of comments and files.
      problems = updated(new, page.name)[1]
    found += problems
  for problem in found:
    print(problem)
  return 1 if found else 0


if __name__ == '__main__':
  sys.exit(main())
