"""Param sites under methods that sample the posterior: they have no prior, so they are fixed."""

from __future__ import annotations

from probdl.findings import Finding
from probdl.model.sites import Structure

__all__ = ["held_params"]


def held_params(structure: Structure) -> list[Finding]:
    """Report the param sites that were held at their current values."""
    names = tuple(s.name for s in structure.of("param"))
    if not names:
        return []
    shown = ", ".join(map(repr, names[:5])) + (" …" if len(names) > 5 else "")
    return [
        Finding(
            "warning",
            "params_held",
            f"The param sites {shown} have no prior, so they were held at their current values.",
            "Give them a prior (pyro.sample, or PyroSample in a PyroModule), or estimate them with "
            "method='mle' or 'map'.",
            names,
        )
    ]
