"""What a sampler returns, whichever engine it ran on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Chains"]


@dataclass(frozen=True)
class Chains:
    """Draws on R^d (chain, draw, d), and statistics (chain, draw) by name."""

    z: NDArray[np.float64]
    stats: dict[str, NDArray[Any]]
