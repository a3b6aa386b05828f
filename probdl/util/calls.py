"""The arguments of a call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import CodeType
from typing import Any

from torch.utils._pytree import tree_leaves

__all__ = ["call_leaves", "frame_outside"]


def frame_outside(frame: Any, modules: tuple[str, ...], until: CodeType | None = None) -> Any:
    """Return the first frame, from one outwards, of no module whose name begins as given.

    It ends at the frame of the function ``until``.
    """
    while frame.f_code is not until and _module(frame).startswith(modules):
        frame = frame.f_back
    return frame


def _module(frame: Any) -> str:
    return frame.f_globals.get("__name__") or ""  # code run by exec() may have no name


def call_leaves(args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Iterator[Any]:
    """Yield what a call was given, also within lists, tuples and dicts.

    Most calls have no such arguments, and ``tree_leaves`` takes longer than an operation of torch.
    """
    for arg in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(arg, (list, tuple, dict)):
            yield from tree_leaves(arg)
        else:
            yield arg
