"""The operations that have a C form, one file per family.

Three kinds of operation have a C form. An element-wise one is an expression of its operands
(``POINTWISE``), and a reduction has an initial value and an accumulation (``REDUCTIONS``). All
others have a rule in ``RULES``: a function that takes a ``Builder`` and the operation's arguments,
adds statements, and returns the result. To add an operation, add a line to one of these tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from probdl.compile.codegen.operations import (
    assembly,
    creation,
    indexing,
    matrices,
    reductions,
    scans,
    views,
)
from probdl.compile.codegen.operations.assembly import Slices, added, assembled
from probdl.compile.codegen.operations.creation import ALLOCATIONS, CONSTANTS, EXACT
from probdl.compile.codegen.operations.pointwise import POINTWISE, literal, special_arity
from probdl.compile.codegen.operations.reductions import REDUCTIONS, reduction
from probdl.compile.codegen.operations.views import VIEWS

__all__ = [
    "ALLOCATIONS",
    "CONSTANTS",
    "EXACT",
    "POINTWISE",
    "REDUCTIONS",
    "RULES",
    "VIEWS",
    "Slices",
    "added",
    "assembled",
    "literal",
    "reduction",
    "special_arity",
]

RULES: dict[Any, Callable[..., Any]] = {
    **creation.RULES,
    **views.RULES,
    **assembly.RULES,
    **reductions.RULES,
    **scans.RULES,
    **matrices.RULES,
    **indexing.RULES,
}
