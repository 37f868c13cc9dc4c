"""Numbers of the README and of the pages with results are those of the files that its comments name."""

import importlib.util
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location('check_numbers', ROOT / 'docs' / 'numbers' / 'check.py')
check = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check)
PAGES = {page: (ROOT / page).read_text() for page in check.PAGES}

CSV = 'network,size,r,low,passes\nCNN-10,2,0.91234,-0.05,12000\nU-Net,2,0.5,1e-6,1600\nU-Net,3,1.25,0.2,20\n'


@pytest.fixture
def written(tmp_path, monkeypatch):
  """Writes a README beside `a.csv`, and reads it again."""
  (tmp_path / 'a.csv').write_text(CSV)
  (tmp_path / 'b.jsonl').write_text('{"work": "pgd", "peak": {"torch": 8.97}}\n')
  monkeypatch.setattr(check, 'ROOT', tmp_path)

  def write(text):
    (tmp_path / 'README.md').write_text(text)
    return tmp_path / 'README.md'

  return write


TABLE = """<!-- table a.csv where network=U-Net :
{network} | {r:~.2f} ({low:~.1f}) | {passes:,d} -->
| network | r | passes |
|---|---|---|
| U-Net | .50 (.0) | 1,600 |
| U-Net | 1.25 (.2) | 20 |
"""


@pytest.mark.parametrize('page', ['README.md', 'docs/accelerators.md'])
def test_the_readme_agrees_with_its_files(page, capsys):
  assert check.main([str(ROOT / page)]) == 0, capsys.readouterr().out


def digits(page):
  """Places of digits that a comment vouches for: the first and the last of every table, and all of running text."""
  for match in check._TEXT.finditer(page):
    yield match.start(2) + re.search(r'\d', match[2]).start()
  for match in check._TABLE.finditer(page):
    end = page.index('\n\n', match.end())
    places = [m.start() for m in re.finditer(r'\d', page[:end])]
    body = page.index('\n', page.index('|---', match.end()))
    places = [p for p in places if p > body]
    yield from (places[0], places[-1])


def test_every_changed_digit_is_found(tmp_path, capsys):
  assert sum(len(list(digits(page))) for page in PAGES.values()) >= 15
  for page in PAGES.values():
    for place in digits(page):
      changed = page[:place] + str((int(page[place]) + 1) % 10) + page[place + 1 :]
      path = tmp_path / 'page.md'
      path.write_text(changed)
      assert check.main([str(path)]) == 1
      line = page.count('\n', 0, place) + 1
      out = capsys.readouterr().out.splitlines()
      assert len(out) == 1 and out[0].startswith(f'page.md line {line}: ')
      assert check.main([str(path), '--write']) == 0
      assert path.read_text() == page


def test_numbers_are_written_in_the_formats_of_the_readme():
  row = dict(a='0.0049', b='-0.25', c='12000', d='9e-6', e='0.159', f='1.11')
  assert (
    check.render('{a:~.2f} {a:.2f} {b:~.1f} {c:,d} {d:.0e} {e:.1%} {f:~.3f} {d}', row)
    == '.00 0.00 -.2 12,000 9e-6 15.9% 1.110 9e-6'
  )


def test_rows_that_are_missing_or_too_many_are_named_and_written(written, capsys):
  assert check.main([str(written(TABLE))]) == 0
  path = written(TABLE.replace('| U-Net | 1.25 (.2) | 20 |\n', '') + '\ntext\n')
  assert check.main([str(path)]) == 1
  assert 'no line should be' in capsys.readouterr().out
  assert check.main([str(path), '--write']) == 0
  assert path.read_text() == TABLE + '\ntext\n'
  path = written(TABLE + '| U-Net | 9 (.2) | 21 |\n')
  assert check.main([str(path)]) == 1
  assert 'should be no line' in capsys.readouterr().out
  assert check.main([str(path), '--write']) == 0
  assert path.read_text() == TABLE


@pytest.mark.parametrize('text, message', [
  ('| a | b |\n|---|---|\n| 1 | 2 |\n', 'a table without a comment'),
  ('a | b\n--- | ---\n1 | 2\n', 'a table without a comment'),
  ('r is <!-- n a.csv where network=U-Net : {r:.1f} -->0.5<!-- /n -->', '2 rows fit'),
  ('r is <!-- n a.csv where network=VarNet : {r:.1f} -->0.5<!-- /n -->', 'no row fits'),
  ('r is <!-- n a.csv where name=CNN-10 : {r:.1f} -->0.9<!-- /n -->', "no column 'name'"),
  ('r is <!-- n a.csv where network=CNN-10 : {s:.1f} -->0.9<!-- /n -->', "no column 's'"),
  ('r is <!-- n a.csv where network=CNN-10 : {network:.1f} -->0.9<!-- /n -->', 'does not take the format'),
  ('r is <!-- n a.csv where network=CNN-10 : {r:,d} -->0<!-- /n -->', 'no whole number'),
  ('r is <!-- n a.csv where network=CNN-10 {r:.1f} -->0.9<!-- /n -->', 'has no " : "'),
  ('r is <!-- n c.csv : {r:.1f} -->0.9<!-- /n -->', 'cannot be read'),
  ('r is <!-- n a.csv where network=CNN-10 : {r:.1f} -->0.9', 'not understood'),
  ('r is\n<!-- n a.csv where network=CNN-10 : {r:.1f} -->0.9<!-- /n -->', 'starts the line'),
  ('<!-- table a.csv : {network} | {r:.1f} -->\n\ntext\n', 'no table follows'),
  (TABLE.replace(' | {passes:,d}', ''), '2 cells in the template, 3 in the table'),
])  # fmt: skip
def test_faults_are_named(text, message, written, capsys):
  path = written(text)
  assert check.main([str(path)]) == 1
  assert message in capsys.readouterr().out
  check.main([str(path), '--write'])
  assert path.read_text() == text


def test_a_table_may_hold_its_numbers_one_by_one_or_none_at_all(written):
  cell = '<!-- n b.jsonl where work=pgd : {peak.torch:.1f} -->9.0<!-- /n -->'
  assert check.main([str(written(f'| | torch |\n|---|---|\n| peak | {cell} |\n'))]) == 0
  assert check.main([str(written('<!-- table without results -->\n| a | b |\n|---|---|\n| c | d |\n'))]) == 0
