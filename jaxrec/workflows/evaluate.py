"""The evaluation stage: whole volumes reconstructed and scored, as the fastMRI leaderboard has them."""

from collections import defaultdict
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxrec import results
from jaxrec.data import leaderboard, loader
from jaxrec.data.errors import DataError
from jaxrec.data.fastmri import Example, Index, Volume
from jaxrec.geometry import center_crop
from jaxrec.training import Parallel
from jaxrec.types import Reconstructor, Variables
from jaxrec.workflows import datasets, factory
from jaxrec.workflows.experiment import Experiment, MRData
from jaxrec.workflows.train import Context, trained, weights_of

COLUMNS = ('file', 'acquisition', 'acceleration', 'slices', *leaderboard.SCORES)
# The row over all volumes of an acceleration.
_ALL = 'all'
_USUAL = (1, 2, 4, 8, 16)


def run(experiment: Experiment, run_folder: results.Run, context: Context, found: Index) -> None:
  """Reconstructs every slice of every volume of the index; what is done is not done again."""
  (data, parallel, _), asked, (volumes, bad) = context, experiment.evaluation, found
  assert asked is not None and isinstance(experiment.data, MRData)
  folder, rows = run_folder.folder / 'reconstructions', run_folder.folder / 'evaluation'
  if parallel.part == 0:
    rows.mkdir(exist_ok=True)
  parallel.barrier('evaluate')
  module, variables = trained(experiment, run_folder.folder, context)
  run_folder.check_weights(rows.name, weights_of(module, variables), started=bool(_rows(rows)))
  done = {row['file'] for row in _rows(rows) if leaderboard.place(folder, row['file']).exists()}
  left = [v for v in volumes[parallel.part :: parallel.parts] if v.name not in done]
  network = factory.reconstructor(experiment.defence, module)
  reconstruct = _reconstructor(network, variables, asked.batch_size, parallel)
  for volume in tqdm(left, desc='evaluate', unit='volume', disable=parallel.part > 0):
    images, row = _evaluated(experiment.data, volume, data, reconstruct)
    leaderboard.write(folder, volume.name, images)
    results.append_jsonl(rows / f'{parallel.part:05d}.jsonl', [row])
  parallel.barrier('evaluated')
  if parallel.part == 0:
    names = {v.name for v in volumes}
    _conclude(run_folder.folder, [row for row in _rows(rows) if row['file'] in names])
    if bad:
      print(f'evaluate: left out {len(bad)} bad files; the first: {next(iter(bad.values()))}')


def index(experiment: Experiment, data: datasets.Data) -> Index:
  """The volumes that `evaluate.split` names, to be found before anything is trained.

  Raises:
    DataError: if there are none.
  """
  assert experiment.evaluation is not None and isinstance(experiment.data, MRData)
  split, root = experiment.evaluation.split, experiment.data.root
  if split == 'val':
    assert isinstance(data.val, Index)
    return data.val
  try:
    found: Any = datasets.source(experiment.data, root).index(split)
  except DataError as error:
    raise DataError(f'evaluate.split: {error}') from None
  if not found.volumes:
    raise DataError(
      f'evaluate.split: {root}: no usable volume in {split}; {next(iter(found.bad.values()), "there is none")}'
    )
  return found


def _reconstructor(network: Reconstructor, variables: Variables, batch_size: int, parallel: Parallel):
  """`[slices]` of one shape to their images, cropped as the target is."""
  variables = jax.device_put(variables)

  def each(variables, batch):
    return jax.vmap(lambda s: center_crop(network(variables, s), s.target.shape))(batch)

  program, size = parallel.map_batch(each), parallel.devices * batch_size
  return lambda examples, read: [
    (jax.device_get(program(variables, batch))[: len(chosen)], batch)
    for chosen, batch in loader.evaluation_batches(examples, read, size)
  ]


def _evaluated(data_set: MRData, volume: Volume, data, reconstruct) -> tuple[np.ndarray, dict[str, Any]]:
  examples = [Example(volume, s, None) for s in range(volume.shape[0])]
  parts = reconstruct(examples, data.read)
  images = np.concatenate([made for made, _ in parts])
  targets = np.concatenate([batch.target[: len(made)] for made, batch in parts])
  mask, acquired = (np.asarray(getattr(parts[0][1], name)[0]) for name in ('mask', 'acquired'))
  row = {
    'file': volume.name,
    'acquisition': volume.acquisition,
    'acceleration': _acceleration(data_set, volume, mask, acquired),
    'slices': len(images),
  }
  return images, row | (leaderboard.scores(images, targets) if volume.fully_sampled else {})


def _acceleration(data_set, volume, mask, acquired):
  """The experiment's acceleration that comes nearest to that of the mask, which has its centre besides; of a file's own mask a usual one."""
  known = data_set.masks.accelerations if volume.fully_sampled else _USUAL
  share = mask.sum() / np.broadcast_to(acquired, mask.shape).sum()
  return min(known, key=lambda a: abs(np.log(a * share)))


def _rows(folder):
  found = {row['file']: row for path in sorted(folder.glob('*.jsonl')) for row in results.read_jsonl(path)}
  return [found[name] for name in sorted(found)]


def by_acquisition(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Mean and standard deviation over volumes, by acceleration and type of acquisition.

  Args:
    rows: one per volume; those without scores are counted and left out of the means.

  Returns:
    Rows of `acceleration`, `acquisition` (`all` for all of them), `volumes`, and each
    score with its `_std`, the deviation of a sample.
  """
  groups = defaultdict(list)
  for row in rows:
    for name in (row['acquisition'] or 'unknown', _ALL):
      groups[row['acceleration'], name].append(row)
  table = []
  for (acceleration, name), members in sorted(
    groups.items(), key=lambda item: (item[0][0], item[0][1] == _ALL, item[0][1])
  ):
    line: dict[str, Any] = {'acceleration': acceleration, 'acquisition': name, 'volumes': len(members)}
    for score in leaderboard.SCORES:
      values = [row[score] for row in members if score in row]
      line[score] = float(np.mean(values)) if values else ''
      line[f'{score}_std'] = float(np.std(values, ddof=1)) if len(values) > 1 else ''
    table.append(line)
  return table


def _conclude(folder, rows):
  results.write_csv(folder / 'evaluation.csv', COLUMNS, [[row.get(c, '') for c in COLUMNS] for row in rows])
  table = by_acquisition(rows)
  head = list(table[0])
  results.write_csv(folder / 'evaluation_by_acquisition.csv', head, [[line[c] for c in head] for line in table])
  for line in table:
    scored = (
      f'SSIM {line["ssim"]:.4f}, PSNR {line["psnr"]:.2f} dB, NMSE {line["nmse"]:.4f}'
      if line['ssim'] != ''
      else 'no targets'
    )
    print(f'evaluate: {line["acceleration"]}x {line["acquisition"]}, {line["volumes"]} volumes: {scored}')
  print(f'evaluate: reconstructions in {folder / "reconstructions"}')
