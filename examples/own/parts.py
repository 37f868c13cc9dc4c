"""Parts of your own, named in a config as `parts:ghosting` and so on: see `study.py`."""

import jax
import jax.numpy as jnp

import jaxrec


@jaxrec.family('max_radians', unit='radians', title='Worst-case ghosting', axis='largest phase error')
def ghosting(max_radians):
  """Every other column has a phase error, which makes a ghost at half the field of view."""

  def apply(radians, scan):
    odd = jnp.arange(scan.kspace.shape[-1]) % 2
    return scan.replace(kspace=scan.kspace * jnp.exp(1j * radians * odd))

  return jaxrec.Perturbation(
    init=lambda key, scan: 0.1 * max_radians,
    apply=apply,
    project=lambda radians, scan: jnp.clip(radians, -max_radians, max_radians),
    align=lambda radians, image: image,
    budget=lambda radians, scan: jnp.abs(radians) / max_radians,
  )


class SignGradient:
  """Steps along the sign of the gradient, as in the first papers on adversarial examples."""

  def __init__(self, num_steps, step_size):
    self.step_size, self.forward_calls, self.backward_calls = step_size, 1, num_steps

  def __call__(self, key, loss, init, project):
    delta, trace = project(jnp.asarray(init(key))), []
    for _ in range(self.backward_calls):
      value, direction = jax.value_and_grad(loss)(delta)
      trace.append((value, delta))
      delta = project(delta + self.step_size * jnp.sign(direction))
    values, deltas = map(jnp.stack, zip(*trace, (loss(delta), delta)))
    return jaxrec.SearchResult(delta=deltas[jnp.argmax(values)], loss=jnp.max(values), trace=values)


def sign_gradient(num_steps=10, step_size=0.02):
  return SignGradient(num_steps, step_size)


def mean_absolute_error():
  def objective(image, sample):
    error = jnp.abs(jaxrec.geometry.center_crop(image, sample.target.shape) - sample.target)
    return jnp.sum(sample.region * error) / (jnp.sum(sample.region) * sample.scale)

  return objective


def smoothed(width=3):
  """A network with its weights. A Flax linen module may be returned instead, to be trained by the stage `train`."""
  kernel = jnp.ones((width, width)) / width**2
  return jaxrec.network(
    lambda scan: jax.scipy.signal.convolve2d(jaxrec.networks.zero_filled(scan)[0], kernel, mode='same'), name='smoothed'
  )
