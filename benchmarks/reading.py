"""Measures how fast volumes of fastMRI's size are read: index, first batch, rate per worker, memory.

  python -m benchmarks.reading [--folder=/tmp/reading --keep=10 --most=973 --batch=4 --seconds=30]

Writes as many volumes of true size and mixed shapes as the disk of the folder
holds beside `keep` GB, reads them as a training does, and deletes them. Their
slices are one phantom, scaled, and volumes of a shape are copies: what is in
them does not matter to a reader. Where other programs compute at the same time
(`load`), the seconds of a processor that a slice takes tell more than the rate.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import sys
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
from absl import flags

from benchmarks import common

SLICES = 36
# Coils, rows, columns and target of the volumes, in turns: knees of two widths, brains of two coil arrays.
SHAPES = (
  ((15, 640, 368), (320, 320)),
  ((15, 640, 372), (320, 320)),
  ((16, 640, 320), (320, 320)),
  ((20, 640, 320), (320, 320)),
)


def write(folder, most, keep):
  """Volumes in `folder/multicoil_train`; their number and their bytes."""
  from jaxrec.data import synthetic

  place = folder / 'multicoil_train'
  place.mkdir(parents=True)
  drawn, total = {}, 0
  for number in range(most):
    shape, crop = SHAPES[number % len(SHAPES)]
    size = SLICES * (8 * int(np.prod(shape)) + 4 * int(np.prod(crop)))
    if shutil.disk_usage(folder).free - size < keep * 1e9:
      return number, total
    if shape not in drawn:
      coils, rows, cols = shape
      drawn[shape] = synthetic.scan(0, rows=rows, cols=cols, coils=coils, acceleration=8)
    path = place / f'file{number:04d}.h5'
    if number < len(SHAPES):
      _write_volume(path, drawn[shape], crop)
    else:
      shutil.copyfile(place / f'file{number % len(SHAPES):04d}.h5', path)
    total += size
  return most, total


def _write_volume(path, scan, crop):
  from jaxrec.data import synthetic
  from jaxrec.data.singlecoil import centred_images
  from jaxrec.geometry import center_crop

  coils, rows, cols = scan.kspace.shape
  combined = np.sqrt((np.abs(centred_images(scan.kspace)) ** 2).sum(0))
  target = np.asarray(center_crop(combined, crop), np.float32)
  header = synthetic._HEADER.format(
    coils=coils, rows=rows, cols=cols, out_rows=crop[0], out_cols=crop[1], maximum=cols - 1, center=cols // 2
  )
  with h5py.File(path, 'w') as file:
    kspace = file.create_dataset('kspace', (SLICES, coils, rows, cols), np.complex64)
    recon = file.create_dataset('reconstruction_rss', (SLICES, *crop), np.float32)
    for s in range(SLICES):
      kspace[s], recon[s] = (1 + s) * np.asarray(scan.kspace), (1 + s) * target
    file['ismrmrd_header'] = header.encode()
    file.attrs.update(max=float(SLICES * target.max()), norm=1.0, patient_id=path.stem, acquisition='PHANTOM_PD')


def used():
  """Resident memory in GB and seconds of processors, of this process and of its children."""
  pids, total, ticks = [os.getpid()], 0, 0
  for pid in pids:
    try:
      total += int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
      ticks += sum(int(n) for n in Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[11:13])
      pids += [int(p) for task in Path(f'/proc/{pid}/task').iterdir() for p in (task / 'children').read_text().split()]
    except (OSError, ValueError):
      continue
  return total / 1e9, ticks / os.sysconf('SC_CLK_TCK')


def read(examples, reader, workers, batch, seconds):
  """Seconds to the first batch; after it, rates, and memory at a quarter of the time and at its end."""
  from jaxrec.data import loader

  start = time.perf_counter()
  stream = loader.training_batches(examples, reader, batch, seed=workers, workers=workers)
  next(stream)
  first = time.perf_counter()
  slices, size, early, before = 0, 0, None, used()[1]
  while (now := time.perf_counter()) - first < seconds:
    if early is None and now - first > seconds / 4:
      early = used()[0]
    made = next(stream)
    slices, size = slices + batch, size + made.kspace.nbytes
  took, (late, after) = time.perf_counter() - first, used()
  return {
    'first_batch_seconds': first - start, 'slices_per_second': slices / took, 'gb_per_second': size / took / 1e9,
    'processor_seconds_per_slice': (after - before) / slices, 'memory_gb_early': early, 'memory_gb_late': late,
  }  # fmt: skip


def main(arguments):
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--folder', type=Path, default=Path('/tmp/reading'))
  parser.add_argument('--keep', type=float, default=10.0)
  parser.add_argument('--most', type=int, default=973)
  parser.add_argument('--batch', type=int, default=4)
  parser.add_argument('--seconds', type=float, default=30.0)
  given = parser.parse_args(arguments)
  if given.folder.exists():
    parser.error(f'--folder: {given.folder} exists; it is deleted afterwards, so give another one')
  try:
    _measure(given)
  finally:
    shutil.rmtree(given.folder, ignore_errors=True)


def _measure(given):
  from configs import varnet_8x
  from jaxrec.data import fastmri, loader
  from jaxrec.experiments import build
  from jaxrec.workflows import datasets

  warnings.simplefilter('ignore')
  # Grain's worker processes read flags, which a launcher would have parsed.
  flags.FLAGS(sys.argv[:1])
  start = time.perf_counter()
  volumes, size = write(given.folder, given.most, given.keep)
  print(f'{volumes} volumes, {size / 1e9:.1f} GB, written in {time.perf_counter() - start:.0f} s')
  config = varnet_8x.get_config('')
  config.data.root = str(given.folder)
  reader = datasets.reader(build.data(config), redraw=True)
  times = {}
  for name in ('index_seconds', 'cached_index_seconds'):
    start = time.perf_counter()
    found = fastmri.index(given.folder / 'multicoil_train', cache=given.folder / 'index.json')
    times[name] = time.perf_counter() - start
  examples = loader.slices_of(found.volumes)
  lines = []
  for workers in (0, 1, 2):
    line = {
      'volumes': volumes, 'slices': len(examples), 'gb': size / 1e9, 'shapes': len(SHAPES), 'batch': given.batch, 'workers': workers,
      **times, **read(examples, reader, workers, given.batch, given.seconds),
      'memory_of_machine_gb': os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9, 'device': common.device(),
      'load': os.getloadavg()[0], 'versions': {p: importlib.metadata.version(p) for p in ('jax', 'grain', 'h5py', 'numpy')},
      'date': time.strftime('%Y-%m-%d'),
    }  # fmt: skip
    print({k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()})
    lines.append(line)
  common.RESULTS.mkdir(exist_ok=True)
  with open(common.RESULTS / 'reading.jsonl', 'a') as stream:
    stream.writelines(json.dumps(line) + '\n' for line in lines)


if __name__ == '__main__':
  main(sys.argv[1:])
