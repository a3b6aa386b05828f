"""Read the files of the reference posteriors, without torch, which other libraries lack."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def read(folder: Path, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any], int]:
    """Return the data, the reference statistics by parameter, and the number of reference draws."""
    content = json.loads((folder / f"{name}.json").read_text())
    data = {k: np.asarray(v) for k, v in content["data"].items()}
    return data, content["reference"], content["n_draws"]


def scalars(draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Split draws into scalars (chain, draw), named as in the files: ``beta[1]``."""
    result = {}
    for site, array in draws.items():
        for index in np.ndindex(*array.shape[2:]):
            label = ",".join(str(i + 1) for i in index)
            result[f"{site}[{label}]" if label else site] = array[(..., *index)]
    return result
