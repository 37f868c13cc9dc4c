"""WGAN-VGG on low-dose chest CT, trained and attacked.

Paper: Yang et al. 2018, Low-dose CT image denoising using a generative adversarial network; recipe of ldct-benchmark
Command: python -m jaxrec.main --config=configs/wganvgg.py with LDCT_ROOT set to the TCIA data, or configs/wganvgg.py:demo on the phantom
Hardware: one GPU; the demo takes minutes on 2 cores.
VGG features: --config.train.task.perceptual.vgg=vgg19.pth (a file of yours, needed at full size); the demo trains a CNN-10 first and compares its outputs instead.
Expected: ldct-benchmark reports SSIM .505, PSNR 25.3 dB on the chest test set (low dose .312, 18.1 dB),
of images cut to the lung window; ours are over all 4095 HU and not to be compared with them.
"""

import ml_collections

from configs import common, ct


def get_config(arg: str = ''):
  """The experiment; `arg` is the profile, see `common.base`. Small profiles come with the run that judges them."""
  config = ct.denoiser(
    ct.base('wganvgg', arg),
    'wganvgg',
    label='WGAN-VGG',
    perceptual='' if (arg or 'paper') == 'paper' else 'independent',
  )
  if config.profile == 'paper':
    return config
  runs = ml_collections.ConfigDict(sort_keys=False)
  runs.independent = ct.independent('wganvgg', arg)
  runs.wganvgg = config
  config.stages = ('train', 'attack')
  report = ml_collections.ConfigDict(dict(draws=config.report.draws, runs=(), generators=()))
  return common.share_data(
    ml_collections.ConfigDict(
      dict(name='wganvgg', profile=config.profile, stages=('report',), experiments=runs, report=report)
    )
  )
