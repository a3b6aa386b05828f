"""Independent tasks in several processes, as one loop with progress.

The processes are forks: they inherit the compiled model, and only results are pickled. Where forks
are not safe, they are started afresh, and get the work as those of an executor do.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from probdl.errors import ModelError
from probdl.util import executors
from probdl.util.blas import one_blas_thread
from probdl.util.cores import core_count
from probdl.util.interrupts import interrupts_kept
from probdl.util.lock import GLOBAL_LOCK
from probdl.util.progress import bar
from probdl.util.ranks import alone

__all__ = ["parallel_map", "worker_count"]

END_WAIT_S = 5.0  # for a worker that was asked to end
SPAWN_S = 10.0  # of work that is done sooner by one process than by new ones, which import torch


def can_fork() -> bool:
    """Return whether a fork of this process may use torch: not on macOS or beside a GPU."""
    offered = "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"
    return offered and not torch.cuda.is_initialized()


def worker_count(workers: int | None) -> int:
    """Return the number of processes: as asked, or one per core."""
    return core_count() if workers is None else max(1, workers)


def parallel_map(
    work: Callable[[int, Any], Any],
    items: Sequence[Any],
    *,
    workers: int | None = None,
    executor: Any = None,
    lost: Callable[[str], Any] = str,
    description: str = "working",
    progress: bool | None = None,
) -> list[Any]:
    """Return ``[work(0, items[0]), …]``; after Ctrl-C, the results of the first that are done.

    The first task runs in this process, so that the forks inherit the code that it compiles.

    Args:
        work: one task as a function of its index and its item; it must not depend on earlier calls.
            It raises KeyboardInterrupt rather than return a part of its result.
        items: the data of the tasks.
        workers: the number of processes; None uses one per core.
        executor: runs the tasks but the first, in place of forks; see ``util/executors.py``.
        lost: the result of a task that the executor lost, from a message.
        description: the label of the progress bar.
        progress: whether to show progress; None shows it on a terminal only.

    Raises:
        ModelError: a process ended without a result, or the executor failed.
        KeyboardInterrupt: interrupted before the first result.
    """
    with alone():
        return _mapped(work, items, workers, executor, lost, description, progress)


def _mapped(
    work: Callable[[int, Any], Any],
    items: Sequence[Any],
    workers: int | None,
    executor: Any,
    lost: Callable[[str], Any],
    description: str,
    progress: bool | None,
) -> list[Any]:
    results: dict[int, Any] = {}
    count = len(items)
    processes = min(worker_count(workers), count - 1) if executor is None else 0
    here = range(count if processes < 2 and executor is None else min(count, 1))
    rest = range(len(here), count)
    began = time.perf_counter()
    with bar(count, description, progress) as shown:
        try:
            with interrupts_kept():  # Python ignores Ctrl-C in what runs after each fork
                for i in here:
                    results[i] = work(i, items[i])
                    shown.update()
                seconds = (time.perf_counter() - began) * len(rest)
                if executor is not None:
                    further = executors.on_executor(executor, work, items, rest, lost)
                elif can_fork():
                    further = _on_forks(work, items, rest, processes)
                elif workers is None and seconds < SPAWN_S:
                    further = _here(work, items, rest)
                else:
                    further = _on_spawned(work, items, rest, processes, lost)
                if rest:
                    with closing(further):
                        for i, result in further:
                            results[i] = result
                            shown.update()
        except KeyboardInterrupt:
            if not results:
                raise
    first = next((i for i in range(count) if i not in results), count)
    return [results[i] for i in range(first)]


def _here(
    work: Callable[[int, Any], Any], items: Sequence[Any], tasks: range
) -> Generator[tuple[int, Any]]:
    yield from ((i, work(i, items[i])) for i in tasks)


def _on_forks(
    work: Callable[[int, Any], Any], items: Sequence[Any], tasks: range, processes: int
) -> Generator[tuple[int, Any]]:
    """Yield the results of tasks in forks of this process."""
    with _pool(lambda i: work(i, items[i]), processes) as pool:
        yield from _run(pool, tasks)


def _on_spawned(
    work: Callable[[int, Any], Any],
    items: Sequence[Any],
    tasks: range,
    processes: int,
    lost: Callable[[str], Any],
) -> Generator[tuple[int, Any]]:
    """Yield the results of tasks in new processes."""
    context = multiprocessing.get_context("spawn")
    pool = _SpawnedPool(processes, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield from executors.on_executor(pool, work, items, tasks, lost)
    finally:
        pool.end()


class _SpawnedPool(ProcessPoolExecutor):
    """A pool whose processes do not run the script of this one again, as it need not be a module.

    What the script defines travels with the work.
    """

    def end(self) -> None:
        """End the processes, also those that work."""
        ours = [*(self._processes or {}).values()]
        self.shutdown(wait=False, cancel_futures=True)
        for process in ours:
            process.terminate()
        for process in ours:
            process.join(END_WAIT_S)
            process.kill()

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        main = vars(sys.modules["__main__"])
        kept: dict[str, Any] = {n: main[n] for n in ("__file__", "__spec__") if n in main}
        try:
            main.pop("__file__", None)
            main["__spec__"] = None
            return super().submit(*args, **kwargs)
        finally:
            main.update(kept)


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    tasks: range = range(0)  # which it has


def _run(pool: list[_Worker], tasks: range) -> Iterator[tuple[int, Any]]:
    """Yield the results of tasks, in the order in which they are done."""
    chunk = max(1, min(16, len(tasks) // 50))
    waiting = [tasks[i : i + chunk] for i in range(0, len(tasks), chunk)][::-1]
    for worker in pool:
        _assign(worker, waiting)
    while busy := [worker for worker in pool if len(worker.tasks)]:
        ready = wait([worker.pipe for worker in busy])
        for worker in busy:
            if worker.pipe not in ready:
                continue
            try:
                done, error = worker.pipe.recv()
            except (EOFError, OSError):
                raise _died(worker.process) from None
            if error is not None:
                raise error
            yield from zip(worker.tasks, done, strict=True)
            _assign(worker, waiting)


def _assign(worker: _Worker, waiting: list[range]) -> None:
    worker.tasks = waiting.pop() if waiting else range(0)
    try:
        worker.pipe.send(worker.tasks)
    except OSError:
        raise _died(worker.process) from None


def _died(process: Any) -> ModelError:
    process.join(END_WAIT_S)
    code = process.exitcode
    by = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return ModelError(
        f"A worker process ended before its task was done ({by}). It may have run out of memory: "
        "use fewer processes, such as workers=1."
    )


@contextmanager
def _pool(work: Callable[[int], Any], processes: int) -> Iterator[list[_Worker]]:
    context = multiprocessing.get_context("fork")
    pool: list[_Worker] = []
    try:
        # Under the lock, so that forks do not inherit the global state of another thread's run.
        with GLOBAL_LOCK, warnings.catch_warnings():
            # Python 3.12 warns about forks of a process with several threads.
            warnings.simplefilter("ignore", DeprecationWarning)
            for _ in range(processes):
                here, there = context.Pipe()
                inherited = [here, *(worker.pipe for worker in pool)]
                process = context.Process(target=_serve, args=(work, there, inherited), daemon=True)
                pool.append(_Worker(process, here))
                process.start()
                there.close()
        yield pool
    finally:
        for worker in pool:
            worker.pipe.close()
            if worker.process.pid is not None:
                worker.process.terminate()
        for worker in pool:
            if worker.process.pid is not None:
                worker.process.join(END_WAIT_S)
                worker.process.kill()
                worker.process.join()


def _serve(work: Callable[[int], Any], pipe: Connection, inherited: list[Connection]) -> None:
    """Run the tasks that arrive through a pipe, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends the forks
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in inherited:  # so that pipes close when the parent ends
        other.close()
    executors.in_fork = True
    torch.set_num_threads(1)  # a fork has no threads of OpenMP's pool
    one_blas_thread()
    with suppress(EOFError, OSError):
        while tasks := pipe.recv():
            try:
                answer: tuple[list[Any], BaseException | None] = ([work(i) for i in tasks], None)
            except BaseException as error:
                answer = ([], error)
            try:
                pipe.send(answer)
            except OSError:
                raise
            except Exception as error:  # what cannot be pickled
                text = f"{type(error).__name__}: {error}"
                pipe.send(([], ModelError(f"A worker's result cannot be sent ({text}).")))
