"""The tasks, one file each, written natively for every system.

A task's module has
    REFERENCE: the file of the reference posterior, or None where a long run of Stan is it;
    data(): arrays by name, read or made once and handed to every system;
    pyro(data), numpyro(data): a model and its arguments;
    pymc(data): a ``pm.Model``;
    STAN, stan(data): a program and its data;
    parameters(draws): scalars (chain, draw) by the reference's names, from draws by site.

Priors, supports and names of sites are the same in all. A system is imported where it is used,
for no environment has them all.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType

import numpy as np

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
    return importlib.import_module(f"benchmarks.peers.tasks.{name}")


def scalars(draws: Mapping[str, np.ndarray], *sites: str) -> dict[str, np.ndarray]:
    """Split draws of some sites into scalars (chain, draw), named as in Stan: ``beta[1]``."""
    return split({site: draws[site] for site in sites})
