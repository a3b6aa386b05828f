"""The tasks, one file each, written natively for every system.

A task's module has
    REFERENCE: the file of the reference posterior, or None if the reference is a long run of Stan;
    data(): arrays by name, read or generated once and passed to every system;
    pyro(data), numpyro(data): a model and its arguments;
    pymc(data): a ``pm.Model``;
    STAN, stan(data): a program and its data;
    parameters(draws): scalars (chain, draw) by the reference's names, from draws by site.

For a task with REFERENCE, ``load`` adds data() and pyro(data): the reference file contains the
data, and the tests contain the Pyro program.

Priors, supports and site names are the same for all systems. A system is imported inside functions
because no environment contains all systems.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from types import ModuleType

import numpy as np

from benchmarks.peers import posteriordb
from tests.reference.files import scalars as split

TASKS = (
    "eight_schools",
    "kidscore_interaction",
    "arK",
    "garch11",
    "hmm_example",
    "low_dim_gauss_mix",
    "gp_regr",
    "diamonds",
    "hierarchical_logistic",
    "bayesian_network",
)


def load(name: str) -> ModuleType:
    task = importlib.import_module(f"benchmarks.peers.tasks.{name}")
    if task.REFERENCE is not None:
        task.data = functools.partial(posteriordb.data, task.REFERENCE)
        task.pyro = functools.partial(posteriordb.program, task.REFERENCE)
    return task


def scalars(draws: Mapping[str, np.ndarray], *sites: str) -> dict[str, np.ndarray]:
    """Split draws of some sites into scalars (chain, draw), named as in Stan: ``beta[1]``."""
    return split({site: draws[site] for site in sites})
