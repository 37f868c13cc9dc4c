"""All but the packages is in setup.cfg: the configs travel in the wheel as `jaxrec.configs`."""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=['jaxrec', 'jaxrec.*']), 'jaxrec.configs'],
  package_dir={'jaxrec.configs': 'configs'},
  package_data={'jaxrec.configs': ['*.json']},
)
