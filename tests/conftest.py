"""Shared samples and reconstructors, small enough to compile in a second."""

import gc

from jaxtyping import install_import_hook

# A trace makes millions of small objects that stay: to look for garbage after every 700 is a fifth of its time.
gc.set_threshold(200_000, 20, 20)

# Calls of these are checked against their signatures, axes of arrays included; an int is a float, as PEP 484 has it.
CHECKED = tuple(
  f'jaxrec.{name}'
  for name in (
    'attacks', 'audit', 'fourier', 'geometry', 'invariances', 'masks', 'metrics', 'networks', 'noise', 'statistics', 'tomography', 'types',
  )
)  # fmt: skip
install_import_hook(CHECKED, 'beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))')

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import fourier
from jaxrec.data import synthetic


@pytest.fixture(scope='session')
def scan():
  """A phantom slice: 3 coils, 40 x 36."""
  return synthetic.scan(3, rows=40, cols=36, coils=3, acceleration=3, center_fraction=0.2)


@pytest.fixture(scope='session')
def zero_filled():
  """RSS of the zero-filled coils, softly saturated so that it is not linear."""

  def reconstruct(variables, scan):
    image = fourier.rss(fourier.ifft2c(jnp.where(scan.mask, scan.kspace, 0)))
    level = jnp.max(scan.target)
    return level * jnp.tanh(image / level)

  return reconstruct


@pytest.fixture
def x64():
  """Float64 for one test."""
  jax.config.update('jax_enable_x64', True)
  yield
  jax.config.update('jax_enable_x64', False)


def pytest_terminal_summary(terminalreporter):
  """Counts the rows of the fault tables: `tests/faults` and what is marked `fault`."""
  reports = [
    r
    for name in ('passed', 'failed', 'error')
    for r in terminalreporter.stats.get(name, ())
    if {'fault', 'faults'} & set(getattr(r, 'keywords', ()))  # A file that cannot be collected has none.
  ]
  tried = {r.nodeid for r in reports if r.when == 'call' or not r.passed}
  if tried:
    terminalreporter.write_line(
      f'faults: {len(tried)} tried, {len(tried - {r.nodeid for r in reports if not r.passed})} good'
    )


def as_numpy(tree):
  return jax.tree.map(np.asarray, tree)


@pytest.fixture(scope='session')
def dataset(tmp_path_factory):
  """A phantom data set in the fastMRI layout."""
  root = tmp_path_factory.mktemp('phantom')
  synthetic.write_dataset(root, train=3, val=2, slices=2, rows=48, cols=48, coils=2)
  return root
