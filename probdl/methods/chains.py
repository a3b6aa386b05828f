"""Where a sampler starts and what it returns, whichever engine it runs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.compile import Evaluator
from probdl.density import LogDensity

__all__ = ["Chains", "random_start"]


@dataclass(frozen=True)
class Chains:
    """Draws on R^d (chain, draw, d), and statistics (chain, draw) by name."""

    z: NDArray[np.float64]
    stats: dict[str, NDArray[Any]]


def random_start(density: LogDensity, evaluator: Evaluator, seed: int) -> Tensor:
    """Return a random point (d,) with a finite density."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    return density.initial(generator, value_and_grad=evaluator.value_and_grad)
