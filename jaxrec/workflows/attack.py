"""The attack stage: an audit of the experiment's network on its data."""

import contextlib
import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np

from jaxrec import results
from jaxrec.audit import identity, program
from jaxrec.audit.engine import Engine, Labels
from jaxrec.audit.plan import Case, Settings, Start, Sweep
from jaxrec.data.errors import DataError
from jaxrec.data.fastmri import Example
from jaxrec.data.loader import shape_of
from jaxrec.data.singlecoil import centred_images
from jaxrec.networks import Network
from jaxrec.training import Parallel, memory
from jaxrec.workflows import datasets, factory
from jaxrec.workflows.experiment import Attack, CTData, Experiment, MRData
from jaxrec.workflows.train import Context, generator_of, loader_of, trained, weights_of

# Slices of a device, and strengths of a slice, that are tried together where 0 leaves the choice.
AT_ONCE = (1, 2, 4, 8, 16)


def run(experiment: Experiment, run_folder: results.Run, context: Context) -> None:
  """Attacks the trained network; finished rows are not computed again."""
  attack, (data, parallel, _) = experiment.attack, context
  assert attack is not None
  sweeps = {name: _started(attack, name, run_folder.folder, context) for name in attack.sweeps}
  examples, skipped = datasets.examples(experiment.data, attack, data)
  cases = _cases(experiment, examples, data)
  readable = {v.name for split in attack.splits for v in getattr(data, split).volumes}
  done = run_folder.rows()
  _check_boxes(run_folder, done, cases, set() if attack.max_examples else readable)
  network, undefended, weights = _network(experiment, attack, run_folder.folder, context)
  weights += [identity.digest(sweep.start.variables) for sweep in sweeps.values() if sweep.start]
  run_folder.check_weights('rows', '-'.join(weights), started=bool(done))
  batch_size, chunk = _at_once(attack, parallel, network, sweeps, cases)
  settings = Settings(
    attack.attacked, experiment.seed, batch_size, chunk, attack.pictures, attack.lipschitz_iterations, attack.strict
  )
  if parallel.part == 0:
    results.write_text(
      run_folder.folder / 'sweeps.json', json.dumps({n: s.description() for n, s in sweeps.items()}, indent=2) + '\n'
    )
    _announce(sweeps, cases, settings)
    if isinstance(experiment.data, MRData):
      _save_sampling(experiment.data, run_folder, examples[0])
  labels = Labels(experiment.model.name, experiment.label)
  engine = Engine(network, sweeps, settings, run_folder, parallel, labels, undefended)
  bad = {path: words for split in attack.splits for path, words in getattr(data, split).bad.items()}
  bad |= engine.run(cases)
  results.write_text(
    run_folder.folder / f'skipped-{parallel.part:05d}.json', json.dumps({'files': bad, 'boxes': skipped}, indent=2)
  )
  parallel.barrier('attack')
  if parallel.part == 0:
    for path in run_folder.folder.glob('skipped-*.json'):
      if int(path.stem.partition('-')[2]) >= parallel.parts:
        path.unlink()  # Of an earlier run with more processes.
    run_folder.compact()
    _conclude(run_folder.rows(), bad)


def _check_boxes(run_folder: results.Run, rows: list[dict], cases: list[Case], whole: set[str]) -> None:
  """Rows go by the lines of their boxes in the annotation file: those there must be of the boxes that are there now.

  Of the volumes in `whole` every box is attacked, so that none may be gone.
  """
  path = run_folder.folder / 'boxes.json'
  stored = results.read_json(path)
  now = {f'{case.file}-{case.slice:03d}': [list(box) for box in case.boxes] for case in cases}
  for row in rows:
    name = f'{row["file"]}-{row["slice"]:03d}'
    if (name in now or row['file'] in whole) and stored.get(name, now.get(name)) != now.get(name):
      raise results.RunError(
        f'{run_folder.folder}: rows holds results of other boxes in slice {row["slice"]} of {row["file"]}: the annotations '
        f'were changed; set another workdir, or delete {run_folder.folder / "rows"} to compute them anew'
      )
  if run_folder.part == 0 and not now.items() <= stored.items():
    results.write_text(path, json.dumps({**stored, **now}) + '\n')


def _started(attack: Attack, name: str, folder: Path, context: Context) -> Sweep:
  """A sweep, from draws of its generator if it has one."""
  if name not in attack.generators:
    return attack.sweeps[name]
  adversary, variables = generator_of(results.sibling(folder, attack.generators[name]), context)
  return dataclasses.replace(attack.sweeps[name], start=Start(adversary.draw, variables))


def _network(experiment: Experiment, attack: Attack, folder: Path, context: Context):
  """The network with its defence and what the search looks at; its reconstructor without the defence; names of all weights."""
  module, variables = trained(experiment, folder, context)
  names = [weights_of(module, variables)]
  reconstruct, seen = factory.defended(attack, experiment.defence, module)
  network = Network(reconstruct, variables, experiment.model.name)
  if attack.surrogate:
    surrogate, weights = loader_of(folder, context)(attack.surrogate)
    names.append(weights_of(surrogate, weights))
    network = dataclasses.replace(network, surrogate=Network(factory.undefended(surrogate), weights))
  elif seen is not None:
    network = dataclasses.replace(network, surrogate=Network(seen, variables))
  return network, factory.undefended(module), names


def _cases(experiment: Experiment, examples: list[Example], data) -> list[Case]:
  """Slices with all of their boxes, in the order of the examples."""
  read = datasets.reader(experiment.data, attacked=True)
  split_of = {v.path: split for split in ('train', 'val') for v in getattr(data, split).volumes}
  factors = () if isinstance(experiment.data, CTData) else experiment.data.attack_masks.accelerations
  acceleration = '/'.join(map(str, factors))
  of_slice: dict[tuple[str, int], list[Example]] = {}
  for example in examples:
    of_slice.setdefault((example.volume.name, example.slice), []).append(example)
  return [
    Case(
      name, number, found[0].volume.patient_id, read=partial(read, found[0], 0),
      boxes=tuple(e.region for e in found if e.region), boxed=found[0].region is not None, shape=shape_of(found[0]),
      split=split_of[found[0].volume.path], acceleration=acceleration if found[0].volume.fully_sampled else None, origin=str(found[0].volume.path),
    )
    for (name, number), found in of_slice.items()
  ]  # fmt: skip


def _at_once(
  attack: Attack, parallel: Parallel, network: Network, sweeps: dict[str, Sweep], cases: list[Case]
) -> tuple[int, int]:
  """Slices per device and strengths computed together: those asked for or, for 0, the largest that fit into memory."""
  batch: int | None = attack.batch_size
  chunk: int | None = attack.chunk
  if batch and chunk:
    return batch, chunk
  sample = None
  for case in sorted(cases, key=lambda c: -np.prod(c.shape or ())):
    with contextlib.suppress(DataError):
      sample = case.read()
      break
  if sample is None:
    return 1, 1

  def needed(batch, chunk):
    count, most = batch * parallel.devices, 0.0
    for sweep in sweeps.values():
      run_batch = (program.by_grid if sweep.is_grid else program.by_search)(network, sweep, chunk)
      shapes = program.shapes(network, sweep, sample, count)
      most = max(most, memory.bytes_of(lambda: parallel.map_batch(run_batch).compile(*shapes)))
      if most > parallel.memory:
        # What the other sweeps take changes nothing.
        break
    return most

  some = [n for n in AT_ONCE if n <= max(len(cases) // parallel.devices, 1)]
  batch = batch or memory.largest_that_fits(some, parallel.memory, lambda n: needed(n, chunk or 1))
  if batch and not chunk:
    chunk = memory.largest_that_fits(list(AT_ONCE), parallel.memory, lambda n: needed(batch, n))
  if not (batch and chunk):
    raise ValueError(
      f'attack.batch_size: not even one slice fits into {parallel.memory / 1e9:.1f} GB of a device; use a larger one'
    )
  return batch, chunk


def _announce(sweeps: dict[str, Sweep], cases: list[Case], settings: Settings) -> None:
  places = sum(len(case.targets(settings.aims, bool(case.boxed))) for case in cases)
  for name, sweep in sweeps.items():
    forward, backward = sweep.calls
    on = (
      f'{len(cases)} slices, for all of their {places} boxes and aims' if sweep.is_grid else f'{places} boxes and aims'
    )
    print(f'attack: {name} on {on}: {forward} forward and {backward} backward network calls each')


def _conclude(rows, bad) -> None:
  etas = [row['thermal_eta'] for row in rows if 'thermal_eta' in row]
  if etas:
    print(
      f'attack: thermal noise has the energy of adversarial noise with eta = {100 * np.median(etas):.2f}% '
      f'(median; {100 * min(etas):.2f}% to {100 * max(etas):.2f}%)'
    )
  if bad and not rows:
    raise DataError(f'attack: no example could be attacked; the first: {next(iter(bad.values()))}')
  if bad:
    print(f'attack: skipped {len(bad)} bad files, listed in the report; the first: {next(iter(bad.values()))}')


def _save_sampling(data_set, run_folder, example):
  """Full and undersampled k-space of the first coil and their images, for the report."""
  scan = datasets.reader(data_set, form='kspace', attacked=True)(example, 0)
  sampled = np.where(scan.mask, scan.kspace, 0)
  run_folder.save_arrays('sampling', {
    'kspace': np.abs(scan.kspace[0]), 'sampled': np.abs(sampled[0]),
    'image': np.abs(centred_images(scan.kspace)[0]), 'zero_filled': np.abs(centred_images(sampled)[0]),
  })  # fmt: skip
