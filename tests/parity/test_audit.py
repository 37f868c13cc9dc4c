"""The example as it stands, and the torch bridge against the converted network."""

import ast
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxrec
from jaxrec.data import synthetic
from tests.property.test_accumulation import in_double

EXAMPLES = Path(__file__).parents[2] / 'examples'


def test_the_example_audits_four_kinds_of_networks(tmp_path, monkeypatch, capsys):
  pytest.importorskip('torch')
  pytest.importorskip('equinox')
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(EXAMPLES))
  made = runpy.run_path(str(EXAMPLES / 'audit.py'))
  text = Path(capsys.readouterr().out.splitlines()[-1]).read_text()
  for name in made['networks']:
    assert name in text
    rows = [r for r in made['rows'] if r['network'] == name]
    # 2 slices, box and whole image, 2 strengths and clean.
    assert len(rows) == 12 and all(r['objective_adv'] > r['objective_clean'] for r in rows if r['strength'])
  (stored,) = (tmp_path / 'runs' / 'audit').glob('torch_VarNet-*/provenance.json')
  assert not made['networks']['torch VarNet'].one_program and '"one_program": false' in stored.read_text()


def test_the_example_is_short():
  code = ast.unparse(ast.parse((EXAMPLES / 'audit.py').read_text()).body[1:])
  assert len(code.splitlines()) <= 15


@pytest.fixture
def both(tmp_path):
  """A scan, and one VarNet in both frameworks by precision."""
  torch = pytest.importorskip('torch')
  from fastmri.models import VarNet

  torch.manual_seed(0)
  module = VarNet(1, chans=4, pools=2, sens_chans=2, sens_pools=2)
  torch.save(module.state_dict(), tmp_path / 'varnet.pt')
  converted, variables = jaxrec.models.load_fastmri(tmp_path / 'varnet.pt', 'varnet')
  scan = synthetic.scan(1, rows=48, cols=48, coils=2)
  scan = jaxrec.Scan.from_kspace(scan.kspace, scan.mask, box=(18, 14, 16, 16))

  def make(precision):
    single = precision == 'single'
    return {
      'ours': jaxrec.network(converted, variables if single else in_double(variables)),
      'torch': jaxrec.torch_network(
        module.float() if single else module.double(), inputs=jaxrec.networks.fastmri, name='VarNet'
      ),
    }

  return scan, make


@pytest.mark.slow
def test_single_precision_is_as_far_from_double_in_both_frameworks(both, x64):
  """So what differs between them is rounding, not a convention of FFTs or an epsilon of a norm."""
  scan, make = both
  objective, found = jaxrec.region_mse(), {}
  for precision, sample in (('single', scan), ('double', in_double(scan))):
    for name, net in make(precision).items():

      def loss(noise, net=net, sample=sample):
        image = net(sample.replace(kspace=sample.kspace + noise))
        return objective(image, sample), image

      gradient, image = jax.jit(jax.grad(loss, has_aux=True))(np.zeros_like(sample.kspace))
      found[precision, name] = np.asarray(image, float), np.asarray(gradient, complex)
  for part in (0, 1):
    want = found['double', 'ours'][part]
    away = {key: np.linalg.norm(x[part] - want) / np.linalg.norm(want) for key, x in found.items()}
    assert away['double', 'torch'] < 1e-12
    assert 0 < away['single', 'ours'] < 2 * away['single', 'torch'] < 1e-5
    assert away['single', 'torch'] < 2 * away['single', 'ours']


@pytest.mark.slow
def test_rows_of_a_torch_network_are_those_of_the_converted_one(both, x64):
  """In double precision: in single precision a search of several steps amplifies the rounding of either framework."""
  scan, make = both
  scan, networks = in_double(scan), make('double')
  rows = jaxrec.audit(networks, [scan], jaxrec.Sweep(jaxrec.coil_noise, (0.01, 0.02)))
  ours, theirs = ([r for r in rows if r['network'] == name] for name in networks)
  assert len(ours) == len(theirs) == 6
  for a, b in zip(ours, theirs):
    for column, value in a.items():
      if isinstance(value, float) and column != 'seconds':
        assert b[column] == pytest.approx(value, rel=1e-4, abs=1e-9), column


@pytest.mark.fault
def test_torch_networks_do_not_wait_for_ever_on_one_core():
  """JAX's only thread is in the callback, and must not be needed by it."""
  pytest.importorskip('torch')
  code = textwrap.dedent("""
    import os
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import jax, jaxrec, torch
    from jaxrec.data import synthetic
    scan = synthetic.scan(0, rows=160, cols=160, coils=4)
    net = jaxrec.torch_network(
      torch.nn.Conv2d(1, 1, 3, padding='same'), inputs=lambda scan: (jaxrec.networks.zero_filled(scan)[0][None],)
    )
    jax.block_until_ready(jax.jit(jax.grad(lambda k: (net(scan.replace(kspace=k)) ** 2).sum()))(scan.kspace))
    print('done')
  """)
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
  assert done.stdout == 'done\n', done.stderr
