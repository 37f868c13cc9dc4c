"""The verdict on what a network ignores, tried on networks whose answer is known.

Paper: Barrett and Myers 2004, Foundations of Image Science (the Hotelling observer); the test is ours
Command: python -m jaxrec.main --config=configs/invariances_known.py (no data needed; the demo is the experiment)
Hardware: 2 CPU cores, under 15 minutes.
Expected: r = 1 for everything invertible; exact d' of linear networks within 5%; a bottleneck ignores small structures.

Identity, invertible filters, a Haar transform and a constant lose nothing. An exact low-pass, a projection, openings and
a network with a bottleneck do. Contrasts follow from the d' that is aimed at; nothing was chosen after a result was seen.
"""

import ml_collections

PROFILES = ('demo', 'smoke')


def get_config(arg: str = ''):
  """The experiment; `arg` is `demo` (the default) or `smoke`."""
  profile = arg or 'demo'
  if profile not in PROFILES:
    raise ValueError(f'config profile: {profile!r} is unknown; choose one of {", ".join(PROFILES)}')
  config = ml_collections.ConfigDict(dict(name='invariances_known', profile=profile, seed=0, stages=('known', 'report')))
  config.train = ml_collections.ConfigDict(dict(num_devices=0))
  config.known = ml_collections.ConfigDict(dict(
    side=24, diameters=(2.0, 3.0, 6.0, 10.0), aims=(2.0, 3.0, 5.0, 8.0), removed=3.0,
    patients=24, sites=12, scans=96, few=24, reference=96, level=0.95, draws=10_000,
    searched_aims=(5.0,), num_steps=150,
    bottleneck=dict(chans=16, code=2), train_steps=1500, learning_rate=3e-3, batch_size=16,
  ))  # fmt: skip
  if profile == 'smoke':
    config.known.update(
      side=16, diameters=(2.0, 6.0), aims=(3.0, 5.0), patients=8, sites=2, scans=192, few=4, reference=8, draws=500,
      searched_aims=(5.0,), num_steps=3, train_steps=2, bottleneck=dict(chans=2, code=1),
    )  # fmt: skip
  return config
