"""`jaxrec.audit`."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxrec.audit import identity
from jaxrec.audit.engine import Engine, Labels
from jaxrec.audit.plan import AIMS, Case, Settings, Sweep
from jaxrec.networks import Network, network
from jaxrec.training import data_parallel
from jaxrec.types import Sample


@runtime_checkable
class Samples(Protocol):
  """Samples that are made when their turn comes."""

  def __len__(self) -> int: ...
  def __getitem__(self, index: int, /) -> Sample: ...


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
  networks: Mapping[str, Network | Callable] | Network | Callable,
  samples: Sequence[Sample] | Mapping[str, Sample] | Samples | Sample,
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
      `(sample) -> image`; or one of them.
    samples: scans or slices, also by name, or one of them. Any object with a length and
      items will do: items are asked for one by one, when their turn comes.
    attacks: sweeps by name, or one.
    folder: a run folder for each network goes there, under its name. Rows are on
      the disk as soon as they are known, and the same call goes on after any
      interruption. Without it everything stays in memory.
    patients: one name per sample, the unit of statistics; every sample its own if `None`.
    aims: out of `region` and `image`.
    seed: of random starts.
    batch_size: samples of one shape computed together on one device.
    chunk: strengths or grid points computed together.
    pictures: samples whose images are kept in the folder.
    lipschitz_iterations: above 0, rows of relative strengths tell the amplification, see `attacks.local_lipschitz`.

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
  if not isinstance(networks, Mapping):
    networks = {(only := network(networks)).name: only}
  if isinstance(samples, Sample):
    samples = [samples]
  if isinstance(attacks, Sweep):
    attacks = {attacks.family.__name__ if hasattr(attacks.family, '__name__') else 'attack': attacks}
  for name, sweep in attacks.items():
    if not isinstance(sweep, Sweep):
      raise ValueError(f'audit: the attack {name} is a {type(sweep).__name__}; give a jaxrec.Sweep of a family')
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
  return _in_folder(made, samples, patients, cases, attacks, settings, Path(folder))


def _in_folder(networks, samples, patients, cases, attacks, settings, folder):
  from jaxrec import results  # Brings HDF5, which nothing in memory needs.

  rows, parallel = [], data_parallel()
  described = {
    'data': {
      'root': 'arrays', 'digest': identity.of_samples(samples),
      'patients': identity.digest(None if patients is None else sorted((case.file, case.patient) for case in cases)),
    },
    'seed': settings.seed, 'aims': settings.aims, 'lipschitz_iterations': settings.lipschitz_iterations,
    'attacks': {name: {**sweep.description(), 'made_of': identity.of_sweep(sweep)} for name, sweep in attacks.items()},
  }  # fmt: skip
  with results.exclusive(folder, part=parallel.part):
    own = set(map(results.safe_name, networks))
    for path in sorted(folder.glob('*/config.json')):
      # The report compares all of them. What differs in a network's own folder is said by name below.
      if path.parent.name not in own and results.read_json(path).get('data') != described['data']:
        raise results.RunError(
          f'{path.parent}: was made with other samples or patients; set another folder or remove it'
        )
    for name, net in networks.items():
      run = results.Run(folder / results.safe_name(name), part=parallel.part)
      run.check_config({'name': name, 'model': {'name': net.name, 'weights': identity.of_network(net)}, **described})
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
  names = [str(key) for key in keys] if named else [f'sample-{i:04d}' for i in keys]
  if len(set(names)) < len(names):
    raise ValueError('audit: two samples have one name; names are compared as texts')
  return [
    Case(name, 0, str(patient), read=lambda key=key: samples[key])
    for key, name, patient in zip(keys, names, names if patients is None else patients)
  ]
