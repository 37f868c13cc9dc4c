"""What bounds a step of the reduced VarNet on this machine: its convolutions, products and FFTs, timed one by one.

  python -m benchmarks.shares [--coils=15 --rows=640 --cols=368]

Prints, for one training step and for the gradient of a step of PGD, how often each kind of operation runs, what it takes
when it runs alone, the rate against that of a large matrix product, and what is left of the whole for normalisation and
other element-wise work; with the page faults of a run. On a machine without other work.
"""

import argparse
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxrec
from benchmarks import common
from benchmarks.attack import CASCADES, CHANS, SENS
from jaxrec import training
from jaxrec.training import cost

KINDS = {'conv_general_dilated': 'convolutions', 'dot_general': 'products', 'fft': 'FFTs'}


def operations(jaxpr, times=1):
  """`(equation, how often it runs)` of the kinds above, with the formulations for this platform."""
  platform = jax.default_backend()
  for equation in jaxpr.eqns:
    name, parameters = equation.primitive.name, equation.params
    if name in KINDS:
      yield equation, times
    elif name == 'cond' and parameters.get('branches_platforms'):
      names = parameters['branches_platforms']
      index = next((i for i, n in enumerate(names) if n and platform in n), names.index(None))
      yield from operations(parameters['branches'][index].jaxpr, times)
    else:
      for inner in cost.inside(parameters):
        yield from operations(inner, times * (parameters['length'] if name == 'scan' else 1))


def seconds(function, *arguments, repeats=3):
  """Median of a compiled call, without its compilation."""
  compiled = jax.jit(function)
  jax.block_until_ready(compiled(*arguments))
  found = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    found.append(time.perf_counter() - start)
  return float(np.median(found))


def alone(equation):
  """Seconds of one operation by itself."""
  arguments = [jnp.ones(v.aval.shape, v.aval.dtype) for v in equation.invars]
  return seconds(lambda *x: equation.primitive.bind(*x, **equation.params), *arguments)


def report(name, function, *arguments, peak):
  """Prints the shares of a program."""
  compiled = jax.jit(function)
  jax.block_until_ready(compiled(*arguments))
  faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  start = time.perf_counter()
  jax.block_until_ready(compiled(*arguments))
  whole = time.perf_counter() - start
  faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
  timed, totals = {}, {kind: [0, 0.0, 0.0] for kind in KINDS.values()}
  for equation, times in operations(jax.make_jaxpr(function)(*arguments).jaxpr):
    key = str(equation.primitive), str(equation.params), *(str(v.aval) for v in equation.invars)
    if key not in timed:
      timed[key] = alone(equation)
    total = totals[KINDS[equation.primitive.name]]
    total[0] += times
    total[1] += times * timed[key]
    total[2] += times * cost.own(equation)
  print(f'{name}: {whole:.3f} s, {faults} page faults; a large matrix product runs at {peak / 1e9:.0f} GFLOP/s')
  for kind, (count, spent, work) in totals.items():
    if count:
      print(
        f'  {kind:12} {count:6d} times {spent:8.3f} s alone, {spent / whole:6.1%} of it, {work / spent / peak:6.1%} of the peak'
      )
  left = whole - sum(total[1] for total in totals.values())
  print(f'  {"the rest":12} {"":6}       {left:8.3f} s, {left / whole:6.1%}')


def main():
  """Times a training step and PGD."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--coils', type=int, default=15)
  parser.add_argument('--rows', type=int, default=640)
  parser.add_argument('--cols', type=int, default=368)
  options = parser.parse_args()
  shape = (options.coils, options.rows, options.cols)
  module = jaxrec.models.VarNet(num_cascades=CASCADES, chans=CHANS, sens_chans=SENS)
  kspace, mask, acs = common.kspace(*shape)
  target = np.ones(shape[1:], np.float32)
  scan = jaxrec.Scan(kspace, mask, acs, np.ones_like(mask), target, target, np.float32(1))
  task = training.supervised(module, training.optimizer('adam', 3e-4))
  batch = jax.tree.map(lambda x: jnp.asarray(x)[None], scan)
  state = task.init(jax.random.key(0), batch)
  square = jnp.ones((2048, 2048))
  peak = 2 * 2048**3 / seconds(lambda x: x @ x, square)
  report('training step', task.step, state, batch, jax.random.key(0), peak=peak)
  reconstruct, loss = jaxrec.models.bind(module), jaxrec.region_mse()
  scan = jax.tree.map(jnp.asarray, scan)

  def harm(kspace):
    return loss(reconstruct(state.variables, scan.replace(kspace=kspace)), scan)

  report('gradient of a step of PGD', jax.grad(harm), scan.kspace, peak=peak)


if __name__ == '__main__':
  main()
