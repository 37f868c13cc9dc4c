"""Kills runs at random moments and compares what they end with.

  python -m benchmarks.kills [--kills=100] [--seed=0] [--configs=unet_8x,invariances_networks:2] [--minutes=60]

Every smoke profile runs once undisturbed. Then it runs again and is stopped a
few times at random moments, by `kill -9`, SIGTERM or Ctrl-C, and every other
config as two processes under `launch/local_processes.sh`, before it may finish.
Rows, metrics, costs, pictures and the report must be those of the undisturbed
run, up to the seconds that it took; no process and no temporary file may be left.
All runs share one folder of compiled programs. What was tried is added to
benchmarks/results/kills.jsonl, and the same command goes on from there. Prints
every difference and the counts, and exits with 1 if there is one.
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
RESULT = ROOT / 'benchmarks' / 'results' / 'kills.jsonl'
SECONDS = 1800


def start(config, workdir, processes, compiled):
  arguments = [f'--config=configs/{config}.py:smoke', f'--workdir={workdir}']
  command = ['bash', 'launch/local_processes.sh'] if processes > 1 else [sys.executable, '-m', 'jaxrec.main']
  env = {k: v for k, v in os.environ.items() if k not in ('FASTMRI_ROOT', 'LDCT_ROOT')}
  env |= {'PYTHONPATH': str(ROOT), 'PYTHON': sys.executable, 'PROCESSES': str(processes)}
  env |= {'JAX_COMPILATION_CACHE_DIR': str(compiled), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  with open(f'{workdir}.err', 'ab') as err:
    return subprocess.Popen(
      [*command, *arguments], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=err, start_new_session=True,
      # A shell's background jobs inherit an ignored SIGINT.
      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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


def first(one, other):
  """Where two contents differ first."""
  if isinstance(one, dict):
    one, other = sorted(one.items()), sorted(other.items())
  if isinstance(one, (str, bytes)):
    at = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    return f' at {one[max(at - 60, 0) : at + 60]!r} and {other[max(at - 60, 0) : at + 60]!r}'
  if len(one) != len(other):
    return f': {len(one)} and {len(other)} entries'
  a, b = next((a, b) for a, b in zip(one, other) if a != b)
  return f': {[(k, a[k], b[k]) for k in a if a[k] != b.get(k)] if isinstance(a, dict) else a[0]}'


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
    elif (one := seen(whole / name)) != (other := seen(killed / name)):
      yield f'{name}: differs{first(one, other)}'
  for pattern in TEMPORARY:
    for left in killed.rglob(pattern):
      yield f'{left.relative_to(killed)}: is left'


def until_gone(workdir, seconds=15):
  end = time.monotonic() + seconds
  while of(workdir) and time.monotonic() < end:
    time.sleep(0.5)
  return of(workdir)


def attempt(config, processes, folder, rng, kills):
  """Which kills there were until the run came to its end, at most so many, and what is wrong then."""
  # Each with a phantom of its own, which lies beside the run.
  whole, killed, compiled = folder / 'one' / 'whole', folder / 'other' / 'killed', folder.parent / 'compiled'
  if not (folder / 'lasts').exists():
    whole.parent.mkdir(parents=True)
    # Not the first one, which compiles what the others find.
    for _ in range(2):
      shutil.rmtree(whole, ignore_errors=True)
      began = time.monotonic()
      if start(config, whole, processes, compiled).wait(SECONDS) != 0:
        return {}, [f'the undisturbed run failed: {Path(f"{whole}.err").read_text()[-300:]}']
    (folder / 'lasts').write_text(str(time.monotonic() - began))
  lasts = float((folder / 'lasts').read_text())
  shutil.rmtree(killed.parent, ignore_errors=True)
  killed.parent.mkdir()
  wrong, counts = [], collections.Counter()
  while sum(counts.values()) < kills:
    name = rng.choice(list(SIGNALS))
    process = start(config, killed, processes, compiled)
    moment = time.monotonic() + rng.uniform(0.02, 0.9) * lasts
    while time.monotonic() < moment and process.poll() is None:
      time.sleep(0.1)
    if process.poll() is not None:
      break
    # Of two processes, every third time one worker, else the launcher.
    workers = [p for p in of(killed) if p != process.pid]
    target = rng.choice(workers) if processes > 1 and workers and rng.random() < 1 / 3 else process.pid
    os.kill(target, SIGNALS[name])
    counts[name] += 1
    process.wait(SECONDS)
    left = until_gone(killed)
    if left:
      wrong.append(f'{name}: processes {left} are left')
      for pid in left:
        os.kill(pid, signal.SIGKILL)
  else:
    process = start(config, killed, processes, compiled)
  if process.wait(SECONDS) != 0:
    wrong.append(f'does not end well: {Path(f"{killed}.err").read_text()[-300:]}')
  said = Path(f'{killed}.err').read_text()
  if 'Traceback' in said:
    wrong.append(f'a traceback: {said[said.index("Traceback") :][:1500]}')
  return counts, wrong + list(differences(whole, killed))


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--kills', type=int, default=100)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--configs', default='', help='names, each with how many kills after a colon if not its share')
  parser.add_argument('--minutes', type=float, default=1e9, help='begin no run after so long')
  given = parser.parse_args()
  names = given.configs.split(',') if given.configs else sorted(
    p.stem for p in (ROOT / 'configs').glob('*.py') if 'def get_config' in p.read_text()
  )  # fmt: skip
  own = {name: int(kills) for name, _, kills in (n.partition(':') for n in names) if kills}
  configs = [n.partition(':')[0] for n in names]
  share = -(-max(given.kills - sum(own.values()), 0) // max(len(configs) - len(own), 1))
  RESULT.parent.mkdir(exist_ok=True)
  lines = [json.loads(line) for line in RESULT.read_text().splitlines()] if RESULT.exists() else []
  end = time.monotonic() + 60 * given.minutes
  with tempfile.TemporaryDirectory() as folder:
    for number, config in enumerate(configs):
      processes = 1 + number % 2
      while time.monotonic() < end:
        mine = [line for line in lines if (line['config'], line['processes']) == (config, processes)]
        missing = own.get(config, share) - sum(sum(line['kills'].values()) for line in mine)
        if missing <= 0:
          break
        rng = random.Random(f'{given.seed} {config} {len(mine)}')
        counts, wrong = attempt(config, processes, Path(folder) / config, rng, missing)
        lines.append({'config': config, 'processes': processes, 'kills': counts, 'wrong': wrong})
        with open(RESULT, 'a') as stream:
          stream.write(f'{json.dumps(lines[-1])}\n')
        print(f'{config}, {processes}: {dict(counts)}; {"; ".join(wrong) or "identical"}', flush=True)
        if not counts and wrong:
          break
      shutil.rmtree(Path(folder) / config, ignore_errors=True)
  total = collections.Counter()
  for line in lines:
    for name, count in line['kills'].items():
      total[f'{name}, {line["processes"]} process{"es" * (line["processes"] > 1)}'] += count
  failed = sum(bool(line['wrong']) for line in lines)
  said = ', '.join(f'{n} {k}' for k, n in sorted(total.items()))
  print(
    f'{sum(total.values())} kills ({said}), {len({line["config"] for line in lines})} configs, {failed} of {len(lines)} runs with differences'
  )
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
