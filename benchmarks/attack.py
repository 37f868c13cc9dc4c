"""Times attacks against the fastMRI package in torch (eager), side by side.

  python -m benchmarks.attack [--coils=15 --rows=640 --cols=368 --repeats=5 --work=pgd,angle,inference]

Same weights, same shapes, alternating, each side in a process of its own:
`pgd` is one gradient step of equation (4), `angle` one angle of equation (5),
`inference` one reconstruction. Prints medians, the first call (with
compilation) and peak memory, and appends them to benchmarks/results/.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks import common

CASCADES, CHANS, SENS = 8, 9, 6
STEPS = 2


def torch_side(work, shape):
  """The work in torch; the perturbation update is that of `steepest_step`."""

  def build():
    import torch

    net = common.torch_varnet(CASCADES, CHANS, SENS)
    device = next(net.parameters()).device
    k, mask, acs = common.kspace(*shape)
    k = torch.tensor(k, device=device)[None]
    mask = torch.tensor(mask, device=device)[None, :, :, None][None]
    low = int(acs.sum())
    for p in net.parameters():
      p.requires_grad_(False)

    def reconstruct(k):
      return net(torch.view_as_real(k) * mask, mask, low)

    with torch.no_grad():
      target = reconstruct(k) * 0.9
    radius = 0.02 * torch.linalg.vector_norm(k, dim=(-2, -1), keepdim=True)

    def pgd():
      z = torch.zeros_like(k)
      for _ in range(STEPS):
        z.requires_grad_(True)
        loss = ((reconstruct(k + z) - target) ** 2).mean()
        (g,) = torch.autograd.grad(loss, z)
        with torch.no_grad():
          z = z + 0.5 * radius * g / torch.linalg.vector_norm(g, dim=(-2, -1), keepdim=True)
          z = z * torch.clamp(radius / torch.linalg.vector_norm(z, dim=(-2, -1), keepdim=True), max=1)
      if device.type == 'cuda':
        torch.cuda.synchronize()

    rows, cols = shape[1:]
    y = torch.arange(rows, device=device)[:, None] - rows // 2
    x = torch.arange(cols, device=device)[None] - cols // 2
    fy, fx = torch.fft.fftfreq(rows, device=device)[:, None], torch.fft.fftfreq(cols, device=device)[None]

    def rotate(image, degrees):
      # The same three shears, so that the networks see the same data.
      a = torch.deg2rad(torch.tensor(degrees, device=device))
      across = torch.exp(2j * torch.pi * y * fx * -torch.tan(a / 2))
      down = torch.exp(2j * torch.pi * x * fy * torch.sin(a))
      image = torch.fft.ifft(torch.fft.fft(image) * across)
      image = torch.fft.ifft(torch.fft.fft(image, dim=-2) * down, dim=-2)
      return torch.fft.ifft(torch.fft.fft(image) * across)

    def fft2c(x):
      return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x, dim=(-2, -1)), norm='ortho'), dim=(-2, -1))

    def ifft2c(x):
      return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(x, dim=(-2, -1)), norm='ortho'), dim=(-2, -1))

    def angle():
      with torch.no_grad():
        out = rotate(reconstruct(fft2c(rotate(ifft2c(k), 3.0))), -3.0)
        float(((out.real - target) ** 2).mean())

    def inference():
      with torch.no_grad():
        reconstruct(k)
        if device.type == 'cuda':
          torch.cuda.synchronize()

    return {'pgd': pgd, 'angle': angle, 'inference': inference}[work]

  return build


def jaxrec_side(work, shape, weights):
  """The same work in jaxrec."""

  def build():
    import jax
    import jax.numpy as jnp

    import jaxrec

    module, variables, scan = common.jaxrec_varnet(weights, shape)
    reconstruct = jaxrec.models.bind(module)
    objective = jaxrec.region_mse()
    noise = jaxrec.coil_noise(0.02)
    turn = jaxrec.rotation(5.0)

    @jax.jit
    def pgd_steps(variables, scan):
      # The search alone: the final evaluation would count as another call.
      def loss(z):
        return objective(reconstruct(variables, noise.apply(z, scan)), scan)

      z = noise.init(jax.random.key(0), scan)
      step = jaxrec.attacks.steepest_step()

      def body(z, _):
        g = jnp.conj(jax.grad(loss)(z))
        project = lambda z: noise.project(z, scan)  # noqa: E731
        update, _ = step.update(g, None, z, project=project)
        return project(z + update), None

      return jax.lax.scan(body, z, None, length=STEPS)[0]

    @jax.jit
    def one_angle(variables, scan, degrees):
      return objective(turn.align(degrees, reconstruct(variables, turn.apply(degrees, scan))), scan)

    compiled = jax.jit(reconstruct)
    return {
      'pgd': lambda: jax.block_until_ready(pgd_steps(variables, scan)),
      'angle': lambda: float(one_angle(variables, scan, 3.0)),
      'inference': lambda: jax.block_until_ready(compiled(variables, scan)),
    }[work]

  return build


def main():
  """Runs the comparison, or one side of it as a worker."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--coils', type=int, default=15)
  parser.add_argument('--rows', type=int, default=640)
  parser.add_argument('--cols', type=int, default=368)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--work', default='pgd,angle,inference')
  parser.add_argument('--side', help=argparse.SUPPRESS)
  parser.add_argument('--weights', help=argparse.SUPPRESS)
  options = parser.parse_args()
  shape = (options.coils, options.rows, options.cols)
  if options.side == 'torch':
    return common.serve(torch_side(options.work, shape), 'torch')
  if options.side == 'jaxrec':
    return common.serve(jaxrec_side(options.work, shape, options.weights), 'jaxrec')
  import torch

  with tempfile.TemporaryDirectory() as folder:
    weights = Path(folder) / 'varnet.pt'
    net = common.torch_varnet(CASCADES, CHANS, SENS)
    torch.save({name: value.cpu() for name, value in net.state_dict().items()}, weights)
    for work in options.work.split(','):
      arguments = [
        f'--coils={shape[0]}',
        f'--rows={shape[1]}',
        f'--cols={shape[2]}',
        f'--work={work}',
        f'--weights={weights}',
      ]
      found = common.alternate('benchmarks.attack', arguments, ('torch', 'jaxrec'), options.repeats)
      common.report('attack', work, 'x'.join(map(str, shape)), found, per=STEPS if work == 'pgd' else 1)


if __name__ == '__main__':
  main()
