"""Learning rates over the updates of a training."""

import optax

SCHEDULES = ('step', 'cosine')


def schedule(
  learning_rate: float,
  num_steps: int,
  *,
  name: str = 'step',
  warmup: float = 0.0,
  drop_at: float = 0.0,
  drop_factor: float = 0.1,
  final: float = 0.0,
) -> optax.ScalarOrSchedule:
  """Learning rate of every update, by Optax's schedules.

  A linear warm-up from `learning_rate / (w + 1)` over w updates, then `step`: a
  drop by a factor, as fastMRI's recipes have it, or `cosine`: half a cosine from
  `learning_rate` down to `final learning_rate`.

  Args:
    learning_rate: the largest.
    num_steps: updates in total.
    name: one of `SCHEDULES`.
    warmup: share of the updates with a rising rate; 0: none.
    drop_at: of `step`, share of the updates before the drop; 0: no drop.
    drop_factor: of `step`, factor of the drop.
    final: of `cosine`, share of the learning rate that is left at the end.

  Returns:
    A schedule, or the number itself if it never changes.

  Raises:
    ValueError: for an unknown name, a drop within the warm-up, or a `final` that has no effect.

  Reference:
    Goyal et al. 2017 (warm-up); Loshchilov and Hutter 2017, SGDR, equation (5), without restarts.
  """
  if name not in SCHEDULES:
    raise ValueError(f'train.schedule.name: {name!r} is unknown; choose one of {", ".join(SCHEDULES)}')
  if name == 'step' and 0 < drop_at < warmup:
    raise ValueError(
      f'train.drop_at: {drop_at:g} lies within the warm-up, train.schedule.warmup={warmup:g}; make it larger, or 0'
    )
  if name == 'step' and final:
    raise ValueError(f'train.schedule.final: {final:g} has no effect with name=step; set it to 0, or name=cosine')
  # At least one: whether there is a warm-up, and with it the state of the optimiser, depends on no number of steps.
  rising = max(int(round(warmup * num_steps)), 1) if warmup else 0
  after: optax.ScalarOrSchedule = learning_rate
  if name == 'cosine':
    after = optax.cosine_decay_schedule(learning_rate, max(num_steps - rising, 1), final)
  elif drop_at:
    drop = max(int(round(drop_at * num_steps)) - rising, 0)
    after = optax.piecewise_constant_schedule(learning_rate, {drop: drop_factor})
  if not rising:
    return after
  before = optax.linear_schedule(learning_rate / (rising + 1), learning_rate, rising)
  return optax.join_schedules([before, after if callable(after) else optax.constant_schedule(after)], [rising])
