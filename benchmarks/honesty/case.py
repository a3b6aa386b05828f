"""A model with its data and its known answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

POINT = ("mle", "map")
DRAWS = ("laplace", "pathfinder", "nuts", "metropolis", "svi", "importance")
METHODS = (*POINT, *DRAWS, "hmc")  # Pyro's HMC takes seconds a fit, so only a case that names it


class Known(NamedTuple):
    """The known answer for one scalar.

    Attributes:
        value: the posterior mean, or the estimate.
        sd: the posterior standard deviation, or the standard error of the estimate. NaN if there is
            none, as for an estimate at the edge of the support, so that the fit has to say so.
        error: the standard error of ``value`` itself; 0 for an exact answer.
    """

    value: float
    sd: float
    error: float = 0.0


Answer = Mapping[str, Known]

# Nothing that a method could report would be right: the posterior is improper, the likelihood has
# no maximum, or many parameter values are equally good.
UNDEFINED: Answer = {}


def split(draws: Mapping[str, Array]) -> dict[str, Array]:
    """Split draws by site into scalars (chain, draw), labelled as by ArviZ without spaces.

    >>> sorted(split({"beta": np.zeros((1, 5, 2)), "mu": np.zeros((1, 5))}))
    ['beta[0]', 'beta[1]', 'mu']
    """
    result = {}
    for site, array in draws.items():
        for index in np.ndindex(*array.shape[2:]):
            label = f"{site}[{','.join(map(str, index))}]" if index else site
            result[label] = array[(..., *index)]
    return result


@dataclass(frozen=True)
class Case:
    """A model, its arguments, and what is known.

    Attributes:
        model: the Pyro program.
        arguments: its arguments.
        mle: maximum likelihood estimates with standard errors; None leaves the method out.
        map: posterior modes (of the sites as they appear in the model) with standard errors by the
            curvature; None leaves the method out.
        posterior: posterior means and standard deviations; None leaves the methods of DRAWS out.
        log_evidence: the logarithm of the evidence in nats, if it is known.
        scalars: from draws by site to the scalars that are known.
        sites: the site of a scalar whose label does not begin with its name.
        methods: the methods that apply, if not all for which there is an answer.
        settings: settings by method, where the model needs some.
    """

    model: Callable[..., Any]
    arguments: tuple[Any, ...]
    mle: Answer | None = None
    map: Answer | None = None
    posterior: Answer | None = None
    log_evidence: float | None = None
    scalars: Callable[[Mapping[str, Array]], Mapping[str, Array]] = split
    sites: Mapping[str, str] = field(default_factory=dict)
    methods: tuple[str, ...] = (*POINT, *DRAWS)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def answer(self, method: str) -> Answer | None:
        """Return the known answer for a method; None if the method does not apply."""
        if method not in self.methods:
            return None
        return {"mle": self.mle, "map": self.map}.get(method, self.posterior)


class Entry(NamedTuple):
    """A case of the benchmark before it is built, which may take a second of quadrature."""

    family: str
    about: str
    build: Callable[[], Case]


CASES: dict[str, Entry] = {}


def case(about: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Register a function that builds a case under its own name.

    Args:
        about: the model and what is hard about it, in one line.
    """

    def register(build: Callable[[], Case]) -> Callable[[], Case]:
        name = build.__name__
        assert name not in CASES, name
        CASES[name] = Entry(build.__module__.rpartition(".")[2], about, build)
        return build

    return register
