"""What every option of a config may be: one table, checked before anything is built.

A row is a path, in which `*` stands for one name, and a rule. Which options a
named part takes (a search, a network, a task) follows from its factory.
"""

import fnmatch
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from jaxrec import attacks, masks
from jaxrec.audit.plan import AIMS
from jaxrec.data import annotations
from jaxrec.experiments import build
from jaxrec.invariances import known as known_networks
from jaxrec.models import registry
from jaxrec.models.unet import DTYPES
from jaxrec.training.schedules import SCHEDULES, schedule
from jaxrec.training.tasks import LOSSES
from jaxrec.workflows import factory
from jaxrec.workflows.experiment import DOMAINS

STAGES = ('train', 'evaluate', 'attack', 'invariances', 'detect', 'known', 'report', 'plan')


class Rule(NamedTuple):
  """What a value may be, in code and in words; for tuples also the rule of `each` value."""

  allows: Callable[[Any], bool]
  words: str
  each: 'Rule | None' = None


def _whole(least: int, most: int = 10**9) -> Rule:
  return Rule(
    lambda x: isinstance(x, int) and not isinstance(x, bool) and least <= x <= most,
    f'a whole number from {least} to {most}',
  )


def _real(least: float, most: float, *, above: bool = False, below: bool = False) -> Rule:
  def allows(x):
    number = isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)
    return number and (least < x if above else least <= x) and (x < most if below else x <= most)

  return Rule(allows, f'a number {"above" if above else "from"} {least:g} {"and below" if below else "to"} {most:g}')


def _choice(*names: str) -> Rule:
  return Rule(lambda x: isinstance(x, str) and x in names, f'one of {", ".join(names)}')


def _part(table: Iterable[str]) -> Rule:
  """A name in a table, or `package.module:factory` of the user."""
  named = _choice(*table)
  return Rule(lambda x: isinstance(x, str) and ':' in x or named.allows(x), named.words)


def _several(rule: Rule, *, least: int = 1, most: int = 10_000) -> Rule:
  count = f'{least}' if least == most else f'{least} or more'
  return Rule(
    lambda x: isinstance(x, (tuple, list)) and least <= len(x) <= most, f'a tuple of {count}, each {rule.words}', rule
  )


def _strengths(most: float) -> Rule:
  """One strength or a tuple of them."""

  def allows(x):
    values = x if isinstance(x, (tuple, list)) else (x,)
    return any(not each.allows(v) or v > 0 for v in values)

  each = _real(0, most)
  return Rule(allows, 'at least one strength above 0', each)


def _optional(rule: Rule) -> Rule:
  return rule._replace(allows=lambda x: x is None or rule.allows(x))


_FLAG = Rule(lambda x: isinstance(x, bool), 'True or False')
_TEXT = Rule(lambda x: isinstance(x, str), 'a text')
_FILE = Rule(lambda x: isinstance(x, str) and (not x or os.path.isfile(x)), 'a file that exists')
_FOLDER = Rule(lambda x: isinstance(x, str) and (not x or os.path.isdir(x)), 'a folder that exists')
_DIGEST = Rule(
  lambda x: isinstance(x, str) and bool(re.fullmatch('(?i:[0-9a-f]{64})?', x)), 'a SHA-256 of 64 hexadecimal digits'
)
# Runs of this config or of other run folders; `_check_runs` looks for them.
_RUN = Rule(_TEXT.allows, 'the name of a run')
_RUNS = _several(_RUN, least=0)
_SIZE = _whole(1, 100_000)
_PIXELS = _whole(8, 8192)
_RATE = _real(0, 1, above=True)
_WEIGHT = _real(0, 1e9)
_RADIUS = _real(0, 10)
_HU = _real(-1e5, 1e5)
# Lower and upper, or nothing.
_RANGE = Rule(
  lambda x: isinstance(x, (tuple, list)) and len(x) in (0, 2) and (not all(map(_HU.allows, x)) or list(x) == sorted(x)),
  'a tuple of two numbers, the lower one first, or ()',
  _HU,
)
_POSITIVE = _several(_real(0, 1e4, above=True))
# Masks and shuffles add to it and are to stay below 2^32.
_SEED = _whole(0, 2**31 - 1)

_SEARCH = {
  'name': _part((*build.SEARCHES, 'grid')), 'num_steps': _whole(1), 'step': _choice(*build.STEPS), 'step_size': _real(0, 1e3, above=True),
  'momentum': _real(0, 1), 'num_restarts': _whole(1, 10_000), 'num_samples': _whole(1), 'chunk': _SIZE, 'step_degrees': _real(0.001, 90),
}  # fmt: skip
_PERTURBATION = {
  'name': _part(build.PERTURBATIONS), 'norm': _choice('l2', 'linf'), 'per_coil': _FLAG, 'columns': _choice('acquired', 'sampled'),
  'start': _choice('zero', 'random'), 'reference': _choice('norm', 'deviation'), 'method': _choice('fourier', 'resampled'),
}  # fmt: skip
_NETWORK = {
  'name': _part(registry.NAMES), 'dtype': _choice(*DTYPES), 'norm': _choice('instance', 'batch'), 'activation': _choice('leaky_relu', 'prelu'), 'activation_first': _FLAG,
  'upsample': _choice('transposed', 'bilinear'), 'batch_axis': _optional(_TEXT), 'crop': _optional(_several(_PIXELS, least=2, most=2)),
  'remat': _FLAG, 'conditional': _FLAG, 'reference': _FLAG, 'size': _several(_PIXELS, least=2, most=2), 'stages': _several(_SIZE),
  'pools': _whole(1, 10), 'sens_pools': _whole(1, 10), 'depth': _whole(1, 10), 'blocks': _whole(1, 100), 'num_cascades': _whole(1, 100),
  'smoothing_samples': _whole(0, 1000), 'smoothing_std': _real(0, 10), 'smoothing_seed': _SEED, 'out_chans': _SIZE,
  'latent': _SIZE, 'texture': _whole(0, 101), 'texture_width': _SIZE, 'texture_scale': _real(0, 1e6, above=True), 'latent_scale': _real(0, 1e3, above=True),
  **dict.fromkeys(('chans', 'sens_chans', 'hidden', 'code', 'width', 'chunk', 'classes', 'class_hidden', 'embedding', 'encoder_width'), _SIZE),
}  # fmt: skip
_PHANTOM = {
  'seed': _SEED, 'train': _SIZE, 'val': _SIZE, 'slices': _whole(1, 1000), 'rows': _whole(16, 4096), 'cols': _whole(16, 4096), 'coils': _whole(1, 256),
  'snr': _real(0, 1e9, above=True), 'shapes': _real(0, 1), 'repeats': _whole(1, 10_000), 'nodules': _whole(0, 1000), 'pixels': _whole(16, 4096),
  'photons': _real(1, 1e12), 'dose': _real(0, 1, above=True), 'diameters': _POSITIVE, 'contrasts': _several(_real(-1e4, 1e4)),
}  # fmt: skip


def _at(section: str, rules: dict[str, Rule]) -> dict[str, Rule]:
  return {f'{section}.{name}': rule for name, rule in rules.items()}


OPTIONS: dict[str, Rule] = {
  'name': _TEXT, 'profile': _choice('paper', 'demo', 'smoke'), 'label': _TEXT, 'seed': _SEED, 'stages': _several(_choice(*STAGES)),
  **_at('data', {
    'root': _FOLDER, 'layout': _part(('fastmri', 'ldct')), 'range': _choice('volume', 'slice'), 'challenge': _choice('multicoil', 'singlecoil'), 'annotations': _FILE,
    'boxes': _choice(*annotations.POLICIES), 'keep_slices': _real(0, 1, above=True), 'form': _choice('kspace', 'image'), 'emulate_single_coil': _FLAG,
    'mask': _choice(*masks.KINDS), 'center_fractions': _several(_real(0, 1)), 'accelerations': _several(_whole(1, 1000)), 'workers': _whole(0, 1024),
    'relative': _FLAG, 'added_noise': _RADIUS, 'inserted.count': _whole(0, 1000), 'inserted.diameters': _POSITIVE,
    'inserted.contrasts': _several(_real(-10, 10)), 'patients': _FILE, 'offset': _real(-1e5, 1e5), 'patch': _whole(0, 8192),
    'evaluate_patch': _whole(0, 8192), 'centre_hu': _RANGE, 'patches_per_patient': _whole(1),
    **_at('phantom', _PHANTOM),
  }),
  **_at('model', {**_NETWORK, 'weights': _FILE, 'sha256': _DIGEST, 'checkpoint': _RUN}),
  **_at('train', {
    'batch_size': _SIZE, 'num_steps': _whole(0), 'num_epochs': _real(0, 1e6), 'loss': _choice(*LOSSES), 'optimizer': _choice('adam', 'adamw', 'rmsprop'),
    'learning_rate': _RATE, 'drop_at': _real(0, 1), 'drop_factor': _RATE, 'weight_decay': _real(0, 1), 'b1': _real(0, 1, below=True),
    'validate_every': _whole(0), 'max_validation': _whole(0), 'report_every': _whole(1), 'pictures': _whole(0, 1000), 'num_devices': _whole(0, 100_000), 'tensorboard': _FLAG,
    'best': _choice('loss', 'ssim', 'psnr', 'last'), 'patience': _whole(0), 'micro_batch': _whole(0), 'checkpoint_minutes': _real(0, 1e6), 'start_from': _FILE,
    'ema_decay': _real(0, 1, below=True),
    **_at('augment', {'probability': _real(0, 1), 'max_degrees': _real(0, 90), 'max_pixels': _real(0, 8192), 'noise': _several(_real(0, 10, above=True), least=0, most=2)}),
    **_at('schedule', {'name': _choice(*SCHEDULES), 'warmup': _real(0, 1, below=True), 'final': _real(0, 1)}),
  }),
  **_at('train.task', {
    'name': _part(build.TASKS), **dict.fromkeys(('network', 'autoencoder', 'frozen'), _RUN), 'layer': _whole(0, 1000), 'image': _choice(*DOMAINS),
    'generator_learning_rate': _RATE, 'critic_learning_rate': _RATE, 'project': _FLAG, 'num_iterations': _whole(1, 10_000), 'replays': _whole(1, 10_000),
    'step_size': _real(0, 1e3, above=True), 'mix_probability': _real(0, 1), 'mix_steps': _whole(1), 'image_steps': _whole(1, 1000),
    'gradient_steps': _whole(1, 1000), 'penalty': _WEIGHT, '*_weight': _WEIGHT,
    'perceptual.vgg': _FILE, 'perceptual.kind': _choice('vgg16', 'vgg19'), 'perceptual.sha256': _DIGEST, 'perceptual.network': _RUN,
    **_at('critic', _NETWORK), **_at('generator', _NETWORK), **_at('search', _SEARCH),
    **_at('perturbation', {
      **_PERTURBATION, 'relative_radius': _real(0, 10, above=True), 'max_degrees': _real(0, 90, above=True), 'max_pixels': _real(0, 8192, above=True),
    }),
  }),
  **_at('perturbation.*', {**_PERTURBATION, 'generator': _RUN, 'relative_radius': _strengths(1), 'max_degrees': _strengths(90), 'max_pixels': _strengths(8192)}),
  **_at('search.*', _SEARCH),
  **{f'{section}.{name}': rule for section in ('objective', 'train.task.objective') for name, rule in {
    'name': _part(build.OBJECTIVES), 'ssim_weight': _real(0, 1)}.items()},
  **_at('defence', {
    'name': _part(build.DEFENCES), 'relative_radius': _RADIUS, 'num_steps': _whole(1), 'shifts': _several(_whole(-8192, 8192)),
  }),
  **_at('attack', {
    'attacked': _several(_choice(*AIMS)), 'batch_size': _whole(0), 'chunk': _whole(0), 'max_examples': _whole(0), 'pictures': _whole(0),
    'strict': _FLAG, 'splits': _several(_choice('train', 'val')), 'accelerations': _several(_whole(1, 1000), least=0),
    'center_fractions': _several(_real(0, 1), least=0), 'sees': _choice('defence', 'network'), 'draws': _whole(1, 10_000),
    'lipschitz_iterations': _whole(0, 10_000), 'surrogate': _RUN, 'titles.*': _TEXT,
  }),
  **_at('evaluate', {'split': _choice('val', 'test'), 'batch_size': _SIZE}),
  **_at('plan', {
    'targets': _several(_TEXT), 'programs': _several(_TEXT), 'shape': _several(_SIZE, least=2), 'crop': _several(_PIXELS, least=2, most=2),
  }),
  **_at('report', {'draws': _whole(1, 10**7), 'runs': _several(_FOLDER, least=0), 'generators': _RUNS}),
  **_at('invariances', {
    'num_samples': _whole(2), 'chunk': _SIZE, 'corrections': _whole(0, 10_000), 'sites': _SIZE, 'others': _SIZE, 'scans': _whole(2),
    'alpha': _real(0, 1, above=True, below=True), 'scales': _POSITIVE, 'pictures': _whole(0), 'shown': _whole(1),
    'samplers.*.network': _RUN, 'samplers.*.autoencoder': _RUN, 'samplers.*.flows': _RUNS, 'samplers.*.anatomies': _RUNS,
  }),
  **_at('detect', {
    'networks': _RUNS, 'slices': _SIZE, 'calibration': _SIZE, 'repeats': _whole(4, 10_000), 'reach': _whole(1, 4096), 'folds': _whole(2, 10_000),
  }),
  **_at('known', {
    'patients': _whole(4, 10_000), 'scans': _whole(4, 10_000), 'reference': _whole(4, 10_000), 'train_steps': _whole(1), 'removed': _real(0, 1e4, above=True),
    'batch_size': _SIZE, 'learning_rate': _RATE, 'sampled': _several(_choice(*known_networks.NAMES), least=0), 'sampled_aims': _several(_real(0, 1e4, above=True), least=0),
    'vae_steps': _whole(1), 'vae_learning_rate': _RATE, 'flow_steps': _whole(1), 'flow_learning_rate': _RATE, 'weights.*_weight': _WEIGHT,
    **{f'{part}.{name}': rule for part in ('bottleneck', 'vae', 'critic', 'flow') for name, rule in _NETWORK.items()},
  }),
  **{f'{section}.{name}': rule for section in ('detect', 'known') for name, rule in {
    'side': _whole(8, 4096), 'sites': _SIZE, 'few': _whole(1, 10_000), 'diameters': _POSITIVE, 'aims': _POSITIVE, 'level': _real(0, 1, above=True, below=True),
    'draws': _whole(1, 10**7), 'searched_aims': _several(_real(0, 1e4, above=True), least=0), 'num_steps': _whole(0)}.items()},
}  # fmt: skip


def check(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
  """Checks every option of a config, of its experiments first.

  Args:
    config: a config of `configs/`.
    workdir: its run folder, beside or in which other runs are looked for.

  Raises:
    ValueError: naming the first option that is wrong in full, and what to give instead.
  """
  _check(config, Path(workdir), '', set())


def rule_of(name: str) -> Rule | None:
  """The rule of an option by its name within an experiment, such as `train.task.layer`."""
  if name in OPTIONS:
    return OPTIONS[name]
  parts = name.split('.')
  for pattern, rule in OPTIONS.items():
    if (
      '*' in pattern
      and pattern.count('.') == len(parts) - 1
      and all(map(fnmatch.fnmatchcase, parts, pattern.split('.')))
    ):
      return rule
  return None


def leaves(section: ml_collections.ConfigDict, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Options of an experiment and their values; those of inner experiments are not among them."""
  for name, value in section.items():
    if isinstance(value, ml_collections.ConfigDict):
      if prefix or name != 'experiments':
        yield from leaves(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


def _complaint(rule, value):
  if not rule.allows(value):
    unknown = isinstance(value, str) and rule.words.startswith('one of ')
    return f'{value!r} is {"unknown; choose" if unknown else "not allowed; give"} {rule.words}'
  values = () if rule.each is None else value if isinstance(value, (tuple, list)) else (value,)
  return next((words for x in values if (words := _complaint(rule.each, x))), '')


def _check(config, folder, prefix, planned):
  for name, experiment in config.get('experiments', {}).items():
    _check(experiment, folder / name, f'{prefix}experiments.{name}.', planned)
    if 'train' in experiment.stages or experiment.get('model', {}).get('weights'):
      planned.add(folder / name)
  for name, value in leaves(config):
    rule = rule_of(name)
    if rule is None:
      if _is_own(config, name):
        continue
      raise ValueError(f'{prefix}{name}: is no option; leave it out')
    words = _complaint(rule, value)
    if words:
      raise ValueError(f'{prefix}{name}: {words}')
    if rule in (_RUN, _RUNS) and set(config.stages) != {'report'}:
      _check_runs(f'{prefix}{name}', value, folder if name.split('.')[0] in _AFTER else folder.parent, planned)
  for section, table, own in _PARTS:
    _check_part(config, section, table, own, prefix)
  _check_together(config, prefix)


_NEEDS = {
  'train': 'model',
  'evaluate': 'model',
  'attack': 'model',
  'invariances': 'experiments',
  'detect': 'experiments',
  'known': 'known',
}
# Sections that speak of the experiments of their own config; the others speak of those beside them.
_AFTER = ('invariances', 'detect', 'report')


def _check_runs(name, value, base, planned):
  for run in (value,) if isinstance(value, str) else value:
    if run and not (base / run in planned or os.path.isdir(base / run) or os.path.isdir(run)):
      known = ', '.join(sorted(str(p.relative_to(base)) for p in planned if p.is_relative_to(base)))
      raise ValueError(
        f'{name}: {run!r} is no run folder and none that is trained before; {f"choose among {known}" if known else "train it first"}'
      )


def _arguments(table, **more):
  return {name: {*inspect.signature(made).parameters, *more.get(name, ())} for name, made in table.items()}


# Named parts: section, options by name, options of the section itself.
_FAMILIES = _arguments(build.PERTURBATIONS)
_SEARCHES = _arguments(
  build.SEARCHES,
  pgd=('step_size', 'momentum', 'num_restarts'), apgd=('num_restarts',), random=('num_restarts',),
) | {'grid': {'step_degrees'}}  # fmt: skip
_OBJECTIVES = _arguments(build.OBJECTIVES)
_NETWORKS = {name: set(registry.fields(name)) for name in registry.NAMES}
_PARTS: tuple[tuple[str, dict[str, set[str]], set[str]], ...] = (
  ('perturbation.*', _FAMILIES, {'generator'}),
  ('train.task.perturbation', _FAMILIES, set()),
  ('search.*', _SEARCHES, set()),
  ('train.task.search', _SEARCHES, set()),
  ('objective', _OBJECTIVES, set()),
  ('train.task.objective', _OBJECTIVES, set()),
  ('model', _NETWORKS, {'weights', 'sha256', 'checkpoint'}),
  ('train.task.critic', _NETWORKS, set()),
  ('train.task.generator', _NETWORKS, {'latent', 'latent_scale'}),
  ('defence', {'none': set()} | _arguments({'cyclic': attacks.cyclic}), set()),
  ('train.task', _arguments(
    build.TASKS, adversarial=('generator', 'generator_learning_rate'), cvae=('network', 'critic_learning_rate'),
    flow=('network', 'autoencoder', 'layer', 'image'), wgan_vgg=('critic_learning_rate',), du_gan=('critic_learning_rate',),
  ), set()),
)  # fmt: skip


def _sections(config, pattern):
  """Sections of a config that match a pattern, and the names that they have there."""
  found = [('', config)]
  for part in pattern.split('.'):
    found = [
      (f'{name}.{key}'.lstrip('.'), value) for name, section in found for key, value in section.items()
      if fnmatch.fnmatchcase(key, part) and isinstance(value, ml_collections.ConfigDict)
    ]  # fmt: skip
  return found


def _is_own(config, name):
  """Whether an option belongs to a part that the user made, which checks it."""
  parts = name.split('.')
  return any(
    name.startswith(f'{found}.') and ':' in str(section.get('name', ''))
    for depth in range(1, len(parts)) for found, section in _sections(config, '.'.join(parts[:depth]))
  )  # fmt: skip


def _check_part(config, pattern, table, own, prefix):
  for name, section in _sections(config, pattern):
    # A perturbation without a name is called as its family, a search is PGD, and a critic that of its task.
    unnamed = {'perturbation': name.split('.')[-1], 'search': 'pgd'}.get(name.split('.')[0], '')
    kind = section.get('name', unnamed)
    if not kind or ':' in kind:
      continue
    if kind not in table:
      raise ValueError(f'{prefix}{name}: {kind!r} is unknown; choose one of {", ".join(table)}')
    takes = table[kind] | own
    for key in section:
      if key != 'name' and key not in takes:
        known = sorted(k for k in takes if rule_of(f'{name}.{k}'))
        raise ValueError(f'{prefix}{name}.{key}: {kind} has no such option; it takes {", ".join(known) or "none"}')


def _check_together(config, prefix):
  """What two options say together."""
  for stage, section in _NEEDS.items():
    # A comparison leaves training and attacks to its experiments.
    if stage in config.stages and section not in config and not (section == 'model' and 'experiments' in config):
      raise ValueError(
        f'{prefix}stages: {stage} needs {"the experiments that train its networks" if stage in _AFTER else section}; use a config that has them'
      )
  for name in config.get('perturbation', {}):
    if name != 'rotation' and config.search.get(name, {}).get('name') == 'grid':
      raise ValueError(f'{prefix}search.{name}.name: grid is for rotation; choose pgd, apgd or random')
  for section in ('data', 'attack'):
    fractions, factors = (config.get(section, {}).get(name, ()) for name in ('center_fractions', 'accelerations'))
    if len(fractions) != len(factors):
      raise ValueError(
        f'{prefix}{section}.center_fractions: {fractions} does not fit accelerations={factors}; give as many of each'
      )
  if 'train' in config.stages and 'model' in config and not (config.model.weights or config.model.checkpoint):
    task = config.train.task
    if task.name in ('cvae', 'wgan_vgg'):
      features = build.features(task.get('perceptual', {}))
      factory.check_features(task.name, task.get('perceptual_weight'), features, f'{prefix}train.task')
  for section, name, most in (('detect', 'few', 'repeats'), ('known', 'few', 'scans')):
    own = config.get(section)
    if own and own[name] > own[most]:
      raise ValueError(f'{prefix}{section}.{name}: {own[name]} is more than {section}.{most}={own[most]}; lower it')
  if 'detect' in config and 2 * config.detect.reach + 1 > config.detect.side:
    raise ValueError(
      f'{prefix}detect.reach: 2 * {config.detect.reach} + 1 pixels do not fit into detect.side={config.detect.side}; lower it'
    )
  judged = config.get('detect', {}).get('networks', ())
  for name, sampler in config.get('invariances', {}).get('samplers', {}).items():
    if sampler.network not in judged:
      raise ValueError(
        f'{prefix}invariances.samplers.{name}.network: {sampler.network!r} is not among detect.networks, whose observers judge its samples; add it'
      )
  if 'known' in config and config.known.side % 2:
    raise ValueError(f'{prefix}known.side: {config.known.side} is odd; give an even number')
  train = config.get('train', {})
  if 'model' in config and 'data' in config:
    _check_network(config, prefix)
  _check_schedule(train, prefix)
  _check_augment(config, prefix)
  if train.get('task', {}).get('name') in ('cvae', 'flow') and train.best not in ('loss', 'last'):
    raise ValueError(
      f'{prefix}train.best: {train.best!r} is not measured by the task {train.task.name}; choose loss or last'
    )
  if train.get('best') == 'last' and train.patience:
    raise ValueError(
      f'{prefix}train.patience: {train.patience} validations without a better score, but train.best=last asks for no score; set 0'
    )


def _check_network(config, prefix):
  """Of an experiment with a network of its own: its stages and its data."""
  if 'attack' in config.stages and not config.get('perturbation'):
    raise ValueError(f'{prefix}perturbation: is empty; give at least one, or leave out the stage attack')
  if 'evaluate' in config.stages and not _is_of_kspace(config):
    raise ValueError(f'{prefix}stages: evaluate is for k-space; leave it out')
  if 'evaluate' in config.stages and config.evaluate.split != 'val' and not config.data.root:
    raise ValueError(
      f'{prefix}evaluate.split: the phantom has no volumes to {config.evaluate.split}; use val, or set data.root'
    )
  taken = registry.takes_scans(config.model.name)
  if taken is not None and taken != _is_of_kspace(config):
    what, given = ('k-space', 'images') if taken else ('images', 'k-space')
    raise ValueError(
      f'{prefix}model.name: {config.model.name} takes {what}, and data.form and data.layout give {given}; choose a network of {given}'
    )


def _check_schedule(train, prefix):
  chosen = train.get('schedule', {})
  if chosen and (chosen.name != 'step' or chosen.warmup) and _updates(train.task) > 1:
    raise ValueError(
      f'{prefix}train.schedule: the task {train.task.name} updates several times with a batch, and its learning rate has '
      'the drop of train.drop_at alone; use name=step and warmup=0'
    )
  if chosen:
    try:
      schedule(train.learning_rate, 1, drop_at=train.drop_at, drop_factor=train.drop_factor, **chosen)
    except ValueError as error:
      raise ValueError(f'{prefix}{error}') from None


def _updates(task):
  return factory.updates_per_step(build.task_factory(task.name), task)


def _check_augment(config, prefix):
  chosen = config.get('train', {}).get('augment', {})
  noise = chosen.get('noise', ())
  if noise and (len(noise) != 2 or noise[0] > noise[1]):
    raise ValueError(f'{prefix}train.augment.noise: {tuple(noise)}; give the least and the largest eta, or () for none')
  if chosen.get('probability') and not any(chosen[key] for key in build.MOVEMENTS.values()):
    raise ValueError(
      f'{prefix}train.augment.probability: moves nothing; give train.augment.{" or ".join(build.MOVEMENTS.values())} above 0'
    )
  for name, nothing in (('probability', '0'), ('noise', '()')):
    if chosen.get(name) and not _is_of_kspace(config):
      raise ValueError(f'{prefix}train.augment.{name}: movements and noise are of k-space; set it to {nothing}')


def _is_of_kspace(config):
  return config.data.get('layout') != 'ldct' and config.data.get('form') != 'image'
