"""Checks a data set: `python -m jaxrec.workflows.verify_data ROOT [annotations.csv] [--offset=1024]`.

Reads every slice of every volume, names each bad file with the reason, and
counts the annotations that can and cannot be used. Low-dose CT (DICOM of TCIA,
HDF5, folders of images; see `data.ldct`) is recognised by its names; the offset is
what TIFF and NumPy images add to HU, the `data.offset` of a run. Exit code 2 if a
file is bad.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import h5py
from tqdm import tqdm

from jaxrec.data import annotations as annotations_lib
from jaxrec.data import ct_images, fastmri, ldct, loader
from jaxrec.data.errors import DataError


def verify(root: str | Path, annotations: str | Path | None = None) -> int:
  """Prints what is wrong with a data set.

  Args:
    root: folder that holds volumes, directly or in folders.
    annotations: fastMRI+ file, or `None`.

  Returns:
    Number of bad files.

  Raises:
    DataError: if there is no volume, or the annotations cannot be read.
  """
  root = Path(root)
  folders = sorted({path.parent for path in root.rglob('*.h5')})
  if not folders:
    raise DataError(f'{root}: holds no .h5 volumes')
  volumes, bad = [], {}
  for folder in folders:
    found = fastmri.index(folder)
    volumes += found.volumes
    bad |= found.bad
  shapes = Counter()
  empty_coils = {}
  for volume in tqdm(volumes, desc='verify', unit='volume'):
    shapes[loader.shape_of(fastmri.Example(volume, 0, None))] += volume.shape[0]
    for s in range(volume.shape[0]):
      try:
        kspace = fastmri.read_kspace(volume, s)
      except DataError as error:
        bad.setdefault(volume.path, str(error))
        continue
      if not kspace.any((-2, -1)).all():
        empty_coils.setdefault(volume.path, s)
  for line in bad.values():
    print(f'bad: {line}')
  for path, s in empty_coils.items():
    print(f'note: {path}: slice {s} has a coil without signal; it is used, the coil is ignored')
  for (coils, rows, cols, *crop), count in sorted(shapes.items()):
    print(f'{count} slices of {coils} x {rows} x {cols}, target {crop[0]} x {crop[1]}')
  print(f'{len(volumes) + len(bad) - len({v.path for v in volumes} & set(bad))} volumes, {len(bad)} bad')
  if annotations is not None:
    examples, unusable = loader.annotated(volumes, annotations_lib.read(annotations))
    print(f'{len(examples)} usable boxes')
    for reason, count in sorted(unusable.items()):
      print(f'{count} boxes left out: {reason}')
  return len(bad)


def verify_ct(root: str | Path, *, offset: float = 0.0) -> int:
  """Prints what is wrong with low-dose CT data, every split of it.

  Args:
    root: data set.
    offset: what TIFF and NumPy images add to HU.

  Returns:
    Number of bad files.

  Raises:
    DataError: if nothing of a known layout is there.
  """
  root = Path(root)
  splits = [s for s in ldct.SPLITS if (root / s).is_dir()] or ['train']
  bad: dict[str, str] = {}
  slices, pairs = Counter(), 0
  for split in splits:
    found = ldct.index(root, split, offset=offset, require_pairs=False, every=True)
    bad |= found.bad
    for series in tqdm(found.volumes, desc=f'verify {split}', unit='series'):
      for s in range(series.shape[0]):
        try:
          low, full = ldct.read_hu(series, s)
        except DataError as error:
          bad[f'{series.path} {s}'] = str(error)
          continue
        slices[low.shape] += 1
        pairs += full is not None
        if low.min() > -500 or low.max() > 1e4:
          path = series.pairs[s][0] if series.pairs else f'{series.path}: slice {s}'
          mend = 'give --offset here and data.offset in runs' if path.lower().endswith(ct_images.GREY) else 'store HU'
          bad[f'{series.path} {s}'] = f'{path}: has values from {low.min():g} to {low.max():g}; these are no HU, {mend}'
  for line in bad.values():
    print(f'bad: {line}')
  for (rows, cols), count in sorted(slices.items()):
    print(f'{count} slices of {rows} x {cols}')
  print(f'{sum(slices.values())} slices, {pairs} with full-dose pairs, {len(bad)} bad')
  return len(bad)


def is_ct(root: str | Path) -> bool:
  """Whether a folder looks like low-dose CT rather than MR k-space."""
  root = Path(root)
  if any(root.rglob('*Low Dose Images*')) or any((root / s / 'low').is_dir() for s in ('.', *ldct.SPLITS)):
    return True
  first = next(root.rglob('*.h5'), None)
  try:
    with h5py.File(first) as file:
      return 'low_dose' in file
  except (OSError, TypeError):
    return False


def main(arguments: list[str]) -> int:
  """Command line; returns the exit code, and leaves with 2 for wrong arguments."""
  parser = argparse.ArgumentParser(prog='python -m jaxrec.workflows.verify_data', description='Names every bad file of a data set.')
  parser.add_argument('root', help='folder of the data set')
  parser.add_argument('annotations', nargs='?', help='fastMRI+ boxes (MR)')
  parser.add_argument('--offset', type=float, default=0.0, help='what TIFF and NumPy images add to HU (CT)')
  given = parser.parse_args(arguments)
  try:
    if is_ct(given.root):
      if given.annotations:
        parser.error('annotations: are boxes of MR, and this is CT')
      return 2 if verify_ct(given.root, offset=given.offset) else 0
    if given.offset:
      parser.error('--offset: is of CT, and this is MR')
    return 2 if verify(given.root, given.annotations) else 0
  except DataError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
