"""What bfloat16 networks lose: clean SSIM, and the harm that attacks find, on a small phantom.

  python -m benchmarks.precision [--folder=/tmp/precision --steps=150]

Each network of the quickstart is trained in float32 and in bfloat16, and the
weights trained in float32 are also used in bfloat16. Another start in float32
says how much two trainings differ by themselves. Writes
`docs/numbers/bfloat16.csv`; finished runs in the folder are not run again.
"""

import argparse
import importlib
import importlib.metadata
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import common

OUT = Path(__file__).parents[1] / 'docs' / 'numbers' / 'bfloat16.csv'
NAMES = {'unet_8x': 'U-Net', 'varnet_8x': 'E2E-VarNet'}
ETA = 0.025
# Trained in, used in, seed.
RUNS = (
  ('float32', 'float32', 0), ('float32', 'bfloat16', 0), ('bfloat16', 'bfloat16', 0), ('float32', 'float32', 1),
)  # fmt: skip


def config_of(name, steps, *, dtype, seed, checkpoint=''):
  """The demo profile on a smaller phantom, attacked by noise alone."""
  config = importlib.import_module(f'configs.{name}').get_config('demo')
  config.data.phantom.update(train=12, val=8, slices=2, rows=64, cols=64)
  config.train.update(num_steps=steps, validate_every=steps, report_every=50, pictures=0)
  config.model.update(dtype=dtype, checkpoint=checkpoint)
  config.seed = seed
  config.stages = ('attack',) if checkpoint else ('train', 'attack')
  del config.perturbation.rotation
  config.perturbation.coil_noise.relative_radius = (0.0, ETA)
  config.attack.update(attacked=('region',), max_examples=8, pictures=0, batch_size=4)
  return config


def rows(folder):
  """SSIM in the box, clean and attacked, by example."""
  from jaxrec import results

  found = [row for row in results.read_csv(folder / 'results.csv') if float(row['strength']) == ETA]
  return {
    (r['file'], r['slice'], r['annotation']): (float(r['ssim_region_clean']), float(r['ssim_region_adv']))
    for r in found
  }


def main(arguments):
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--folder', type=Path, default=Path('/tmp/precision'))
  parser.add_argument('--steps', type=int, default=150)
  given = parser.parse_args(arguments)
  from jaxrec import results
  from jaxrec.experiments.run import run

  lines = []
  for name, title in NAMES.items():
    reference = None
    for trained, used, seed in RUNS:
      folder = given.folder / f'{name}-{trained}-{used}{f"-{seed}" if seed else ""}'
      origin = '' if trained == used else str(given.folder / f'{name}-{trained}-{trained}')
      run(config_of(name, given.steps, dtype=used, seed=seed, checkpoint=origin), folder)
      found = rows(folder)
      reference = reference or found
      values, apart = (
        np.array(list(found.values())),
        np.array([found[k] for k in reference]) - np.array([*reference.values()]),
      )
      lines.append({
        'network': title, 'trained': trained, 'used': used, 'seed': seed, 'steps': given.steps, 'examples': len(found), 'eta': ETA,
        'clean': values[:, 0].mean(), 'attacked': values[:, 1].mean(), 'harm': (values[:, 0] - values[:, 1]).mean(),
        'largest_clean_difference': abs(apart[:, 0]).max(), 'largest_attacked_difference': abs(apart[:, 1]).max(),
        'command': 'python -m benchmarks.precision', 'revision': results.git_revision(), 'device': common.device(),
        'jax': importlib.metadata.version('jax'), 'date': time.strftime('%Y-%m-%d'),
      })  # fmt: skip
      print(lines[-1], flush=True)
  results.write_csv(OUT, list(lines[0]), [line.values() for line in lines])


if __name__ == '__main__':
  main(sys.argv[1:])
