"""Ctrl-C that Python would lose."""

import contextlib
import os
import signal
import sys
import threading
import time

import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl import montecarlo
from probdl.util import interrupts, isolation, lock
from probdl.util.parallel import parallel_map
from tests.test_state import snapshot

runs = []


class InterruptsWhenFreed:
    """Its finalizer is interrupted, where Python ignores exceptions."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def interrupted(y):
    runs.append(1)
    if len(runs) == 3:
        InterruptsWhenFreed()
        for _ in range(6000):  # until the interrupt comes once more
            time.sleep(0.01)
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    "call",
    [
        lambda: probdl.infer(interrupted, torch.tensor(0.0), seed=1),
        lambda: montecarlo.calibrate(
            interrupted, "laplace", (torch.tensor(0.0),), simulations=20, workers=1, seed=1
        ),
    ],
)
def test_an_interrupt_in_a_finalizer_is_not_lost(call):
    runs.clear()
    with pytest.raises(KeyboardInterrupt):
        call()


@pytest.mark.usefixtures("interruptible")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_an_interrupt_after_a_fork_is_not_lost():
    armed = [True]
    os.register_at_fork(
        after_in_parent=lambda: (
            signal.raise_signal(signal.SIGINT) if armed and armed.pop() else None
        )
    )
    results = parallel_map(lambda i, _: time.sleep(0.05 * min(i, 1)), range(1000), workers=2)
    assert not armed
    assert len(results) < 900


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_in_a_finalizer_is_not_late(monkeypatch):
    monkeypatch.setattr("probdl.util.interrupts.DELAY_S", 5.0)

    def model(y):
        InterruptsWhenFreed()
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(KeyboardInterrupt):
        probdl.infer(model, torch.tensor(0.0), method="map", seed=1)


def test_other_ignored_errors_are_reported_as_before(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_type))

    class Fails:
        def __del__(self):
            raise ValueError

    def model(y):
        Fails()
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    before = sys.unraisablehook
    probdl.infer(model, torch.tensor(0.0), method="map", seed=1)
    assert set(seen) == {ValueError}
    assert sys.unraisablehook is before


def interrupt_at(moment):
    """Return a trace function that raises SIGINT at the given line of what manages contexts."""
    files = {contextlib.__file__, interrupts.__file__, isolation.__file__, lock.__file__}
    left = [moment]

    def trace(frame, event, argument):
        if frame.f_code.co_filename not in files:
            return None
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)
        return trace

    return trace, left


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_never_leaves_half_a_state(monkeypatch):
    late = []

    def start(function, arguments):
        late.append(threading.Thread(target=function, args=arguments))
        late[-1].start()

    monkeypatch.setattr("probdl.util.interrupts.DELAY_S", 0.0)
    monkeypatch.setattr("_thread.start_new_thread", start)
    handler, hook, state = signal.getsignal(signal.SIGINT), sys.unraisablehook, snapshot()
    done = False
    moment = came = 0
    while not done:
        moment += 1
        trace, left = interrupt_at(moment)
        try:
            try:
                sys.settrace(trace)
                with isolation.isolated(3), isolation.isolated(4), isolation.evaluation():
                    with isolation.lock_suspended():
                        assert not lock.GLOBAL_LOCK.held
                    assert lock.GLOBAL_LOCK.depth == 3
                    assert torch.get_default_dtype() is torch.float64
            finally:
                sys.settrace(None)
                while late:  # the postponed interrupts
                    late.pop().join()
            done = left[0] > 0
        except KeyboardInterrupt:
            came += 1
        assert lock.GLOBAL_LOCK.depth == 0
        assert lock.GLOBAL_LOCK._lock.acquire(blocking=False)
        lock.GLOBAL_LOCK._lock.release()
        assert snapshot() == state
        assert isolation._outside == []
        assert signal.getsignal(signal.SIGINT) is handler
        assert sys.unraisablehook is hook
    assert came == moment - 1 > 200


@pytest.mark.usefixtures("interruptible")
def test_waiting_for_another_thread_can_be_interrupted():
    held, free = threading.Event(), threading.Event()

    def other():
        with lock.GLOBAL_LOCK:
            held.set()
            free.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    main = threading.main_thread().ident
    threading.Timer(0.05, signal.pthread_kill, [main, signal.SIGINT]).start()
    try:
        with pytest.raises(KeyboardInterrupt), isolation.isolated(1):
            pass
    finally:
        free.set()
        thread.join()
    with isolation.isolated(1):
        pass


@pytest.mark.usefixtures("interruptible")
def test_a_run_in_the_exit_of_a_context_can_be_interrupted():
    @contextlib.contextmanager
    def fitted_at_the_end():
        yield
        with isolation.isolated(1):
            signal.raise_signal(signal.SIGINT)
            time.sleep(60)

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), fitted_at_the_end():
        pass
    assert time.monotonic() - start < 30
