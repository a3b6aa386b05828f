"""Data, reference statistics and Pyro programs of the reference posteriors.

torch and Pyro are imported where they are used, for the peers' environment has neither.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def content(name: str) -> dict[str, Any]:
    """Read the file of a posterior, from the folder that PROBDL_SHARED names."""
    file = Path(os.environ["PROBDL_SHARED"]) / "posteriordb" / f"{name}.json"
    return json.loads(file.read_text())


def data(name: str) -> dict[str, np.ndarray]:
    return {k: np.asarray(v) for k, v in content(name)["data"].items()}


def program(
    name: str, data: Mapping[str, np.ndarray]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the Pyro program that the tests use, and its arguments."""
    from tests.reference.posteriors import POSTERIORS

    posterior = POSTERIORS[name]
    return posterior.model, posterior.arguments(dict(data))
