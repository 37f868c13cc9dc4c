"""The players of seed 001 against a restatement in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrec
from jaxrec import models, training
from jaxrec.types import Slice


def torch_unet(chans, pools, norm):
  """The first fastMRI baseline with average pooling and PReLU, restated."""
  import torch
  from torch import nn
  from torch.nn import functional as F

  def block(n_in, n_out):
    layers = []
    for a, b in ((n_in, n_out), (n_out, n_out)):
      layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), norm(b), nn.PReLU()]
    return nn.Sequential(*layers)

  class Net(nn.Module):
    def __init__(self):
      super().__init__()
      widths = [chans * 2**i for i in range(pools)]
      self.down = nn.ModuleList(block(a, b) for a, b in zip([1, *widths], widths))
      self.bottom = block(widths[-1], widths[-1])
      self.up = nn.ModuleList(block(2 * w, max(w // 2, chans)) for w in reversed(widths))
      self.out = nn.Sequential(nn.Conv2d(chans, chans // 2, 1), nn.Conv2d(chans // 2, 1, 1), nn.Conv2d(1, 1, 1))

    def forward(self, image):
      mean, std = image.mean((1, 2), keepdim=True), image.std((1, 2), keepdim=True)
      x = ((image - mean) / (std + 1e-11)).clamp(-6, 6)[:, None]
      skips = []
      for layer in self.down:
        x = layer(x)
        skips.append(x)
        x = F.avg_pool2d(x, 2)
      x = self.bottom(x)
      for layer in self.up:
        x = F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)
        x = layer(torch.cat([x, skips.pop()], 1))
      return self.out(x)[:, 0] * std + mean

  return Net()


def torch_dcgan(latent, start, widths):
  from torch import nn

  layers, n_in = [], latent
  for i, n in enumerate(widths):
    layers.append(
      nn.ConvTranspose2d(n_in, n, start if i == 0 else 4, 1 if i == 0 else 2, 0 if i == 0 else 1, bias=False)
    )
    if i < len(widths) - 1:
      layers += [nn.BatchNorm2d(n), nn.PReLU()]
    n_in = n
  return nn.Sequential(*layers, nn.Tanh())


def unet_state(params, pools, norm):
  """Our parameters in the order of the torch module."""
  out = []

  def block(b):
    for i in range(2):
      out.append(np.transpose(b[f'Conv_{i}']['kernel'], (3, 2, 0, 1)))
      act = b[f'NormActivation_{i}']
      if norm == 'batch':
        out.extend([act['batch_norm']['scale'], act['batch_norm']['bias']])
      out.append(np.reshape(act['prelu']['negative_slope'], 1))

  u = params['unet']
  for level in range(pools):
    block(u[f'down_{level}'])
  block(u['bottom'])
  for level in reversed(range(pools)):
    block(u[f'merge_{level}'])
  for name in ('out_0', 'out_1', 'out'):
    out.extend([np.transpose(u[name]['kernel'], (3, 2, 0, 1)), u[name]['bias']])
  return out


def dcgan_state(params, depth):
  out = [np.transpose(params['kernel'], (0, 3, 1, 2))]
  for level in range(depth):
    act = params[f'NormActivation_{level}']
    out += [act['batch_norm']['scale'], act['batch_norm']['bias'], np.reshape(act['prelu']['negative_slope'], 1)]
    out.append(np.transpose(params[f'FractionalConv_{level}']['kernel'], (0, 3, 1, 2)))
  return out


def load(net, arrays):
  import torch

  mine = list(net.parameters())
  assert [tuple(p.shape) for p in mine] == [np.shape(a) for a in arrays]
  for p, a in zip(mine, arrays):
    p.data = torch.tensor(np.asarray(a, np.float64))


def test_sizes_of_the_paper():
  from torch import nn

  net = torch_unet(64, 5, nn.InstanceNorm2d)
  ours = jax.eval_shape(
    models.build('unet_image', chans=64, pools=5, activation='prelu', upsample='bilinear').init,
    jax.random.key(0),
    jnp.ones((320, 320)),
  )
  assert sum(p.numel() for p in net.parameters()) == sum(int(np.prod(x.shape)) for x in jax.tree.leaves(ours))
  net = torch_dcgan(100, 5, (2048, 1024, 512, 256, 128, 64, 1))
  ours = jax.eval_shape(models.build('dcgan', size=(320, 320)).init, jax.random.key(0), jnp.ones((2, 100)))
  assert sum(p.numel() for p in net.parameters()) == sum(int(np.prod(x.shape)) for x in jax.tree.leaves(ours['params']))
  latent = models.build('dcgan', size=(320, 320))
  assert jax.eval_shape(latent.apply, ours, jnp.ones((2, 100))).shape == (2, 320, 320)


@pytest.mark.parametrize('norm', ['instance', 'batch'])
def test_one_joint_update_equals_torch(norm, x64):
  """Generator, then reconstructor against the new generator, from equal weights, in float64."""
  import torch
  from torch import nn

  chans, pools, depth, size, eta, rate = 4, 1, 1, 8, 0.1, 1e-2
  rng = np.random.default_rng(0)
  low, target = rng.uniform(0, 1, (2, 3, size, size))
  batch = Slice(jnp.array(low), jnp.array(target), jnp.ones_like(low), jnp.ones(3))
  module = models.build('unet_image', chans=chans, pools=pools, activation='prelu', upsample='bilinear', norm=norm)
  generator = models.build('dcgan', size=(size, size), chans=4, depth=depth)
  adversary = training.image_adversary(generator, latent=5)
  noise = np.asarray(rng.standard_normal((3, 5)))
  unit = np.std(low, axis=(1, 2), keepdims=True, ddof=1)

  def perturb(variables, key, batch, place):
    images, changed = generator.apply(variables, jnp.array(noise), mutable=['batch_stats'])
    return unit * images, {**variables, **changed}

  rule = optax.adamw(rate, weight_decay=0.01)
  task = training.adversarial(
    module, rule, adversary._replace(perturb=perturb), rule, jaxrec.image_noise(eta, reference='deviation'), loss='mse',
    robust_weight=1.5, hinge_weight=0.7, epsilon=eta**2 * size**2,
  )  # fmt: skip
  start = task.init(jax.random.key(0), jax.tree.map(lambda x: x.astype(jnp.float32), batch))
  state = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, start)
  net = torch_unet(chans, pools, nn.InstanceNorm2d if norm == 'instance' else nn.BatchNorm2d).double()
  player = torch_dcgan(5, size // 2**depth, (4, 1)).double()
  load(net, unet_state(state.reconstructor.variables['params'], pools, norm))
  load(player, dcgan_state(state.generator.variables['params'], depth))

  state, metrics = jax.jit(task.step)(state, batch, jax.random.key(0))

  x, t = torch.tensor(low), torch.tensor(target)
  first, second = (torch.optim.AdamW(n.parameters(), lr=rate, weight_decay=0.01) for n in (net, player))

  def delta():
    return torch.tensor(unit) * player(torch.tensor(noise)[:, :, None, None])[:, 0]

  def mse(image):
    return ((image - t) ** 2).mean()

  d = delta()
  # The bound refers to the norm about the mean, (n - 1) std^2.
  square = (d**2).sum((1, 2)) / (x - x.mean((1, 2), keepdim=True)).pow(2).sum((1, 2)) / eta**2
  hinge = (eta**2 * size**2 * (square - 1)).clamp(min=0).mean()
  loss = 0.7 * hinge - 1.5 * mse(net(x + d))
  second.zero_grad()
  loss.backward()
  second.step()
  attacked = x + delta().detach()
  total = mse(net(x)) + 1.5 * mse(net(attacked))
  first.zero_grad()
  total.backward()
  first.step()

  assert abs(float(metrics['loss_generator']) - loss.item()) < 1e-6 * abs(loss.item())
  assert abs(float(metrics['loss']) - total.item()) < 1e-6 * total.item()
  for ours, theirs in (
    (unet_state(state.reconstructor.variables['params'], pools, norm), net),
    (dcgan_state(state.generator.variables['params'], depth), player),
  ):
    for a, p in zip(ours, theirs.parameters()):
      np.testing.assert_allclose(a, p.detach().numpy(), rtol=1e-4, atol=1e-4 * rate)
