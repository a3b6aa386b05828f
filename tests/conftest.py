"""Shared settings: no plot windows, and fits that several tests read."""

import os
import signal
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch

import probdl
from probdl.models import eight_schools

mpl.use("Agg")
torch.set_num_threads(1)  # the models are small, and pytest-xdist has the cores


@pytest.fixture(scope="session")
def shared():
    """The folder of reference posteriors and data; tests that need it skip without."""
    folder = os.environ.get("PROBDL_SHARED")
    if not folder:
        pytest.skip("PROBDL_SHARED is not set: no reference posteriors here")
    return Path(folder)


@pytest.fixture
def interruptible():
    """Let Ctrl-C raise KeyboardInterrupt; a job in the background inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def schools():
    """The standard errors and effects of the eight schools."""
    sigma = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    effect = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    return sigma, effect


@pytest.fixture(scope="session")
def schools_fit(schools):
    """A short run of NUTS on the eight schools."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", probdl.FindingWarning)  # short: its ESS may be low
        return probdl.infer(
            eight_schools,
            *schools,
            method=probdl.NUTS(draws=200, warmup=200, chains=2),
            seed=3,
            coords={"school": list("ABCDEFGH")},
        )
