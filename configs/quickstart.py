"""U-Net and E2E-VarNet at 8x on the built-in phantom, side by side in one report.

Paper: Morshuis et al. 2022, Adversarial Robustness of MR Image Reconstruction under Realistic Perturbations
Command: bash launch/quickstart.sh, or python -m jaxrec.main --config=configs/quickstart.py
Hardware: 2 CPU cores, under 8 minutes.
Expected: SSIM in the box falls with eta, aimed attacks hurt the box more than attacks on the whole image,
rotations hurt less than noise.
"""

import ml_collections

from configs import common, unet_8x, varnet_8x


def get_config(arg: str = ''):
  """Both experiments; `arg` is `demo` (the default) or `smoke`."""
  profile = arg or 'demo'
  config = ml_collections.ConfigDict(dict(name='quickstart', profile=profile, stages=('report',)))
  config.experiments = ml_collections.ConfigDict()
  for name, module in (('unet', unet_8x), ('varnet', varnet_8x)):
    experiment = module.get_config(profile)
    experiment.stages = ('train', 'attack')
    config.experiments[name] = experiment
  config.report = ml_collections.ConfigDict(dict(draws=1000, runs=(), generators=()))
  return common.share_data(config)
