"""Draws of a guide where their densities at all rows cannot be computed, or not in time."""

from __future__ import annotations

from typing import Any

from probdl.findings import Finding
from probdl.model.program import Program
from probdl.model.sites import Structure
from probdl.results.diagnostics import unchecked
from probdl.results.latent import Proposal, draw_guide

__all__ = ["draw_unweighted", "uneven_rows"]


def draw_unweighted(
    program: Program,
    structure: Structure,
    proposal: Proposal,
    count: int,
    reason: BaseException,
) -> tuple[dict[str, Any], dict[str, Any], list[Finding]]:
    """Return draws of the latent sites, no stats, and a finding that says why.

    Args:
        program: the model on the first batch of its DataLoader.
        structure: its sites.
        proposal: the guide.
        count: the number of draws.
        reason: what prevented the weighting, an error or an interruption.
    """
    values, _ = draw_guide(program, structure, proposal, count)
    has = "the fit has draws of the guide, but no lp, log_evidence and pareto_k"
    if isinstance(reason, KeyboardInterrupt):
        finding = unchecked(reason, has, "compute them")
    else:
        finding = Finding(
            "warning",
            "loader",
            "The densities of draws of the guide at all rows of the DataLoader cannot be computed; "
            f"{has}. {reason}",
        )
    return {name: value.numpy()[None] for name, value in values.items()}, {}, [finding]


def uneven_rows(program: Program) -> list[Finding]:
    """Report a DataLoader with which training does not use each row equally often."""
    if program.loader is None or not program.loader.uneven:
        return []
    return [
        Finding(
            "warning",
            "loader",
            f"{program.loader.uneven} So the guide is not fitted to the posterior given all rows, "
            "whereas log_evidence, pareto_k and the groups of idata count each row once.",
            "Use DataLoader(dataset, batch_size=..., shuffle=True).",
        )
    ]
