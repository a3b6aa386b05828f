"""The reference posteriors of posteriordb, known from 10,000 draws of a long, checked run."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.honesty.case import DRAWS, Case, Known, case
from tests.reference.files import read, scalars
from tests.reference.posteriors import POSTERIORS

# The others have flat priors, which importance sampling cannot draw from.
PROPER = {
    "eight_schools-eight_schools_noncentered",
    "arK-arK",
    "gp_pois_regr-gp_regr",
    "sblrc-blr",
}


def build(name: str) -> Case:
    data, reference, count = read(Path(os.environ["PROBDL_SHARED"]) / "posteriordb", name)
    posterior = POSTERIORS[name]
    known = {
        label: Known(facts["mean"], facts["sd"], facts["sd"] / count**0.5)
        for label, facts in reference.items()
    }
    return Case(
        posterior.model,
        posterior.arguments(data),
        posterior=known,
        scalars=lambda draws: scalars(posterior.parameters(dict(draws), data)),
        sites={"b_Intercept": "Intercept"},
        methods=tuple(m for m in DRAWS if m != "importance" or name in PROPER),
    )


def _register(name: str) -> None:
    def reference() -> Case:
        return build(name)

    reference.__name__ = f"reference_{name.split('-')[1]}"
    case(f"posteriordb's {name}")(reference)


for _name in POSTERIORS:
    _register(_name)
