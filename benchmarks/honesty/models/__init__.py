"""The models, one file a family; importing this package registers all of them."""

from benchmarks.honesty.case import CASES
from benchmarks.honesty.models import (
    conjugate,
    hierarchical,
    mixtures,
    programs,
    references,
    regression,
    series,
    shapes,
)

__all__ = [
    "CASES",
    "conjugate",
    "hierarchical",
    "mixtures",
    "programs",
    "references",
    "regression",
    "series",
    "shapes",
]
