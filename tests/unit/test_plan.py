"""What is said of programs before they run: their work, their memory, and how they spread over devices."""

import dataclasses
import functools
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax import lax

import jaxrec
from configs import adversarial_unet, unet_8x
from jaxrec import models, training
from jaxrec.data import loader, synthetic
from jaxrec.data.errors import DataError
from jaxrec.experiments import build
from jaxrec.training import cost, memory, parallel
from jaxrec.workflows import attack, plan, targets

ROOT = Path(__file__).parents[2]
SIZES = dict(num_cascades=3, chans=2, pools=1, sens_chans=2, sens_pools=1)
EXTRAS = {'h100': 'jax_cuda12_plugin', 'rtx2080ti': 'jax_cuda12_plugin', 'v5e:16x16': 'libtpu', 'v5p:4x8x8': 'libtpu'}
COLLECTIVE = re.compile(
  r'\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast)\b'
)


def smoke(name='unet_8x', **changes):
  config = importlib.import_module(f'configs.{name}').get_config('smoke')
  config.plan.update(changes)
  return build.build(config, '', planned=True)


@pytest.fixture
def at_once(monkeypatch):
  """What is taken at once of programs whose need is slices per device times strengths; with the shapes they are asked for."""

  def run(batch, chunk, cases, room, devices=1):
    asked = dataclasses.replace(smoke().attack, batch_size=batch, chunk=chunk)
    several = types.SimpleNamespace(
      memory=room, devices=devices, map_batch=lambda need: types.SimpleNamespace(compile=lambda count: need * count)
    )
    monkeypatch.setattr(memory, 'bytes_of', lambda compiled: compiled() / devices)
    return attack._at_once(asked, several, None, {'noise': types.SimpleNamespace(is_grid=False)}, cases)

  run.shapes = []
  monkeypatch.setattr(attack.program, 'by_search', lambda network, sweep, chunk: chunk)
  monkeypatch.setattr(
    attack.program, 'shapes', lambda network, sweep, sample, count: run.shapes.append(sample.shape) or (count,)
  )
  return run


def case_of(shape):
  return types.SimpleNamespace(shape=shape, read=lambda: np.zeros(shape or ()))


@pytest.mark.parametrize('room', [0, 1, 3, 8, 10, 40, 10_000])
@pytest.mark.parametrize('batch, chunk', [(0, 0), (3, 0), (0, 2), (3, 5)])
@pytest.mark.parametrize('slices, devices', [(1, 1), (5, 1), (9, 2)])
def test_an_attack_takes_at_once_what_fits(room, batch, chunk, slices, devices, at_once):
  """What the config says is taken as it is."""
  found = functools.partial(at_once, batch, chunk, [case_of((8, 8))] * slices, room, devices)
  if batch and chunk:
    assert found() == (batch, chunk)
    return
  slices_that_fit = [batch] if batch else [n for n in attack.AT_ONCE if n <= slices // devices or n == 1]
  fitting = [n for n in slices_that_fit if n * (chunk or 1) <= room]
  if not fitting:
    with pytest.raises(ValueError, match='attack.batch_size: not even one slice fits'):
      found()
    return
  most = max(fitting)
  assert found() == (most, chunk or max(n for n in attack.AT_ONCE if most * n <= room))


def test_what_fits_is_asked_of_the_largest_slice(at_once):
  """Wherever it stands, and of the next one if it cannot be read; a slice whose shape is not known counts as small."""

  def unreadable():
    raise DataError('broken.h5: is damaged')

  cases = [case_of(shape) for shape in ((8, 8), (9, 20), (30, 30), (20, 9, 2), None)]
  cases[2].read = unreadable
  assert at_once(0, 0, cases, 10_000) == (4, 16)
  assert set(at_once.shapes) == {(20, 9, 2)}


def needs(target):
  return pytest.mark.skipif(
    importlib.util.find_spec(EXTRAS[target]) is None, reason=f'{target} needs the package {EXTRAS[target]}'
  )


def step_of(**options):
  module = models.build('varnet', **SIZES, **options)
  task = training.supervised(module, training.optimizer('adam', 1e-3))
  batch = loader.stack([synthetic.scan(0, rows=32, cols=32, coils=3, acceleration=2)])
  return task.step, jax.eval_shape(task.init, jax.random.key(0), batch), batch, jax.random.key(0)


X, K, IMAGE = jnp.ones((4, 6)), jnp.ones((3, 3, 2, 5)), jnp.ones((1, 8, 10, 2))
PROGRAMS = {
  'product': (lambda: X @ X.T, 2 * 4 * 4 * 6),
  'complex product': (lambda: (1j * X) @ X.T, 4 * 2 * 4 * 4 * 6),
  'convolution': (lambda: models.layers.conv2d(IMAGE, K), 2 * 80 * 5 * 9 * 2),
  'its gradients': (
    lambda: jax.grad(lambda k, x: models.layers.conv2d(x, k).sum(), (0, 1))(K, IMAGE),
    3 * 2 * 80 * 5 * 9 * 2,
  ),
  'transform': (lambda: jnp.fft.fft(jnp.ones((3, 8), 'complex64')), 3 * 5 * 8 * 3),
  'loop': (lambda: lax.scan(lambda c, _: (c @ c, None), jnp.ones((5, 5)), None, length=7)[0], 7 * 250),
  'branches': (lambda: lax.cond(X[0, 0] > 0, lambda: X @ X.T, lambda: jnp.zeros((4, 4))), 2 * 4 * 4 * 6),
}


@pytest.mark.parametrize('name', PROGRAMS)
def test_the_work_of_a_program_is_that_of_its_products(name):
  function, want = PROGRAMS[name]
  assert cost.flops(function) == want


def test_rematerialisation_costs_at_most_a_third():
  plain, again = (cost.flops(*step_of(remat=remat)) for remat in (False, True))
  assert 1.2 * plain < again <= plain * 4 / 3


def products(jaxpr):
  for equation in jaxpr.eqns:
    if equation.primitive.name in ('dot_general', 'conv_general_dilated'):
      yield equation
    for inner in cost.inside(equation.params):
      yield from products(inner)


def test_every_product_of_a_training_step_is_float32():
  """Graphics cards would take TF32, TPUs bfloat16; the loss has its own convolutions."""
  step, *arguments = step_of()
  found = list(products(jax.make_jaxpr(step)(*arguments).jaxpr))
  assert len(found) > 20
  for equation in found:
    assert equation.params['precision'] == (lax.Precision.HIGHEST,) * 2, equation


def test_a_plan_tells_what_a_device_can_hold(tmp_path, capsys):
  experiment = smoke(programs=('train',))
  here = training.data_parallel(1)
  (row,) = plan.run(experiment, tmp_path, here)
  assert (
    row['at_once'] == experiment.training.batch_size == row['batch']
    and 0 < row['gbytes'] < row['limit_gbytes']
    and row['gflop'] > 0
  )
  assert 'train' in capsys.readouterr().out and (tmp_path / 'plan.csv').read_text().startswith('config,program,target')
  (work,) = plan.programs(experiment, here)
  # Tried: the whole batch, and one example.
  none = plan.planned(work, targets.Target('small', jax.local_devices()[:1], 1000, {}))
  assert none['at_once'] == 0 and none['batch'] == row['batch'] and 0 < none['gbytes'] and none['gflop'] == row['gflop']


def test_the_work_of_a_training_with_batch_norm_is_counted():
  """Outside of the devices over which its statistics go."""
  config = unet_8x.get_config('smoke')
  config.model.norm = 'batch'
  config.plan.programs = ('train',)
  (work,) = plan.programs(build.build(config, '', planned=True), training.data_parallel(1))
  assert work.flops() > 0


@pytest.mark.parametrize('frozen', ['', 'standard'])
def test_a_training_that_needs_another_run_is_left_out(frozen, capsys):
  config = adversarial_unet.get_config('smoke')
  run = config.experiments['generator_standard' if frozen else 'adversarial_5e3']
  run.plan.programs = ('train',)
  found = list(plan.programs(build.build(run, '', planned=True), training.data_parallel(1)))
  assert len(found) == (0 if frozen else 1)
  assert ('the training of adversarial is left out: it needs other networks' in capsys.readouterr().out) == bool(frozen)


def test_a_target_is_compiled_for_with_its_effort_unless_the_user_chose_one():
  class Lowered:
    def compile(self, compiler_options):
      return jax.config.jax_optimization_level, compiler_options

  quick = targets.Target('quick', [], 0, {'a': 1}, effort='O1')
  assert quick.compile(Lowered()) == ('O1', {'a': 1}) and jax.config.jax_optimization_level == 'UNKNOWN'
  assert quick._replace(effort='UNKNOWN').compile(Lowered())[0] == quick._replace(effort='UNKNOWN').level() == 'UNKNOWN'
  jax.config.update('jax_optimization_level', 'O2')
  try:
    assert quick.compile(Lowered())[0] == quick.level() == jax.config.jax_optimization_level == 'O2'
  finally:
    jax.config.update('jax_optimization_level', 'UNKNOWN')


@pytest.mark.parametrize(
  'name, words',
  [
    ('h101', 'unknown; choose here, one of h200'),
    ('v5e', 'unknown'),
    ('h100', r'jaxrec\[cuda\]'),
    ('v5e:4x4', r'jaxrec\[tpu\]'),
  ],
)
def test_targets_that_cannot_be_had_are_named(name, words, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda package: None)
  with pytest.raises(ValueError, match=f'plan.targets: .*{words}') as caught:
    targets.target(name, 1, [])
  assert '\n' not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize('name', [pytest.param(n, marks=needs(n)) for n in ('h100', 'rtx2080ti')])
def test_absent_cards_have_a_plan(name, tmp_path):
  rows = plan.run(
    smoke(targets=(name,), programs=('train', 'coil_noise', 'rotation')), tmp_path, training.data_parallel(1)
  )
  assert [r['program'] for r in rows] == ['train', 'coil_noise', 'rotation'] and all(
    r['gbytes'] > 0 and r['at_once'] for r in rows
  )


def sweep(chosen):
  """Text of the rotation sweep of a small network, two examples per device."""
  experiment = smoke()
  (work,) = (w for w in plan.programs(experiment, training.data_parallel(1)) if w.name == 'rotation')
  compiled = chosen.compile(work.lowered(chosen.devices, 2))
  assert memory.needed_memory(compiled) > 0
  # One example of two per device: 2 x 48 x 48 complex numbers of k-space.
  return compiled.as_text()


def check_sweep(text):
  assert not COLLECTIVE.search(text), COLLECTIVE.search(text)
  assert 'c64[2,2,48,48]' in text


def test_a_sweep_spreads_over_devices_without_a_word_between_them():
  code = (
    'import jax; from tests.unit.test_plan import *; here = targets.target("here", 1, jax.devices());'
    'check_sweep(sweep(here)); print(len(here.devices))'
  )
  env = {**os.environ, 'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'}
  done = subprocess.run([sys.executable, '-c', code], env=env, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0 and done.stdout.strip() == '8', done.stderr


@pytest.mark.slow
@pytest.mark.parametrize('name', [pytest.param(n, marks=needs(n)) for n in ('v5e:16x16', 'v5p:4x8x8')])
def test_a_sweep_spreads_over_a_pod_without_a_word_between_chips(name):
  chosen = targets.target(name, 0, [])
  assert len(chosen.devices) == 256
  check_sweep(sweep(chosen))


def test_a_described_step_averages_over_its_devices():
  """What is planned is what `Parallel.compile` runs, with its one average."""
  here = training.data_parallel(1)
  task = training.supervised(
    models.build('unet_recon', chans=2, pools=1), training.optimizer('adam', 1e-3), average=here.average
  )
  batch = loader.stack([synthetic.scan(s, rows=32, cols=32, coils=2, acceleration=2) for s in range(2)])
  state, key = task.init(jax.random.key(0), batch), jax.random.key(1)
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), (state, batch, key))
  planned = parallel.lower(jax.local_devices()[:1], task.step, *shapes, donate=False).compile()
  state, keys = jax.tree.map(np.asarray, state), key[None]
  want = here.compile(task.step)(here.replicate(state), here.shard(batch), keys)
  got = planned(state, batch, keys)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), jax.tree.map(np.asarray, got), here.first(want)
  )


def made_network():
  """A network with its weights, as a config may name it."""
  return jaxrec.network(lambda v, scan: v * jaxrec.networks.zero_filled(scan)[0], jnp.float32(1))


def test_a_network_with_weights_of_its_own_has_a_plan_without_training(tmp_path, capsys):
  config = importlib.import_module('configs.unet_8x').get_config('smoke')
  config.model = ml_collections.ConfigDict({**config.model, 'name': f'{__name__}:made_network'})
  for option in set(config.model) - {'name', 'checkpoint', 'weights', 'sha256', 'remat'}:
    del config.model[option]
  config.plan.programs = ('train', 'coil_noise')
  rows = plan.run(build.build(config, '', planned=True), tmp_path, training.data_parallel(1))
  assert [row['program'] for row in rows] == ['coil_noise'] and rows[0]['at_once'] == 1
  assert 'has its weights' in capsys.readouterr().out
