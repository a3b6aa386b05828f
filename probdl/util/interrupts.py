"""Ctrl-C at the wrong moment: where Python would lose it, or where it would leave half a state."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, TypeVar

__all__ = ["interruptible", "interrupts_kept", "unbroken"]

DELAY_S = 0.01  # after which the finalizer, or the function that must not be interrupted, has ended

F = TypeVar("F", bound=Callable[..., Any])

_UNBROKEN: set[CodeType] = set()
_INTERRUPTIBLE: set[CodeType] = set()


def unbroken(function: F) -> F:
    """Let Ctrl-C come after a function, not in it, where :func:`interrupts_kept` is active."""
    _UNBROKEN.add(function.__code__)
    return function


def interruptible(function: F) -> F:
    """Let Ctrl-C come in a function that waits, also where an unbroken function called it."""
    _INTERRUPTIBLE.add(function.__code__)
    return function


class _LateInterrupt:
    """An interrupt that came at the wrong moment, to be raised once more."""

    def __init__(self) -> None:
        self._raised = threading.Lock()

    def take(self) -> bool:
        """Claim the interrupt; the first caller gets it."""
        return self._raised.acquire(blocking=False)

    def raise_soon(self) -> None:
        time.sleep(DELAY_S)
        if self.take():
            _thread.interrupt_main()


class _Late(list[_LateInterrupt]):
    """The interrupts of one run that came at the wrong moment."""

    def postpone(self) -> None:
        """Raise an interrupt again soon; here, it would be lost, or leave half a state."""
        self.append(_LateInterrupt())
        _thread.start_new_thread(self[-1].raise_soon, ())

    def take(self) -> bool:
        """Claim the interrupts that were not raised yet, if there are any."""
        return sum(interrupt.take() for interrupt in self) > 0


class _Handler:
    """A handler of SIGINT that postpones it in unbroken functions, and else calls the user's."""

    def __init__(self, before: Callable[[int, FrameType | None], Any], late: _Late) -> None:
        self._before = before
        self._late = late
        self._run = _runner(sys._getframe(1))

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal, which came in a frame."""
        if self._postpones(frame):
            self._late.postpone()
        else:
            self._before(number, frame)

    def _postpones(self, frame: FrameType | None) -> bool:
        while frame not in (None, self._run):
            if frame.f_code in _INTERRUPTIBLE:
                return False
            if frame.f_code in _UNBROKEN:
                return True
            frame = frame.f_back
        return False

    def remove(self) -> None:
        """Install the user's handler again, unless the model installed another."""
        current: Any = signal.getsignal(signal.SIGINT)
        if current is self:
            signal.signal(signal.SIGINT, self._before)


def _runner(frame: FrameType) -> FrameType:
    """Return the frame whose with statement runs the generator of a context, through others."""
    while frame.f_back and frame.f_back.f_code is _GeneratorContext.__enter__.__code__:
        assert frame.f_back.f_back is not None
        frame = frame.f_back.f_back
    return frame


@contextmanager
def _handler(late: _Late) -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or not callable(before) or isinstance(before, _Handler):
        yield
        return
    handler = _Handler(before, late)
    try:
        signal.signal(signal.SIGINT, handler)
        yield
    finally:
        handler.remove()


@contextmanager
def _hook(late: _Late) -> Iterator[None]:
    before = sys.unraisablehook
    if getattr(before, "keeps_interrupts", False):
        yield
        return

    def hook(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            late.postpone()
        else:
            before(unraisable)

    hook.keeps_interrupts = True  # type: ignore[attr-defined]
    try:
        sys.unraisablehook = hook
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """Raise KeyboardInterrupt a moment later if it comes where it would be lost or do harm.

    Python ignores exceptions in the finalizers of objects, which run at any time; tracing a model
    frees thousands. An exception in the code that enters or leaves a context would leave the state
    that the context manages as it is.
    """
    late = _Late()
    try:
        with _handler(late), _hook(late):
            yield
    finally:
        if threading.current_thread() is threading.main_thread() and late.take():
            raise KeyboardInterrupt


_GeneratorContext: Any = type(interrupts_kept())
unbroken(_GeneratorContext.__enter__)
unbroken(_GeneratorContext.__exit__)
