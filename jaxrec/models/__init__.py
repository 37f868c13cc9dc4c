"""Networks, a table of their names, and import of published weights."""

from jaxrec.models.cinn import CINN
from jaxrec.models.critics import CVAECritic, DUGANDiscriminator, WGANVGGCritic
from jaxrec.models.cvae import CVAE
from jaxrec.models.dcgan import DCGAN, KspaceGenerator
from jaxrec.models.denoisers import CNN10, REDCNN, WGANVGG
from jaxrec.models.exported import export
from jaxrec.models.ldct_weights import load_ldct
from jaxrec.models.registry import NAMES, bind, bind_complete, bind_training, build, observer, start
from jaxrec.models.unet import ImageUNet, UNet, UNetRecon
from jaxrec.models.varnet import VarNet, coil_maps
from jaxrec.models.vgg import VGG, load_vgg, perceptual
from jaxrec.models.weights import load_fastmri

__all__ = [
  'CINN', 'CNN10', 'CVAE', 'CVAECritic', 'DCGAN', 'DUGANDiscriminator', 'ImageUNet', 'KspaceGenerator', 'NAMES', 'REDCNN',
  'UNet', 'UNetRecon', 'VGG', 'VarNet', 'WGANVGG', 'WGANVGGCritic', 'bind', 'bind_complete', 'bind_training', 'build', 'coil_maps',
  'export', 'load_fastmri', 'load_ldct', 'load_vgg', 'observer', 'perceptual', 'start',
]  # fmt: skip
