"""What denoisers ignore, side by side in one report, ranked.

Paper: Eulig et al. 2025 (four networks)
Command: python -m jaxrec.main --config=configs/invariances_networks.py with LDCT_ROOT set, or
configs/invariances_networks.py:demo (on the phantom, under 60 minutes on 2 cores)
Hardware: the paper's sizes need one large GPU for days.
VGG features (needed at full size; one file for all runs of its kind):
--config.experiments.wganvgg.experiments.denoiser.train.task.perceptual.vgg=vgg19.pth
--config.experiments.wganvgg.experiments.vae.train.task.perceptual.vgg=vgg16.pth
Expected: the retained detectability of every network by size and contrast, and paired differences, over patients.
"""

import ml_collections

from configs import common, ct, invariances, invariances_cnn10, invariances_wganvgg

NETWORKS = {'cnn10': 'CNN-10', 'redcnn': 'RED-CNN', 'wganvgg': 'WGAN-VGG', 'dugan': 'DU-GAN'}


def get_config(arg: str = ''):
  """Detectability of all networks, and samples; `arg` is the profile."""
  profile = arg or 'paper'
  name = 'invariances_networks'
  config = ml_collections.ConfigDict(
    dict(name=name, profile=profile, label='networks', seed=0, stages=('detect', 'invariances', 'report'))
  )
  config.experiments = runs = ml_collections.ConfigDict(sort_keys=False)
  samplers = ml_collections.ConfigDict(sort_keys=False)
  if profile == 'paper':
    for network, label in NETWORKS.items():
      own = {'cnn10': invariances_cnn10, 'wganvgg': invariances_wganvgg}.get(network)
      runs[network] = (
        own.get_config(arg)
        if own
        else invariances_cnn10.experiment(f'invariances_{network}', arg, network, label, layers=())
      )
      # Judged and sampled together, below.
      runs[network].stages = ('train',)
      for sampler in runs[network].invariances.samplers.values():
        paths = {
          k: f'{network}/{v}' if isinstance(v, str) else tuple(f'{network}/{x}' for x in v) for k, v in sampler.items()
        }
        samplers[network] = ml_collections.ConfigDict(paths)
    judged = tuple(f'{n}/denoiser' for n in NETWORKS)
  else:
    runs.independent = ct.independent(name, arg)
    for network, label in (NETWORKS | {'bottleneck': 'bottleneck'}).items():
      runs[network] = ct.denoiser(ct.base(name, arg), network, label=label, perceptual='independent')
      runs[network].stages = ('train',)
    sampled = {n: f'{n}_' for n in ('cnn10', 'wganvgg', 'bottleneck')}
    size = ct.patches(name, arg).data.patch
    samplers = invariances.samplers(runs, sampled, lambda: ct.patches(name, arg), size=size, perceptual='independent')
    judged = (*NETWORKS, 'bottleneck')
  first = runs.cnn10
  config.data = ml_collections.ConfigDict(first.data.to_dict())
  config.data.centre_hu = ct.LUNGS
  config.train = ml_collections.ConfigDict(dict(num_devices=0))
  config.report = ml_collections.ConfigDict(dict(draws=first.report.draws, runs=(), generators=()))
  config = invariances.detection(config, judged, profile)
  return common.share_seed(common.share_data(invariances.analysis(config, samplers, profile)))
