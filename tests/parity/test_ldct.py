"""Denoisers and discriminators against ldct-benchmark on converted random weights."""

import argparse
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import models
from jaxrec.models.weights import WeightsError

FOUND = importlib.util.find_spec('ldctbench')
pytestmark = pytest.mark.skipif(FOUND is None, reason='ldct-benchmark is not installed')


def network(kind, name='Model'):
  """Their module, without what their package imports on the way."""
  root = FOUND.submodule_search_locations[0]
  for package in ('ldctbench', 'ldctbench.methods', 'ldctbench.methods.redcnn'):
    if package not in sys.modules:
      module = types.ModuleType(package)
      module.__path__ = [f'{root}/{"/".join(package.split(".")[1:])}']
      sys.modules[package] = module
  spec = importlib.util.spec_from_file_location(f'ldctbench_{kind}', f'{root}/methods/{kind}/network.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return getattr(module, name)


@pytest.fixture(scope='module')
def image():
  return np.random.default_rng(0).standard_normal((2, 24, 26)).astype(np.float32)


@pytest.mark.parametrize('kind', ['cnn10', 'redcnn', 'wganvgg', 'dugan'])
def test_denoisers_and_their_gradients(kind, image, tmp_path):
  import torch

  torch.manual_seed(0)
  net = network(kind)(argparse.Namespace())
  torch.save({'model_state_dict': net.state_dict()}, tmp_path / 'net.pt')
  module, variables = models.load_ldct(tmp_path / 'net.pt', kind)
  assert sum(p.numel() for p in net.parameters()) == sum(x.size for x in jax.tree.leaves(variables))
  x = torch.tensor(image)[:, None].requires_grad_()
  want = net(x)
  (want**2).sum().backward()
  run = jax.jit(lambda x: module.apply(variables, x))
  got, pull = jax.vjp(run, jnp.asarray(image))
  want = want.detach().numpy()[:, 0]
  np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
  gradient = x.grad.numpy()[:, 0]
  np.testing.assert_allclose(pull(2 * got)[0], gradient, atol=1e-4 * np.abs(gradient).max())


@pytest.mark.slow
def test_layers_are_those_of_the_network(image):
  for name, count in (('cnn10', 3), ('wganvgg', 8), ('redcnn', 10)):
    module = models.build(name)
    variables = jax.jit(module.init)(jax.random.key(0), image)
    run = jax.jit(lambda v, x: (module.apply(v, x), module.apply(v, x, layer=count), module.apply(v, x, layer=1)))
    whole, last, first = run(variables, image)
    np.testing.assert_array_equal(last[..., 0], whole)
    assert first.shape[0] == 2 and first.shape[-1] > 1
    with pytest.raises(ValueError, match=f'layer: {count + 1}'):
      module.apply(variables, image, layer=count + 1)


def kernels(net):
  import torch

  return [m for m in net.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]


@pytest.mark.slow
def test_wganvgg_critic():
  import torch

  torch.manual_seed(1)
  net = network('wganvgg', 'Discriminator')(61)
  image = np.random.default_rng(1).standard_normal((2, 61, 61)).astype(np.float32)
  module = models.build('wganvgg_critic')
  layers = kernels(net)
  params = {
    f'conv_{i + 1}': {'kernel': m.weight.detach().numpy().transpose(2, 3, 1, 0), 'bias': m.bias.detach().numpy()}
    for i, m in enumerate(layers[:6])
  }
  side = net.output_size
  first = layers[6].weight.detach().numpy().reshape(1024, 256, side, side).transpose(2, 3, 1, 0).reshape(-1, 1024)
  params['dense_1'] = {'kernel': first, 'bias': layers[6].bias.detach().numpy()}
  params['dense_2'] = {'kernel': layers[7].weight.detach().numpy().T, 'bias': layers[7].bias.detach().numpy()}
  want = net(torch.tensor(image)[:, None]).detach().numpy()[:, 0]
  np.testing.assert_allclose(jax.jit(module.apply)({'params': params}, image), want, atol=1e-4 * np.abs(want).max())


@pytest.mark.slow
def test_dugan_discriminator():
  """With spectral norm: weights over their largest singular value, from the same vectors."""
  import torch

  torch.manual_seed(2)
  net = network('dugan', 'UNet')(repeat_num=2, use_discriminator=True, conv_dim=4)
  image = np.random.default_rng(2).standard_normal((2, 12, 12)).astype(np.float32)
  module = models.build('dugan_discriminator', chans=4, depth=2)
  variables = jax.jit(module.init)(jax.random.key(0), image)
  params, vectors, names = {}, {}, {}
  for level, block in enumerate(net.down_blocks):
    names |= {
      f'down_{level}_residual': block.conv_res,
      f'down_{level}_1': block.net[0],
      f'down_{level}_2': block.net[2],
    }
    if block.down is not None:
      names[f'down_{level}_stride'] = block.down
  for level, block in zip(reversed(range(2)), net.up_blocks):
    names |= {f'up_{level}_shortcut': block.shortcut, f'up_{level}_1': block.conv[0], f'up_{level}_2': block.conv[2]}
  names |= {'bottom_1': net.conv[0], 'bottom_2': net.conv[2], 'out': net.conv_out}
  normed = 0
  for name, layer in names.items():
    kernel = layer.weight.detach().numpy().transpose(2, 3, 1, 0)
    params[name] = {'kernel': kernel, 'bias': layer.bias.detach().numpy()}
    if name in variables['spectral']:
      normed += 1
      u = variables['spectral'][name]['norm']['u']
      vectors[name] = {'norm': {'u': u}}
      matrix = kernel.reshape(-1, kernel.shape[-1])
      v = matrix @ u
      v /= np.linalg.norm(v)
      step = v @ matrix
      layer.weight.data /= float(v @ matrix @ (step / np.linalg.norm(step)))
  params['score'] = {'kernel': net.to_logit[3].weight.detach().numpy().T, 'bias': net.to_logit[3].bias.detach().numpy()}
  score, pixels = jax.jit(module.apply)({'params': params, 'spectral': vectors}, image)
  want_score, want_pixels = (t.detach().numpy() for t in net(torch.tensor(image)[:, None]))
  np.testing.assert_allclose(score, want_score, atol=1e-4 * np.abs(want_score).max())
  np.testing.assert_allclose(pixels, want_pixels[:, 0], atol=1e-4 * np.abs(want_pixels).max())
  big = jax.eval_shape(models.build('dugan_discriminator').init, jax.random.key(0), jnp.ones((1, 128, 128)))
  assert len(big['spectral']) == 42 and sum('kernel' in p for p in big['params'].values()) == 48 + 1


def test_wrong_files_are_named(tmp_path):
  import torch

  net = network('cnn10')(argparse.Namespace())
  torch.save(net.state_dict(), tmp_path / 'net.pt')
  with pytest.raises(WeightsError, match='conv1.weight is missing; it is no redcnn'):
    models.load_ldct(tmp_path / 'net.pt', 'redcnn')
  with pytest.raises(WeightsError, match="'qae' is unknown; choose one of cnn10"):
    models.load_ldct(tmp_path / 'net.pt', 'qae')
  state = net.state_dict()
  state['layers.0.weight'] = torch.zeros(3, 1, 9, 9)
  torch.save(state, tmp_path / 'net.pt')
  with pytest.raises(WeightsError, match='conv_1.kernel has shape'):
    models.load_ldct(tmp_path / 'net.pt', 'cnn10')
