"""Networks by name, and their use as reconstructors."""

import flax.linen as nn

from jaxrec.models.unet import UNet, UNetRecon
from jaxrec.models.varnet import VarNet
from jaxrec.types import Reconstructor, Scan

_MODULES = {'unet': UNet, 'unet_recon': UNetRecon, 'varnet': VarNet}

NAMES = tuple(_MODULES)


def build(name: str, **kwargs) -> nn.Module:
  """A network by name.

  Args:
    name: one of `NAMES`.
    **kwargs: attributes of the module.

  Returns:
    The Flax module.

  Raises:
    ValueError: for an unknown name or attribute.
  """
  if name not in _MODULES:
    raise ValueError(f'model.name: {name!r} is unknown; choose one of {", ".join(NAMES)}')
  module = _MODULES[name]
  fields = [f for f in module.__dataclass_fields__ if f not in ('parent', 'name')]
  for key in kwargs:
    if key not in fields:
      raise ValueError(f'model.{key}: {name} has no such option; it takes {", ".join(fields)}')
  return module(**kwargs)


def bind(module: nn.Module) -> Reconstructor:
  """Makes a reconstructor `f(variables, sample)` of a network.

  Args:
    module: `VarNet`, `UNetRecon` or another network that takes the k-space, the
      mask and the centre of a `Scan`, or the low-dose image of a `Slice`.

  Returns:
    A pure function to `[row, col]` float images; leading batch axes pass through.
  """

  def reconstruct(variables, sample):
    if isinstance(sample, Scan):
      return module.apply(variables, sample.kspace, sample.mask, sample.acs)
    return module.apply(variables, sample.low_dose)

  return reconstruct
