"""The verdict on what a network ignores, tried on networks whose answer is known.

Paper: Barrett and Myers 2004, Foundations of Image Science (the Hotelling observer); the test is ours
Command: python -m jaxrec.main --config=configs/invariances_known.py (no data needed; the demo is the experiment)
Hardware: 2 CPU cores, under 15 minutes.
Expected: r = 1 for everything invertible; exact d' of linear networks within 5%; a bottleneck ignores small structures.

Identity, invertible filters, a Haar transform and a constant lose nothing. An exact low-pass, a projection, openings and
a network with a bottleneck do. Contrasts follow from the d' that is aimed at, the openings' windows from their known answers.
"""

import ml_collections

from configs import common


def get_config(arg: str = ''):
  """The experiment; `arg` is `demo` (the default) or `smoke`."""
  profile = common.profile_of(arg, ('demo', 'smoke'))
  config = ml_collections.ConfigDict(
    dict(name='invariances_known', profile=profile, seed=0, stages=('known', 'report'))
  )
  config.train = ml_collections.ConfigDict(dict(num_devices=0))
  config.known = ml_collections.ConfigDict(dict(
    side=24, diameters=(2.0, 3.0, 6.0, 10.0), aims=(2.0, 3.0, 5.0, 8.0), removed=3.0,
    patients=24, sites=12, scans=96, few=24, reference=96, level=0.95, draws=10_000,
    searched_aims=(5.0,), num_steps=150,
    bottleneck=dict(chans=16, code=2), train_steps=1500, learning_rate=3e-3, batch_size=16,
    sampled=('identity', 'sharpening', 'bottleneck'), sampled_aims=(3.0, 5.0),
    vae=dict(latent=32, width=8, blocks=3, chunk=8, classes=16, class_hidden=32, embedding=8, encoder_width=8, stages=(1, 1), texture=9),
    # A Laplacian likelihood with a deviation of a fifth of the noise.
    weights=dict(l1_weight=7.0, kl_weight=1.0, adversarial_weight=0.0), critic=dict(chans=4, depth=1), vae_steps=1000, vae_learning_rate=2e-3,
    flow=dict(blocks=6, hidden=128, chans=12, depth=3, embedding=32), flow_steps=400, flow_learning_rate=1e-3,
  ))  # fmt: skip
  config.invariances = ml_collections.ConfigDict(dict(
    num_samples=32, chunk=16, corrections=10, sites=4, others=4, alpha=0.05, scales=(1.0,), scans=8, pictures=1, shown=6,
  ))  # fmt: skip
  config.report = ml_collections.ConfigDict(dict(draws=1000))
  if profile == 'smoke':
    config.known.update(
      side=16, diameters=(2.0, 6.0), aims=(3.0, 5.0), patients=8, sites=2, scans=192, few=4, reference=8, draws=500,
      searched_aims=(5.0,), num_steps=3, train_steps=2, bottleneck=dict(chans=2, code=1),
      sampled=('bottleneck',), sampled_aims=(5.0,), vae_steps=2, flow_steps=2, critic=dict(chans=2, depth=1),
      vae=dict(latent=6, width=4, blocks=2, chunk=2, classes=2, class_hidden=2, embedding=2, encoder_width=2, stages=(1,), texture=3),
      flow=dict(blocks=1, hidden=2, chans=2, depth=1, embedding=2),
    )  # fmt: skip
    config.invariances.update(num_samples=4, chunk=4, corrections=1, sites=1, others=2, alpha=0.2, scans=2, shown=2)
  return config
