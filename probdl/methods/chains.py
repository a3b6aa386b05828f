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
from probdl.diagnostics import Finding, interrupted
from probdl.fit import Fit
from probdl.methods.held import held_params

__all__ = ["Chains", "posterior_fit", "random_start"]


@dataclass(frozen=True)
class Chains:
    """Draws on R^d (chain, draw, d), and statistics (chain, draw) by name."""

    z: NDArray[np.float64]
    stats: dict[str, NDArray[Any]]


def random_start(density: LogDensity, evaluator: Evaluator, seed: int) -> Tensor:
    """Return a random point (d,) with a finite density."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    return density.initial(generator, value_and_grad=evaluator.value_and_grad)


def posterior_fit(
    method: Any,
    density: LogDensity,
    evaluator: Evaluator,
    chains: Chains,
    seed: int,
    findings: list[Finding],
) -> Fit:
    """Turn chains into a fit; fewer draws than the method asks for were interrupted."""
    values = density.constrain(torch.from_numpy(chains.z), deterministic=True)
    findings = [*findings, *held_params(density.structure)]
    if (count := chains.z.shape[1]) < method.draws:
        findings.append(
            interrupted(count, f"{method.draws} draws a chain", "those are returned", "of them")
        )
    draws = {name: value.numpy() for name, value in values.items()}
    stats = {**chains.stats, "engine": evaluator.engine}
    return Fit(method, density.program, density.structure, draws, stats, seed, findings)
