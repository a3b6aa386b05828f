"""Independent tasks in several processes, as one loop with progress.

The processes are forks: they inherit the compiled model, and only results are pickled. On platforms
without fork the tasks run one after another.
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
from probdl.util.lock import GLOBAL_LOCK
from probdl.util.progress import bar

__all__ = ["parallel_map", "worker_count"]

_inherited_work: Callable[[int], Any] | None = None  # set before the forks are made


def worker_count(workers: int | None) -> int:
    """Return the number of processes: as asked, or one per core; one if forks are unavailable."""
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
    """Return ``[work(0), work(1), …]``; after Ctrl-C, the results of the first tasks that are done.

    The first task runs in this process, so that the forks inherit the code that it compiles.

    Args:
        work: one task as a function of its index; it must not depend on earlier calls.
        count: the number of tasks.
        workers: the number of processes; None uses one per core.
        description: the label of the progress bar.
        progress: whether to show progress; None shows it on a terminal only.
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
                for result in pool.imap(_run_task, range(1, count), chunksize=chunk):
                    results.append(result)
                    shown.update()
        except KeyboardInterrupt:
            if not results:
                raise
    return results


@contextmanager
def _pool(work: Callable[[int], Any], processes: int) -> Iterator[Any]:
    global _inherited_work
    _inherited_work = work
    try:
        # Under the lock, so that forks do not inherit the global state of another thread's run.
        with GLOBAL_LOCK, warnings.catch_warnings():
            # Python 3.12 warns about forks of a process with several threads.
            warnings.simplefilter("ignore", DeprecationWarning)
            pool = multiprocessing.get_context("fork").Pool(processes, _initialize_worker)
        with pool:
            yield pool
    finally:
        _inherited_work = None


def _initialize_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends the forks
    torch.set_num_threads(1)  # a fork has no threads of OpenMP's pool
    one_blas_thread()


def _run_task(index: int) -> Any:
    assert _inherited_work is not None
    return _inherited_work(index)
