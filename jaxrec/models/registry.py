"""Networks by name, and their use as reconstructors."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util

from jaxrec.models import draws
from jaxrec.models.cinn import CINN
from jaxrec.models.critics import CVAECritic, DUGANDiscriminator, WGANVGGCritic
from jaxrec.models.cvae import CVAE
from jaxrec.models.dcgan import DCGAN, KspaceGenerator
from jaxrec.models.denoisers import CNN10, REDCNN, WGANVGG, Bottleneck
from jaxrec.models.unet import ImageUNet, UNet, UNetRecon
from jaxrec.models.varnet import VarNet
from jaxrec.types import Array, Image, Key, Reconstructor, Sample, Scan, Variables

_MODULES: dict[str, type[nn.Module]] = {
  'unet': UNet,
  'unet_recon': UNetRecon,
  'unet_image': ImageUNet,
  'varnet': VarNet,
  'dcgan': DCGAN,
  'kspace_generator': KspaceGenerator,
  'cnn10': CNN10,
  'redcnn': REDCNN,
  'wganvgg': WGANVGG,
  'wganvgg_critic': WGANVGGCritic,
  'dugan': REDCNN,
  'bottleneck': Bottleneck,
  'dugan_discriminator': DUGANDiscriminator,
  'cvae': CVAE,
  'cvae_critic': CVAECritic,
  'cinn': CINN,
}

NAMES = tuple(_MODULES)
_OF_SCANS = (VarNet, UNetRecon)
_OF_IMAGES = (ImageUNet, CNN10, REDCNN, WGANVGG, Bottleneck, CVAE, CINN)


def fields(name: str) -> tuple[str, ...]:
  """Options of a network.

  Args:
    name: one of `NAMES`.

  Raises:
    ValueError: for an unknown name.
  """
  if name not in _MODULES:
    raise ValueError(f'model.name: {name!r} is unknown; choose one of {", ".join(NAMES)}')
  return tuple(f for f in _MODULES[name].__dataclass_fields__ if f not in ('parent', 'name'))


def takes_scans(name: str) -> bool | None:
  """Whether a network takes k-space, or images; `None` for one that is a part of others or from outside."""
  made = _MODULES.get(name)
  return True if made in _OF_SCANS else False if made in _OF_IMAGES else None


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
  known = fields(name)
  for key in kwargs:
    if key not in known:
      raise ValueError(f'model.{key}: {name} has no such option; it takes {", ".join(known)}')
  return _MODULES[name](**kwargs)


def bind(module: nn.Module) -> Reconstructor:
  """Makes a reconstructor `f(variables, sample)` of a network.

  Args:
    module: `VarNet`, `UNetRecon` or another network that takes the k-space, the
      mask and the centre of a `Scan`, or the input of a `Slice`.

  Returns:
    A pure function to `[row, col]` float images; leading batch axes pass through.
  """
  network: Any = module
  return lambda variables, sample: network.apply(variables, *inputs(sample))


def bind_complete(module: nn.Module) -> Callable[[Variables, Scan], Array]:
  """The completed k-space `[coil, row, col]` of a network that makes one, `VarNet`.

  Raises:
    ValueError: for other networks.
  """
  if not isinstance(module, VarNet):
    raise ValueError(f'model.name: {type(module).__name__} has no completed k-space; use varnet')
  network: Any = module
  return lambda variables, scan: network.apply(variables, *inputs(scan), complete=True)


def bind_training(module: nn.Module) -> Callable[..., tuple[Image, Variables]]:
  """As `bind`, for a batch in training.

  Batch norms use and update the batch's statistics; randomised smoothing draws
  from the key.

  Args:
    module: see `bind`.

  Returns:
    `(variables, samples, key) -> (images, variables)`; the key may be left out.
  """

  def reconstruct(variables, samples, key=None):
    rngs = None if key is None else {'smoothing': key}
    images, changed = module.apply(variables, *inputs(samples), mutable=['batch_stats', 'spectral'], rngs=rngs)
    return images, {**variables, **changed}

  return reconstruct


def observer(module: nn.Module, layer: int | None = None) -> Callable[[Variables, Image], Array]:
  """What a network of images makes of an image, or the activations of one of its layers.

  Args:
    module: a denoiser or another network that takes `[..., row, col]`.
    layer: from 1; the output if `None`.

  Returns:
    `(variables, image) -> y`; leading batch axes pass through.

  Raises:
    ValueError: if the network takes no images or shows no layers.
  """
  if isinstance(module, _OF_SCANS):
    raise ValueError(
      f'model.name: {type(module).__name__} takes k-space; invariances need a network of images, such as unet_image'
    )
  network: Any = module
  if layer is None:
    return network.apply
  if not isinstance(module, (CNN10, REDCNN, WGANVGG)):
    raise ValueError(f'layer: {type(module).__name__} does not show its layers; leave it out for the output')
  return lambda variables, image: network.apply(variables, image, layer=layer)


def inputs(sample: Sample) -> tuple[Array, ...]:
  """What a network takes of a sample: k-space, mask and centre of a scan, the input of a slice."""
  return (sample.kspace, sample.mask, sample.acs) if isinstance(sample, Scan) else (sample.input,)


def start(module: nn.Module, key: Key, sample: Sample) -> Variables:
  """Variables of a network for samples of this shape, batch axes and all.

  Args:
    module: as in `bind`.
    key: the weights follow from it.
    sample: for its shapes.

  Returns:
    The variables. Those of a network of `NAMES` with instance norm are drawn on the host, without compiling anything.
  """
  given = inputs(sample)
  # A network from outside may hold `nn.jit`, whose earlier trace would stand in for this one.
  if type(module) in _MODULES.values():
    with draws.noted() as ranges:
      # A function of this call, for the same reason.
      shapes = traverse_util.flatten_dict(jax.eval_shape(lambda *x: module.init(*x), key, *given))
    if shapes.keys() == {('params', *path) for path in ranges}:
      drawn = {path: draws.draw(key, path, x.shape, x.dtype, *ranges[path[1:]]) for path, x in shapes.items()}
      # Not `jnp.asarray`, which compiles a copy for each shape.
      return jax.device_put(traverse_util.unflatten_dict(drawn))
  # Something starts from data or from a draw of its own.
  given = (draws.hardware_key(key), *given)
  if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(given)):
    return module.init(*given)
  # It runs once: optimising takes XLA longer than it could save.
  return jax.jit(module.init).lower(*given).compile({'xla_backend_optimization_level': '0'})(*given)
