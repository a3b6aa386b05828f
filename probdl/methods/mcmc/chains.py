"""Starting points and results of Markov chains, for all samplers and engines."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.compile import Evaluator
from probdl.errors import ModelError
from probdl.findings import Finding
from probdl.io.arrays import write_arrays
from probdl.methods.angles import unwind
from probdl.methods.edges import check_edges
from probdl.methods.fixed_params import held_params
from probdl.methods.modes import Mode, check_covered
from probdl.methods.tails import check_tails
from probdl.model.density import LogDensity
from probdl.results.diagnostics import check_stuck, interrupted, stuck_chains, unchecked
from probdl.results.fit import Fit
from probdl.util.clock import TimeUp
from probdl.util.columns import slices

__all__ = [
    "Chain",
    "Chains",
    "Starts",
    "constrained",
    "gather",
    "posterior_fit",
    "random_start",
]


@dataclass(frozen=True)
class Chains:
    """Draws on R^d (chain, draw, d), statistics (chain, draw) by name, and findings."""

    z: NDArray[np.float64]
    stats: dict[str, NDArray[Any]]
    findings: list[Finding] = field(default_factory=list)
    states: list[dict[str, Any]] = field(
        default_factory=list
    )  # to go on from; empty if there are none
    kept: Sequence[int] = ()  # their places among the chains that were run; empty for all

    @property
    def moving_stats(self) -> dict[str, NDArray[Any]]:
        """The statistics of the chains that are not stuck; of all chains if all are."""
        moving = ~stuck_chains(self.z, self.stats["lp"])
        return {k: v[moving] for k, v in self.stats.items()} if moving.any() else self.stats

    def followed_by(self, others: Chains) -> Chains:
        """Return these draws and then those of the same chains, which went on."""
        return replace(
            others,
            z=np.concatenate([self.z, others.z], 1),
            stats={n: np.concatenate([self.stats[n], of], 1) for n, of in others.stats.items()},
            kept=self.kept,
        )


@dataclass(frozen=True)
class Chain:
    """One chain, complete or not: draws (draw, d), statistics (draw,), and why it failed.

    ``state_after`` returns its state after a number of draws.
    """

    z: NDArray[np.float64]
    stats: dict[str, NDArray[Any]]
    failure: Exception | None = None
    state_after: Callable[[int], dict[str, Any]] | None = None


def gather(
    chains: Sequence[Chain],
    draws: int,
    stop: KeyboardInterrupt | None,
    whole: NDArray[np.float64] | None = None,
) -> Chains:
    """Combine chains into arrays; they may differ in length, or have failed.

    A failed chain is left out. An interrupted run has chains of different lengths, and with fewer
    cores than chains the last ones may not have begun. The chains are cut to a common length, and
    shorter chains left out, such that most draws are kept.

    Args:
        chains: all chains, complete or not.
        draws: number of draws that each chain was meant to have.
        stop: the interruption that ended the run early, if there was one.
        whole: the array (chain, draw, d) that the draws of the chains are parts of, in this order,
            whose memory the result then takes; None if there is none.

    Raises:
        ModelError: every chain failed, or there are no draws.
        KeyboardInterrupt: interrupted before the first draw.
    """
    findings = []
    failed = {i: chain.failure for i, chain in enumerate(chains) if chain.failure is not None}
    intact = [chain for chain in chains if chain.failure is None]
    if failed:
        first, failure = next(iter(failed.items()))
        done = len(chains[first].z)
        if not intact:
            same = len({f"{of}" for of in failed.values()}) == 1
            if same and not done and isinstance(failure, ModelError):  # it is the model's
                raise failure
            raise ModelError(
                f"All chains failed. The first error: chain {first}, after {done} draws: {failure}"
            )
        findings.append(
            Finding(
                "error",
                "chain_failed",
                f"{len(failed)} of {len(chains)} chains failed and are left out; chain {first} "
                f"failed after {done} draws: {failure}",
                "Fix the error above. The remaining chains may have missed parts of the posterior.",
            )
        )
    lengths = sorted((len(chain.z) for chain in intact), reverse=True)
    sizes = [(i + 1) * length for i, length in enumerate(lengths)]
    count = lengths[max(range(len(sizes)), key=lambda i: (sizes[i], i))]
    if count < 1:
        raise stop if stop is not None else ModelError("The sampler returned no draws.")
    kept = [chain for chain in intact if len(chain.z) >= count]
    incomplete = count < draws or len(kept) < len(intact)
    # Ctrl-C in the last moment is reported, too, since it may be meant for a series of fits.
    if stop is not None and (incomplete or not isinstance(stop, TimeUp)):
        chosen = f"{len(kept)} of the {len(chains)}" if len(kept) < len(chains) else "all"
        of, returned = f"{draws} draws per chain", f"these draws from {chosen} chains are returned"
        findings.append(interrupted(stop, count, of, returned, "get all draws"))
    ids = {*map(id, kept)}
    states = [chain.state_after(count) for chain in kept if chain.state_after is not None]
    parts = [chain.z[:count] for chain in kept]
    return Chains(
        np.stack(parts) if whole is None else _moved_together(parts, whole),
        {name: np.stack([c.stats[name][:count] for c in kept]) for name in kept[0].stats},
        findings,
        states,
        () if len(kept) == len(chains) else [i for i, c in enumerate(chains) if id(c) in ids],
    )


class Starts:
    """Starting points of chains; if none is found for a chain, it starts where the first does.

    Args:
        find: finds the starting point of a chain, given a seed and options.
        seed: seed of the first starting point.

    Raises:
        ModelError: there is no starting point for this seed.
    """

    def __init__(self, find: Callable[..., Tensor], seed: int) -> None:
        self._find = find
        self._first = find(seed)
        self.failures: list[ModelError] = []

    def __call__(self, seed: int, **options: Any) -> Tensor:
        """Return the starting point of a chain, given its seed."""
        try:
            return self._find(seed, **options)
        except ModelError as error:
            self.failures.append(error)
            return self._first.clone()

    def findings(self) -> list[Finding]:
        """Report the chains for which no starting point was found."""
        count = len(self.failures)
        if not count:
            return []
        return [
            Finding(
                "warning",
                "starts",
                f"{count} chain{'s' * (count > 1)} found no starting point and began where another "
                "chain did, so agreement between chains is weaker evidence of convergence. "
                f"{self.failures[0]}",
            )
        ]


def random_start(
    density: LogDensity, evaluator: Evaluator, seed: int, *, mirror: bool = False
) -> Tensor:
    """Return a random point (d,) with a finite log density, or its mirror image."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    return density.initial(generator, mirror=mirror, value_and_grad=evaluator.value_and_grad)


def posterior_fit(
    method: Any,
    density: LogDensity,
    evaluator: Evaluator,
    chains: Chains,
    seed: int,
    findings: list[Finding],
    modes: Callable[[], Sequence[Mode]] = tuple,
    *,
    draws: Mapping[str, NDArray[Any]] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Fit:
    """Make the fit of chains, and check it against modes that were found without them.

    Args:
        method: the method.
        density: the density.
        evaluator: evaluates it.
        chains: the chains.
        seed: the seed of the fit.
        findings: findings of the sampler.
        modes: finds the modes; Ctrl-C ends the search, and keeps the draws.
        draws: the draws by site, if they are known.
        out: the folder of the files that the draws are written to, and mapped to; None keeps them
            in memory.
    """
    unwind(density, evaluator, z := chains.z)
    if out is not None:
        draws = _written(density, z, out)
    elif draws is None:
        draws = constrained(density, z)
    findings = [*findings, *chains.findings, *held_params(density.structure)]
    try:
        findings += check_stuck(z, chains.stats["lp"])
        findings += check_tails(density, evaluator, z)
        findings += check_edges(density, z)
        findings += check_covered(density, evaluator, z, modes())
    except KeyboardInterrupt as stop:
        kept = "a chain that stands still or a missed mode may not be reported"
        findings.append(unchecked(stop, kept, "make all checks"))
    stats = {**chains.stats, "engine": evaluator.engine}
    if chains.states:
        stats["chain_states"] = chains.states
    sites = dict(draws)
    return method.fit_type(  # type: ignore[no-any-return]
        method, density.program, density.structure, sites, stats, seed, findings
    )


def _moved_together(
    parts: Sequence[NDArray[np.float64]], whole: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Stack parts (n, d) of an array (chain, draw, d), in its memory."""
    rows, count = whole.reshape(-1, whole.shape[2]), len(parts[0])
    for i, part in enumerate(parts):
        to = rows[i * count :]
        if part.ctypes.data != to.ctypes.data:
            for some in slices(count, part.size):  # to the front, so nothing is lost
                to[:count][some] = part[some]
    return rows[: len(parts) * count].reshape(len(parts), count, -1)


def _written(
    density: LogDensity, z: NDArray[np.float64], out: str | os.PathLike[str]
) -> dict[str, NDArray[Any]]:
    """Write the draws by site of points (chain, draw, d) to files."""
    rows = torch.from_numpy(z.reshape(-1, density.dim))
    parts = (
        density.constrain(rows[some], deterministic=True) for some in slices(len(rows), z.size)
    )
    return write_arrays(out, parts, z.shape[:2], what="draws", by_columns=True)


def constrained(
    density: LogDensity,
    z: NDArray[np.float64],
    before: Mapping[str, NDArray[Any]] | None = None,
) -> dict[str, NDArray[Any]]:
    """Return the draws by site of points (chain, draw, d), of which the first may be known."""
    first = 0 if before is None else next(iter(before.values())).shape[1]
    points = torch.from_numpy(z[:, first:])
    new = {n: x.numpy() for n, x in density.constrain(points, deterministic=True).items()}
    if before is None:
        return new
    return {name: np.concatenate([before[name], of], 1) for name, of in new.items()}
