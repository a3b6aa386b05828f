"""Many independent pieces of work in several processes, as one loop with progress.

The processes are forks, so that they start with the model, compiled and loaded, and nothing has to
be pickled but results. Where a platform has no fork the work is done one after another.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from probdl.util.blas import one_blas_thread
from probdl.util.lock import TURN
from probdl.util.progress import bar

__all__ = ["parallel_map", "worker_count"]

_work: Callable[[int], Any] | None = None  # what the forks inherit


def worker_count(workers: int | None) -> int:
    """Return how many processes to use: as asked, or one for each core where forks can be had."""
    can_fork = "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"
    if not can_fork:
        return 1
    if workers is not None:
        return max(1, workers)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def parallel_map(
    work: Callable[[int], Any],
    count: int,
    *,
    workers: int | None = None,
    description: str = "working",
    progress: bool | None = None,
) -> list[Any]:
    """Return ``[work(0), work(1), …]``; after Ctrl-C as many of the first as are done.

    The first piece is done in this process, so that the forks find compiled what it compiles.

    Args:
        work: what to do; it must not depend on what was done before.
        count: how often.
        workers: how many processes; None is one for each core.
        description: for the progress bar.
        progress: whether to show progress; None shows it on a terminal.
    """
    results: list[Any] = []
    processes = min(worker_count(workers), count - 1)
    with bar(count, description, progress) as shown:
        try:
            for i in range(count if processes < 2 else 1):
                results.append(work(i))
                shown.update()
            if processes < 2:
                return results
            chunk = max(1, min(16, count // 50))
            with _pool(work, processes) as pool:
                for result in pool.imap(_run, range(1, count), chunksize=chunk):
                    results.append(result)
                    shown.update()
        except KeyboardInterrupt:
            if not results:
                raise
    return results


@contextmanager
def _pool(work: Callable[[int], Any], processes: int) -> Iterator[Any]:
    global _work
    _work = work
    try:
        # No other thread is in the middle of a run, whose globals forks would inherit.
        with TURN, warnings.catch_warnings():  # Python 3.12 warns of forks in a threaded process
            warnings.simplefilter("ignore", DeprecationWarning)
            pool = multiprocessing.get_context("fork").Pool(processes, _start)
        with pool:
            yield pool
    finally:
        _work = None


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the forks
    torch.set_num_threads(1)  # a fork has no threads of its parent's
    one_blas_thread()


def _run(index: int) -> Any:
    assert _work is not None
    return _work(index)
