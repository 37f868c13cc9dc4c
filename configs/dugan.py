"""DU-GAN on low-dose chest CT, trained and attacked.

Paper: Huang et al. 2021, DU-GAN; recipe of ldct-benchmark
Command: python -m jaxrec.main --config=configs/dugan.py with LDCT_ROOT set to the TCIA data, or configs/dugan.py:demo on the phantom
Hardware: one GPU; the demo takes minutes on 2 cores.
Expected: ldct-benchmark reports SSIM .544, PSNR 26.3 dB on the chest test set (low dose .312, 18.1 dB),
of images cut to the lung window; ours are over all 4095 HU and not to be compared with them.
"""

from configs import ct


def get_config(arg: str = ''):
  """The experiment; `arg` is the profile, see `common.base`."""
  return ct.denoiser(ct.base('dugan', arg), 'dugan', label='DU-GAN')
