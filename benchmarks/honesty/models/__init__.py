"""The models, one file a family; importing this package registers all of them."""

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
    "conjugate",
    "hierarchical",
    "mixtures",
    "programs",
    "references",
    "regression",
    "series",
    "shapes",
]
