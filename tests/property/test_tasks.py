"""One table for all tasks: what `fit`, checkpoints and devices need of them."""

import functools
import os
import subprocess
import sys
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrec
from jaxrec import attacks, training
from jaxrec.data import loader, singlecoil, synthetic
from jaxrec.fourier import ifft2c, rss
from jaxrec.models import build, layers
from jaxrec.models.critics import SpectralConv
from jaxrec.training import draws


class Tiny(nn.Module):
  """Two convolutions on the zero-filled image: tasks do not care what they train."""

  norm: str = 'instance'
  batch_axis: str | None = None

  @nn.compact
  def __call__(self, data, mask=None, acs=None):
    image = data if mask is None else rss(ifft2c(jnp.where(mask[..., None, :, :], data, 0)))
    level = jnp.mean(image, (-2, -1), keepdims=True)
    x = layers.Conv(2)((image / level).reshape(-1, *image.shape[-2:], 1))
    x = layers.Conv(1, use_bias=True)(layers.NormActivation(self.norm, 'leaky_relu', self.batch_axis)(x))
    return image + level * x.reshape(image.shape)


class TinyGenerator(nn.Module):
  """Noise in the sampled k-space from one convolution over it."""

  @nn.compact
  def __call__(self, kspace, mask):
    lead = jnp.stack([kspace.real, kspace.imag], -1)
    unit = jnp.std(lead, (-3, -2, -1), keepdims=True)
    x = layers.Conv(2)((lead / unit).reshape(-1, *lead.shape[-3:])).reshape(lead.shape) * unit
    return jnp.where(mask[..., None, :, :], x[..., 0] + 1j * x[..., 1], 0)


class TinyCritic(nn.Module):
  """Scores of images, with or without a condition."""

  @nn.compact
  def __call__(self, image, condition=None):
    x = image if condition is None else image + condition
    x = jnp.tanh(layers.StridedConv(2, 3, 2, 1, use_bias=True)(x[..., None]))
    return layers.Dense(1)(x.reshape(x.shape[0], -1))[..., 0]


class TinyDiscriminator(nn.Module):
  """A score and a map, with spectral norm."""

  @nn.compact
  def __call__(self, image):
    x = jnp.tanh(SpectralConv(2, 3, padding=1)(image[..., None]))
    return jnp.mean(x, (1, 2, 3)), jnp.mean(x, -1)


class TinyVAE(nn.Module):
  """Two numbers per image, and statistics that move."""

  def setup(self):
    self.encoder, self.decoder = layers.Dense(4), layers.Dense(1024)
    self.norm = nn.BatchNorm(momentum=0.9)

  def __call__(self, image, condition, key):
    mean, logvar = jnp.split(self.encoder(image.reshape(image.shape[0], -1)), 2, -1)
    logvar = logvar - 8
    z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    z = z + 0.01 * self.norm(z, use_running_average=not self.is_mutable_collection('batch_stats'))
    return condition + self.decoder(z).reshape(image.shape), mean, logvar


class TinyFlow(nn.Module):
  """An affine map that depends on a condition."""

  @nn.compact
  def __call__(self, z, condition):
    s = layers.Dense(z.shape[-1])(condition.reshape(condition.shape[0], -1))
    return (z + 1) * jnp.exp(s), jnp.sum(s, -1)


FIXED = jaxrec.coil_noise(0.05)
RANDOM = jaxrec.coil_noise(0.05, start='random')
PGD = jaxrec.pgd(num_steps=2)


def adam():
  return training.optimizer('adam', 1e-3)


def of_scans(make, **options):
  return lambda parallel: make(Tiny(), adam(), average=parallel.average, place=parallel.place, **options)


def two_players(parallel):
  """Reconstructor against generator in k-space."""
  adversary = training.kspace_adversary(TinyGenerator(), relative_radius=0.05)
  return training.adversarial(Tiny(), adam(), adversary, adam(), FIXED, average=parallel.average, place=parallel.place)


def of_images(parallel):
  module = Tiny('batch', parallel.axis)
  adversary = training.image_adversary(
    build('dcgan', size=(32, 32), chans=2, depth=1, batch_axis=parallel.axis), latent=3
  )
  noise = jaxrec.image_noise(0.1, reference='deviation')
  return training.adversarial(
    module,
    adam(),
    adversary,
    adam(),
    noise,
    loss='dssim',
    epsilon=1.0,
    average=parallel.average,
    place=parallel.place,
    project=True,
  )


def batch_norm(parallel):
  return training.supervised(
    Tiny('batch', parallel.axis), adam(), loss='mse', average=parallel.average, place=parallel.place
  )


def of_critic(make, critic, **options):
  return lambda parallel: make(
    Tiny(), adam(), critic, adam(), average=parallel.average, place=parallel.place, **options
  )


def l1(images, others):
  return jnp.mean(jnp.abs(images - others), (1, 2))


def autoencoder(parallel):
  return training.cvae(
    TinyVAE(), adam(), TinyCritic(), adam(), lambda x: 0.5 * x, l1_weight=1.0, kl_weight=1e-3, adversarial_weight=1e-3,
    perceptual=l1, average=parallel.average, place=parallel.place,
  )  # fmt: skip


def flow(parallel):
  def codes(key, batch):
    return batch.input[:, :4, 0], batch.target

  return training.flow(TinyFlow(), adam(), codes, average=parallel.average, place=parallel.place)


def averaged_players(parallel):
  return training.averaged(two_players(parallel), 0.5)


def moved(parallel):
  """Movements of the patient, thermal noise, and averaged weights."""
  moves = jaxrec.attacks.compose(jaxrec.rotation(10.0), jaxrec.translation(2.0))
  task = training.supervised(Tiny(), adam(), loss='l1', average=parallel.average, place=parallel.place)
  task = training.noisier(task, (0.02, 0.2), place=parallel.place)
  return training.averaged(training.augmented(task, moves, probability=0.5, num_steps=6, place=parallel.place), 0.9)


TABLE = {
  'supervised l1': lambda parallel: training.supervised(
    Tiny(),
    training.optimizer('rmsprop', training.schedule(1e-3, 4, drop_at=0.5)),
    loss='l1',
    average=parallel.average,
    place=parallel.place,
  ),
  'supervised batch norm': batch_norm,
  'worst case': of_scans(training.worst_case, perturbation=FIXED, search=PGD, objective=jaxrec.region_mse()),
  'consistency': of_scans(training.consistency, perturbation=RANDOM, search=PGD, robust_weight=20.0),
  'free': of_scans(training.free, perturbation=FIXED, replays=2),
  'jitter': of_scans(training.jitter, perturbation=RANDOM),
  'jacobian': of_scans(training.jacobian, perturbation=FIXED, robust_weight=3.0),
  'two players, k-space': two_players,
  'two players, images': of_images,
  'two players, averaged': averaged_players,
  'moved and averaged': moved,
  'WGAN-VGG': of_critic(training.wgan_vgg, TinyCritic(), perceptual=l1, perceptual_weight=100.0),
  'DU-GAN': of_critic(training.du_gan, TinyDiscriminator(), mix_steps=1000),
  'conditional VAE': autoencoder,
  'flow': flow,
}
IMAGES = ('supervised batch norm', 'two players, images', 'WGAN-VGG', 'DU-GAN', 'conditional VAE', 'flow')


@pytest.fixture(params=TABLE, scope='module')
def name(request):
  return request.param


def batch(name, count=2):
  scans = [synthetic.scan(s, rows=32, cols=32, coils=2, acceleration=2) for s in range(count)]
  return loader.stack([singlecoil.zero_filled(s, relative=True) for s in scans] if name in IMAGES else scans)


class Tape:
  def __init__(self):
    self.records = []

  def __call__(self, record):
    self.records.append(record)


SCORES = {2: 0.5, 4: 0.9, 6: 0.7}


@functools.cache
def made(name):
  """The task and its devices; its step is compiled once for all tests."""
  parallel = training.data_parallel(1)
  parallel = parallel._replace(compile=functools.cache(parallel.compile))
  return TABLE[name](parallel), parallel


def fit(name, folder, steps, *, poison=None, **options):
  task, parallel = made(name)
  data = batch(name)

  def batches(start):
    for i in range(start, 1000):
      yield (
        data.replace(**{x: getattr(data, x) * np.nan for x in ('target', 'input') if hasattr(data, x)})
        if i == poison
        else data
      )

  tape, checkpointer = Tape(), training.Checkpointer(folder)

  def validate(state):
    return {'val_ssim': SCORES[tape.records[-1]['step']]}

  try:
    state = training.fit(
      task,
      batches,
      steps,
      key=jax.random.key(0),
      parallel=parallel,
      writer=tape,
      checkpointer=checkpointer,
      report_every=1,
      validate=validate,
      validate_every=2,
      **options,
    )
  finally:
    checkpointer.close()
  return state, tape.records


@pytest.fixture(scope='module')
def whole(name, tmp_path_factory):
  """Six steps without interruption: the state, the records and the folder."""
  folder = tmp_path_factory.mktemp('whole')
  return *fit(name, folder, 6), folder


def test_training_lowers_the_loss(name, whole):
  state, records, _ = whole
  assert int(made(name)[0].steps(state)) == 6
  steps = [r for r in records if 'loss' in r]
  assert [r['step'] for r in steps] == list(range(1, 7))
  clean = next(k for k in ('loss_clean', 'mse', 'l1', 'loss') if k in steps[0])
  assert steps[-1][clean] < steps[0][clean]


def test_robust_tasks_meet_a_perturbation(name, whole):
  """In the first step, before any update."""
  first = whole[1][0]
  if name in ('worst case', 'jitter'):
    task, data = made(name)[0], batch(name)
    clean = float(jnp.mean(task.evaluate(task.init(jax.random.split(jax.random.key(0))[0], data), data)['loss']))
  if name == 'worst case':
    np.testing.assert_allclose(first['loss_clean'], clean, rtol=1e-4)
    assert first['loss_perturbed'] > first['loss_clean']
  if name == 'jitter':
    assert abs(first['loss'] - clean) > 1e-5 * clean
  if name in ('consistency', 'jacobian'):
    part, weight = {'consistency': ('distance', 20.0), 'jacobian': ('amplification', 3.0)}[name]
    assert first[part] > 1e-6
    np.testing.assert_allclose(first['loss'], first['loss_clean'] + weight * first[part], rtol=1e-5)


class Wide(nn.Module):
  """Convolutions that take nearly all operations of a step."""

  @nn.compact
  def __call__(self, data, mask, acs=None):
    x = rss(ifft2c(jnp.where(mask[..., None, :, :], data, 0)))[..., None]
    for features in (48, 48, 48, 1):
      x = nn.relu(nn.Conv(features, (3, 3))(x))
    return x[..., 0]


# Passes that are trained through; a search's last evaluation shares the body of a loop, which XLA counts once.
COUNTED = {
  'supervised': (training.supervised, {}, 1),
  'worst case': (
    training.worst_case, dict(perturbation=FIXED, search=jaxrec.pgd(num_steps=1), objective=jaxrec.region_mse()), 2 - 1
  ),
  'consistency': (training.consistency, dict(perturbation=RANDOM, search=jaxrec.pgd(num_steps=1)), 2 - 1),
  'free': (training.free, dict(perturbation=FIXED, replays=1), 1),
  'jitter': (training.jitter, dict(perturbation=RANDOM), 1),
  'jacobian': (training.jacobian, dict(perturbation=FIXED, num_iterations=1), 2),
}  # fmt: skip


@pytest.mark.parametrize('name', COUNTED)
def test_passes_are_those_that_xla_computes(name):
  """A pass forward and one back take as much; one back to the weights, as many as are trained through, once more."""
  make, options, trained = COUNTED[name]
  task, data, module = make(Wide(), optax.set_to_zero(), **options), batch('supervised l1', 1), Wide()
  state = task.init(jax.random.key(0), data)

  def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()['flops']

  once = flops(lambda variables: module.apply(variables, data.kspace, data.mask), task.variables(state))
  passes = flops(task.step, state, data, jax.random.key(1)) / once
  assert passes == pytest.approx(sum(task.calls) + trained, abs=0.15)


class OneStep:
  """A search of a caller's own, which knows nothing of conjugation."""

  forward_calls, backward_calls = 1, 1

  def __call__(self, key, loss, init, project):
    end = attacks.farthest(jax.grad(loss)(init(key)), project)
    return jaxrec.SearchResult(delta=end, loss=loss(end), trace=loss(end)[None])


def test_searches_of_callers_climb_in_training_too():
  data = batch('worst case')

  def perturbed(search):
    task = training.worst_case(Tiny(), optax.set_to_zero(), FIXED, search, jaxrec.region_mse(), loss='mse')
    return float(jax.jit(task.step)(task.init(jax.random.key(0), data), data, jax.random.key(1))[1]['loss_perturbed'])

  ours = perturbed(jaxrec.pgd(num_steps=1, step=attacks.steepest_step(1.0)))
  np.testing.assert_allclose(perturbed(OneStep()), ours, rtol=1e-5)


def test_free_training_steps_along_the_steepest_ascent():
  """Of the loss of each scan, as far as its bound reaches."""
  data = batch('free')
  task = training.free(Tiny(), optax.set_to_zero(), FIXED, replays=2, loss='mse')
  state = task.init(jax.random.key(0), data)
  found = float(jax.jit(task.step)(state, data, jax.random.key(1))[1]['loss'])

  def loss(change):
    moved = data.replace(kspace=data.kspace + jnp.where(data.acquired[..., None, :, :], change[0] + 1j * change[1], 0))
    return jnp.mean(task.evaluate(state, moved)['loss'])

  value, slope = jax.jit(jax.value_and_grad(loss))(jnp.zeros((2, *data.kspace.shape)))
  energy = np.sqrt(np.sum(np.abs(data.kspace) ** 2, (-2, -1)))
  step = slope / np.sqrt(np.sum(slope**2, (0, -2, -1), keepdims=True)) * 0.05 * energy[None, ..., None, None]
  assert found == pytest.approx(float(jax.jit(loss)(step)), rel=1e-3) and found > value


@pytest.mark.parametrize('kind', ['free', 'jacobian', 'jitter', 'worst_case'])
def test_deltas_of_several_arrays_are_trained_against(kind):
  data = batch('free')
  moves = jaxrec.compose(jaxrec.rotation(3.0), jaxrec.coil_noise(0.02, start='random'))
  options = dict(search=jaxrec.pgd(num_steps=1), objective=jaxrec.region_mse()) if kind == 'worst_case' else {}
  task = getattr(training, kind)(Tiny(), optax.adam(1e-3), moves, **options)
  state = jax.eval_shape(task.init, jax.random.key(0), data)
  after, scores = jax.eval_shape(task.step, state, data, jax.random.key(1))
  assert jax.tree.structure(after) == jax.tree.structure(state) and scores['loss'].shape == ()


@pytest.mark.parametrize('count', [1, 3])
def test_every_example_of_a_batch_draws_its_own_perturbation(count):
  """Of equal scans, as many as there are."""
  data = jax.tree.map(lambda x: np.repeat(x[:1], count, 0), batch('jitter'))
  drawn = jax.vmap(RANDOM.init)(draws.of_examples(jax.random.key(0), count), data)
  assert drawn.shape == data.kspace.shape and len({np.asarray(d).tobytes() for d in drawn}) == count


def test_free_training_climbs_between_replays():
  """With a network that stands still, every replay goes on from the step of the one before, and the last one is told."""
  data = batch('free')
  scores = []
  for replays in (1, 2, 3):
    task = training.free(Tiny(), optax.set_to_zero(), FIXED, replays=replays, loss='mse')
    found = jax.jit(task.step)(task.init(jax.random.key(0), data), data, jax.random.key(1))[1]
    scores.append((float(found['loss']), float(found['gradient_norm'])))
  (first, _), (second, norm), (third, last) = scores
  assert first < second < third and last != norm


def test_every_process_starts_from_the_values_of_the_first(tmp_path):
  """A flow starts from its part of the batch: `fit` trains what `agree` returns."""
  task, parallel = made('flow')
  told = []

  def agree(tree):
    told.append(tree)
    return jax.tree.map(lambda x: x + np.asarray(0.05, x.dtype), tree)

  checkpointer = training.Checkpointer(tmp_path)
  options = dict(key=jax.random.key(0), writer=Tape(), checkpointer=checkpointer)
  state = training.fit(task, lambda start: iter([batch('flow')]), 1, parallel=parallel._replace(agree=agree), **options)
  checkpointer.close()
  start, end = (jax.tree.leaves(task.variables(s)) for s in (told[0], state))
  # One step of Adam moves by 1e-3.
  assert len(told) == 1 and all(np.abs(b - a - 0.05).max() < 0.01 for a, b in zip(start, end))


def test_every_step_draws_its_own_random_numbers(tmp_path):
  """A task that only reports what it draws."""

  def step(state, batch, key):
    return {'step': state['step'] + 1}, {'loss': jax.random.uniform(key)}

  task = training.Task(lambda key, batch: {'step': jnp.int32(0)}, step, lambda *_: {}, lambda state: state)
  tape, checkpointer = Tape(), training.Checkpointer(tmp_path)
  options = dict(
    key=jax.random.key(0), parallel=training.data_parallel(1), writer=tape, checkpointer=checkpointer, report_every=1
  )
  training.fit(task, lambda start: iter([np.zeros((1, 1))] * 4), 4, **options)
  checkpointer.close()
  assert [r['step'] for r in tape.records] == [1, 2, 3, 4]
  assert len({r['loss'] for r in tape.records}) == 4


def test_resuming_continues_exactly(name, whole, tmp_path):
  state, records, _ = whole
  _, first = fit(name, tmp_path, 4)
  resumed, second = fit(name, tmp_path, 6)
  jax.tree.map(np.testing.assert_array_equal, state, resumed)
  assert first + second == records


def test_validation_keeps_the_best_and_the_last(name, whole):
  state, _, folder = whole
  checkpointer = training.Checkpointer(folder)
  assert (checkpointer.best_score(), checkpointer.best_step(), checkpointer.latest_step()) == (0.9, 4, 6)
  best, last = (checkpointer.restore(state, which=w) for w in ('best', 'last'))
  checkpointer.close()
  jax.tree.map(np.testing.assert_array_equal, last, state)
  assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(best), jax.tree.leaves(last)))


@pytest.mark.fault
def test_a_loss_that_is_not_finite_stops_with_the_step(name, tmp_path):
  with pytest.raises(training.Diverged, match='not finite at step 3.*learning_rate'):
    fit(name, tmp_path, 5, poison=2)
  checkpointer = training.Checkpointer(tmp_path)
  assert checkpointer.latest_step() == 2
  checkpointer.close()


@pytest.mark.fault
def test_a_checkpoint_of_another_architecture_is_refused(name, whole, tmp_path):
  other = training.supervised(build('unet_recon', chans=3, pools=1), training.optimizer('adam', 1e-3))
  like = jax.eval_shape(other.init, jax.random.key(0), batch('worst case'))
  for folder, words in ((whole[2], 'has shape|architecture'), (tmp_path, 'holds no checkpoint')):
    checkpointer = training.Checkpointer(folder)
    with pytest.raises(training.CheckpointError, match=words):
      checkpointer.restore(like)
    checkpointer.close()


def test_evaluation_is_per_example(name, whole):
  task, state = made(name)[0], whole[0]
  data = batch(name, 3)
  evaluate = jax.jit(task.evaluate)
  together, turned = (evaluate(state, jax.tree.map(lambda x: x[order], data)) for order in ([0, 1, 2], [2, 0, 0]))
  for metric, value in together.items():
    assert value.shape == (3,)
    np.testing.assert_allclose(turned[metric], value[np.array([2, 0, 0])], rtol=1e-4)


def test_training_stops_without_improvement(tmp_path):
  for _ in range(2):
    # The second call finds the run finished.
    _, records = fit('supervised l1', tmp_path, 100, patience=1)
    checkpointer = training.Checkpointer(tmp_path)
    assert checkpointer.latest_step() == 6 and checkpointer.best_step() == 4
    checkpointer.close()
  assert not records


def test_eight_devices_equal_one():
  code = textwrap.dedent("""
    import jax, numpy as np
    from jaxrec import training
    from tests.property.test_tasks import TABLE, batch
    for name in TABLE:
      if name == 'conditional VAE':
        # Its network draws for the examples that it sees.
        continue
      results, data = [], batch(name, 8)
      for devices in (1, 8):
        parallel = training.data_parallel(devices)
        task = TABLE[name](parallel)
        state, shares = parallel.replicate(jax.device_get(task.init(jax.random.key(0), data))), parallel.shard(data)
        keys = jax.random.split(jax.random.key(1), 1)[np.zeros(devices, int)]
        step = parallel.compile(task.step)
        for _ in range(2):
          state, metrics = step(state, shares, keys)
        results.append((parallel.first(state), parallel.first(metrics)['loss']))
      variables = [task.variables(state) for state, _ in results]
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *variables)
      np.testing.assert_allclose(*(loss for _, loss in results), rtol=1e-5)
    print('devices', len(jax.devices()))
  """)
  env = {**os.environ, 'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'}
  done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == 'devices 8'


def test_batch_norm_of_the_autoencoder_is_that_of_all_devices():
  """Before anything is drawn: the running statistics of the encoder."""
  code = textwrap.dedent("""
    import jax, numpy as np
    from jaxrec import models, training
    small = dict(size=(16, 16), latent=8, width=4, blocks=2, chunk=2, classes=4, class_hidden=4, embedding=4, encoder_width=4, stages=(1, 1))
    images = np.random.default_rng(0).normal(size=(8, 16, 16)).astype('f') + 5 * np.arange(8, dtype='f')[:, None, None]
    key, found = jax.random.key(0), []
    variables = models.CVAE(**small).init(key, images, images, key)
    for devices in (1, 8):
      parallel = training.data_parallel(devices)
      module = models.CVAE(**small, batch_axis=parallel.axis)
      step = parallel.compile(lambda state, x, _: (module.apply(state, x, x, key, mutable='batch_stats')[1], 0))
      state, _ = step(parallel.replicate(variables), parallel.shard(images), np.zeros(devices))
      found.append(parallel.first(state)['batch_stats']['encoder'])
    assert len(jax.tree.leaves(found[0])) > 6 and len(jax.devices()) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *found)
  """)
  env = {**os.environ, 'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'}
  done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
  'call, words',
  [
    (lambda: training.optimizer('sgd', 0.1), 'train.optimizer.*adam, adamw, rmsprop'),
    (lambda: training.image_loss('psnr'), 'train.loss.*ssim, l1, normalised_l1, mse, dssim'),
    (lambda: training.data_parallel(1000), 'train.num_devices: 1000 asked for'),
  ],
)
@pytest.mark.fault
def test_bad_options_are_named(call, words):
  with pytest.raises(ValueError, match=words):
    call()


@pytest.mark.fault
def test_a_part_of_the_devices_is_for_one_process(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(jax, 'local_devices', lambda: jax.devices()[:1] * 4)
  with pytest.raises(ValueError, match='train.num_devices: 1 of 4 devices is for one process'):
    training.data_parallel(1)
