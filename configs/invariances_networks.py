"""What two denoisers ignore, side by side in one report, ranked.

Paper: Eulig et al. 2025 (four networks)
Command: python -m jaxrec.main --config=configs/invariances_networks.py with LDCT_ROOT set, or
configs/invariances_networks.py:demo (phantom, under 40 minutes on 2 cores)
Hardware: the paper's sizes need one large GPU for days.
Expected: the table of networks and layers by the share of structures lost, with bootstrap intervals over patients.
"""

import ml_collections

from configs import invariances_cnn10, invariances_wganvgg


def get_config(arg: str = ''):
  """Both analyses; `arg` is the profile."""
  profile = arg or 'paper'
  config = ml_collections.ConfigDict(dict(name='invariances_networks', profile=profile, stages=('report',)))
  config.experiments = ml_collections.ConfigDict(sort_keys=False)
  for name, module in (('cnn10', invariances_cnn10), ('wganvgg', invariances_wganvgg)):
    config.experiments[name] = module.get_config(arg)
    config.experiments[name].stages = ('invariances',)
  config.report = ml_collections.ConfigDict(dict(draws=config.experiments.cnn10.report.draws, runs=(), generators=()))
  return config
