"""Networks as files that JAX alone can run."""

from typing import Any

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp

from jaxrec.models.registry import inputs
from jaxrec.types import Sample, Variables

PLATFORMS = ('cpu', 'cuda', 'tpu')


def export(module: nn.Module, variables: Variables, sample: Sample, *, platforms: tuple[str, ...] = PLATFORMS) -> bytes:
  """A trained network with its weights, for samples of one shape.

  Whoever loads it needs JAX but neither jaxrec nor Flax:
  `jax.export.deserialize(data).call(kspace, mask, acs)`, or `.call(input)`.

  Args:
    module: see `bind`.
    variables: of the network; they become constants of the program.
    sample: any sample of the shape, with its batch axes.
    platforms: where it shall run.

  Returns:
    What `jax.export.deserialize` reads. JAX keeps it readable for half a year of
    its versions at least.

  Raises:
    ValueError: if the extra `export` is not installed.

  Reference:
    https://docs.jax.dev/en/latest/export/export.html

  Example:
    >>> import jax, jaxrec
    >>> from jaxrec.data import synthetic
    >>> scan = synthetic.scan(0, rows=32, cols=32, coils=2)
    >>> net = jaxrec.models.build('unet_recon', chans=2, pools=1)
    >>> variables = jaxrec.models.start(net, jax.random.key(0), scan)
    >>> data = jaxrec.models.export(net, variables, scan)  # doctest: +SKIP
    >>> jax.export.deserialize(bytearray(data)).call(scan.kspace, scan.mask, scan.acs).shape  # doctest: +SKIP
    (32, 32)
  """
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), inputs(sample))

  def network(*arrays: Any):
    return module.apply(variables, *arrays)

  exported = jax.export.export(jax.jit(network), platforms=platforms)(*shapes)
  try:
    return bytes(exported.serialize())
  except ImportError:
    raise ValueError('export: needs the extra, pip install jaxrec[export]') from None
