"""The clock of a fit: how long its parts took, and when its time is up.

A time limit ends long work as Ctrl-C does, by a ``KeyboardInterrupt``, so that one piece of code
returns what there is. It is raised where the work looks at the clock, once, and not from a signal:
that works in any thread and on any platform, and nothing global is touched.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Clock", "TimeUp", "clock", "look", "time_left", "time_up", "timed"]


class TimeUp(KeyboardInterrupt):
    """The time limit of a fit has passed."""

    def __init__(self, limit: float) -> None:
        super().__init__(f"the time limit of {limit:g} s has passed")
        self.limit = limit


class Clock:
    """When a fit began, when it must end, and how long its parts took.

    Args:
        limit: seconds from now; None is no limit.
    """

    def __init__(self, limit: float | None) -> None:
        self.started = time.perf_counter()
        self.limit = limit
        self.over = False  # told once; what there is is then made ready without it
        self.timings: dict[str, float] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started


_current: ContextVar[Clock | None] = ContextVar("clock", default=None)


@contextmanager
def clock(limit: float | None) -> Iterator[Clock]:
    """Run under a clock; its timings have the total at the end."""
    token = _current.set(own := Clock(limit))
    try:
        yield own
    finally:
        _current.reset(token)
        own.timings["total"] = own.elapsed


@contextmanager
def timed(part: str) -> Iterator[None]:
    """Add the time that something takes to a part of the fit's timings."""
    start = time.perf_counter()
    try:
        yield
    finally:
        if (now := _current.get()) is not None:
            passed = time.perf_counter() - start
            now.timings[part] = now.timings.get(part, 0.0) + passed


def time_left() -> float | None:
    """Return the seconds that are left; None where there is no limit, or it was told already."""
    now = _current.get()
    if now is None or now.limit is None or now.over:
        return None
    return max(0.0, now.limit - now.elapsed)


def look() -> None:
    """Look at the clock.

    Raises:
        TimeUp: the time is up, and this is the first time that anyone looks.
    """
    if time_left() == 0.0:
        raise time_up()


def time_up() -> TimeUp:
    """Return what ends the work, whose time is up; from now on the clock is silent."""
    now = _current.get()
    assert now is not None
    assert now.limit is not None
    now.over = True
    return TimeUp(now.limit)
