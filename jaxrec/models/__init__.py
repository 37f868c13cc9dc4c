"""Networks, a table of their names, and import of published weights."""

from jaxrec.models.dcgan import DCGAN, KspaceGenerator
from jaxrec.models.unet import ImageUNet, UNet, UNetRecon
from jaxrec.models.varnet import VarNet
from jaxrec.models.registry import NAMES, bind, bind_complete, bind_training, build, start
from jaxrec.models.weights import load_fastmri

__all__ = [
  'DCGAN', 'ImageUNet', 'KspaceGenerator', 'NAMES', 'UNet', 'UNetRecon', 'VarNet', 'bind', 'bind_complete', 'bind_training', 'build',
  'load_fastmri', 'start',
]  # fmt: skip
