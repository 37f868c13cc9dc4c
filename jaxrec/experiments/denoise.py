"""Denoises images with a trained network: `python -m jaxrec.experiments.denoise RUN INPUT OUTPUT`.

RUN is the run folder of a denoiser, INPUT a DICOM, TIFF or NumPy image or a folder of
them, OUTPUT another folder, which mirrors the folders of INPUT: a derived series for
DICOM, `NAME.npy` or `NAME.tif.npy` in HU for others. TIFF and NumPy images are in HU
plus the `data.offset` that the run was trained with. Images that exist there are
not made again. Exit code 2 if an image is bad; the others are written.
"""

import collections
import os
import sys
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from jaxrec import program, results
from jaxrec.audit import identity
from jaxrec.data import ct_images, ldct
from jaxrec.data.errors import DataError
from jaxrec.experiments import build
from jaxrec.models import observer
from jaxrec.training import data_parallel
from jaxrec.types import Slice
from jaxrec.version import __version__
from jaxrec.workflows import datasets
from jaxrec.workflows.experiment import CTData
from jaxrec.workflows.train import Context, loader_of


def denoise(run: str | Path, source: str | Path, target: str | Path) -> dict[str, str]:
  """Denoises every image of a folder, or one.

  Args:
    run: run folder of a trained denoiser, or of one with published weights.
    source: image or folder.
    target: folder for the results, outside the source.

  Returns:
    What is wrong with images that could not be denoised, by path.

  Raises:
    DataError: if there is no image, or the target would mix with the source.
  """
  source, target = Path(source), Path(target)
  root = source if source.is_dir() else source.parent
  files = (
    sorted(p for p in source.rglob('*') if p.suffix.lower() in ct_images.SUFFIXES and not p.is_dir())
    if source.is_dir()
    else [source]
  )
  if not files or not os.path.lexists(files[0]):
    raise DataError(f'{source}: holds no {", ".join(ct_images.SUFFIXES)} image')
  if target.resolve() == root.resolve() or source.is_dir() and target.resolve().is_relative_to(root.resolve()):
    raise DataError(f'{target}: lies in the input folder, where results would pass as inputs; give another folder')
  places = {path: target / path.relative_to(root).with_name(_output_name(path)) for path in files}
  shared = collections.Counter(places.values())
  inputs = {path.resolve() for path in files}
  module, variables, offset = _network(Path(run))
  network = jax.jit(observer(module))
  name = f'jaxrec {__version__}, {results.read_json(Path(run) / "config.json").get("model", {}).get("name", "a network")} of run {Path(run).absolute().name}'
  digest = identity.digest(variables)
  bad, there = {}, 0
  for path, out in tqdm(places.items(), desc='denoise', unit='image'):
    if shared[out] > 1 or out.resolve() in inputs:
      bad[str(path)] = f'{path}: its result {out} would replace another file; rename it or give another folder'
    elif out.exists():
      there += 1
    else:
      try:
        cleaned = _denoised(path, network, variables, offset)
        _write(out, path, cleaned, name, digest)
      except DataError as error:
        bad[str(path)] = str(error)
  if there:
    print(
      f'denoise: {there} of {len(files)} were in {target} already and are left as they are; empty it to make them again'
    )
  return bad


def _output_name(path):
  return path.name if path.suffix.lower() in ('.dcm', '.npy') else f'{path.name}.npy'


def _denoised(path, network, variables, offset):
  image = ct_images.read_file(path)
  if path.suffix.lower() != '.dcm':
    image -= np.float32(offset)
    ldct.check_hu(path, image, f'as the run takes off its data.offset={offset:g}; store whole slices in HU plus that')
  try:
    cleaned = ldct.hounsfield(np.asarray(network(variables, ldct.normalise(image))))
  except (ValueError, TypeError) as error:
    raise DataError(
      f'{path}: {image.shape[0]} x {image.shape[1]} pixels do not pass the network ({results.reason(error)})'
    ) from None
  if cleaned.shape != image.shape or not np.isfinite(cleaned).all():
    raise DataError(f'{path}: the network makes no finite image of its size from it')
  return cleaned.astype(np.float32)


def _write(out, path, cleaned, name, digest):
  """Whole or not at all."""
  out.parent.mkdir(parents=True, exist_ok=True)
  temporary = out.with_name(f'{out.name}.{os.getpid()}.tmp')
  try:
    if path.suffix.lower() == '.dcm':
      ct_images.write_dicom(path, temporary, cleaned, network=name, digest=digest)
    else:
      with open(temporary, 'wb') as stream:
        np.save(stream, cleaned)
    temporary.replace(out)
  except (ValueError, TypeError, KeyError, AttributeError) as error:  # A header that can be read but not written.
    raise DataError(f'{path}: its result cannot be written ({results.reason(error)}); export the image again') from None
  finally:
    temporary.unlink(missing_ok=True)


def _network(run):
  if not (run / 'config.json').exists():
    raise DataError(f'{run}: is no run folder; train a denoiser first')
  trained_on = build.stored(run).data
  if not isinstance(trained_on, CTData):
    raise DataError(f'{run}: is no run of a CT denoiser')
  # Checkpoints are restored by shapes alone: no data set is needed.
  zero = np.zeros((512, 512), np.float32)
  series = ldct.Series('', '', (1, 512, 512), (512, 512), '', (), 0.0, 1.0, True)
  found = ldct.Index([series], {})
  data = datasets.Data(found, found, None, lambda example, epoch: Slice(zero, zero, zero, np.float32(1)))
  context = Context(data, data_parallel(1), build.stored)
  return *loader_of(run.absolute(), context)(str(run.absolute())), trained_on.offset


def main(arguments: list[str]) -> int:
  """Command line; returns the exit code."""
  if len(arguments) != 3:
    print('usage: python -m jaxrec.experiments.denoise RUN INPUT OUTPUT', file=sys.stderr)
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
  sys.exit(program.ended(main, sys.argv[1:], 'the same command begins again'))
