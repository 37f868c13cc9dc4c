"""Reports: pages of figures and tables that draw what rows hold. Not `report`, which is the name of the public function."""

from jaxrec.reports import attacks, known, samples

__all__ = ['attacks', 'known', 'samples']
