r"""Discrete latent sites that are summed out: their posterior draws, and scores without them.

.. math:: p(y | \theta) = \sum_z p(z | \theta) p(y | z, \theta), \qquad
    p(z | y, \theta) = p(z | \theta) p(y | z, \theta) / p(y | \theta)

Both are exact, by Pyro's parallel enumeration with variable elimination (forward filtering and
backward sampling for a Markov chain).
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from pyro import poutine
from pyro.infer import config_enumerate, infer_discrete
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree, contract_to_tensor
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from probdl.model.sites import Site, Structure

__all__ = [
    "Plan",
    "Pooled",
    "enumerated",
    "given_data",
    "observations",
    "plan_scores",
    "read_discrete",
    "score",
]


@dataclass(frozen=True)
class Pooled:
    """Observed sites and factors that are scored together, since discrete sites tie them.

    Attributes:
        sites: the terms of the likelihood.
        plates: the plates along which there is a score; None if there is only a joint one.
        axes: the dimensions of the plates among those of the batch, counted from the last, -1.
        sizes: the sizes of the plates.
        whole: whether each element of a single site has its score, and none are added up.
    """

    sites: tuple[str, ...]
    plates: tuple[str, ...] | None
    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    whole: bool


Plan = Mapping[str, Pooled]  # by name of the score


def observations(structure: Structure, plan: Plan) -> dict[str, Site]:
    """Return what each pointwise log likelihood is of: a site, or several scored together.

    Args:
        structure: the sites on the data that are scored.
        plan: the scores if discrete sites are summed out; empty otherwise.

    Returns:
        By name of the score, a site with its dimensions, mask and count. One that stands for
        several has no value; an element is masked if all that it is made of are.
    """
    if not plan:
        return {s.name: s for s in structure.terms("pointwise")}
    return {
        name: structure.sites[name] if pooled.whole else _pooled_site(name, structure, pooled)
        for name, pooled in plan.items()
        if pooled.plates is not None
    }


def _pooled_site(name: str, structure: Structure, pooled: Pooled) -> Site:
    assert pooled.plates is not None
    found = [_scored_along(structure.sites[site], pooled) for site in pooled.sites]
    scored = reduce(torch.logical_or, found)
    return Site(
        name,
        "observed",
        tuple(scored.shape),
        pooled.plates,
        torch.empty(0),
        count=int(scored.sum()),
        term="pointwise",
        plated=True,
        mask=None if scored.all() else scored,
    )


def _scored_along(site: Site, pooled: Pooled) -> Tensor:
    """Return which elements along the plates of a pooled score hold observations of a site."""
    scored = site.is_scored
    if scored is None:
        inner = site.event_dim + (site.kind == "factor")
        scored = torch.ones(site.shape[: len(site.shape) - inner], dtype=torch.bool)
    scored = scored[(None,) * max(0, -min(pooled.axes) - scored.ndim)]
    if summed := [axis for axis in range(-scored.ndim, 0) if axis not in pooled.axes]:
        scored = scored.any(dim=summed)
    return scored.expand(
        [
            size if found == 1 else found
            for found, size in zip(scored.shape, pooled.sizes, strict=True)
        ]
    )


def enumerated(structure: Structure) -> Callable[[Any], Any]:
    """Return the effect handler that enumerates the discrete sites."""
    first = -1 - structure.plate_depth
    return lambda model: poutine.enum(config_enumerate(model), first_available_dim=first)


def given_data(structure: Structure) -> Callable[[Any], Any]:
    """Return the effect handler that draws the discrete sites given the data and other sites."""
    first = -1 - structure.plate_depth
    return lambda model: infer_discrete(
        config_enumerate(model), first_available_dim=first, temperature=1
    )


def read_discrete(trace: Trace, names: Collection[str]) -> dict[str, Tensor]:
    """Return the values of discrete sites from a run with ``given_data``."""
    nodes: Any = trace.nodes
    values = {}
    for name in nodes:
        if name in names:  # the value may have dimensions of size 1 from the enumeration
            value, shape = nodes[name]["value"], nodes[name]["fn"].shape()
            same = value.numel() == math.prod(shape)
            values[name] = value.reshape(shape) if same else value.expand(shape)
    return values


class _Enumerated:
    """The log probabilities of an enumerated trace, as packed tensors."""

    def __init__(
        self,
        trace: Trace,
        names: Sequence[str],
        discrete: Collection[str],
        *,
        at_random: bool = False,
    ) -> None:
        trace.compute_log_prob(lambda name, _: name in discrete or name in names)
        trace.pack_tensors()
        self.trace = trace
        self.nodes: Any = trace.nodes
        self.names = names
        self.discrete = [name for name in self.nodes if name in discrete]
        self.plates = trace.plate_to_symbol
        self.symbols = set(trace.symbol_to_dim) - set(self.plates.values())
        self.log_probs: dict[str, Any] = {
            name: self.nodes[name]["packed"]["log_prob"] for name in (*self.discrete, *names)
        }
        if at_random:
            generator = torch.Generator().manual_seed(0)
            for name in names:
                shown = self.log_probs[name]
                drawn = torch.randn(shown.shape, generator=generator, dtype=torch.float64)
                drawn._pyro_dims = shown._pyro_dims  # type: ignore[attr-defined]
                self.log_probs[name] = drawn

    def ties(self, name: str) -> set[str]:
        """Return the enumerated dimensions that the score of a site depends on."""
        return self.symbols & set(self.log_probs[name]._pyro_dims)

    def frames(self, name: str) -> dict[str, Any]:
        """Return the vectorised plates around a site by their symbols."""
        stack = self.nodes[name]["cond_indep_stack"]
        return {self.plates[f.name]: f for f in stack if f.vectorized}

    def terms(self, names: Collection[str]) -> OrderedDict[Any, list[Tensor]]:
        """Return the log probabilities of sites by the set of plates that they are in."""
        tree: OrderedDict[Any, list[Tensor]] = OrderedDict()
        for name in self.nodes:
            if name in names:
                ordinal = frozenset(self.frames(name))
                tree.setdefault(ordinal, []).append(self.log_probs[name])
        return tree

    def groups(self) -> list[tuple[str, ...]]:
        """Return the observed sites in groups that discrete sites tie together."""
        groups: list[tuple[set[str], list[str]]] = []  # dimensions, and sites
        for name in (*self.discrete, *self.names):
            ties, sites = self.ties(name), [name]
            for group in [g for g in groups if g[0] & ties]:
                groups.remove(group)
                ties, sites = ties | group[0], group[1] + sites
            groups.append((ties, sites))
        members = [tuple(n for n in self.names if n in sites) for _, sites in groups]
        return [group for group in members if group]

    def together(self, sites: Sequence[str]) -> list[str]:
        """Return observed sites with the discrete sites that they depend on, directly or not."""
        ties, chosen = set().union(*map(self.ties, sites)), list(sites)
        left = list(self.discrete)
        while found := [name for name in left if self.ties(name) & ties]:
            ties |= set().union(*map(self.ties, found))
            chosen += found
            left = [name for name in left if name not in found]
        return chosen

    def score(self, sites: Sequence[str], along: Collection[str]) -> Tensor:
        """Return the log probability of sites, without discrete sites, along plates (symbols)."""
        frames = {k: f for k, f in self.frames(sites[0]).items() if k in along}
        shape = [1] * max((-f.dim for f in frames.values()), default=0)
        result: Tensor | float = 0.0
        summed = contract_tensor_tree(self.terms(self.together(sites)), self.symbols)
        for ordinal, tensors in summed.items():
            for term in tensors if ordinal >= set(along) else ():
                symbols = term._pyro_dims  # type: ignore[attr-defined]
                value = packed.unpack(term, self.trace.symbol_to_dim)
                extra = [self.trace.symbol_to_dim[s] for s in symbols if s not in along]
                value = value.sum(extra, keepdim=True) if extra else value
                result = result + value.reshape(value.shape[max(0, value.ndim - len(shape)) :])
        for frame in frames.values():
            shape[frame.dim] = frame.size
        return torch.as_tensor(result).expand(shape)

    def joint(self, sites: Sequence[str]) -> Tensor:
        """Return the log probability of sites, without discrete sites, as a scalar."""
        names = {*sites, *self.discrete} if len(sites) == len(self.names) else self.together(sites)
        return contract_to_tensor(self.terms(names), self.symbols)


def plan_scores(
    trace: Trace, names: Sequence[str], discrete: Collection[str], joint: Collection[str] = ()
) -> dict[str, Pooled]:
    """Find, in a trace at one draw, how the observed sites can be scored along their plates.

    Elements that share a discrete site are scored together, along the plates that are left. The
    plan does not depend on the values and masks of the data: the scores are split along plates
    if their parts add up for random log likelihoods.

    Args:
        trace: an enumerated trace of the model.
        names: the terms of the likelihood.
        discrete: the sites that are summed out.
        joint: the terms that are not of single observations.

    Returns:
        By name of the score: that of the site, or of the sites that are scored together.
    """
    found = _Enumerated(trace, names, discrete, at_random=True)
    plan: dict[str, Pooled] = {}
    for sites in found.groups():
        shared = frozenset.intersection(*(frozenset(found.frames(name)) for name in sites))
        whole = float(found.joint(sites))
        ordinals = contract_tensor_tree(found.terms(found.together(sites)), found.symbols)
        candidates = {shared} | {shared & ordinal for ordinal in ordinals}
        single = len(sites) == 1
        frames: list[Any] | None = None
        for along in sorted(candidates, key=lambda o: (-len(o), sorted(o))):
            if (not along and not (single and not shared)) or {*sites} & {*joint}:
                continue
            total = float(found.score(sites, along).sum())
            if math.isclose(total, whole, rel_tol=1e-9, abs_tol=1e-9):
                frames = [f for s, f in found.frames(sites[0]).items() if s in along]
                frames.sort(key=lambda frame: frame.dim)
                break
        plan[_name(sites, {*plan, *names})] = Pooled(
            sites,
            None if frames is None else tuple(f.name for f in frames),
            tuple(f.dim for f in frames or ()),
            tuple(f.size for f in frames or ()),
            single and frames is not None and len(frames) == len(shared),
        )
    return plan


def _name(sites: Sequence[str], taken: Collection[str]) -> str:
    """Return a name for the score of sites: what their names have in common, if anything."""
    if len(sites) == 1:
        return sites[0]
    same = itertools.takewhile(lambda characters: len({*characters}) == 1, zip(*sites))  # noqa: B905
    common = "".join(c for c, *_ in same).rstrip("_0123456789") or "observations"
    while common in taken:
        common += "_joint"
    return common


def score(
    trace: Trace, names: Sequence[str], discrete: Collection[str], plan: Plan
) -> dict[str, Tensor]:
    """Sum out the enumerated sites, for each score of a plan and for all sites jointly."""
    found = _Enumerated(trace, names, discrete)
    scores = {"joint": found.joint(names)}
    for name, pooled in plan.items():
        if pooled.plates is not None:
            value = found.score(pooled.sites, [found.plates[plate] for plate in pooled.plates])
            if not pooled.whole:
                sizes = {f.name: f.size for f in found.frames(pooled.sites[0]).values()}
                value = value.reshape([sizes[plate] for plate in pooled.plates])
            scores[f"point {name}"] = value
    return scores
