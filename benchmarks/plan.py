"""Makes the table of docs/accelerators.md: what the experiments take on devices that need not be here.

  python -m benchmarks.plan [--configs varnet_8x varnet_8x_full] [--targets h100 rtx4090 rtx2080ti] [--programs train coil_noise rotation]

Compiles, and runs nothing; needs the extras cuda and tpu. Each config, target and
program is compiled in a process of its own and its row goes to
`docs/numbers/plan.csv` in place of an earlier one, so that a table can be made
over several days. Cards take up to two minutes per program, TPUs up to eight.
"""

import argparse
import csv
import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = ROOT / 'docs' / 'numbers' / 'plan.csv'
KEY = ('config', 'program', 'target')


def rows_of(config, target, program, overrides):
  """Rows of `plan.csv` of one run of the plan stage."""
  with tempfile.TemporaryDirectory() as folder:
    command = [
      sys.executable, '-m', 'jaxrec.main', f'--config=configs/{config}.py', f'--workdir={folder}', '--config.stages=("plan",)',
      f'--config.plan.targets=("{target}",)', f'--config.plan.programs=("{program}",)', *overrides,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
      sys.exit(done.stderr.strip().splitlines()[-1])
    with open(Path(folder) / 'plan.csv') as stream:
      return list(csv.DictReader(stream))


def main():
  """Compiles what was asked for and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--configs', nargs='+', default=['varnet_8x', 'varnet_8x_full'])
  parser.add_argument('--targets', nargs='+', default=['h100', 'rtx4090', 'rtx2080ti', 'v5e:4x4', 'v5p:2x2x1'])
  parser.add_argument('--programs', nargs='+', default=['train', 'coil_noise', 'rotation'])
  parser.add_argument(
    'overrides', nargs='*', help='options of the config, such as --config.attack.batch_size=0, after --'
  )
  options = parser.parse_args()
  revision = subprocess.run(
    ['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, capture_output=True, text=True
  ).stdout.strip()
  for target in options.targets:
    for config in options.configs:
      for program in options.programs:
        for row in rows_of(config, target, program, options.overrides):
          row |= {'jax': importlib.metadata.version('jax'), 'revision': revision}
          print(row, flush=True)
          put(row)


def put(row):
  """Writes a row in the place of an earlier one."""
  rows = {}
  if TABLE.exists():
    with open(TABLE) as stream:
      rows = {tuple(r[k] for k in KEY): r for r in csv.DictReader(stream)}
  rows[tuple(row[k] for k in KEY)] = row
  with open(TABLE, 'w', newline='') as stream:
    writer = csv.DictWriter(stream, list(row), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows.values())


if __name__ == '__main__':
  main()
