"""Sets of realistic changes of a measurement."""

import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxrec import geometry
from jaxrec.attacks.core import Perturbation
from jaxrec.attacks.families import family
from jaxrec.fourier import abs_squared, fft2c, ifft2c, safe_sqrt
from jaxrec.types import Array, Scalar, Scan

# Keeps a projected norm below its bound although float32 norms are rounded.
_INSIDE = 1 - 1e-6


def _check_strength(name: str, value) -> None:
  if isinstance(value, (int, float)) and not (np.isfinite(value) and value >= 0):
    raise ValueError(f'{name}: {value} is not a strength; give a finite number of at least 0')
  if name == 'max_degrees' and isinstance(value, (int, float)) and value > 90:
    raise ValueError(f'{name}: {value} is above 90, where three shears are no rotation; give 90 at most')
  if name == 'relative_radius' and isinstance(value, (int, float)) and value > 1:
    warnings.warn(f'{name}: {value} is {100 * value:g}% of the measurement; 0.02 is 2%', stacklevel=3)


def _choose(name: str, value: str, allowed: Sequence[str]) -> None:
  if value not in allowed:
    raise ValueError(f'{name}: {value!r} is unknown; choose one of {", ".join(allowed)}')


def _norm(x: Array, over: tuple[int, ...]) -> Array:
  """l2 norm with kept axes, summed one axis at a time for accuracy."""
  square = abs_squared(x)
  for axis in over:
    square = jnp.sum(square, axis, keepdims=True)
  return safe_sqrt(square)


class _Ball:
  """Bounded additive noise on an array; l2 or linf, over the axes `over`."""

  def __init__(self, relative_radius, norm, over):
    self.relative_radius, self.norm, self.over = relative_radius, norm, over

  def radius(self, reference, support):
    radius = self.relative_radius * _norm(reference, self.over)
    if self.norm == 'linf':
      counts = jnp.broadcast_to(support, reference.shape).astype(radius.dtype)
      radius = radius / jnp.sqrt(jnp.maximum(jnp.sum(counts, self.over, keepdims=True), 1))
    return radius

  def size(self, delta):
    return jnp.abs(delta) if self.norm == 'linf' else _norm(delta, self.over)

  def project(self, delta, reference, support):
    delta = jnp.where(support, delta, 0)
    radius, size = self.radius(reference, support), self.size(delta)
    inside = size <= radius
    return jnp.where(inside, delta, delta * (_INSIDE * radius / jnp.where(inside, 1, size))).astype(delta.dtype)

  def start(self, key, reference, support, kind, *, drawn):
    if kind == 'zero':
      return jnp.zeros_like(reference)
    noise = jnp.where(drawn, jax.random.normal(key, reference.shape, reference.dtype), 0)
    size = self.size(noise)
    noise = noise * (_INSIDE * self.radius(reference, support) / jnp.where(size > 0, size, 1))
    return self.project(noise.astype(reference.dtype), reference, support)

  def used(self, delta, reference, support):
    radius, size = self.radius(reference, support), self.size(delta)
    if self.norm == 'linf':
      size = jnp.max(size, self.over, keepdims=True)
    share = size / jnp.where(radius > 0, radius, 1)
    active = jnp.broadcast_to(radius > 0, share.shape)
    return jnp.sum(jnp.where(active, share, 0)) / jnp.maximum(jnp.sum(active), 1)


@family('relative_radius', unit='relative', title='Worst-case k-space noise', axis='noise bound η')
def coil_noise(
  relative_radius: Scalar | float,
  *,
  norm: str = 'l2',
  per_coil: bool = True,
  columns: str = 'acquired',
  start: str = 'zero',
) -> Perturbation:
  """Additive k-space noise, bounded for every coil by its own signal.

  `||z_i||_2 <= eta ||k_i||_2` for every coil i. Delta is the noise, `[coil, row,
  col]` complex, in the units of the k-space, and never exceeds the bound.

  Args:
    relative_radius: eta, `[]`, may be traced; 0.02 is 2% of each coil's norm.
    norm: `l2`, or `linf`, which bounds every entry by `eta ||k_i|| / sqrt(n)`
      with n the entries that may change, so that it lies inside the l2 ball.
    per_coil: `False` bounds all coils together by `eta ||k||`.
    columns: `acquired`, or `sampled` to leave unsampled columns alone (they
      have no effect on the reconstruction).
    start: `zero`, or `random` for `restarts` and `random_search`: on the
      boundary, in sampled columns only.

  Returns:
    A `Perturbation` of `Scan`.

  Raises:
    ValueError: for an unknown option or a negative radius.

  Reference:
    Morshuis et al. 2022, equation (4).

  Example:
    >>> import jax, jaxrec
    >>> from jaxrec.data import synthetic
    >>> scan = synthetic.scan(0, rows=32, cols=32, coils=2)
    >>> noise = jaxrec.coil_noise(0.02, start='random')
    >>> z = noise.init(jax.random.key(0), scan)
    >>> round(float(noise.budget(z, scan)), 3)
    1.0
  """
  _check_strength('relative_radius', relative_radius)
  _choose('norm', norm, ('l2', 'linf'))
  _choose('columns', columns, ('acquired', 'sampled'))
  _choose('start', start, ('zero', 'random'))
  ball = _Ball(relative_radius, norm, (-2, -1) if per_coil else (-3, -2, -1))

  def support(scan: Scan):
    return scan.acquired if columns == 'acquired' else scan.acquired & scan.mask

  return Perturbation(
    init=lambda key, scan: ball.start(key, scan.kspace, support(scan), start, drawn=scan.acquired & scan.mask),
    apply=lambda delta, scan: scan.replace(kspace=scan.kspace + delta),
    project=lambda delta, scan: ball.project(delta, scan.kspace, support(scan)),
    align=lambda delta, image: image,
    budget=lambda delta, scan: ball.used(delta, scan.kspace, support(scan)),
  )


@family('relative_radius', unit='relative', title='Worst-case image noise', axis='noise bound η')
def image_noise(
  relative_radius: Scalar | float, *, norm: str = 'l2', reference: str = 'norm', start: str = 'zero'
) -> Perturbation:
  """Additive image-domain noise.

  For a `Scan` delta is `[coil, row, col]` complex and is added to every coil
  image before sampling, bounded per coil by `eta ||x_i||`; for a `Slice` it is
  `[row, col]` real and is added to the input.

  Args:
    relative_radius: eta, `[]`, may be traced.
    norm: `l2`, or `linf` scaled to lie inside the l2 ball.
    reference: `norm` of the image, or, for a `Slice`, its `deviation`: the bound
      is `eta sqrt(n) std(x)`, so that `n eta^2` is the epsilon of Huang and
      Liang for images of zero mean and unit deviation.
    start: `zero` or `random`.

  Returns:
    A `Perturbation` of `Scan` or `Slice`.

  Raises:
    ValueError: for an unknown option or a negative radius.

  Reference:
    Huang and Liang 2020, algorithm 1; Antun et al. 2020.
  """
  _check_strength('relative_radius', relative_radius)
  _choose('norm', norm, ('l2', 'linf'))
  _choose('reference', reference, ('norm', 'deviation'))
  _choose('start', start, ('zero', 'random'))
  ball = _Ball(relative_radius, norm, (-2, -1))
  everywhere = np.ones((1, 1), bool)

  def against(sample):
    if isinstance(sample, Scan):
      if reference == 'deviation':
        raise ValueError('reference: deviation is for images; use norm for a Scan')
      # By Parseval the coil images have the norms of their k-space.
      return sample.kspace
    image = sample.input
    return image if reference == 'norm' else image - jnp.mean(image)

  def apply(delta, sample):
    if isinstance(sample, Scan):
      return sample.replace(kspace=sample.kspace + fft2c(delta))
    return sample.replace(input=sample.input + delta)

  return Perturbation(
    init=lambda key, sample: ball.start(key, against(sample), everywhere, start, drawn=everywhere),
    apply=apply,
    project=lambda delta, sample: ball.project(delta, against(sample), everywhere),
    align=lambda delta, image: image,
    budget=lambda delta, sample: ball.used(delta, against(sample), everywhere),
  )


@family('max_degrees', unit='degrees', title='Worst-case rotation', axis='largest rotation')
def rotation(max_degrees: Scalar | float, *, method: str = 'fourier') -> Perturbation:
  """Rotation of the patient: the coil images turn, then are sampled as before.

  `R(-a) f(M F R(a) F^-1 k)` is compared with the unrotated target. Delta is the
  angle, `[]`, in degrees.

  Args:
    max_degrees: largest angle to either side, `[]`, at most 90, may be traced.
    method: `fourier`, three shears with an exact inverse, or `resampled`, the
      two interpolations of the public AdvRec code, for comparison.

  Returns:
    A `Perturbation` of `Scan`.

  Raises:
    ValueError: for an unknown option, or an angle that is negative or above 90.

  Reference:
    Morshuis et al. 2022, equation (5).
  """
  _check_strength('max_degrees', max_degrees)
  _choose('method', method, ('fourier', 'resampled'))

  def apply(degrees, scan):
    if method == 'fourier':
      return scan.replace(kspace=geometry.rotate_kspace(scan.kspace, degrees))
    turned = jax.vmap(geometry.rotate_resampled, (0, None))(ifft2c(scan.kspace), degrees)
    return scan.replace(kspace=fft2c(turned))

  back = geometry.rotate if method == 'fourier' else geometry.rotate_resampled
  return Perturbation(
    init=lambda key, scan: jax.random.uniform(key, (), scan.target.dtype, -1, 1) * max_degrees,
    apply=apply,
    project=lambda degrees, scan: jnp.clip(degrees, -max_degrees, max_degrees),
    align=lambda degrees, image: back(image, -degrees),
    budget=lambda degrees, scan: jnp.abs(degrees) / jnp.where(max_degrees > 0, max_degrees, 1),
  )


@family('max_pixels', unit='pixels', title='Worst-case translation', axis='largest shift')
def translation(max_pixels: Scalar | float) -> Perturbation:
  """Shift of the patient by a sub-pixel amount, a phase ramp in k-space.

  Delta is `[2]`, pixels down and to the right, each within the bound.

  Args:
    max_pixels: largest shift along either axis, `[]`, may be traced.

  Returns:
    A `Perturbation` of `Scan`.

  Raises:
    ValueError: for a negative shift.
  """
  _check_strength('max_pixels', max_pixels)
  return Perturbation(
    init=lambda key, scan: jax.random.uniform(key, (2,), scan.target.dtype, -1, 1) * max_pixels,
    apply=lambda pixels, scan: scan.replace(kspace=geometry.shift_kspace(scan.kspace, pixels)),
    project=lambda pixels, scan: jnp.clip(pixels, -max_pixels, max_pixels),
    align=lambda pixels, image: geometry.shift(image, -pixels),
    budget=lambda pixels, scan: jnp.max(jnp.abs(pixels)) / jnp.where(max_pixels > 0, max_pixels, 1),
  )


def compose(*perturbations: Perturbation) -> Perturbation:
  """Several perturbations, applied in order and undone in reverse.

  Delta is the tuple of their deltas. Bounds refer to the unperturbed sample.

  Args:
    *perturbations: at least one.

  Returns:
    A `Perturbation` whose budget is the largest of its parts.

  Raises:
    ValueError: if none is given.
  """
  if not perturbations:
    raise ValueError('compose: give at least one perturbation')

  def init(key, sample):
    keys = jax.random.split(key, len(perturbations))
    return tuple(p.init(k, sample) for p, k in zip(perturbations, keys))

  def apply(deltas, sample):
    for p, delta in zip(perturbations, deltas):
      sample = p.apply(delta, sample)
    return sample

  def align(deltas, image):
    for p, delta in zip(reversed(perturbations), reversed(deltas)):
      image = p.align(delta, image)
    return image

  return Perturbation(
    init=init,
    apply=apply,
    project=lambda deltas, sample: tuple(p.project(d, sample) for p, d in zip(perturbations, deltas)),
    align=align,
    budget=lambda deltas, sample: jnp.max(jnp.stack([p.budget(d, sample) for p, d in zip(perturbations, deltas)])),
  )


def angle_grid(max_degrees: float, step_degrees: float = 0.1) -> Float[np.ndarray, ' points']:
  """Evenly spaced angles that include both ends and 0.

  Args:
    max_degrees: largest angle to either side.
    step_degrees: spacing; if it does not divide `max_degrees`, the ends are added.

  Returns:
    `[points]` float32, ascending.

  Raises:
    ValueError: for an angle that is negative or above 90, or a spacing that is not positive.
  """
  _check_strength('max_degrees', max_degrees)
  if not step_degrees > 0:
    raise ValueError(f'step_degrees: {step_degrees} is not positive')
  half = np.arange(int(np.floor(max_degrees / step_degrees + 1e-6)) + 1) * step_degrees
  if max_degrees - half[-1] > 1e-6 * step_degrees:
    half = np.append(half, max_degrees)
  return np.concatenate([-half[:0:-1], half]).astype(np.float32)
