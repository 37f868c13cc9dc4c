"""Full-size E2E-VarNet, trained at 4x and 8x together, attacked at 8x.

Paper: Sriram et al. 2020, End-to-End Variational Networks for Accelerated MRI Reconstruction
Command: python -m jaxrec.main --config=configs/varnet_8x_full.py --config.data.root=/data/fastmri/knee --config.data.annotations=/data/knee.csv
Without data: python -m jaxrec.main --config=configs/varnet_8x_full.py:demo (phantom, minutes on 2 cores)
Hardware: the paper trained on 32 GPUs of 32 GB, batch 1 each; docs/accelerators.md says what one device takes.
Expected: leaderboard test at 8x SSIM .8920, NMSE .0085, PSNR 37.1 (trained with the validation set too).
"""

from configs import common


def get_config(arg: str = ''):
  """The experiment; `arg` is the profile, see `common.base`."""
  config = common.joint_training(common.base('varnet_8x_full', arg), attacked=8)
  return common.varnet(config, num_cascades=12, chans=18, pools=4, sens_chans=8, sens_pools=4)
