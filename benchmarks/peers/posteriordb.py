"""Data, reference statistics and Pyro programs of the reference posteriors.

torch and Pyro are imported inside functions because the peers' environment contains neither.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.reference.files import read


def content(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any], int]:
    """Read the file of a posterior from the folder that PROBDL_SHARED names."""
    return read(Path(os.environ["PROBDL_SHARED"]) / "posteriordb", name)


def data(name: str) -> dict[str, np.ndarray]:
    return content(name)[0]


def program(
    name: str, data: Mapping[str, np.ndarray]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the Pyro program from the tests and its arguments."""
    from tests.reference.posteriors import POSTERIORS

    posterior = POSTERIORS[name]
    return posterior.model, posterior.arguments(dict(data))
