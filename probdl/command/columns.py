"""How the columns of data files are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from probdl.command.settings import parse_labels

__all__ = ["Columns"]


@dataclass(frozen=True)
class Columns:
    """How to read the columns of data files.

    Attributes:
        drop: columns to ignore.
        categories: columns that are categories.
        orders: their order, by column, where the user gave one.
        missing: ``"mask"`` if observations may be missing, else None.
        known: whether the categories are those of a fit, of which the data may have a part.
    """

    drop: Sequence[str] = ()
    categories: Sequence[str] = ()
    orders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    missing: str | None = None
    known: bool = False

    @classmethod
    def of(
        cls, drop: Sequence[str] | None, category: Sequence[str] | None, missing: str | None = None
    ) -> Columns:
        """Return the columns that options name; a category may be ``name=lowest,…,highest``."""
        orders = parse_labels("category", [one for one in category or () if "=" in one])
        names = [one.partition("=")[0] for one in category or ()]
        return cls(drop or (), names, orders, missing)

    def with_categories(self, encodings: Mapping[str, Any]) -> Columns:
        """Return the same with the categories of a fit."""
        held = [name for name, of in encodings.items() if of.kind == "categories"]
        return replace(self, categories=[*self.categories, *held], known=True)
