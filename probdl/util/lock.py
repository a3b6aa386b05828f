"""One thread at a time: the lock around what Pyro, torch and Python keep globally.

It needs no torch, so that what only reads files or makes tables can take it as well.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Self

__all__ = ["TURN", "Turn"]


class Turn:
    """A re-entrant lock whose holder can let others pass, however often it has entered.

    >>> turn = Turn()
    >>> with turn, turn:
    ...     turn.depth
    2
    >>> turn.held
    False
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self.depth = 0
        """How often the holder has entered."""

    @property
    def held(self) -> bool:
        """Whether this thread holds it."""
        return self._owner == threading.get_ident()

    def __enter__(self) -> Self:
        if not self.held:
            self._lock.acquire()
            self._owner = threading.get_ident()
        self.depth += 1
        return self

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

    def give_up(self) -> int:
        """Let others have it; return what :meth:`take_back` needs."""
        depth, self.depth, self._owner = self.depth, 0, None
        self._lock.release()
        return depth

    def take_back(self, depth: int) -> None:
        """Take it again as it was; a Ctrl-C meanwhile is raised once it is taken."""
        stop = None
        taken = False
        while not taken:
            try:
                taken = self._lock.acquire()
            except KeyboardInterrupt as error:
                stop = error
        self._owner, self.depth = threading.get_ident(), depth
        if stop is not None:
            raise stop

    def after_fork(self) -> None:
        """In a forked process, forget a holder that was another thread of the parent."""
        if not self.held:
            self.__init__()  # type: ignore[misc]


TURN = Turn()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=TURN.after_fork)
