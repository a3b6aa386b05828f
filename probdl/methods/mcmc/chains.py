"""Where a sampler starts and what it returns, whichever engine it runs on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.compile import Evaluator
from probdl.errors import ModelError
from probdl.findings import Finding
from probdl.methods.fixed_params import held_params
from probdl.model.density import LogDensity
from probdl.results.diagnostics import interrupted
from probdl.results.fit import Fit

__all__ = ["Chain", "Chains", "Starts", "gather", "posterior_fit", "random_start"]


@dataclass(frozen=True)
class Chains:
    """Draws on R^d (chain, draw, d), and statistics (chain, draw) by name; what went wrong."""

    z: NDArray[np.float64]
    stats: dict[str, NDArray[Any]]
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class Chain:
    """One chain as far as it came: draws (draw, d), statistics (draw,), and why it failed."""

    z: NDArray[np.float64]
    stats: dict[str, NDArray[Any]]
    failure: Exception | None = None


def gather(chains: Sequence[Chain], draws: int, stop: KeyboardInterrupt | None) -> Chains:
    """Make one block of chains that may differ in length, or have failed.

    A chain that failed is left out. Of an interrupted run those chains are kept, at the length of
    the shortest of them, that make the most draws: on fewer cores than chains, the last ones may
    not have begun.

    Args:
        chains: all of them, as far as they came.
        draws: how many draws each was to have.
        stop: what ended the run early, if anything did.

    Raises:
        ModelError: every chain failed, or there are no draws.
        KeyboardInterrupt: interrupted before the first draw.
    """
    findings = []
    failed = {i: chain.failure for i, chain in enumerate(chains) if chain.failure is not None}
    sound = [chain for chain in chains if chain.failure is None]
    if failed:
        first, why = next(iter(failed.items()))
        seen = f"chain {first} failed after {len(chains[first].z)} draws: {why}"
        if not sound:
            raise ModelError(f"every chain failed; {seen}")
        findings.append(
            Finding(
                "error",
                "chain_failed",
                f"{len(failed)} of {len(chains)} chains failed and are left out; {seen}",
                "Mend what that says; where chains fail, the others may leave regions out too.",
            )
        )
    lengths = sorted((len(chain.z) for chain in sound), reverse=True)
    sizes = [(i + 1) * length for i, length in enumerate(lengths)]
    count = lengths[max(range(len(sizes)), key=lambda i: (sizes[i], i))]
    if count < 1:
        raise stop if stop is not None else ModelError("the sampler returned no draws.")
    kept = [chain for chain in sound if len(chain.z) >= count]
    if stop is not None and (count < draws or len(kept) < len(sound)):
        few = f" of {len(kept)} of the {len(chains)} chains" if len(kept) < len(chains) else ""
        of = f"{draws} draws a chain"
        findings.append(interrupted(stop, count, of, f"those{few} are returned", "of them"))
    return Chains(
        np.stack([chain.z[:count] for chain in kept]),
        {name: np.stack([c.stats[name][:count] for c in kept]) for name in kept[0].stats},
        findings,
    )


class Starts:
    """Where chains start; one that finds no start of its own begins where another did.

    Args:
        find: makes the start of a chain of its seed.
        seed: of the start that serves the others.

    Raises:
        ModelError: there is none for this seed.
    """

    def __init__(self, find: Callable[[int], Tensor], seed: int) -> None:
        self._find = find
        self._first = find(seed)
        self.failures: list[ModelError] = []

    def __call__(self, seed: int) -> Tensor:
        """Return the start of a chain."""
        try:
            return self._find(seed)
        except ModelError as error:
            self.failures.append(error)
            return self._first.clone()

    def findings(self) -> list[Finding]:
        """Tell which chains had no start of their own."""
        count = len(self.failures)
        if not count:
            return []
        return [
            Finding(
                "warning",
                "starts",
                f"{count} chain{'s' * (count > 1)} found no start and began where another did, so "
                f"that agreement between chains proves less. {self.failures[0]}",
            )
        ]


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
    """Turn chains into a fit."""
    values = density.constrain(torch.from_numpy(chains.z), deterministic=True)
    findings = [*findings, *chains.findings, *held_params(density.structure)]
    draws = {name: value.numpy() for name, value in values.items()}
    stats = {**chains.stats, "engine": evaluator.engine}
    return Fit(method, density.program, density.structure, draws, stats, seed, findings)
