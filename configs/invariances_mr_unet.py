"""What an MR U-Net ignores: zero-filled images that it maps to the same reconstruction.

Paper: the conclusion of Eulig et al. 2022, "not restricted to CT"; network of Zbontar et al. 2018
Command: python -m jaxrec.main --config=configs/invariances_mr_unet.py with FASTMRI_ROOT set, or
configs/invariances_mr_unet.py:demo (phantom with added noise, under 20 minutes on 2 cores)
Hardware: the published sizes need one large GPU for days.
VGG features: --config.experiments.vae.train.task.perceptual.vgg=vgg16.pth (a file of yours, needed at full size); the demo
trains a second U-Net first and compares its outputs instead.
Expected: the retained detectability of bright spots, and samples of inputs with nearly the same reconstruction.
"""

import ml_collections

from configs import common, invariances

DIAMETERS, CONTRASTS = (1.5, 2.0, 3.0, 4.0, 6.0), (0.1, 0.2, 0.4)


def get_config(arg: str = ''):
  """U-Net, in small profiles a second one for features, VAE, flow, and the analysis; `arg` is the profile."""
  profile = arg or 'paper'
  config = ml_collections.ConfigDict(
    dict(
      name='invariances_mr_unet', profile=profile, label='MR U-Net', seed=0, stages=('detect', 'invariances', 'report')
    )
  )
  config.experiments = runs = ml_collections.ConfigDict(sort_keys=False)
  size = {'demo': 48, 'smoke': 32}.get(profile, 320)
  features = '' if profile == 'paper' else 'independent'
  if features:
    runs.independent = _network(arg, 'independent')
    runs.independent.seed = 1
  runs.denoiser = _network(arg, 'MR U-Net')
  samplers = invariances.samplers(runs, {'denoiser': ''}, lambda: _images(arg), size=size, perceptual=features)
  for run in runs.values():
    run.stages = ('train',)
  if profile != 'paper':
    # Images lie between 0 and 1 and their noise is a twentieth, a seventh of that of the CT images.
    runs.vae.train.task.update(l1_weight=100.0, perceptual_weight=2e4)
    runs.vae.model.texture_scale = 0.15
  if profile == 'demo':
    # Reading scans takes longer than training on them.
    runs.flow_output.train.batch_size = 16
  config.data = runs.vae.data
  config.train = ml_collections.ConfigDict(dict(num_devices=0))
  config.report = ml_collections.ConfigDict(dict(draws=runs.vae.report.draws, runs=(), generators=()))
  config = invariances.detection(config, ('denoiser',), profile)
  # Pixels; the observer sees 15 x 15 of them.
  config.detect.update(diameters=DIAMETERS)
  if profile == 'demo':
    config.detect.update(diameters=(1.5, 2.0, 4.0), slices=4, sites=3)
  if profile == 'smoke':
    config.detect.update(diameters=(3.0,))
  return common.share_seed(common.share_data(invariances.analysis(config, samplers, profile)))


def _images(arg):
  config = common.acceleration(common.base('invariances_mr_unet', arg), 4)
  config.data.update(form='image', relative=True)
  config.data.inserted = ml_collections.ConfigDict(dict(count=1, diameters=DIAMETERS, contrasts=CONTRASTS))
  config.train.update(loss='l1', drop_at=0.0)
  config.train.b1 = 0.9
  if config.profile == 'demo':
    # A tenth of the maximum in every coil image: as in low-dose CT, noise and not aliasing is what the network removes most.
    config.data.update(added_noise=0.1, center_fractions=(0.16,), accelerations=(2,))
    config.data.phantom = ml_collections.ConfigDict(
      dict(train=60, val=16, slices=4, rows=48, cols=48, coils=4, snr=30.0, seed=0)
    )
  if config.profile == 'smoke':
    config.data.phantom = ml_collections.ConfigDict(
      dict(train=2, val=3, slices=2, rows=32, cols=32, coils=2, snr=8.0, seed=0)
    )
  return config


def _network(arg, label):
  config = _images(arg)
  config.label = label
  small = {'demo': dict(chans=12, pools=3), 'smoke': dict(chans=2, pools=1)}
  config.model.update(name='unet_image', **small.get(config.profile, dict(chans=32, pools=4)))
  config.train.update(learning_rate=1e-3, num_epochs=50.0)
  if config.profile == 'paper':
    # fastMRI's recipe; the phantom's few steps go better with Adam.
    config.train.update(loss='normalised_l1', optimizer='rmsprop', drop_at=0.8)
    del config.train.b1
  if config.profile == 'demo':
    config.train.update(batch_size=8, num_epochs=0.0, num_steps=500, validate_every=250, max_validation=32)
  if config.profile == 'smoke':
    config.train.update(batch_size=2, num_epochs=0.0, num_steps=2, validate_every=2, max_validation=2)
  return config
