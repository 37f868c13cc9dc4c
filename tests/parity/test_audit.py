"""The example as it stands, and the torch bridge against the converted network."""

import ast
import runpy
from pathlib import Path

import pytest

import jaxrec

EXAMPLES = Path(__file__).parents[2] / 'examples'


def test_the_example_audits_four_kinds_of_networks(tmp_path, monkeypatch, capsys):
  """The torch network's rows are those of the same weights in JAX, to 1e-4."""
  torch = pytest.importorskip('torch')
  pytest.importorskip('equinox')
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(EXAMPLES))
  torch.manual_seed(0)
  made = runpy.run_path(str(EXAMPLES / 'audit.py'))
  text = Path(capsys.readouterr().out.splitlines()[-1]).read_text()
  for name in made['networks']:
    assert name in text
    rows = [r for r in made['rows'] if r['network'] == name]
    # 2 slices, box and whole image, 2 strengths and clean.
    assert len(rows) == 12 and all(r['objective_adv'] > r['objective_clean'] for r in rows if r['strength'])
  bridge = made['networks']['torch VarNet']
  (stored,) = (tmp_path / 'runs' / 'audit').glob('torch_VarNet-*/provenance.json')
  assert not bridge.one_program and '"one_program": false' in stored.read_text()
  torch.manual_seed(0)
  torch.save(made['VarNet'](num_cascades=1, chans=4, pools=2, sens_chans=2, sens_pools=2).state_dict(), 'varnet.pt')
  converted = jaxrec.network(*jaxrec.models.load_fastmri('varnet.pt', 'varnet'))
  ours = jaxrec.audit({'torch VarNet': converted}, made['scans'], {'noise': made['noise']})
  theirs = [r for r in made['rows'] if r['network'] == 'torch VarNet']
  key = lambda r: (r['file'], r['attacked'], r['strength'])
  for a, b in zip(sorted(ours, key=key), sorted(theirs, key=key), strict=True):
    for column, value in a.items():
      if isinstance(value, float) and column != 'seconds':
        assert b[column] == pytest.approx(value, rel=1e-4, abs=1e-6), column


def test_the_example_is_short():
  code = ast.unparse(ast.parse((EXAMPLES / 'audit.py').read_text()).body[1:])
  assert len(code.splitlines()) <= 15
