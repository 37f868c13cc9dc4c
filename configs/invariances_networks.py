"""What denoisers ignore, side by side in one report, ranked.

Paper: Eulig et al. 2025 (four networks)
Command: python -m jaxrec.main --config=configs/invariances_networks.py with LDCT_ROOT set, or
configs/invariances_networks.py:demo (two of them on the phantom, under 40 minutes on 2 cores)
Hardware: the paper's sizes need one large GPU for days.
VGG features (needed at full size; one file for all runs of its kind):
--config.experiments.wganvgg.experiments.denoiser.train.task.perceptual.vgg=vgg19.pth
--config.experiments.wganvgg.experiments.vae.train.task.perceptual.vgg=vgg16.pth
Expected: the table of networks and layers by the share of structures lost, with bootstrap intervals over patients.
"""

import ml_collections

from configs import common, invariances_cnn10, invariances_wganvgg


def get_config(arg: str = ''):
  """The analyses; `arg` is the profile."""
  profile = arg or 'paper'
  config = ml_collections.ConfigDict(dict(name='invariances_networks', profile=profile, stages=('report',)))
  config.experiments = runs = ml_collections.ConfigDict(sort_keys=False)
  runs.cnn10 = invariances_cnn10.get_config(arg)
  runs.wganvgg = invariances_wganvgg.get_config(arg)
  if profile == 'paper':
    for network, label in (('redcnn', 'RED-CNN'), ('dugan', 'DU-GAN')):
      runs[network] = invariances_cnn10.experiment(f'invariances_{network}', arg, network, label, layers=())
  for run in runs.values():
    run.stages = ('invariances',)
  config.report = ml_collections.ConfigDict(dict(draws=runs.cnn10.report.draws, runs=(), generators=()))
  return common.share_data(config)
