"""Kills runs at random moments and compares what they end with.

  python -m benchmarks.kills [--kills=100] [--seed=0] [--configs=unet_8x,...] [--minutes=60]

Every smoke profile runs once undisturbed. Then it runs again and is stopped a
few times at random moments, by `kill -9`, SIGTERM or Ctrl-C, and every other
time as two processes under `launch/local_processes.sh`, before it may finish.
Rows, metrics, costs, pictures and the report must be those of the undisturbed
run, up to the seconds that it took; no process and no temporary file may be left.
Prints every difference and the counts, and exits with 1 if there is one.
"""

import argparse
import collections
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIGNALS = {'kill -9': signal.SIGKILL, 'SIGTERM': signal.SIGTERM, 'Ctrl-C': signal.SIGINT}
TEMPORARY = ('*.tmp', '*.orbax-checkpoint-tmp*', 'index-*.json.*', '.write-*')
# A shell's background jobs inherit an ignored SIGINT.
LISTENING = 'import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])'


def start(config, workdir, processes):
  arguments = [f'--config=configs/{config}.py:smoke', f'--workdir={workdir}']
  command = ['bash', 'launch/local_processes.sh'] if processes > 1 else [sys.executable, '-m', 'jaxrec.main']
  env = {k: v for k, v in os.environ.items() if k not in ('FASTMRI_ROOT', 'LDCT_ROOT')}
  env |= {'PYTHONPATH': str(ROOT), 'PYTHON': sys.executable, 'PROCESSES': str(processes)}
  return subprocess.Popen(
    [sys.executable, '-c', LISTENING, *command, *arguments], cwd=ROOT, env=env, stdout=subprocess.DEVNULL,
    stderr=open(f'{workdir}.err', 'ab'), start_new_session=True,
  )  # fmt: skip


def of(workdir):
  """Processes that name a folder."""
  found = []
  for path in Path('/proc').glob('[0-9]*/cmdline'):
    try:
      words = path.read_bytes().split(b'\0')
    except OSError:
      continue
    if f'--workdir={workdir}'.encode() in words:
      found.append(int(path.parent.name))
  return found


def seen(path):
  """A file without what differs from run to run: seconds, dates, folders."""
  if path.suffix == '.csv':
    with open(path, newline='') as stream:
      return [{k: v for k, v in row.items() if 'seconds' not in k} for row in csv.DictReader(stream)]
  if path.suffix == '.h5':
    import h5py

    found = {}
    with h5py.File(path) as file:
      file.visititems(
        lambda name, item: found.update({name: item[()].tobytes()}) if isinstance(item, h5py.Dataset) else None
      )
    return found
  if path.name == 'cost.json':
    return {k: v for k, v in json.loads(path.read_text()).items() if k not in ('seconds', 'waited')}
  if path.suffix == '.html':
    # Pictures are compared as numbers, in images.h5; their axes can hold seconds.
    text = re.sub(r'src="data:[^"]*"', '', path.read_text())
    text = re.sub(r'/[^\s"<>]*/(whole|killed)', '', text)
    return re.sub(r'[\d.,]+ (s|seconds|minutes|hours|ms)\b', '', text)
  return path.read_bytes()


def differences(whole, killed):
  names = {
    p.relative_to(root)
    for root in (whole, killed)
    for pattern in (
      'results.csv',
      'metrics.jsonl',
      'cost.json',
      'images.h5',
      'report.html',
      'invariances.csv',
      'detectability.csv',
      'summary.csv',
    )
    for p in root.rglob(pattern)
  }
  for name in sorted(names):
    missing = [root.name for root in (whole, killed) if not (root / name).exists()]
    if missing:
      yield f'{name}: is missing in {missing[0]}'
    elif seen(whole / name) != seen(killed / name):
      yield f'{name}: differs'
  for pattern in TEMPORARY:
    for left in killed.rglob(pattern):
      yield f'{left.relative_to(killed)}: is left'


def until_gone(workdir, seconds=15):
  end = time.monotonic() + seconds
  while of(workdir) and time.monotonic() < end:
    time.sleep(0.5)
  return of(workdir)


def attempt(config, folder, rng, kills, counts):
  """Differences after `kills` interruptions of one config."""
  processes = 1 + attempt.number % 2
  attempt.number += 1
  whole, killed = folder / f'whole-{processes}' / 'whole', folder / f'killed-{processes}' / 'killed'
  wrong = []
  whole.parent.mkdir(parents=True, exist_ok=True)
  began = time.monotonic()
  if start(config, whole, processes).wait() != 0:
    return [f'the undisturbed run failed: {Path(f"{whole}.err").read_text()[-300:]}']
  lasts = time.monotonic() - began
  killed.parent.mkdir()
  done = 0
  while done < kills:
    name = rng.choice(list(SIGNALS))
    process = start(config, killed, processes)
    moment = time.monotonic() + rng.uniform(0.02, 0.9) * lasts
    while time.monotonic() < moment and process.poll() is None:
      time.sleep(0.1)
    if process.poll() is not None:
      if process.returncode:
        wrong.append(f'ended with {process.returncode} after {done} kills: {Path(f"{killed}.err").read_text()[-300:]}')
      break
    # Of two processes, every third time one worker, else the launcher.
    workers = [p for p in of(killed) if p != process.pid]
    target = rng.choice(workers) if processes > 1 and workers and rng.random() < 1 / 3 else process.pid
    os.kill(target, SIGNALS[name])
    done += 1
    counts[f'{name}, {processes} process{"es" * (processes > 1)}'] += 1
    process.wait()
    left = until_gone(killed)
    if left:
      wrong.append(f'{name}: processes {left} are left')
      for pid in left:
        os.kill(pid, signal.SIGKILL)
  process = start(config, killed, processes)
  if process.wait() != 0:
    wrong.append(f'does not end well after {done} kills: {Path(f"{killed}.err").read_text()[-300:]}')
  said = Path(f'{killed}.err').read_text()
  if 'Traceback' in said:
    wrong.append(f'a traceback: {said[said.index("Traceback") :][:500]}')
  return wrong + list(differences(whole, killed))


attempt.number = 0


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--kills', type=int, default=100)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--configs', default='')
  parser.add_argument('--minutes', type=float, default=1e9, help='begin no config after so long')
  given = parser.parse_args()
  configs = given.configs.split(',') if given.configs else sorted(
    p.stem for p in (ROOT / 'configs').glob('*.py') if 'def get_config' in p.read_text()
  )  # fmt: skip
  rng, counts, failed = random.Random(given.seed), collections.Counter(), 0
  each, end = -(-given.kills // len(configs)), time.monotonic() + 60 * given.minutes
  with tempfile.TemporaryDirectory() as folder:
    for config in configs:
      if time.monotonic() > end:
        break
      before = sum(counts.values())
      wrong = attempt(config, Path(folder) / config, rng, each, counts)
      failed += bool(wrong)
      print(f'{config}: {sum(counts.values()) - before} kills; {"; ".join(wrong) or "identical"}', flush=True)
      shutil.rmtree(Path(folder) / config, ignore_errors=True)
  print(
    f'{sum(counts.values())} kills ({", ".join(f"{n} {k}" for k, n in sorted(counts.items()))}), {failed} configs with differences'
  )
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
