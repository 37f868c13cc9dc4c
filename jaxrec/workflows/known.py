"""The verdict tried on networks whose answer is known."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from jaxrec import invariances, results, training
from jaxrec.data.sites import Site
from jaxrec.invariances import known
from jaxrec.training import Parallel
from jaxrec.types import Slice
from jaxrec.workflows import detect, sampling
from jaxrec.workflows import invariances as stage
from jaxrec.workflows.experiment import Known, Trial
from jaxrec.workflows.places import Kind, Question

# Far from the seeds of users, so that no scan that is judged was ever seen before.
_REFERENCE, _TRAINING = 1_000_003, 2_000_003


class Setting(NamedTuple):
  """What the known networks are tried on.

  `noise`, the classes `kinds`, their `signals` `[class, row, col]`, and sites and
  scans per patient, of which `few` are shown with structures.
  """

  noise: known.Texture
  kinds: list[Kind]
  signals: np.ndarray
  sites: int
  scans: int
  few: int


def setting(options: Known) -> Setting:
  """Contrasts follow from the detectabilities that are aimed at."""
  noise = known.texture(options.side)
  levels = known.contrasts(noise, options.diameters, options.aims)
  kinds = [Kind(d, float(c), aim) for d, mine in zip(options.diameters, levels) for c, aim in zip(mine, options.aims)]
  signals = np.stack([k.contrast * known.structure(options.side, k.size) for k in kinds]).astype(np.float32)
  return Setting(noise, kinds, signals, options.sites, options.scans, options.few)


def sites(made: Setting, seed: int, patient: int) -> Iterator[Site]:
  """Scans of one patient: new backgrounds, new noise."""
  rng = np.random.default_rng([seed, patient])
  for _ in range(made.sites):
    anatomy = known.background(rng, made.noise.side)
    absent = anatomy + known.draw(rng, made.noise, made.scans)
    yield Site(
      absent,
      absent[None, : made.few] + made.signals[:, None],
      (0, 0),
      anatomy,
      made.signals,
      partial(_rescan, made.noise),
    )


def _rescan(noise, rng, anatomies):
  return anatomies + known.draw(rng, noise, len(anatomies))


def run(trial: Trial, run_folder: results.Run, parallel: Parallel) -> None:
  """Measures, judges, searches and samples; what is finished is not computed again."""
  options = trial.known
  made = setting(options)
  networks = known.networks(made.noise, options.removed)
  networks['bottleneck'] = known.Known('bottleneck', _bottleneck(trial, made, run_folder, parallel), False, False)
  patients = {f'{i:03d}': partial(sites, made, trial.seed, i) for i in range(options.patients)}
  asked = Question(made.kinds, patients, options.side, 1.0, [])
  functions = {name: n.network for name, n in networks.items()}
  if parallel.part == 0:
    images = options.patients * options.sites * (options.scans + len(made.kinds) * options.few)
    print(
      f'known: {len(networks)} networks, {len(made.kinds)} classes, {images} images each, and as many for the reference of those that are not linear'
    )
  detect.measure(run_folder, functions, asked, part=parallel.part, parts=parallel.parts)
  taps = [_tap(name, networks[name].network, trial, made, run_folder, parallel) for name in options.sampled]
  parallel.barrier('known')
  if parallel.part == 0:
    searched = [i for i, k in enumerate(made.kinds) if k.aim in options.searched_aims]
    found = detect.judged(
      run_folder,
      functions,
      asked,
      level=options.level,
      draws=options.draws,
      num_steps=options.num_steps,
      searched=searched,
    )
    truth = {name: _truth(n, made, trial.seed, options.reference) for name, n in networks.items()}
    head = [*detect.columns(), 'exact', 'truth', 'keeps', 'linear']
    table = []
    for name, n in networks.items():
      for line, kind, exact in zip(detect.lines(n.label, made.kinds, found[name], searched), made.kinds, truth[name]):
        table.append([*line, exact, detect.word(ignored(kind.aim, exact)), int(n.keeps), int(n.linear)])
    results.write_csv(run_folder.folder / 'detectability.csv', head, table)
  if taps:
    sampled = [i for i, k in enumerate(made.kinds) if k.aim in options.sampled_aims]
    labels = {name: n.label for name, n in networks.items()}
    stage.finish(
      run_folder, taps, asked, sampled, trial.invariances, folds=4, seed=trial.seed, labels=labels, parallel=parallel
    )


def ignored(before: float, after: float) -> bool:
  """The verdict's definition, of detectabilities that are known."""
  return (
    before > invariances.verdict.VISIBLE
    and after < invariances.verdict.RETAINED * before
    and after < invariances.verdict.UNSEEN
  )


def _truth(network, made, seed, reference):
  """d'_out by class: computed for linear networks; for others an observer of an independent, larger set of scans says."""
  if network.linear:
    return [float(d) for d in known.exact(network.network, made.noise, made.signals)]
  f = jax.jit(network.network)
  parts = []
  for i in range(reference):
    found = []
    for site in sites(made, seed + _REFERENCE, i):
      absent, present = (np.asarray(f(x)).reshape(*x.shape[:-2], -1) for x in site[:2])
      found.append(invariances.site_statistics(absent, (present - absent[: made.few]).mean(1)))
    parts.append(invariances.statistics_of(found))
  detection = invariances.observe(invariances.Statistics(*(np.stack(p) for p in zip(*parts))))
  return [float(d) for d in detection.detectability()]


def _bottleneck(trial, made, run_folder, parallel) -> Callable:
  """A denoiser of these scans that pools by 8."""
  options = trial.known
  module = options.bottleneck
  task = training.supervised(
    module,
    training.optimizer('adam', options.learning_rate),
    loss='mse',
    average=parallel.average,
    place=parallel.place,
  )
  variables = _fit('bottleneck', task, options.train_steps, options.batch_size, trial, made, run_folder, parallel)
  return lambda images: module.apply(variables, images)


def _tap(name, network, trial, made, run_folder, parallel) -> sampling.Tap:
  """Autoencoder and flow of a network's inputs."""
  options = trial.known
  vae = options.vae
  rule, rival = (
    training.optimizer('adam', rate, b1=0.5) for rate in (options.vae_learning_rate, options.vae_learning_rate / 2)
  )
  weights = dict(perceptual_weight=0.0, **options.weights)
  task = training.cvae(
    vae, rule, options.critic, rival, network, average=parallel.average, place=parallel.place, **weights
  )
  coder = vae, _fit(f'{name}_vae', task, options.vae_steps, options.batch_size, trial, made, run_folder, parallel)

  def codes(key, batch):
    y = network(batch.input)
    mean, logvar = vae.apply(coder[1], batch.input, y, method='encode')
    return mean + jax.numpy.exp(0.5 * logvar) * jax.random.normal(key, mean.shape), y

  flow = options.flow
  task = training.flow(
    flow, training.optimizer('adam', options.flow_learning_rate), codes, average=parallel.average, place=parallel.place
  )
  transform = (
    flow,
    _fit(f'{name}_flow', task, options.flow_steps, 2 * options.batch_size, trial, made, run_folder, parallel),
  )
  made_by, variables = sampling.sampler(network, network, coder, transform)
  return sampling.Tap(name, 'output', made_by, variables)


def _fit(name, task, steps, batch_size, trial, made, run_folder, parallel):
  """Variables trained on scans that are never judged; once, kept in the run folder."""
  folder = run_folder.folder / 'trained' / name
  checkpointer = training.Checkpointer(folder / 'checkpoints')
  side, size = made.noise.side, batch_size // parallel.parts

  def batches(start):
    step = start
    while True:
      rng = np.random.default_rng([trial.seed + _TRAINING, step, parallel.part])
      clean = np.stack([known.background(rng, side) for _ in range(size)])
      clean += made.signals[rng.integers(len(made.signals), size=size)] * (rng.random((size, 1, 1)) < 0.5)
      ones = np.ones((size,), np.float32)
      yield Slice(clean + known.draw(rng, made.noise, size), clean, np.ones_like(clean), ones)
      step += 1

  def write(record):
    if parallel.part == 0:
      results.append_jsonl(folder / 'metrics.jsonl', [record])

  if parallel.part == 0:
    results.cut_metrics(folder / 'metrics.jsonl', checkpointer.latest_step() or 0)
  try:
    state = training.fit(
      task, batches, steps, key=jax.random.key(trial.seed), parallel=parallel, writer=write, checkpointer=checkpointer,
      validate_every=max(steps // 2, 1), report_every=100,
    )  # fmt: skip
  finally:
    checkpointer.close()
  return task.variables(jax.device_get(state))
