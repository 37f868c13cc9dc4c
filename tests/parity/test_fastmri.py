"""Networks, masks and SSIM against the fastMRI package on random weights and settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrec
from jaxrec import masks, metrics
from jaxrec.models import weights
from jaxrec.training import tasks


def kspace(coils, rows, cols, seed=0):
  """Coil images of an ellipse with texture, and noise."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : cols * 1j]
  image = (y**2 + x**2 < 0.7) * (1 + 0.3 * np.sin(9 * x) * np.cos(7 * y))
  turn = np.linspace(0, 2 * np.pi, coils, endpoint=False)[:, None, None]
  maps = np.exp(-((y - np.sin(turn)) ** 2) - (x - np.cos(turn)) ** 2 + 1j * turn)
  k = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image * maps, (-2, -1)), norm='ortho'), (-2, -1))
  return k + 0.02 * (rng.standard_normal(k.shape) + 1j * rng.standard_normal(k.shape))


def torch_varnet(path, cascades, chans, sens_chans):
  import torch
  from fastmri.models import VarNet

  torch.manual_seed(0)
  torch.set_num_threads(2)
  net = VarNet(num_cascades=cascades, chans=chans, sens_chans=sens_chans).eval()
  torch.save(net.state_dict(), path)
  return net


def torch_run(net, k, line, dtype, gradient=False):
  import torch

  net = net.to(dtype)
  x = torch.view_as_real(torch.tensor(k)).to(dtype)[None].requires_grad_(gradient)
  mask = torch.tensor(line.mask)[None, :, :, None][None]
  with torch.set_grad_enabled(gradient):
    out = net(torch.where(mask, x, torch.zeros((), dtype=dtype)), mask, int(line.acs.sum()))
  if not gradient:
    return out[0].numpy(), None
  (out**2).sum().backward()
  g = x.grad[0].numpy()
  return out.detach()[0].numpy(), g[..., 0] + 1j * g[..., 1]


def relative(a, b):
  return np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)


@pytest.mark.parametrize(
  'sizes, shape',
  [
    ((8, 9, 6), (4, 96, 80)),
    pytest.param((8, 9, 6), (15, 640, 368), marks=pytest.mark.slow),
    ((8, 9, 6), (4, 150, 131)),
    ((12, 18, 8), (4, 96, 80)),
    pytest.param((12, 18, 8), (15, 640, 368), marks=pytest.mark.slow),
  ],
)
def test_varnet_output(tmp_path, sizes, shape):
  net = torch_varnet(tmp_path / 'v.pt', *sizes)
  module, variables = jaxrec.models.load_fastmri(tmp_path / 'v.pt', 'varnet')
  assert (module.num_cascades, module.chans, module.sens_chans) == sizes
  k = kspace(*shape).astype(np.complex64)
  line = masks.line_mask('random', shape[-1], center_fractions=[0.08], accelerations=[4], seed=3)
  import torch

  want, _ = torch_run(net, k, line, torch.float32)
  got = jax.jit(module.apply)(variables, k, line.mask, line.acs)
  assert relative(got, want) < 1e-4


@pytest.mark.parametrize(
  'sizes, shape', [pytest.param((8, 9, 6), (4, 150, 131), marks=pytest.mark.slow), ((2, 4, 3), (4, 70, 61))]
)
def test_varnet_gradient_with_respect_to_kspace(tmp_path, x64, sizes, shape):
  import torch

  net = torch_varnet(tmp_path / 'v.pt', *sizes)
  module, variables = jaxrec.models.load_fastmri(tmp_path / 'v.pt', 'varnet')
  k = kspace(*shape)
  line = masks.line_mask('random', shape[-1], center_fractions=[0.08], accelerations=[4], seed=3)
  exact_out, exact = torch_run(net, k, line, torch.float64, gradient=True)
  _, single = torch_run(net, k.astype(np.complex64), line, torch.float32, gradient=True)

  def gradient(dtype, complex_dtype):
    cast = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)

    def loss(k):
      out = module.apply(cast, k, line.mask, line.acs)
      return jnp.sum(out**2), out

    g, out = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(k, complex_dtype))
    return np.conj(g), out

  ours, out = gradient(jnp.float64, jnp.complex128)
  assert relative(out, exact_out) < 1e-9 and relative(ours, exact) < 1e-6
  ours_single, _ = gradient(jnp.float32, jnp.complex64)
  assert relative(ours_single, exact) < 2 * relative(single, exact)


@pytest.mark.parametrize(
  'chans, shape',
  [
    (128, (4, 96, 80)),
    pytest.param(256, (4, 96, 80), marks=pytest.mark.slow),
    pytest.param(128, (15, 640, 368), marks=pytest.mark.slow),
    (128, (4, 150, 131)),
  ],
)
def test_unet_output(tmp_path, chans, shape):
  import torch
  from fastmri.models import Unet

  torch.manual_seed(0)
  torch.set_num_threads(2)
  net = Unet(in_chans=1, out_chans=1, chans=chans, num_pool_layers=4).eval()
  torch.save(net.state_dict(), tmp_path / 'u.pt')
  module, variables = jaxrec.models.load_fastmri(tmp_path / 'u.pt', 'unet')
  k = kspace(*shape)
  line = masks.line_mask('random', shape[-1], center_fractions=[0.08], accelerations=[4], seed=3)
  shifted = np.fft.ifft2(np.fft.ifftshift(k * line.mask, (-2, -1)), norm='ortho')
  image = np.sqrt((np.abs(np.fft.fftshift(shifted, (-2, -1))) ** 2).sum(0))
  mean, std = image.mean(), image.std(ddof=1)
  with torch.no_grad():
    want = (
      net(torch.tensor(np.clip((image - mean) / std, -6, 6), dtype=torch.float32)[None, None])[0, 0].numpy() * std
      + mean
    )
  got = jax.jit(module.apply)(variables, k.astype(np.complex64), line.mask, line.acs)
  assert relative(got, want) < 1e-4


@pytest.mark.parametrize('challenge, coils', [('multicoil', 3), ('singlecoil', 1)])
def test_unet_recipe(tmp_path, challenge, coils):
  """Loss and gradient of the weights are those of fastMRI's transform and training step."""
  import torch
  from fastmri.data.transforms import UnetDataTransform
  from fastmri.models import Unet

  k = kspace(coils, 96, 60).astype(np.complex64)
  line = masks.line_mask('random', 60, center_fractions=[0.08], accelerations=[4], seed=3)
  full = np.fft.ifft2(np.fft.ifftshift(k, (-2, -1)), norm='ortho')
  full = np.sqrt((np.abs(np.fft.fftshift(full, (-2, -1))) ** 2).sum(0)).astype(np.float32)
  target = full[24:72, 6:54]
  # So that the target's clipping is seen.
  target[10, 10] = 40 * target.max()
  masked = k * line.mask
  sample = UnetDataTransform(challenge)(masked if coils > 1 else masked[0], None, target, {'max': 1.0}, 'a.h5', 0)
  torch.manual_seed(0)
  net = Unet(in_chans=1, out_chans=1, chans=8, num_pool_layers=2)
  loss = torch.nn.functional.l1_loss(net(sample.image[None, None])[:, 0], sample.target[None])
  loss.backward()
  torch.save(net.state_dict(), tmp_path / 'u.pt')
  torch.save({name: p.grad for name, p in net.named_parameters()}, tmp_path / 'g.pt')
  module, variables = jaxrec.models.load_fastmri(tmp_path / 'u.pt', 'unet')
  want = jaxrec.models.load_fastmri(tmp_path / 'g.pt', 'unet')[1]['params']
  module = module.clone(crop=(48, 48))
  scan = jaxrec.Scan(k, line.mask, line.acs, np.ones((1, 60), bool), target, np.ones_like(target), np.float32(1.0))

  def ours(params):
    return tasks.image_loss('normalised_l1')(module.apply({'params': params}, scan.kspace, scan.mask), scan)

  value, gradient = jax.jit(jax.value_and_grad(ours))(variables['params'])
  assert float(value) == pytest.approx(loss.item(), rel=1e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4 * np.abs(b).max()), gradient, want)


def test_masks_are_identical():
  from fastmri.data.subsample import create_mask_for_mask_type

  rng = np.random.default_rng(0)
  compared = 0
  for _ in range(900):
    kind = masks.KINDS[rng.integers(len(masks.KINDS))]
    cols = int(rng.integers(32, 420))
    choices = int(rng.integers(1, 4))
    accelerations = [int(a) for a in rng.integers(2, 12, choices)]
    fractions = [float(f) for f in rng.uniform(0.01, 0.12, choices)]
    seed = tuple(map(ord, f'file{rng.integers(1e7):07d}.h5')) if rng.uniform() < 0.5 else int(rng.integers(1 << 31))
    offset = int(rng.integers(0, min(accelerations))) if rng.uniform() < 0.3 else None
    try:
      ours = masks.line_mask(
        kind, cols, center_fractions=fractions, accelerations=accelerations, seed=seed, offset=offset
      )
    except ValueError:
      continue
    drawn, low = create_mask_for_mask_type(kind, fractions, accelerations)((1, cols, 2), offset=offset, seed=seed)
    np.testing.assert_array_equal(ours.mask, drawn.numpy().reshape(1, -1) > 0)
    assert ours.acs.sum() == low
    compared += 1
  assert compared >= 500


@pytest.mark.parametrize('scale', [1.0, 1e-5])
def test_ssim(scale):
  import torch
  from fastmri import SSIMLoss

  rng = np.random.default_rng(0)
  target = rng.uniform(0, scale, (64, 70)).astype(np.float32)
  for noise in (0.01, 0.3):
    image = (target + noise * scale * rng.standard_normal(target.shape)).astype(np.float32)
    x, y = (torch.tensor(a / scale, dtype=torch.float64)[None, None] for a in (image, target))
    want = 1 - SSIMLoss().double()(x, y, torch.tensor([1.0], dtype=torch.float64)).item()
    np.testing.assert_allclose(metrics.ssim(image, target, jnp.float32(scale)), want, atol=1e-5)


def test_state_dicts_in_both_formats_and_wrong_ones(tmp_path):
  import torch
  from fastmri.models import Unet

  net = Unet(1, 1, chans=4, num_pool_layers=2)
  torch.save(net.state_dict(), tmp_path / 'new.pt')
  torch.save(net.state_dict(), tmp_path / 'old.pt', _use_new_zipfile_serialization=False)
  torch.save({'state_dict': net.state_dict(), 'epoch': 3}, tmp_path / 'wrapped.pt')
  trees = [jaxrec.models.load_fastmri(tmp_path / f'{n}.pt', 'unet')[1] for n in ('new', 'old', 'wrapped')]
  for tree in trees[1:]:
    jax.tree.map(np.testing.assert_array_equal, trees[0], tree)
  with pytest.raises(weights.WeightsError, match='cascades.0.dc_weight is missing'):
    jaxrec.models.load_fastmri(tmp_path / 'new.pt', 'varnet')
  state = net.state_dict()
  state['conv.layers.0.weight'] = torch.zeros(3, 3)
  torch.save(state, tmp_path / 'bad.pt')
  with pytest.raises(weights.WeightsError, match=r'conv.layers.0.weight has shape \(3, 3\)'):
    jaxrec.models.load_fastmri(tmp_path / 'bad.pt', 'unet')
  raw = (tmp_path / 'old.pt').read_bytes()
  (tmp_path / 'cut.pt').write_bytes(raw[:-100])
  with pytest.raises(weights.WeightsError, match='truncated'):
    jaxrec.models.load_fastmri(tmp_path / 'cut.pt', 'unet')


def test_training_starts_from_published_weights(tmp_path):
  import torch
  from fastmri.models import Unet

  from configs import unet_8x
  from jaxrec.data import loader, synthetic
  from jaxrec.experiments import build
  from jaxrec.training import data_parallel
  from jaxrec.workflows import factory
  from jaxrec.workflows.train import started

  path = tmp_path / 'unet.pt'
  torch.save(Unet(in_chans=1, out_chans=1, chans=4, num_pool_layers=2).state_dict(), path)
  config = unet_8x.get_config('smoke')
  sample = synthetic.scan(0, rows=48, cols=48, coils=2)

  def first_state():
    experiment = build.build(config, tmp_path)
    module, _ = factory.network(experiment.model)
    task = started(factory.task(experiment.training, module, data_parallel(1), 1, sample), experiment)
    return task.init(jax.random.key(0), loader.stack([sample]))

  drawn = first_state().variables
  config.train.start_from = str(path)
  state, (_, want) = first_state(), jaxrec.models.load_fastmri(path, 'unet')
  jax.tree.map(np.testing.assert_array_equal, state.variables, want)
  assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(drawn), jax.tree.leaves(want))) and state.step == 0
  config.model.chans = 6
  with pytest.raises(ValueError, match='train.start_from: .*unet.pt is of a network of another size'):
    first_state()
