"""Ctrl-C that Python would lose."""

from __future__ import annotations

import _thread
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["interrupts_kept"]


DELAY_S = 0.01  # after which the finalizer has ended


class _LostInterrupt:
    """An interrupt that a finalizer swallowed, to be raised once more."""

    def __init__(self) -> None:
        self._raised = threading.Lock()

    def take(self) -> bool:
        """Claim the interrupt; the first caller gets it."""
        return self._raised.acquire(blocking=False)

    def raise_soon(self) -> None:
        time.sleep(DELAY_S)
        if self.take():
            _thread.interrupt_main()


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """Raise KeyboardInterrupt again if it came where Python ignores exceptions.

    These are the finalizers of objects, which run at any time; tracing a model frees thousands.
    """
    before = sys.unraisablehook
    if getattr(before, "keeps_interrupts", False):
        yield
        return
    lost: list[_LostInterrupt] = []

    def hook(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            lost.append(_LostInterrupt())
            _thread.start_new_thread(lost[-1].raise_soon, ())  # here, it would be lost again
        else:
            before(unraisable)

    hook.keeps_interrupts = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        if threading.current_thread() is threading.main_thread():
            taken = [interrupt.take() for interrupt in lost]
            if any(taken):
                raise KeyboardInterrupt
