"""Networks, a table of their names, and import of published weights."""

from jaxrec.models.unet import UNet, UNetRecon
from jaxrec.models.varnet import VarNet
from jaxrec.models.registry import NAMES, bind, build
from jaxrec.models.weights import load_fastmri

__all__ = ['NAMES', 'UNet', 'UNetRecon', 'VarNet', 'bind', 'build', 'load_fastmri']
