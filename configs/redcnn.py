"""RED-CNN on low-dose chest CT, trained and attacked.

Paper: Chen et al. 2017, Low-dose CT with a residual encoder-decoder convolutional neural network; recipe of ldct-benchmark
Command: python -m jaxrec.main --config=configs/redcnn.py with LDCT_ROOT set to the TCIA data, or configs/redcnn.py:demo on the phantom
Hardware: one GPU; the demo takes minutes on 2 cores.
Expected: ldct-benchmark reports SSIM .584, PSNR 28.0 dB on the chest test set (low dose .312, 18.1 dB),
of images cut to the lung window; ours are over all 4095 HU and not to be compared with them.
"""

from configs import ct


def get_config(arg: str = ''):
  """The experiment; `arg` is the profile, see `common.base`."""
  return ct.denoiser(ct.base('redcnn', arg), 'redcnn', label='RED-CNN')
