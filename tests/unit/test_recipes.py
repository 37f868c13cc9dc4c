"""`docs/recipes.md` against the configs at full size: every hyperparameter, its source, and why they differ."""

import ast
import dataclasses
import fnmatch
import importlib
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

from jaxrec.experiments import build
from jaxrec.models import registry
from jaxrec.workflows import factory

ROOT = Path(__file__).parents[2]
NO_SOURCE = '-'
# Configs without a full size.
SMALL = ('quickstart', 'invariances_known', 'phantom_to_real')
# What a run needs to know of the machine, of files and of other runs; it changes no result of the training.
TECHNICAL = {
  'model.weights', 'model.sha256', 'model.checkpoint', 'model.batch_axis', 'model.remat', 'model.smoothing_seed',
  'train.report_every', 'train.pictures', 'train.micro_batch', 'train.start_from', 'train.checkpoint_minutes', 'train.num_devices', 'train.tensorboard', 'train.max_validation', 'train.task.frozen',
  'train.task.network', 'train.task.autoencoder', 'train.task.perceptual.vgg', 'train.task.perceptual.network',
  'train.task.perceptual.sha256', 'train.task.generator.batch_axis',
}  # fmt: skip
# Arguments of tasks that are objects, or said elsewhere in the config.
BUILT = {'loss', 'average', 'place', 'micro_batch', 'perceptual', 'image', 'frozen', 'epsilon', 'smoothing_seed'}


def configs():
  """Configs at full size by name."""
  names = sorted(p.stem for p in (ROOT / 'configs').glob('*.py'))
  found = {name: importlib.import_module(f'configs.{name}') for name in names}
  return {name: m.get_config('') for name, m in found.items() if hasattr(m, 'get_config') and name not in SMALL}


def runs_of(config, name):
  """Runs of a config, by its name and theirs."""
  if 'experiments' not in config:
    yield name, config
  for inner, run in config.get('experiments', {}).items():
    yield from runs_of(run, f'{name}/{inner}')


def flat(section, prefix):
  for key, value in section.items():
    if hasattr(value, 'items'):
      yield from flat(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def fields(name):
  """Options of a network that a config may leave out, with their defaults."""
  found = registry._MODULES[name].__dataclass_fields__
  return {
    k: f.default for k, f in found.items() if k not in ('parent', 'name') and f.default is not dataclasses.MISSING
  }


def defaults(section):
  """Options of a task and of its other networks that a config may leave out, with their defaults."""
  made = {
    k: p.default for k, p in inspect.signature(build.TASKS[section.name]).parameters.items() if p.default is not p.empty
  }
  found = {f'train.task.{k}': v for k, v in made.items() if k not in BUILT}
  for part, name in (
    ('critic', build.CRITICS.get(section.name)),
    ('generator', section.get('generator', {}).get('name')),
  ):
    if name:
      found |= {f'train.task.{part}.{k}': v for k, v in fields(name).items()}
  return found


def hyperparameters(run):
  """What decides the results of a run: from its config, or else the default of the factory that the config feeds."""
  found = {f'model.{k}': v for k, v in fields(run.model.name).items()} | dict(flat(run.model, 'model.'))
  trained = 'train' in run.stages and not run.model.checkpoint
  if trained:
    found |= defaults(run.train.task) | dict(flat(run.train, 'train.'))
    if run.train.optimizer in ('adam', 'adamw'):
      found.setdefault('train.b1', 0.9)
    else:
      found.pop('train.b1', None)
    # Without a use.
    found.pop('train.num_epochs' if run.train.num_steps else 'train.num_steps')
    if not run.train.drop_at:
      del found['train.drop_factor']
    for name in ('train.augment.noise', 'train.task.maps_weight'):
      if not found.get(name, True):
        del found[name]
    for name in ('train.ema_decay', 'train.augment.probability'):
      if not found[name]:
        for path in [path for path in found if path == name or path.startswith('train.augment.') and 'augment' in name]:
          del found[path]
    if found.pop('train.schedule.name') == 'step':
      del found['train.schedule.final']
    if not run.train.schedule.warmup:
      del found['train.schedule.warmup']
    if run.train.task.name in ('cvae', 'flow'):
      del found['train.loss']
  # Said of all networks in docs/accelerators.md.
  if found.get('model.dtype') == 'float32':
    del found['model.dtype']
  if 'attack' in run.stages:
    found |= dict(flat(run.objective, 'objective.')) | dict(flat(run.perturbation, 'perturbation.'))
    found |= {k: v for name in run.perturbation for k, v in flat(run.search.get(name, {}), f'search.{name}.')}
  return {k: v for k, v in found.items() if k not in TECHNICAL}


def tables():
  """`(patterns of runs, rows)` of every table."""
  found = []
  for section in re.split(r'^## ', (ROOT / 'docs' / 'recipes.md').read_text(), flags=re.M)[1:]:
    line = next(row for row in section.splitlines() if row.startswith('Runs: '))
    cells = [
      [c.strip() for c in row.strip().strip('|').split('|')] for row in section.splitlines() if row.startswith('| `')
    ]
    assert all(len(row) == 5 for row in cells), section[:60]
    found.append(
      (
        re.findall(r'`([^`]+)`', line),
        [[row[0].strip('`'), row[1].strip('`'), row[2].strip('`'), *row[3:]] for row in cells],
      )
    )
  return found


CONFIGS = configs()
RUNS = {name: run for config in CONFIGS for name, run in runs_of(CONFIGS[config], config)}
TABLES = tables()


def equal(a, b):
  if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
    return len(a) == len(b) and all(map(equal, a, b))
  if isinstance(a, (int, float)) and isinstance(b, (int, float)) and not isinstance(a, bool):
    return bool(np.isclose(a, b, rtol=1e-5, atol=0))
  return type(a) is type(b) and a == b


def value_of(run, path):
  found = hyperparameters(run)
  if path in found:
    return found[path]
  part = run
  for key in path.split('.'):
    if key not in part:
      return None
    part = part[key]
  # What a run does not use is not said of it.
  return None if path.split('.')[0] in ('model', 'train', 'objective', 'perturbation', 'search') else part


def rows_of(name):
  return [row for patterns, rows in TABLES if any(fnmatch.fnmatchcase(name, p) for p in patterns) for row in rows]


@pytest.mark.parametrize('name', RUNS)
def test_the_tables_list_every_hyperparameter_with_its_value(name):
  listed = {path: ast.literal_eval(ours) for path, ours, *_ in rows_of(name)}
  found = hyperparameters(RUNS[name])
  missing = {k: v for k, v in found.items() if k not in listed}
  assert not missing
  wrong = {
    k: (v, value_of(RUNS[name], k))
    for k, v in listed.items()
    if value_of(RUNS[name], k) is not None and not equal(v, value_of(RUNS[name], k))
  }
  assert not wrong, 'listed, configured'


def test_every_row_has_a_run_and_every_difference_a_reason():
  for patterns, rows in TABLES:
    runs = [run for p in patterns for name, run in RUNS.items() if fnmatch.fnmatchcase(name, p)]
    assert all(any(fnmatch.fnmatchcase(name, p) for name in RUNS) for p in patterns), patterns
    for path, ours, source, where, why in rows:
      assert any(value_of(run, path) is not None for run in runs), f'{patterns}: no run has {path}'
      if source == NO_SOURCE:
        assert why and not where, f'{patterns}: {path}'
        continue
      assert where, f'{patterns}: {path} has no place in its source'
      assert equal(ast.literal_eval(ours), ast.literal_eval(source)) == (why == ''), f'{patterns}: {path}'


def test_no_run_has_two_values_of_one_hyperparameter():
  for name, run in RUNS.items():
    paths = [path for path, *_ in rows_of(name) if value_of(run, path) is not None]
    assert len(paths) == len(set(paths)), name


def test_weights_of_vgg_features_meet_vgg_features():
  for name, run in RUNS.items():
    if run.train.task.name in ('cvae', 'wgan_vgg'):
      task = run.train.task
      assert task.perceptual.network == '', name
      with pytest.raises(ValueError, match='perceptual.vgg: is missing'):
        factory.check_features(task.name, task.get('perceptual_weight'), build.features(task.perceptual))
