"""Worst-case perturbations of measurements: what, how and by which measure."""

from jaxrec.attacks.core import (
  AttackResult,
  Exploring,
  Perturbation,
  Search,
  SearchResult,
  ascending,
  attack,
  chunked,
  evaluate,
  network_calls,
  seek,
  seek_image,
  starts_at_random,
)
from jaxrec.attacks.defences import cyclic, expectation
from jaxrec.attacks.families import Family, family, family_of, strength_text
from jaxrec.attacks.lipschitz import Amplification, local_lipschitz
from jaxrec.attacks.objectives import region_mse, region_mse_ssim, region_ssim
from jaxrec.attacks.perturbations import angle_grid, coil_noise, compose, image_noise, rotation, translation
from jaxrec.attacks.searches import advrec_step, apgd, farthest, grid, pgd, random_search, restarts, steepest_step

__all__ = [
  name
  for name in dir()
  if not name.startswith('_')
  and name not in ('core', 'defences', 'families', 'lipschitz', 'objectives', 'perturbations', 'searches')
]
