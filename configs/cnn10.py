"""CNN-10 on low-dose chest CT, trained and attacked.

Paper: Chen et al. 2017, Low-dose CT via convolutional neural network; recipe of ldct-benchmark
Command: python -m jaxrec.main --config=configs/cnn10.py with LDCT_ROOT set to the TCIA data, or configs/cnn10.py:demo on the phantom
Hardware: one GPU; the demo takes minutes on 2 cores.
Expected: ldct-benchmark reports SSIM .559, PSNR 27.3 dB on the chest test set (low dose .312, 18.1 dB),
of images cut to the lung window; ours are over all 4095 HU and not to be compared with them.
"""

from configs import ct


def get_config(arg: str = ''):
  """The experiment; `arg` is the profile, see `common.base`."""
  return ct.denoiser(ct.base('cnn10', arg), 'cnn10', label='CNN-10')
