"""What CNN-10 ignores: inputs with the same output, and which of them differ in anatomy.

Paper: Eulig et al. 2025, Reconstructing and analyzing the invariances of low-dose CT image denoising networks; seed
slides: Eulig et al. 2022
Command: python -m jaxrec.main --config=configs/invariances_cnn10.py with LDCT_ROOT set
Without data: python -m jaxrec.main --config=configs/invariances_cnn10.py:demo (phantom, under 20 minutes on 2 cores)
Hardware: the paper's sizes need one large GPU for days.
VGG features: --config.experiments.vae.train.task.perceptual.vgg=vgg16.pth (a file of yours, needed at full size); the demo
trains a second CNN-10 first and compares its outputs instead.
Expected: the retained detectability of small structures, samples that the network maps to nearly the same output, and what
the observer sees of both.
"""

import ml_collections

from configs import common, ct, invariances


def get_config(arg: str = ''):
  """Denoiser, in small profiles a second one for features, VAE, flows, and the analysis; `arg` is the profile."""
  return experiment(
    'invariances_cnn10',
    arg,
    'cnn10',
    'CNN-10',
    layers=(1,) if (arg or 'paper') == 'paper' else (),
    anatomies=arg != 'smoke',
  )


def experiment(
  name: str, arg: str, network: str, label: str, *, layers: tuple[int, ...], anatomies: bool = False
) -> ml_collections.ConfigDict:
  """The experiment for any denoiser.

  Args:
    name: of the experiment.
    arg: profile.
    network: key of `ct.RECIPES`.
    label: name in reports.
    layers: tapped besides the output.
    anatomies: sample anatomies as well, and scan them anew.
  """
  config = ml_collections.ConfigDict(
    dict(name=name, profile=arg or 'paper', label=label, seed=0, stages=('detect', 'invariances', 'report'))
  )
  config.experiments = runs = ml_collections.ConfigDict(sort_keys=False)
  features = '' if config.profile == 'paper' else 'independent'
  if features:
    runs.independent = ct.independent(name, arg)
  runs.denoiser = ct.denoiser(ct.base(name, arg), network, label=label, perceptual=features)
  runs.denoiser.stages = ('train',)
  size = ct.patches(name, arg).data.patch
  samplers = invariances.samplers(
    runs,
    {'denoiser': ''},
    lambda: ct.patches(name, arg),
    size=size,
    perceptual=features,
    layers=layers,
    anatomies=anatomies,
  )
  config.data = runs.vae.data
  config.train = ml_collections.ConfigDict(dict(num_devices=0))
  config.report = ml_collections.ConfigDict(dict(draws=runs.vae.report.draws, runs=(), generators=()))
  config = invariances.detection(config, ('denoiser',), config.profile)
  return common.share_seed(common.share_data(invariances.analysis(config, samplers, config.profile)))
