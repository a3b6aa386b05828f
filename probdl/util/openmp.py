"""How torch's threads wait for one another: awake, or asleep where other work has the cores.

Between two parallel operations OpenMP's threads spin for some milliseconds. On idle cores that is
the fastest; with other work on the machine each waits for one that has no core, and a step of a
network takes fifty times as long. A passive wait policy (``OMP_WAIT_POLICY``) helps, but is read
once, when torch is loaded. GNU's OpenMP, though, lets its threads spin next to nothing while it has
more threads than there are CPUs (see ``GOMP_SPINCOUNT`` in its manual), so threads that only sleep
switch it. The number of threads that compute stays, and with it every bit of the results.

While many like steps run, both ways are timed now and then, and the faster one is taken. Steps
whose operations are all small run on one thread, which waits for nobody.
"""

from __future__ import annotations

import ctypes
import functools
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

__all__ = ["Waits", "sleepers", "waits"]

WINDOW = 5  # steps that are timed in a row
ENOUGH = 0.5  # seconds: fewer steps are timed where they take so long
STAY = 100  # steps until the next comparison, doubled while the choice stays
LONGEST = 6400
WORSE = 2.0  # times the usual: compare at once
GAIN = 0.8  # of the time awake, which sleeping must need less than
SHORT = 2e-3  # seconds: steps that take less are left alone, since switching costs as much


@functools.cache
def _gomp() -> Any:
    """Return GNU's OpenMP as torch has loaded it; None if torch has another."""
    for found in ThreadpoolController().info():
        if found["user_api"] == "openmp" and os.path.basename(found["filepath"]).startswith(
            "libgomp"
        ):
            library = ctypes.CDLL(found["filepath"])
            if hasattr(library, "GOMP_parallel") and hasattr(library, "omp_get_thread_num"):
                return library
    return None


@contextmanager
def sleepers(count: int) -> Iterator[bool]:
    """Have OpenMP keep this many threads that only sleep; yield whether there are any."""
    library = _gomp()
    if library is None:
        yield False
        return
    there, over = threading.Event(), threading.Event()

    def hold() -> None:
        # The region is over at once; its threads go on to wait for this thread's next one.
        library.GOMP_parallel(library.omp_get_thread_num, None, ctypes.c_uint(count + 1), 0)
        there.set()
        over.wait()

    thread = threading.Thread(target=hold, name="probdl-openmp", daemon=True)
    thread.start()
    there.wait()
    try:
        yield True
    finally:
        over.set()
        thread.join()


class Waits:
    """Times steps that are alike, and chooses how threads wait meanwhile."""

    def __init__(self) -> None:
        self.asleep = False
        """Whether threads sleep while they wait."""
        self.usable = torch.get_num_threads() > 1 and _gomp() is not None
        self._threads = self._present = torch.get_num_threads()
        self._context: Any = None
        self._recent: list[float] = []
        self._usual = [float("inf"), float("inf")]  # seconds of a step, awake and asleep
        self._left = STAY  # steps until the next comparison
        self._stay = STAY
        self._comparing = 0  # windows that are still to be timed
        self._last: float | None = None

    def use(self, parallel: bool) -> None:
        """Let the next step use all threads, or one: by its sizes alone, so that fits repeat."""
        wanted = self._threads if parallel else 1
        if wanted != self._present:
            torch.set_num_threads(wanted)
            self._present, self._last = wanted, None

    def step(self) -> None:
        """Note that a step has ended."""
        if not self.usable or self._present == 1:
            return
        now = time.perf_counter()
        if self._last is not None:
            self.note(now - self._last)
        self._last = time.perf_counter()

    def note(self, seconds: float) -> None:
        """Take notice of a step that took so long."""
        self._recent = [*self._recent[1 - WINDOW :], seconds]
        if self._comparing:
            self._compare(seconds)
            return
        self._left -= 1
        if not self.asleep and statistics.median(self._recent) < SHORT:
            return
        if not self._timed():
            return
        slow = statistics.median(self._recent[-3:]) > WORSE * self._usual[self.asleep]
        unknown = self._usual[False] == float("inf")
        if self._left <= 0 or unknown or (slow and not self.asleep):
            self._comparing, self._recent = 2, []

    def _timed(self) -> bool:
        """Return whether the recent steps are enough to go by."""
        return len(self._recent) == WINDOW or sum(self._recent) > ENOUGH

    def _compare(self, seconds: float) -> None:
        """Time a window in the present way, then one in the other, and choose."""
        other = self._usual[not self.asleep]
        hopeless = self._comparing == 1 and not self.asleep and seconds > 3 * other
        if not (self._timed() or hopeless):
            return
        self._usual[self.asleep] = statistics.median(self._recent)
        self._recent = []
        self._comparing -= 1
        if self._comparing:
            self._switch(not self.asleep)
            return
        awake, asleep = self._usual
        best = asleep < GAIN * awake
        # It is the other way that is in place: the choice stays where it is not the best one.
        stays = best != self.asleep
        self._stay = min(2 * self._stay, LONGEST) if stays else STAY
        self._left = self._stay
        if stays:
            self._switch(best)

    def _switch(self, asleep: bool) -> None:
        if asleep:
            self._context = sleepers(os.cpu_count() or 1)
            self._context.__enter__()
        else:
            self._awake()
        self.asleep = asleep

    def close(self) -> None:
        """Let OpenMP wait as it did, with all its threads."""
        self.use(parallel=True)
        self._awake()

    def _awake(self) -> None:
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None
        self.asleep = False


@contextmanager
def waits() -> Iterator[Waits]:
    """Watch steps that are alike; what was switched is put back at the end."""
    watch = Waits()
    try:
        yield watch
    finally:
        watch.close()
