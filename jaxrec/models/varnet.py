"""The end-to-end variational network."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec.fourier import abs_squared, fft2c, fftshift, ifft2c, ifftshift, rss, safe_sqrt, sens_expand, sens_reduce
from jaxrec.models import draws
from jaxrec.models.unet import NormUNet
from jaxrec.types import Array, Key, Variables


class Sensitivities(nn.Module):
  """Coil sensitivities from the fully sampled centre, one coil at a time.

  Reference:
    Sriram et al. 2020, section 3.
  """

  chans: int
  pools: int
  remat: bool = False
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, centre: Array) -> Array:
    """`[..., coil, row, col]` complex k-space of the centre to maps of unit RSS."""
    images, network = ifft2c(centre), NormUNet(self.chans, self.pools, self.dtype, name='norm_unet')
    maps = _by_coil(network, images) if self.remat else network(images)
    norm = safe_sqrt(jnp.sum(abs_squared(maps), -3, keepdims=True))
    return maps * (1 / jnp.where(norm > 0, norm, 1))


def _by_coil(network, images):
  """One coil after the other, each recomputed in the backward pass."""

  def one(network, _, image):
    return None, network(image)

  axis = images.ndim - 3
  coils = nn.scan(
    nn.remat(one, prevent_cse=False),
    variable_broadcast='params',
    split_rngs={'params': False},
    in_axes=axis,
    out_axes=axis,
  )
  return coils(network, None, images)[1]


class Cascade(nn.Module):
  """One step of soft data consistency and learned regularisation.

  `k - w M (k - k0) - F S U(S* F^-1 k)`, in k-space whose transformed axes have
  DC first, so that only the single combined image needs shifting.

  Reference:
    Sriram et al. 2020, equation (9).
  """

  chans: int
  pools: int
  axes: tuple[int, ...]
  smoothing_samples: int = 0
  smoothing_std: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, kspace: Array, constants, key: Key) -> tuple[Array, None]:
    reference, mask, maps = constants
    weight = draws.uniform(self, 'dc_weight', (), kspace.real.dtype, bound=0, centre=1)
    images = jnp.fft.ifftn(kspace, axes=self.axes, norm='ortho')
    combined = fftshift(sens_reduce(images, maps), self.axes)
    update = self._regularise(combined, key)
    update = sens_expand(ifftshift(update, self.axes), maps)
    correction = jnp.where(mask, kspace - reference, 0) * weight
    return kspace - correction - jnp.fft.fftn(update, axes=self.axes, norm='ortho'), None

  def _regularise(self, combined, key):
    network = NormUNet(self.chans, self.pools, self.dtype, name='norm_unet')
    if not self.smoothing_samples:
      return network(combined)
    level = safe_sqrt(jnp.mean(abs_squared(combined), (-2, -1), keepdims=True))
    noise = jax.random.normal(key, (self.smoothing_samples, *combined.shape[-2:]), combined.dtype)
    noise = noise.reshape(self.smoothing_samples, *(1,) * (combined.ndim - 2), *combined.shape[-2:])
    return jnp.mean(network(combined + self.smoothing_std * level * noise), 0)


class VarNet(nn.Module):
  """E2E-VarNet: unrolled gradient descent with learned sensitivities.

  The cascades are one compiled `scan`. A mask that depends on the column only
  lets them stay in (row image, column k-space), with one-dimensional transforms.

  Attributes:
    num_cascades: unrolled iterations.
    chans: channels of the first level of the cascades' U-Nets.
    pools: their poolings.
    sens_chans: channels of the first level of the sensitivity U-Net.
    sens_pools: its poolings.
    remat: recompute each cascade and the maps of each coil in the backward pass:
      a third of the memory or less, for a third more work in training.
    smoothing_samples: above 0, every regulariser is the mean over so many noisy
      copies of its input: randomised smoothing of the unrolled network.
    smoothing_std: of that noise, relative to the root mean square of the input.
    smoothing_seed: of that noise, unless the random stream `smoothing` is given.
    dtype: of the U-Nets, see `UNet`; k-space, FFTs and maps are float32 in both.

  Reference:
    Sriram et al. 2020, https://arxiv.org/abs/2004.06688; Liang et al. 2023, SMUG.

  Example:
    >>> import jax, jaxrec
    >>> net = jaxrec.models.VarNet(num_cascades=2, chans=4, pools=2, sens_chans=2, sens_pools=2)
    >>> k = jax.numpy.ones((3, 32, 32), 'complex64')
    >>> m = jax.numpy.ones((1, 32), bool)
    >>> image, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), k, m, m)
    >>> image.shape
    (32, 32)
  """

  num_cascades: int = 12
  chans: int = 18
  pools: int = 4
  sens_chans: int = 8
  sens_pools: int = 4
  remat: bool = False
  smoothing_samples: int = 0
  smoothing_std: float = 0.01
  smoothing_seed: int = 0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, kspace: Array, mask: Array, acs: Array, *, complete: bool = False) -> Array:
    """Reconstructs.

    Args:
      kspace: `[..., coil, row, col]` complex, not masked.
      mask: `[..., 1 or row, col]` bool.
      acs: `[..., 1 or row, col]` bool, the fully sampled centre.
      complete: return the completed k-space instead of the image.

    Returns:
      `[..., row, col]` float, RSS over coils, or `[..., coil, row, col]` complex.
    """
    mask = mask[..., None, :, :]
    kspace = jnp.where(mask, kspace, 0)
    maps = _sensitivities(self, name='sens')(_centre(kspace, acs))
    axes = (-1,) if mask.shape[-2] == 1 else (-2, -1)
    if axes == (-1,):
      kspace = ifft2c(kspace, (-2,))
    kspace, mask, maps = (ifftshift(x, axes) for x in (kspace, mask, maps))
    cascade = nn.remat(Cascade, prevent_cse=False) if self.remat else Cascade
    cascades = nn.scan(
      cascade,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(nn.broadcast, 0),
      length=self.num_cascades,
      # Without the check the cascades are traced once; with it weights are drawn from other keys.
      check_constancy_invariants=self.is_initializing() and not draws.noting(),
    )(self.chans, self.pools, axes, self.smoothing_samples, self.smoothing_std, self.dtype, name='cascades')
    key = self.make_rng('smoothing') if self.has_rng('smoothing') else jax.random.key(self.smoothing_seed)
    kspace, _ = cascades(kspace, (kspace, mask, maps), jax.random.split(key, self.num_cascades))
    if complete:
      kspace = fftshift(kspace, axes)
      return fft2c(kspace, (-2,)) if axes == (-1,) else kspace
    return fftshift(rss(jnp.fft.ifftn(kspace, axes=axes, norm='ortho')), axes)


def coil_maps(module: VarNet, variables: Variables, kspace: Array, mask: Array, acs: Array) -> Array:
  """The coil sensitivities that a VarNet estimates and works with.

  Args:
    module: the network.
    variables: its variables.
    kspace: `[..., coil, row, col]` complex.
    mask: `[..., 1 or row, col]` bool.
    acs: `[..., 1 or row, col]` bool.

  Returns:
    `[..., coil, row, col]` complex, of unit RSS.
  """
  centre = _centre(jnp.where(mask[..., None, :, :], kspace, 0), acs)
  return _sensitivities(module).apply({'params': variables['params']['sens']}, centre)


def _sensitivities(module, **named):
  return Sensitivities(module.sens_chans, module.sens_pools, module.remat, module.dtype, **named)


def _centre(kspace, acs):
  return jnp.where(acs[..., None, :, :], kspace, 0)
