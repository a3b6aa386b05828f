"""The clock of a fit: the times of its parts, and its time limit.

A time limit ends long work as Ctrl-C does, by a ``KeyboardInterrupt``, so that the same code
returns partial results. It is raised once, where the work calls ``check_time_limit``, and not by a
signal: this works in any thread and on any platform, and changes no global state.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = [
    "Clock",
    "TimeUp",
    "check_overtime",
    "check_time_limit",
    "clock",
    "expire",
    "has_limit",
    "time_left",
    "timed",
]

# Ours: the time for results from what was done until the time limit, as a share of it.
OVERTIME_SHARE = 0.1


class TimeUp(KeyboardInterrupt):
    """The time limit of a fit has passed."""

    def __init__(self, limit: float) -> None:
        super().__init__(f"the time limit of {limit:g} s has passed")
        self.limit = limit


class Clock:
    """The start of a fit, its time limit, and the times of its parts.

    Args:
        limit: the time limit in seconds from now; None is no limit.
    """

    def __init__(self, limit: float | None) -> None:
        self.started = time.perf_counter()
        self.limit = limit
        self.expired_at: float | None = None  # set when TimeUp is raised
        self.timings: dict[str, float] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started


_current: ContextVar[Clock | None] = ContextVar("clock", default=None)
_whole: ContextVar[bool] = ContextVar("whole", default=False)  # whether inner parts do not count
_inner: ContextVar[list[float] | None] = ContextVar("inner", default=None)  # of the part around


@contextmanager
def clock(limit: float | None) -> Iterator[Clock]:
    """Run under a new clock, whose timings get the total at the end.

    Args:
        limit: the time limit in seconds; None is no limit.
    """
    own = Clock(limit)
    token = _current.set(own)
    try:
        yield own
    finally:
        _current.reset(token)
        own.timings["total"] = own.elapsed


@contextmanager
def timed(part: str, *, whole: bool = False) -> Iterator[None]:
    """Add the time that the context takes to a part of the fit's timings.

    Time in a context inside it counts for the inner part only, so that the parts add up; with
    ``whole``, for this one.
    """
    if _whole.get():
        yield
        return
    start = time.perf_counter()
    current = _current.get()
    outer, inner = _inner.get(), [0.0]
    token, within = _inner.set(inner), _whole.set(whole)
    try:
        yield
    finally:
        _inner.reset(token)
        _whole.reset(within)
        seconds = time.perf_counter() - start
        if outer is not None:
            outer[0] += seconds
        if current is not None:
            current.timings[part] = current.timings.get(part, 0.0) + seconds - inner[0]


def has_limit() -> bool:
    """Return whether there is a time limit."""
    current = _current.get()
    return current is not None and current.limit is not None


def time_left() -> float | None:
    """Return the seconds left; None without a limit, or after the limit has been raised."""
    current = _current.get()
    if current is None or current.limit is None or current.expired_at is not None:
        return None
    return max(0.0, current.limit - current.elapsed)


def check_time_limit(needed: float = 0.0) -> None:
    """Raise TimeUp if the time limit has passed, or will while results are made.

    Args:
        needed: the seconds that results from what is done take.

    Raises:
        TimeUp: it has, and this is the first call to notice.
    """
    left = time_left()
    if left is not None and left <= needed:
        raise expire()


def check_overtime() -> None:
    """Raise TimeUp once more if what followed the time limit has taken a tenth of it.

    This is for work that can return a part of its results after it was interrupted before.

    Raises:
        TimeUp: it has.
    """
    current = _current.get()
    if current is None or current.limit is None or current.expired_at is None:
        return
    if current.elapsed - current.expired_at > OVERTIME_SHARE * current.limit:
        raise TimeUp(current.limit)


def expire() -> TimeUp:
    """Mark the time limit as passed, and return the exception to raise for it."""
    current = _current.get()
    assert current is not None
    assert current.limit is not None
    current.expired_at = current.elapsed
    return TimeUp(current.limit)
