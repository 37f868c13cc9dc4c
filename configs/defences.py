"""Defences of a VarNet against worst-case k-space noise, in one table.

Papers: Madry et al. 2018 (adversarial training), Shafahi et al. 2019 (free), Zhang et al. 2019 (TRADES), Genzel et al.
2022 (jitter), Hoffman et al. 2019 (Jacobian regularisation), Liang et al. 2023 (SMUG), Saberi et al. 2025 (cyclic
consistency), Huang and Liang 2020 (k-space generator, algorithm 2)
Command: python -m jaxrec.main --config=configs/defences.py with FASTMRI_ROOT set
Without data: python -m jaxrec.main --config=configs/defences.py:demo (phantom, under 20 minutes on 2 cores)
One defence: --config=configs/defences.py:demo,jitter (with the standard network; paper,jitter at full size)
Hardware: not run at full size; every adversarial step costs about seven ordinary ones.
Expected: on the phantom see docs/robust.md; adversarial steps cost most. Every defence is attacked through itself
(gradients through it, expectation over its noise), and the two that act at test time also by an attack that does not
see them.
"""

import ml_collections

from configs import common

ETA = 0.02


def get_config(arg: str = ''):
  """All runs of the comparison, or those named: `profile` or `profile,name,...`, see `common.base`."""
  arg, *names = arg.split(',')
  config = ml_collections.ConfigDict(dict(name='defences', profile=arg or 'paper', stages=('report',)))
  # In the order of training: later runs need earlier ones.
  config.experiments = runs = ml_collections.ConfigDict(sort_keys=False)
  pgd = dict(name='pgd', num_steps=2 if arg == 'smoke' else 5, step='steepest', step_size=0.5)
  noise = dict(name='coil_noise', relative_radius=ETA, columns='sampled')
  random = dict(noise, start='random')
  runs.standard = _network(arg, 'standard')
  runs.pgd = _trained(
    _network(arg, 'PGD training'), name='worst_case', perturbation=noise, search=pgd, objective=dict(name='region_mse')
  )
  runs.free = _trained(
    _network(arg, 'free training'), name='free', perturbation=random, replays=2 if arg == 'smoke' else 4
  )
  runs.consistency = _trained(
    _network(arg, 'consistency (TRADES)'), name='consistency', perturbation=random, search=pgd, robust_weight=30.0
  )
  runs.jitter = _trained(_network(arg, 'noise jitter'), name='jitter', perturbation=random)
  runs.jacobian = _trained(
    _network(arg, 'Jacobian'), name='jacobian', perturbation=noise, num_iterations=2, robust_weight=30.0
  )
  runs.generator = _trained(
    _network(arg, 'k-space generator'), name='adversarial', perturbation=noise, robust_weight=1.0, hinge_weight=1.0, project=True,
    generator=dict(name='kspace_generator', chans=8 if arg in ('demo', 'smoke') else 32, pools=2), generator_learning_rate=1e-3,
  )  # fmt: skip
  runs.smoothing = _network(arg, 'smoothing (SMUG)')
  runs.smoothing.model.update(smoothing_samples=2 if arg == 'smoke' else 4, smoothing_std=0.05)
  runs.smoothing_unseen = _unseen(runs.smoothing, 'smoothing')
  runs.cyclic = _network(arg, 'cyclic consistency')
  runs.cyclic.model.checkpoint = 'standard'
  runs.cyclic.defence = ml_collections.ConfigDict(
    dict(name='cyclic', relative_radius=ETA, num_steps={'smoke': 1, 'demo': 2}.get(arg, 3), shifts=(1,))
  )
  runs.cyclic_unseen = _unseen(runs.cyclic, 'standard')
  for name in names:
    if name not in runs:
      raise ValueError(f'config: {name!r} is unknown; choose among {", ".join(runs)}')
  for name in [n for n in runs if names and n not in ('standard', *names)]:
    del runs[name]
  for run in runs.values():
    run.stages = ('attack',) if run.model.checkpoint else ('train', 'attack')
  config.report = ml_collections.ConfigDict(
    dict(draws=runs.standard.report.draws, runs=(), generators=tuple({'generator'} & set(runs)))
  )
  return common.share_data(config)


def _network(arg, label):
  config = common.acceleration(common.base('defences', arg), 4)
  config = common.varnet(config, num_cascades=8, chans=9, pools=4, sens_chans=6, sens_pools=4)
  config.label = label
  del config.perturbation.rotation
  config.perturbation.coil_noise.update(relative_radius=(0.0, 0.01, 0.02), start='random', columns='sampled')
  config.search.coil_noise.update(num_steps=20, num_restarts=2, step_size=0.5)
  config.attack.attacked = ('region',)
  config.attack.lipschitz_iterations = 10
  if config.profile == 'demo':
    config.model.update(num_cascades=2, chans=6, pools=2, sens_chans=4, sens_pools=2)
    config.data.phantom.update(train=24, val=10, rows=64, cols=64)
    config.train.update(num_steps=150, max_validation=8)
    config.attack.max_examples = 8
    config.search.coil_noise.num_steps = 10
  if config.profile == 'smoke':
    config.train.update(num_steps=1, validate_every=1)
    config.attack.update(max_examples=1, lipschitz_iterations=1)
    config.search.coil_noise.update(num_steps=1)
  return config


def _trained(config, **task):
  config.train.task = ml_collections.ConfigDict(task)
  return config


def _unseen(defended, trained):
  config = ml_collections.ConfigDict(defended.to_dict())
  config.model.checkpoint = trained
  config.label = f'{defended.label}, unseen'
  config.attack.sees = 'network'
  return config
