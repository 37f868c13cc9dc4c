"""Every option of every config has a rule, and every rule says in one line what it refuses."""

import dataclasses
import importlib
from pathlib import Path

import ml_collections
import pytest

from configs import common, unet_8x
from jaxrec.experiments import build, options
from jaxrec.workflows import experiment

ROOT = Path(__file__).parents[2]
CONFIGS = [p.stem for p in sorted((ROOT / 'configs').glob('*.py')) if 'def get_config' in p.read_text()]


@pytest.fixture(autouse=True)
def without_data(monkeypatch):
  for name in ('FASTMRI_ROOT', 'LDCT_ROOT'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.chdir(ROOT)


def config_of(name, profile='smoke'):
  return importlib.import_module(f'configs.{name}').get_config(profile)


def experiments(config):
  yield config
  for inner in config.get('experiments', {}).values():
    yield from experiments(inner)


def give_features(config):
  """VGG files that the profiles at full size ask for."""
  for run in experiments(config):
    features = run.get('train', {}).get('task', {}).get('perceptual')
    if features is not None and not features.network:
      features.vgg = __file__


@pytest.mark.parametrize('name', CONFIGS)
def test_every_option_has_a_rule_that_the_profiles_pass(name, tmp_path):
  for profile in ('', *common.PROFILES):
    if name in ('invariances_known', 'phantom_to_real') and profile == 'paper':
      continue
    config = config_of(name, profile)
    leaves = [leaf for run in experiments(config) for leaf, _ in options.leaves(run)]
    assert leaves and not [leaf for leaf in leaves if options.rule_of(leaf) is None]
    give_features(config)
    options.check(config, tmp_path)
    build.build(config, tmp_path)


PARTS = {
  'data': (experiment.MRData, experiment.CTData), 'data.inserted': (experiment.Inserted,), 'train': (experiment.Training,),
  'train.schedule': (experiment.Schedule,), 'train.task.perceptual': (experiment.Features,), 'attack': (experiment.Attack,),
  'evaluate': (experiment.Evaluation,), 'plan': (experiment.Forecast,), 'report': (experiment.Report,),
  'detect': (experiment.Detection,), 'invariances': (experiment.Invariances,), 'known': (experiment.Known,),
}  # fmt: skip
# Masks are a part of the data, titles of sweeps, devices of the whole experiment.
ELSEWHERE = {'mask', 'center_fractions', 'accelerations', 'titles', 'num_devices'}


@pytest.mark.parametrize('section', PARTS)
def test_no_option_is_lost_on_the_way_to_the_stages(section):
  fields = {f.name for part in PARTS[section] for f in dataclasses.fields(part)}
  given = {name.removeprefix(f'{section}.').split('.')[0] for name in options.OPTIONS if name.startswith(f'{section}.')}
  assert given and given - ELSEWHERE <= fields


@pytest.mark.parametrize('name', CONFIGS)
def test_an_unknown_profile_is_refused(name):
  with pytest.raises(ValueError, match="^config profile: 'fast' is unknown; choose one of "):
    config_of(name, 'fast')


# Arguments that are objects, made from other options.
BUILT = {
  'module', 'optimizer', 'adversary', 'generator_optimizer', 'critic_optimizer', 'average', 'loss', 'epsilon', 'observe', 'codes',
  'perturbation', 'search', 'objective', 'critic', 'generator', 'perceptual', 'reconstruct', 'complete', 'micro_batch', 'place',
}  # fmt: skip


@pytest.mark.parametrize('section', [section for section, *_ in options._PARTS])
def test_every_argument_of_every_part_has_a_rule(section):
  _, table, own = next(part for part in options._PARTS if part[0] == section)
  wanted = set().union(own, *table.values()) - BUILT
  assert not [key for key in wanted if options.rule_of(f'{section.replace("*", "any")}.{key}') is None]


@pytest.mark.parametrize('name', options.OPTIONS)
def test_no_rule_takes_everything(name):
  rule = options.OPTIONS[name]
  for value in (object(), float('nan'), float('inf'), -1e30, 1e30, {}, (object(),), ('', 1, None), b'x'):
    assert options._complaint(rule, value), value


REFUSED = {
  'attack.batch_size': (-2, 1.5, True, None, '1', (1,)),
  'train.batch_size': (0, -2, 10**9),
  'train.report_every': (0, -1),
  'train.validate_every': (-1,),
  'train.learning_rate': (0.0, -1e-3, 1e3, float('nan'), float('inf')),
  'train.drop_factor': (0.0, 2.0),
  'train.best': ('foo', 'nmse', ''),
  'train.loss': ('huber',),
  'train.num_steps': (-1,),
  'seed': (-1, 2**32, 0.5),
  'data.keep_slices': (0, 0.0, -1.0, 5),
  'data.accelerations': ((), (0,), ('8',), (8, 4), 8),
  'data.center_fractions': ((1.5,), (-0.1,), ('a',)),
  'data.phantom.rows': (0, 10**9),
  'data.root': ('/nowhere', 3, 5000 * 'x', 'a\0b'),
  'data.annotations': ('/nowhere.csv',),
  'attack.max_examples': (-1,),
  'attack.attacked': ((), ('foot',), 'region'),
  'attack.splits': (('test',),),
  'model.chans': (0, -1),
  'model.pools': (0, 100),
  'model.name': ('transformer', 'varnet'),
  'model.checkpoint': ('no_such_run', 3, 300 * 'x', 'a\0b'),
  'model.sha256': ('abc',),
  'train.augment.noise': ((0.1,), (0.3, 0.1), (0.0, 0.1), (0.1, 0.2, 0.3), 0.1),
  'report.draws': (0,),
  'report.runs': (('/nowhere',),),
  'search.coil_noise.step_size': (-1, 0),
  'search.coil_noise.num_steps': (0,),
  'search.coil_noise.name': ('newton', 'grid', 'random'),
  'search.coil_noise.step': ('newton',),
  'perturbation.coil_noise.relative_radius': (1e30, -0.1, (0.0,), (0.01, 'a'), (), 'a'),
  'perturbation.rotation.max_degrees': ((1e9,), (91.0,)),
  'search.rotation.step_degrees': (1e-30, 0, 91.0),
  'perturbation.coil_noise.norm': ('l1',),
  'objective.name': ('region_vgg',),
  'defence.name': ('wall',),
  'stages': ((), ('dance',), 'train'),
  'profile': ('fast',),
}


@pytest.mark.parametrize('name, value', [(name, value) for name, values in REFUSED.items() for value in values])
def test_a_refused_value_is_named_with_its_option(name, value, tmp_path):
  config = unet_8x.get_config('smoke')
  *sections, leaf = name.split('.')
  section = config
  for part in sections:
    section = section[part]
  with section.ignore_type():
    section[leaf] = value
  inner = ml_collections.ConfigDict({'stages': ('report',), 'experiments': {'one': config}})
  for given, prefix in ((config, ''), (inner, 'experiments.one.')):
    with pytest.raises(ValueError) as caught:
      options.check(given, tmp_path / 'run')
    message = str(caught.value)
    # An acceleration too many is one central fraction too few; a part that takes other options is named by those.
    assert message.startswith(f'{prefix}{name}') or message.startswith(f'{prefix}{name.rsplit(".", 1)[0]}.'), message
    assert '\n' not in message and '; ' in message and len(message) < 300 + len(str(value))


TOGETHER = {
  'an option of another search': (lambda c: c.search.coil_noise.update(num_samples=3), 'search.coil_noise.num_samples: pgd has no such option; it takes momentum'),
  'an option of nothing': (lambda c: c.train.update(learning_rte=1.0), 'train.learning_rte: is no option'),
  'a known network': (lambda c: c.update(stages=('known',)), 'stages: known needs known; use a config that has'),
  'samples of one network': (lambda c: c.update(stages=('invariances',)), 'stages: invariances needs the experiments that train its networks'),
  'nothing to attack with': (lambda c: [c.perturbation.__delattr__(n) for n in ('coil_noise', 'rotation')], 'perturbation: is empty'),
  'a perturbation of no family': (lambda c: c.perturbation.update(blur={'relative_radius': 0.1}), "perturbation.blur: 'blur' is unknown"),
  'test volumes of a phantom': (lambda c: [c.update(stages=('train', 'evaluate')), c.evaluate.update(split='test')], 'evaluate.split: the phantom has no volumes to test; use val, or set data.root'),
  'an older name': (lambda c: c.train.task.update(name='flow', network='', image='low_dose'), "train.task.image: 'low_dose' is unknown; choose one of input, target"),
  'k-space of images': (lambda c: c.data.update(form='image'), 'model.name: unet_recon takes k-space, and data.form and data.layout give images'),
  'images of k-space': (lambda c: [c.model.__delattr__('crop'), c.model.update(name='unet_image')], 'model.name: unet_image takes images, .* give k-space'),
  'SSIM of a flow': (lambda c: c.train.task.update(name='flow', network=''), "train.best: 'ssim' is not measured by the task flow"),
  'patience without a score': (lambda c: c.train.update(best='last', patience=2), 'train.patience: 2 validations .* train.best=last asks for no score'),
}  # fmt: skip


@pytest.mark.parametrize('name, option, value, words', [
  ('invariances_cnn10', 'invariances.scans', 1, 'a whole number from 2'),
  ('invariances_cnn10', 'invariances.samplers.denoiser.network', 'vae', 'is not among detect.networks'),
  ('invariances_cnn10', 'detect.few', 15, 'is more than detect.repeats=14'),
  ('invariances_cnn10', 'detect.reach', 16, 'do not fit into detect.side=32'),
  ('invariances_cnn10', 'data.centre_hu', (1.0,), 'a tuple of two numbers'),
  ('invariances_cnn10', 'data.centre_hu', (1, 'a'), 'a number from -100000'),
  ('invariances_cnn10', 'data.centre_hu', (-600.0, -950.0), 'a tuple of two numbers, the lower one first'),
  ('invariances_cnn10', 'data.layout', 'films', "'films' is unknown; choose one of fastmri, ldct"),
  ('invariances_known', 'known.patients', 3, 'a whole number from 4'),
  ('invariances_known', 'known.few', 193, 'is more than known.scans=192'),
  ('invariances_known', 'known.side', 17, 'is odd'),
  ('invariances_known', 'known.bottleneck.code', 0, 'a whole number from 1'),
  ('invariances_known', 'known.sampled', ('haar', 'bottelneck'), "'bottelneck' is unknown; choose one of identity, .*, bottleneck"),
])  # fmt: skip
def test_analyses_refuse_too_little(name, option, value, words, tmp_path):
  config = config_of(name)
  *sections, leaf = option.split('.')
  section = config
  for part in sections:
    section = section[part]
  section[leaf] = value
  with pytest.raises(ValueError, match=f'{option}: .*{words}'):
    options.check(config, tmp_path)


@pytest.mark.parametrize('kind', TOGETHER)
def test_options_that_do_not_go_together_are_refused(kind, tmp_path):
  change, words = TOGETHER[kind]
  config = unet_8x.get_config('smoke')
  change(config)
  with pytest.raises(ValueError, match=f'^{words}'):
    options.check(config, tmp_path)


def test_a_part_of_the_user_takes_what_it_likes(tmp_path):
  config = unet_8x.get_config('smoke')
  config.objective = ml_collections.ConfigDict({'name': 'mine.losses:sharpness', 'power': 3})
  options.check(config, tmp_path)


@pytest.mark.parametrize('name, option, run', [
  ('adversarial_unet', 'experiments.attack_standard.perturbation.generator.generator', 'generator_none'),
  ('defences', 'experiments.cyclic.model.checkpoint', 'standrd'),
  ('invariances_cnn10', 'experiments.vae.train.task.network', 'flow_output'),
  ('invariances_cnn10', 'invariances.samplers.denoiser.flows', ('flow_1',)),
  ('invariances_networks', 'detect.networks', ('cnn10', 'redcnn', 'wganvgg', 'bottleneck', 'cnn9')),
])  # fmt: skip
def test_runs_that_are_named_are_trained_before_or_exist(name, option, run, tmp_path):
  config = config_of(name)
  *sections, leaf = option.split('.')
  section = config
  for part in sections:
    section = section[part]
  with section.unlocked():
    section[leaf] = run
  wrong = run if isinstance(run, str) else run[-1]
  with pytest.raises(
    ValueError, match=f"^{option}: '{wrong}' is no run folder and none that is trained before; choose among "
  ):
    options.check(config, tmp_path / 'all')
  (tmp_path / 'all' / wrong).mkdir(parents=True)
  options.check(config, tmp_path / 'all')
