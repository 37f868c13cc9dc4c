"""The parts of an analysis of invariances: VAE, flow, sampling. Sizes and recipes: Eulig et al. 2025."""

import ml_collections


def autoencoder(config: ml_collections.ConfigDict, network: str, *, size: int, perceptual: str) -> ml_collections.ConfigDict:
  """Adds the conditional VAE of what a network does to images.

  Args:
    config: an experiment without its network.
    network: run of the network.
    size: side of the images.
    perceptual: run whose outputs are compared; empty for features of VGG-16,
      whose file is then to be given.
  """
  task = dict(
    name='cvae', network=network, image='low_dose', critic=dict(name='cvae_critic'), critic_learning_rate=4e-5,
    perceptual=dict(vgg='', kind='vgg16', sha256='', network=perceptual),
  )  # fmt: skip
  config.train.update(best='loss', b1=0.5, learning_rate=1e-5, batch_size=64, num_steps=0, num_epochs=400.0)
  config.model.update(name='cvae', size=(size, size), conditional=True)
  if config.profile != 'paper':
    demo = config.profile == 'demo'
    config.model.update(
      latent=64 if demo else 12, width=12 if demo else 4, blocks=3 if demo else 2, chunk=8 if demo else 2, classes=32 if demo else 3,
      class_hidden=64 if demo else 4, embedding=16 if demo else 2, encoder_width=8 if demo else 2, stages=(1,) * (4 if demo else 2),
    )  # fmt: skip
    # Small networks cannot code the noise of low-dose images: they model the anatomy, in the high-dose domain.
    # Weights of a likelihood, Laplacian with the deviation of the full-dose noise.
    task |= dict(image='target', l1_weight=8.0, kl_weight=0.5, perceptual_weight=1000.0, adversarial_weight=0.3, critic_learning_rate=1e-3)
    task['critic'] |= dict(chans=8 if demo else 2, depth=3 if demo else 1)
    config.train.update(num_epochs=0.0, learning_rate=2e-3, num_steps=500 if demo else 2, batch_size=16 if demo else 4)
    config.train.update(validate_every=250 if demo else 2)
  config.train.task = ml_collections.ConfigDict(task)
  return config


def flow(config: ml_collections.ConfigDict, network: str, autoencoder: str, layer: int = 0) -> ml_collections.ConfigDict:
  """Adds the conditional flow from codes to noise, given a layer of the network (0: its output)."""
  config.model.update(name='cinn')
  config.train.task = ml_collections.ConfigDict(dict(
    name='flow', network=network, autoencoder=autoencoder, layer=layer, image='low_dose' if config.profile == 'paper' else 'target',
  ))  # fmt: skip
  config.train.update(best='loss', learning_rate=1e-5, batch_size=128, num_steps=0, num_epochs=500.0)
  if config.profile != 'paper':
    demo = config.profile == 'demo'
    config.model.update(blocks=6 if demo else 2, hidden=128 if demo else 4, chans=12 if demo else 2, depth=3 if demo else 1, embedding=32 if demo else 3)
    config.train.update(num_epochs=0.0, learning_rate=1e-3, num_steps=300 if demo else 2, batch_size=32 if demo else 4, drop_at=0.7)
    config.train.update(validate_every=150 if demo else 2)
  return config


def analysis(config: ml_collections.ConfigDict, network: str, autoencoder: str, flows: tuple[str, ...], profile: str) -> ml_collections.ConfigDict:
  """The sampling and the analyses of one network, after its `experiments`.

  Args:
    config: a comparison with `experiments`.
    network: run of the network.
    autoencoder: run of the VAE.
    flows: runs of the flows, one per layer.
    profile: of the experiments.
  """
  demo = profile == 'demo'
  config.invariances = ml_collections.ConfigDict(dict(
    network=network, autoencoder=autoencoder, flows=flows, num_samples=250, chunk=25,
    repeats=24, others=8, corrections=10, alpha=0.05, scales=(1.0,), max_cases=0, per_slice=4,
    diameters=(2.0, 3.0, 4.0, 6.0, 8.0, 10.0), contrasts=(200.0, 400.0, 800.0), pictures=4, shown=6, max_moments=1000,
  ))  # fmt: skip
  if demo:
    config.invariances.update(num_samples=32, chunk=16, repeats=48, corrections=1, others=4, max_moments=192)
  if profile == 'smoke':
    config.invariances.update(num_samples=6, chunk=3, repeats=4, corrections=1, others=2, alpha=0.25, max_cases=3, pictures=1, max_moments=4)
  return config


def detection(config: ml_collections.ConfigDict, networks: tuple[str, ...], profile: str) -> ml_collections.ConfigDict:
  """The observer's verdict on trained CT networks, and the search for witnesses.

  Args:
    config: a comparison with `experiments`.
    networks: runs that are judged, `run` or `run/inner run`.
    profile: of the experiments.
  """
  config.detect = ml_collections.ConfigDict(dict(
    networks=networks, diameters=(2.0, 3.0, 4.0, 6.0), aims=(2.0, 3.0, 5.0, 8.0), side=64, reach=10, slices=40, sites=4, repeats=24, few=12,
    calibration=8, folds=5, level=0.95, draws=10_000, searched_aims=(5.0, 8.0), num_steps=150,
  ))  # fmt: skip
  if profile == 'demo':
    config.detect.update(diameters=(2.0, 3.0, 6.0), side=40, reach=7, slices=2, sites=5, repeats=48, few=24, calibration=40, folds=4)
  if profile == 'smoke':
    config.detect.update(
      diameters=(6.0,), aims=(3.0, 5.0), side=24, reach=1, slices=1, sites=2, repeats=14, few=2, calibration=12, folds=3, draws=50, searched_aims=(5.0,), num_steps=2
    )
  return config
