"""What all experiments share: the profiles, and the attack of Morshuis et al. 2022."""

import os

import ml_collections

PROFILES = ('paper', 'demo', 'smoke')
ETAS = (0.0, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025)


def profile_of(arg: str, profiles: tuple[str, ...] = PROFILES) -> str:
  """The profile that a config is asked for, the first one by default.

  Raises:
    ValueError: for an unknown profile.
  """
  profile = arg or profiles[0]
  if profile not in profiles:
    raise ValueError(f'config profile: {profile!r} is unknown; choose one of {", ".join(profiles)}')
  return profile


def base(name: str, arg: str) -> ml_collections.ConfigDict:
  """Config of an attack experiment on multi-coil knee data, without its network.

  Args:
    name: name of the experiment.
    arg: profile: empty or `paper`, `demo`, or `smoke`.

  Returns:
    The config of the profile.

  Raises:
    ValueError: for an unknown profile.
  """
  profile = profile_of(arg)
  config = ml_collections.ConfigDict()
  config.name = name
  config.profile = profile
  config.label = ''
  config.seed = 0
  config.stages = ('train', 'attack', 'report')

  data = config.data = ml_collections.ConfigDict()
  data.root = os.environ.get('FASTMRI_ROOT', '') if profile == 'paper' else ''
  data.challenge = 'multicoil'
  data.annotations = ''
  data.boxes = 'all'
  data.keep_slices = 1.0
  data.form = 'kspace'
  data.emulate_single_coil = False
  # Of PSNR and SSIM: the volume's maximum (fastMRI), or the slice's own maximum minus minimum (AdvRec).
  data.range = 'volume'
  data.mask = 'random'
  data.center_fractions = (0.04,)
  data.accelerations = (8,)
  data.workers = 4 if profile == 'paper' else 0
  data.phantom = ml_collections.ConfigDict(dict(train=24, val=6, slices=4, rows=96, cols=96, coils=4, seed=0))

  config.model = ml_collections.ConfigDict(dict(weights='', sha256='', checkpoint=''))

  train = config.train = ml_collections.ConfigDict()
  train.batch_size = 32
  train.num_steps = 0
  train.num_epochs = 50.0
  train.loss = 'ssim'
  train.optimizer = 'adam'
  train.learning_rate = 3e-4
  train.drop_at = 0.8
  train.drop_factor = 0.1
  # `step` drops as said above; `cosine` falls to the share `final`. Either after a warm-up, a share of the steps.
  train.schedule = ml_collections.ConfigDict(dict(name='step', warmup=0.0, final=0.0))
  train.weight_decay = 0.0
  # Of the mean of the weights that is validated and kept; 0: the weights themselves.
  train.ema_decay = 0.0
  # Training examples moved at random, with a probability that grows up to this one, and thermal noise added to them: the
  # least and the largest eta, or none.
  train.augment = ml_collections.ConfigDict(dict(probability=0.0, max_degrees=0.0, max_pixels=0.0, noise=()))
  train.validate_every = 0
  train.max_validation = 0
  train.report_every = 20
  train.pictures = 3
  train.micro_batch = 0
  train.start_from = ''
  train.checkpoint_minutes = 10.0
  train.num_devices = 0
  train.tensorboard = False
  train.best = 'ssim'
  train.patience = 0
  train.task = ml_collections.ConfigDict(dict(name='supervised'))

  config.perturbation = ml_collections.ConfigDict()
  config.perturbation.coil_noise = ml_collections.ConfigDict(
    dict(relative_radius=ETAS, norm='l2', per_coil=True, columns='acquired', start='zero')
  )
  config.perturbation.rotation = ml_collections.ConfigDict(
    dict(max_degrees=(0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0), method='fourier')
  )
  config.search = ml_collections.ConfigDict()
  config.search.coil_noise = ml_collections.ConfigDict(dict(name='pgd', num_steps=10, step='steepest', step_size=0.5))
  config.search.rotation = ml_collections.ConfigDict(dict(name='grid', step_degrees=0.1))
  config.objective = ml_collections.ConfigDict(dict(name='region_mse'))

  config.defence = ml_collections.ConfigDict(dict(name='none'))

  attack = config.attack = ml_collections.ConfigDict()
  attack.attacked = ('region', 'image')
  attack.batch_size = 1
  attack.chunk = 1
  attack.max_examples = 0
  attack.pictures = 8
  attack.strict = False
  attack.splits = ('val',)
  # Masks of the attack where they are not those of the training; empty: the same.
  attack.accelerations = ()
  attack.center_fractions = ()
  attack.sees = 'defence'
  # Another run whose network the searches look at instead, for transfer.
  attack.surrogate = ''
  attack.draws = 4
  attack.lipschitz_iterations = 0

  # Volumes reconstructed and scored as the fastMRI leaderboard has them, with evaluate in the stages.
  config.evaluate = ml_collections.ConfigDict(dict(split='val', batch_size=1))

  config.report = ml_collections.ConfigDict(dict(draws=1000, runs=(), generators=()))

  phantom = data.phantom
  config.plan = ml_collections.ConfigDict(dict(
    targets=('here',), programs=('train', *config.perturbation), crop=(320, 320),
    shape=(15, 640, 368) if profile == 'paper' else (phantom.coils, phantom.rows, phantom.cols),
  ))  # fmt: skip

  if profile == 'demo':
    train.batch_size = 4
    train.num_epochs = 0.0
    train.num_steps = 300
    train.max_validation = 8
    train.learning_rate = 2e-3
    attack.max_examples = 8
    config.perturbation.coil_noise.relative_radius = (0.0, 0.005, 0.01, 0.02, 0.025)
    config.search.rotation.step_degrees = 0.5
    attack.pictures = 3
  if profile == 'smoke':
    data.phantom = ml_collections.ConfigDict(dict(train=2, val=2, slices=2, rows=48, cols=48, coils=2, seed=0))
    config.plan.shape = (2, 48, 48)
    train.batch_size = 2
    train.num_epochs = 0.0
    train.num_steps = 4
    train.validate_every = 2
    train.report_every = 1
    train.pictures = 0
    attack.max_examples = 3
    attack.pictures = 2
    config.perturbation.coil_noise.relative_radius = (0.0, 0.01, 0.02)
    config.perturbation.rotation.max_degrees = (0.0, 1.0, 2.0)
    config.search.coil_noise.num_steps = 2
    config.search.rotation.step_degrees = 1.0
    config.report.draws = 50
  return config


def share_data(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """One data set for all runs of a comparison: `--config.data.root=...` reaches each of them, as do the options beside it.

  So does the VGG file of one run all others that compare features of the same kind.
  """
  runs = [*config.experiments.values()]
  runs += [inner for run in runs for inner in run.get('experiments', {}).values()]
  if 'data' not in config:
    config.data = ml_collections.ConfigDict()
  for name in ('root', 'annotations', 'patients', 'offset'):
    holders = {id(run.data): run.data for run in runs if name in run.get('data', {})}
    if holders:
      shared = ml_collections.FieldReference(next(iter(holders.values()))[name])
      for data in {id(config.data): config.data, **holders}.values():
        data[name] = shared
  compared = [run.train.task.perceptual for run in runs if 'perceptual' in run.get('train', {}).get('task', {})]
  for kind in {features.kind for features in compared}:
    alike = [features for features in compared if features.kind == kind]
    for name in ('vgg', 'sha256'):
      shared = ml_collections.FieldReference(alike[0][name])
      for features in alike:
        # Assigned over the reference of a comparison inside this one, it would only stand behind it.
        del features[name]
        features[name] = shared
  return config


def share_seed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """One seed for all runs of a comparison and their phantom: `--config.seed=7` draws other patients and trains anew.

  Runs keep their distance to it: an independent network starts elsewhere.
  """
  config.seed = shared = ml_collections.FieldReference(config.get('seed', 0))
  runs = [*config.experiments.values()]
  runs += [inner for run in runs for inner in run.get('experiments', {}).values()]
  for run in runs:
    # Round the ring of seeds, so that the largest one has a next one.
    run.seed = (shared + run.seed) % 2**31
  # Once each: a comparison may hold the data of one of its runs.
  for data in {id(h.data): h.data for h in (config, *runs) if 'phantom' in h.get('data', {})}.values():
    data.phantom.seed = shared
  return config


def varnet(config: ml_collections.ConfigDict, **sizes: int) -> ml_collections.ConfigDict:
  """Adds an E2E-VarNet; the demo and smoke profiles replace its sizes by tiny ones."""
  small = {
    'demo': dict(num_cascades=3, chans=8, pools=3, sens_chans=4, sens_pools=3),
    'smoke': dict(num_cascades=2, chans=4, pools=2, sens_chans=2, sens_pools=2),
  }
  config.model.update(
    name='varnet', dtype='float32', remat=config.profile == 'paper', **small.get(config.profile, sizes)
  )
  return config


def unet(config: ml_collections.ConfigDict, *, chans: int) -> ml_collections.ConfigDict:
  """Adds an image-domain U-Net with fastMRI's recipe; demo and smoke are tiny.

  The demo sees the whole field of view, which on the phantom is the target's, and
  its loss is in units of the data range: the README's numbers were measured so.
  """
  small = {'demo': dict(chans=16, pools=3), 'smoke': dict(chans=4, pools=2, crop=(48, 48))}
  config.model.update(
    name='unet_recon', dtype='float32', **small.get(config.profile, dict(chans=chans, pools=4, crop=(320, 320)))
  )
  config.train.loss = 'l1' if config.profile == 'demo' else 'normalised_l1'
  if config.profile == 'paper':
    config.train.best = 'loss'
  config.train.optimizer = 'rmsprop'
  config.train.learning_rate = 1e-3
  return config


def acceleration(config: ml_collections.ConfigDict, factor: int) -> ml_collections.ConfigDict:
  """Sets the acceleration with its usual share of central columns, 8% at 4x and 4% at 8x."""
  config.data.accelerations = (factor,)
  config.data.center_fractions = (0.32 / factor,)
  return config


def joint_training(config: ml_collections.ConfigDict, *, attacked: int) -> ml_collections.ConfigDict:
  """Trains on 4x and 8x, drawn at random as fastMRI's network of both is, and attacks at one of them."""
  config.data.accelerations = (4, 8)
  config.data.center_fractions = (0.08, 0.04)
  config.attack.accelerations = (attacked,)
  config.attack.center_fractions = (0.32 / attacked,)
  return config
