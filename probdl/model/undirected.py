"""New elements whose density has other terms than the distribution of their site.

A new element is drawn from the distribution of its site. That is its predictive distribution in a
directed model, but not where a factor also depends on it, or where it takes the place of a missing
observation, which the model scores as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from probdl.errors import ProbdlError
from probdl.model.elements import Elements
from probdl.model.messengers import Substitute
from probdl.model.program import Program
from probdl.model.sites import Structure, discover
from probdl.util.isolation import isolated

__all__ = ["undirected"]


def undirected(
    program: Program, structure: Structure, draws: Mapping[str, Tensor], elements: Elements
) -> dict[str, str]:
    """Find a term that depends on new elements besides the distribution of their site.

    Args:
        program: the model at the new arguments.
        structure: its sites as it was fitted.
        draws: the latent and param sites of the fit.
        elements: how elements match, after drawing.

    Returns:
        A factor or observed site, by latent site; empty in directed models.
    """
    if not elements.drawn or program.loader is not None:
        return {}
    scored = [s.name for s in structure.of("factor") if s.term is None] + _imputed(program)
    found: dict[str, str] = {}
    first = {name: value[0] for name, value in draws.items()}
    for site in sorted(elements.drawn) if scored else ():
        try:
            before = _values(program, structure, elements, first, 0)
            others = {name: value for name, value in before.items() if name not in (site, *scored)}
            again = _values(program, structure, elements, first | others, 1, keep=site)
        except (ProbdlError, LinAlgError):  # at other values than those that were drawn
            continue
        for term in scored:
            if term in before and not torch.equal(before[term], again[term]):
                found.setdefault(site, term)
    return found


def _imputed(program: Program) -> list[str]:
    """List the observed sites of a program with latent values in the place of missing ones."""
    try:
        return [site.name for site in discover(program).of("observed") if site.imputed]
    except ProbdlError:  # such as for new rows without observations
        return []


def _values(
    program: Program,
    structure: Structure,
    elements: Elements,
    draw: Mapping[str, Tensor],
    seed: int,
    keep: str | None = None,
) -> dict[str, Tensor]:
    """Run the model at a draw; return the values of its sites, and the log density of factors.

    Args:
        program: the model at the new arguments.
        structure: its sites as it was fitted.
        elements: how elements match.
        draw: values of sites; those of the fit are matched.
        seed: the seed of the elements that are not in the fit.
        keep: the only site that is matched; None matches all.
    """

    def fit(name: str, value: Tensor, fn: Any) -> Tensor | None:
        return elements.draw(name, value, fn) if keep in (None, name) else value

    def read(trace: Trace) -> dict[str, Tensor]:
        trace.compute_log_prob(lambda _, node: isinstance(node["fn"], dist.Unit))
        nodes: Any = trace.nodes
        return {
            name: node.get("log_prob", node["value"])
            for name, node in nodes.items()
            if node["type"] == "sample" and not site_is_subsample(node)
        }

    parameters = structure.module_parameters(draw)
    with isolated(seed), torch.no_grad():
        found: dict[str, Tensor] = program.run(read, Substitute(draw, fit), parameters=parameters)
        return found
