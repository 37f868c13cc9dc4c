"""Draws the gallery: `python docs/gallery.py` writes `docs/gallery/*.png`. A new perturbation is a new row of `ROWS`."""

from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxrec
from jaxrec import networks
from jaxrec.data import synthetic
from jaxrec.types import Slice

ROWS = {
  'coil_noise': jaxrec.coil_noise(0.05, start='random'),
  'coil_noise_linf': jaxrec.coil_noise(0.05, norm='linf', start='random'),
  'image_noise': jaxrec.image_noise(0.05, start='random'),
  'rotation': jaxrec.rotation(5.0),
  'translation': jaxrec.translation(4.0),
  'compose': jaxrec.compose(jaxrec.rotation(5.0), jaxrec.coil_noise(0.03, start='random')),
}
# A slice of CT has an image and no k-space.
SLICE = {'image_noise_slice': jaxrec.image_noise(0.05, start='random')}
TITLES = ('fully sampled', 'perturbed', 'change', 'zero-filled at 4x', 'perturbed, undone')


def full(sample):
  """The image of all that was measured."""
  if isinstance(sample, Slice):
    return sample.input
  return jaxrec.fourier.rss(jaxrec.fourier.ifft2c(sample.kspace))


def reconstruct(_, sample):
  """What is attacked: the zero-filled image, or a slice smoothed by its neighbours."""
  if isinstance(sample, Slice):
    x = sample.input
    return (x + jax.numpy.roll(x, 1, 0) + jax.numpy.roll(x, 1, 1)) / 3
  return networks.zero_filled(sample)[0]


def draw(name, perturbation, sample):
  """One file: the worst perturbation that ten steps of PGD find, on the whole image."""
  sample = sample.replace(region=np.ones_like(sample.region))
  worst = jaxrec.attack(reconstruct, perturbation, jaxrec.pgd(num_steps=10), jaxrec.region_mse())
  found = jax.jit(worst)(None, jax.random.key(0), sample)
  before, after = np.asarray(full(sample)), np.asarray(full(found.sample))
  images = [before, after, after - before, found.clean, found.adversarial]
  titles = (
    TITLES if name != 'image_noise_slice' else ('slice', 'perturbed', 'change', 'smoothed', 'smoothed, perturbed')
  )
  top = float(np.quantile(before, 0.999))
  figure = Figure(figsize=(7.5, 1.75), layout='constrained')
  for axes, title, image in zip(figure.subplots(1, 5), titles, images):
    limits = (
      dict(cmap='RdBu_r', vmin=-0.3 * top, vmax=0.3 * top) if title == 'change' else dict(cmap='gray', vmin=0, vmax=top)
    )
    axes.imshow(image, interpolation='nearest', **limits)
    axes.set_title(title, fontsize=8)
    axes.axis('off')
  figure.savefig(
    Path(__file__).parent / 'gallery' / f'{name}.png',
    dpi=100,
    metadata={'Software': None},
    pil_kwargs={'optimize': True},
  )


def main():
  """Draws every row."""
  scan = synthetic.scan(1, rows=96, cols=96, coils=4, acceleration=4)
  for name, perturbation in ROWS.items():
    draw(name, perturbation, scan)
  image = scan.target / scan.scale
  for name, perturbation in SLICE.items():
    draw(name, perturbation, Slice(image, image, scan.region, np.float32(1)))


if __name__ == '__main__':
  main()
