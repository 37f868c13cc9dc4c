"""Learning rates against their formulas, and in the updates of an optimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common, defences
from jaxrec import training
from jaxrec.experiments import build, options
from jaxrec.workflows import factory

STEPS, RATE = 40, 3e-3


def warm(i, rising):
  return RATE * (i + 1) / (rising + 1)


def half_cosine(i, rising, final):
  return RATE * (final + (1 - final) * 0.5 * (1 + np.cos(np.pi * (i - rising) / (STEPS - rising))))


TABLE = {
  'constant': (dict(), lambda i: RATE),
  "the recipe's drop": (dict(drop_at=0.8, drop_factor=0.1), lambda i: RATE * (0.1 if i >= 32 else 1)),
  'warm-up': (dict(warmup=0.1), lambda i: warm(i, 4) if i < 4 else RATE),
  'warm-up and drop': (
    dict(warmup=0.25, drop_at=0.5, drop_factor=0.2),
    lambda i: warm(i, 10) if i < 10 else RATE * (0.2 if i >= 20 else 1),
  ),
  'cosine': (dict(name='cosine', final=0.02), lambda i: half_cosine(i, 0, 0.02)),
  'warm-up and cosine': (dict(name='cosine', warmup=0.2), lambda i: warm(i, 8) if i < 8 else half_cosine(i, 8, 0.0)),
}


@pytest.mark.parametrize('name', TABLE)
def test_the_rate_of_every_update(name):
  chosen, formula = TABLE[name]
  rate = training.schedule(RATE, STEPS, **chosen)
  expected = [formula(i) for i in range(STEPS)]
  # RMSprop's update is in proportion to its rate, and with one gradient all else is known.
  rule = training.optimizer('rmsprop', rate)
  state = rule.init(jnp.zeros(()))
  steps, power = [], 0.0
  for _ in range(STEPS):
    update, state = rule.update(jnp.ones(()), state)
    power = 0.99 * power + 0.01
    steps.append(-float(update) * (np.sqrt(power) + 1e-8))
  np.testing.assert_allclose(steps, expected, rtol=1e-4)
  section = common.base('x', 'smoke').train
  section.update(learning_rate=RATE, drop_at=0.0)
  section.schedule.update({k: v for k, v in chosen.items() if not k.startswith('drop')})
  section.update({k: v for k, v in chosen.items() if k.startswith('drop')})
  np.testing.assert_allclose(factory.learning_rates(build.train(section), STEPS), expected, rtol=1e-5)


@pytest.mark.parametrize('name', TABLE)
def test_the_state_of_the_optimiser_depends_on_no_number_of_steps(name):
  states = [
    training.optimizer('adam', training.schedule(RATE, steps, **TABLE[name][0])).init(jnp.zeros(()))
    for steps in (1, 1000)
  ]
  assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_a_task_with_several_updates_has_the_rate_of_the_last():
  config = defences.get_config('smoke').experiments.free.train
  task = build.train(config).task
  assert factory.updates_per_step(task.made, task.options) == 2
  config.drop_at = 0.5
  # The optimiser counts its updates: 4 of 8 are before the drop.
  np.testing.assert_allclose(
    factory.learning_rates(build.train(config), 8), config.learning_rate * np.array([1, 1] + [0.1] * 6), rtol=1e-5
  )


@pytest.mark.fault
@pytest.mark.parametrize(
  'given, words',
  [
    (dict(name='cosine'), None),
    (dict(name='linear'), "^train.schedule.name: 'linear' is unknown; choose one of step, cosine$"),
    (dict(warmup=1.0), '^train.schedule.warmup: 1.0 is not allowed; give a number from 0 and below 1$'),
    (dict(warmup=0.9), '^train.drop_at: 0.8 lies within the warm-up, train.schedule.warmup=0.9; make it larger, or 0$'),
    (dict(final=0.1), '^train.schedule.final: 0.1 has no effect with name=step; set it to 0, or name=cosine$'),
  ],
)
def test_options_are_checked(given, words, tmp_path):
  config = common.varnet(common.base('x', 'demo'))
  config.train.schedule.update(given)
  if words is None:
    return options.check(config, tmp_path)
  with pytest.raises(ValueError, match=words):
    options.check(config, tmp_path)


@pytest.mark.fault
def test_free_training_takes_the_drop_alone(tmp_path):
  config = defences.get_config('smoke')
  config.experiments.free.train.schedule.name = 'cosine'
  with pytest.raises(ValueError, match='^experiments.free.train.schedule: the task free updates several times'):
    options.check(config, tmp_path)


def test_rmsprop_is_that_of_pytorch():
  """The small number stands outside the root: tiny gradients tell."""
  rule, gradients = training.optimizer('rmsprop', 0.1), np.array([[1e-7, -3.0], [2e-8, 1e-3], [-5e-7, 0.2]])
  parameters, square = jnp.zeros(2), np.zeros(2)
  state, wanted = rule.init(parameters), np.zeros(2)
  for g in gradients:
    updates, state = rule.update(jnp.asarray(g, jnp.float32), state, parameters)
    parameters = optax.apply_updates(parameters, updates)
    square = 0.99 * square + 0.01 * g**2
    wanted -= 0.1 * g / (np.sqrt(square) + 1e-8)
  np.testing.assert_allclose(parameters, wanted, rtol=1e-4)
