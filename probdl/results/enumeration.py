r"""Traces of a guide and a model in which the discrete sites have all their values at once.

At a draw of the continuous sites, the discrete ones are summed over exactly. With the sites y that
the guide enumerates and the sites c that only the model has, a term t of a row is replaced by

.. math:: E_{q(y)}[t(y)] = \sum_y q(y) t(y), \qquad
    \log p(x, z | y) = \log \sum_c p(x, z, c | y)

Pyro gives each enumerated site a separate dimension, to the left of the plates; in a packed
tensor each dimension has a symbol.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import broadcast_shape, scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor
from torch.distributions import kl_divergence

from probdl.model.distributions import base_distribution
from probdl.model.observations import vectorized_plates
from probdl.model.sites import is_discrete

__all__ = [
    "AtMean",
    "EnumeratedTraces",
    "enumerate_marked",
    "enumerate_others",
    "enumerated_sites",
    "expected_value",
    "guide_weights",
    "model_weights",
    "sampled_sites",
]

Ordinal = frozenset[str]  # the symbols of the plates around a term


class _Mark(Messenger):
    """Choose the discrete sites that Pyro enumerates.

    Args:
        choose: a function of the message of a discrete latent site.
    """

    def __init__(self, choose: Callable[[Any], bool]) -> None:
        super().__init__()
        self.choose = choose

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or site_is_subsample(msg):
            return
        chosen = msg["fn"].has_enumerate_support and self.choose(msg)
        # A new dict: the model's own is shared by all its runs.
        msg["infer"] = {**msg["infer"], "enumerate": "parallel" if chosen else None}
        if chosen:
            msg["infer"].update(num_samples=None, expand=False)


def enumerate_marked(
    program: Callable[..., Any], first_dim: int, *, enabled: bool = True
) -> Callable[..., Any]:
    """Enumerate the discrete sites of a guide that it marks with ``infer={"enumerate": ...}``.

    Args:
        program: the guide.
        first_dim: the first dimension that is free.
        enabled: False samples these sites as well.
    """

    def marked(msg: Any) -> bool:
        infer = msg["infer"]
        wanted = infer.get("enumerate") is not None and infer.get("num_samples") is None
        return enabled and wanted

    marker: Any = _Mark(marked)
    return poutine.enum(marker(program), first_available_dim=first_dim)


def enumerate_others(
    program: Callable[..., Any], first_dim: int | None = None, given: Collection[str] = ()
) -> Callable[..., Any]:
    """Enumerate the discrete sites of a model, but for those with given values.

    Args:
        program: the model.
        first_dim: the first dimension that is free; None continues where the guide ended.
        given: names of the sites that have values.
    """
    marker: Any = _Mark(lambda msg: msg["name"] not in given)
    return poutine.enum(marker(program), first_available_dim=first_dim)


def sampled_sites(trace: Trace, *, observed: bool = False) -> Iterator[tuple[str, Any]]:
    """Iterate over the latent sites of a trace, and over the observed ones if wanted."""
    nodes: Any = trace.nodes
    for name, node in nodes.items():
        if node["type"] != "sample" or site_is_subsample(node):
            continue
        if observed or not node["is_observed"]:
            yield name, node


def enumerated_sites(trace: Trace) -> list[str]:
    """List the sites of a trace that were enumerated."""
    return [n for n, node in sampled_sites(trace) if "_enumerate_dim" in node["infer"]]


class EnumeratedTraces:
    """Traces of guide and model at one draw, as terms from which discrete sites are summed out.

    Args:
        of_guide: the trace of the guide, with log probabilities.
        of_model: the trace of the model replayed at it, with log probabilities.
    """

    def __init__(self, of_guide: Trace, of_model: Trace) -> None:
        self.of_guide = prune_subsample_sites(of_guide)
        self.of_model = prune_subsample_sites(of_model)
        self.of_guide.symbolize_dims()
        self.of_model.symbolize_dims(self.of_guide.plate_to_symbol)
        plates = self.of_model.plate_to_symbol
        self.plate_of = {symbol: name for name, symbol in plates.items()}
        self.sizes = {
            plates[frame.name]: frame.size
            for trace in (self.of_guide, self.of_model)
            for _, node in sampled_sites(trace, observed=True)
            for frame in vectorized_plates(node)
        }
        guided = enumerated_sites(self.of_guide)
        self.weights = {name: self.of_guide.nodes[name] for name in guided}
        self.guide_symbols = {self._symbol(node) for node in self.weights.values()}
        others = [n for n in enumerated_sites(self.of_model) if n not in self.of_guide.nodes]
        self.model_symbols = {self._symbol(self.of_model.nodes[n]) for n in others}

    @staticmethod
    def _symbol(node: Any) -> str:
        return node["infer"]["_enumerate_symbol"]  # type: ignore[no-any-return]

    def ordinal(self, node: Any) -> Ordinal:
        """Return the symbols of the plates around a site."""
        plates: Any = self.of_model.plate_to_symbol
        return frozenset(plates[frame.name] for frame in vectorized_plates(node))

    def expectation(self, term: Tensor, ordinal: Ordinal) -> Tensor:
        """Return the expectation of a packed term over the sites that the guide enumerates.

        The result has one dimension for each plate of the ordinal, in sorted order.
        """
        plates = "".join(sorted(ordinal))
        logs = [
            self._pack(node["unscaled_log_prob"], node)
            for node in self.weights.values()
            if self.ordinal(node) <= ordinal
        ]
        axes = "".join(sorted({d for x in (*logs, term) for d in _dims(x)} - set(plates)))
        axes += plates
        value = _aligned(term, axes)
        if logs:
            weight = sum(_aligned(x, axes) for x in logs).exp()  # type: ignore[union-attr]
            value = torch.where(weight > 0, weight * value, 0.0)
        value = (
            value.sum(list(range(len(axes) - len(plates)))) if len(axes) > len(plates) else value
        )
        return value.expand([self.sizes[plate] for plate in plates])

    def marginal(
        self, factors: list[tuple[Tensor, Ordinal]], symbols: set[str]
    ) -> Iterator[tuple[Tensor, Ordinal]]:
        """Sum the exponential of packed factors over symbols; yield the logarithms by plates."""
        tree: OrderedDict[Any, list[Tensor]] = OrderedDict()
        for factor, ordinal in factors:
            tree.setdefault(ordinal, []).append(factor)
        for ordinal, terms in contract_tensor_tree(tree, set(symbols)).items():
            for term in terms:
                yield term, ordinal

    def elbo_terms(self) -> Iterator[tuple[str, Tensor, Ordinal]]:
        """Yield the terms of the ELBO: ``"reconstruction"`` or ``"kl"``, the value, its plates."""
        nodes: Any = self.of_model.nodes
        prior: list[tuple[Tensor, Ordinal]] = []  # what depends on sites that only the model has
        likelihood: list[tuple[Tensor, Ordinal]] = []
        for _, node in sampled_sites(self.of_model, observed=True):
            log_prob, ordinal = self._log_prob(node), self.ordinal(node)
            if self._coupled(node):
                (likelihood if node["is_observed"] else prior).append((log_prob, ordinal))
            elif node["is_observed"]:
                yield "reconstruction", self.expectation(log_prob, ordinal), ordinal
        for name, node in sampled_sites(self.of_guide):
            ordinal = self.ordinal(node)
            if name in nodes and not self._coupled(nodes[name]):
                term = self._pack(divergence(node, nodes[name]), node, nodes[name])
            else:  # its prior is among the coupled terms, or the model has no such site
                term = self._log_prob(node)
            yield "kl", self.expectation(term, ordinal), ordinal
        if not prior:
            return
        for term, ordinal in self.marginal(prior, self.model_symbols):
            mean = self.expectation(term, ordinal)
            yield "kl", -mean, ordinal
            yield "reconstruction", -mean, ordinal
        for term, ordinal in self.marginal(prior + likelihood, self.model_symbols):
            yield "reconstruction", self.expectation(term, ordinal), ordinal

    def log_ratios(self) -> Iterator[tuple[Tensor, Ordinal]]:
        r"""Yield the terms of log p(x, z) - log q(z), all enumerated sites summed out.

        With sites y that the guide enumerates this is log sum_y p(x, z, y) / q(z | y).
        """
        factors = [
            (self._log_prob(node), self.ordinal(node))
            for _, node in sampled_sites(self.of_model, observed=True)
        ]
        factors += [
            (self._pack(-node["log_prob"], node), self.ordinal(node))
            for name, node in sampled_sites(self.of_guide)
            if name not in self.weights
        ]
        for term, ordinal in self.marginal(factors, self.model_symbols | self.guide_symbols):
            plates = "".join(sorted(ordinal))
            yield _aligned(term, plates).expand([self.sizes[p] for p in plates]), ordinal

    def _coupled(self, node: Any) -> bool:
        return not self.model_symbols.isdisjoint(_dims(self._log_prob(node)))

    def _log_prob(self, node: Any) -> Tensor:
        return self._pack(node["log_prob"], node)

    @staticmethod
    def _pack(term: Tensor, *nodes: Any) -> Tensor:
        """Name the dimensions of a term; sum over those that are in no plate."""
        symbols: dict[int, str] = {}
        for node in nodes:
            symbols |= node["infer"]["_dim_to_symbol"]
        unnamed = [d for d in range(-term.ndim, 0) if d not in symbols and term.shape[d] > 1]
        summed = term.sum(unnamed, keepdim=True) if unnamed else term[...]
        return packed.pack(summed, symbols)  # type: ignore[no-any-return]


def divergence(node: Any, prior: Any) -> Tensor:
    """Return the KL divergence of a guide's site from the prior, or an estimate at its draw.

    At an enumerated site it is the difference at each value, whose expectation is exact.
    """
    q, p = node["fn"], prior["fn"]
    # Pyro's formula for a Delta omits its log_density.
    if not (isinstance(base_distribution(q), dist.Delta) or "_enumerate_dim" in node["infer"]):
        try:
            batch = broadcast_shape(q.batch_shape, p.batch_shape)  # some formulas need one shape
            exact = kl_divergence(q.expand(batch), p.expand(batch))
            return scale_and_mask(exact, node["scale"], node["mask"])  # type: ignore[no-any-return]
        except NotImplementedError:
            pass
    return node["log_prob"] - prior["log_prob"]  # type: ignore[no-any-return]


def site_mean(fn: Any, value: Tensor) -> Tensor:
    """Return the mean of a site's distribution, or its value if there is no closed form.

    Labels have no mean: of a Categorical these are the probabilities, along a new last dimension.
    """
    if _is_label(fn):
        probs = base_distribution(fn).probs
        return probs.expand(*fn.batch_shape, *fn.event_shape, -1)  # type: ignore[no-any-return]
    try:
        return fn.mean  # type: ignore[no-any-return]
    except NotImplementedError:
        return value


def _is_label(fn: Any) -> bool:
    return isinstance(base_distribution(fn), dist.Categorical)


class AtMean(Messenger):
    """Set continuous sites to the means of their distributions, where these are known."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names and not msg["done"] and not is_discrete(msg["fn"]):
            try:
                msg["value"] = msg["fn"].mean
            except NotImplementedError:
                return
            msg["done"] = True


def guide_weights(of_guide: Trace, node: Any) -> list[Tensor]:
    """Return the log probabilities of the enumerated sites of a guide in the plates of a site."""
    nodes: Any = of_guide.nodes
    plates = _plates(node)
    return [
        nodes[name]["fn"].log_prob(nodes[name]["value"])
        for name in enumerated_sites(of_guide)
        if _plates(nodes[name]) <= plates
    ]


def model_weights(of_model: Trace, node: Any, guided: Collection[str] = ()) -> list[Tensor]:
    """Return the log probability of what a model enumerates, given its other latent sites.

    Args:
        of_model: the trace of the model.
        node: the site whose plates are considered.
        guided: names of the sites that the guide enumerated.
    """
    nodes: Any = of_model.nodes
    dims = [
        nodes[n]["infer"]["_enumerate_dim"] for n in enumerated_sites(of_model) if n not in guided
    ]
    plates = _plates(node)
    terms = [
        other["fn"].log_prob(other["value"])
        for _, other in sampled_sites(of_model)
        if _plates(other) <= plates
    ]
    coupled = [t for t in terms if any(-d <= t.ndim and t.shape[d] > 1 for d in dims)]
    if not coupled:
        return []
    joint = sum(coupled[1:], coupled[0])
    over = [d for d in dims if -d <= joint.ndim]
    return [joint - joint.logsumexp(over, keepdim=True)]


def expected_value(node: Any, log_weights: list[Tensor], plate_depth: int) -> Tensor:
    """Return the mean of a site, averaged over the enumerated dimensions.

    Args:
        node: the site in its trace.
        log_weights: factors of the log probability of the enumerated values, each (enumerated
            dimensions, plates), broadcast with each other.
        plate_depth: number of dimensions of the plates.

    Returns:
        The mean in the shape of the site; for the probabilities of labels with one more dimension.
    """
    mean = site_mean(node["fn"], node["value"])
    event = node["fn"].event_dim + _is_label(node["fn"])
    if log_weights:
        weight = sum(log_weights[1:], log_weights[0]).exp()
        weight = weight.reshape(weight.shape + (1,) * event)
        mean = torch.where(weight > 0, weight * mean, 0.0)
    enumerated = mean.ndim - event - plate_depth
    if enumerated > 0:
        mean = mean.sum(list(range(enumerated)))
    own = max((-frame.dim for frame in vectorized_plates(node)), default=0)
    return mean.reshape(mean.shape[mean.ndim - event - own :]) if plate_depth > own else mean


def _plates(node: Any) -> set[str]:
    return {frame.name for frame in vectorized_plates(node)}


def _dims(term: Any) -> str:
    return term._pyro_dims  # type: ignore[no-any-return]


def _aligned(term: Tensor, axes: str) -> Tensor:
    """Return a packed tensor with dimensions in the order of axes, of size 1 if missing."""
    own = _dims(term)
    ordered = term.permute([own.index(axis) for axis in axes if axis in own])
    sizes = iter(ordered.shape)
    return ordered.reshape([next(sizes) if axis in own else 1 for axis in axes])
