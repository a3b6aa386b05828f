"""Findings that follow from a model and its data, whatever the method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from probdl.findings import Finding
from probdl.model.preparing import uses_codes_as_numbers
from probdl.model.program import Program
from probdl.model.sites import Site
from probdl.results.classes import OF_CLASSES, unnamed_classes
from probdl.results.fit import Fit
from probdl.results.missing import missing_findings
from probdl.results.priors import check_prior
from probdl.util.seeds import stream

__all__ = ["model_findings"]


def model_findings(fit: Fit, program: Program, coords: Mapping[str, Any]) -> list[Finding]:
    """Report what is unusual in the model and its data, and in the draws compared with the prior.

    Args:
        fit: the fit.
        program: the model with the data that were given.
        coords: labels of dimensions.
    """
    findings = [*_no_data_findings(program, fit), *_factor_findings(fit)]
    findings += [*missing_findings(program, fit), *_category_findings(program, fit, coords)]
    if getattr(fit.method, "uses_prior", True):
        seed = stream(fit.seed, "prior check")
        findings += check_prior(fit.program, fit.structure, fit.draws, seed)
    return findings


def _no_data_findings(program: Program, fit: Fit) -> list[Finding]:
    """Report a fit without observed sites if an optional argument of the model was not given."""
    omitted = [
        name
        for name, parameter in program.signature.parameters.items()
        if parameter.default is None and program.arguments.get(name) is None
    ]
    if not omitted or fit.structure.of("observed", "factor") or fit.structure.of("param"):
        return []
    return [
        Finding(
            "warning",
            "no_data",
            "No site is observed, so the result reflects only the prior: the "
            f"argument{'s' * (len(omitted) > 1)} {', '.join(map(repr, omitted))} of "
            f"'{program.name}' {'was' if len(omitted) == 1 else 'were'} not given.",
            "Pass the data to infer(), after the model.",
        )
    ]


def _category_findings(program: Program, fit: Fit, coords: Mapping[str, Any]) -> list[Finding]:
    """Report categories whose codes nothing in the model has elements for.

    Codes are meant as an index of groups, or as the data of a discrete site. Two categories may
    also be a variable that is 0 or 1.
    """
    findings = []
    for name, encoding in program.encodings.items():
        labels = [*encoding.labels]
        codes = program.arguments.get(name)
        indexed = any({*of} <= {*labels} for of in coords.values())
        if indexed or codes is None or not uses_codes_as_numbers(program, name, fit.structure):
            continue
        observed = [s for s in fit.structure.of("observed") if s.value.shape == codes.shape]
        sites = [s for s in observed if torch.equal(s.value.double(), codes.double())]
        if any(s.distribution == "OrderedLogistic" for s in sites):
            if not encoding.ordered and len(labels) > 2 and labels == sorted(labels):
                findings.append(_alphabetical(name, labels))
            continue
        if any(s.distribution in OF_CLASSES for s in sites):
            unnamed = [(s, found) for s in sites if (found := unnamed_classes(program, s))]
            findings += [_unnamed(site, labels, classes) for site, classes in unnamed]
            continue
        known = ", ".join(f"{label!r} is {code}" for code, label in enumerate(labels[:3]))
        more = ", …" * (len(labels) > 3)
        findings.append(
            Finding(
                "info" if len(labels) == 2 else "warning",
                "categories",
                f"The texts in '{name}' became codes ({known}{more}), but the model has no plate "
                "with an element for each of them, so they may be used as numbers.",
                "Use the codes as an index, such as effect[group], in a plate with the name of the "
                "argument; convert numbers stored as text.",
            )
        )
    return findings


def _unnamed(site: Site, labels: Sequence[str], classes: Sequence[int]) -> Finding:
    """Report classes of a distribution that no row of texts has."""
    shown = ", ".join(map(str, classes[:5])) + (" …" if len(classes) > 5 else "")
    return Finding(
        "warning",
        "categories",
        f"The data of '{site.name}' have {len(labels)} classes, and its distribution has "
        f"{len(labels) + len(classes)}: the classes {shown} have no name and no data.",
        "If the data lack some classes, name all of them by pd.Categorical(values, "
        "categories=[...]); otherwise give the distribution fewer.",
        (site.name,),
    )


def _alphabetical(name: str, labels: Sequence[str]) -> Finding:
    return Finding(
        "warning",
        "categories",
        f"The classes in '{name}' are ordered, but their codes are in alphabetical order "
        f"({' < '.join(map(str, labels[:6]))}).",
        f"Pass pd.Categorical({name}, categories=[...], ordered=True) with the lowest class first "
        f"(in the shell: --category {name}=lowest,…,highest).",
    )


def _factor_findings(fit: Fit) -> list[Finding]:
    """Report factors outside all plates that count as a term of the likelihood beside others."""
    terms = fit.structure.terms()
    if not any(site.kind == "observed" for site in terms):
        return []
    findings = []
    for site in terms:
        if site.kind != "factor" or site.plated:
            continue
        counted = (
            "has no log likelihood of single observations, so there is no leave-one-out score"
            if site.term == "joint"
            else f"counts as {site.count} observation{'s' * (site.count != 1)}"
        )
        findings.append(
            Finding(
                "info",
                "factor",
                f"The factor '{site.name}' is computed from the data and outside all plates. It "
                f"is taken as a term of the likelihood and {counted}.",
                "Put it in a pyro.plate, with one element for each observation.",
                (site.name,),
            )
        )
    return findings
