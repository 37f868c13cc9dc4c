"""Run folders as reports see them: the one place that knows what `config.json` and `provenance.json` call things."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxrec import results
from jaxrec.reports import comparison, figures

# The head of tables of provenance.
PROVENANCE = ['folder', 'revision', 'devices', 'processor', 'versions', 'seed', 'data']


@dataclass(frozen=True)
class Settings:
  """What reports say of the config that a run was made with; all of it empty for an audit, which has none.

  Attributes:
    phantom: profile of a run on the built-in phantom.
    checkpoint: the run whose network was attacked, if not its own.
    sees: which network the search of the attacks saw.
    features: what the perceptual terms of autoencoders compared.
  """

  phantom: str = ''
  checkpoint: str = ''
  sees: str = ''
  features: str = ''

  @property
  def caution(self) -> str:
    """What readers of numbers from the phantom must know, in HTML."""
    if not self.phantom:
      return ''
    return (
      f'<b>These numbers come from the built-in phantom</b> ({self.phantom} profile), not from patients: '
      'small networks, trained for minutes. They show that the method works, not how a clinical network behaves.'
    )


def settings(folder: Path) -> Settings:
  """Reads `config.json`.

  Raises:
    RunError: if it is damaged.
  """
  stored = results.read_json(folder / 'config.json')
  return Settings(
    phantom=stored.get('profile', '') if stored.get('data', {}).get('root') == '' else '',
    checkpoint=stored.get('model', {}).get('checkpoint', ''),
    sees=stored.get('attack', {}).get('sees', ''),
    features=_features(stored),
  )


def _features(stored: Mapping[str, Any]) -> str:
  found = []
  for sampler in stored.get('invariances', {}).get('samplers', {}).values():
    run = stored
    for part in sampler['autoencoder'].split('/'):
      run = run['experiments'][part]
    task = run['train']['task'].get('perceptual', {})
    found.append(task.get('vgg') or (f'features of the run {task["network"]}' if task.get('network') else 'off'))
  return ', '.join(dict.fromkeys(found))


def provenance(folder: Path) -> list[str]:
  """Where the numbers of a run come from, a line under `PROVENANCE`, out of `provenance.json`.

  Raises:
    RunError: if it is damaged.
  """
  p = results.read_json(folder / 'provenance.json')
  return [
    str(folder), p.get('git_revision', 'unknown'), ', '.join(p.get('devices', [])), p.get('processor', ''),
    ', '.join(f'{k} {v}' for k, v in p.get('versions', {}).items()), str(p.get('seed', '')), p.get('data_fingerprint', ''),
  ]  # fmt: skip


def _picture(example, perturbation, aim):
  return results.safe_name(f'{example}.{perturbation}.{aim}')


class Source:
  """A run folder with rows of attacks.

  Args:
    folder: of the run.

  Raises:
    RunError: if a file in it is damaged.
  """

  def __init__(self, folder: Path):
    self.folder = folder
    self.rows = list(results.read_rows(folder, results.COLUMNS).values())
    self.label = figures.name_of(self.rows[0]) if self.rows else folder.name
    self.provenance, self.settings = provenance(folder), settings(folder)
    self.sweeps = results.read_json(folder / 'sweeps.json')
    origin = results.sibling(folder, self.settings.checkpoint) if self.settings.checkpoint else folder
    self.cost = comparison.cost_of(origin)
    self.metrics = results.read_jsonl(origin / 'metrics.jsonl')

  def rename(self, more: str) -> None:
    """Adds words to the name of the network, in the label and in all rows."""
    self.rows = [{**row, 'network': f'{figures.name_of(row)} {more}'} for row in self.rows]
    self.label = f'{self.label} {more}'

  def examples(self, perturbation: str, aim: str) -> list[str]:
    """Names of the examples whose pictures are kept."""
    names = {f'{row["file"]}-{row["slice"]:03d}-{row["annotation"]}' for row in self.rows}
    with results.open_images(self.folder) as file:
      return sorted(name for name in names if _picture(name, perturbation, aim) in (file or ()))

  def arrays(self, example: str, perturbation: str, aim: str) -> dict[str, Any]:
    """Pictures of an example under an attack."""
    return self._group(_picture(example, perturbation, aim))

  def sampling(self) -> dict[str, Any] | None:
    """The k-space of one slice, if it was kept."""
    with results.open_images(self.folder) as file:
      kept = file is not None and 'sampling' in file
    return self._group('sampling') if kept else None

  def _group(self, name):
    with results.open_images(self.folder) as file:
      return {k: v[()] for k, v in file[name].items()}
