"""Run folders: rows, arrays and provenance that survive a kill at any moment.

A run folder holds `config.json`, `provenance.json`, `weights.json`, `boxes.json`, `metrics.jsonl`,
`rows/*.jsonl` (one row per example, perturbation and strength, appended and
synced), `arrays/` (pictures of single examples until they are compacted),
`results.csv` and `images.h5` (both compacted), `figures/` and `report.html`.
"""

import contextlib
import csv
import errno
import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np

from jaxrec.data import files
from jaxrec.data.errors import DataError

COLUMNS = (
  'file', 'slice', 'annotation', 'label', 'model', 'acceleration', 'perturbation', 'attacked', 'strength', 'unit',
  'seed', 'objective_clean', 'objective_adv',
  'ssim_region_clean', 'ssim_region_adv', 'psnr_region_clean', 'psnr_region_adv', 'nmse_region_clean', 'nmse_region_adv',
  'ssim_image_clean', 'ssim_image_adv', 'psnr_image_clean', 'psnr_image_adv', 'nmse_image_clean', 'nmse_image_adv',
  'delta', 'budget_used', 'steps', 'seconds',
)  # fmt: skip
# Of rows that have them.
_FURTHER = ('patient', 'split', 'network', 'reference', 'thermal_eta', 'thermal_eta_corners', 'lipschitz')
KEY = ('file', 'slice', 'annotation', 'perturbation', 'attacked', 'strength')
# The kind of rows of inputs that hold no structure.
NO_STRUCTURE = -1
# Options of the machine, which change no number but by rounding: a run goes on with others.
TECHNICAL = (
  'train.num_devices',
  'train.micro_batch',
  'train.checkpoint_minutes',
  'train.pictures',
  'train.tensorboard',
  'data.workers',
  'evaluate.batch_size',
  'attack.batch_size',
  'attack.chunk',
  'model.remat',
)
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'h5py', 'numpy', 'grain', 'ml_collections')


class RunError(ValueError):
  """A run folder that cannot be used; the message names it and the remedy."""


def key_of(row: Mapping[str, Any]) -> tuple:
  """What identifies a row within a run."""
  return tuple(row[name] for name in KEY)


@contextlib.contextmanager
def exclusive(folder: str | Path, *, part: int = 0) -> Iterator[None]:
  """Keeps other runs out of a folder while the context lasts.

  The lock is the system's: it goes with the process, however that ends. What a
  killed run left half-written is removed, as nobody else can be writing it.

  Args:
    folder: created if missing.
    part: number of this process; process 0 holds the lock for all of a run.

  Yields:
    Nothing.

  Raises:
    RunError: if another process writes to the folder, naming it, or if the
      folder cannot be written.
  """
  if part:
    yield
    return
  folder = Path(folder)
  path = folder / '.lock'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    stream = open(path, 'a+')
  except OSError as error:
    raise _folder_error(folder, error) from None
  with stream:
    try:
      fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
        stream.seek(0)
        raise RunError(
          f'{folder}: is in use by {stream.read().strip() or "another process"}; wait for it or set another workdir; '
          f'if it is gone (a network disk can keep its lock), delete {path}'
        ) from None
      print(f'note: {folder}: its disk has no locks ({error.strerror}); start no second run in it', file=sys.stderr)
    stream.truncate(0)
    stream.write(f'process {os.getpid()} on {socket.gethostname()}, started {time.strftime("%Y-%m-%d %H:%M:%S %z")}\n')
    stream.flush()
    for pattern in (
      '*.tmp',
      'rows/*.tmp',
      'arrays/*.tmp',
      'detections/*.tmp',
      'figures/*.tmp',
      'reconstructions/*.tmp',
    ):
      for left in filter(Path.is_file, folder.glob(pattern)):
        left.unlink(missing_ok=True)
    yield


def _folder_error(folder, error):
  return RunError(f'{folder}: cannot be written ({error.strerror}); set another workdir')


class Run:
  """One run folder.

  Args:
    folder: created if missing.
    part: number of this process; each appends to its own files.

  Raises:
    RunError: if the folder cannot be written.
  """

  def __init__(self, folder: str | Path, *, part: int = 0):
    self.folder, self.part = Path(folder), part
    try:
      for name in ('rows', 'arrays', 'detections', 'figures', 'checkpoints'):
        (self.folder / name).mkdir(parents=True, exist_ok=True)
      probe = self.folder / f'.write-{part}-{os.getpid()}'
      probe.write_bytes(b'x')
      probe.unlink(missing_ok=True)
    except OSError as error:
      raise _folder_error(self.folder, error) from None

  def check_config(self, resolved: Mapping[str, Any]) -> None:
    """Writes `config.json`, or checks that the folder belongs to the same config.

    Stages, the report and options of the machine may differ: they do not change numbers.

    Raises:
      RunError: naming the first option that differs, or a damaged file.
    """
    path = self.folder / 'config.json'
    resolved = json.loads(json.dumps(resolved, sort_keys=True))
    if path.exists():
      stored = read_json(path)
      difference = _first_difference(stored, resolved, skip=('stages', 'report', 'workdir', 'plan', *TECHNICAL))
      if difference:
        name, old, new = difference
        raise RunError(
          f'{self.folder}: was made with {name}={old!r}, now it is {new!r}; set another workdir or remove the folder'
        )
    if self.part == 0:
      write_text(path, json.dumps(resolved, indent=2, sort_keys=True) + '\n')

  def check_weights(self, kind: str, weights: str, *, started: bool) -> None:
    """Records in `weights.json` whose results are written, or checks that those there are of the same weights.

    Args:
      kind: the results: `rows` of the attack, or a folder of another stage.
      weights: short name of all weights that the results depend on.
      started: whether there are results.

    Raises:
      RunError: if they are of other weights, as after further training.
    """
    path = self.folder / 'weights.json'
    stored = read_json(path)
    if started and stored.get(kind, weights) != weights:
      raise RunError(
        f'{self.folder}: {kind} holds results of other weights: the network, or another that its results depend on, was '
        f'trained on or replaced; set another workdir, or delete {self.folder / kind} to compute them anew'
      )
    if self.part == 0 and stored.get(kind) != weights:
      write_text(path, json.dumps({**stored, kind: weights}, indent=2) + '\n')

  def write_provenance(self, **extra: Any) -> None:
    """Writes `provenance.json`: versions, devices, git revision, and `extra`."""
    if self.part:
      return
    stored = {
      'jaxrec': importlib.metadata.version('jaxrec') if _installed('jaxrec') else 'source',
      'python': platform.python_version(),
      'platform': platform.platform(),
      'versions': {p: importlib.metadata.version(p) for p in _PACKAGES if _installed(p)},
      'devices': [f'{d.platform} {d.device_kind}' for d in jax.devices()],
      'matrix_precision': jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]  # jax declares it at run time
      'processor': processor(),
      'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
      'xla_flags': os.environ.get('XLA_FLAGS', ''),
      'optimization_level': jax.config.jax_optimization_level,  # type: ignore[attr-defined]  # likewise
      'processes': jax.process_count(),
      'git_revision': git_revision(),
      **extra,
    }
    write_text(self.folder / 'provenance.json', json.dumps(stored, indent=2, sort_keys=True, default=str) + '\n')

  def rows(self) -> list[dict[str, Any]]:
    """All finished rows, each once, in the order of their keys."""
    found = read_rows(self.folder)
    return [found[k] for k in sorted(found, key=_sortable)]

  def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends rows and waits until they are on the disk.

    Raises:
      RunError: if the disk is full; earlier rows are intact.
    """
    append_jsonl(self.folder / 'rows' / f'{self.part:05d}.jsonl', rows)

  def save_arrays(self, name: str, arrays: Mapping[str, np.ndarray], *, where: str = 'arrays') -> None:
    """Writes the arrays of one example, whole or not at all; those in `arrays` go into `images.h5`."""
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]  # the stub takes any name for allow_pickle
    write_bytes(self.folder / where / f'{safe_name(name)}.npz', stream.getvalue())

  def compact(self) -> None:
    """Writes `results.csv` and `images.h5` from rows and arrays; process 0 only."""
    head = (*COLUMNS, *_FURTHER)
    write_csv(self.folder / 'results.csv', head, [[row.get(c) for c in head] for row in self.rows()])
    self.compact_arrays()

  def compact_arrays(self) -> None:
    """Writes `images.h5` from the arrays; process 0 only.

    Raises:
      RunError: if an array is damaged or the disk is full.
    """
    parts = sorted((self.folder / 'arrays').glob('*.npz'))
    if not parts:
      return
    # In memory first: HDF5 does not survive a disk that fills while it writes.
    stream = io.BytesIO()
    with h5py.File(stream, 'w', libver='latest', track_order=False) as file:
      for part in parts:
        for name, array in _load_arrays(part).items():
          file.create_dataset(f'{part.stem}/{name}', data=array, track_times=False)
    write_bytes(self.folder / 'images.h5', stream.getbuffer())


def _load_arrays(path):
  try:
    with np.load(path) as arrays:
      return {name: arrays[name] for name in arrays.files}
  except Exception as error:  # Damaged archives raise whatever they stumble over.
    raise RunError(
      f'{path}: is damaged ({reason(error)}); delete it to go on without this picture, or delete rows and arrays in '
      f'{path.parent.parent} to compute all again'
    ) from None


@contextlib.contextmanager
def open_images(folder: str | Path) -> Iterator[h5py.File | None]:
  """The pictures of a run, for reading.

  Args:
    folder: the run folder.

  Yields:
    The open file, or `None` if the run kept no pictures.

  Raises:
    RunError: if the file is damaged, on opening or later.
  """
  path = Path(folder) / 'images.h5'
  if not path.exists():
    yield None
    return
  try:
    with h5py.File(path) as file:
      yield file
  except (OSError, KeyError, RuntimeError) as error:
    raise RunError(
      f'{path}: is damaged ({reason(error)}); delete it and run the attack stage, which makes it from arrays'
    ) from None


def _installed(package):
  try:
    importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return False
  return True


def processor() -> str:
  """Model of the processor: the same program rounds differently on different ones."""
  try:
    text = Path('/proc/cpuinfo').read_text()
  except OSError:
    text = ''
  found = re.search(r'^(?:model name|Model|cpu model)\s*:\s*(.+)$', text, re.M)
  return found[1].strip() if found else platform.processor() or platform.machine()


def git_revision() -> str:
  """Revision of the source tree, marked `+changes` if it was edited, or `unknown`."""
  here = Path(__file__).parent
  try:

    def git(*arguments):
      return subprocess.run(
        ['git', '-C', str(here), *arguments], capture_output=True, text=True, timeout=10, check=True
      ).stdout

    return git('rev-parse', 'HEAD').strip() + (
      '+changes' if git('status', '--porcelain', '--untracked-files=no').strip() else ''
    )
  except (OSError, subprocess.SubprocessError):
    return 'unknown'


def _first_difference(old, new, *, skip=(), prefix=''):
  for name in sorted(set(old) | set(new)):
    if f'{prefix}{name}' in skip:
      continue
    a, b = old.get(name), new.get(name)
    if isinstance(a, dict) and isinstance(b, dict):
      found = _first_difference(a, b, skip=skip, prefix=f'{prefix}{name}.')
      if found:
        return found
    elif a != b:
      return f'{prefix}{name}', a, b
  return None


def _sortable(key):
  return tuple((0, value, '') if isinstance(value, (int, float)) else (1, 0, str(value)) for value in key)


def _cell(value):
  if value is None:
    return ''
  return repr(value) if isinstance(value, float) else value


def _disk_error(path, error):
  return RunError(f'{path}: cannot be written ({error.strerror}); free the disk, then run the same command to go on')


def sibling(folder: Path, run: str) -> Path:
  """Folder of another run: beside this one, or any path."""
  return folder.parent / run if (folder.parent / run).is_dir() else Path(run)


def safe_name(name: str) -> str:
  """A file name made of a name that comes from data; distinct names stay distinct."""
  plain = re.sub(r'[^A-Za-z0-9._-]', '_', name).lstrip('.')[:80] or '_'
  return plain if plain == name else f'{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}'


def write_text(path: str | Path, text: str) -> None:
  """Replaces a file at once.

  Raises:
    RunError: if it cannot be written.
  """
  write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes | memoryview) -> None:
  """Replaces a file whole or not at all, even if the power fails.

  Raises:
    RunError: if it cannot be written.
  """
  try:
    files.replace(path, content)
  except DataError as error:
    raise RunError(str(error)) from None


def write_csv(path: str | Path, head: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
  """Replaces a CSV file at once; floats keep all digits.

  Raises:
    RunError: if it cannot be written.
  """
  stream = io.StringIO()
  writer = csv.writer(stream, lineterminator='\n')
  writer.writerow(head)
  writer.writerows([_cell(value) for value in line] for line in lines)
  write_text(path, stream.getvalue())


def read_csv(path: str | Path) -> list[dict[str, str]]:
  """Lines of a CSV file by column, as text; nothing if there is none."""
  path = Path(path)
  if not path.exists():
    return []
  with open(path, newline='') as stream:
    return list(csv.DictReader(stream))


def append_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
  """Appends records, one line each, and waits until they are on the disk.

  A line cut off by a kill or a full disk is removed first.

  Raises:
    RunError: if the disk is full; earlier lines are intact.
  """
  path = Path(path)
  text = ''.join(json.dumps(record) + '\n' for record in records).encode()
  try:
    # Without a buffer: what did not fit would be written once more when the file is closed.
    with open(path, 'r+b' if path.exists() else 'w+b', buffering=0) as stream:
      end = _end_of_last_line(stream)
      stream.truncate(end)
      stream.seek(end)
      try:
        left = memoryview(text)
        while left:
          left = left[stream.write(left) :]
        os.fsync(stream.fileno())
      except OSError:
        os.ftruncate(stream.fileno(), end)
        raise
  except OSError as error:
    raise _disk_error(path, error) from None


def _end_of_last_line(stream):
  size = stream.seek(0, os.SEEK_END)
  while size:
    block = min(size, 1 << 16)
    stream.seek(size - block)
    newline = stream.read(block).rfind(b'\n')
    if newline >= 0:
      return size - block + newline + 1
    size -= block
  return 0


def read_json(path: str | Path) -> dict[str, Any]:
  """Contents of a JSON file, or nothing if there is none.

  Raises:
    RunError: naming a file that is damaged or holds something else.
  """
  path = Path(path)
  if not path.exists():
    return {}
  try:
    stored = json.loads(path.read_text())
    if not isinstance(stored, dict):
      raise ValueError(f'it holds a {type(stored).__name__}')
    return stored
  except (ValueError, OSError, RecursionError) as error:
    raise RunError(
      f'{path}: is damaged ({reason(error)}); {_REMEDIES.get(path.name, "delete it and run the same command, which writes it again")}'
    ) from None


_REMEDIES = {
  'config.json': 'put back the one of the run; if you are sure of the config, delete it: the same command writes it again',
  'cost.json': 'delete it and run the same command: training steps are counted again, the time of earlier runs is lost',
}


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
  """Whole lines of a file; a last line without an end is left out.

  Raises:
    RunError: naming the file and a line that is damaged.
  """
  path = Path(path)
  if not path.exists():
    return []
  content = path.read_bytes()
  records = []
  for number, line in enumerate(content[: content.rfind(b'\n') + 1].split(b'\n')[:-1], 1):
    try:
      records.append(json.loads(line))
      if not isinstance(records[-1], dict):
        raise ValueError(f'it holds a {type(records[-1]).__name__}')
    except (ValueError, RecursionError) as error:
      raise _line_error(path, number, error) from None
  return records


def read_rows(folder: str | Path, columns: Sequence[str] = KEY) -> dict[tuple, dict[str, Any]]:
  """Finished rows of a run folder by `key_of`, each once.

  Args:
    folder: of the run.
    columns: what every row has to hold.

  Raises:
    RunError: naming the file and a line that is damaged.
  """
  found: dict[tuple, dict[str, Any]] = {}
  # Other stages write NUMBER.STAGE.jsonl.
  for path in sorted(p for p in (Path(folder) / 'rows').glob('*.jsonl') if '.' not in p.stem):
    for number, row in enumerate(read_jsonl(path), 1):
      try:
        for name in columns:
          row[name]
        found.setdefault(key_of(row), row)
      except (KeyError, TypeError) as error:
        raise _line_error(path, number, error) from None
  return found


def _line_error(path, number, error):
  lost = 'what it held is computed again' if path.parent.name == 'rows' else 'this record is lost, the others stay'
  return RunError(
    f'{path}: line {number} is damaged ({reason(error)}); delete the line and run the same command: {lost}'
  )


def reason(error: BaseException) -> str:
  """What an error of another library says, in one short line."""
  return (str(error).splitlines() or [type(error).__name__])[0][:120]


def cut_metrics(path: str | Path, step: int) -> None:
  """Removes records later than `step`, those of a run that was killed before its checkpoint.

  Raises:
    RunError: naming the file and a line that is damaged.
  """
  path = Path(path)
  kept = []
  for number, record in enumerate(read_jsonl(path), 1):
    try:
      if record.get('step', 0) <= step:
        kept.append(record)
    except TypeError as error:
      raise _line_error(path, number, error) from None
  if path.exists():
    write_text(path, ''.join(json.dumps(r) + '\n' for r in kept))


def fingerprint(volumes: Iterable[Any]) -> str:
  """Short digest of names, shapes and sizes of the volumes a run used."""
  digest = hashlib.sha256()
  for volume in volumes:
    digest.update(f'{volume.stamp()}\n'.encode())
  return digest.hexdigest()[:16]
