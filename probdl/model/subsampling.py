"""Plates that take a random subsample: all their rows, except in the steps of a training.

``plate("rows", n, subsample_size=m)`` makes an unbiased estimate of a log density. A method that
needs the log density itself uses all rows. Pyro has no public way to change the size of a plate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from pyro.poutine.subsample_messenger import SubsampleMessenger

from probdl.util.lock import GLOBAL_LOCK

__all__ = ["all_rows"]

_take_subsample: Any = SubsampleMessenger._subsample


@contextmanager
def all_rows(found: dict[str, int]) -> Iterator[None]:
    """Let plates that would draw a subsample at random hold all their rows, within a context.

    Args:
        found: the names and sizes of these plates are added here.
    """

    def take(
        name: str,
        size: int | None = None,
        subsample_size: int | None = None,
        *rest: Any,
        **named: Any,
    ) -> Any:
        given = named.get("subsample", rest[0] if rest else None)
        partial = size is not None and subsample_size is not None and subsample_size < size
        if partial and given is None and GLOBAL_LOCK.held:  # not in another thread of the user
            found[name] = int(size or 0)
            subsample_size = None
        return _take_subsample(name, size, subsample_size, *rest, **named)

    with patch.object(SubsampleMessenger, "_subsample", staticmethod(take)):
        yield
