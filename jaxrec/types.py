"""Data structures and function types that every other part of jaxrec shares."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from flax import struct

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array
Scalar: TypeAlias = jax.Array
Image: TypeAlias = jax.Array
Delta: TypeAlias = Any
Variables: TypeAlias = Any


@struct.dataclass
class Scan:
  """One MR slice as acquired; the k-space is never pre-masked.

  Attributes:
    kspace: `[coil, row, col]` complex64, DC in the centre, columns are the
      phase-encoding axis.
    mask: `[1 or row, col]` bool, the sampling mask.
    acs: `[1 or row, col]` bool, the fully sampled centre.
    acquired: `[1, col]` bool, columns that were really measured.
    target: `[out_row, out_col]` float32, root sum of squares of the full
      k-space, centre-cropped.
    region: `[out_row, out_col]` float32, 1 inside the annotated box (all ones:
      the whole image).
    scale: `[]` float32, data range used by PSNR and SSIM.
  """

  kspace: Array
  mask: Array
  acs: Array
  acquired: Array
  target: Array
  region: Array
  scale: Array


@struct.dataclass
class Slice:
  """One CT slice in normalised Hounsfield units.

  Attributes:
    low_dose: `[row, col]` float32, the network's input.
    target: `[row, col]` float32, the full-dose image.
    region: `[row, col]` float32, 1 inside the annotated box.
    scale: `[]` float32, data range used by PSNR and SSIM.
  """

  low_dose: Array
  target: Array
  region: Array
  scale: Array


Sample: TypeAlias = Scan | Slice
Reconstructor: TypeAlias = Callable[[Variables, Sample], Image]
Objective: TypeAlias = Callable[[Image, Sample], Scalar]
