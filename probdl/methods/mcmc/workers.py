"""Chains on the workers of an executor, one task each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from probdl.errors import ModelError
from probdl.methods.mcmc.chains import Chain, Chains, gather
from probdl.model.program import Program
from probdl.util.executors import finished
from probdl.util.isolation import isolated
from probdl.util.progress import bar

__all__ = ["on_workers"]


def on_workers(
    method: Any, program: Program, seed: int, ids: Sequence[int], progress: bool | None
) -> Chains:
    """Run the chains of a method on its executor; after Ctrl-C, return those that are complete.

    Args:
        method: has ``executor``, ``draws``, and ``run_chains(program, seed, ids)``, which returns
            the same chains wherever it runs.
        program: the model with its data.
        seed: the seed of the fit.
        ids: the numbers of the chains.
        progress: whether to show progress.

    Raises:
        ModelError: the executor failed, or all chains did.
        KeyboardInterrupt: interrupted before a chain was complete.
    """
    alone = replace(method, executor=None)

    def run(_: int, number: int) -> Chains | str:
        with isolated(seed):
            try:
                return alone.run_chains(program, seed, [number])  # type: ignore[no-any-return]
            except ModelError as error:  # "All chains failed. The first error: chain 0, after …"
                return f"{error}".rpartition(" draws: ")[2]

    with bar(len(ids), "sampling chains", progress) as shown:
        found, stop = finished(method.executor, run, ids, str, shown.update)
    whole = gather([_chain(found.get(i)) for i in range(len(ids))], method.draws, stop)
    parts = [part for part in found.values() if isinstance(part, Chains)]
    findings = dict.fromkeys(f for part in parts for f in part.findings)
    return replace(whole, findings=[*findings, *whole.findings])


def _chain(found: Chains | str | None) -> Chain:
    """Return a chain; one without draws if it failed, or was not complete."""
    if not isinstance(found, Chains):
        failure = ModelError(found) if found is not None else None
        return Chain(np.empty((0, 0)), {}, failure)
    stats = {name: of[0] for name, of in found.stats.items()}
    state_after = (lambda _: found.states[0]) if found.states else None
    return Chain(found.z[0], stats, None, state_after)
