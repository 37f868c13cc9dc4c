"""Examples in docstrings run."""

import doctest
import importlib

import pytest

MODULES = [
  'fourier',
  'geometry',
  'masks',
  'metrics',
  'attacks.core',
  'attacks.families',
  'attacks.perturbations',
  'audit.public',
  'models.unet',
  'models.varnet',
  'networks',
]


@pytest.mark.parametrize('name', MODULES)
def test_examples_run(name):
  found = doctest.testmod(importlib.import_module(f'jaxrec.{name}'))
  assert found.attempted and not found.failed
