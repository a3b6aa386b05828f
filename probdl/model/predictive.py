r"""Prior and posterior predictive draws and the log likelihood, for all draws in one pass.

.. math:: p(\tilde y | y) = \int p(\tilde y | \theta) p(\theta | y) d\theta   \quad\text{(Eq. 2)}

`sample` draws from the left side by running the model at each draw of theta. Its density is the
mean over draws of the model's density (`log_likelihood`, then `log_mean_exp`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import broadcast_shape
from pyro.infer import config_enumerate, infer_discrete
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree, contract_to_tensor
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from probdl.errors import ModelError
from probdl.model.distributions import base_distribution, is_deterministic
from probdl.model.elements import Elements
from probdl.model.messengers import Substitute
from probdl.model.program import Program
from probdl.model.sites import Structure
from probdl.model.vectorize import chunks, vectorize

__all__ = [
    "Unobserve",
    "log_likelihood",
    "log_mean_exp",
    "log_prior",
    "sample",
    "sample_discrete",
    "sample_parts",
    "sample_prior",
]

Draws = Mapping[str, Tensor]  # by site name, (n, *shape)

DISCRETE_CHECKS = 50  # draws at which densities are compared for two values of the discrete sites


class Unobserve(Messenger):
    """Sample new values of the observed sites, each in the shape of its data.

    Without a plate, ``pyro.sample("y", Normal(mu, 1), obs=y)`` scores every element of ``y``
    with the same scalar distribution; the new value then has as many independent elements.
    """

    def _pyro_sample(self, msg: Any) -> None:
        fn, value = msg["fn"], msg["value"]
        if not msg["is_observed"] or is_deterministic(msg):
            return
        if isinstance(base_distribution(fn), dist.Unit):
            return
        batch = broadcast_shape(value.shape[: value.ndim - fn.event_dim], fn.batch_shape)
        msg["fn"] = fn if batch == fn.batch_shape else fn.expand(batch)
        msg["is_observed"], msg["value"], msg["done"] = False, None, False


def sample(
    program: Program, structure: Structure, draws: Draws, elements: Elements | None = None
) -> dict[str, Tensor]:
    """Sample the observed and deterministic sites of a program at each draw of the other sites.

    Args:
        program: the model on the arguments to predict at.
        structure: the sites of the model as it was fitted.
        draws: the latent and param sites.
        elements: how the elements of the plates at these arguments match those of the fit; None
            matches them by position.

    Returns:
        By site name, (n, *shape at these arguments).
    """
    elements = elements or Elements(structure)
    values = vectorize(_predictive(program, structure, elements), dict(draws))
    elements.warn()
    return values


def sample_parts(
    program: Program, structure: Structure, draws: Draws, elements: Elements
) -> Iterator[dict[str, Tensor]]:
    """Yield the result of ``sample`` in chunks of draws, in bounded memory."""
    yield from chunks(_predictive(program, structure, elements), dict(draws))
    elements.warn()


def _predictive(
    program: Program, structure: Structure, elements: Elements
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return the function that predicts at one draw."""
    wanted = {s.name for s in structure.of("observed", "deterministic")}

    def run(draw: dict[str, Tensor]) -> dict[str, Tensor]:
        return program.run(
            lambda trace: _values(trace, wanted),
            Unobserve(),
            Substitute(draw, elements.draw),
            parameters=_parameters(structure, draw),
        )

    return run


def sample_prior(program: Program, structure: Structure, count: int) -> dict[str, Tensor]:
    """Sample all sites from the prior and the model.

    Args:
        program: the model on its arguments.
        structure: its sites.
        count: the number of draws.

    Returns:
        By site name, (count, *shape).

    Raises:
        ModelError: a prior is improper.
    """
    flat = [s.name for s in structure.of("latent") if s.flat]
    if flat:
        raise ModelError(
            f"The prior of {', '.join(map(repr, flat))} is flat (ImproperUniform) and cannot be "
            "sampled, so there are no prior predictive draws. Use a proper prior."
        )
    wanted = {s.name for s in structure.of("latent", "discrete", "observed", "deterministic")}

    def run(_: Tensor) -> dict[str, Tensor]:
        return program.run(
            lambda trace: _values(trace, wanted),
            Unobserve(),
            Substitute({s.name: s.value for s in structure.of("param")}),
            parameters=_parameters(structure, {}),
        )

    return vectorize(run, torch.zeros(count))


def sample_discrete(program: Program, structure: Structure, draws: Draws) -> dict[str, Tensor]:
    """Sample the discrete latent sites from their posterior, given each draw of the others."""
    wanted = {s.name for s in structure.of("discrete")}

    def posterior(model: Callable[..., Any]) -> Callable[..., Any]:
        first = -1 - structure.plate_depth
        return infer_discrete(config_enumerate(model), first_available_dim=first, temperature=1)

    def run(draw: dict[str, Tensor]) -> dict[str, Tensor]:
        return program.run(
            lambda trace: _values(trace, wanted),
            Substitute(draw),
            posterior,
            parameters=_parameters(structure, draw),
        )

    return vectorize(run, dict(draws))


def log_likelihood(
    program: Program,
    structure: Structure,
    draws: Draws,
    elements: Elements | None = None,
    *,
    quiet: bool = False,
    pointwise: bool = True,
) -> tuple[dict[str, Tensor], Tensor]:
    """Compute the log likelihood at each draw: of the observed sites, and of factors in a plate.

    Discrete latent sites are summed out. An observed site whose elements depend on the same
    discrete site (a hidden Markov chain) has a joint log likelihood, but no pointwise one.

    Args:
        program: the model on the arguments to score.
        structure: the sites of the model on these arguments.
        draws: the latent and param sites.
        elements: how the elements of the plates at these arguments match those of the fit; None
            means that they are the same.
        quiet: whether to omit warnings about elements that are not matched by label.
        pointwise: whether to return the pointwise log likelihoods; without them, the memory does
            not grow with draws times rows.

    Raises:
        ModelError: the model observes no site on these arguments.

    Returns:
        Pointwise log likelihoods in nats, (n, *batch shape) by site name, without the sites
        without a pointwise one, 0 for masked elements; and the joint log likelihood, (n,).
    """
    names = [s.name for s in structure.terms()]
    joint_only = {s.name for s in structure.terms("joint")}
    if not names:
        raise ModelError(
            f"The model '{program.name}' observes no site on these arguments, so it has no log "
            "likelihood. Pass the observed data as well."
        )
    discrete = {s.name for s in structure.of("discrete")}
    elements = elements or Elements(structure)
    coupled = set(joint_only)

    def enumerate_discrete(model: Callable[..., Any]) -> Callable[..., Any]:
        first = -1 - structure.plate_depth
        return poutine.enum(config_enumerate(model), first_available_dim=first)

    def run(draw: dict[str, Tensor]) -> dict[str, Tensor]:
        def read(trace: Trace) -> dict[str, Tensor]:
            if discrete:
                return _score_enumerated(trace, names, discrete, coupled)
            trace.compute_log_prob(lambda name, _: name in names)
            nodes: Any = trace.nodes
            scores = {f"point {n}": nodes[n]["log_prob"] for n in names if n not in joint_only}
            return scores | {"joint": sum(nodes[n]["log_prob"].sum() for n in names)}

        scores = program.run(
            read,
            *([enumerate_discrete] if discrete else []),
            Substitute(draw, elements.draw),
            parameters=_parameters(structure, draw),
        )
        return scores if pointwise else {"joint": scores["joint"]}

    with torch.no_grad():
        # One draw on plain tensors finds the coupled sites; mapped tensors cannot be compared.
        run({name: value[0] for name, value in draws.items()})
        scores = vectorize(run, dict(draws))
    if not quiet:
        elements.warn()
    joint = scores.pop("joint")
    return {name.removeprefix("point "): score for name, score in scores.items()}, joint


def log_prior(program: Program, structure: Structure, draws: Draws) -> dict[str, Tensor]:
    """Compute the log density of the prior of each latent site at each draw.

    The density is that of the constrained value given the other sites, without a Jacobian. Factors
    that are no term of the likelihood are terms of the prior.

    Returns:
        Log densities in nats, (n, *batch shape) by site name.

    Raises:
        ModelError: a prior depends on a discrete site, which is summed out.
    """
    names = [s.name for s in structure.of("latent")]
    names += [s.name for s in structure.of("factor") if s.term is None]

    def read(trace: Trace) -> dict[str, Tensor]:
        trace.compute_log_prob(lambda name, _: name in names)
        nodes: Any = trace.nodes
        return {n: nodes[n]["log_prob"] for n in names}

    def run(draw: dict[str, Tensor]) -> dict[str, Tensor]:
        return program.run(read, Substitute(draw), parameters=_parameters(structure, draw))

    if not names:
        return {}
    if structure.of("discrete"):
        first = {name: value[:DISCRETE_CHECKS] for name, value in draws.items()}
        a, b = vectorize(run, first), vectorize(run, first)  # with other discrete values
        if random := [n for n in names if not torch.equal(a[n], b[n])]:
            raise ModelError(
                f"The prior of {', '.join(map(repr, random))} depends on a discrete site that is "
                "summed out, so there is no log prior of each draw."
            )
    return vectorize(run, dict(draws))


def _score_enumerated(
    trace: Trace, names: list[str], discrete: set[str], coupled: set[str]
) -> dict[str, Tensor]:
    """Sum out the enumerated sites, for each observed site and for all of them jointly."""
    trace.compute_log_prob(lambda name, _: name in discrete or name in names)
    trace.pack_tensors()
    nodes: Any = trace.nodes
    plates = trace.plate_to_symbol
    enumerated = set(trace.symbol_to_dim) - set(plates.values())

    def frames(node: Any) -> list[Any]:
        return [f for f in node["cond_indep_stack"] if f.vectorized]

    def terms(*observed: str) -> OrderedDict[Any, list[Tensor]]:
        tree: OrderedDict[Any, list[Tensor]] = OrderedDict()
        for name in nodes:
            if name in discrete or name in observed:
                ordinal = frozenset(plates[f.name] for f in frames(nodes[name]))
                tree.setdefault(ordinal, []).append(nodes[name]["packed"]["log_prob"])
        return tree

    scores = {"joint": contract_to_tensor(terms(*names), enumerated)}
    for name in names:
        if name in coupled:
            continue
        own = frames(nodes[name])
        ordinal = frozenset(plates[f.name] for f in own)
        at_ordinal = contract_tensor_tree(terms(name), enumerated).get(ordinal, [])
        if not at_ordinal or not _adds_up(at_ordinal, contract_to_tensor(terms(name), enumerated)):
            coupled.add(name)
            continue
        shape = [1] * max((-f.dim for f in own), default=0)
        for frame in own:
            shape[frame.dim] = frame.size
        score = sum(packed.unpack(term, trace.symbol_to_dim) for term in at_ordinal)
        scores[f"point {name}"] = torch.as_tensor(score).expand(shape)
    return scores


def _adds_up(parts: list[Tensor], whole: Tensor) -> bool:
    """Return whether the pointwise terms sum to the joint one; True for mapped tensors."""
    try:
        total = sum(float(part.sum()) for part in parts)
        return math.isclose(total, float(whole), rel_tol=1e-9, abs_tol=1e-9)
    except RuntimeError:
        return True


def log_mean_exp(log_values: Tensor) -> Tensor:
    """Return log(mean(exp(log_values))) over the leading dimension: (n, ...) to (...)."""
    return torch.logsumexp(log_values, 0) - math.log(len(log_values))


def _values(trace: Trace, wanted: set[str]) -> dict[str, Tensor]:
    nodes: Any = trace.nodes
    return {name: nodes[name]["value"] for name in nodes if name in wanted}


def _parameters(structure: Structure, draw: Draws) -> dict[nn.Parameter, Tensor]:
    """Map a module's own parameters to their values in a draw, or to the fixed ones."""
    return {
        site.parameter: draw.get(site.name, site.value)
        for site in structure.of("param")
        if site.parameter is not None
    }
