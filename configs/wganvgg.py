"""WGAN-VGG on low-dose chest CT, trained and attacked.

Paper: Yang et al. 2018, Low-dose CT image denoising using a generative adversarial network; recipe of ldct-benchmark
Command: python -m jaxrec.main --config=configs/wganvgg.py with LDCT_ROOT set to the TCIA data, or configs/wganvgg.py:demo on the phantom
Hardware: one GPU; the demo takes minutes on 2 cores.
Expected: ldct-benchmark reports SSIM .505, PSNR 25.3 dB on the chest test set (low dose .312, 18.1 dB).
"""

from configs import ct


def get_config(arg: str = ''):
  """The experiment; `arg` is the profile, see `common.base`."""
  return ct.denoiser(ct.base('wganvgg', arg), 'wganvgg', label='WGAN-VGG')
