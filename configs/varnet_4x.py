"""Reduced E2E-VarNet at 4x, attacked by worst-case noise and rotations.

Paper: Morshuis et al. 2022, Adversarial Robustness of MR Image Reconstruction under Realistic Perturbations
Command: python -m jaxrec.main --config=configs/varnet_4x.py --config.data.root=/data/fastmri/knee --config.data.annotations=/data/knee.csv
Without data: python -m jaxrec.main --config=configs/varnet_4x.py:demo (phantom, minutes on 2 cores)
Hardware: the paper trained one day on 32 GPUs of 11 GB.
Expected: SSIM in the box falls with eta; the paper prints no numbers, see its figures 1 and 4.
"""

from configs import common


def get_config(arg: str = ''):
  """The experiment; `arg` is the profile, see `common.base`."""
  config = common.acceleration(common.base('varnet_4x', arg), 4)
  return common.varnet(config, num_cascades=8, chans=9, pools=4, sens_chans=6, sens_pools=4)
