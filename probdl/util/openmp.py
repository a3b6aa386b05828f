"""How the threads of torch wait for each other: actively on idle cores, otherwise on busy ones.

Between two parallel operations, the threads of OpenMP spin for some milliseconds (they wait
actively). On idle cores this is fastest. If other work occupies the cores, the threads spin while
one of them has no core, and a training step takes fifty times as long. There are two ways out:

- One thread never waits. It is used only where it gives the same results, bit for bit.
- A passive wait policy (``OMP_WAIT_POLICY``) lets threads sleep, but is read only once, when torch
  is loaded. GNU's OpenMP, however, hardly spins while it has more threads than there are CPUs (see
  ``GOMP_SPINCOUNT`` in its manual), so additional threads that only sleep switch the policy at run
  time. The number of computing threads stays the same, and so do the results, bit for bit.

During many similar steps, all ways are timed from time to time, and the fastest one is used. Steps
whose operations are all small always run on one thread.
"""

from __future__ import annotations

import ctypes
import enum
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

__all__ = ["Threads", "WaitPolicy", "sleeping_threads", "wait_policy"]

TIMED_STEPS = 5  # fewest steps in one measurement
TIMED_SECONDS = 0.2  # of one measurement: on a busy machine, a shorter time may be lucky
LONG_SECONDS = 0.5  # a measurement that takes longer ends with fewer steps
COMPARE_AFTER_STEPS = 100  # until the next comparison; doubled each time the policy stays
MAX_COMPARE_AFTER_STEPS = 6400
SLOWDOWN_TO_COMPARE = 2.0  # relative to the usual time of a step: compare at once
FASTER = 0.8  # another way is chosen if a step takes less than this share of the active time
SHORT_STEP_SECONDS = 2e-3  # shorter steps wait actively: switching costs as much
COMPARISON_COST = 0.03  # share of the time that comparisons may take
SLOW_COMPARISON_COST = 0.2  # the same, if steps have become slow
HOPELESS = 3.0  # one step that takes so many times the best time ends a measurement

ACTIVE, ONE_THREAD, PASSIVE = "active", "one thread", "passive"  # the ways to wait


class Threads(enum.IntEnum):
    """The threads that a step can use."""

    ONE = 0  # its operations are small
    ANY = 1  # all threads are faster on idle cores; one gives the same results
    ALL = 2  # the results depend on the number of threads

    @property
    def fixed(self) -> Threads:
        """The same, where other operations beside the step depend on the number of threads."""
        return Threads.ALL if self is Threads.ANY else self


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
    """Times similar steps, and chooses how threads wait.

    Attributes:
        way: how threads wait now.
    """

    def __init__(self) -> None:
        self.way = ACTIVE
        self.parallel = torch.get_num_threads() > 1
        self._step_threads = Threads.ALL
        self._all_threads = self._threads = torch.get_num_threads()
        self._context: Any = None
        self._recent: list[float] = []
        self._step_seconds: dict[str, float] = {}  # by way, as last measured
        self._steps_left = COMPARE_AFTER_STEPS  # until the next comparison
        self._compare_after = COMPARE_AFTER_STEPS
        self._to_measure: list[str] = []  # in the present comparison
        self._usual = ACTIVE  # the way before the present comparison
        self._times: list[float] = []  # of all steps of the present comparison
        self._since, self._lost = 0.0, 0.0  # seconds since the last comparison, and its cost
        self._last_step_end: float | None = None

    @property
    def ways(self) -> list[str]:
        """The ways to wait that give the same results."""
        ways = [ACTIVE]
        if self._step_threads is Threads.ANY:
            ways.append(ONE_THREAD)
        if _gomp() is not None:
            ways.append(PASSIVE)
        return ways

    def use(self, threads: Threads) -> None:
        """Say which threads the next step can use.

        Args:
            threads: must follow from the step alone, so that fits are reproducible.
        """
        if threads != self._step_threads:
            self._step_threads, self._last_step_end = threads, None
            if self.way not in self.ways:
                self._switch(ACTIVE)
        self._set_threads()

    def _set_threads(self) -> None:
        one = self._step_threads is Threads.ONE or self.way == ONE_THREAD
        threads = 1 if one else self._all_threads
        if threads != self._threads:
            torch.set_num_threads(threads)
            self._threads = threads

    def step(self) -> None:
        """Record the end of a step."""
        if not self.parallel or self._step_threads is Threads.ONE or len(self.ways) == 1:
            return
        now = time.perf_counter()
        if self._last_step_end is not None:
            self.record(now - self._last_step_end)
        self._last_step_end = time.perf_counter()

    def record(self, seconds: float) -> None:
        """Record the time of a step, and compare the ways to wait when it is due."""
        if self._to_measure:
            self._measure(seconds)
            return
        self._recent = [*self._recent[1 - TIMED_STEPS :], seconds]
        self._since += seconds
        self._steps_left -= 1
        if self._is_due():
            others = [way for way in self.ways if way != self.way]
            self._to_measure, self._usual = [self.way, *others], self.way
            self._step_seconds, self._recent, self._times = {}, [], []

    def _is_due(self) -> bool:
        """Return whether to compare the ways to wait."""
        recent = statistics.median(self._recent)
        if self.way == ACTIVE and recent < SHORT_STEP_SECONDS:
            return False
        if len(self._recent) < TIMED_STEPS and sum(self._recent) < LONG_SECONDS:
            return False
        if not self._step_seconds:
            return True
        slow = recent > SLOWDOWN_TO_COMPARE * self._step_seconds[self.way]
        if slow and self.way == ACTIVE and self._lost < SLOW_COMPARISON_COST * self._since:
            return True
        return self._steps_left <= 0 and self._lost < COMPARISON_COST * self._since

    def _measure(self, seconds: float) -> None:
        """Measure one way after the other, and choose."""
        self._recent.append(seconds)
        self._times.append(seconds)
        spent = sum(self._recent)
        best = min(self._step_seconds.values(), default=float("inf"))
        enough = len(self._recent) >= TIMED_STEPS and spent > TIMED_SECONDS
        if not (enough or spent > LONG_SECONDS or seconds > HOPELESS * best):
            return
        self._step_seconds[self._to_measure.pop(0)] = statistics.mean(self._recent)
        self._recent = []
        if self._to_measure:
            self._switch(self._to_measure[0])
            return
        fastest = min(self._step_seconds, key=self._step_seconds.__getitem__)
        best = self._step_seconds[fastest]
        if best >= FASTER * self._step_seconds[ACTIVE]:
            fastest = ACTIVE
        doubled = min(2 * self._compare_after, MAX_COMPARE_AFTER_STEPS)
        self._compare_after = doubled if fastest == self._usual else COMPARE_AFTER_STEPS
        self._steps_left, self._since = self._compare_after, 0.0
        self._lost = sum(self._times) - best * len(self._times)
        self._switch(fastest)

    def _switch(self, way: str) -> None:
        if way == self.way:
            return
        self._wake()
        self.way = way
        if way == PASSIVE:
            self._context = sleeping_threads(os.cpu_count() or 1)
            self._context.__enter__()
        self._set_threads()

    def close(self) -> None:
        """Restore the original policy and number of threads."""
        self._switch(ACTIVE)
        self.use(Threads.ALL)

    def _wake(self) -> None:
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None


@contextmanager
def wait_policy() -> Iterator[WaitPolicy]:
    """Adapt the wait policy to similar steps, and restore the original one at the end."""
    policy = WaitPolicy()
    try:
        yield policy
    finally:
        policy.close()
