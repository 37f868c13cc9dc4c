"""`jaxrec.audit`."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrec.audit.engine import Engine, Labels
from jaxrec.audit.plan import AIMS, Case, Settings, Sweep
from jaxrec.networks import Network, network
from jaxrec.training import data_parallel
from jaxrec.types import Sample


class _Memory:
  """Rows of an audit without a folder."""

  def __init__(self):
    self._rows = []

  def rows(self):
    return self._rows

  def append(self, rows):
    self._rows += rows

  def save_arrays(self, name, arrays):
    """Pictures are for folders."""


def audit(
  networks: Mapping[str, Network | Callable] | Network,
  samples: Sequence[Sample] | Mapping[str, Sample],
  attacks: Mapping[str, Sweep] | Sweep,
  *,
  folder: str | Path | None = None,
  patients: Sequence[str] | None = None,
  aims: Sequence[str] = AIMS,
  seed: int = 0,
  batch_size: int = 1,
  chunk: int = 1,
  pictures: int = 8,
  lipschitz_iterations: int = 0,
) -> list[dict[str, Any]]:
  """Attacks networks side by side; the engine of the launcher's attack stage.

  A slice is read once per network and reconstructed once without attack. A sample
  whose region is not the whole image is attacked twice, aimed at the region and at
  the whole image, one without a region once.

  Args:
    networks: by name, made by `jaxrec.network` or `jaxrec.torch_network`, or functions
      `(sample) -> image`.
    samples: scans or slices, also by name. Any object with a length and items will
      do: items are asked for one by one, when their turn comes.
    attacks: sweeps by name.
    folder: a run folder for each network goes there, under its name. Rows are on
      the disk as soon as they are known, and the same call goes on after any
      interruption. Without it everything stays in memory.
    patients: one name per sample, the unit of statistics; every sample its own if `None`.
    aims: out of `region` and `image`.
    seed: of random starts.
    batch_size: samples of one shape computed together on one device.
    chunk: strengths or grid points computed together.
    pictures: samples whose images are kept in the folder.
    lipschitz_iterations: above 0, rows tell the amplification, see `attacks.local_lipschitz`.

  Returns:
    One row per network, sample, attack, aim and strength, with the columns of
    `results.csv` and more; `pandas.DataFrame(rows)` makes a frame.

  Raises:
    ValueError: for options that make no sense, or a folder that belongs to another audit.

  Example:
    >>> import jaxrec
    >>> from jaxrec.data import synthetic
    >>> scan = synthetic.scan(0, rows=32, cols=32, coils=2)
    >>> net = jaxrec.network(lambda scan: jaxrec.networks.zero_filled(scan)[0])
    >>> noise = jaxrec.Sweep(jaxrec.coil_noise, (0.01, 0.02), search=jaxrec.pgd(num_steps=2))
    >>> rows = jaxrec.audit({'zero-filled': net}, [scan], {'noise': noise}, aims=('image',))
    >>> [row['strength'] for row in rows]
    [0.0, 0.01, 0.02]
  """
  if isinstance(networks, Network):
    networks = {networks.name: networks}
  if isinstance(attacks, Sweep):
    attacks = {attacks.family.__name__ if hasattr(attacks.family, '__name__') else 'attack': attacks}
  made = {name: network(net) for name, net in networks.items()}
  if not made or not attacks or not len(samples):
    raise ValueError('audit: give at least one network, one sample and one attack')
  settings = Settings(tuple(aims), seed, batch_size, chunk, pictures, lipschitz_iterations, strict=True)
  cases = _cases(samples, patients)
  if folder is None:
    rows = []
    for name, net in made.items():
      store = _Memory()
      Engine(net, attacks, settings, store, data_parallel(), Labels(net.name, name)).run(cases)
      rows += store.rows()
    return rows
  return _in_folder(made, samples, cases, attacks, settings, Path(folder))


def _in_folder(networks, samples, cases, attacks, settings, folder):
  from jaxrec import results  # Brings HDF5, which nothing in memory needs.

  rows, parallel = [], data_parallel()
  described = {
    'data': {'root': 'arrays', 'digest': _digest(samples)}, 'seed': settings.seed, 'aims': settings.aims,
    'attacks': {name: sweep.description() for name, sweep in attacks.items()},
  }  # fmt: skip
  with results.exclusive(folder, part=parallel.part):
    for name, net in networks.items():
      run = results.Run(folder / results.safe_name(name), part=parallel.part)
      run.check_config({'name': name, 'model': {'name': net.name, 'weights': _digest(net.variables)}, **described})
      run.write_provenance(
        seed=settings.seed, one_program=net.one_program, data_fingerprint=described['data']['digest']
      )
      results.write_text(run.folder / 'sweeps.json', json.dumps(described['attacks'], indent=2) + '\n')
      Engine(net, attacks, settings, run, parallel, Labels(net.name, name)).run(cases)
      parallel.barrier(f'audit {name}')
      if parallel.part == 0:
        run.compact()
      rows += run.rows()
  return rows


def _cases(samples, patients):
  if patients is not None and len(patients) != len(samples):
    raise ValueError(f'patients: holds {len(patients)} names for {len(samples)} samples')
  named = isinstance(samples, Mapping)
  keys = list(samples) if named else range(len(samples))
  names = keys if named else [f'sample-{i:04d}' for i in keys]
  return [
    Case(str(name), 0, str(name) if patients is None else str(patients[i]), read=lambda key=key: samples[key])
    for i, (key, name) in enumerate(zip(keys, names))
  ]


def _digest(tree):
  """Short name of arrays in memory, or of the names of a source that reads its samples."""
  if not isinstance(tree, (Mapping, list, tuple)) and not jax.tree.leaves(tree):
    tree = len(tree) if hasattr(tree, '__len__') else None
  digest = hashlib.sha256()
  for path, leaf in jax.tree.flatten_with_path(tree)[0]:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    digest.update(f'{jax.tree_util.keystr(path)}'.encode())
    digest.update(
      np.ascontiguousarray(leaf).tobytes() if isinstance(leaf, (jax.Array, np.ndarray)) else repr(leaf).encode()
    )
  return digest.hexdigest()[:16]
