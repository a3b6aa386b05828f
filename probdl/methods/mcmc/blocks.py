"""Draws in blocks: until there are enough, with a checkpoint after each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from probdl.compile.kernels.nuts import RECORD
from probdl.errors import ModelError, SettingError
from probdl.findings import Finding
from probdl.methods.mcmc.chains import Chains
from probdl.methods.mcmc.native_nuts import EndedError, check_state
from probdl.methods.mcmc.watching import Until
from probdl.methods.training.checkpoint import Checkpoint
from probdl.results.diagnostics import interrupted
from probdl.util.clock import expire
from probdl.util.progress import bar

__all__ = ["Blocks", "continued"]

ENDED = {"interrupted", "time_limit", "callback"}  # findings on a run that ended early
OF_THIS_RUN = {*ENDED, "checkpoint"}  # not of one that resumes
FIRST_DRAWS, BLOCK_SECONDS = 100, 5.0  # of a block that a checkpoint follows


@dataclass(frozen=True)
class Blocks:
    """How chains are sampled block by block.

    Attributes:
        draws: the number of draws of each chain.
        until: when there are enough; None means after ``draws``.
        checkpoint: where the chains are saved; None saves none.
    """

    draws: int
    until: Until | None = None
    checkpoint: Checkpoint | None = None

    def sample(self, sample: Callable[..., Chains], first: Mapping[str, Any], dim: int) -> Chains:
        """Sample all blocks, or those that a checkpoint does not have.

        Args:
            sample: samples a number of draws, ``draws=``, from ``states=``.
            first: further arguments for the first block.
            dim: the dimension.
        """
        began = time.perf_counter()
        chains = self._restored(dim)
        if chains is None:
            few = self.draws if self.checkpoint is None else min(FIRST_DRAWS, self.draws)
            chains = sample(draws=few, **first)
            chains = self._saved(chains)
        each, wanted = 0.0, self.draws  # seconds a draw, and the number of draws
        limit = self.until.time_limit if self.until is not None else None
        while not ENDED & {f.check for f in chains.findings}:
            try:
                wanted = self._wanted(chains, wanted)
                count = self._further(wanted - chains.z.shape[1], each)
                late = limit is not None and time.perf_counter() - began > limit
                if not count or (late and chains.z.shape[1] >= self.draws):
                    return _with(chains, *self._too_few(chains))
                started = time.perf_counter()
                more = sample(draws=count, states=chains.states, before=chains.z)
                if len(more.z) < len(chains.z):
                    end = _interruption(more)
                    if end is not None:
                        return _with(chains, self._cut(chains, end))
                    return _with(chains, *(_only_first(chains, f) for f in more.findings))
                each = (time.perf_counter() - started) / more.z.shape[1]
                end, before = _interruption(more), chains.findings
                chains = chains.followed_by(more)
                if end is not None:  # the number of draws is that of all blocks
                    chains = replace(chains, findings=[self._cut(chains, end)])
                chains = self._saved(_with(chains, *before))
            except KeyboardInterrupt as stop:
                return _with(chains, self._cut(chains, stop))
            except EndedError:
                told = f"The callback ended the run after {chains.z.shape[1]} draws per chain."
                return _with(chains, Finding("info", "callback", told, "fit.extend() goes on."))
            except ModelError as error:
                return _with(
                    chains, _only_first(chains, Finding("error", "chain_failed", f"{error}"))
                )
        return chains

    def _too_few(self, chains: Chains) -> list[Finding]:
        """Return the finding that there are not as many draws as ``until`` asks for."""
        return [] if self.until is None else self.until.findings(chains.z)

    def _cut(self, chains: Chains, stop: KeyboardInterrupt) -> Finding:
        """Return the finding that an interruption between blocks, or within one, ended the run."""
        done, of = chains.z.shape[1], f"{self.most} draws per chain"
        return interrupted(stop, done, of, "these draws are returned", "get all draws")

    @property
    def most(self) -> int:
        """The largest number of draws of each chain."""
        return self.draws if self.until is None else max(self.draws, self.until.draws)

    def _further(self, left: int, each: float) -> int:
        """Return the number of draws of the next block."""
        if self.checkpoint is None:
            return max(0, left)
        block = max(FIRST_DRAWS, int(BLOCK_SECONDS / each)) if each else FIRST_DRAWS
        return max(0, min(left, block))

    def _wanted(self, chains: Chains, wanted: int) -> int:
        """Return the number of draws of each chain, as far as it is known, given that so far.

        It depends on the draws, and not on the blocks, which take some time each.
        """
        while self.until is not None and wanted <= chains.z.shape[1]:
            more = self.until.further(chains.z[:, :wanted])
            if not more:
                break
            wanted += more
        return wanted

    def _saved(self, chains: Chains) -> Chains:
        """Save the chains; a full disk must not cost them, and is reported once."""
        try:
            self._save(chains)
        except SettingError as error:
            if not any(f.check == "checkpoint" for f in chains.findings):
                full = Finding("warning", "checkpoint", str(error))
                return _with(chains, full)
        return chains

    def _save(self, chains: Chains) -> None:
        if self.checkpoint is None:
            return
        ended = [f for f in chains.findings if f.check not in OF_THIS_RUN]
        self.checkpoint.write(
            {
                "done": chains.z.shape[1],
                "z": torch.from_numpy(chains.z),
                "stats": {name: torch.from_numpy(of) for name, of in chains.stats.items()},
                "kept": [*chains.kept],
                "states": [
                    {
                        n: torch.from_numpy(x) if isinstance(x, np.ndarray) else x
                        for n, x in state.items()
                    }
                    for state in chains.states
                ],
                "findings": [{**asdict(f), "sites": [*f.sites]} for f in ended],
            }
        )

    def _restored(self, dim: int) -> Chains | None:
        """Return the chains of the checkpoint, after checks of all that C code will read."""
        if self.checkpoint is None:
            return None
        saved = self.checkpoint.read(self.most)
        if saved is None:
            return None
        with self.checkpoint.readable():
            z = saved["z"].numpy()
            states = [
                {n: x.numpy() if isinstance(x, torch.Tensor) else x for n, x in state.items()}
                for state in saved["states"]
            ]
            shape = (len(states), saved["done"])
            if not states or z.shape != (*shape, dim) or z.dtype != np.float64:
                raise ValueError(f"its draws have the shape {z.shape}")
            for state in states:
                check_state(state, dim)
            stats = {name: of.numpy() for name, of in saved["stats"].items()}
            if set(stats) != {*(RECORD.names or ())} or any(
                of.shape != shape for of in stats.values()
            ):
                raise ValueError("its statistics are not those of its draws")
            kept = saved.get("kept", ())
            if not all(type(i) is int for i in kept) or len({*kept}) < len(kept):
                raise ValueError(f"its chains are {kept!r}")
            findings = [Finding.saved(f) for f in saved["findings"]]
            return Chains(z, stats, findings, states, kept)


def continued(
    chains: Chains, sample: Callable[..., Chains], draws: int, progress: bool | None
) -> Chains:
    """Return chains with further draws, in blocks, so that an early end finds all chains as far.

    Args:
        chains: the chains so far.
        sample: as for ``Blocks.sample``.
        draws: the number of further draws.
        progress: whether to show progress.

    Raises:
        KeyboardInterrupt: interrupted before each chain had a further draw.
        ModelError: a chain failed before.
    """
    done, block = 0, FIRST_DRAWS
    with bar(draws, "sampling", progress) as shown:
        while done < draws:
            count, block = min(block, draws - done), 2 * block
            try:
                more = sample(draws=count, states=chains.states)
            except KeyboardInterrupt as stop:
                if not done:
                    raise
                return _with(chains, _ended(stop, done, draws))
            end = _interruption(more)
            if len(more.z) == len(chains.z):
                chains, done = chains.followed_by(more), done + more.z.shape[1]
                chains = replace(chains, findings=[])
            shown.update(done - shown.n)
            if end is not None:
                if not done:
                    raise end
                return _with(chains, _ended(end, done, draws))
            if len(more.z) < len(chains.z):
                if not done:
                    raise ModelError(more.findings[0].message)
                return _with(chains, *more.findings)
    return chains


def _with(chains: Chains, *findings: Finding) -> Chains:
    return replace(chains, findings=[*chains.findings, *findings])


def _interruption(chains: Chains) -> KeyboardInterrupt | None:
    """Return what ended a block early, if it did."""
    ended = {f.check for f in chains.findings} & {"interrupted", "time_limit"}
    if not ended:
        return None
    return expire() if "time_limit" in ended else KeyboardInterrupt()


def _only_first(chains: Chains, finding: Finding) -> Finding:
    """Return the finding of a block, which is left out, as one of the chains without it."""
    left = f"Only the first {chains.z.shape[1]} draws per chain are returned. "
    return replace(finding, message=left + finding.message)


def _ended(stop: KeyboardInterrupt, done: int, draws: int) -> Finding:
    of = f"{draws} further draws per chain"
    return interrupted(stop, done, of, "these draws are returned", "get all draws")
