"""An E2E-VarNet that has seen nothing but phantoms, against zero-filling: on held-out phantoms at 8x, on real data at 4x.

Paper: Sriram et al. 2020 (network), Morshuis et al. 2022 (attacks)
Command: python -m jaxrec.main --config=configs/phantom_to_real.py, with REAL_ROOT set to a folder of fully sampled volumes for
the real part, and REAL_ANNOTATIONS to its boxes in the format of fastMRI+
Hardware: 2 CPU cores, 17 minutes with the attacks.
Expected: 9 dB above zero-filling on held-out phantoms, 4 dB on a real brain slice, which has other anatomy and far more noise.
"""

import os

import ml_collections

from configs import common


def get_config(arg: str = ''):
  """Training and all comparisons; `arg` is `demo` (the default) or `smoke`."""
  profile = common.profile_of(arg, ('demo', 'smoke'))
  config = ml_collections.ConfigDict(dict(name='phantom_to_real', profile=profile, stages=('report',)))
  config.experiments = runs = ml_collections.ConfigDict(sort_keys=False)
  runs.varnet = _network(profile, 'VarNet, phantom', 8)
  runs.varnet.stages = ('train', 'attack')
  runs.zero_filled = _zero_filling(_network(profile, 'zero-filled, phantom', 8))
  root = os.environ.get('REAL_ROOT', '')
  if root:
    runs.varnet_real = _network(profile, 'VarNet, real', 4)
    runs.varnet_real.model.checkpoint = 'varnet'
    runs.varnet_real.stages = ('attack',)
    runs.zero_filled_real = _zero_filling(_network(profile, 'zero-filled, real', 4))
    for run in (runs.varnet_real, runs.zero_filled_real):
      run.data.root = root
      run.data.annotations = os.environ.get('REAL_ANNOTATIONS', '')
      # The slice has ten times the samples of a phantom's.
      run.perturbation.coil_noise.relative_radius = (0.0, 0.01)
      run.perturbation.rotation.max_degrees = (0.0, 5.0)
  config.report = ml_collections.ConfigDict(dict(draws=1000, runs=(), generators=()))
  return config


def _network(profile, label, acceleration):
  config = common.joint_training(common.base('phantom_to_real', profile), attacked=acceleration)
  config.label = label
  common.varnet(config)
  if profile == 'demo':
    # As many coils as the real slice has, and many patients: each has maps of its own. Half of them show no knee, as a brain does not.
    config.data.phantom.update(train=160, val=12, slices=2, coils=8, shapes=0.5)
    # Maps that are not those of the coils serve on phantoms, and on nothing else.
    config.train.task.maps_weight = 1.0
    # From the noise that the phantoms have by themselves to that of a poor scan.
    config.train.augment.noise = (0.02, 0.3)
    config.model.update(num_cascades=5, chans=10, pools=3, sens_chans=6, sens_pools=3)
    config.train.update(num_steps=1900, validate_every=250, learning_rate=2e-3, ema_decay=0.999)
    config.train.schedule.update(name='cosine', warmup=0.02)
    config.attack.max_examples = 24
    config.perturbation.coil_noise.relative_radius = (0.0, 0.005, 0.01, 0.02)
    config.perturbation.rotation.max_degrees = (0.0, 1.0, 3.0, 5.0)
  return config


def _zero_filling(config):
  config.model = ml_collections.ConfigDict(
    dict(name='jaxrec.networks:zero_filling', weights='', sha256='', checkpoint='')
  )
  config.stages = ('attack',)
  return config
