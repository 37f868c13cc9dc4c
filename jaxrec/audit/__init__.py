"""Audits: any networks, any samples, any attacks, in one table."""

from jaxrec.audit.plan import Sweep
from jaxrec.audit.public import audit

__all__ = ['Sweep', 'audit']
