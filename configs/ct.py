"""What the experiments on low-dose CT share: data, and the recipes of ldct-benchmark (Eulig, Ommer and Kachelriess 2024)."""

import os
from pathlib import Path

import ml_collections

from configs import common

# Lungs: the mean of the full-dose image around a patch's centre, HU.
LUNGS = (-950.0, -600.0)
RECIPES = {
  'cnn10': dict(learning_rate=1.5837e-4, b1=0.9, num_steps=86_188, batch_size=68, patch=92),
  'redcnn': dict(learning_rate=9.5834e-5, b1=0.9, num_steps=92_994, batch_size=73, patch=128),
  'wganvgg': dict(learning_rate=7.0969e-5, b1=0.326, num_steps=67_306, batch_size=77, patch=77),
  'dugan': dict(learning_rate=1.2436e-5, b1=0.9, num_steps=33_875, batch_size=92, patch=128),
}

# A network of ours that has no published recipe: that of the plainest one.
RECIPES['bottleneck'] = RECIPES['cnn10']


def _patients():
  """As the repository calls it, or where the package was installed."""
  path = Path('configs/ldct_chest.json')
  return str(path if path.is_file() else Path(__file__).with_name(path.name))


def base(name: str, arg: str) -> ml_collections.ConfigDict:
  """A CT experiment without its network; profiles as in `common.base`."""
  config = common.base(name, arg)
  paper = config.profile == 'paper'
  config.data = ml_collections.ConfigDict(dict(
    layout='ldct', root=os.environ.get('LDCT_ROOT', '') if paper else '', patients=_patients() if paper else '',
    offset=0.0, patch=128, evaluate_patch=0, centre_hu=(), patches_per_patient=500, keep_slices=1.0, workers=4 if paper else 0,
    phantom=dict(
      train=40, val=12, slices=2, repeats=24, nodules=8, pixels=256, photons=2.4e4, dose=0.1, seed=0,
      diameters=(2.0, 3.0, 4.0, 6.0, 8.0, 10.0), contrasts=(200.0, 400.0, 800.0),
    ),
  ))  # fmt: skip
  config.train.update(loss='mse', drop_at=0.0, num_epochs=0.0, validate_every=1000, patience=0)
  config.train.b1 = 0.9
  config.perturbation = ml_collections.ConfigDict(
    dict(image_noise=dict(relative_radius=(0.0, 0.01, 0.02, 0.05), start='random'))
  )
  config.search = ml_collections.ConfigDict(
    dict(image_noise=dict(name='pgd', num_steps=10, step='steepest', step_size=0.5))
  )
  if config.profile == 'demo':
    config.data.update(patch=40, patches_per_patient=16)
    # The sizes that are asked for later; contrasts as everywhere.
    config.data.phantom.update(train=30, val=16, repeats=48, nodules=5, diameters=(2.0, 3.0, 6.0))
    config.train.update(batch_size=16, num_steps=300, validate_every=100, max_validation=8, learning_rate=1e-3)
    config.attack.max_examples = 8
  if config.profile == 'smoke':
    config.data.update(patch=32, patches_per_patient=2)
    config.data.phantom.update(train=2, val=3, slices=1, repeats=4, nodules=3, pixels=64)
    config.train.update(num_steps=2, batch_size=2, validate_every=2, max_validation=2, learning_rate=1e-3)
    config.perturbation.image_noise.relative_radius = (0.0, 0.02)
    config.search.image_noise.num_steps = 2
  return config


def patches(name: str, arg: str) -> ml_collections.ConfigDict:
  """As `base`, with patches of the lungs alone, for models of what networks leave open."""
  config = base(name, arg)
  config.data.evaluate_patch = config.data.patch
  config.data.centre_hu = LUNGS
  return config


def denoiser(
  config: ml_collections.ConfigDict, network: str, *, label: str = '', perceptual: str = ''
) -> ml_collections.ConfigDict:
  """Adds a denoiser with its recipe.

  Args:
    config: of `base`.
    network: key of `RECIPES`.
    label: name in reports.
    perceptual: run whose outputs WGAN-VGG's perceptual loss compares; empty for
      features of VGG-19, whose file is then to be given.
  """
  recipe = dict(RECIPES[network])
  config.model.update(name=network)
  config.label = label
  small = config.profile != 'paper'
  if network in ('redcnn', 'dugan') and small:
    config.model.chans = 16 if config.profile == 'demo' else 4
  config.train.b1 = recipe.pop('b1')
  patch = recipe.pop('patch')
  if not small:
    config.data.patch = patch
    config.train.update(recipe)
  sizes = {'demo': dict(chans=8, depth=3), 'smoke': dict(chans=2, depth=1)}.get(config.profile, {})
  if network == 'wganvgg':
    config.train.task = ml_collections.ConfigDict(dict(
      name='wgan_vgg', critic=dict(name='wganvgg_critic'), perceptual=dict(vgg='', kind='vgg19', sha256='', network=perceptual),
      perceptual_weight=0.6893, penalty=10.0,
    ))  # fmt: skip
    if perceptual:
      # Outputs of a denoiser differ by hundredths where features of VGG differ by ones.
      config.train.task.perceptual_weight = 300.0
    if small:
      config.train.task.critic.update(
        chans=8 if config.profile == 'demo' else 2, hidden=64 if config.profile == 'demo' else 4
      )
  if network == 'dugan':
    config.train.task = ml_collections.ConfigDict(
      dict(name='du_gan', critic=dict(name='dugan_discriminator', **sizes), mix_steps=7615 if not small else 100)
    )
  return config


def independent(name: str, arg: str) -> ml_collections.ConfigDict:
  """A CNN-10 whose outputs serve as features: another network than the one that is trained or asked for its blind spots."""
  config = denoiser(base(name, arg), 'cnn10', label='independent')
  config.seed = 1
  config.stages = ('train',)
  return config
