"""The conditional VAE and the invertible network against restatements in torch, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import models

pytestmark = pytest.mark.slow


def tensor(x):
  import torch

  return torch.tensor(np.asarray(x, np.float64))


def conv(x, p, stride=1, padding=0):
  from torch.nn import functional as F

  bias = tensor(p['bias']) if 'bias' in p else None
  return F.conv2d(x, tensor(p['kernel']).permute(3, 2, 0, 1), bias, stride, padding)


def dense(x, p):
  return x @ tensor(p['kernel']) + (tensor(p['bias']) if 'bias' in p else 0)


def batch_norm(x, p=None, eps=1e-5):
  from torch.nn import functional as F

  scale, bias = (tensor(p['BatchNorm_0'][n]) for n in ('scale', 'bias')) if p else (None, None)
  return F.batch_norm(x, None, None, scale, bias, training=True, eps=eps)


def spectral(p, u):
  """The kernel over its singular value, after one step of power iteration."""
  kernel = tensor(p['kernel'])
  matrix = kernel.reshape(-1, kernel.shape[-1])
  v = matrix @ tensor(u['norm']['u'])
  v = v / v.norm()
  w = v @ matrix
  return {**p, 'kernel': (kernel / (v @ matrix @ (w / w.norm()))).numpy()}


def encode(image, condition, p, stages):
  import torch
  from torch.nn import functional as F

  x = torch.stack([image, condition], 1)
  x = F.relu(batch_norm(conv(x, p['StridedConv_0'], 2, 3), p['_BatchNorm_0']))
  x = F.max_pool2d(x, 3, 2, 1)
  i = 0
  for stage, count in enumerate(stages):
    for j in range(count):
      b, stride = p[f'Bottleneck_{i}'], 2 if stage and not j else 1
      y = F.relu(batch_norm(conv(x, b['Conv_0']), b['_BatchNorm_0']))
      y = F.relu(batch_norm(conv(y, b['StridedConv_0'], stride, 1), b['_BatchNorm_1']))
      y = batch_norm(conv(y, b['Conv_1']), b['_BatchNorm_2'])
      if 'StridedConv_1' in b:
        x = batch_norm(conv(x, b['StridedConv_1'], stride), b['_BatchNorm_3'])
      x, i = F.relu(x + y), i + 1
  mean, logvar = dense(x.mean((2, 3)), p['moments']).chunk(2, 1)
  return mean, logvar.clamp(-30, 10)


def decode(z, condition, p, u, blocks, chunk):
  import torch
  from torch.nn import functional as F

  x = z
  for i in range(3):
    x = F.leaky_relu(dense(x, p[f'class_{i}']), 0.01)
  label = dense(dense(x, p['class_3']).softmax(1), p['embedding'])
  first, *parts = z.split([z.shape[1] - blocks * chunk] + [chunk] * blocks, 1)
  x = dense(first, spectral(p['start'], u['start']))
  side = condition.shape[1] // 2**blocks
  x = x.reshape(len(z), side, side, -1).permute(0, 3, 1, 2)

  def joined(x):
    step = condition.shape[1] // x.shape[2]
    return torch.cat([x, condition[:, None, ::step, ::step]], 1)

  def modulated(x, code, name, b, v):
    scale, shift = (dense(code, spectral(b[name][n], v[name][n]))[:, :, None, None] for n in ('scale', 'shift'))
    return F.relu(batch_norm(x, eps=1e-4) * (1 + scale) + shift)

  def normed(x, b, v, name, padding=0):
    return conv(x, spectral(b[name], v[name]), 1, padding)

  for i, part in enumerate(parts):
    if i == blocks - 1:
      a, v = p['attention'], u['attention']
      query, key, value = (normed(x, a, v, n) for n in ('query', 'key', 'value'))
      key, value = (F.max_pool2d(t, 2).flatten(2) for t in (key, value))
      weights = (query.flatten(2).transpose(1, 2) @ key).softmax(2)
      mixed = (value @ weights.transpose(1, 2)).reshape(len(x), -1, *x.shape[2:])
      x = x + tensor(a['gamma']) * normed(mixed, a, v, 'out')
    x, code = joined(x), torch.cat([part, label], 1)
    b, v = p[f'block_{i}'], u[f'block_{i}']
    y = F.interpolate(modulated(x, code, 'norm_1', b, v), scale_factor=2)
    y = modulated(normed(y, b, v, 'conv_1', 1), code, 'norm_2', b, v)
    x = normed(y, b, v, 'conv_2', 1) + normed(F.interpolate(x, scale_factor=2), b, v, 'skip')
  loc, scale = (tensor(p['norm'][n])[:, None, None] for n in ('loc', 'scale'))
  return conv(joined(scale * (x + loc)), p['out'], 1, 1)[:, 0]


def as_float64(tree):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def test_conditional_vae(x64):
  options = dict(
    size=(16, 16),
    latent=16,
    width=8,
    blocks=2,
    chunk=3,
    classes=5,
    class_hidden=6,
    embedding=4,
    encoder_width=4,
    stages=(1, 1),
  )
  module = models.build('cvae', **options)
  rng = np.random.default_rng(0)
  image, condition = rng.standard_normal((2, 3, 16, 16))
  variables = as_float64(jax.jit(module.init)(jax.random.key(0), image, condition, jax.random.key(1)))
  noisy = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape), variables['params'])
  variables = {**variables, 'params': noisy}

  def run(v):
    return module.apply(v, image, condition, jax.random.key(2), mutable=['batch_stats'])[0]

  images, mean, logvar = jax.jit(run)(variables)
  want_mean, want_logvar = encode(tensor(image), tensor(condition), noisy['encoder'], options['stages'])
  z = want_mean + (0.5 * want_logvar).exp() * tensor(jax.random.normal(jax.random.key(2), mean.shape, jnp.float64))
  want = decode(z, tensor(condition), noisy['decoder'], variables['spectral']['decoder'], 2, 3)
  for ours, theirs in ((mean, want_mean), (logvar, want_logvar), (images, want)):
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))


def flow(z, condition, p, blocks):
  import torch
  from torch.nn import functional as F

  def act(x, q, shape):
    return tensor(q['scale']).reshape(shape) * (x + tensor(q['loc']).reshape(shape))

  def net(x, q):
    for i in range(3):
      x = F.leaky_relu(dense(x, q[f'Dense_{i}']), 0.01)
    return dense(x, q['Dense_3'])

  e = p['embedder']
  x, i = condition[:, None], 0
  while f'StridedConv_{i}' in e:
    x, i = F.leaky_relu(act(conv(x, e[f'StridedConv_{i}'], 2, 1), e[f'ActNorm_{i}'], (1, -1, 1, 1)), 0.2), i + 1
  y = conv(x, e)[:, :, 0, 0]
  total = 0
  for i in range(blocks):
    b = p[f'block_{i}']
    z = act(z, b['norm'], (1, -1))
    total = total + tensor(b['norm']['scale']).abs().log().sum()
    slope = torch.where(z >= 0, 1.0, 0.9)
    z, total = z * slope, total + slope.log().sum(1)
    for j in (0, 1):
      if j:
        z = torch.cat(z.chunk(2, 1)[::-1], 1)
      keep, change = z.chunk(2, 1)
      seen = torch.cat([keep, y], 1)
      s = net(seen, b[f's_{j}']).tanh()
      z, total = torch.cat([keep, change * s.exp() + net(seen, b[f't_{j}'])], 1), total + s.sum(1)
    z = z[:, np.random.default_rng(i).permutation(z.shape[1])]
  return z, total


def test_conditional_invertible_network(x64):
  module = models.build('cinn', blocks=2, hidden=8, chans=2, depth=2, embedding=4)
  rng = np.random.default_rng(0)
  z, condition = rng.standard_normal((4, 6)), rng.standard_normal((4, 16, 16))
  variables = as_float64(jax.jit(module.init)(jax.random.key(0), z, condition))
  params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape), variables['params'])
  v, logdet = jax.jit(module.apply)({'params': params}, z, condition)
  want, want_logdet = flow(tensor(z), tensor(condition), params, 2)
  np.testing.assert_allclose(v, want.numpy(), rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(logdet, want_logdet.numpy(), rtol=1e-6)
