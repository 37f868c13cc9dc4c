"""What WGAN-VGG ignores, at its output and inside.

Paper: Eulig et al. 2025 and 2022; see `invariances_cnn10`
Command: python -m jaxrec.main --config=configs/invariances_wganvgg.py with LDCT_ROOT set, or
configs/invariances_wganvgg.py:demo (phantom, under 20 minutes on 2 cores)
Hardware: the paper's sizes need one large GPU for days.
VGG features (needed at full size): --config.experiments.denoiser.train.task.perceptual.vgg=vgg19.pth
--config.experiments.vae.train.task.perceptual.vgg=vgg16.pth
Expected: as `invariances_cnn10`; the slides tap layers 1, 4, 7 and the output.
"""

from configs import invariances_cnn10


def get_config(arg: str = ''):
  """The experiment; `arg` is the profile."""
  layers = {'demo': (4,), 'smoke': ()}.get(arg, (1, 4, 7))
  return invariances_cnn10.experiment('invariances_wganvgg', arg, 'wganvgg', 'WGAN-VGG', layers=layers)
