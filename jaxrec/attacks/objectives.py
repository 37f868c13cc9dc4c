"""What an attack maximises over the region of a sample. Larger is worse."""

from jaxrec import metrics
from jaxrec.types import Objective


def region_mse() -> Objective:
  """Mean squared error in the region, in units of the data range squared.

  `||S (x - t)||^2 / (|S| scale^2)`, monotone in equations (4) and (5).

  Returns:
    An objective of images centre-cropped to the target.

  Reference:
    Morshuis et al. 2022, equation (4).
  """
  return lambda image, sample: metrics.mse(image, sample.target, sample.scale, sample.region) / sample.scale**2


def region_ssim() -> Objective:
  """One minus the structural similarity in the region.

  Returns:
    An objective of images centre-cropped to the target.
  """
  return lambda image, sample: 1 - metrics.ssim(image, sample.target, sample.scale, sample.region)


def region_mse_ssim(*, ssim_weight: float = 0.5) -> Objective:
  """Mixture of the normalised mean squared error and one minus SSIM in the region.

  Args:
    ssim_weight: share of the SSIM term, in [0, 1].

  Returns:
    An objective of images centre-cropped to the target.

  Raises:
    ValueError: if the weight is outside [0, 1].
  """
  if not 0 <= ssim_weight <= 1:
    raise ValueError(f'ssim_weight: {ssim_weight} is not in [0, 1]')
  structure = region_ssim()

  def objective(image, sample):
    error = metrics.nmse(image, sample.target, sample.scale, sample.region)
    return (1 - ssim_weight) * error + ssim_weight * structure(image, sample)

  return objective
