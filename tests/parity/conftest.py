"""Parity tests run where torch and the fastmri package are installed."""

import importlib.machinery
import importlib.util
import sys
import types

import pytest


def _prepare():
  if importlib.util.find_spec('torch') is None or importlib.util.find_spec('fastmri') is None:
    return False
  # Installed without their dependencies; the networks, masks and losses need none of these.
  for name in ('pandas', 'requests', 'yaml'):
    if importlib.util.find_spec(name) is None:
      stub = types.ModuleType(name)
      stub.__spec__ = importlib.machinery.ModuleSpec(name, None)
      stub.Series = stub.DataFrame = object
      sys.modules[name] = stub
  return True


AVAILABLE = _prepare()


def pytest_collection_modifyitems(items):
  for item in items:
    if 'parity' in item.nodeid and not AVAILABLE:
      item.add_marker(pytest.mark.skip(reason='torch and fastmri are not installed'))
