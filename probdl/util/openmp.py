"""The wait policy of torch's threads: active on idle cores, passive on busy ones.

Between two parallel operations, the threads of OpenMP spin for some milliseconds (they wait
actively). On idle cores this is fastest. If other work occupies the cores, the threads spin while
one of them has no core, and a training step takes fifty times as long. A passive wait policy
(``OMP_WAIT_POLICY``) helps, but is read only once, when torch is loaded. GNU's OpenMP, however,
hardly spins while it has more threads than there are CPUs (see ``GOMP_SPINCOUNT`` in its manual),
so additional threads that only sleep switch the policy at run time. The number of computing threads
stays the same, and so do the results, bit for bit.

During many similar steps, both policies are timed from time to time, and the faster one is used.
Steps whose operations are all small run on one thread, which never waits.
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

__all__ = ["WaitPolicy", "sleeping_threads", "wait_policy"]

TIMED_STEPS = 5  # consecutive steps in one measurement
TIMED_SECONDS = 0.5  # a measurement that takes longer ends with fewer steps
COMPARE_AFTER_STEPS = 100  # until the next comparison; doubled each time the policy stays
MAX_COMPARE_AFTER_STEPS = 6400
SLOWDOWN_TO_COMPARE = 2.0  # relative to the usual time of a step: compare at once
PASSIVE_TIME_RATIO = 0.8  # passive waiting is chosen if it takes less than this share
SHORT_STEP_SECONDS = 2e-3  # shorter steps keep the active policy: switching costs as much


@functools.cache
def _gomp() -> Any:
    """Return the GNU OpenMP library that torch has loaded, or None if it uses another one."""
    for found in ThreadpoolController().info():
        if found["user_api"] == "openmp" and os.path.basename(found["filepath"]).startswith(
            "libgomp"
        ):
            library = ctypes.CDLL(found["filepath"])
            if hasattr(library, "GOMP_parallel") and hasattr(library, "omp_get_thread_num"):
                return library
    return None


@contextmanager
def sleeping_threads(count: int) -> Iterator[bool]:
    """Make OpenMP hold additional threads that only sleep; yield whether this is supported."""
    library = _gomp()
    if library is None:
        yield False
        return
    started, finished = threading.Event(), threading.Event()

    def hold() -> None:
        # The parallel region ends at once; its threads then wait for the next region.
        library.GOMP_parallel(library.omp_get_thread_num, None, ctypes.c_uint(count + 1), 0)
        started.set()
        finished.wait()

    thread = threading.Thread(target=hold, name="probdl-openmp", daemon=True)
    thread.start()
    started.wait()
    try:
        yield True
    finally:
        finished.set()
        thread.join()


class WaitPolicy:
    """Times similar steps, and chooses between active and passive waiting."""

    def __init__(self) -> None:
        self.passive = False
        """Whether threads sleep while they wait."""
        self.usable = torch.get_num_threads() > 1 and _gomp() is not None
        self._all_threads = self._threads = torch.get_num_threads()
        self._context: Any = None
        self._recent: list[float] = []
        self._step_seconds = [float("inf"), float("inf")]  # active and passive
        self._steps_left = COMPARE_AFTER_STEPS  # until the next comparison
        self._compare_after = COMPARE_AFTER_STEPS
        self._measurements_left = 0  # of the present comparison
        self._last_step_end: float | None = None

    def use(self, parallel: bool) -> None:
        """Use all threads for the next step, or one.

        Args:
            parallel: must follow from the sizes of the step alone, so that fits are reproducible.
        """
        threads = self._all_threads if parallel else 1
        if threads != self._threads:
            torch.set_num_threads(threads)
            self._threads, self._last_step_end = threads, None

    def step(self) -> None:
        """Record the end of a step."""
        if not self.usable or self._threads == 1:
            return
        now = time.perf_counter()
        if self._last_step_end is not None:
            self.record(now - self._last_step_end)
        self._last_step_end = time.perf_counter()

    def record(self, seconds: float) -> None:
        """Record the time of a step, and compare the policies when it is due."""
        self._recent = [*self._recent[1 - TIMED_STEPS :], seconds]
        if self._measurements_left:
            self._compare(seconds)
            return
        self._steps_left -= 1
        if not self.passive and statistics.median(self._recent) < SHORT_STEP_SECONDS:
            return
        if not self._is_measured():
            return
        usual = self._step_seconds[self.passive]
        slow = statistics.median(self._recent[-3:]) > SLOWDOWN_TO_COMPARE * usual
        unknown = self._step_seconds[False] == float("inf")
        if self._steps_left <= 0 or unknown or (slow and not self.passive):
            self._measurements_left, self._recent = 2, []

    def _is_measured(self) -> bool:
        """Return whether the recent steps suffice for a measurement."""
        return len(self._recent) == TIMED_STEPS or sum(self._recent) > TIMED_SECONDS

    def _compare(self, seconds: float) -> None:
        """Measure the present policy, then the other one, and choose."""
        other = self._step_seconds[not self.passive]
        hopeless = self._measurements_left == 1 and not self.passive and seconds > 3 * other
        if not (self._is_measured() or hopeless):
            return
        self._step_seconds[self.passive] = statistics.median(self._recent)
        self._recent = []
        self._measurements_left -= 1
        if self._measurements_left:
            self._switch(not self.passive)
            return
        active_seconds, passive_seconds = self._step_seconds
        best = passive_seconds < PASSIVE_TIME_RATIO * active_seconds
        # The second measurement has switched the policy: if it is not the best, switch back.
        stays = best != self.passive
        doubled = min(2 * self._compare_after, MAX_COMPARE_AFTER_STEPS)
        self._compare_after = doubled if stays else COMPARE_AFTER_STEPS
        self._steps_left = self._compare_after
        if stays:
            self._switch(best)

    def _switch(self, passive: bool) -> None:
        if passive:
            self._context = sleeping_threads(os.cpu_count() or 1)
            self._context.__enter__()
        else:
            self._restore()
        self.passive = passive

    def close(self) -> None:
        """Restore the original policy and number of threads."""
        self.use(parallel=True)
        self._restore()

    def _restore(self) -> None:
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None
        self.passive = False


@contextmanager
def wait_policy() -> Iterator[WaitPolicy]:
    """Adapt the wait policy to similar steps, and restore the original one at the end."""
    policy = WaitPolicy()
    try:
        yield policy
    finally:
        policy.close()
