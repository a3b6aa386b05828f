r"""Prior and posterior predictive draws and the log likelihood, for all draws in one pass.

.. math:: p(\tilde y | y) = \int p(\tilde y | \theta) p(\theta | y) d\theta   \quad\text{(Eq. 2)}

`sample` draws from the left side by running the model at each draw of theta. Its density is the
mean over draws of the model's density (`log_likelihood`, then `log_mean_exp`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import broadcast_shape
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from probdl.errors import DataError, ModelError
from probdl.model.discrete import (
    Plan,
    Pooled,
    enumerated,
    given_data,
    plan_scores,
    read_discrete,
    score,
)
from probdl.model.distributions import base_distribution, is_deterministic
from probdl.model.elements import Elements
from probdl.model.messengers import Substitute
from probdl.model.program import Program
from probdl.model.sites import Structure
from probdl.model.undirected import undirected
from probdl.model.vectorize import chunks, vectorize

__all__ = [
    "LogLikelihood",
    "Unobserve",
    "check_proper",
    "log_likelihood",
    "log_mean_exp",
    "log_prior",
    "plan_log_likelihood",
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
    with the same scalar distribution; the new value then has as many independent elements. Data
    of another size than that of the distribution are those of a conditioned model.
    """

    def _pyro_sample(self, msg: Any) -> None:
        fn, value = msg["fn"], msg["value"]
        if not msg["is_observed"] or is_deterministic(msg):
            return
        if isinstance(base_distribution(fn), dist.Unit):
            return
        try:
            batch = broadcast_shape(value.shape[: value.ndim - fn.event_dim], fn.batch_shape)
        except ValueError:  # pyro.condition() gives the data of the fit at other arguments
            batch = fn.batch_shape
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
    _warn_of_elements(program, structure, draws, elements)
    return values


def sample_parts(
    program: Program, structure: Structure, draws: Draws, elements: Elements
) -> Iterator[dict[str, Tensor]]:
    """Yield the result of ``sample`` in chunks of draws, in bounded memory."""
    yield from chunks(_predictive(program, structure, elements), dict(draws))
    _warn_of_elements(program, structure, draws, elements)


def _warn_of_elements(
    program: Program, structure: Structure, draws: Draws, elements: Elements
) -> None:
    """Warn of elements that are not in the fit, as far as their draws may surprise."""
    elements.undirected |= undirected(program, structure, draws, elements)
    elements.warn()


def _predictive(
    program: Program, structure: Structure, elements: Elements
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return the function that predicts at one draw."""
    wanted = {s.name for s in structure.of("observed", "deterministic")}

    def run(draw: dict[str, Tensor]) -> dict[str, Tensor]:
        values = program.run(
            lambda trace: _values(trace, wanted) | _new_values(trace, structure),
            Unobserve(),
            Substitute(draw, elements.draw),
            parameters=structure.module_parameters(draw),
        )
        _check_dimensions(structure, values)
        return values

    return run


def _check_dimensions(structure: Structure, values: Mapping[str, Tensor]) -> None:
    """Check that predictions have as many dimensions as the data of the fit."""
    for site in structure.of("observed"):
        batch = math.prod(site.shape[: len(site.shape) - site.event_dim])
        value = values.get(site.name)
        if value is None or site.count > batch:  # one value was observed several times
            continue
        if value.ndim != len(site.shape):
            raise DataError(
                f"The predictions of site '{site.name}' have shape {tuple(value.shape)} at these "
                f"arguments, and its data had shape {site.shape} in the fit. Pass arguments with "
                "as many dimensions as those of the fit; x of shape (n, 1) instead of (n,) is the "
                "usual mistake."
            )


def check_proper(structure: Structure) -> None:
    """Check that all priors can be sampled.

    Raises:
        ModelError: one is improper.
    """
    flat = [s.name for s in structure.of("latent") if s.flat]
    if flat:
        raise ModelError(
            f"The prior of {', '.join(map(repr, flat))} is flat (ImproperUniform) and cannot be "
            "sampled, so there are no prior predictive draws. Use a proper prior, or, of "
            "missing values, pass data without them."
        )


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
    check_proper(structure)
    wanted = {s.name for s in structure.of("latent", "discrete", "observed", "deterministic")}

    def run(_: Tensor) -> dict[str, Tensor]:
        return program.run(
            lambda trace: _values(trace, wanted),
            Unobserve(),
            Substitute({s.name: s.value for s in structure.of("param")}),
            parameters=structure.module_parameters({}),
        )

    return vectorize(run, torch.zeros(count))


def sample_discrete(
    program: Program, structure: Structure, draws: Draws, elements: Elements | None = None
) -> dict[str, Tensor]:
    """Sample the discrete latent sites from their posterior, given each draw of the others.

    Args:
        program: the model on the data.
        structure: its sites on these data.
        draws: the latent and param sites of the fit.
        elements: how the elements of the plates of these data match those of the fit; None means
            that they are the same.
    """
    wanted = {s.name for s in structure.of("discrete")}
    elements = elements or Elements(structure)

    def run(draw: dict[str, Tensor]) -> dict[str, Tensor]:
        return program.run(
            lambda trace: read_discrete(trace, wanted),
            Substitute(draw, elements.draw),
            given_data(structure),
            parameters=structure.module_parameters(draw),
        )

    values = vectorize(run, dict(draws))
    elements.warn()
    return values


@dataclass(frozen=True)
class LogLikelihood:
    """The log likelihood at each draw, in nats: of the observed sites, and of factors in plates.

    Attributes:
        points: pointwise log likelihoods, (n, *batch shape) by name, 0 for masked elements. The
            names are those of sites; terms that discrete sites tie together have one score, along
            the plates that are left.
        joint: the joint log likelihood of all terms, (n,).
        missing: the sites without a pointwise log likelihood.
        plan: what each score is of, if discrete sites are summed out; see ``observations``.
    """

    points: dict[str, Tensor]
    joint: Tensor
    missing: tuple[str, ...] = ()
    plan: Plan = field(default_factory=dict)


def log_likelihood(
    program: Program,
    structure: Structure,
    draws: Draws,
    elements: Elements | None = None,
    *,
    quiet: bool = False,
    pointwise: bool = True,
) -> LogLikelihood:
    """Compute the log likelihood at each draw. Discrete latent sites are summed out.

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
    plan = plan_log_likelihood(program, structure, draws, elements) if pointwise else {}

    def read(trace: Trace) -> dict[str, Tensor]:
        if discrete:
            return score(trace, names, discrete, plan)
        trace.compute_log_prob(lambda name, _: name in names)
        nodes: Any = trace.nodes
        single = [n for n in names if n not in joint_only] if pointwise else []
        scores = {f"point {n}": nodes[n]["log_prob"] for n in single}
        return scores | {"joint": sum(nodes[n]["log_prob"].sum() for n in names)}

    with torch.no_grad():
        scores = vectorize(_scoring(program, structure, elements, read), dict(draws))
    if not quiet:
        _warn_of_elements(program, elements.structure, draws, elements)
    joint = scores.pop("joint")
    tied = {n for pooled in plan.values() if pooled.plates is None for n in pooled.sites}
    return LogLikelihood(
        {name.removeprefix("point "): points for name, points in scores.items()},
        joint,
        tuple(name for name in names if name in tied | joint_only),
        plan,
    )


def plan_log_likelihood(
    program: Program, structure: Structure, draws: Draws, elements: Elements | None = None
) -> dict[str, Pooled]:
    """Find which terms of the likelihood are scored together; empty without discrete sites.

    Args:
        program: the model on the arguments to score.
        structure: the sites of the model on these arguments.
        draws: the latent and param sites, of which the first draw is used.
        elements: see ``log_likelihood``.
    """
    discrete = {s.name for s in structure.of("discrete")}
    if not discrete:
        return {}
    names = [s.name for s in structure.terms()]
    joint_only = {s.name for s in structure.terms("joint")}

    def read(trace: Trace) -> Any:
        return plan_scores(trace, names, discrete, joint_only)

    # On plain tensors, since mapped tensors cannot be compared.
    first = {name: value[0] for name, value in draws.items()}
    with torch.no_grad():
        plan: dict[str, Pooled] = _scoring(
            program, structure, elements or Elements(structure), read
        )(first)
    return plan


def _scoring(
    program: Program, structure: Structure, elements: Elements, read: Callable[[Trace], Any]
) -> Callable[[dict[str, Tensor]], Any]:
    """Return the function that reads the trace at one draw, with discrete sites enumerated."""

    def run(draw: dict[str, Tensor]) -> Any:
        return program.run(
            read,
            *([enumerated(structure)] if structure.of("discrete") else []),
            Substitute(draw, elements.draw),
            parameters=structure.module_parameters(draw),
        )

    return run


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
        return program.run(read, Substitute(draw), parameters=structure.module_parameters(draw))

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


def log_mean_exp(log_values: Tensor) -> Tensor:
    """Return log(mean(exp(log_values))) over the leading dimension: (n, ...) to (...)."""
    return torch.logsumexp(log_values, 0) - math.log(len(log_values))


def _values(trace: Trace, wanted: set[str]) -> dict[str, Tensor]:
    nodes: Any = trace.nodes
    return {name: nodes[name]["value"] for name in nodes if name in wanted}


def _new_values(trace: Trace, structure: Structure) -> dict[str, Tensor]:
    """Return sites that exist at the new arguments only, such as a forecast."""
    nodes: Any = trace.nodes
    return {
        name: node["value"]
        for name, node in nodes.items()
        if name not in structure.sites
        and node["type"] == "sample"
        and not site_is_subsample(node)
        and not isinstance(base_distribution(node["fn"]), dist.Unit)
    }
