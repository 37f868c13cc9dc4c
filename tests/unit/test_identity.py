"""A run folder is not continued with other weights, wherever a network keeps them."""

import collections.abc
import dataclasses
import functools
import subprocess
import sys

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrec
from jaxrec import networks, results
from jaxrec.audit import identity
from tests.unit.test_attack import Counted

SCALE = jnp.float32(2)


def scaled(scan):
  return SCALE * networks.zero_filled(scan)[0]


def by_helper(scan):
  return scaled(scan)


def closed_over(weight):
  weights = {'w': np.float32(weight), 'name': 'x'}
  return lambda scan: weights['w'] * networks.zero_filled(scan)[0]


def with_default(weight):
  def reconstruct(scan, w=weight):
    return w * networks.zero_filled(scan)[0]

  return reconstruct


class Reconstruction:
  def __init__(self, weight):
    self.weight = weight

  def __call__(self, scan):
    return self.weight * networks.zero_filled(scan)[0]

  def method(self, scan):
    return self(scan)


def torch_of(weight):
  torch = pytest.importorskip('torch')
  module = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
  torch.nn.init.constant_(module[0].weight, weight)
  torch.nn.init.zeros_(module[0].bias)
  return jaxrec.torch_network(module, inputs=lambda scan: (networks.zero_filled(scan)[0][None, None],))


def equinox_in_a_function(weight):
  eqx = pytest.importorskip('equinox')
  module = eqx.nn.Lambda(lambda x: x), jnp.full(3, weight)
  return lambda scan: module[1][0] * networks.zero_filled(scan)[0]


def transfer(weight):
  return dataclasses.replace(jaxrec.network(scaled), surrogate=jaxrec.network(closed_over(weight)))


# Each makes a network of a number that its images depend on.
MAKE = {
  'closure': closed_over, 'default': with_default, 'object': Reconstruction, 'method': lambda w: Reconstruction(w).method,
  'partial': lambda w: functools.partial(lambda w, scan: w * networks.zero_filled(scan)[0], w), 'torch': torch_of,
  'equinox in a function': equinox_in_a_function, 'surrogate': transfer,
  'variables': lambda w: jaxrec.network(lambda v, scan: v * networks.zero_filled(scan)[0], jnp.float32(w)),
}  # fmt: skip


@pytest.mark.parametrize('name', MAKE)
def test_another_weight_is_another_network_and_the_same_is_not(name):
  first, again, other = (identity.of_network(jaxrec.network(MAKE[name](w))) for w in (1.0, 1.0, 1.5))
  assert first == again != other


def test_other_inputs_of_a_module_are_another_network():
  class Doubles(nn.Module):
    @nn.compact
    def __call__(self, image):
      return self.param('weight', lambda key: jnp.float32(2)) * image

  module = Doubles()
  variables = {'params': {'weight': jnp.float32(2)}}
  nets = [
    jaxrec.network(module, variables, inputs=inputs)
    for inputs in (networks.zero_filled, lambda scan: (10 * networks.zero_filled(scan)[0],))
  ]
  assert identity.of_network(nets[0]) != identity.of_network(nets[1])


@pytest.mark.parametrize('function', [scaled, by_helper])
def test_values_of_the_module_count_also_through_other_functions(function, monkeypatch):
  before = identity.of_network(jaxrec.network(function))
  monkeypatch.setattr(sys.modules[__name__], 'SCALE', jnp.float32(3))
  assert identity.of_network(jaxrec.network(function)) != before


def around_itself(scan):
  return ITSELF(scan)


ITSELF = jaxrec.network(around_itself)


def test_a_function_may_refer_to_the_network_made_of_it():
  assert identity.of_network(ITSELF) == identity.of_network(jaxrec.network(around_itself))


def test_another_function_is_another_network():
  assert identity.of_network(jaxrec.network(scaled)) != identity.of_network(jaxrec.network(by_helper))


def test_a_name_is_the_same_in_another_process():
  names = ('closure', 'object', 'torch', 'partial') if 'torch' in sys.modules else ('closure', 'object', 'partial')
  code = f'from tests.unit.test_identity import *\nfor n in {names}: print(identity.of_network(jaxrec.network(MAKE[n](1.0))))'
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.split() == [identity.of_network(jaxrec.network(MAKE[name](1.0))) for name in names]


@pytest.mark.fault
@pytest.mark.parametrize('name', ['torch', 'closure'])
def test_changed_weights_do_not_go_on_in_a_folder(name, scan, tmp_path):
  noise = jaxrec.Sweep(jaxrec.coil_noise, (0.02,), jaxrec.pgd(num_steps=1))

  def audit(weight):
    return jaxrec.audit({'mine': jaxrec.network(MAKE[name](weight))}, [scan], noise, folder=tmp_path, aims=('image',))

  first = audit(1.0)
  assert audit(1.0) == first
  with pytest.raises(results.RunError, match='model.weights=.*; set another workdir or remove the folder') as found:
    audit(1.5)
  assert '\n' not in str(found.value)


def sweep_of(**changes):
  import optax

  options = dict(
    family=functools.partial(jaxrec.coil_noise, start='random'), strengths=(0.02,),
    search=jaxrec.pgd(num_steps=10, step=optax.sgd(-0.5)), objective=jaxrec.region_mse(),
  )  # fmt: skip
  return jaxrec.Sweep(**{**options, **changes})


def injected(learning_rate):
  import optax

  return optax.inject_hyperparams(optax.sgd)(learning_rate=learning_rate)


def stairs(share):
  import optax

  return optax.piecewise_constant_schedule(-0.5, {5: share})


class Halves:
  """A search of one's own."""

  forward_calls, backward_calls = 1, 0

  def __init__(self, factor):
    self.factor = factor

  def __call__(self, key, loss, init, project):
    delta = project(jnp.multiply(self.factor, init(key)))
    return jaxrec.SearchResult(delta=delta, loss=loss(delta), trace=loss(delta)[None])


def attacks_of_another_kind():
  import optax

  return {
    'objective': dict(objective=jaxrec.region_ssim()),
    'search with as many calls': dict(search=jaxrec.apgd(num_steps=10)),
    'option of the search': dict(search=jaxrec.pgd(num_steps=10, step=jaxrec.attacks.steepest_step(2.0))),
    'option of another package': dict(search=jaxrec.pgd(num_steps=10, step=optax.sgd(-0.25))),
    'option in its dictionary': dict(search=jaxrec.pgd(num_steps=10, step=injected(-0.5))),
    'another in its dictionary': dict(search=jaxrec.pgd(num_steps=10, step=injected(-0.25))),
    'schedule of another package': dict(search=jaxrec.pgd(num_steps=10, step=optax.sgd(stairs(0.5)))),
    'another schedule of it': dict(search=jaxrec.pgd(num_steps=10, step=optax.sgd(stairs(0.25)))),
    'search in a search': dict(search=jaxrec.restarts(Halves(0.5), num_restarts=2)),
    'its option': dict(search=jaxrec.restarts(Halves(0.25), num_restarts=2)),
    'option of the family': dict(family=jaxrec.coil_noise),
    'points': dict(family=jaxrec.rotation, search=jaxrec.grid(np.float32([0, 1]))),
    'other points': dict(family=jaxrec.rotation, search=jaxrec.grid(np.float32([0, 2]))),
  }


def test_another_attack_is_another_and_the_same_is_not():
  names = [identity.of_sweep(sweep_of(**changes)) for changes in ({}, *attacks_of_another_kind().values())]
  assert len(set(names)) == len(names)
  assert names == [identity.of_sweep(sweep_of(**changes)) for changes in ({}, *attacks_of_another_kind().values())]
  # In processes of their own: here the functions of jaxrec are wrapped, to check the shapes of arrays.
  code = 'from tests.unit.test_identity import *\nfor c in ({}, *attacks_of_another_kind().values()): print(identity.of_sweep(sweep_of(**c)))'
  runs = [subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True) for _ in range(2)]
  assert runs[0].stdout == runs[1].stdout and len(set(runs[0].stdout.split())) == len(names)


class Named(Counted, collections.abc.Mapping):
  def __iter__(self):
    return iter(self.samples)


@pytest.mark.fault
@pytest.mark.parametrize('make, samples', [(Counted, lambda s: [s, s]), (Named, lambda s: {'a': s, 'b': s})])
def test_samples_that_are_read_one_by_one_go_on_in_their_folder(make, samples, scan, tmp_path):
  """Another object of the same length and names is the same source, another length is not."""
  noise = jaxrec.Sweep(jaxrec.coil_noise, (0.02,), jaxrec.pgd(num_steps=1))

  def audit(source, **options):
    return jaxrec.audit({'a': jaxrec.network(scaled)}, source, noise, folder=tmp_path, aims=('image',), **options)

  first = audit(make(samples(scan)))
  again = make(samples(scan))
  rows, read = audit(again), list(again.read)
  # What checks types in the tests looks into mappings itself.
  assert rows == first and (read == [0, 1] if make is Counted else set(read) == {'a', 'b'})
  whole = samples(scan)
  fewer = whole[:1] if make is Counted else {'a': scan}
  with pytest.raises(results.RunError, match='was made with data.digest'):
    audit(make(fewer))
  with pytest.raises(results.RunError, match='was made with data.patients'):
    audit(make(whole), patients=['x', 'y'])


@pytest.mark.fault
def test_another_attack_does_not_go_on_in_a_folder(scan, tmp_path):
  def audit(**changes):
    options = dict(search=jaxrec.pgd(num_steps=1), objective=jaxrec.region_mse())
    sweep = jaxrec.Sweep(jaxrec.coil_noise, (0.02,), **{**options, **changes})
    return jaxrec.audit({'a': jaxrec.network(scaled)}, [scan], {'noise': sweep}, folder=tmp_path, aims=('image',))

  audit()
  for changes in (dict(objective=jaxrec.region_ssim()), dict(search=jaxrec.apgd(num_steps=1))):
    with pytest.raises(results.RunError, match='was made with attacks.noise.made_of'):
      audit(**changes)
