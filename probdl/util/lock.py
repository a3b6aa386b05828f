"""The process-wide lock around the global state of Pyro, torch and Python.

It needs no torch, so that code that only reads files or makes tables can use it as well.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Self

from probdl.util.interrupts import interruptible, unbroken

__all__ = ["GLOBAL_LOCK", "SuspendableLock"]


class SuspendableLock:
    """A re-entrant lock that its holder can release temporarily, at any depth of nesting.

    >>> lock = SuspendableLock()
    >>> with lock, lock:
    ...     lock.depth
    2
    >>> lock.held
    False
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self.depth = 0
        """The number of times that the holder has entered."""

    @property
    def held(self) -> bool:
        """Whether the current thread holds the lock."""
        return self._owner == threading.get_ident()

    @unbroken
    def __enter__(self) -> Self:
        if not self.held:
            self._acquire()
            self._owner = threading.get_ident()
        self.depth += 1
        return self

    @unbroken
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.depth -= 1
        if not self.depth:
            self._owner = None
            self._lock.release()

    def _acquire(self) -> None:
        while not self._lock.acquire(blocking=False):
            self._wait()

    @interruptible
    def _wait(self) -> None:
        with self._lock:
            pass

    @unbroken
    def suspend(self) -> int:
        """Release the lock at all levels, and return the depth for :meth:`resume`."""
        depth, self.depth, self._owner = self.depth, 0, None
        self._lock.release()
        return depth

    @unbroken
    def resume(self, depth: int) -> None:
        """Acquire the lock again at a depth."""
        self._lock.acquire()
        self._owner, self.depth = threading.get_ident(), depth

    def after_fork(self) -> None:
        """Reset the lock in a forked process if its holder was another thread of the parent."""
        if not self.held:
            self.__init__()  # type: ignore[misc]


GLOBAL_LOCK = SuspendableLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=GLOBAL_LOCK.after_fork)
