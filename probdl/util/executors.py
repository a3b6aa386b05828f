"""Independent tasks on an executor: a pool of processes, Dask, MPI or loky.

An executor is what has the ``submit`` of ``concurrent.futures.Executor``. The work travels once to
each worker, pickled by cloudpickle, and pieces of the data with each call.
"""

from __future__ import annotations

import io
import math
import os
import platform
import queue
import reprlib
import time
import traceback
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

from torch import Tensor
from torch.nn import Parameter

from probdl.errors import ModelError, ProbdlError
from probdl.util.blas import one_blas_thread, one_torch_thread
from probdl.util.clock import check_time_limit
from probdl.util.isolation import lock_suspended
from probdl.util.lazy import cloudpickle

__all__ = ["finished", "on_executor"]

ATTEMPTS = 3  # at a task whose worker ended
HOPELESS = 10  # tasks that are lost before the first is done
SMALL_BYTES = 100_000  # of work that is sent with each call
CALL_S = 0.25  # of a call, with tasks that are shorter
CALLS, MAX_CALLS = 32, 4096  # that wait or run at once: at the start, and at most
CALLS_A_WORKER = 3  # if the number of workers is known, so that each has one that waits
COUNT_S = 5.0  # between counts of the workers
KNOWN = 4  # runs whose work a worker keeps
POLL_S = 0.1

in_fork = False  # whether this process is one of ``util/parallel.py``

_known: dict[str, Callable[[int, Any], Any]] = {}


def on_executor(
    executor: Any,
    work: Callable[[int, Any], Any],
    items: Sequence[Any],
    indices: Sequence[int],
    lost: Callable[[str], Any],
) -> Generator[tuple[int, Any]]:
    """Yield ``i, work(i, items[i])`` for indices, in the order in which they are done.

    A task whose worker ended is sent again. When the caller ends early, what waits is cancelled.

    Args:
        executor: has ``submit``, or is a Dask ``Client``.
        work: one task as a function of its index and its item; it must not depend on earlier calls.
        items: the data of all tasks.
        indices: the tasks to do.
        lost: the result of a task that was lost three times, or after which the executor ended,
            from a message.

    Raises:
        ModelError: the work cannot be pickled, or workers cannot run it.
        Exception: what a task raised.
    """
    if in_fork:
        raise ModelError(
            "executor= cannot be used by processes that workers= started, as they are copies of "
            "the one that has the executor. Pass workers=1, or only one of the two."
        )
    calls = _Calls(
        getattr(executor, "get_executor", lambda: executor)(),
        _pickled(work),
        items,
        min(HOPELESS, len(indices)),
        getattr(executor, "nthreads", None),
    )
    waiting, left = list(indices)[::-1], set(indices)
    try:
        while left:
            while waiting and len(calls.running) < calls.limit:
                size = calls.size(len(waiting))
                calls.submit([waiting.pop() for _ in range(min(size, len(waiting)))])
            for i, result in calls.next_results():
                left.remove(i)
                yield i, lost(f"{result}") if isinstance(result, _LostError) else result
    except _LostError as error:
        if not calls.done:
            raise ModelError(f"{error}") from None
        yield from ((i, lost(f"{error}")) for i in sorted(left))
    finally:
        calls.cancel()


def finished(
    executor: Any,
    work: Callable[[int, Any], Any],
    items: Sequence[Any],
    lost: Callable[[str], Any],
    update: Callable[[], Any],
) -> tuple[dict[int, Any], KeyboardInterrupt | None]:
    """Run tasks of a fit on an executor, and return the results by index, and what ended it early.

    Tasks may run in threads of this process, in isolation, so that this one waits outside of its.

    Args:
        executor: as for ``on_executor``, like the next three.
        work: one task.
        items: the data of all tasks.
        lost: the result of a task that was lost.
        update: is called after each task.
    """
    done: dict[int, Any] = {}
    with lock_suspended():
        try:
            for i, result in on_executor(executor, work, items, range(len(items)), lost):
                done[i] = result
                update()
        except KeyboardInterrupt as stop:
            return done, stop
    return done, None


class _LostError(Exception):
    """A task was lost, or the executor ended."""


@dataclass
class _Calls:
    """The calls of one run that wait or run.

    Attributes:
        executor: the executor.
        work: the pickled work.
        items: the data of all tasks.
        hopeless: the number of lost tasks that ends the run if no task is done.
        threads: returns the threads of each worker; None if they are not known.
        running: the tasks of each call, by its future, and whether the work was sent.
        done: the number of tasks that are done.
        limit: the number of calls at once. If the number of workers is not known, it grows with
            what is done.
        lost: the number of tasks that were lost three times.
    """

    executor: Any
    work: bytes
    items: Sequence[Any]
    hopeless: int
    threads: Callable[[], Mapping[Any, int]] | None = None
    running: dict[Any, tuple[list[int], bool]] = field(default_factory=dict)
    done: int = 0
    limit: int = CALLS
    lost: int = 0

    def __post_init__(self) -> None:
        self._key = uuid.uuid4().hex
        self._process = _this_process()
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._attempts: dict[int, int] = {}
        self._seconds = 0.0
        self._counted = -math.inf  # when workers were counted
        self._count_workers()

    def size(self, waiting: int) -> int:
        """Return the number of tasks of the next call, from the time that they take."""
        if not self.done:
            return 1
        mean = self._seconds / self.done
        return max(1, min(int(CALL_S / mean) if mean > 0 else waiting, waiting // self.limit))

    def submit(self, indices: list[int], *, with_work: bool = False) -> None:
        """Submit a call.

        Raises:
            ModelError: the data cannot be pickled.
            _LostError: the executor ended.
        """
        sent = self.work if with_work or len(self.work) <= SMALL_BYTES else None
        pieces = _pickled([(i, self.items[i]) for i in indices])
        try:
            future = self.executor.submit(_run, self._key, sent, pieces, self._process)
            future.add_done_callback(self._ended.put)
        except Exception as error:  # such as BrokenExecutor, or a client that is closed
            began = self.done or self.running or self._attempts
            raise _LostError(
                f"The executor takes no more work after {self.done} tasks "
                f"({type(error).__name__}: {error}). "
                + (
                    "A worker may have run out of memory: use fewer, or an executor that starts "
                    "others, as Dask."
                    if began
                    else "Pass one that is running."
                )
            ) from None
        self.running[future] = indices, sent is not None

    def next_results(self) -> list[tuple[int, Any]]:
        """Wait for a call, and return its results; a task that was lost has an error.

        Raises:
            _LostError: the executor ended, or many tasks were lost, and none was done.
            Exception: what a task raised.
        """
        while True:
            try:
                future = self._ended.get(timeout=POLL_S)
            except queue.Empty:
                check_time_limit()
                continue
            if future in self.running:  # an executor may announce a result twice
                break
        indices, with_work = self.running.pop(future)
        try:
            answer = future.result()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return self._send_again(indices, error)
        if answer is None and not with_work:  # of a worker that has not seen the work
            self.submit(indices, with_work=True)
            return []
        done, results, raised, seconds = _read(answer)
        if raised is None and done != indices:
            raise ModelError("The executor returned the result of another call.")
        if isinstance(raised, KeyboardInterrupt):  # of all processes of a terminal
            raise KeyboardInterrupt
        if raised is not None and not isinstance(raised, Exception):  # such as SystemExit
            raise ModelError(f"A task raised {type(raised).__name__} on a worker: {raised}.")
        if raised is not None:
            raise raised
        self.done += len(indices)
        self._seconds += seconds
        if self.threads is None:
            self.limit = min(self.limit + 1, MAX_CALLS)
        self._count_workers()
        return list(zip(indices, results, strict=True))

    def _count_workers(self) -> None:
        """Set the limit by the number of workers, which changes while a cluster grows."""
        if self.threads is None or time.monotonic() < self._counted + COUNT_S:
            return
        with suppress(Exception):  # a client that is closed; the next call says so
            count = sum(self.threads().values())
            self.limit = max(CALLS_A_WORKER * count, 1) if count else CALLS
        self._counted = time.monotonic()

    def _send_again(self, indices: list[int], error: BaseException) -> list[tuple[int, Any]]:
        """Submit the tasks of a call that was lost, each by itself, since one may be the cause."""
        found = []
        for i in indices:
            self._attempts[i] = self._attempts.get(i, 0) + 1
            if self._attempts[i] < ATTEMPTS:
                self.submit([i])
                continue
            problem = _LostError(
                f"The worker of task {i} ended {ATTEMPTS} times without a result "
                f"({type(error).__name__}: {error}). It may have run out of memory, or lack a "
                "package: workers need the same packages as this process."
            )
            self.lost += 1
            if not self.done and self.lost >= self.hopeless:  # it is the same for each task
                raise problem
            found.append((i, problem))
        return found

    def cancel(self) -> None:
        """Cancel the calls that have not begun."""
        for future in self.running:
            future.cancel()


def _read(answer: Any) -> tuple[list[int], list[Any], BaseException | None, float]:
    """Return what a call has answered.

    Raises:
        ModelError: it is not what ``_run`` returned.
    """
    try:
        indices, results, raised, seconds = cloudpickle.loads(answer)
    except Exception as error:
        raise ModelError(
            f"The executor returned {reprlib.repr(answer)} instead of the result of the function "
            f"that was submitted, or it cannot be read here ({type(error).__name__}: {error}). "
            "submit() must return a future with that result."
        ) from None
    return indices, results, raised, seconds


def _pickled(thing: Any) -> bytes:
    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, part: Any) -> Any:
            if isinstance(part, Tensor) and any(isinstance(x, ref) for x in vars(part).values()):
                # Pyro's references from values to their parameters cannot be pickled.
                state = {k: x for k, x in vars(part).items() if not isinstance(x, ref)}
                return _tensor_with, (type(part), part.detach(), part.requires_grad, state)
            # A part of a large tensor would travel with all of it.
            if type(part) is Tensor and part.untyped_storage().nbytes() > part.nbytes:
                return part.clone().__reduce_ex__(self.proto)
            return super().reducer_override(part)

    written = io.BytesIO()
    try:
        Pickler(written).dump(thing)
        return written.getvalue()
    except Exception as error:
        raise ModelError(
            f"The model or its data cannot be sent to workers ({type(error).__name__}: {error}). "
            "Define what cannot be pickled inside the model, or use workers= instead of executor=."
        ) from None


def _tensor_with(
    kind: type[Tensor], data: Tensor, requires_grad: bool, state: Mapping[str, Any]
) -> Tensor:
    """Return a tensor, or a parameter, with attributes."""
    if issubclass(kind, Parameter):
        tensor: Tensor = kind(data, requires_grad)
    else:
        tensor = data.requires_grad_(requires_grad)
    vars(tensor).update(state)
    return tensor


def _this_process() -> tuple[str, int]:
    return platform.node(), os.getpid()


def _run(key: str, work: bytes | None, pieces: bytes, client: tuple[str, int]) -> bytes | None:
    """Run tasks on a worker; return their results, an error and the seconds, or None.

    Args:
        key: identifies the run.
        work: the pickled work; None if the worker should know it.
        pieces: the pickled pairs of index and item.
        client: the process that submitted them.
    """
    indices: list[int] = []
    results: list[Any] = []
    error: BaseException | None = None
    began = time.perf_counter()
    try:
        if (known := _work_of(key, work)) is None:
            return None
        with ExitStack() as stack:
            if _this_process() != client:  # a thread of the client must not change its settings
                stack.enter_context(one_torch_thread())
                stack.enter_context(one_blas_thread())
            given = cloudpickle.loads(pieces)
            indices = [i for i, _ in given]
            results = [known(i, item) for i, item in given]
    except BaseException as raised:
        results, error = [], _sent(raised)
    return _answer(indices, results, error, time.perf_counter() - began)


def _work_of(key: str, work: bytes | None) -> Callable[[int, Any], Any] | None:
    if key not in _known:
        if work is None:
            return None
        while len(_known) >= KNOWN:
            _known.pop(next(iter(_known)), None)
        _known[key] = cloudpickle.loads(work)
    return _known.get(key)


def _sent(error: BaseException) -> BaseException:
    """Return an error as it is sent to the client, with where it was raised."""
    if not isinstance(error, (ProbdlError, KeyboardInterrupt)):
        error.add_note("On a worker:\n" + "".join(traceback.format_exception(error)))
    return error


def _answer(
    indices: list[int], results: list[Any], error: BaseException | None, seconds: float
) -> bytes:
    try:
        return bytes(cloudpickle.dumps((indices, results, error, seconds)))
    except Exception as failure:
        what = "result" if error is None else f"error ({type(error).__name__}: {error})"
        problem = ModelError(f"A worker's {what} cannot be sent ({failure}).")
        return bytes(cloudpickle.dumps((indices, [], problem, seconds)))
