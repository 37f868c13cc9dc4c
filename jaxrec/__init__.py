"""jaxrec: adversarial robustness of learned medical image reconstruction, in JAX."""

# Before what takes seconds to load.
from jaxrec import program

# isort: split
from jaxrec import attacks, data, fourier, geometry, invariances, masks, metrics, models, networks, noise, training
from jaxrec.attacks import (
  AttackResult,
  Perturbation,
  Search,
  SearchResult,
  apgd,
  attack,
  coil_noise,
  compose,
  family,
  grid,
  image_noise,
  pgd,
  random_search,
  region_mse,
  region_mse_ssim,
  region_ssim,
  restarts,
  rotation,
  translation,
)
from jaxrec.audit import Sweep, audit
from jaxrec.networks import Network, network, torch_network
from jaxrec.types import Scan, Slice
from jaxrec.version import __version__

__all__ = [
  'AttackResult',
  'Network',
  'Perturbation',
  'Scan',
  'Search',
  'SearchResult',
  'Slice',
  'Sweep',
  '__version__',
  'apgd',
  'attack',
  'attacks',
  'audit',
  'coil_noise',
  'compose',
  'data',
  'family',
  'fourier',
  'geometry',
  'grid',
  'image_noise',
  'invariances',
  'masks',
  'metrics',
  'models',
  'network',
  'networks',
  'noise',
  'pgd',
  'random_search',
  'region_mse',
  'region_mse_ssim',
  'region_ssim',
  'report',
  'restarts',
  'rotation',
  'torch_network',
  'training',
  'translation',
]


def __getattr__(name):
  if name != 'report':
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from jaxrec.reports.attacks import report  # Brings matplotlib, which nothing else here needs.

  return report
