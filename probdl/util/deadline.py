"""Time limits inside one evaluation of a model, which may take as long as it likes.

An adaptive solver of differential equations, for example, takes ever more steps where they are
stiff, far away from the posterior.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch.overrides import TorchFunctionMode

from probdl.util.clock import TimeUp, check_time_limit, has_limit

__all__ = ["deadline", "within_time_limit"]

LONG_S = 0.5  # seconds; shorter evaluations end by themselves, and the time limit comes after them


class _Watch(TorchFunctionMode):
    """Call a function before each function of torch."""

    def __init__(self, check: Callable[[], None]) -> None:
        super().__init__()
        self.check = check

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.check()
        return func(*args, **(kwargs or {}))


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Leave the context at the first function of torch after a number of seconds."""
    end = time.perf_counter() + seconds
    up = TimeUp(seconds)

    def check() -> None:
        if time.perf_counter() > end:
            raise up

    try:
        with _Watch(check):
            yield
    except TimeUp as error:
        if error is not up:
            raise


def within_time_limit() -> Any:
    """Return a context in which the time limit of the fit ends an evaluation, if there is one."""
    if not has_limit():
        return nullcontext()
    long = time.perf_counter() + LONG_S

    def check() -> None:
        if time.perf_counter() > long:
            check_time_limit()

    return _Watch(check)
