"""Feeds the programs what nobody should: wrong options, damaged files.

  python -m benchmarks.fuzz [--cases=5000] [--seed=0] [--kinds=options,hdf5,...] [--deep=40]

Every case ends in one of two ways: what was given is used, or it is refused by
an error of ours in one line that names it. Anything else is a fault: another
error, more than 20 s (of its own, on a busy machine), more than 4 GiB, a death of the process, a checkpoint or a
weight file that is read as something else than was written.

`options` sets one option of one smoke profile on the command line; each leaf of
each config in turn. `run` (as many as `--deep`) lets a run with an accepted
value go on to its end and looks at its rows. The other kinds damage a file:
flipped bits, cut, zeroed, doubled or foreign bytes, changed numbers in texts.
Prints counts and every fault, and exits with 1 if there is one.
"""

import argparse
import collections
import contextlib
import importlib
import io
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

SECONDS, MEMORY = 20, 4 << 30
ROOT = Path(__file__).parents[1]
VALUES = (
  '0', '1', '2', '3', '-1', '-2', '1000000000', '2147483647', '4294967296', '1e30', '-1e30', '0.0', '0.5', '1.0', '-0.5', '1e-30', 'nan', 'inf', '-inf',
  'True', 'False', 'None', '', 'foo', '../foo', '/nowhere', '()', '(0,)', '(-1,)', '(1,)', '(0.5,)', '(0.0,0.5)', '(1e30,)', '("a",)', '(None,)', '(1,"a")',
  '((1,),)', '{}', '[1,2]', '"x"', "'", 'é', 'x' * 300, 'pgd', 'varnet', 'linf', 'mse', 'train',
)  # fmt: skip


class Fault(Exception):
  """What must not happen."""


class Options:
  """One option of one smoke profile on the command line, as far as the experiment that it makes."""

  def __init__(self, folder, rng):
    from jaxrec.experiments import options

    self.folder, self.rng, self.leaves = folder, rng, []
    for path in sorted((ROOT / 'configs').glob('*.py')):
      module = importlib.import_module(f'configs.{path.stem}')
      if hasattr(module, 'get_config'):
        found = self._leaves(module.get_config('smoke'), options)
        self.leaves += [(path.stem, leaf) for leaf in found]
    self.rng.shuffle(self.leaves)
    self.cases = [(config, leaf, value) for value in VALUES for config, leaf in self.leaves]
    self.rng.shuffle(self.cases)
    # Every leaf once at least.
    self.cases = [(*leaf, self.rng.choice(VALUES)) for leaf in self.leaves] + self.cases

  def _leaves(self, config, options, prefix=''):
    yield from (f'{prefix}{name}' for name, _ in options.leaves(config))
    for name, inner in config.get('experiments', {}).items():
      yield from self._leaves(inner, options, f'{prefix}experiments.{name}.')

  def case(self, number):
    return self.cases[number % len(self.cases)]

  def describe(self, number):
    config, leaf, value = self.case(number)
    return f'{config} {leaf}={value}'

  def __call__(self, number):
    from jaxrec.experiments import build, options, run

    def checked_and_built(config, workdir):
      options.check(config, workdir)
      build.build(config, workdir)

    config, leaf, value = self.case(number)
    checked = run.run
    run.run = checked_and_built
    try:
      return main(
        [f'--config=configs/{config}.py:smoke', f'--workdir={self.folder}/runs/x', f'--config.{leaf}={value}'], leaf
      )
    finally:
      run.run = checked


class Runs(Options):
  """Runs to the end with accepted values; a data set and its training are shared."""

  CONFIGS = ('unet_8x', 'cnn10')

  def __init__(self, folder, rng):
    super().__init__(folder, rng)
    # What would only make a smoke run long is no fault.
    slow = (
      'phantom',
      'num_steps',
      'num_epochs',
      'draws',
      'num_restarts',
      'chans',
      'batch_size',
      'chunk',
      'workers',
      'name',
      'profile',
      'label',
      'patch',
      'crop',
    )
    wanted = [(c, leaf, v) for c, leaf, v in self.cases if c in self.CONFIGS and not any(s in leaf for s in slow)]
    self.cases = []
    for config, leaf, value in wanted:
      self.leaves, kept = [], self.cases
      self.cases = [(config, leaf, value)]
      accepted = Options.__call__(self, 0) == 'used'
      self.cases = kept + [(config, leaf, value)] * accepted
      if len(self.cases) == 200:
        break

  def __call__(self, number):
    config, leaf, value = self.case(number)
    # Named by its number, so that nothing is shared but the phantom.
    workdir = self.folder / 'deep' / str(number)
    outcome = main([f'--config=configs/{config}.py:smoke', f'--workdir={workdir}', f'--config.{leaf}={value}'], leaf)
    if outcome == 'used':
      check_rows(workdir)
    shutil.rmtree(workdir, ignore_errors=True)
    return outcome


def check_rows(workdir):
  from jaxrec import results

  if not (workdir / 'config.json').exists():
    raise Fault('ended with 0 and left no config.json')
  stages = json.loads((workdir / 'config.json').read_text())['stages']
  rows = list(results.read_rows(workdir).values())
  if 'attack' in stages and not rows:
    raise Fault('ended with 0 and left no rows')
  for row in rows:
    numbers = {k: v for k, v in row.items() if isinstance(v, float)}
    wrong = [k for k, v in numbers.items() if not math.isfinite(v)]
    if wrong:
      raise Fault(f'{wrong[0]} is {numbers[wrong[0]]}')
    if not 0 <= row['budget_used'] <= 1 + 1e-5 or row['objective_adv'] < row['objective_clean'] - 1e-5 * abs(
      row['objective_clean']
    ):
      raise Fault(f'budget {row["budget_used"]}, objective {row["objective_clean"]} to {row["objective_adv"]}')


def main(arguments, option):
  """The launcher in this process: one line and exit code 2, or 0."""
  from absl import flags

  from jaxrec import main as launcher

  sys.argv = ['main', *arguments]
  flags.FLAGS.unparse_flags()
  for name in list(flags.FLAGS):
    if name.startswith('config.'):
      delattr(flags.FLAGS, name)
  flags.FLAGS['config'].value = flags.FLAGS['workdir'].value = None
  flags.FLAGS['config'].present = 0
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = launcher.main(['main', *arguments])
  lines = [line for line in err.getvalue().splitlines() if line.startswith('error: ')]
  if code not in (0, 2) or len(lines) != (code == 2) or 'Traceback' in err.getvalue():
    raise Fault(f'exit code {code}: {err.getvalue()[-300:]}')
  # What runs share is named by the first of them.
  if code == 2 and '.'.join(option.split('.')[-2:]) not in lines[0] and option.rsplit('.', 1)[0] not in lines[0]:
    raise Fault(f'the line does not name the option: {lines[0]}')
  return 'refused' if code else 'used'


def damage(content, rng, text=False):
  """Damaged copies of bytes."""
  content = bytearray(content)
  for _ in range(rng.choice((1, 1, 1, 2, 8))):
    at, size = rng.randrange(len(content) + 1), min(int(2 ** rng.uniform(0, 12)), max(len(content), 1))
    kind = rng.randrange(8 if text else 7)
    if kind == 0 and content:
      content[at % len(content)] ^= 1 << rng.randrange(8)
    elif kind == 1:
      del content[at:]
    elif kind == 2:
      content[at : at + size] = bytes(len(content[at : at + size]))
    elif kind == 3:
      content[at:at] = rng.randbytes(size)
    elif kind == 4:
      content[at : at + 8] = rng.choice((b'\xff' * 8, b'\xff' * 7 + b'\x7f', b'\0' * 7 + b'\x01', b'\x80' + b'\0' * 7))[
        : len(content[at : at + 8])
      ]
    elif kind == 5:
      content[at : at + size] = content[:size]
    elif kind == 6:
      del content[at : at + size]
    else:
      digits = [i for i, c in enumerate(content) if chr(c).isdigit()]
      if digits:
        i = rng.choice(digits)
        content[i : i + 1] = rng.choice(
          (b'-1', b'1e400', b'nan', b'', b'99999999999999999999', b'0.5', b'"', b'[', b'null', b'\x00')
        )
  return bytes(content)


class Files:
  """One good file, damaged anew in every case."""

  text = False

  def __init__(self, folder, rng):
    self.folder, self.rng = folder / type(self).__name__.lower(), rng
    self.folder.mkdir(parents=True)
    self.path = self.write()
    self.good = self.path.read_bytes()
    self.wanted = self.read()

  def describe(self, number):
    return f'{self.path.name}, seed {number}'

  def __call__(self, number):
    damaged = damage(self.good, random.Random(number), self.text)
    self.path.write_bytes(damaged)
    try:
      found = self.read()
    except self.errors() as error:
      line = str(error)
      if '\n' in line or self.path.name not in line and self.folder.name not in line:
        raise Fault(f'the line does not name the file, or is more than one: {line!r}') from None
      return 'refused'
    self.compare(found, damaged)
    return 'used'

  def errors(self):
    from jaxrec.data.errors import DataError

    return (DataError,)

  def compare(self, found, damaged):
    """Nothing to say where the format has no checksums."""


class Hdf5(Files):
  def write(self):
    from jaxrec.data import synthetic

    synthetic.write_dataset(self.folder, train=1, val=1, slices=2, rows=32, cols=32, coils=1)
    shutil.rmtree(self.folder / 'multicoil_train')
    return next((self.folder / 'multicoil_val').glob('*.h5'))

  def read(self):
    from jaxrec.data import fastmri
    from jaxrec.data.errors import DataError

    found = fastmri.index(self.path.parent)
    if found.bad:
      raise DataError(*found.bad.values())
    draw = fastmri.mask_drawer(kind='random', center_fractions=(0.2,), accelerations=(3,))
    for volume in found.volumes:
      for i in range(min(volume.shape[0], 3)):
        finite(fastmri.read_scan(volume, i, draw))


class Hdf5CT(Files):
  def write(self):
    from jaxrec.data import chest

    chest.write_dataset(self.folder, train=1, val=1, slices=1, repeats=2, pixels=32, nodules=1)
    return next((self.folder / 'val').glob('*.h5'))

  def read(self):
    from jaxrec.data import ldct
    from jaxrec.data.errors import DataError

    found = ldct.index(self.folder, 'val')
    if found.bad:
      raise DataError(*found.bad.values())
    for series in found.volumes:
      ldct.read_structures(series, 0)
      finite(ldct.read_slice(series, 0))


class Image(Files):
  def read(self):
    from jaxrec.data import ct_images

    ct_images.describe(self.path)
    finite(ct_images.read_file(self.path))


class Dicom(Image):
  def write(self):
    from tests.faults.test_denoise import dicom, image

    dicom(self.folder / 'a.dcm', image())
    return self.folder / 'a.dcm'


class Tiff(Image):
  def write(self):
    from PIL import Image as images

    from tests.faults.test_denoise import image

    images.fromarray(image()).save(self.folder / 'a.tif', compression='tiff_deflate')
    return self.folder / 'a.tif'


class Npy(Image):
  def write(self):
    import numpy as np

    np.save(self.folder / 'a.npy', np.zeros((12, 10), np.float32))
    return self.folder / 'a.npy'


class Csv(Files):
  text = True

  def write(self):
    from tests.unit.test_data import write_csv

    rows = [('v', i % 3, 'No', 4 + i, 5, 16, 17, 'cyst') for i in range(9)] + [
      ('w', 0, 'Yes', '', '', '', '', 'all, "of" it')
    ]
    return write_csv(self.folder / 'a.csv', rows)

  def read(self):
    from jaxrec.data import annotations, fastmri, loader

    volume = fastmri.Volume('v.h5', 'v', (3, 1, 48, 48), (48, 48), (0, 48), '', None, None, 'p', '')
    for example in loader.annotated([volume], annotations.read(self.path))[0]:
      region = example.region
      if not (
        0 <= region.row < region.row + region.height <= 48
        and 0 <= region.col < region.col + region.width <= 48
        and 0 <= example.slice < 3
      ):
        raise Fault(f'a box outside the image: {example}')


class Pt(Files):
  def write(self):
    import numpy as np

    from tests.faults.test_weights import Tensor, zipped

    values = np.arange(64, dtype='<f4').tobytes()
    path = self.folder / 'a.pt'
    path.write_bytes(
      zipped({'a.weight': Tensor((4, 4), (4, 1), count=64), 'a.bias': Tensor((8,), (2,), count=64, offset=16)}, values)
    )
    return path

  def read(self):
    from jaxrec.models import weights

    return weights.read_state_dict(self.path)

  def errors(self):
    from jaxrec.models import weights

    return (weights.WeightsError,)

  def compare(self, found, damaged):
    # The zip has checksums: whole tensors may be missing, none may be another.
    for name, value in found.items():
      if name not in self.wanted or value.shape != self.wanted[name].shape or (value != self.wanted[name]).any():
        raise Fault(f'{name} was read as something else')


class PtLegacy(Pt):
  """The format before zip archives, which has no checksums."""

  def write(self):
    from tests.faults.test_weights import GOOD, legacy

    path = self.folder / 'a.pt'
    path.write_bytes(legacy(GOOD))
    return path

  def compare(self, found, damaged):
    for value in found.values():
      if value.nbytes > 10 * len(damaged):
        raise Fault(f'a tensor of {value.nbytes} bytes')


class Json(Files):
  """Files of a run folder, which the launcher reads again."""

  text = True
  NAMES = ('config.json', 'provenance.json', 'cost.json', 'skipped-00000.json', 'rows/00000.jsonl', 'metrics.jsonl')

  def write(self):
    from tests.faults.test_run_folders import full_folder

    self.run = full_folder(self.folder / 'run')
    self.goods = {name: (self.run.folder / name).read_bytes() for name in self.NAMES}
    return self.run.folder / 'config.json'

  def __call__(self, number):
    for name, content in self.goods.items():
      (self.run.folder / name).write_bytes(content)
    name = self.NAMES[number % len(self.NAMES)]
    self.path, self.good = self.run.folder / name, self.goods[name]
    return super().__call__(number)

  def read(self):
    from jaxrec import results
    from jaxrec.experiments import build
    from jaxrec.reports import attacks, comparison
    from jaxrec.reports.source import Source

    build.stored(self.run.folder)
    Source(self.run.folder)
    attacks._bad_input(None, [self.run])
    comparison.cost_of(self.run.folder)
    rows = self.run.rows()
    results.read_jsonl(self.run.folder / 'metrics.jsonl')
    results.cut_metrics(self.run.folder / 'metrics.jsonl', 10)
    keys = [results.key_of(row) for row in rows]
    if len(keys) != len(set(keys)):
      raise Fault('doubled rows')

  def errors(self):
    from jaxrec import results

    return (results.RunError,)


class Patients(Files):
  """Which patients belong to which split."""

  text = True

  def write(self):
    from jaxrec.data import chest

    chest.write_dataset(self.folder / 'data', train=1, val=1, slices=1, repeats=1, pixels=32, nodules=1)
    self.data = self.folder / 'all'
    self.data.mkdir()
    for path in (self.folder / 'data').rglob('*.h5'):
      path.rename(self.data / path.name)
    path = self.folder / 'patients.json'
    path.write_text(json.dumps({'train': ['*'], 'val': [next(self.data.iterdir()).stem]}))
    return path

  def read(self):
    from jaxrec.data import ldct

    for split in ('train', 'val'):
      ldct.index(self.data, split, patients=self.path)


class Npz(Files):
  """Pictures of single examples."""

  def write(self):
    from tests.faults.test_run_folders import full_folder

    self.run = full_folder(self.folder / 'run')
    return self.run.folder / 'arrays/x.npz'

  def read(self):
    from jaxrec import results

    self.run.compact_arrays()
    with results.open_images(self.run.folder) as file:
      return file['x/image'][()] if 'x/image' in file else None

  def errors(self):
    from jaxrec import results

    return (results.RunError,)

  def compare(self, found, damaged):
    if found is not None and (found.shape != self.wanted.shape or (found != self.wanted).any()):
      raise Fault('a picture was read as something else')


class Checkpoint(Files):
  """A file of the newest of two checkpoints."""

  def write(self):
    import numpy as np

    from jaxrec import training

    self.state = {'w': np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32), 'step': np.int32(0)}
    checkpointer = training.Checkpointer(self.folder / 'checkpoints')
    for step in (3, 6):
      checkpointer.save_last(step, {**self.state, 'step': np.int32(step)})
    checkpointer.close()
    self.files = sorted(p for p in (self.folder / 'checkpoints/last/6').rglob('*') if p.is_file())
    self.goods = [p.read_bytes() for p in self.files]
    return self.files[0]

  def __call__(self, number):
    for path, content in zip(self.files, self.goods):
      path.write_bytes(content)
    which = number % len(self.files)
    self.path, self.good = self.files[which], self.goods[which]
    return super().__call__(number)

  def read(self):
    from jaxrec import training

    checkpointer = training.Checkpointer(self.folder / 'checkpoints')
    try:
      with contextlib.redirect_stderr(io.StringIO()):
        return checkpointer.latest_step(), checkpointer.restore(self.state)
    finally:
      checkpointer.close()

  def errors(self):
    from jaxrec import training

    return (training.CheckpointError,)

  def compare(self, found, damaged):
    step, state = found
    if (state['w'] != self.state['w']).any() or step != state['step'] or step not in (3, 6):
      raise Fault(f'step {step} was read as something else')


KINDS = {
  'options': Options, 'run': Runs, 'hdf5': Hdf5, 'hdf5ct': Hdf5CT, 'dicom': Dicom, 'tiff': Tiff, 'npy': Npy, 'csv': Csv, 'pt': Pt, 'ptlegacy': PtLegacy,
  'json': Json, 'patients': Patients, 'npz': Npz, 'checkpoint': Checkpoint,
}  # fmt: skip


def finite(sample):
  import jax
  import numpy as np

  for x in jax.tree.leaves(sample):
    if not np.isfinite(x).all():
      raise Fault('values that are not finite are used')


def work(kind, seed, folder, pipe):
  """Answers numbers of cases with outcomes."""
  warnings.simplefilter('ignore')
  os.chdir(ROOT)
  for name in ('FASTMRI_ROOT', 'LDCT_ROOT'):
    os.environ.pop(name, None)
  os.environ['TQDM_DISABLE'] = '1'
  target = KINDS[kind](Path(folder), random.Random(seed))
  if kind != 'run':
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
  pipe.send(len(target.cases) if kind == 'run' else math.inf)
  while True:
    number = pipe.recv()
    if number is None:
      return
    try:
      outcome = target(number)
    except Fault as fault:
      outcome = f'FAULT {fault}'
    except BaseException as error:
      at = traceback.extract_tb(error.__traceback__)[-1]
      outcome = f'FAULT {type(error).__name__}: {str(error)[:200]!r} at {at.filename}:{at.lineno}'
    pipe.send((outcome, target.describe(number)))


def answers(pipe, pid, seconds):
  """Whether a case ends within its time; on a busy machine, within so much time of its own."""
  began = cpu_seconds(pid)
  return pipe.poll(seconds) or any(pipe.poll(seconds) for _ in range(9) if cpu_seconds(pid) - began < seconds)


def cpu_seconds(pid):
  try:
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  except OSError:
    return 0.0
  return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def run(kind, cases, seed, folder):
  """Outcomes of a kind, and its faults."""
  context = multiprocessing.get_context('spawn')
  counts, faults, worker = collections.Counter(), [], None
  seconds = 600 if kind == 'run' else SECONDS
  for i in range(cases):
    if worker is None:
      shutil.rmtree(folder, ignore_errors=True)
      Path(folder).mkdir(parents=True)
      pipe, other = context.Pipe()
      worker = context.Process(target=work, args=(kind, seed, folder, other), daemon=True)
      worker.start()
      other.close()
      cases = min(cases, pipe.recv())
    if i >= cases:
      break
    number = seed * 1_000_003 + i if kind not in ('options', 'run') else i
    pipe.send(number)
    outcome = None
    try:
      if answers(pipe, worker.pid, seconds):
        outcome, said = pipe.recv()
      else:
        outcome, said = f'FAULT more than {seconds} s', f'seed {number}'
        raise EOFError
    except EOFError:
      worker.kill()
      worker.join()
      if outcome is None:
        outcome, said = f'FAULT the process died ({worker.exitcode})', f'seed {number}'
      worker = None
    fault = outcome.startswith('FAULT ')
    counts['fault' if fault else outcome] += 1
    if fault:
      faults.append(f'{kind}: {said}: {outcome[6:]}')
      print(faults[-1], flush=True)
  if worker is not None:
    pipe.send(None)
    worker.join()
  return counts, faults


def entry():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--cases', type=int, default=5000, help='in all but the runs')
  parser.add_argument('--deep', type=int, default=0, help='runs to the end')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--kinds', default=','.join(k for k in KINDS if k != 'run'))
  given = parser.parse_args()
  kinds = given.kinds.split(',')
  # Options are as many as all formats together.
  shares = {k: (len(kinds) if k == 'options' else 1) for k in kinds}
  total, failed = collections.Counter(), []
  with tempfile.TemporaryDirectory() as folder:
    for kind in [*kinds, *(['run'] if given.deep else [])]:
      cases = given.deep if kind == 'run' else math.ceil(given.cases * shares[kind] / sum(shares.values()))
      start = time.monotonic()
      counts, faults = run(kind, cases, given.seed, f'{folder}/{kind}')
      print(f'{kind}: {sum(counts.values())} cases, {dict(counts)}, {time.monotonic() - start:.0f} s', flush=True)
      total += counts
      failed += faults
  print(f'{sum(total.values())} cases: {total["refused"]} refused, {total["used"]} used, {len(failed)} faults')
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(entry())
