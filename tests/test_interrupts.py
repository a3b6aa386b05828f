"""Ctrl-C that Python would lose."""

import os
import signal
import sys
import time

import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl import montecarlo
from probdl.util.parallel import parallel_map

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
    results = parallel_map(lambda i: time.sleep(0.05 * min(i, 1)), 1000, workers=2)
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
