"""Times this revision against an older one, in turns, on the same machine and data.

  python -m benchmarks.revisions [--old=8cf2e74 --new=HEAD --profile=demo --repeats=3 --steps=20 --work=rotation,attack,snippet]
  python -m benchmarks.revisions --profile=smoke --repeats=1 --steps=2     # to try it out

`rotation` is the rotation sweep of the quickstart's two networks (both aims, all
boxes), `attack` the whole of their attack stage, `snippet` the README's first result
in a notebook, compilation included. Each revision is checked out, trains its own networks for
`--steps` steps, and runs as users run it, in a process of its own. `quickstart`, if asked for, is all that the quickstart's command does, from
nothing: phantom, compilation, training, attack and report. Of the stages, `compute` adds
up the seconds of the rows and `stage` is the whole process; what XLA compiled is kept
from a first run that is not counted, so neither holds it. Prints medians, and appends
them to benchmarks/results/revisions.jsonl.
"""

import argparse
import csv
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import common

ROOT = Path(__file__).parents[1]
NETWORKS = ('unet', 'varnet')

# Runs under both revisions: the quickstart with one of its perturbations or with all.
CONFIG = """
from configs import quickstart


def get_config(arg=''):
  profile, _, only = arg.partition(',')
  config = quickstart.get_config(profile)
  config.stages = ('attack',)  # Of the comparison itself: nothing is left to do.
  for experiment in config.experiments.values():
    for name in list(experiment.perturbation) if only else ():
      if name != only:
        del experiment.perturbation[name], experiment.search[name]
    if 'plan' in experiment:
      experiment.plan.programs = ('train', *experiment.perturbation)
  return config
"""


class Side:
  """A revision in a folder of its own.

  Args:
    revision: as git knows it.
    folder: for the checkout and all that it makes.
  """

  def __init__(self, revision: str, folder: Path):
    self.revision = git('rev-parse', '--short', revision)
    self.folder, self.tree = folder, folder / 'tree'
    folder.mkdir()
    git('worktree', 'add', '--detach', str(self.tree), revision)
    self.count = 0

  def close(self) -> None:
    """Removes the checkout."""
    git('worktree', 'remove', '--force', str(self.tree))

  def environment(self, cached: bool) -> dict[str, str]:
    """Variables of a process in the checkout, with a cache of what XLA compiled or without one."""
    kept = {
      'JAX_COMPILATION_CACHE_DIR': str(self.folder / 'compiled'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    env = {k: v for k, v in os.environ.items() if k not in ('FASTMRI_ROOT', 'JAX_COMPILATION_CACHE_DIR')}
    return env | {'PYTHONPATH': str(self.tree), **(kept if cached else {})}

  def run(self, *arguments: str, cached: bool = True) -> float:
    """Seconds of a Python process in the checkout."""
    start = time.perf_counter()
    env = self.environment(cached)
    done = subprocess.run([sys.executable, *arguments], cwd=self.tree, env=env, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
      sys.exit(f'{self.revision}: {" ".join(arguments)[:200]}: {done.stderr[-2000:]}')
    return seconds

  def launch(self, config: str, workdir: Path, data: Path, stage: str, **options: str) -> float:
    """Runs one stage of both networks."""
    given = [f'--config.data.root={data}', f'--config.data.annotations={data / "annotations.csv"}']
    for name in NETWORKS:
      given.append(f'--config.experiments.{name}.stages=("{stage}",)')
      given += [f'--config.experiments.{name}.{option}={value.format(name)}' for option, value in options.items()]
    return self.run('-m', 'jaxrec.main', f'--config={config}', f'--workdir={workdir}', *given)

  def attack(self, config: str, data: Path) -> dict[str, float]:
    """Attacks the trained networks anew."""
    self.count += 1
    workdir = self.folder / f'attack-{self.count}'
    stage = self.launch(config, workdir, data, 'attack', **{'model.checkpoint': str(self.folder / 'trained') + '/{}'})
    rows = []
    for name in NETWORKS:
      with open(workdir / name / 'results.csv') as stream:
        rows += list(csv.DictReader(stream))
    places = {(r['file'], r['slice'], r['annotation'], r['attacked']) for r in rows}
    slices = {(r['file'], r['slice']) for r in rows}
    return {'compute': sum(float(r['seconds']) for r in rows), 'stage': stage, 'rows': len(rows), 'places': len(places), 'slices': len(slices)}  # fmt: skip

  def quickstart(self, profile: str) -> dict[str, float]:
    """The whole command."""
    self.count += 1
    return {'whole': self.run('-m', 'jaxrec.main', f'--config=configs/quickstart.py:{profile}', f'--workdir={self.folder / f"quickstart-{self.count}"}', cached=False)}  # fmt: skip

  def snippet(self) -> dict[str, float]:
    """The README's example up to the first number that it prints, and to the end of the process, which a notebook has not."""
    text = (self.tree / 'README.md').read_text().partition('## In a notebook')[2]
    code = re.search(r'```python\n(.*?^print\(.*?)\n', text, re.DOTALL | re.MULTILINE)[1]
    start = time.perf_counter()
    command = [sys.executable, '-u', '-c', code]
    with (
      tempfile.TemporaryFile('w+') as errors,
      subprocess.Popen(
        command, cwd=self.tree, env=self.environment(False), stdout=subprocess.PIPE, stderr=errors, text=True
      ) as process,
    ):
      line = process.stdout.readline()
      seconds = time.perf_counter() - start
      if process.wait() or not line.strip():
        errors.seek(0)
        sys.exit(f"{self.revision}: the README's example: {errors.read()[-2000:]}")
    return {'first_result': seconds, 'process': time.perf_counter() - start}


def git(*arguments: str) -> str:
  """Output of git in this repository."""
  return subprocess.run(['git', *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def compare(work: str, sides: dict[str, Side], options: argparse.Namespace, folder: Path) -> dict[str, list[dict]]:
  """Results of all repeats by side; of stages the first, which compiles, is left out."""
  data = folder / 'data'
  config = f'{folder / "timed.py"}:{options.profile}' + (',rotation' if work == 'rotation' else '')
  found: dict[str, list[dict]] = {name: [] for name in sides}
  fresh = {'snippet': lambda side: side.snippet(), 'quickstart': lambda side: side.quickstart(options.profile)}.get(
    work
  )
  for repeat in range(options.repeats + (fresh is None)):
    for name, side in sides.items():
      got = fresh(side) if fresh else side.attack(config, data)
      print(f'{work} {repeat} {name} ({side.revision}): {got}', flush=True)
      if fresh or repeat:
        found[name].append(got)
  return found


def report(work: str, found: dict[str, list[dict]], sides: dict[str, Side], options: argparse.Namespace) -> None:
  """Prints medians and ratios and appends them to the results."""
  from jaxrec.results import processor

  medians = {name: {k: float(np.median([r[k] for r in rows])) for k in rows[0]} for name, rows in found.items()}
  ratios = {
    k: medians['old'][k] / medians['new'][k]
    for k in ('compute', 'stage', 'first_result', 'process', 'whole')
    if k in medians['new']
  }
  for k, ratio in ratios.items():
    print(f'{work}: {k} {medians["old"][k]:.2f} s before, {medians["new"][k]:.2f} s now: {ratio:.2f} times as fast')
  line = {
    'work': work, 'profile': options.profile, 'revisions': {n: s.revision for n, s in sides.items()}, 'medians': medians,
    'times': found, 'ratios': ratios, 'device': common.device(), 'processor': processor(), 'python': sys.version.split()[0],
    'versions': {p: importlib.metadata.version(p) for p in ('jax', 'jaxlib', 'flax', 'numpy')}, 'date': time.strftime('%Y-%m-%d'),
  }  # fmt: skip
  common.RESULTS.mkdir(exist_ok=True)
  with open(common.RESULTS / 'revisions.jsonl', 'a') as stream:
    stream.write(json.dumps(line) + '\n')


def main() -> None:
  """Checks out, trains, and compares."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--old', default='8cf2e74')
  parser.add_argument('--new', default='HEAD')
  parser.add_argument('--profile', default='demo', choices=('demo', 'smoke'))
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--steps', type=int, default=20)
  parser.add_argument('--work', default='rotation,attack,snippet')
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder, sides = Path(name), {}
    try:
      for side in ('old', 'new'):
        sides[side] = Side(getattr(options, side), folder / side)
      (folder / 'timed.py').write_text(CONFIG)
      works = options.work.split(',')
      if {'rotation', 'attack'} & set(works):
        sizes = '' if options.profile == 'demo' else ', slices=2, rows=48, cols=48, coils=2'
        # Boxes and masks follow from the files: both revisions read the same.
        sides['new'].run(
          '-c',
          f'from jaxrec.data import synthetic; synthetic.write_dataset({str(folder / "data")!r}, train=4, val=6{sizes})',
        )
        for side in sides.values():
          config = f'{folder / "timed.py"}:{options.profile}'
          side.launch(
            config, side.folder / 'trained', folder / 'data', 'train', **{'train.num_steps': str(options.steps)}
          )
      for work in works:
        report(work, compare(work, sides, options, folder), sides, options)
    finally:
      for side in sides.values():
        side.close()


if __name__ == '__main__':
  main()
