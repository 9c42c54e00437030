"""This package holds the window operators, their checks and backends; it needs torch alone."""

from . import reference
from .affiliation import point_affiliation
from .assembly import assemble
from .assignment import Assignment
from .clustering import soft_slic
from .dispatch import backend, unavailable
from .embedding import embed
from .similarity import local_similarity

__all__ = [
    'Assignment',
    'assemble',
    'backend',
    'embed',
    'local_similarity',
    'point_affiliation',
    'reference',
    'soft_slic',
    'unavailable',
]
