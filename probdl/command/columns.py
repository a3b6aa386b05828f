"""How the columns of data files are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Columns"]


@dataclass(frozen=True)
class Columns:
    """How to read the columns of data files.

    Attributes:
        drop: columns to ignore.
        categories: columns that are categories.
        missing: ``"mask"`` if observations may be missing, else None.
        known: whether the categories are those of a fit, of which the data may have a part.
    """

    drop: Sequence[str] = ()
    categories: Sequence[str] = ()
    missing: str | None = None
    known: bool = False

    def with_categories(self, encodings: Mapping[str, Any]) -> Columns:
        """Return the same with the categories of a fit."""
        held = [name for name, of in encodings.items() if of.kind == "categories"]
        return replace(self, categories=[*self.categories, *held], known=True)
