"""The arguments of a call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.utils._pytree import tree_leaves

__all__ = ["call_leaves"]


def call_leaves(args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Iterator[Any]:
    """Yield what a call was given, also within lists, tuples and dicts.

    Most calls have no such arguments, and ``tree_leaves`` takes longer than an operation of torch.
    """
    for arg in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(arg, (list, tuple, dict)):
            yield from tree_leaves(arg)
        else:
            yield arg
