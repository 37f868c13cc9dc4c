"""Readers of MR volumes and annotations, phantoms, and input pipelines. All arrays are NumPy's."""

from jaxrec.data.errors import DataError

__all__ = ['DataError']
