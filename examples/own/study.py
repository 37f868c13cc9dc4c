"""A study of your own: `jaxrec --config=examples/own/study.py`, from any folder. On the phantom without data.

Hardware: seconds.
"""

import ml_collections

from configs import common


def get_config(arg: str = ''):
  """Attack and report with parts from `parts.py`, which lies beside this file."""
  config = common.base('study', arg)
  config.stages = ('attack', 'report')
  config.model.update(name='parts:smoothed', width=3)
  config.perturbation = ml_collections.ConfigDict(
    dict(ghosting=dict(name='parts:ghosting', max_radians=(0.0, 0.1, 0.3)))
  )
  config.search = ml_collections.ConfigDict(dict(ghosting=dict(name='parts:sign_gradient', num_steps=3, step_size=0.1)))
  config.objective = ml_collections.ConfigDict(dict(name='parts:mean_absolute_error'))
  return config
