"""Times a training step against the fastMRI package in torch (eager), side by side.

  python -m benchmarks.train [--coils=15 --rows=640 --cols=368 --repeats=5]

Reduced E2E-VarNet, batch 1, SSIM loss, Adam; same weights, same shapes,
alternating, each side in a process of its own.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks import common
from benchmarks.attack import CASCADES, CHANS, SENS


def torch_side(shape):
  """One step of the fastMRI recipe."""

  def build():
    import torch
    from torch.optim import Adam

    net = common.torch_varnet(CASCADES, CHANS, SENS).train()
    from fastmri import SSIMLoss

    device = next(net.parameters()).device
    loss = SSIMLoss().to(device)
    optimizer = Adam(net.parameters(), lr=3e-4)
    k, mask, acs = common.kspace(*shape)
    k = torch.view_as_real(torch.tensor(k, device=device)[None])
    mask = torch.tensor(mask, device=device)[None, :, :, None][None]
    with torch.no_grad():
      target = net(k * mask, mask, int(acs.sum())) * 0.9

    def step():
      optimizer.zero_grad()
      out = net(k * mask, mask, int(acs.sum()))
      loss(out[:, None], target[:, None], target.max()[None]).backward()
      optimizer.step()
      if device.type == 'cuda':
        torch.cuda.synchronize()

    return step

  return build


def jaxrec_side(shape, weights):
  """One step of `jaxrec.training.supervised`."""

  def build():
    import jax
    import jax.numpy as jnp

    from jaxrec import training

    module, variables, scan = common.jaxrec_varnet(weights, shape)
    batch = jax.tree.map(lambda x: x[None], scan)
    rule = training.optimizer('adam', 3e-4)
    task = training.supervised(module, rule)
    states = [training.TrainState(jnp.int32(0), variables, rule.init(variables['params']))]
    compiled = jax.jit(task.step, donate_argnums=0)

    def step():
      states[0], metrics = compiled(states[0], batch, jax.random.key(0))
      float(metrics['loss'])

    return step

  return build


def main():
  """Runs the comparison, or one side of it as a worker."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--coils', type=int, default=15)
  parser.add_argument('--rows', type=int, default=640)
  parser.add_argument('--cols', type=int, default=368)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--side', help=argparse.SUPPRESS)
  parser.add_argument('--weights', help=argparse.SUPPRESS)
  options = parser.parse_args()
  shape = (options.coils, options.rows, options.cols)
  if options.side == 'torch':
    return common.serve(torch_side(shape), 'torch')
  if options.side == 'jaxrec':
    return common.serve(jaxrec_side(shape, options.weights), 'jaxrec')
  import torch

  with tempfile.TemporaryDirectory() as folder:
    weights = Path(folder) / 'varnet.pt'
    net = common.torch_varnet(CASCADES, CHANS, SENS)
    torch.save({name: value.cpu() for name, value in net.state_dict().items()}, weights)
    arguments = [f'--coils={shape[0]}', f'--rows={shape[1]}', f'--cols={shape[2]}', f'--weights={weights}']
    found = common.alternate('benchmarks.train', arguments, ('torch', 'jaxrec'), options.repeats)
    common.report('train', 'step', 'x'.join(map(str, shape)), found)


if __name__ == '__main__':
  main()
