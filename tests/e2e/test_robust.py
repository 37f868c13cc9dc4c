"""Adversarial training and defences as users run them."""

import csv
import json

import jax
import numpy as np
import pytest

from configs import adversarial_unet, common, defences
from jaxrec import models, training
from jaxrec.data import singlecoil, synthetic
from jaxrec.data.errors import DataError
from jaxrec.experiments import build, options
from jaxrec.workflows import datasets, factory, train
from tests.e2e.test_main import launch


@pytest.fixture(scope='module')
def compared(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'compared'
  done = launch(workdir, config='configs/adversarial_unet.py:smoke')
  assert done.returncode == 0, done.stderr
  return workdir, done


def test_both_players_are_trained_attacked_and_reported(compared):
  workdir, done = compared
  text = (workdir / 'report.html').read_text()
  assert text.count('<img') >= 5 and 'diversity' in text
  with open(workdir / 'summary.csv') as stream:
    rows = list(csv.DictReader(stream))
  found = {(r['perturbation'], r['split'], round(float(r['strength']), 3)) for r in rows}
  etas = [0.0, *(round(e, 3) for e in adversarial_unet.ETAS.values())]
  assert found == {
    (p, s, e) for p in ('generator', 'shared_generator', 'image_noise') for s in ('train', 'val') for e in etas
  }
  clean = {r['ssim_image_mean'] for r in rows if r['strength'] == '0.0' and r['split'] == 'val'}
  assert len(clean) == 1
  assert all(0 <= float(r['budget_used']) <= 1 for r in rows)
  records = [json.loads(line) for line in (workdir / 'adversarial_5e3' / 'metrics.jsonl').read_text().splitlines()]
  assert {'loss_generator', 'gradient_norm_generator', 'diversity', 'budget_used'} <= set(records[0])
  cost = json.loads((workdir / 'adversarial_5e3' / 'cost.json').read_text())
  assert cost['steps'] == 2 and cost['forward_per_step'] == 6


def test_a_frozen_network_is_the_trained_one(compared):
  workdir, _ = compared
  frozen, standard = (
    training.Checkpointer(workdir / name / 'checkpoints') for name in ('generator_standard', 'standard')
  )
  experiment = build.build(adversarial_unet.get_config('smoke').experiments.standard, workdir / 'standard')
  data = datasets.data(experiment.data, experiment.folder)
  module, _ = factory.network(experiment.model)
  context = train.Context(data, training.data_parallel(1), build.stored)
  variables = [
    train.restored(experiment, module, workdir / name, context)[1] for name in ('generator_standard', 'standard')
  ]
  jax.tree.map(np.testing.assert_array_equal, *variables)
  frozen.close()
  standard.close()


def test_the_phantom_is_no_single_coil_data(tmp_path, monkeypatch):
  monkeypatch.setenv('FASTMRI_ROOT', '')
  with pytest.raises(DataError, match='data.root: is missing'):
    config = adversarial_unet.get_config('paper').experiments.standard
    datasets.data(build.build(config, tmp_path / 'run').data, tmp_path / 'run')
  assert not list(tmp_path.iterdir())


def test_the_same_command_computes_nothing_again(compared):
  workdir, _ = compared
  rows = (workdir / 'attack_standard' / 'rows' / '00000.jsonl').read_bytes()
  again = launch(workdir, config='configs/adversarial_unet.py:smoke')
  assert again.returncode == 0, again.stderr
  assert (workdir / 'attack_standard' / 'rows' / '00000.jsonl').read_bytes() == rows
  assert '2 done' in again.stdout


def sample_of(experiment):
  scan = synthetic.scan(0, rows=32, cols=32, coils=2)
  return singlecoil.zero_filled(scan) if experiment.data.form == 'image' else scan


@pytest.mark.parametrize('experiments', [adversarial_unet, defences])
@pytest.mark.parametrize('profile', ['demo', 'smoke'])
def test_every_experiment_has_a_task_and_a_defence(experiments, profile):
  """Every option of every run of the comparison is one that its factory takes."""
  for name, config in experiments.get_config(profile).experiments.items():
    experiment = build.build(config, '', planned=True)
    module, _ = factory.network(experiment.model)
    parallel = training.data_parallel(1)._replace(average=lambda tree: tree, axis=None)
    factory.task(experiment.training, module, parallel, 10, sample_of(experiment))
    reconstruct, surrogate = factory.defended(experiment.attack, experiment.defence, module)
    assert (surrogate is None) == (name not in ('smoothing', 'smoothing_unseen', 'cyclic_unseen')), name


MISTAKES = {
  'task': (dict(train=dict(task=dict(name='magic'))), "train.task.name: 'magic' is unknown; choose one of supervised"),
  'option': (dict(train=dict(task=dict(name='jitter', strength=1))), 'train.task.strength: is no option'),
  'perturbation': (dict(train=dict(task=dict(name='jitter', perturbation=dict(name='smell')))), "train.task.perturbation.name: 'smell'"),
  'generator': (
    dict(train=dict(task=dict(
      name='adversarial', generator=dict(name='gan'), generator_learning_rate=1.0, perturbation=dict(name='coil_noise', relative_radius=0.1)
    ))),
    "train.task.generator.name: 'gan' is unknown",
  ),
  'image generator': (
    dict(train=dict(task=dict(
      name='adversarial', generator=dict(name='dcgan'), generator_learning_rate=1.0, perturbation=dict(name='coil_noise', relative_radius=0.1)
    ))),
    'dcgan perturbs images; set data.form=image',
  ),
  'defence': (dict(defence=dict(name='prayer')), "defence.name: 'prayer' is unknown"),
  'defence of a U-Net': (dict(defence=dict(name='cyclic', relative_radius=0.1)), 'UNetRecon has no completed k-space'),
  'sees': (dict(attack=dict(sees='nothing')), "attack.sees: 'nothing' is unknown"),
  'form': (dict(data=dict(form='sound')), "data.form: 'sound' is unknown"),
}  # fmt: skip


@pytest.mark.parametrize('mistake', MISTAKES)
@pytest.mark.fault
def test_mistakes_are_named(mistake):
  changes, words = MISTAKES[mistake]
  config = common.unet(common.base('x', 'smoke'), chans=4)
  config.train.task.unlock()
  for section, values in changes.items():
    for key, value in values.items():
      config[section][key] = value
  module = models.build('unet_recon', chans=2, pools=1)
  with pytest.raises(ValueError, match=words):
    options.check(config, 'runs/x')
    experiment = build.build(config, 'runs/x')
    factory.defended(experiment.attack, experiment.defence, module)
    factory.task(
      experiment.training, module, training.data_parallel(1), 10, synthetic.scan(0, rows=32, cols=32, coils=2)
    )
