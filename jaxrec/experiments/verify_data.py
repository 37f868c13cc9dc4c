"""Checks a data set: `python -m jaxrec.experiments.verify_data ROOT [annotations.csv] [--offset=1024]`.

Reads every slice of every volume as a run would, names each bad file with the
reason, and counts the annotations that can and cannot be used. The format is
recognised (see `data.source`); the offset is what TIFF and NumPy images add to HU,
the `data.offset` of a run. Exit code 2 if a file is bad.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from jaxrec import program
from jaxrec.data import annotations as annotations_lib
from jaxrec.data import loader
from jaxrec.data.errors import DataError
from jaxrec.data.source import CT, Source, recognised
from jaxrec.workflows import datasets


def verify(source: Source, annotations: str | Path | None = None) -> int:
  """Prints what is wrong with a data set.

  Args:
    source: the data set.
    annotations: fastMRI+ file, or `None`.

  Returns:
    Number of bad files and slices.

  Raises:
    DataError: if there is no volume, or the annotations cannot be read.
  """
  found = source.index('')
  bad, targets = [*found.bad.values()], 0
  notes: dict[str | Path, str] = {}
  shapes: Counter[tuple] = Counter()
  for volume in tqdm(found.volumes, desc='verify', unit='volume'):
    for s in range(volume.shape[0]):
      try:
        for line in source.verify(volume, s):
          notes.setdefault(volume.path, line)
      except DataError as error:
        bad.append(str(error))
        continue
      shapes[volume.shape[1:], volume.crop] += 1
      targets += volume.fully_sampled
  for line in bad:
    print(f'bad: {line}')
  for line in notes.values():
    print(f'note: {line}')
  for (shape, crop), count in sorted(shapes.items()):
    print(f'{count} slices of {_by(shape)}, target {_by(crop)}')
  print(f'{len(found.volumes)} volumes, {shapes.total()} slices, {targets} with a target, {len(bad)} bad')
  if annotations is not None:
    examples, unusable = loader.annotated(found.volumes, annotations_lib.read(annotations))
    print(f'{len(examples)} usable boxes')
    for reason, count in sorted(unusable.items()):
      print(f'{count} boxes left out: {reason}')
  return len(bad)


def _by(shape):
  return ' x '.join(map(str, shape))


def main(arguments: list[str]) -> int:
  """Command line; returns the exit code, and leaves with 2 for wrong arguments."""
  parser = argparse.ArgumentParser(
    prog='python -m jaxrec.experiments.verify_data', description='Names every bad file of a data set.'
  )
  parser.add_argument('root', help='folder of the data set')
  parser.add_argument('annotations', nargs='?', help='fastMRI+ boxes (MR)')
  parser.add_argument('--offset', type=float, default=0.0, help='what TIFF and NumPy images add to HU (CT)')
  parser.add_argument(
    '--layout', default='', help='a source of your own, package.module:factory, as data.layout of a run'
  )
  given = parser.parse_args(arguments)
  try:
    source = (
      datasets.own_source(given.layout, given.root) if given.layout else recognised(given.root, offset=given.offset)
    )
    if isinstance(source, CT) and given.annotations:
      parser.error('annotations: are boxes of MR, and this is CT')
    if not isinstance(source, CT) and given.offset:
      parser.error('--offset: is of CT, and this is MR')
    return 2 if verify(source, given.annotations) else 0
  except (DataError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2


if __name__ == '__main__':
  sys.exit(program.ended(main, sys.argv[1:], 'the same command begins again'))
