"""What a TPU makes of convolutions with few channels, in four forms; compiled for a chip that is not here.

  python -m benchmarks.convolutions [--target v5e:2x2 --efforts UNKNOWN O1]

Value and gradients (images and kernels) of two 3x3 convolutions with instance norm
at the full size of a VarNet's first level: 640 x 368, 9 channels, float32. Needs the
extra tpu, runs nothing, and writes `docs/numbers/tpu_convolutions.csv`: memory besides
arguments and results, as multiples of one image too, bytes moved, and operations, as
XLA tells them, with its own default of effort (`UNKNOWN`) and with less.
"""

import argparse
import functools
import importlib.metadata
import itertools
import time

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import SingleDeviceSharding

from benchmarks import common
from jaxrec import results
from jaxrec.models import layers
from jaxrec.workflows import targets

TABLE = common.RESULTS.parents[1] / 'docs' / 'numbers' / 'tpu_convolutions.csv'
ROWS, COLS, CHANNELS = 640, 368, 9


def channels_first(x, kernel):
  """Rows and columns last."""
  y = lax.conv_general_dilated(
    jnp.moveaxis(x, -1, 1), kernel, (1, 1), 'SAME', dimension_numbers=('NCHW', 'HWIO', 'NCHW'), precision=layers.PRECISION
  )  # fmt: skip
  return jnp.moveaxis(y, 1, -1)


FORMS = {
  'plain': layers._plain_conv2d,
  'transposed, channels first': channels_first,
  '8 pixels as channels': functools.partial(layers._folded_conv2d, fold=8),
  '16 pixels as channels': functools.partial(layers._folded_conv2d, fold=16),
}


def block(convolution):
  """Two layers of a U-Net, and the energy of what they make."""

  def energy(x, first, second):
    for kernel in (first, second):
      x = layers.instance_norm_leaky_relu(convolution(x, kernel))
    return jnp.sum(x * x)

  return jax.value_and_grad(energy, argnums=(0, 1, 2))


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--target', default='v5e:2x2')
  parser.add_argument('--efforts', nargs='+', default=['UNKNOWN', 'O1'])
  given = parser.parse_args()
  found = targets.target(given.target, 0, [])
  place = SingleDeviceSharding(found.devices[0])
  kernel = jax.ShapeDtypeStruct((3, 3, CHANNELS, CHANNELS), jnp.float32, sharding=place)
  image = jax.ShapeDtypeStruct((1, ROWS, COLS, CHANNELS), jnp.float32, sharding=place)
  rows = []
  for name, effort in itertools.product(FORMS, given.efforts):
    chosen, start = found._replace(effort=effort), time.perf_counter()
    made = chosen.compile(jax.jit(block(FORMS[name])).lower(image, kernel, kernel))
    memory, told = made.memory_analysis().temp_size_in_bytes, made.cost_analysis()
    rows.append({
      'form': name, 'gbytes': memory / 1e9, 'times': memory / (4 * ROWS * COLS * CHANNELS), 'traffic': told['bytes accessed'] / 1e9,
      'gflop': told['flops'] / 1e9, 'target': chosen.name, 'effort': chosen.level(), 'seconds': time.perf_counter() - start, 'jax': importlib.metadata.version('jax'),
      'libtpu': importlib.metadata.version('libtpu'), 'revision': results.git_revision(),
    })  # fmt: skip
    print(rows[-1], flush=True)
  results.write_csv(TABLE, list(rows[0]), [row.values() for row in rows])


if __name__ == '__main__':
  main()
