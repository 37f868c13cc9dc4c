"""Reconstructions and scores of whole volumes, as the fastMRI leaderboard takes and gives them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import metrics, results
from jaxrec.data import files

SCORES = ('ssim', 'psnr', 'nmse')


def write(folder: str | Path, name: str, images: np.ndarray) -> Path:
  """Writes the reconstruction of a volume, whole or not at all.

  Args:
    folder: created if missing.
    name: of the volume, without the suffix.
    images: `[slice, row, col]` float, the part that the target shows.

  Returns:
    Its `place`, with the data set `reconstruction`, float32.

  Raises:
    DataError: if it cannot be written.
  """
  path = place(folder, name)
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.new_hdf5(path) as file:
    file.create_dataset('reconstruction', data=np.asarray(images, np.float32), track_times=False)
  return path


def place(folder: str | Path, name: str) -> Path:
  """`<folder>/<name>.h5`; of a name that is no file's, one that is made of it."""
  return Path(folder) / f'{results.safe_name(name)}.h5'


def scores(images: np.ndarray, targets: np.ndarray) -> dict[str, float]:
  """SSIM, PSNR and NMSE of a volume.

  SSIM is the mean over slices; the data range of SSIM and PSNR is the maximum of
  the volume's targets, and the error of PSNR and NMSE is that of all slices
  together. Compared is the central square as wide as the target.

  Args:
    images: `[slice, row, col]` float.
    targets: the same shape.

  Returns:
    `ssim`, `psnr` in decibels (infinite if nothing differs) and `nmse`.

  Reference:
    fastMRI, `fastmri.evaluate`; Zbontar et al. 2018, section 6.
  """
  rows, cols = targets.shape[1:]
  top = max((rows - cols) // 2, 0)
  images, targets = (np.asarray(x, np.float32)[:, top : top + min(rows, cols)] for x in (images, targets))
  scale = targets.max()
  error = np.sum((images - targets) ** 2, dtype=np.float64)
  ssim = np.mean(np.asarray(_ssim(images, targets, jnp.float32(scale))), dtype=np.float64)
  return {
    'ssim': float(ssim),
    'psnr': float(10 * np.log10(float(scale) ** 2 * targets.size / error)) if error else float('inf'),
    'nmse': float(error / np.sum(targets**2, dtype=np.float64)),
  }


_ssim = jax.jit(jax.vmap(metrics.ssim, (0, 0, None)))
