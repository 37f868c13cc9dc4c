"""The parts of an analysis of invariances: VAE, flow, sampling. Sizes and recipes: Eulig et al. 2025."""

import ml_collections


def autoencoder(
  config: ml_collections.ConfigDict, network: str, *, size: int, perceptual: str, image: str = 'input'
) -> ml_collections.ConfigDict:
  """Adds the conditional VAE of what a network does to images.

  Args:
    config: an experiment without its network.
    network: run of the network.
    size: side of the images.
    perceptual: run whose outputs are compared; empty for features of VGG-16,
      whose file is then to be given.
    image: what is modelled: inputs (`input`), or anatomies given the output (`target`).
  """
  task = dict(
    name='cvae', network=network, image=image, critic=dict(name='cvae_critic'), critic_learning_rate=4e-5,
    perceptual=dict(vgg='', kind='vgg16', sha256='', network=perceptual),
  )  # fmt: skip
  config.train.update(b1=0.5, learning_rate=1e-5, batch_size=64, num_steps=0, num_epochs=400.0)
  config.model.update(name='cvae', size=(size, size), conditional=True)
  if config.profile != 'paper':
    demo = config.profile == 'demo'
    config.model.update(
      latent=64 if demo else 12, width=12 if demo else 4, blocks=3 if demo else 2, chunk=8 if demo else 2, classes=32 if demo else 3,
      class_hidden=64 if demo else 4, embedding=16 if demo else 2, encoder_width=8 if demo else 2, stages=(1,) * (4 if demo else 2),
    )  # fmt: skip
    # Weights of a likelihood, Laplacian: with the deviation of the full-dose noise, or with a fifth of that of the low-dose noise.
    task |= dict(
      l1_weight=8.0, kl_weight=0.5, perceptual_weight=1000.0, adversarial_weight=0.3, critic_learning_rate=1e-3
    )
    if image == 'input':
      # Codes of a whole image cannot hold its noise: the small networks have one per pixel.
      config.model.texture = 9 if demo else 3
      task |= dict(l1_weight=15.0, kl_weight=1.0)
    task['critic'] |= dict(chans=8 if demo else 2, depth=3 if demo else 1)
    config.train.update(num_epochs=0.0, learning_rate=2e-3, num_steps=600 if demo else 2, batch_size=16 if demo else 4)
    config.train.update(validate_every=300 if demo else 2)
  config.train.task = ml_collections.ConfigDict(task)
  return config


def flow(
  config: ml_collections.ConfigDict, network: str, autoencoder: str, layer: int = 0, image: str = 'input'
) -> ml_collections.ConfigDict:
  """Adds the conditional flow from codes to noise, given a layer of the network (0: its output)."""
  config.model.update(name='cinn')
  config.train.task = ml_collections.ConfigDict(
    dict(name='flow', network=network, autoencoder=autoencoder, layer=layer, image=image)
  )
  config.train.update(learning_rate=1e-5, batch_size=128, num_steps=0, num_epochs=500.0)
  if config.profile != 'paper':
    demo = config.profile == 'demo'
    config.model.update(
      blocks=6 if demo else 2,
      hidden=128 if demo else 4,
      chans=12 if demo else 2,
      depth=3 if demo else 1,
      embedding=32 if demo else 3,
    )
    config.train.update(
      num_epochs=0.0, learning_rate=1e-3, num_steps=300 if demo else 2, batch_size=32 if demo else 4, drop_at=0.7
    )
    config.train.update(validate_every=150 if demo else 2)
  return config


def samplers(
  runs: ml_collections.ConfigDict, networks: dict[str, str], make, *, size: int, perceptual: str, layers: tuple[int, ...] = (), anatomies: bool = False
) -> ml_collections.ConfigDict:  # fmt: skip
  """Adds autoencoder and flows of networks to the runs of a comparison; returns `invariances.samplers`.

  Args:
    runs: `experiments` of the comparison, to which runs are added.
    networks: prefix of the new runs by run of the network.
    make: makes an experiment without its network.
    size: side of the images.
    perceptual: see `autoencoder`.
    layers: tapped besides the output.
    anatomies: add a model of the high-dose domain, for the check of sampled anatomies that are scanned anew.
  """
  found = ml_collections.ConfigDict(sort_keys=False)
  for network, prefix in networks.items():
    runs[f'{prefix}vae'] = autoencoder(make(), network, size=size, perceptual=perceptual)
    flows = {f'{prefix}flow_{layer}': layer for layer in layers} | {f'{prefix}flow_output': 0}
    for name, layer in flows.items():
      runs[name] = flow(make(), network, f'{prefix}vae', layer)
    high = ()
    if anatomies:
      high = f'{prefix}vae_high', f'{prefix}flow_high'
      runs[high[0]] = autoencoder(make(), network, size=size, perceptual=perceptual, image='target')
      runs[high[1]] = flow(make(), network, high[0], image='target')
    for name in (f'{prefix}vae', *flows, *high):
      runs[name].stages = ('train',)
    found[network] = ml_collections.ConfigDict(
      dict(network=network, autoencoder=f'{prefix}vae', flows=tuple(flows), anatomies=high)
    )
  return found


def analysis(
  config: ml_collections.ConfigDict, samplers: ml_collections.ConfigDict, profile: str
) -> ml_collections.ConfigDict:
  """The sampling and its judgement, after the `experiments` of a comparison.

  Args:
    config: a comparison with `experiments` and `detect`.
    samplers: of `samplers`.
    profile: of the experiments.
  """
  config.invariances = ml_collections.ConfigDict(dict(
    num_samples=250, chunk=25, corrections=10, sites=4, others=8, alpha=0.05, scales=(1.0,), scans=24, pictures=4, shown=6,
  ))  # fmt: skip
  if profile == 'demo':
    config.invariances.update(num_samples=32, chunk=16, sites=2, others=4, scans=8, pictures=2)
  if profile == 'smoke':
    config.invariances.update(
      num_samples=4, chunk=4, corrections=1, sites=2, others=2, alpha=0.25, scans=2, pictures=1, shown=3
    )
  config.invariances.samplers = samplers
  for run in config.experiments.values():
    if 'experiments' not in run:
      # The patients whose validation would choose a state are those that are judged.
      run.train.best = 'last'
  return config


def detection(config: ml_collections.ConfigDict, networks: tuple[str, ...], profile: str) -> ml_collections.ConfigDict:
  """The observer's verdict on trained networks, and the search for witnesses.

  Args:
    config: a comparison with `experiments` and `data`.
    networks: runs that are judged, `run` or `run/inner run`.
    profile: of the experiments.
  """
  config.detect = ml_collections.ConfigDict(dict(
    networks=networks, diameters=(2.0, 3.0, 4.0, 6.0), aims=(2.0, 3.0, 5.0, 8.0), side=config.data.get('patch', 64), reach=10, slices=40, sites=4, repeats=24, few=12,
    calibration=8, folds=5, level=0.95, draws=10_000, searched_aims=(5.0, 8.0), num_steps=150,
  ))  # fmt: skip
  if profile == 'demo':
    config.detect.update(
      diameters=(2.0, 3.0, 6.0),
      reach=7,
      slices=2,
      sites=5,
      repeats=48,
      few=24,
      calibration=40,
      folds=4,
      searched_aims=(5.0,),
    )
  if profile == 'smoke':
    config.detect.update(
      diameters=(6.0,),
      aims=(3.0, 5.0),
      reach=1,
      slices=1,
      sites=2,
      repeats=14,
      few=2,
      calibration=12,
      folds=3,
      draws=50,
      searched_aims=(5.0,),
      num_steps=2,
    )
  return config
