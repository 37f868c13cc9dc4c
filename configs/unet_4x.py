"""Image-domain U-Net with 128 channels at 4x, attacked by worst-case noise and rotations.

Paper: Morshuis et al. 2022, Adversarial Robustness of MR Image Reconstruction under Realistic Perturbations
Command: python -m jaxrec.main --config=configs/unet_4x.py --config.data.root=/data/fastmri/knee --config.data.annotations=/data/knee.csv
Without data: python -m jaxrec.main --config=configs/unet_4x.py:demo (phantom, minutes on 2 cores)
Hardware: the paper trained one day on 8 GPUs of 11 GB.
Expected: lower SSIM than the VarNet, a similar slope against eta (figures 1 and 4).
"""

from configs import common


def get_config(arg: str = ''):
  """The experiment; `arg` is the profile, see `common.base`."""
  config = common.acceleration(common.base('unet_4x', arg), 4)
  return common.unet(config, chans=128)
