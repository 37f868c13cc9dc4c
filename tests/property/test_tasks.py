"""One table for all tasks: what `fit`, checkpoints and devices need of them."""

import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from jaxrec import training
from jaxrec.data import loader, synthetic
from jaxrec.models import build

TABLE = {
  'supervised ssim': lambda average: training.supervised(
    build('unet_recon', chans=2, pools=1), training.optimizer('adam', 1e-3), loss='ssim', average=average
  ),
  'supervised l1': lambda average: training.supervised(
    build('unet_recon', chans=2, pools=1), training.optimizer('rmsprop', 1e-3, drop_at=2), loss='l1', average=average
  ),
}


@pytest.fixture(params=TABLE)
def make(request):
  return TABLE[request.param]


def batch(count=2):
  return loader.stack([synthetic.scan(s, rows=32, cols=32, coils=2, acceleration=2) for s in range(count)])


class Tape:
  def __init__(self):
    self.records = []

  def __call__(self, record):
    self.records.append(record)


def fit(make, folder, steps, *, poison=None, **options):
  parallel = training.data_parallel(1)
  task = make(parallel.average)

  def batches(start):
    for i in range(start, 1000):
      b = batch()
      yield b.replace(target=b.target * np.nan) if i == poison else b

  tape, checkpointer = Tape(), training.Checkpointer(folder)
  try:
    state = training.fit(
      task, batches, steps, key=jax.random.key(0), parallel=parallel, writer=tape, checkpointer=checkpointer, report_every=1, **options
    )
  finally:
    checkpointer.close()
  return state, tape.records


def test_training_lowers_the_loss(make, tmp_path):
  _, records = fit(make, tmp_path, 8)
  assert records[-1]['loss'] < records[0]['loss']
  assert [r['step'] for r in records] == list(range(1, 9))


def test_resuming_continues_exactly(make, tmp_path):
  whole, records = fit(make, tmp_path / 'whole', 4, validate_every=2)
  _, first = fit(make, tmp_path / 'parts', 2)
  resumed, second = fit(make, tmp_path / 'parts', 4, validate_every=2)
  jax.tree.map(np.testing.assert_array_equal, whole, resumed)
  assert first + second == records


def test_validation_keeps_the_best_and_the_last(make, tmp_path):
  scores = iter([0.5, 0.9, 0.7])
  _, records = fit(make, tmp_path, 3, validate=lambda state: {'val_ssim': next(scores)}, validate_every=1)
  checkpointer = training.Checkpointer(tmp_path)
  like, _ = fit(make, tmp_path / 'other', 1)
  assert checkpointer.best_score() == 0.9 and checkpointer.latest_step() == 3
  best, last = (jax.tree.leaves(checkpointer.restore(like, which=w))[0] for w in ('best', 'last'))
  assert (int(best), int(last)) == (2, 3)
  checkpointer.close()
  assert [r['val_ssim'] for r in records if 'val_ssim' in r] == [0.5, 0.9, 0.7]


def test_a_loss_that_is_not_finite_stops_with_the_step(make, tmp_path):
  with pytest.raises(training.Diverged, match='not finite at step 3.*learning_rate'):
    fit(make, tmp_path, 5, poison=2, validate_every=2)
  checkpointer = training.Checkpointer(tmp_path)
  assert checkpointer.latest_step() == 2
  checkpointer.close()


def test_a_checkpoint_of_another_architecture_is_refused(make, tmp_path):
  fit(make, tmp_path, 1)
  checkpointer = training.Checkpointer(tmp_path)
  other = training.supervised(build('unet_recon', chans=3, pools=1), training.optimizer('adam', 1e-3))
  with pytest.raises(training.CheckpointError, match='has shape|architecture'):
    checkpointer.restore(jax.eval_shape(other.init, jax.random.key(0), batch()))
  checkpointer.close()
  empty = training.Checkpointer(tmp_path / 'empty')
  with pytest.raises(training.CheckpointError, match='holds no checkpoint'):
    empty.restore({})
  empty.close()


def test_evaluation_is_per_example(make):
  task = make(lambda tree: tree)
  state = task.init(jax.random.key(0), batch())
  together = jax.jit(task.evaluate)(state, batch(3))
  alone = jax.jit(task.evaluate)(state, jax.tree.map(lambda x: x[2:], batch(3)))
  for name, value in together.items():
    assert value.shape == (3,)
    np.testing.assert_allclose(value[2], alone[name][0], rtol=1e-4)


def test_eight_devices_equal_one():
  code = textwrap.dedent("""
    import jax, numpy as np
    from jaxrec import training
    from tests.property.test_tasks import TABLE, batch
    for name, make in TABLE.items():
      results = []
      for devices in (1, 8):
        parallel = training.data_parallel(devices)
        task = make(parallel.average)
        state = parallel.replicate(jax.device_get(task.init(jax.random.key(0), batch(8))))
        keys = jax.random.split(jax.random.key(1), devices)
        step = parallel.compile(task.step)
        for _ in range(2):
          state, metrics = step(state, parallel.shard(batch(8)), keys)
        results.append((parallel.first(state).variables, parallel.first(metrics)['loss']))
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *results)
    print('devices', len(jax.devices()))
  """)
  import os

  env = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=8'}
  done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == 'devices 8'


@pytest.mark.parametrize(
  'call, words',
  [
    (lambda: training.optimizer('sgd', 0.1), 'train.optimizer.*adam, adamw, rmsprop'),
    (lambda: training.image_loss('psnr'), 'train.loss.*ssim, l1, mse'),
    (lambda: training.data_parallel(1000), 'train.num_devices: 1000 asked for'),
  ],
)
def test_bad_options_are_named(call, words):
  with pytest.raises(ValueError, match=words):
    call()
