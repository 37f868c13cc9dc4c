"""Denoises images with a trained network: `python -m jaxrec.workflows.denoise RUN INPUT OUTPUT`.

RUN is the run folder of a denoiser, INPUT a DICOM, TIFF or NumPy image or a folder of
them, OUTPUT a folder for `NAME.npy` in HU. TIFF and NumPy images are in HU plus the
`data.offset` that the run was trained with. Images that exist there are
not made again. Exit code 2 if an image is bad; the others are written.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from jaxrec.data import ct_images, ldct
from jaxrec.data.errors import DataError
from jaxrec.models import observer
from jaxrec.training import data_parallel
from jaxrec.types import Slice
from jaxrec.workflows import datasets
from jaxrec.workflows.train import loader_of


def denoise(run: str | Path, source: str | Path, target: str | Path) -> dict[str, str]:
  """Denoises every image of a folder, or one.

  Args:
    run: run folder of a trained denoiser, or of one with published weights.
    source: image or folder.
    target: folder for the results.

  Returns:
    What is wrong with images that could not be denoised, by path.

  Raises:
    DataError: if there is no image.
  """
  source, target = Path(source), Path(target)
  files = sorted(p for p in source.rglob('*') if p.suffix.lower() in ct_images.SUFFIXES) if source.is_dir() else [source]
  if not files or not files[0].exists():
    raise DataError(f'{source}: holds no {", ".join(ct_images.SUFFIXES)} image')
  module, variables, offset = _network(Path(run))
  network = jax.jit(observer(module))
  target.mkdir(parents=True, exist_ok=True)
  bad = {}
  for path in tqdm(files, desc='denoise', unit='image'):
    name = '-'.join(path.relative_to(source).with_suffix('').parts) if source.is_dir() else path.stem
    out = target / f'{name}.npy'
    if out.exists():
      continue
    try:
      image = ct_images.read_file(path)
      if path.suffix.lower() != '.dcm':
        image -= np.float32(offset)
    except DataError as error:
      bad[str(path)] = str(error)
      continue
    cleaned = ldct.hounsfield(np.asarray(network(variables, ldct.normalise(image))))
    temporary = out.with_suffix('.tmp')
    with open(temporary, 'wb') as stream:
      np.save(stream, cleaned.astype(np.float32))
    temporary.replace(out)
  return bad


def _network(run):
  if not (run / 'config.json').exists():
    raise DataError(f'{run}: is no run folder; train a denoiser first')
  options = json.loads((run / 'config.json').read_text())['data']
  if options.get('layout') != 'ldct':
    raise DataError(f'{run}: is no run of a CT denoiser')
  # Checkpoints are restored by shapes alone: no data set is needed.
  zero = np.zeros((512, 512), np.float32)
  series = ldct.Series('', '', (1, 512, 512), (512, 512), '', (), 0.0, 1.0, True)
  found = ldct.Index([series], {})
  data = datasets.Data(found, found, None, lambda example, epoch: Slice(zero, zero, zero, np.float32(1)))
  return *loader_of(run.absolute(), data, data_parallel(1))(str(run.absolute())), options['offset']


def main(arguments: list[str]) -> int:
  """Command line; returns the exit code."""
  if len(arguments) != 3:
    print('usage: python -m jaxrec.workflows.denoise RUN INPUT OUTPUT', file=sys.stderr)
    return 2
  try:
    bad = denoise(*arguments)
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  for line in bad.values():
    print(f'bad: {line}')
  return 2 if bad else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
