"""Ctrl-C that Python would lose."""

from __future__ import annotations

import _thread
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["interrupts_kept"]


DELAY_S = 0.01  # after which the finalizer has ended


def _interrupt_soon() -> None:
    time.sleep(DELAY_S)
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

    def hook(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            _thread.start_new_thread(_interrupt_soon, ())  # here, it would be lost again
        else:
            before(unraisable)

    hook.keeps_interrupts = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
